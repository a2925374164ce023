"""Scores against independent ways to the same number: exact fractions, torch's own roundings, sampled quantiles,
brute force over signs, and errors measured in real low precision.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from stl_search import score
from stl_search.errors import UsageError, VerificationError
from stl_search.scheme import Scheme, as_integers, matmul_tensor, triple_sum
from stl_search.testing import STRASSEN
from stl_search.transform import change_basis, classical, extend, kron, to_ring
from stl_search.verify import residual

TIMELESS = settings(deadline=None)
# Strassen's scheme, <2,2,2> rank 7 over ZT: rows of u on (a00, a01, a10, a11), of v on b, of w on c alike.
WIDE = extend(STRASSEN, (2, 2, 3))
SKEW = change_basis(WIDE, [[3, 1], [0, 1]], [[1, 0], [Fraction(1, 5), 1]], [[2, 0, 1], [0, 1, 5], [0, 0, 1]])
EXACT_SCHEMES = [STRASSEN, WIDE, SKEW, classical((2, 3, 1)), kron(STRASSEN, WIDE)]
TORCH = {"fp8_e4m3": torch.float8_e4m3fn, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EPS = 2.0**-53


def random_scheme(seed: int, ring: str = "R") -> Scheme:
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 4, 3).tolist()
    r = int(rng.integers(0, 6))
    parts = [rng.standard_normal((2, r, p, q)) * 2.0 ** rng.integers(-3, 4) for p, q in ((m, k), (k, n), (m, n))]
    return Scheme((m, k, n), ring, *(p[0] + 1j * p[1] if ring == "C" else p[0] for p in parts))


SEEDS = st.integers(0, 2**32 - 1)

# ---------------------------------------------------------------------------------------------------------------------
# E, kappa and error(dtype)


@TIMELESS
@given(SEEDS, st.sampled_from("RC"))
def test_expected_error_is_the_exact_residual(seed: int, ring: str) -> None:
    s = random_scheme(seed, ring)
    exact = float(residual(s))
    # each entry of the gap is a sum of r + 1 terms with 3 roundings each: relative to sum |u||v||w| + 1
    u, v, w = (np.abs(f) for f in s.flat())
    sizes = np.einsum("qi,qj,ql->ijl", u, v, w) + 1
    off = (s.rank + 6) * 4 * EPS * float(np.linalg.norm(sizes))
    tolerance = (2 * math.sqrt(exact * s.volume) * off + off**2) / s.volume + 100 * EPS * exact
    assert abs(score.expected_error(s) - exact) <= tolerance


@pytest.mark.parametrize("s", EXACT_SCHEMES, ids=lambda s: s.name)
def test_exact_schemes_have_expected_error_zero(s: Scheme) -> None:
    assert score.expected_error(s) <= 1e-28
    for ring in ("R", "C"):
        assert score.expected_error(to_ring(s, ring)) <= 1e-28


@TIMELESS
@given(SEEDS, st.sampled_from("RC"))
def test_noise_gain_is_its_definition(seed: int, ring: str) -> None:
    s = random_scheme(seed, ring)
    total = Fraction(0)
    for term in s.terms():
        product = Fraction(1)
        for f in term:
            values = f.ravel().tolist()
            product *= sum((Fraction(x.real) ** 2 + Fraction(x.imag) ** 2 for x in values), Fraction(0))
        total += product
    assert score.noise_gain(s) == pytest.approx(float(total / s.volume), rel=200 * EPS)


def test_figures_of_strassen() -> None:
    figures = score.figures(STRASSEN, 0.0)
    # |u|^2 |v|^2 |w|^2: 2*2*2, then four terms of 2*1*2 or 1*2*2 and two of 2*2*1
    assert figures.kappa == (8 + 4 * 4 + 2 * 4) / 8
    assert figures.additions == 18
    assert figures.max_coeff == 1.0
    assert figures.E == 0.0
    for name, value in figures.error.items():
        assert value == pytest.approx(math.sqrt(8) * score.relative_rounding(name), rel=1e-14)
        assert score.error(STRASSEN, name) == pytest.approx(value, rel=1e-14)
    assert set(figures.to_json()) == {"E", "kappa", "error", "additions", "max_coeff", "bytes"}
    assert figures.bytes == {"A": 2 + 4 * 7 / 4, "B": 9.0, "C": 2 + 8 * 7 / 4}
    assert score.figures(classical((2, 3, 4))).kappa == 1.0
    assert score.figures(classical((2, 3, 4))).additions == 2 * 4 * (3 - 1)


@TIMELESS
@given(SEEDS)
def test_error_combines_both(seed: int) -> None:
    s = random_scheme(seed)
    for name in score.DTYPES:
        want = score.expected_error(s) + 2 * score.relative_rounding(name) ** 2 * score.noise_gain(s)
        assert score.error(s, name) == pytest.approx(math.sqrt(want), rel=10 * EPS)
    assert score.figures(s).error["bf16"] == score.error(s, "bf16")


def test_extreme_coefficients_neither_overflow_nor_vanish() -> None:
    s = Scheme((1, 1, 1), "R", [[1e-200]], [[1.0]], [[1e200]])
    assert score.noise_gain(s) == pytest.approx(1, rel=1e-14)
    t = score.balanced(s)
    assert residual(t) < 1e-28
    assert [float(f[0, 0, 0]) for f in t.factors] == pytest.approx([1, 1, 1], rel=1e-14)


def test_rank_zero() -> None:
    for ring in ("ZT", "R", "C"):
        none = Scheme((2, 3, 1), ring, [], [], [])
        figures = score.figures(none)
        assert (figures.E, figures.kappa, figures.additions, figures.max_coeff) == (1.0, 0.0, 0, 0.0)
        assert figures.error["fp8_e4m3"] == 1.0
        assert score.growth_factor(none) == 0.0
        assert score.balanced(none) == none
    assert score.apriori_bound(Scheme((2, 3, 1), "ZT", [], [], []), 3) == score.Apriori(0.0, 0.0)


def test_z2_has_no_error() -> None:
    z = to_ring(STRASSEN, "Z2")
    calls = [score.expected_error, score.noise_gain, score.figures, lambda s: score.apriori_bound(s, 2)]
    calls += [lambda s: score.monte_carlo(s, "bf16", np.random.default_rng(0)), lambda s: score.error(s, "bf16")]
    for call in calls:
        with pytest.raises(VerificationError, match="lift it first"):
            call(z)


# ---------------------------------------------------------------------------------------------------------------------
# Floors and lines


@settings(deadline=None, max_examples=50)
@given(SEEDS)
def test_no_scheme_is_below_the_floor(seed: int) -> None:
    """Random encoders with their best decoder (least squares) come close to the floor and never below."""
    rng = np.random.default_rng(seed)
    shape = m, k, n = tuple(rng.integers(1, 4, 3).tolist())
    r = int(rng.integers(1, max(m * k, k * n, m * n) + 1))
    u, v = rng.standard_normal((r, m * k)), rng.standard_normal((r, k * n))
    t = matmul_tensor(shape).reshape(-1, m * n).astype(float)
    products = np.einsum("qi,qj->ijq", u, v).reshape(-1, r)
    w = np.linalg.lstsq(products, t, rcond=None)[0]
    s = Scheme(shape, "R", u, v, w)
    assert score.expected_error(s) >= score.floor(shape, r) - 1e-12
    assert score.floor(shape, r) <= score.line(shape, r) + EPS


@pytest.mark.parametrize("shape", [(1, 3, 2), (3, 1, 2), (2, 3, 1)])
def test_the_floor_is_reached_where_one_side_is_1(shape: tuple[int, int, int]) -> None:
    s = classical(shape)  # one flattening has rank mkn there: keeping r products is optimal
    for r in range(s.rank + 1):
        part = Scheme(shape, "ZT", *(f[:r] for f in s.factors))
        assert score.expected_error(part) == pytest.approx(score.floor(shape, r), abs=1e-15)
        assert score.expected_error(part) == pytest.approx(score.line(shape, r), abs=1e-15)


def test_floor_and_line_of_the_tile_of_four() -> None:
    assert [score.floor((4, 4, 4), r) for r in (0, 12, 16, 99)] == [1, 0.25, 0, 0]
    assert [score.line((4, 4, 4), r) for r in (0, 12, 32, 64, 99)] == [1, 0.8125, 0.5, 0, 0]
    assert score.floor((2, 3, 5), 5) == 1 - 5 / 15


# ---------------------------------------------------------------------------------------------------------------------
# Rounding


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_rounding_is_torch_s(dtype: str) -> None:
    bits, lowest, largest = score.DTYPES[dtype]
    rng = np.random.default_rng(1)
    x = np.ldexp(rng.uniform(-1, 1, 40_000), rng.integers(lowest - bits - 1, math.frexp(largest)[1], 40_000))
    grid = np.ldexp(1.0, rng.integers(lowest, 4, 4_000)) * (1 + rng.integers(0, 2**bits, 4_000) / 2**bits)
    x = np.concatenate([x, grid, -grid, [0.0, 1.0, largest, -largest]])  # the grid holds every kind of tie
    x = x[np.abs(x) <= largest].astype(np.float32).astype(np.float64)  # torch would round twice from float64
    want = torch.from_numpy(x.astype(np.float32)).to(TORCH[dtype]).to(torch.float64).numpy()
    assert np.array_equal(score.round_to(x, dtype), want)


def test_rounding_of_doubles_is_not_done_twice() -> None:
    x = 1 + 2.0**-8 + 2.0**-40  # just above a tie in bf16; to float32 it is the tie
    assert score.round_to(x, "bf16") == 1 + 2.0**-7
    assert score.round_to(1e300, "fp16") == 65504
    assert score.round_to(-np.inf, "fp8_e4m3") == -448
    assert np.isnan(score.round_to(np.nan, "fp16"))
    y = np.array([0.1])
    assert score.round_to(y, "fp64") == y
    assert score.round_to(y, "fp64") is not y
    values = np.random.default_rng(0).standard_normal(1000)
    assert np.array_equal(score.round_to(values, "fp32"), values.astype(np.float32))
    assert np.array_equal(score.round_to(values * 1e-6, "fp16"), (values * 1e-6).astype(np.float16))


@pytest.mark.parametrize("dtype", score.DTYPES)
def test_unit_roundoff_bounds_the_relative_error(dtype: str) -> None:
    u = score.unit_roundoff(dtype)
    x = np.random.default_rng(2).uniform(1, 2, 10_000)
    off = np.abs(score.round_to(x, dtype) - x) / x
    assert off.max() <= u
    if dtype != "fp64":
        assert off.max() > 0.9 * u
        tie = 1 + u
        assert score.round_to(tie, dtype) == 1  # half way, to even


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_relative_rounding_by_quantiles(dtype: str) -> None:
    """d^2 on 2^20 equal slices of the normal distribution: about 200 points in each rounding cell for fp16 and more
    for bf16, whose mean squared error is right to some 1/200^2 in each and, sawtooth against grid, 1e-3 in all."""
    count = 2**20
    x = ndtri((np.arange(count) + 0.5) / count)
    d2 = np.mean((score.round_to(x, dtype) - x) ** 2) / np.mean(x**2)
    assert score.relative_rounding(dtype) ** 2 == pytest.approx(d2, rel=1e-3)


def test_relative_rounding_of_scaled_fp8_by_quantiles() -> None:
    count = 2**16
    x = ndtri((np.arange(count) + 0.5) / count)
    found = []
    for scale in 32 * np.exp2((np.arange(64) + 0.5) / 64):  # one binade; 448 is 7 standard deviations or more
        found.append(np.mean((score.round_to(x * scale, "fp8_e4m3") / scale - x) ** 2))
    assert score.relative_rounding("fp8_e4m3") ** 2 == pytest.approx(np.mean(found), rel=1e-3)


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_relative_rounding_of_fine_formats(dtype: str) -> None:
    """From bf16 by the law d ~ 2^-p, right as cells shrink; fp32 sampled besides."""
    ratio = score.relative_rounding("fp16") / score.relative_rounding(dtype)
    assert ratio == pytest.approx(2.0 ** (score.DTYPES[dtype][0] - 11), rel=1e-4)
    if dtype == "fp32":
        x = np.random.default_rng(3).standard_normal(2**20)
        d2 = np.mean((score.round_to(x, dtype) - x) ** 2) / np.mean(x**2)
        # the sample's standard error is about 1/1000 here: five of them
        assert score.relative_rounding(dtype) ** 2 == pytest.approx(d2, rel=5e-3)


def test_unknown_precisions_are_answered_with_the_known_ones() -> None:
    for call in (score.relative_rounding, score.unit_roundoff, score.check_dtype, lambda d: score.round_to(1.0, d)):
        with pytest.raises(UsageError, match="unknown dtype 'bf17'; known: fp8_e4m3, bf16, fp16, fp32, fp64"):
            call("bf17")


# ---------------------------------------------------------------------------------------------------------------------
# Measured error


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3", "fp32"])
@pytest.mark.parametrize("case", ["strassen", "skew", "part", "random", "complex"])
def test_measured_error_is_the_predicted_one(case: str, dtype: str) -> None:
    s = {
        "strassen": STRASSEN,
        "skew": SKEW,
        "part": Scheme((2, 3, 4), "ZT", *(f[:12] for f in classical((2, 3, 4)).factors)),
        "random": random_scheme(5),
        "complex": to_ring(STRASSEN, "C"),
    }[case]
    mean, spread = score.monte_carlo(s, dtype, np.random.default_rng(7), blocks=32, trials=6)
    predicted = score.error(s, dtype)
    # E dominates or not: five standard errors of the mean, and 3% because the scale of fp8 follows the largest entry
    # and because a root of a mean is not a mean of roots
    assert abs(mean - predicted) <= 5 * spread + (0.03 if dtype == "fp8_e4m3" else 0.01) * predicted


def test_monte_carlo_is_reproducible() -> None:
    one, two = (score.monte_carlo(WIDE, "bf16", np.random.default_rng(3), blocks=4) for _ in range(2))
    assert one == two
    assert math.isnan(score.monte_carlo(WIDE, "bf16", np.random.default_rng(3), blocks=4, trials=1)[1])


# ---------------------------------------------------------------------------------------------------------------------
# Growth, bounds, additions, balance


def test_growth_factor_by_brute_force() -> None:
    """max over +-1 matrices of the decoded |w| * |products|: reached entry by entry with signs at best."""
    part = Scheme((2, 2, 2), "R", *(np.asarray(f, dtype=float) * 1.5 for f in STRASSEN.factors))
    for s in (STRASSEN, part, SKEW):
        m, k, n = s.shape
        u, v, w = s.as_float()
        left = [
            max(abs(np.vdot(x, np.reshape(a, (m, k)))) for a in itertools.product((-1, 1), repeat=m * k)) for x in u
        ]
        right = [
            max(abs(np.vdot(x, np.reshape(b, (k, n)))) for b in itertools.product((-1, 1), repeat=k * n)) for x in v
        ]
        best = max(sum(abs(w[q, a, c]) * left[q] * right[q] for q in range(s.rank)) for a in range(m) for c in range(n))
        assert score.growth_factor(s) == pytest.approx(best, rel=1e-14)
    assert score.growth_factor(STRASSEN) == 12
    assert score.growth_factor(classical((2, 5, 3))) == 5


@pytest.mark.parametrize("s", EXACT_SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("stored", [None, "bf16", "fp16"])
@pytest.mark.parametrize("data", ["normal", "positive", "spiky"])
def test_the_a_priori_bound_holds(s: Scheme, stored: str | None, data: str) -> None:
    """One level in real float32 arithmetic, encoded operands and output rounded as said."""
    rng = np.random.default_rng(11)
    m, k, n = s.shape
    side = 8
    a, b = rng.standard_normal((m, k, side, side)), rng.standard_normal((k, n, side, side))
    if data == "positive":
        a, b = np.abs(a), np.abs(b)
    elif data == "spiky":
        a, b = (np.where(rng.random(x.shape) < 0.02, 30 * x, x) for x in (a, b))  # below fp16's largest
    a, b = a.astype(np.float32), b.astype(np.float32)
    u, v, w = (f.astype(np.float32) for f in s.as_float())
    a_hat, b_hat = np.zeros((s.rank, side, side), np.float32), np.zeros((s.rank, side, side), np.float32)
    for i, j in np.ndindex(m, k):
        a_hat += u[:, i, j, None, None] * a[i, j]
    for i, j in np.ndindex(k, n):
        b_hat += v[:, i, j, None, None] * b[i, j]
    if stored:
        a_hat, b_hat = (score.round_to(x, stored).astype(np.float32) for x in (a_hat, b_hat))
    p = a_hat @ b_hat
    c = np.zeros((m, n, side, side), np.float32)
    for q in range(s.rank):
        c += w[q, :, :, None, None] * p[q]
    if stored:
        c = score.round_to(c, stored).astype(np.float32)
    exact = np.einsum("abij,bcjl->acil", a.astype(float), b.astype(float))
    off = c.astype(float) - exact
    bound = score.apriori_bound(s, k * side, stored=stored, out=stored)
    assert np.linalg.norm(off) <= bound.frobenius * np.linalg.norm(a.astype(float)) * np.linalg.norm(b.astype(float))
    assert np.abs(off).max() <= bound.maximum * np.abs(a).max() * np.abs(b).max()
    assert 0 < bound.frobenius < math.inf


def test_the_a_priori_bound_is_not_idle() -> None:
    """<1,1,1> with encoded operands in bf16: two roundings of 2^-8 at worst, and numbers that come near it."""
    one = classical((1, 1, 1))
    bound = score.apriori_bound(one, 1, stored="bf16")
    u = 2.0**-8
    assert 2 * u < bound.frobenius < 2 * u + 2 * u**2 + 20 * 2.0**-24
    x = 1 + u - 2.0**-20  # just below a tie: rounds down by almost u
    off = abs(float(score.round_to(x, "bf16")) ** 2 - x * x) / x**2
    assert 0.97 * bound.frobenius < off <= bound.frobenius
    # the output in bf16 as well: p q is 63/128 of a step above a bf16 number, so that three roundings go down by u
    p, q = 1 + 7 / 128, 1 + 9 / 128
    y, z = p + u - 2.0**-20, q + u - 2.0**-20
    assert score.round_to([y, z], "bf16").tolist() == [p, q]
    off = abs(float(score.round_to(p * q, "bf16")) - y * z) / (y * z)
    bound = score.apriori_bound(one, 1, stored="bf16", out="bf16")
    assert 0.9 * bound.frobenius < off <= bound.frobenius
    # 32 products of x x, all rounded down: the largest entry is off by 32 times as much
    off = 32 * abs(float(score.round_to(x, "bf16")) ** 2 - x * x) / x**2
    many = score.apriori_bound(one, 32, stored="bf16").maximum
    assert 0.97 * many < off <= many


def test_the_a_priori_bound_grows_with_the_inner_dimension_and_gives_up_honestly() -> None:
    sizes = [score.apriori_bound(STRASSEN, inner).frobenius for inner in (2, 64, 4096)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    assert score.apriori_bound(STRASSEN, 3) == score.apriori_bound(STRASSEN, 4)  # padded to blocks
    assert score.apriori_bound(STRASSEN, 10**9, compute="bf16") == score.Apriori(math.inf, math.inf)
    with pytest.raises(VerificationError, match="needs an exact scheme, not one over R"):
        score.apriori_bound(to_ring(STRASSEN, "R"), 2)


@TIMELESS
@given(SEEDS)
def test_additions_by_writing_the_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 4, 3).tolist()
    r = int(rng.integers(0, 5))
    s = Scheme((m, k, n), "ZT", *(rng.integers(-1, 2, (r, p, q)) for p, q in ((m, k), (k, n), (m, n))))
    lines = [row for f in (s.u, s.v) for row in f.reshape(r, f[0].size if r else 1).tolist()]
    lines += [s.w[:, a, c].tolist() for a in range(m) for c in range(n)]
    assert score.additions(s) == sum(max(0, sum(x != 0 for x in line) - 1) for line in lines)


@TIMELESS
@given(SEEDS, st.sampled_from("RC"))
def test_balanced_terms_have_equal_norms_and_the_same_tensor(seed: int, ring: str) -> None:
    s = random_scheme(seed, ring)
    t = score.balanced(s)
    norms = [np.linalg.norm(f, axis=1) for f in t.flat()]
    for other in norms[1:]:
        assert np.allclose(other, norms[0], rtol=1e-13, atol=0)
    for old, new in zip(s.terms(), t.terms(), strict=True):
        x, y = (np.einsum("i,j,l->ijl", *(f.ravel() for f in term)) for term in (old, new))
        assert np.allclose(x, y, rtol=1e-13, atol=0)
    assert score.balanced(STRASSEN) is STRASSEN


def test_balancing_drops_nothing_but_zero_terms() -> None:
    s = Scheme((1, 1, 1), "R", [[2.0], [0.0]], [[1.0], [5.0]], [[0.5], [3.0]])
    t = score.balanced(s)
    assert [f.ravel().tolist() for f in t.factors] == [pytest.approx([1, 0])] * 3


def test_max_coefficient() -> None:
    assert score.max_coefficient(SKEW) == max(abs(float(x)) for x in SKEW.coefficients())
    assert score.max_coefficient(Scheme((1, 1, 1), "C", [[3 + 4j]], [[1]], [[1]])) == 5.0


def test_the_exact_sum_and_the_floats_agree() -> None:
    (u, su), (v, sv), (w, sw) = (as_integers(f) for f in SKEW.flat())
    total = triple_sum(u, v, w)
    assert (total * (su * sv * sw) == matmul_tensor(SKEW.shape)).all()
