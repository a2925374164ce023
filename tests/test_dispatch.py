"""The choice between schemes and dense: what open selectors may take, what they never take, and what is said of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stl_search import score, transform
from stl_search.catalog import store
from stl_search.errors import NotFoundError, UsageError
from stl_search.kernels import dense
from stl_search.kernels.plan import Plan
from stl_search.runtime import calibrate, dispatch, measured
from stl_search.runtime.amm import amm, encode_rhs, relative_error
from stl_search.runtime.calibrate import Rates
from stl_search.runtime.dispatch import Cost, Problem, dense_seconds, explain, request_of, scheme_seconds
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN

SQUARED = transform.kron(STRASSEN, STRASSEN)
LONG = transform.sum_n(transform.sum_n(STRASSEN, STRASSEN), STRASSEN)  # <2,2,6>, rank 21
NOISY = transform.change_basis(STRASSEN, [[1, 40], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [30, 1]])  # exact, kappa > 1e6
HALF = Scheme((2, 2, 2), "R", *(f[:4] for f in transform.classical((2, 2, 2)).as_float()))  # E = 1/2
CLOSE = Scheme((2, 2, 2), "R", STRASSEN.u * 1.0, STRASSEN.v * 1.0, STRASSEN.w * (1 - 1e-4))  # E = 1e-8
MODULO_2 = Scheme((2, 2, 2), "Z2", *(f % 2 for f in STRASSEN.factors))
OVER_C = Scheme((2, 2, 2), "C", *(f[:6] for f in (STRASSEN.u * 1j, STRASSEN.v * -1j, STRASSEN.w)))
HUGE = (131072, 131072, 131072)  # large enough for one level of Strassen, by the model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalog beside an empty shipped one; the user's folder is returned."""
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    dispatch.forget()
    return tmp_path / "mine"


def machine(bandwidth: float, narrow: float) -> Any:
    """Rates of a machine that multiplies 1e11 flops a second in float32 at any size, in bf16 ``narrow`` times more."""

    def rates(device: str, dtype: str) -> Rates:
        speed = ((1.0, 1e11 * (narrow if dtype == "bf16" else 1.0)),)
        return Rates(
            speed, ("torch",), speed, ("torch",), (), (), bandwidth=bandwidth, sums=1e15, call=0.0, row=dispatch.ROW
        )

    return rates


