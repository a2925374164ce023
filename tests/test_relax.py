"""Strategy ``relax``: the weight a scheme suits, the way to another one and back, and what ``discover`` makes of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from stl_search import decompose, score
from stl_search.errors import UsageError
from stl_search.scheme import Shape
from stl_search.search import portfolio, relax
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock
from stl_search.testing import STRASSEN

BORDER: tuple[Shape, int] = (2, 2, 3), 10  # the border rank of <2,2,3>: 11 is the rank
WEIGHTS = {dtype: 2 * score.relative_rounding(dtype) ** 2 for dtype in score.DTYPES}


@pytest.fixture(scope="module")
def optimum() -> decompose.Batch:
    """A batch of one: the best of some optima of rank 10 at the weight of bf16."""
    shape, rank = BORDER
    starts = decompose.random_batch(shape, rank, 4, np.random.default_rng(0))
    found, f = decompose.levenberg_marquardt(shape, starts, WEIGHTS["bf16"], 300, ridge=lambda i: 0.01 * (i < 60))
    q = int(np.argmin(f))
    return found[0][q : q + 1], found[1][q : q + 1], found[2][q : q + 1]


def value(batch: decompose.Batch, lam: float) -> float:
    return float(decompose.objective(BORDER[0], batch, lam)[0]) / math.prod(BORDER[0])


def follow(batch: decompose.Batch, first: float, lam: float) -> decompose.Batch:
    return relax.followed(BORDER[0], batch, first, lam, Clock(None))


def test_it_knows_the_weight_that_a_scheme_was_made_for(optimum: decompose.Batch) -> None:
    assert relax.suited(BORDER[0], optimum, 1.0) == pytest.approx(WEIGHTS["bf16"], rel=0.2)
    other, _ = decompose.levenberg_marquardt(BORDER[0], optimum, 1e-4, 400)
    assert relax.suited(BORDER[0], other, 1.0) == pytest.approx(1e-4, rel=0.1)


def test_where_no_weight_suits_it_takes_the_one_that_is_asked_for() -> None:
    batch = decompose.batch_of([STRASSEN])
    assert relax.suited((2, 2, 2), batch, 3e-5) == 3e-5  # exact: no rounding keeps it from anything
    nothing = tuple(np.zeros_like(f) for f in batch)
    assert relax.suited((2, 2, 2), nothing, 3e-5) == 3e-5  # type: ignore[arg-type]


def test_near_the_border_rank_finer_precisions_have_far_better_schemes(optimum: decompose.Batch) -> None:
    bf16 = WEIGHTS["bf16"]
    assert value(optimum, bf16) < 0.0025
    fp16 = follow(optimum, bf16, WEIGHTS["fp16"])
    assert value(fp16, WEIGHTS["fp16"]) < value(optimum, WEIGHTS["fp16"]) / 2
    fp32 = follow(optimum, bf16, WEIGHTS["fp32"])
    assert value(fp32, WEIGHTS["fp32"]) < value(optimum, WEIGHTS["fp32"]) / 1000
    assert relax.suited(BORDER[0], fp16, 1.0) == pytest.approx(WEIGHTS["fp16"], rel=0.2)


def test_the_way_back_ends_where_it_began_or_lower(optimum: decompose.Batch) -> None:
    there = follow(optimum, WEIGHTS["bf16"], 1e-10)
    assert value(there, 0) < value(optimum, 0) / 10
    back = follow(there, 1e-10, WEIGHTS["bf16"])
    assert value(back, WEIGHTS["bf16"]) < value(optimum, WEIGHTS["bf16"]) * 1.001
    fp8 = follow(optimum, WEIGHTS["bf16"], WEIGHTS["fp8_e4m3"])
    assert value(fp8, WEIGHTS["fp8_e4m3"]) < 0.8 * value(optimum, WEIGHTS["fp8_e4m3"])


def test_an_expired_clock_ends_the_way(optimum: decompose.Batch) -> None:
    late = Clock(0.0)
    end = relax.followed(BORDER[0], optimum, 1e-5, 1e-12, late)
    assert late.cut
    assert all(np.array_equal(x, y) for x, y in zip(end, optimum, strict=True))


def test_what_it_serves(optimum: decompose.Batch) -> None:
    shape, rank = BORDER
    problem = Problem(shape, rank, dtype="fp32")
    chosen = relax.Relax()
    pool = Pool(problem)
    assert chosen.on_request
    assert not chosen.weight(problem, pool)  # there is nothing to follow
    scheme = decompose.scheme_of(shape, optimum)
    pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
    assert chosen.weight(problem, pool) == 1.0
    assert not chosen.weight(Problem(shape, rank, ring="Z"), pool)
    assert not chosen.weight(Problem(shape, rank, coefficients="grid"), pool)
    found = [list(chosen.run(problem, pool, np.random.default_rng(seed), Clock(None))) for seed in (0, 1)]
    assert [s.id for s in found[0]] == [s.id for s in found[1]]  # no chance
    assert cost(problem, found[0][0]) < cost(problem, scheme) / 1000


def test_exact_schemes_and_whole_numbers_do_no_harm() -> None:
    problem = Problem((2, 2, 2), 7)
    pool = Pool(problem)
    pool.add(Entry(cost(problem, STRASSEN), STRASSEN.id, STRASSEN))
    [found] = relax.Relax().run(problem, pool, np.random.default_rng(0), Clock(None))
    assert cost(problem, found) < cost(problem, STRASSEN)  # a basis in which it rounds less


def test_discover_by_it_alone(optimum: decompose.Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path))
    shape, rank = BORDER
    start = decompose.scheme_of(shape, optimum)
    result = portfolio.discover(
        shape, rank, dtype="fp32", steps=1, workers=1, strategies=("relax",), given=[start], out=tmp_path
    )
    assert result.strategy == "relax"
    assert result.scheme is not None
    assert score.error(result.scheme, "fp32") < 0.03 * score.error(start, "fp32")
    with pytest.raises(UsageError, match="no strategy of relax applies"):  # there is nothing to follow
        portfolio.discover(shape, rank, dtype="fp32", steps=1, workers=1, strategies=("relax",), out=tmp_path)
