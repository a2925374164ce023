"""estimate_error, check, randomize: unbiased, a bound that holds, exact where it can be; structure stops mattering."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stl_search as stl
from stl_search import transform
from stl_search.errors import StlWarning, UsageError, VerificationError
from stl_search.kernels import dense
from stl_search.runtime import calibrate, estimate
from stl_search.runtime.amm import amm, encode_rhs, relative_error
from stl_search.runtime.estimate import Mixer, apriori_bound, estimate_error
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN

CLASSICAL = transform.classical((2, 2, 2)).as_float()
KEPT = CLASSICAL[0][:, :, 0].any(axis=1)  # the products of the first inner half
HALF = Scheme((2, 2, 2), "R", *(f[KEPT] for f in CLASSICAL))
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Each test draws what it draws alone, whatever ran before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def pair(*shapes: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    return [RNG.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("spectrum", ["flat", "one", "decaying"])
def test_it_is_unbiased_and_its_bound_holds_as_often_as_it_says(spectrum: str) -> None:
    n, runs = 40, 200
    a, b = pair((n, n), (n, n))
    weights = {"flat": np.ones(n), "one": np.eye(n)[0], "decaying": 0.7 ** np.arange(n)}[spectrum]
    left, right = (np.linalg.qr(x)[0] for x in pair((n, n), (n, n)))
    gap = 3.0 * left @ np.diag(weights) @ right
    c = a @ b + gap
    true = relative_error(c, a, b)
    found = [estimate_error(c, a, b, probes=8, confidence=0.9, seed=seed) for seed in range(runs)]
    # E mean |D g|^2 = |D|^2, variance 2 sum s^4 / probes; the denominator's own spread is a hundred times smaller.
    spread = math.sqrt(2 * (weights**4).sum() / 8) / (weights**2).sum()
    mean = np.mean([e.estimate**2 for e in found]) / true**2
    assert abs(mean - 1) < 5 * spread / math.sqrt(runs) + 0.02
    misses = sum(e.upper < true for e in found)
    assert misses <= 0.1 * runs  # Chernoff's bound is loose: about none is expected
    assert np.median([e.upper for e in found]) < 3 * true  # and yet it says something
    assert sum(e.upper >= 4 * true for e in found) <= runs // 100  # of one direction, estimates spread by a third


def test_more_probes_bring_the_bound_closer() -> None:
    a, b = pair((30, 20), (20, 200))
    c = a @ b + 0.01 * pair((30, 200))[0]
    uppers = [estimate_error(c, a, b, probes=s).upper for s in (4, 16, 64, 256)]
    assert uppers == sorted(uppers, reverse=True)
    assert uppers[-1] == estimate_error(c, a, b, probes=200).estimate  # unit vectors: exact


def test_its_tails_are_those_of_chi_square_or_safer() -> None:
    from scipy.stats import chi2

    for probes in (1, 4, 32, 100):
        for probability in (0.2, 0.005, 1e-6):
            low, high = estimate._tails(probes, probability)
            assert 0 < low < 1 < high
            assert chi2.cdf(low * probes, probes) <= probability
            assert chi2.sf(high * probes, probes) <= probability
            for x in (low, high):
                assert (x * math.exp(1 - x)) ** (probes / 2) == pytest.approx(probability, rel=1e-6)


@pytest.mark.parametrize("shapes", [((5, 7), (7, 6)), ((7,), (7, 6)), ((5, 7), (7,)), ((2, 1, 5, 7), (3, 7, 6))])
@pytest.mark.parametrize("kind", ["numpy", "torch", "complex"])
def test_few_columns_are_measured_exactly(shapes: Any, kind: str) -> None:
    a, b = pair(*shapes)
    if kind == "complex":
        a, b = a + 1j * pair(shapes[0])[0], b - 1j * pair(shapes[1])[0]
    c = np.matmul(a, b) * 1.25
    if kind == "torch":
        a, b, c = (torch.from_numpy(x) for x in (a, b, c))
    found = stl.estimate_error(c, a, b)
    assert found.estimate == pytest.approx(0.25, rel=1e-12)
    assert found.upper == found.estimate == float(found)


def test_batches_count_together_and_narrow_dtypes_are_read_exactly() -> None:
    a, b = (torch.from_numpy(x).bfloat16() for x in pair((4, 30, 20), (20, 50)))
    c = a @ b
    found = estimate_error(c, a, b, probes=49, seed=3)
    true = relative_error(c, a, b)
    # a mean over 49 probes of 4 * 30 rows; the gap is rounding noise, of a flat spectrum
    assert abs(found.estimate / true - 1) < 0.2
    assert true <= found.upper
    assert found == estimate_error(c, a, b, probes=49, seed=3)


def test_zero_infinite_and_nan() -> None:
    a, b = pair((40, 3), (3, 40))
    zero = np.zeros((40, 40))
    assert estimate_error(zero, 0 * a, b) == estimate.ErrorEstimate(0.0, 0.0, 0.99, 32)
    assert estimate_error(zero + 1, 0 * a, b).estimate == math.inf
    assert estimate_error(zero, a, b).estimate == 1.0
    for power in (-700, 900):  # squares of the product's entries are no numbers of float64
        one, other = 2.0**-300 * np.ones((2, 3)), 2.0**power * np.ones((3, 40))
        assert estimate_error(1.5 * one @ other, one, other).estimate == pytest.approx(0.5)
        assert relative_error(1.5 * one @ other, one, other) == pytest.approx(0.5)
    zero[3, 3] = np.nan
    found = estimate_error(zero, a, b)
    assert math.isnan(found.estimate)
    assert math.isnan(found.upper)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, b: estimate_error(a, a, b), "C has shape"),
        (lambda a, b: estimate_error(a @ b, a, b.T), "inner sizes"),
        (lambda a, b: estimate_error(a @ b, a, b, probes=0), "probes is 0"),
        (lambda a, b: estimate_error(a @ b, a, b, confidence=1), "confidence is 1"),
        (lambda a, b: estimate_error(a @ b, a, b, confidence="a"), "confidence is 'a'"),
        (lambda a, b: estimate_error(np.ones((4, 40)), a, np.ones((6, 40)), seed=1 << 64), "the seed is 18446"),
        (lambda a, b: estimate_error(np.ones((4, 40)), a, np.ones((6, 40)), seed="a"), "the seed is 'a'"),
        (lambda a, b: amm(a, b, STRASSEN, randomize=1 << 70), "the seed is 11805"),
        (lambda a, b: amm(a, b, STRASSEN, randomize=0, out_dtype="bf16"), "numpy has no bf16"),
        (lambda a, b: amm(a, b, rtol=10**400), "rtol is 1000"),
        (lambda a, b: estimate_error(a @ b, a, encode_rhs(b, STRASSEN)), "B is an encoded operand"),
        (lambda a, b: estimate_error(a @ b, np.ones((3, 4, 6)), np.ones((2, 6, 5))), "batches differ"),
        (lambda a, b: amm(a, b, STRASSEN, check=True), "give rtol"),
        (lambda a, b: amm(a, b, STRASSEN, check=True, rtol=-1), "rtol is -1"),
        (lambda a, b: amm(a, encode_rhs(b, STRASSEN), check=True, rtol=1), "B is an encoded operand"),
        (lambda a, b: amm(a, b, STRASSEN, randomize="often"), "randomize is 'often'"),
        (lambda a, b: amm(a, b, STRASSEN, randomize=("sines", 1)), "randomize is"),
        (lambda a, b: amm(a, b.T, STRASSEN, randomize=1), "inner sizes"),
        (lambda a, b: apriori_bound("catalog:best", 10), "open selector"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(call: Any, words: str) -> None:
    a, b = pair((4, 6), (6, 5))
    with pytest.raises(UsageError) as error:
        call(a, b)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_check_lets_good_products_pass_and_replaces_bad_ones_saying_so() -> None:
    a, b = pair((64, 64), (64, 64))
    np.testing.assert_array_equal(amm(a, b, STRASSEN, check=True, rtol=1e-12), amm(a, b, STRASSEN))
    with pytest.warns(StlWarning, match=r"estimated relative error 0\.\d+ exceeds rtol 0.1: the dense product"):
        c = amm(a, b, HALF, check=True, rtol=0.1)
    np.testing.assert_array_equal(c, a @ b)
    np.testing.assert_array_equal(amm(a, b, HALF, check=True, rtol=0.9), amm(a, b, HALF))
    narrow = [torch.from_numpy(x).bfloat16() for x in (a, b)]
    with pytest.warns(StlWarning):
        c = amm(*narrow, HALF, check=True, rtol=0.1, out_dtype=torch.float32)
    assert c.dtype == torch.float32
    assert relative_error(c, *narrow) < 1e-5


def test_check_falls_back_to_the_fastest_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose it is stands in the warning; small products, for which nothing is measured, are torch's."""
    rough = Scheme((2, 2, 2), "R", *(f[:4] for f in STRASSEN.as_float()))
    a, b = torch.ones(200, 200), torch.ones(200, 200)
    speed = ((1.0, 1e9),)
    rates = calibrate.Rates(speed, ("onednn",), speed, ("torch",), (), (), 1e9, 1e9, 0.0)
    monkeypatch.setattr(calibrate, "rates", lambda device, dtype: rates)
    called = []
    monkeypatch.setitem(dense.WAYS, "onednn", lambda x, y: called.append(x.shape) or x @ y)
    with pytest.warns(StlWarning, match=r"dense product is returned, by the fastest routine at hand \(onednn\)"):
        c = amm(a, b, rough, check=True, rtol=1e-6)
    assert called == [(200, 200)]
    assert torch.equal(c, torch.full((200, 200), 200.0))
    with pytest.warns(StlWarning, match=r"at hand \(torch\)"):
        amm(a[:9], b[:, :9], rough, check=True, rtol=1e-6)