@pytest.fixture(autouse=True)
def cautious(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with slow memory: 33 flops of a product take as long as one byte."""
    monkeypatch.setattr(calibrate, "rates", machine(3e9, 5.0))


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model alone decides; one test lets timings in."""
    monkeypatch.setattr(dispatch, "UNSURE", (0.95, 0.95))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose memory costs nothing: the model counts multiplications alone, small products use schemes too."""
    monkeypatch.setattr(calibrate, "rates", machine(1e30, 1.0))
    monkeypatch.setattr(dispatch, "SMALL", 0.0)
    monkeypatch.setattr(dispatch, "LEVELS", 1)
    monkeypatch.setattr(dispatch, "RAGGED", 1.0)


def keep(*schemes: Scheme) -> list[Path]:
    return [store.add(scheme, {"strategy": "test"}) for scheme in schemes]


def with_sums(scheme: Scheme, levels: int = 1) -> float:
    """The error to expect of an exact scheme in float32 where K is large: operands, long rows, linear combinations."""
    m, _, n = scheme.shape
    u, v, w = (
        np.count_nonzero(f) / of for f, of in zip(scheme.factors, (scheme.rank, scheme.rank, m * n), strict=True)
    )
    squared = 2 + (dispatch.ROW + 1) / 2 + levels * (u + v + w - 3) / 2
    return math.sqrt(squared * Plan(scheme).noise_gain ** levels) * score.relative_rounding("fp32")


def rank_of(found: dispatch.Explanation) -> int | None:
    return None if found.scheme is None else found.scheme.rank


def test_a_small_product_is_dense_before_any_catalog_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*args: Any, **options: Any) -> Any:
        raise AssertionError("the catalog was opened")

    monkeypatch.setattr(store, "candidates", unwanted)
    for shape in ((8, 8, 8), (128, 128, 128), (1, 10**6, 1), (0, 5, 5), (4096, 1, 4096)):
        found = explain(shape)
        assert found.plan is None
        assert found.scheme is None
        assert "moving its operands" in found.reason
    assert amm(np.eye(3), np.eye(3)).tolist() == np.eye(3).tolist()
    with pytest.raises(AssertionError, match="opened"):
        explain(HUGE)


def test_an_empty_catalog_means_dense_and_says_so() -> None:
    found = explain(HUGE)
    assert found.plan is None
    assert "no exact scheme" in found.reason
    assert found.cost == 1.0
    assert found.predicted_error == pytest.approx(math.sqrt((dispatch.ROW + 1) / 2) * score.relative_rounding("fp32"))
    assert "independent zero-mean" in found.assumption
    assert str(found).startswith("dense: ")
    assert "\n" not in str(found)


def test_without_a_bound_the_fastest_exact_scheme_is_taken() -> None:
    keep(STRASSEN, HALF, MODULO_2, OVER_C)
    assert explain(HUGE).scheme == STRASSEN
    keep(LONG)
    keep(SQUARED)
    found = explain(HUGE)
    assert found.scheme == SQUARED
    assert found.plan is not None
    assert (49 / 64) ** found.levels < found.cost < dispatch.MARGIN
    assert found.considered == 3
    assert found.predicted_error == pytest.approx(with_sums(SQUARED, found.levels))
    assert explain(HUGE, encoder="catalog:best?shape=2,2,2").scheme == STRASSEN
    assert explain(HUGE, encoder="catalog:best?max_rank=48").scheme == STRASSEN
    assert explain((1024, 1024, 1024)).plan is None
    assert "not faster" in explain((1024, 1024, 1024)).reason


def test_an_exact_scheme_that_ruins_precision_is_not_taken_unasked() -> None:
    keep(NOISY)
    error = with_sums(NOISY)
    assert error > 100 * dispatch.MAX_ROUNDINGS * score.relative_rounding("fp32")
    assert explain(HUGE).plan is None
    assert explain(HUGE, rtol=1.01 * error).scheme == NOISY


def test_what_is_exact_up_to_rounding_depends_on_the_dtype(eager: None) -> None:
    keep(CLOSE)
    assert score.expected_error(CLOSE) == pytest.approx(1e-8)
    assert explain(HUGE, "bf16").scheme is not None
    assert explain(HUGE, "fp16").scheme is not None
    assert explain(HUGE, "fp32").scheme is None
    assert explain(HUGE, torch.float64).scheme is None


def test_a_miss_of_several_roundings_is_not_exact(eager: None) -> None:
    keep(Scheme((2, 2, 2), "R", *(f * 1.0 for f in STRASSEN.factors[:2]), STRASSEN.w * 0.99))
    assert 1 < 0.01 / score.relative_rounding("bf16") < dispatch.MAX_ROUNDINGS
    assert explain(HUGE, "bf16").scheme is None
    assert rank_of(explain(HUGE, "bf16", rtol=0.02)) == 7


def test_rtol_takes_the_fastest_within() -> None:
    keep(STRASSEN, SQUARED, HALF)
    e = math.sqrt(0.5)
    assert rank_of(explain(HUGE, rtol=1.001 * e)) == 4
    assert rank_of(explain(HUGE, encoder=f"catalog:best?rtol={1.001 * e}")) == 4
    assert explain(HUGE, rtol=0.999 * e).scheme == SQUARED
    found = explain(HUGE, rtol=1e-9)
    assert found.plan is None
    assert found.reason == "no scheme has a predicted error within 1e-09, nor has dense"


def test_rtol_counts_all_that_is_rounded(eager: None) -> None:
    keep(STRASSEN)
    for out in ("bf16", "fp32"):
        error = Plan(STRASSEN, "bf16", out=out).predicted_error
        assert explain(HUGE, "bf16", rtol=1.01 * error, out_dtype=out).scheme == STRASSEN
        assert explain(HUGE, "bf16", rtol=0.99 * error, out_dtype=out).scheme is None


@pytest.mark.parametrize("way", dense.slice_ways(torch.float32))
@pytest.mark.parametrize("scheme", [None, STRASSEN, SQUARED, LONG, NOISY, CLOSE])
def test_sums_err_as_predicted(scheme: Scheme | None, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = calibrate.in_a_row(torch.float32, way)
    fastest = dataclasses.replace(calibrate.rates("cpu", "fp32"), slice_ways=(way,), row=row)
    monkeypatch.setattr(calibrate, "rates", lambda *given: fastest)
    monkeypatch.setattr(calibrate, "slice_way", lambda *given: way)
    generator = torch.Generator().manual_seed(3)
    for inner in (40, 300, 4000):
        a, b = (torch.randn(*s, generator=generator) for s in ((128, inner), (inner, 144)))
        if scheme is None:
            c = dense.batched(a[None], b[None], way=way)[0]
            predicted = math.sqrt(dispatch.summed(inner, row, "fp32"))
        else:
            c = amm(a, b, scheme)
            predicted = explain((128, inner, 144), encoder=scheme, show=False).predicted_error
        measured = relative_error(c, a, b)
        assert 0.75 * predicted < measured < 1.2 * predicted, (inner, measured / predicted)


def test_sums_are_those_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may be for less or more than the operands have, and an output wider than they are."""
    row = calibrate.in_a_row(torch.float32, "torch")
    model = calibrate.rates
    monkeypatch.setattr(calibrate, "rates", lambda *given: dataclasses.replace(model(*given), row=row))
    a, b = (
        torch.randn(*s, generator=torch.Generator().manual_seed(4), dtype=torch.float64) for s in ((96, 900), (900, 90))
    )
    for precision, kind in (("fp32", torch.float64), ("fp64", torch.float32), ("fp64", torch.float64)):
        plan = Plan(STRASSEN, precision, out="fp64")
        x, y = a.to(kind), b.to(kind)
        predicted = explain((96, 900, 90), kind, plan, show=False).predicted_error
        measured = float((amm(x, y, plan).double() - x.double() @ y.double()).norm() / (a @ b).norm())
        if precision == "fp64":  # the reference errs alike
            assert predicted < 1e-14
            assert measured < 1e-14
        else:
            assert 0.75 * predicted < measured < 1.2 * predicted
    assert explain((96, 900, 90), "fp32", out_dtype="fp64", show=False).predicted_error < 1e-14


def test_speedup_weighs_what_sums_add(eager: None) -> None:
    """Rounding of operands alone would take the scheme whose terms nearly cancel."""
    noisy = transform.change_basis(STRASSEN, [[1, 10], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [8, 1]])
    near = Scheme((2, 2, 2), "R", *(f * 1.0 for f in noisy.factors[:2]), noisy.w * (1 - 1e-4))
    plain = Scheme((2, 2, 2), "R", STRASSEN.u * 1.0, STRASSEN.v * 1.0, STRASSEN.w * (1 - 4e-4))
    keep(near, plain)
    assert Plan(near).predicted_error < Plan(plain).predicted_error
    assert explain((512,) * 3, speedup=8 / 7).scheme == plain
    assert explain((512,) * 3, rtol=2 * Plan(near).predicted_error).scheme is None
    assert explain((512,) * 3, "fp64", speedup=8 / 7).predicted_error == pytest.approx(1e-4)  # near


def test_speedup_takes_the_most_accurate_that_is_fast_enough() -> None:
    keep(STRASSEN, SQUARED, HALF)
    assert explain(HUGE, speedup=8 / 7).scheme == STRASSEN
    assert explain((4096,) * 3, speedup=8 / 7).scheme is None  # the most accurate is no faster than dense
    assert explain(HUGE, speedup=1.2).scheme == SQUARED
    assert rank_of(explain(HUGE, speedup=1.5)) == 4
    assert explain(HUGE, speedup=1.5, rtol=0.1).scheme is None
    with pytest.raises(NotFoundError, match=r"cuts multiplications 2\.5 times; at most 2 times"):
        explain(HUGE, speedup=2.5)


def test_complex_operands_may_use_complex_schemes_when_asked(eager: None) -> None:
    keep(OVER_C)
    assert explain(HUGE, "complex64", rtol=2.0).scheme is None
    found = explain(HUGE, "complex64", "catalog:best?ring=C", rtol=2.0).scheme
    assert found is not None
    assert (found.ring.name, found.rank) == ("C", 6)
    assert explain(HUGE, "fp32", "catalog:best?ring=C", rtol=2.0).scheme is None


def test_schemes_modulo_2_are_never_run() -> None:
    keep(MODULO_2)
    assert explain(HUGE, rtol=10.0).scheme is None


def test_an_entry_serves_every_permutation_of_its_shape(eager: None) -> None:
    keep(LONG)
    for shape in itertools.permutations((2, 2, 6)):
        sizes = tuple(side if side == 6 else 1000 for side in shape)  # only this orientation needs no padding
        scheme = explain(sizes).scheme
        assert scheme is not None
        assert scheme.shape == shape
        a, b = np.ones(sizes[:2]), np.ones(sizes[1:])
        np.testing.assert_array_equal(amm(a, b), a @ b)


def test_a_file_that_does_not_hold_is_passed_over(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path,) = keep(SQUARED)
    keep(STRASSEN)
    assert explain(HUGE).scheme == SQUARED
    obj = json.loads(path.read_text())
    obj["u"][0][0] *= -1
    path.write_text(json.dumps(obj))
    assert explain(HUGE).scheme == STRASSEN


def test_amm_does_what_explain_says(eager: None, home: Path) -> None:
    keep(STRASSEN, HALF)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 10, 12, generator=generator), torch.randn(12, 14, generator=generator)
    assert torch.equal(amm(a, b), amm(a, b, STRASSEN))
    assert torch.equal(amm(a, b, "catalog:best"), amm(a, b, STRASSEN))
    half = store.load("catalog:best?shape=2,2,2&rank=4")
    for options in ({"rtol": 0.8}, {"speedup": 2.0}):
        assert torch.equal(amm(a, b, **options), amm(a, b, half))  # type: ignore[arg-type]
    assert torch.equal(amm(a, b, rtol=1e-12), a @ b)
    x, y = a.numpy(), b.numpy()
    np.testing.assert_array_equal(amm(x, y, speedup=2), amm(x, y, half))


