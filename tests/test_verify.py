"""Proofs against the naive oracle: the whole tensor of a scheme summed up entry by entry in fractions."""

from __future__ import annotations

import math
import random
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import rings
from stl_search.errors import VerificationError
from stl_search.scheme import Scheme, matmul_tensor
from stl_search.testing import STRASSEN
from stl_search.transform import change_basis, classical, extend, kron, to_ring
from stl_search.verify import Certificate, _times, first_failure, residual, round_up, verify

TIMELESS = settings(deadline=None)
# Strassen's scheme, <2,2,2> rank 7 over ZT: rows of u on (a00, a01, a10, a11), of v on b, of w on c alike.
WIDE = extend(STRASSEN, (2, 2, 3))  # rectangular: a transposed C would not pass
THIRDS = change_basis(WIDE, [[3, 1], [0, 1]], [[1, 0], [Fraction(1, 5), 1]], np.diag([1, 7, -1]))
HALVES = change_basis(WIDE, [[2, 1], [0, 1]], np.eye(2, dtype=int), np.eye(3, dtype=int))
HUGE = change_basis(STRASSEN, *[[[1, 2**40], [0, 1]]] * 3)
EXACT_SCHEMES = [STRASSEN, WIDE, THIRDS, HALVES, HUGE, classical((1, 2, 3)), kron(STRASSEN, classical((1, 1, 2)))]

Gaussian = tuple[Fraction, Fraction]


def exact(x: Any) -> Gaussian:
    """A coefficient as exact real and imaginary parts."""
    z = x if isinstance(x, complex) else None
    return (Fraction(z.real), Fraction(z.imag)) if z is not None else (Fraction(x), Fraction(0))


def times(x: Gaussian, y: Gaussian) -> Gaussian:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def naive_gap(s: Scheme) -> dict[tuple[int, int, int], Gaussian]:
    """sum_q u_q (x) v_q (x) w_q - T, entry by entry, from the definition of C = A B alone."""
    m, k, n = s.shape
    gap = {place: (Fraction(0), Fraction(0)) for place in np.ndindex(m * k, k * n, m * n)}
    for a, b, c in np.ndindex(m, k, n):
        gap[a * k + b, b * n + c, a * n + c] = (Fraction(-1), Fraction(0))
    for term in zip(*s.flat(), strict=True):
        u, v, w = ([(i, exact(x)) for i, x in enumerate(row.tolist()) if x != 0] for row in term)
        for i, x in u:
            for j, y in v:
                for h, z in w:
                    re, im = times(times(x, y), z)
                    gap[i, j, h] = gap[i, j, h][0] + re, gap[i, j, h][1] + im
    return gap


def naive_residual(s: Scheme) -> Fraction:
    return sum((re * re + im * im for re, im in naive_gap(s).values()), Fraction(0)) / s.volume


ENTRIES: dict[str, st.SearchStrategy[Any]] = {
    "Z2": st.integers(0, 1),
    "ZT": st.integers(-1, 1),
    "Z": st.integers(-3, 3) | st.sampled_from([2**31, -(2**62), 2**63, 10**30]),
    "Q": st.builds(Fraction, st.integers(-3, 3), st.sampled_from([1, 2, 3, 127, 2**33, 2**63 + 1])),
    "R": st.floats(allow_nan=False, allow_infinity=False, width=32) | st.sampled_from([1e-300, 1e100, 5e-324, 0.1]),
    "C": st.complex_numbers(allow_nan=False, allow_infinity=False, max_magnitude=1e50),
}