def test_check_sees_nan() -> None:
    a, b = pair((64, 64), (64, 64))
    a[0, 0] = np.nan
    with pytest.warns(StlWarning, match="nan exceeds"):
        c = amm(a, b, STRASSEN, check=True, rtol=0.1)
    np.testing.assert_array_equal(np.isnan(c), np.isnan(a @ b))  # dense: only the first row


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 300), st.sampled_from(["hadamard", "signs"]), st.integers(0, 99))
def test_a_mixer_is_orthogonal_and_undone(size: int, kind: str, seed: int) -> None:
    mixer = Mixer(kind, size, torch.Generator().manual_seed(seed))
    q = mixer.apply(torch.eye(size, dtype=torch.float64), 0)
    torch.testing.assert_close(q @ q.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(mixer.undo(q, 0), torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(mixer.apply(torch.eye(size, dtype=torch.float64), 1), q.T, rtol=0, atol=1e-13)


def test_the_hadamard_part_is_sylvesters() -> None:
    from scipy.linalg import hadamard

    for power in (0, 3, 9):
        h = estimate._hadamard(torch.eye(1 << power, dtype=torch.float64), power)
        np.testing.assert_allclose(h.numpy(), hadamard(1 << power) / 2 ** (power / 2), atol=1e-14)


@pytest.mark.parametrize("shapes", [((33, 20), (20, 17)), ((20,), (20, 17)), ((33, 20), (20,)), ((2, 5, 20), (20, 0))])
@pytest.mark.parametrize("randomize", [5, ("signs", 5)])
def test_mixing_changes_nothing_but_rounding_where_the_scheme_is_exact(shapes: Any, randomize: Any) -> None:
    a, b = pair(*shapes)
    c = amm(a, b, STRASSEN, randomize=randomize)
    assert isinstance(c, np.ndarray)
    np.testing.assert_allclose(c, np.matmul(a, b), rtol=0, atol=1e-12)
    x, y = (torch.from_numpy(z).requires_grad_() for z in (a, b))
    found = torch.autograd.grad(amm(x, y, STRASSEN, randomize=randomize).sum(), (x, y))
    for mine, want in zip(found, torch.autograd.grad((x @ y).sum(), (x, y)), strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-12)


def test_mixing_makes_the_error_independent_of_structure() -> None:
    """All that counts lies where the scheme does not look: error 1 as it is, the predicted sqrt(1/2) once mixed."""
    n = 96
    a, b = np.random.default_rng(1).standard_normal((2, n, n))  # whatever tests ran before
    a[:, : n // 2] *= 1e-3  # HALF keeps the first half of the inner indices
    assert relative_error(amm(a, b, HALF), a, b) > 0.999
    assert relative_error(amm(a, b, HALF, randomize=("signs", 1)), a, b) > 0.999  # signs move no magnitudes
    found = [relative_error(amm(a, b, HALF, randomize=seed), a, b) for seed in range(16)]
    # The prediction is of the mean square over seeds; one seed leaves the half that is kept 1/2 of all but for a tenth.
    assert math.sqrt(np.mean(np.square(found))) == pytest.approx(math.sqrt(0.5), rel=0.03)
    assert found == pytest.approx([math.sqrt(0.5)] * 16, rel=0.15)
    np.testing.assert_array_equal(amm(a, b, HALF, randomize=7), amm(a, b, HALF, randomize=7))


def test_signs_decorrelate_entries_with_a_common_mean() -> None:
    """Errors proportional to a sum over rows and columns add up on positive data, and average out under signs."""
    leak = Scheme((2, 2, 2), "R", *(np.concatenate([f, g]) for f, g in zip(STRASSEN.as_float(), _LEAK, strict=True)))
    rng = np.random.default_rng(1)
    a, b = (1 + 0.1 * rng.standard_normal((64, 64)) for _ in range(2))
    plain = relative_error(amm(a, b, leak), a, b)
    mixed = np.mean([relative_error(amm(a, b, leak, randomize=("signs", s)), a, b) for s in range(10)])
    assert mixed < plain / 2


_LEAK = (np.full((1, 2, 2), 0.5), np.full((1, 2, 2), 0.5), np.full((1, 2, 2), 0.5))


def test_check_works_under_autocast_and_with_randomize() -> None:
    a, b = (torch.from_numpy(x).float() for x in pair((64, 64), (64, 64)))
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        c = amm(a, b, STRASSEN, check=True, rtol=1e-5, randomize=3)
    assert c.dtype == torch.float32
    assert relative_error(c, a, b) < 1e-5


@pytest.mark.parametrize("dtype", ["fp32", np.float64, torch.float32])
def test_the_apriori_bound_of_a_named_scheme(dtype: Any) -> None:
    a, b = pair((50, 64), (64, 30))
    if dtype != np.float64:
        a, b = a.astype(np.float32), b.astype(np.float32)
    bound = stl.apriori_bound(STRASSEN, 64, dtype)
    gap = amm(a, b, STRASSEN).astype(np.float64) - a.astype(np.float64) @ b.astype(np.float64)
    assert np.linalg.norm(gap) <= bound.frobenius * np.linalg.norm(a) * np.linalg.norm(b)
    assert np.abs(gap).max() <= bound.maximum * np.abs(a).max() * np.abs(b).max()
    with pytest.raises(VerificationError):
        apriori_bound(HALF, 64)
