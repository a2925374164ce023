"""How good a scheme is: expected error, noise gain, error at a precision, cost, growth, and rigorous bounds.

For independent zero-mean unit-variance entries, in closed form:

    E            = |T - sum_q u_q (x) v_q (x) w_q|_F^2 / (mkn)      expected relative squared error
    kappa        = sum_q |u_q|^2 |v_q|^2 |w_q|^2 / (mkn)            noise gain
    error(dtype) = sqrt(E + 2 d(dtype)^2 kappa)                     expected relative Frobenius error, encoded operands
                                                                    rounded to dtype, products and output in fp32
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search.errors import UsageError, VerificationError
from stl_search.scheme import Array, Scheme, Shape, matmul_tensor

__all__ = [
    "DTYPES",
    "GRID",
    "Figures",
    "additions",
    "apriori_bound",
    "balanced",
    "bytes_moved",
    "check_dtype",
    "error",
    "expected_error",
    "figures",
    "floor",
    "growth_factor",
    "line",
    "max_coefficient",
    "monte_carlo",
    "noise_gain",
    "on_grid",
    "relative_rounding",
    "round_to",
    "stored",
    "unit_roundoff",
]

# name: (significand bits with the hidden one, exponent of the smallest normal number, largest finite number)
DTYPES: dict[str, tuple[int, int, float]] = {
    "fp8_e4m3": (4, -6, 448.0),
    "bf16": (8, -126, 3.3895313892515355e38),
    "fp16": (11, -14, 65504.0),
    "fp32": (24, -126, 3.4028234663852886e38),
    "fp64": (53, -1022, 1.7976931348623157e308),
}


def check_dtype(dtype: str) -> str:
    """The same name when it is a known precision; raises UsageError that lists the known ones."""
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    return dtype


def unit_roundoff(dtype: str) -> float:
    """Half the spacing of 1: 2**-p for a significand of p bits; |fl(x) - x| <= unit_roundoff * |x| in normal range.

    >>> unit_roundoff("bf16") == 2**-8
    True
    """
    return 2.0 ** -DTYPES[check_dtype(dtype)][0]


def round_to(x: npt.ArrayLike, dtype: str) -> npt.NDArray[np.float64]:
    """x rounded to nearest even in the given precision, as float64; subnormals kept, saturating at the largest number.

    fp8_e4m3 is the "fn" variant (no infinity) and is *not* scaled here.

    >>> float(round_to(1.0 + 2**-8, "bf16")), float(round_to(1000.0, "fp8_e4m3"))
    (1.0, 448.0)
    """
    bits, lowest, largest = DTYPES[check_dtype(dtype)]
    x = np.asarray(x, dtype=np.float64)
    if dtype == "fp64":
        return x.copy()
    _, exponent = np.frexp(x)  # |x| in [2**(e-1), 2**e)
    quantum = np.ldexp(1.0, np.maximum(exponent - 1, lowest) - (bits - 1))
    rounded: npt.NDArray[np.float64] = np.clip(np.rint(x / quantum) * quantum, -largest, largest)
    return rounded


@cache
def relative_rounding(dtype: str) -> float:
    """d(dtype) = sqrt(E[(fl(x) - x)^2] / E[x^2]) for x ~ N(0, 1), by quadrature over the rounding cells.

    fp8_e4m3 is used with one scale for each slice, which carries the largest entry to 448; the position of that scale
    within a binade is unknown, so d^2 is averaged over it (log-uniform). fp32 and fp64, whose cells are too many to
    sum, take the error as uniform within each cell, which is right to 1e-6 relative.

    >>> round(relative_rounding("bf16"), 5), round(relative_rounding("fp16"), 6)
    (0.00166, 0.000208)
    """
    bits = DTYPES[check_dtype(dtype)][0]
    if dtype == "fp8_e4m3":
        shifts = np.exp2((np.arange(64) + 0.5) / 64)
        return math.sqrt(float(np.mean([_rounding_variance(bits, -9, float(s) * 64.0) for s in shifts])))
    return math.sqrt(_rounding_variance(min(bits, 24), -40, 1.0) * 4.0 ** (min(bits, 24) - bits))


def _rounding_variance(bits: int, lowest: int, sigma: float) -> float:
    """E[(fl(sigma x) - sigma x)^2] / sigma^2 for x ~ N(0,1), by Gauss-Legendre on every rounding cell."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    total = 0.0
    top = math.ceil(math.log2(sigma * 9))
    for e in range(lowest, top + 1):
        low = 2.0**e if e > lowest else 0.0
        quantum = 2.0 ** (e - bits + 1)
        cells = max(1, round((2.0 ** (e + 1) - low) / quantum))
        if cells <= 4096:
            # half cells: the error is smooth between a grid point and the midpoint beside it
            starts = low + quantum / 2 * np.arange(2 * cells)[:, None]
            x = starts + quantum / 4 * (nodes + 1)
            off = np.abs(x / quantum - np.rint(x / quantum)) * quantum
            density = np.exp(-0.5 * (x / sigma) ** 2)
            total += float((off**2 * density * weights).sum()) * quantum / 4
        else:
            x = low + (2.0 ** (e + 1) - low) / 2 * (nodes + 1)
            total += (
                float((np.exp(-0.5 * (x / sigma) ** 2) * weights).sum()) * (2.0 ** (e + 1) - low) / 2 * quantum**2 / 12
            )
    return 2 * total / (sigma * math.sqrt(2 * math.pi)) / sigma**2