@st.composite
def schemes(draw: st.DrawFn, names: tuple[str, ...] = rings.NAMES) -> Scheme:
    """A random scheme of rank 0..3, sides 1..3."""
    name = draw(st.sampled_from(names))
    m, k, n = draw(st.tuples(*[st.integers(1, 3)] * 3))
    r = draw(st.integers(0, 3))
    pool = [draw(ENTRIES[name]) for _ in range(5)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factors = []
    for rows, cols in ((m, k), (k, n), (m, n)):
        f = np.empty(r * rows * cols, dtype=object)
        f[:] = [pool[i] for i in rng.integers(0, 5, f.size)]
        factors.append(f.reshape(r, rows, cols))
    return Scheme((m, k, n), name, *factors)


@st.composite
def nearly_exact(draw: st.DrawFn) -> Scheme:
    """An exact scheme with no, one or two coefficients changed (perhaps without effect)."""
    s = draw(st.sampled_from(EXACT_SCHEMES))
    ring = draw(st.sampled_from(["Z2", "Q"]))
    if ring == "Z2" and s is HALVES:
        ring = "Q"
    s = to_ring(s, ring)
    factors = [f.astype(object) for f in s.factors]
    for _ in range(draw(st.integers(0, 2))):
        f = factors[draw(st.integers(0, 2))]
        place = tuple(draw(st.integers(0, d - 1)) for d in f.shape)
        f[place] = 1 - f[place] if ring == "Z2" else f[place] + draw(st.sampled_from([1, -1, Fraction(1, 2), 2**70]))
    return Scheme(s.shape, ring, *factors)


MESSAGE = re.compile(
    r"coefficient of A\[(\d+),(\d+)\] B\[(\d+),(\d+)\] in C\[(\d+),(\d+)\] is (\S+), must be ([01])"
    r"(?: \((\d+) coefficients are wrong\))?"
)


@TIMELESS
@given(schemes(rings.EXACT) | nearly_exact())
def test_failures_are_found_counted_and_named_as_the_oracle_has_them(s: Scheme) -> None:
    modulus = 2 if s.ring.name == "Z2" else 0
    gap = {place: re % 2 if modulus else re for place, (re, _) in naive_gap(s).items()}
    wrong = [place for place, value in gap.items() if value]
    failure = first_failure(s)
    if not wrong:
        assert failure is None
        assert verify(s).kind == "exact"
        return
    assert failure is not None
    found = MESSAGE.fullmatch(failure)
    assert found is not None, failure
    a0, a1, b0, b1, c0, c1 = (int(x) for x in found.groups()[:6])
    m, k, n = s.shape
    assert max(a0, c0) < m
    assert max(a1, b0) < k
    assert max(b1, c1) < n
    place = (a0 * k + a1, b0 * n + b1, c0 * n + c1)
    assert place == min(wrong)
    must = int(a1 == b0 and a0 == c0 and b1 == c1)
    assert int(found[8]) == must
    value = gap[place] + must
    assert Fraction(found[7]) == (value % 2 if modulus else value)
    assert int(found[9] or 1) == len(wrong)
    with pytest.raises(VerificationError, match=re.escape(f"not a <{m},{k},{n}> scheme over {s.ring}: {failure}")):
        verify(s)


@pytest.mark.parametrize("s", EXACT_SCHEMES, ids=lambda s: s.name)
def test_one_coefficient_changed_is_found(s: Scheme) -> None:
    """In an exact scheme without idle terms no coefficient can change alone."""
    for which in range(3):
        for q in range(s.rank):
            factors = [f.astype(object) for f in s.factors]
            factors[which][q, 0, -1] += 1
            assert first_failure(Scheme(s.shape, "Q", *factors)) is not None


@TIMELESS
@given(schemes(("ZT", "Z", "Q", "R", "C")))
def test_the_residual_is_the_oracle_s(s: Scheme) -> None:
    e = residual(s)
    assert isinstance(e, Fraction)
    assert e == naive_residual(s)


@pytest.mark.parametrize("s", EXACT_SCHEMES, ids=lambda s: s.name)
def test_exact_schemes_have_residual_zero_and_others_not(s: Scheme) -> None:
    assert residual(s) == 0
    factors = [f.astype(object) for f in s.factors]
    factors[0][0] = 2 * factors[0][0] + Fraction(1, 3)
    broken = Scheme(s.shape, "Q", *factors)
    assert residual(broken) == naive_residual(broken) > 0


def test_residual_of_known_schemes() -> None:
    for shape in ((2, 3, 4), (1, 1, 5)):
        s = classical(shape)
        for r in (0, 1, s.rank - 1):  # r of the mkn elementary products
            part = Scheme(shape, "ZT", *(f[:r] for f in s.factors))
            assert residual(part) == 1 - Fraction(r, s.volume)
    i = Scheme((1, 1, 1), "C", [[1j]], [[1j]], [[-1]])
    assert residual(i) == 0
    assert residual(Scheme((1, 1, 1), "C", [[1j]], [[1]], [[1]])) == 2  # |1 - i|^2
    assert residual(Scheme((1, 1, 1), "C", [[1j]], [[1j]], [[1]])) == 4
    with pytest.raises(VerificationError, match="no meaning over Z2"):
        residual(to_ring(STRASSEN, "Z2"))


def test_a_tenth_is_no_tenth() -> None:
    """The residual of a float scheme is that of its doubles, however small."""
    s = Scheme((1, 1, 1), "R", [[0.1]], [[10.0]], [[1.0]])
    off = Fraction(0.1) * 10 - 1
    assert off != 0
    assert residual(s) == off**2
    certificate = verify(s)
    assert certificate.kind == "residual"
    assert certificate.rings == ()
    assert certificate.E is not None
    assert Fraction(certificate.E) >= off**2
    assert Certificate("residual", (), off**2).to_json() == {
        "kind": "residual",
        "rings": [],
        "E_exact": f"{(off**2).numerator}/{(off**2).denominator}",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Certificates


@pytest.mark.parametrize(
    ("s", "over"),
    [
        (STRASSEN, ("Z2", "ZT", "Z", "Q")),
        (to_ring(STRASSEN, "Q"), ("Z2", "ZT", "Z", "Q")),  # the coefficients count, not the label
        (HUGE, ("Z2", "Z", "Q")),
        (THIRDS, ("Z2", "Q")),  # odd denominators have residues modulo 2
        (HALVES, ("Q",)),
        (to_ring(STRASSEN, "Z2"), ("Z2",)),
        (to_ring(STRASSEN, "R"), ("R",)),
        (to_ring(HALVES, "C"), ("C",)),
    ],
)
def test_the_rings_of_a_certificate(s: Scheme, over: tuple[str, ...]) -> None:
    certificate = verify(s)
    assert certificate.kind == "exact"
    assert certificate.rings == over
    assert certificate.to_json() == {"kind": "exact", "rings": list(over)}
    if s.ring.name == "Z2":
        assert certificate.E is None
    else:
        assert certificate.E == 0.0
    for ring in over:
        if ring in rings.EXACT:
            assert verify(to_ring(s, ring)).kind == "exact"


def test_modulo_2_only_is_not_over_z() -> None:
    signless = Scheme((2, 2, 2), "ZT", *(abs(f) for f in STRASSEN.factors))
    assert verify(to_ring(signless, "Z2")).rings == ("Z2",)
    assert first_failure(signless, modulus=2) is None
    with pytest.raises(VerificationError, match="not a <2,2,2> scheme over ZT"):
        verify(signless)


def test_a_transposed_c_is_caught() -> None:
    m, k, n = WIDE.shape
    wrong = Scheme(WIDE.shape, "ZT", WIDE.u, WIDE.v, WIDE.w.swapaxes(1, 2).reshape(WIDE.rank, m, n))
    with pytest.raises(VerificationError):
        verify(wrong)


@TIMELESS
@given(schemes(("Z", "Q")), st.sampled_from([2, 3, 4, 7, 2**20, 2**62, 2**63 - 1, 2**64, 3**50]))
def test_proofs_modulo_an_integer(s: Scheme, modulus: int) -> None:
    bottoms = [Fraction(x).denominator for x in s.coefficients()]
    if any(math.gcd(b, modulus) != 1 for b in bottoms):
        with pytest.raises(VerificationError, match="has no inverse"):
            first_failure(s, modulus)
        return
    gap = [re.numerator * pow(re.denominator, -1, modulus) % modulus for re, _ in naive_gap(s).values()]
    failure = first_failure(s, modulus)
    assert (failure is None) == (not any(gap))
    if failure:
        assert f"({sum(map(bool, gap))} coefficients are wrong)" in failure or sum(map(bool, gap)) == 1
    assert first_failure(THIRDS, 2**40) is None
    assert first_failure(HUGE, modulus) is None


def test_no_exact_proof_over_floats() -> None:
    with pytest.raises(VerificationError, match="no exact proof over R"):
        first_failure(to_ring(STRASSEN, "R"))


def test_the_text_stays_short_for_the_largest_coefficients() -> None:
    big = [[10**1000 - 1]]
    with pytest.raises(VerificationError, match="is too long to print, must be 1") as caught:
        verify(Scheme((1, 1, 1), "Z", big, big, big))
    assert len(str(caught.value)) < 200
    # many different denominators: their common multiple has tens of thousands of digits
    u = [[Fraction(1, 10**999 + 2 * i + 1) for i in range(16)]]
    with pytest.raises(VerificationError, match="must be"):
        verify(Scheme((1, 16, 1), "Q", u, [[10**999] * 16], [[10**999]]))


@TIMELESS
@given(st.integers(0, 2**200), st.integers(1, 2**200))
def test_round_up_is_the_next_double(top: int, bottom: int) -> None:
    x = Fraction(top, bottom)
    y = round_up(x)
    assert Fraction(y) >= x
    below = math.nextafter(y, -math.inf)
    assert Fraction(below) < x


def test_round_up_at_the_ends() -> None:
    assert round_up(Fraction(0)) == 0.0
    assert round_up(Fraction(1, 10**400)) == 5e-324
    assert round_up(Fraction(0.1)) == 0.1
    with pytest.raises(VerificationError, match="beyond the range"):
        round_up(Fraction(10**400))
    largest = Fraction(1.7976931348623157e308)
    assert round_up(largest) == float(largest)


@TIMELESS
@given(st.integers(0, 140), st.sampled_from([1, 3, 16, 64]), st.integers(0, 2**32))
def test_products_by_digits_are_those_of_whole_numbers(bits: int, inner: int, seed: int) -> None:
    rng = random.Random(seed)
    ends = [0, 1, -1, 2**bits, -(2**bits), 2**bits - 1]

    def drawn(rows: int, cols: int) -> np.ndarray:
        values = [rng.choice([*ends, rng.randint(-(2**bits), 2**bits)]) for _ in range(rows * cols)]
        return np.array([*values, None], dtype=object)[:-1].reshape(rows, cols)

    a, b = drawn(3, inner), drawn(inner, 2)
    where = np.array([2, 0, 1]), np.array([1, 1, 0])
    expected = [sum(x * y for x, y in zip(a[i], b[:, j], strict=True)) for i, j in zip(*where, strict=True)]
    assert _times(a, b, where).tolist() == expected


def test_rank_zero() -> None:
    none = Scheme((1, 2, 3), "Q", [], [], [])
    assert residual(none) == 1
    with pytest.raises(VerificationError, match=r"is 0, must be 1 \(6 coefficients are wrong\)"):
        verify(none)
    assert verify(to_ring(none, "R")).E == 1.0


def test_the_target_is_the_definition() -> None:
    gap = naive_gap(Scheme((2, 3, 4), "Q", [], [], []))
    assert {p for p, (x, _) in gap.items() if x} == {tuple(map(int, p)) for p in np.argwhere(matmul_tensor((2, 3, 4)))}
