"""Proof: does a scheme compute C = A B over its ring, exactly; and if not, by how much does it miss, exactly.

Nothing here uses floating-point arithmetic that could round: integers and fractions only (doubles are dyadic
rationals, so the residual of a float scheme is a rational number too).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from stl_search import rings
from stl_search.errors import VerificationError
from stl_search.scheme import Array, Scheme, as_integers, matmul_tensor, triple_sum

__all__ = ["Certificate", "first_failure", "residual", "round_up", "verify"]


@dataclass(frozen=True)
class Certificate:
    """What is proved of one scheme.

    ``kind`` is "exact" or "residual"; ``rings`` the exact rings over which these very coefficients compute A B (Z2
    means their residues modulo 2); ``E_exact`` the exact relative squared residual |T - sum u (x) v (x) w|_F^2 / (mkn)
    (None over Z2, where it has no meaning).
    """

    kind: str
    rings: tuple[str, ...]
    E_exact: Fraction | None

    @property
    def E(self) -> float | None:
        """E_exact rounded up to a double."""
        return None if self.E_exact is None else round_up(self.E_exact)

    def to_json(self) -> dict[str, Any]:
        """The ``certificate`` object of a ``stl-scheme/1`` file."""
        out: dict[str, Any] = {"kind": self.kind, "rings": list(self.rings)}
        if self.kind == "residual":
            out["E_exact"] = str(self.E_exact)
        return out


def round_up(x: Fraction) -> float:
    """The smallest double that is >= x; raises VerificationError where there is none.

    >>> round_up(Fraction(1, 3)) >= Fraction(1, 3) > Fraction(1, 3) - Fraction(1, 2**60)
    True
    """
    try:
        y = x.numerator / x.denominator  # correctly rounded for integers of any size
    except OverflowError:
        raise VerificationError("the residual is beyond the range of a double") from None
    return y if Fraction(y) >= x else math.nextafter(y, math.inf)


def first_failure(scheme: Scheme, modulus: int | None = None) -> str | None:
    """None when the exact scheme computes A B over its ring (modulo ``modulus`` when given), else what fails, in words.

    The text names the first wrong coefficient: ``coefficient of A[0,0] B[0,0] in C[0,0] is 0, must be 1``. Raises
    VerificationError over R and C, and where a denominator has no inverse modulo ``modulus``.
    """
    if not scheme.ring.exact:
        raise VerificationError(f"no exact proof over {scheme.ring.name}: it has rounding coefficients")
    m, k, n = scheme.shape
    (u, su), (v, sv), (w, sw) = (as_integers(f) for f in scheme.flat())
    scale = su * sv * sw  # total = sum * scale, so the sum must equal T / scale
    total = triple_sum(u, v, w)
    target = matmul_tensor(scheme.shape)
    if scheme.ring.characteristic == 2:
        modulus = 2
    if modulus is not None:
        if scale != 1 or modulus >= 2**62:
            total = total.astype(object)
        if scale != 1:
            if math.gcd(scale.denominator, modulus) != 1:
                raise VerificationError(f"no proof modulo {modulus}: a denominator has no inverse there")
            total = total * pow(scale.denominator, -1, modulus)
        wrong = (total - target) % modulus != 0
        shown = total % modulus
    else:
        if scale.denominator >= 2**62:  # the numerator is 1
            total = total.astype(object)
            target = target.astype(object)
        else:
            target = target.astype(np.int64)  # int8 times a denominator above 127 would overflow
        wrong = total != target * scale.denominator
        shown = total
    if not wrong.any():
        return None
    i, j, h = (int(x) for x in np.argwhere(wrong)[0])
    value = int(shown[i, j, h]) * (Fraction(1) if modulus is not None else scale)
    count = int(np.count_nonzero(wrong))
    more = f" ({count} coefficients are wrong)" if count > 1 else ""
    want = int(target[i, j, h])
    place = f"A[{i // k},{i % k}] B[{j // n},{j % n}] in C[{h // n},{h % n}]"
    huge = max(abs(value.numerator), value.denominator).bit_length() > 1000
    shown_value = "too long to print" if huge else str(value)
    return f"coefficient of {place} is {shown_value}, must be {want}{more}"


def residual(scheme: Scheme) -> Fraction:
    """E = |T - sum_q u[q] (x) v[q] (x) w[q]|_F^2 / (mkn) as an exact fraction, for Z, ZT, Q, R and C.

    From Gram matrices: |T|^2 - 2 Re<T, S> + sum_{q,p} <u_q,u_p> <v_q,v_p> <w_q,w_p>, each an exact integer times a
    known power of the common denominators. Raises VerificationError over Z2.
    """
    if scheme.ring.characteristic:
        raise VerificationError("a residual has no meaning over Z2")
    parts = [_gaussian(f) for f in scheme.factors]  # (re, im or None, scale)
    scale = parts[0][2] * parts[1][2] * parts[2][2]
    volume = scheme.volume
    # <T, S> = sum_q sum_abc u[q,a,b] v[q,b,c] w[q,a,c]; the matrix product u[q] v[q] carries the sum over b
    inner = 0
    for q in range(scheme.rank):
        u, v, w = ((re[q], None if im is None else im[q]) for re, im, _ in parts)
        re, im = _cmul(u, v, lambda a, b: a @ b)
        inner += int((re * w[0]).sum()) - (int((im * w[1]).sum()) if im is not None and w[1] is not None else 0)
    norm = 0
    if scheme.rank:
        upper = np.triu_indices(scheme.rank)  # what stands below is the conjugate
        grams = []
        for real, imag, _ in parts:
            a = real.reshape(scheme.rank, -1)
            g_re = _times(a, a.T, upper)
            g_im = None
            if imag is not None:
                b = imag.reshape(scheme.rank, -1)
                g_re, g_im = g_re + _times(b, b.T, upper), _times(b, a.T, upper) - _times(a, b.T, upper)
            grams.append((g_re, g_im))
        first = _cmul(grams[0], grams[1], lambda a, b: a * b)
        products = _cmul(first, grams[2], lambda a, b: a * b)[0]
        norm = 2 * int(products.sum()) - int(products[upper[0] == upper[1]].sum())
    return 1 + (Fraction(norm) * scale - 2 * Fraction(inner)) * scale / volume


def verify(scheme: Scheme) -> Certificate:
    """The certificate of everything that can be proved of the scheme, afresh, trusting nothing.

    Raises VerificationError, naming the coefficient, when an exact ring's claim is false. A scheme over R or C whose
    residual is exactly zero is exact as well.

    >>> one = Scheme((1, 1, 1), "ZT", [[1]], [[-1]], [[-1]])
    >>> verify(one).rings
    ('Z2', 'ZT', 'Z', 'Q')
    >>> verify(Scheme((1, 1, 1), "Z", [[1]], [[1]], [[2]]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    stl_search.errors.VerificationError: not a <1,1,1> scheme over Z: coefficient of ... in C[0,0] is 2, must be 1
    """

    if scheme.ring.exact:
        failure = first_failure(scheme)
        if failure:
            raise VerificationError(
                f"not a <{','.join(map(str, scheme.shape))}> scheme over {scheme.ring.name}: {failure}"
            )
        return Certificate("exact", _rings_of(scheme), None if scheme.ring.characteristic else Fraction(0))
    e = residual(scheme)
    return Certificate("exact" if e == 0 else "residual", (scheme.ring.name,) if e == 0 else (), e)


def _rings_of(scheme: Scheme) -> tuple[str, ...]:
    """The exact rings over which an exact scheme's own coefficients hold, smallest first."""
    if scheme.ring.characteristic:
        return ("Z2",)
    values = list(scheme.coefficients())
    smallest = rings.smallest_exact(values).name
    found = ["ZT", "Z", "Q"][["ZT", "Z", "Q"].index(smallest) :]
    odd = all(not isinstance(x, Fraction) or x.denominator % 2 for x in values)
    return (("Z2",) if odd else ()) + tuple(found)  # an identity over Z_(2) holds modulo 2


def _gaussian(factor: Array) -> tuple[Array, Array | None, Fraction]:
    """A factor as Python-integer real and imaginary parts and a common scale."""
    if factor.dtype.kind != "c":
        whole, scale = as_integers(factor)
        return whole.astype(object), None, scale
    both, scale = as_integers(np.stack([factor.real, factor.imag]))
    return both[0].astype(object), both[1].astype(object), scale


def _times(a: Array, b: Array, where: tuple[Array, Array]) -> Array:
    """a (I, K) @ b (K, J) of Python integers at the places ``where``, exactly, faster than by their own arithmetic.

    Digits of so few bits that float64 sums K products of two of them without rounding; the sums of equal weight are
    added in int64 and then weighed.
    """
    inner = a.shape[1]
    bits = (52 - inner.bit_length()) // 2
    left, right = _digits(a, bits), _digits(b, bits)
    total: Array = np.zeros(len(where[0]), dtype=object)
    for weight in reversed(range(len(left) + len(right) - 1)):
        level = np.zeros((len(a), b.shape[1]), np.int64)
        for i in range(max(0, weight - len(right) + 1), min(weight + 1, len(left))):
            level += (left[i] @ right[weight - i]).astype(np.int64)
        total = (total << bits) + level[where]
    return total


def _digits(x: Array, bits: int) -> list[Array]:
    """x, Python integers, as float64 arrays: x = sum_i digits[i] 2^(bits i), each below 2^bits in magnitude."""
    found: list[Array] = []
    while True:
        rest = x >> bits
        if not ((rest != 0) & (rest != -1)).any():
            return [*found, x.astype(np.float64)]
        found.append((x & ((1 << bits) - 1)).astype(np.float64))
        x = rest


def _cmul(x: tuple[Array, Array | None], y: tuple[Array, Array | None], times: Any) -> tuple[Array, Array | None]:
    """(re, im) of a product of complex arrays given by integer parts; ``times`` is the bilinear product to use."""
    if x[1] is None or y[1] is None:
        return times(x[0], y[0]), None
    return times(x[0], y[0]) - times(x[1], y[1]), times(x[0], y[1]) + times(x[1], y[0])