def expected_error(scheme: Scheme) -> float:
    """E, in floating point, from the residual tensor itself (no cancellation: right to about 1e-30 absolute).

    Exact rational values are ``stl_search.verify.residual``'s. Raises VerificationError over Z2.

    >>> expected_error(Scheme((1, 1, 1), "R", [[1.0]], [[1.0]], [[0.5]]))
    0.25
    """
    _no_z2(scheme)
    u, v, w = _float_rows(scheme)
    target = matmul_tensor(scheme.shape)
    total = 0.0
    for i in range(target.shape[0]):
        gap = (u[:, i, None] * v).T @ w - target[i]
        total += float((gap.real**2).sum() + (gap.imag**2).sum()) if np.iscomplexobj(gap) else float((gap * gap).sum())
    return total / scheme.volume


def noise_gain(scheme: Scheme) -> float:
    """kappa = sum_q |u_q|^2 |v_q|^2 |w_q|^2 / (mkn)."""
    _no_z2(scheme)
    (u, p), (v, q), (w, s) = (_squares(f) for f in _float_rows(scheme))
    return float(np.ldexp(u * v * w, 2 * (p + q + s)).sum()) / scheme.volume


def error(scheme: Scheme, dtype: str) -> float:
    """sqrt(E + 2 d^2 kappa): expected relative Frobenius error with encoded operands rounded to ``dtype``."""
    return math.sqrt(expected_error(scheme) + 2 * relative_rounding(dtype) ** 2 * noise_gain(scheme))


def floor(shape: Shape, rank: int) -> float:
    """The rigorous floor of E, 1 - r / max(mk, kn, mn): a flattening of T has that rank, with equal singular values.

    >>> floor((4, 4, 4), 12)
    0.25
    """
    m, k, n = shape
    return max(0.0, 1 - rank / max(m * k, k * n, m * n))


def line(shape: Shape, rank: int) -> float:
    """E of keeping r of the mkn elementary products, 1 - r/(mkn): a find must be below it by more than 1e-6."""
    m, k, n = shape
    return max(0.0, 1 - rank / (m * k * n))


def additions(scheme: Scheme) -> int:
    """Additions of the plain straight-line program: (non-zeros - 1) over every row of u and v and every entry of C."""
    u, v, w = scheme.flat()
    count = sum(int(np.maximum((f != 0).sum(axis=1) - 1, 0).sum()) for f in (u, v))
    return count + int(np.maximum((w != 0).sum(axis=0) - 1, 0).sum())


_OPERAND, _PRODUCT = 2, 4  # bytes of an entry of A, B, C and encoded operands (bf16), and of a product (fp32)


def bytes_moved(shape: Shape, rank: int) -> dict[str, float]:
    """{"A", "B", "C"}: bytes moved for each entry of A, of B and of C in one level of a scheme, whatever the sizes.

    Entries of A, B, C and of encoded operands take 2 bytes (bf16), those of the r products 4 (fp32). Encoding, products
    and decoding are three passes, each of which reads what it needs and writes what it makes once. So A is read, its r
    slices are written and read: (2 mk + 2 * 2 r)/(mk), and likewise for B; the products are written and read, and C is
    written: (2 * 4 r + 2 mn)/(mn). A product of M x K and K x N moves A * MK + B * KN + C * MN bytes; a dense one has 2
    for each of the three. Fused passes move less, operands that do not fit a cache more.

    >>> bytes_moved((2, 2, 2), 7)
    {'A': 9.0, 'B': 9.0, 'C': 16.0}
    """
    m, k, n = shape
    slices = 2 * _OPERAND * rank
    return {
        "A": _OPERAND + slices / (m * k),
        "B": _OPERAND + slices / (k * n),
        "C": _OPERAND + 2 * _PRODUCT * rank / (m * n),
    }


