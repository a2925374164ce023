"""Strategy ``loosen``: to another precision and back within rotation, beside ``relax``; what it serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stl_search import decompose, score, transform
from stl_search.errors import UsageError
from stl_search.scheme import Scheme
from stl_search.search import loosen, portfolio
from stl_search.search.border import invariant_form
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.relax import Relax
from stl_search.search.rotation import Triangle, solved
from stl_search.search.strategy import Clock

SHAPE, RANK = (2, 2, 2), 5  # below the border rank: coefficients grow as rounding weighs less, and E falls to .25


def weight_of(dtype: str) -> float:
    return 2 * score.relative_rounding(dtype) ** 2


@pytest.fixture(scope="module")
def optimum() -> tuple[Triangle, decompose.Floats]:
    """The best of some invariant schemes at the weight of bf16, two fixed terms and an orbit."""
    frame, best, found = Triangle(2, 2, 1), np.inf, np.zeros((RANK, 4))
    rng = np.random.default_rng(0)
    for _ in range(8):
        x = 0.7 * rng.standard_normal((RANK, 4))
        x, value = solved(frame, x, weight_of("bf16"), 800, 0.01, 1.0, Clock(None), tolerance=1e-10)
        if value < best:
            best, found = value, x
    return frame, found


@pytest.fixture(scope="module")
def scheme(optimum: tuple[Triangle, decompose.Floats]) -> Scheme:
    u, v, w = optimum[0].factors(optimum[1])
    return decompose.scheme_of(SHAPE, (u[None], v[None], w[None]))


def given(problem: Problem, *schemes: Scheme) -> Pool:
    pool = Pool(problem)
    for one in schemes:
        pool.add(Entry(cost(problem, one), one.id, one))
    return pool


def run(problem: Problem, pool: Pool, seed: int = 0) -> list[Scheme]:
    return list(loosen.Loosen().run(problem, pool, np.random.default_rng(seed), Clock(None)))


def test_there_and_back_within_rotation(optimum: tuple[Triangle, decompose.Floats]) -> None:
    frame, x = optimum
    coarse, fine = weight_of("bf16"), weight_of("fp32")
    there = loosen.loosened(frame, x, coarse, fine, Clock(None))
    assert frame.measure(there, fine) / 8 < 0.2502 < frame.measure(x, fine) / 8
    assert abs(there).max() > 5 * abs(x).max()
    back = loosen.loosened(frame, there, fine, coarse, Clock(None))
    # the start may lack some digits, which the way there and back adds
    assert frame.measure(x, coarse) * (1 - 1e-4) < frame.measure(back, coarse) < frame.measure(x, coarse) * (1 + 1e-7)


def test_it_ends_no_higher_than_relax_and_keeps_the_symmetry(scheme: Scheme) -> None:
    problem = Problem(SHAPE, RANK, dtype="fp32")
    pool = given(problem, scheme)
    [found] = run(problem, pool)
    [relaxed] = Relax().run(problem, pool, np.random.default_rng(0), Clock(None))
    assert cost(problem, found) <= cost(problem, relaxed) * (1 + 1e-6)
    assert invariant_form(found) is not None
    assert [s.id for s in run(problem, pool, 1)] == [found.id]  # no chance


def test_what_it_serves(scheme: Scheme) -> None:
    chosen = loosen.Loosen()
    problem = Problem(SHAPE, RANK, dtype="fp32")
    assert chosen.on_request
    assert not chosen.weight(problem, given(problem))  # there is nothing to follow
    lopsided = transform.change_basis(scheme, np.diag([1.0, 2.0]), np.eye(2), np.eye(2))
    assert not chosen.weight(problem, given(problem, lopsided))
    assert not run(problem, given(problem, lopsided))
    pool = given(problem, lopsided, scheme)
    assert chosen.weight(problem, pool) == 1.0
    assert chosen.weight(Problem(SHAPE, RANK, dtype="fp32", symmetry="cyclic"), pool) == 1.0
    assert not chosen.weight(Problem(SHAPE, RANK, symmetry="transpose"), pool)
    assert not chosen.weight(Problem(SHAPE, RANK, ring="Z"), pool)
    assert not chosen.weight(Problem(SHAPE, RANK, coefficients="grid"), pool)
    assert not chosen.weight(Problem((2, 2, 3), RANK), pool)


def test_discover_by_it_alone(scheme: Scheme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path))
    result = portfolio.discover(
        SHAPE, RANK, dtype="fp32", steps=1, workers=1, strategies=("loosen",), given=[scheme], out=tmp_path
    )
    assert result.strategy == "loosen"
    assert result.scheme is not None
    assert score.error(result.scheme, "fp32") ** 2 < 0.2502 < score.error(scheme, "fp32") ** 2
    with pytest.raises(UsageError, match="no strategy of loosen applies"):  # there is nothing to follow
        portfolio.discover(SHAPE, RANK, dtype="fp32", steps=1, workers=1, strategies=("loosen",), out=tmp_path)