def test_what_names_one_scheme_is_used_as_asked(home: Path) -> None:
    (path,) = keep(HALF)
    keep(STRASSEN)
    half = store.load(path)
    for encoder in (half, path, str(path), "catalog:best?shape=2,2,2&rank=4", Plan(half), f"catalog:id/{half.id[:12]}"):
        found = explain((4, 4, 4), encoder=encoder)
        assert found.scheme == half
        assert found.reason == "named, so used as asked"
        a, b = np.ones((4, 4), np.float32), np.ones((4, 4), np.float32)
        np.testing.assert_array_equal(amm(a, b, encoder), amm(a, b, half))
        np.testing.assert_array_equal(amm(a, encode_rhs(b, encoder)), amm(a, b, half))
        with pytest.raises(UsageError, match="encoder names one"):
            explain((4, 4, 4), encoder=encoder, rtol=0.9)


def test_products_that_a_plan_could_keep_in_bf16_are_weighed_beside(eager: None) -> None:
    found = explain((64, 64, 64), "bf16", HALF, show=False)
    narrow = explain((64, 64, 64), "bf16", Plan(HALF, "bf16", product="bf16"), show=False)
    assert len(found.alternatives) == 3
    assert {found.name, "dense"} | {narrow.name} == {name for name, _ in found.alternatives}
    assert dict(found.alternatives)[narrow.name] == dict(narrow.alternatives)[narrow.name]
    assert len(narrow.alternatives) == 2
    assert len(explain((64, 64, 64), "fp32", HALF, show=False).alternatives) == 2