GRID = (0.25, 0.5, 1.0, 2.0)  # sizes of the coefficients that are searched for where cheap ones are asked for


def on_grid(rows: npt.NDArray[Any], scaled: bool = False) -> bool:
    """Whether every coefficient is 0 or of a size in GRID; ``scaled``: or becomes so by one scale for each row.

    >>> on_grid(np.array([[0.5, -2.0, 0.0]])), on_grid(np.array([[0.3, 0.6]])), on_grid(np.array([[0.3, 0.6]]), True)
    (True, False, True)
    """
    if np.iscomplexobj(rows):
        return False
    size = np.abs(rows)
    if not scaled:
        return bool(np.isin(size, (0.0, *GRID)).all())
    peak = size.max(axis=1, keepdims=True, initial=0.0)
    steps = [x / GRID[-1] for x in GRID]  # powers of two: a row divided by its peak is exact
    return bool(np.isin(size / np.where(peak > 0, peak, 1.0), (0.0, *steps)).all())


def max_coefficient(scheme: Scheme) -> float:
    """The largest |coefficient|, as a double."""
    return max((float(np.abs(f).max()) for f in scheme.as_float() if f.size), default=0.0)


def growth_factor(scheme: Scheme) -> float:
    """g = max over (a, c) of sum_q |w[q,a,c]| |u_q|_1 |v_q|_1: the growth factor of one level in the max norm.

    Ballard, Benson, Druinsky, Lipshitz, Schwartz, "Improving the numerical stability of fast matrix multiplication",
    SIAM J. Matrix Anal. Appl. 37 (2016), definition 2 (there with absolute stability vectors). 12 for Strassen, and k
    for the classical algorithm.
    """
    u, v, w = (np.abs(f) for f in scheme.as_float())
    return float(np.einsum("q,q,qac->ac", u.sum(axis=(1, 2)), v.sum(axis=(1, 2)), w).max(initial=0.0))


@dataclass(frozen=True)
class Apriori:
    """|C_hat - C|_F <= frobenius |A|_F |B|_F, max|C_hat - C| <= maximum max|A| max|B| (no under- or overflow)."""

    frobenius: float
    maximum: float


