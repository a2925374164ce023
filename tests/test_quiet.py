"""Strategy ``quiet``: exact schemes whose noise gain is small, from nothing."""

from __future__ import annotations

import numpy as np
import pytest

from stl_search import score
from stl_search.scheme import Shape
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.quiet import Quiet
from stl_search.search.strategy import Clock, suitable
from stl_search.testing import STRASSEN, StrategyContract


class TestQuiet(StrategyContract):
    strategy = "quiet"
    problem = Problem((2, 2, 3), 11)
    jobs = 2


def names(problem: Problem) -> set[str]:
    return {s.name for s, _ in suitable(problem, Pool(problem))}


def test_it_serves_ranks_that_exact_schemes_are_known_to_reach() -> None:
    assert "quiet" in names(Problem((3, 3, 3), 23))
    assert "quiet" in names(Problem((2, 2, 2), 8, dtype="fp32"))
    for other in (
        Problem((3, 3, 3), 22),
        Problem((3, 3, 3), 23, ring="ZT"),
        Problem((3, 3, 3), 23, symmetry="cyclic"),
        Problem((2, 2, 2), 7, coefficients="sparse"),
        Problem((4, 4, 4), 49),  # too large to follow in seconds
    ):
        assert Quiet().weight(other, Pool(other)) == 0


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "bf16", "fp16", "fp32"])
def test_strassens_scheme_loses_a_third_of_its_noise(dtype: str) -> None:
    """All schemes of <2,2,2> of rank 7 are changes of basis of one another: one least noise gain, by any walk."""
    problem = Problem((2, 2, 2), 7, dtype=dtype)
    (found,) = Quiet().run(problem, Pool(problem), np.random.default_rng(0), Clock(None))
    assert score.noise_gain(STRASSEN) == 4
    assert cost(problem, found) < 0.7 * cost(problem, STRASSEN)
    if dtype == "fp8_e4m3":  # rounding weighs so much that some error pays
        assert score.noise_gain(found) < 2.7
        assert 0 < score.expected_error(found) < 0.03 * cost(problem, found)
    else:
        assert score.noise_gain(found) == pytest.approx(2.778, rel=1e-3)
        assert score.expected_error(found) < 1e-3 * cost(problem, found)


@pytest.mark.parametrize(("shape", "rank", "gain"), [((2, 3, 3), 15, 4.4), ((3, 3, 3), 23, 4.2)])
def test_others_halve_it(shape: Shape, rank: int, gain: float) -> None:
    problem = Problem(shape, rank)
    pool = Pool(problem)
    for job in range(6):
        for scheme in Quiet().run(problem, pool, np.random.default_rng([1, job]), Clock(None)):
            pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
        best = pool.best(shape, rank)
        if best is not None and score.noise_gain(best.scheme) < gain:
            return
    pytest.fail("not found in 6 jobs")