def test_the_best_of_a_rank_is_the_best_at_the_operands_dtype() -> None:
    keep(NOISY, CLOSE)
    assert explain((4, 4, 4), "fp64", "catalog:best?shape=2,2,2&rank=7").scheme == NOISY  # error 1e-13 against 1e-4
    for encoder, dtype in (
        ("catalog:best?shape=2,2,2&rank=7", "bf16"),
        ("catalog:best?shape=2,2,2&rank=7&dtype=bf16", "fp64"),
    ):
        scheme = explain((4, 4, 4), dtype, encoder).scheme
        assert scheme is not None
        assert not scheme.ring.exact


def test_bounds_are_given_once() -> None:
    assert request_of("catalog:best?rtol=.1", rtol=0.1).rtol == 0.1
    with pytest.raises(UsageError, match=r"rtol is 0\.2 in the call and 0\.1 in the selector"):
        request_of("catalog:best?rtol=.1", rtol=0.2)
    for bad in (0, -1.0, math.nan, math.inf, "0.1", True):
        with pytest.raises(UsageError, match="must be a positive number"):
            request_of("catalog:best", rtol=bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="three sizes"):
        explain((4, 4))


SIZE = st.integers(1, 10**5)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    SIZE,
    SIZE,
    SIZE,
    st.sampled_from(["fp16", "bf16", "fp32", "fp64"]),
    st.tuples(*[st.integers(1, 8)] * 3),
    st.integers(1, 512),
    st.integers(1, 3),
)
def test_the_model_never_counts_less_than_the_multiplications(
    m: int, k: int, n: int, dtype: str, shape: tuple[int, int, int], rank: int, levels: int
) -> None:
    problem = Problem(m, k, n, dtype, dtype)
    sums = (3.0 * rank, 3.0 * rank, 3.0 * rank)
    time = scheme_seconds(Cost(shape, rank, sums), problem, levels)
    speed = calibrate.rates("cpu", "fp32").slices[0][1]
    assert time > problem.flops * (rank / math.prod(shape)) ** levels / speed
    assert time < scheme_seconds(Cost(shape, rank + 1, sums), problem, levels)
    assert time >= scheme_seconds(Cost((1, 1, 1), 0, (0.0, 0.0, 0.0)), problem)  # what the early answer rests on