def apriori_bound(
    scheme: Scheme, inner: int, compute: str = "fp32", stored: str | None = None, out: str | None = None
) -> Apriori:
    """A rigorous bound of one level of an *exact* scheme on operands whose full inner dimension is ``inner``.

    Sums run in ``compute`` in any order, encoded operands are rounded to ``stored``, the output to ``out`` (both
    default to ``compute``). Derivation (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., sections
    3.1 and 23.2): an encoded entry with z non-zeros suffers a relative error gamma_{z+1} of sum |u||A| (z
    multiplications by rounded coefficients and z - 1 additions, in any order), storing adds one rounding, a product of
    inner length L = ceil(inner / k) adds gamma_L, the decoder gamma_{z'+1}. All are relative to sum |w| (sum |u||A|)
    (sum |v||B|), whose Frobenius norm is at most sum_q |u_q||v_q||w_q| |A|_F |B|_F by Cauchy-Schwarz and whose
    entries are at most L * growth_factor * max|A| max|B|.
    """
    _no_z2(scheme)
    if not scheme.ring.exact:
        raise VerificationError(f"an a-priori bound needs an exact scheme, not one over {scheme.ring.name}")
    eps = unit_roundoff(compute)
    eps_stored = unit_roundoff(stored) if stored and stored != compute else 0.0
    eps_out = unit_roundoff(out) if out and out != compute else 0.0
    m, k, n = scheme.shape
    length = max(1, -(-inner // k))
    nonzero = [f != 0 for f in scheme.flat()]
    steps_c = int(nonzero[2].sum(axis=0).max(initial=0)) + 1
    rows = _float_rows(scheme)
    norms = [_norms(f) for f in rows]
    sums = [np.abs(f).sum(axis=1) for f in rows]
    roundings = nonzero[0].sum(axis=1) + nonzero[1].sum(axis=1) + 2 + length + steps_c
    if float(roundings.max(initial=0)) * eps >= 0.5:
        return Apriori(math.inf, math.inf)
    gamma = roundings * eps / (1 - roundings * eps)
    relative = (1 + gamma) * (1 + eps_stored) ** 2 * (1 + eps_out) - 1
    frobenius = float((norms[0] * norms[1] * norms[2] * relative).sum())
    entries = np.einsum("q,qi->i", sums[0] * sums[1] * relative, np.abs(rows[2]))
    return Apriori(frobenius, float(entries.max(initial=0.0)) * length)


def balanced(scheme: Scheme) -> Scheme:
    """The same R or C scheme with |u_q| = |v_q| = |w_q| in every term, so that narrow formats do not overflow."""
    if scheme.ring.exact:
        return scheme
    norms = [_norms(f) for f in scheme.flat()]
    size = np.cbrt(norms[0]) * np.cbrt(norms[1]) * np.cbrt(norms[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = [np.where(size > 0, size / x, 0.0) for x in norms]
    return Scheme(
        scheme.shape, scheme.ring, *(f * g[:, None, None] for f, g in zip(scheme.factors, gains, strict=True))
    )


def monte_carlo(
    scheme: Scheme, dtype: str, rng: np.random.Generator, blocks: int = 24, trials: int = 4
) -> tuple[float, float]:
    """(mean, standard error of the mean) of the measured relative Frobenius error on Gaussian matrices.

    A: (m*s, k*s), B: (k*s, n*s) with s = ``blocks``, in tiles; encoded operands rounded to ``dtype`` (fp8 with one
    scale a slice), all else in float64. The measured twin of ``error``.
    """
    _no_z2(scheme)
    m, k, n = scheme.shape
    u, v, w = scheme.as_float()
    found = []
    for _ in range(trials):
        a = rng.standard_normal((m, k, blocks, blocks))
        b = rng.standard_normal((k, n, blocks, blocks))
        exact = np.einsum("abij,bcjl->acil", a, b, optimize=True)
        a_hat = stored(np.einsum("qab,abij->qij", u, a, optimize=True), dtype)
        b_hat = stored(np.einsum("qbc,bcij->qij", v, b, optimize=True), dtype)
        c = np.einsum("qac,qij->acij", w, a_hat @ b_hat, optimize=True)
        found.append(float(np.linalg.norm(c - exact) / np.linalg.norm(exact)))
    spread = float(np.std(found, ddof=1)) / math.sqrt(trials) if trials > 1 else math.nan
    return float(np.mean(found)), spread


def stored(x: Array, dtype: str) -> Array:
    """Slices x: (r, i, j) as they come back from storage in ``dtype``; fp8 carries one scale a slice."""
    if np.iscomplexobj(x):
        return stored(x.real, dtype) + 1j * stored(x.imag, dtype)
    if dtype != "fp8_e4m3":
        return round_to(x, dtype)
    peak = np.abs(x).max(axis=(1, 2), keepdims=True)
    scale = np.where(peak > 0, 448.0 / np.where(peak > 0, peak, 1.0), 1.0)
    return round_to(x * scale, dtype) / scale


@dataclass(frozen=True)
class Figures:
    """The ``figures`` of a catalog record; E is not below the true value when it comes from a proof."""

    E: float
    kappa: float
    error: dict[str, float]
    additions: int
    max_coeff: float
    bytes: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The ``figures`` object of a ``stl-scheme/1`` file."""
        return {
            "E": self.E,
            "kappa": self.kappa,
            "error": dict(self.error),
            "additions": self.additions,
            "max_coeff": self.max_coeff,
            "bytes": dict(self.bytes),
        }


def figures(scheme: Scheme, e: float | None = None) -> Figures:
    """All figures of a scheme; ``e`` is the proved E where one is at hand (0 for exact schemes, else computed here)."""
    if e is None:
        e = expected_error(scheme)
    kappa = noise_gain(scheme)
    errors = {name: math.sqrt(e + 2 * relative_rounding(name) ** 2 * kappa) for name in DTYPES}
    moved = bytes_moved(scheme.shape, scheme.rank)
    return Figures(e, kappa, errors, additions(scheme), max_coefficient(scheme), moved)


def _float_rows(scheme: Scheme) -> tuple[Array, ...]:
    """(u, v, w) as doubles, one row a term; rank 0 included."""
    return tuple(f.reshape(scheme.rank, f.shape[1] * f.shape[2]) for f in scheme.as_float())


def _squares(rows: Array) -> tuple[Array, Array]:
    """(x, e) with |row|^2 = x * 4^e, so that no square over- or underflows, and those of small integers are exact."""
    size = np.abs(rows)
    _, exponent = np.frexp(size.max(axis=1, initial=0.0))
    return (np.ldexp(size, -exponent[:, None]) ** 2).sum(axis=1), exponent


def _norms(rows: Array) -> Array:
    """Euclidean norms of rows."""
    squares, exponent = _squares(rows)
    norms: Array = np.ldexp(np.sqrt(squares), exponent)
    return norms


def _no_z2(scheme: Scheme) -> None:
    if scheme.ring.characteristic:
        raise VerificationError("a scheme over Z2 has no error over the reals: lift it first")