def test_a_larger_product_favours_schemes_and_ragged_ones_do_not() -> None:
    strassen = Cost((2, 2, 2), 7, (12.0, 12.0, 12.0))
    relative = [
        scheme_seconds(strassen, Problem(n, n, n)) / dense_seconds(Problem(n, n, n)) for n in (64, 512, 4096, 32768)
    ]
    assert relative == sorted(relative, reverse=True)
    eight = Cost((8, 8, 8), 64, (64.0, 64.0, 64.0))
    whole = scheme_seconds(eight, Problem(8, 8, 8))
    for sizes in ((9, 8, 8), (8, 9, 8), (8, 8, 9)):  # one more row, inner index or column pads that side to 16
        assert scheme_seconds(eight, Problem(*sizes)) > 1.5 * whole


def test_bf16_products_stay_dense_where_float32_sums_are_far_slower() -> None:
    keep(STRASSEN, SQUARED)
    assert explain(HUGE, "bf16").plan is None
    found = explain(HUGE, "bf16", rtol=0.5)  # an error was allowed: products may be kept in bf16
    assert found.plan is not None
    assert found.plan.product == "bf16"
    assert found.predicted_error == pytest.approx(found.plan.predicted_error)  # float32 sums are nothing beside bf16
    assert explain(HUGE, "fp16", rtol=0.5).levels > 1  # dense float16 is multiplied in float32 too


def test_levels_multiply_the_gain_and_are_taken_where_they_pay() -> None:
    keep(STRASSEN)
    found = explain(HUGE)
    assert found.levels == dispatch.LEVELS
    assert found.plan is not None
    assert found.plan.scheme == STRASSEN
    assert found.predicted_error == pytest.approx(with_sums(STRASSEN, dispatch.LEVELS))
    one = explain(HUGE, rtol=1.01 * with_sums(STRASSEN))
    assert one.levels == 1
    assert explain(HUGE, rtol=0.99 * with_sums(STRASSEN)).plan is None
    assert "levels" in str(found)
    assert "levels" not in str(one)


def test_several_levels_multiply_as_one(eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(STRASSEN)
    monkeypatch.setattr(dispatch, "LEVELS", 3)
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (2, 40, 48)).astype(np.float64), rng.integers(-4, 5, (48, 32)).astype(np.float64)
    assert explain((40, 48, 32), "fp64").levels == 3
    np.testing.assert_array_equal(amm(a, b), a @ b)


def test_the_explanation_shows_what_was_weighed() -> None:
    keep(STRASSEN, SQUARED)
    found = explain(HUGE)
    names = [name for name, _ in found.alternatives]
    times = [time for _, time in found.alternatives]
    assert times == sorted(times)
    assert "dense" in names
    lines = found.table().splitlines()
    assert len(lines) == 3 + len(names)
    assert [line.startswith("->") for line in lines[3:]] == [name == found.name for name in names]
    assert explain(HUGE, encoder=STRASSEN).cost == pytest.approx(7 / 8, rel=0.1)


def test_amm_takes_the_dense_product_that_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(device: str, dtype: str) -> Rates:
        return dataclasses.replace(machine(3e9, 5.0)(device, dtype), ways=("onednn",))

    called = []
    monkeypatch.setattr(calibrate, "rates", rates)
    monkeypatch.setattr(dispatch, "SMALL", 0.0)
    monkeypatch.setitem(dense.WAYS, "onednn", lambda a, b: called.append(a.shape) or a @ b)
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert torch.equal(amm(a, b), torch.full((3, 5), 4.0))
    assert called == [(3, 4)]
    assert torch.equal(amm(a * 1j, b * 1j), torch.full((3, 5), -4.0 + 0j))  # which it does not multiply
    assert torch.equal(amm(a, b, out_dtype="fp64"), torch.full((3, 5), 4.0, dtype=torch.float64))
    assert called == [(3, 4)]


def test_what_the_model_cannot_tell_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the bounds, and for one real product of some size on the processor, the timing has the last word."""
    keep(STRASSEN)
    asked: list[tuple[Any, ...]] = []
    answer = [0.9]

    def slowdown(plan: Plan, levels: int, sizes: tuple[int, int, int], seconds: float, way: str) -> float:
        asked.append((plan.scheme, levels, sizes, way))
        return answer[0]

    monkeypatch.setattr(measured, "slowdown", slowdown)
    monkeypatch.setattr(dispatch, "LEVELS", 1)
    sizes = (4096, 4096, 4096)
    model = scheme_seconds(Cost.of_entry(store.candidates((2, 2, 2), 7, None, "ZT")[0], (2, 2, 2)), Problem(*sizes))
    share = model / dense_seconds(Problem(*sizes))
    assert dispatch.MARGIN < share < 1.2  # dense, by the model
    assert explain(sizes).plan is None
    assert not asked
    monkeypatch.setattr(dispatch, "UNSURE", (0.9, 1.2))
    found = explain(sizes)
    assert asked == [(STRASSEN, 1, sizes, "torch")]
    assert found.scheme == STRASSEN
    assert found.cost == 0.9
    assert "as measured" in found.reason
    for answer[0], taken in ((0.96, True), (0.98, False), (1.2, False)):
        found = explain(sizes)
        assert (found.scheme == STRASSEN) == taken
        assert "as measured" in found.reason
    asked.clear()
    answer[0] = 0.5
    monkeypatch.setattr(dispatch, "UNSURE", (0.5, 0.9))  # sure that dense is faster
    assert explain(sizes).plan is None
    monkeypatch.setattr(dispatch, "UNSURE", (0.9, 1.2))
    several = dataclasses.replace(Problem(*sizes), count=2, lhs_count=2)
    assert dispatch.choose(request_of(None), several).plan is None  # a batch
    assert dispatch.choose(request_of(None), dataclasses.replace(Problem(*sizes), complex=True)).plan is None
    monkeypatch.setattr(measured, "SHORTEST", {"cpu": 1e9})
    assert explain(sizes).plan is None
    assert not asked


def test_it_prints_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    keep(STRASSEN, SQUARED)
    found = explain(HUGE, rtol=0.1)
    printed = capsys.readouterr().out
    assert printed == f"131072 x 131072 times 131072 x 131072 in fp32 on cpu\n{found.table()}\n"
    for name, _ in found.alternatives:
        assert name in printed
    assert found.name in printed.splitlines()[1]
    assert explain(HUGE, rtol=0.1, show=False) == found
    assert capsys.readouterr().out == ""
    named = explain((4096, 4096, 4096), "complex64", STRASSEN)
    assert [name for name, _ in named.alternatives if name != "dense"] == [named.name]
    assert "complex fp32" in capsys.readouterr().out
    assert repr(named) == str(named)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: explain("abc"), "three sizes"),
        (lambda: explain(None), "three sizes"),
        (lambda: explain((1.5, 2, 3)), "three sizes"),
        (lambda: explain((-1, 2, 3)), "three sizes"),
        (lambda: explain((8, 8, 8), device=None), "device is None"),
        (lambda: explain((8, 8, 8), encoder=STRASSEN, device="foo"), "device is 'foo'"),
        (lambda: explain((8, 8, 8), out_dtype=torch.complex64), "operands are real"),
        (lambda: explain((8, 8, 8), out_dtype="fp8_e4m3"), "output cannot be fp8"),
    ],
)
def test_explain_refuses_nonsense_in_one_sentence(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_explain_takes_a_device_of_torch() -> None:
    assert explain((8, 8, 8), device=torch.device("cpu")).plan is None
