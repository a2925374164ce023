"""Strategy ``rotation``: half of the normal equations against the whole, changes that keep to the rank, and chains."""

from __future__ import annotations

import numpy as np
import pytest

from stl_search.search.border import Rotation, invariant_form
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.rotation import Triangle, changed
from stl_search.search.strategy import Clock, get
from stl_search.testing import StrategyContract

LAM = 1e-2


class TestRotation(StrategyContract):
    strategy = "rotation"
    problem = Problem((2, 2, 2), 5)
    jobs = 2


@pytest.mark.parametrize(("n", "fixed", "orbits"), [(2, 1, 2), (3, 2, 1), (2, 0, 1), (2, 3, 0), (3, 5, 4)])
def test_the_normal_matrix_below_its_diagonal_is_that_of_a_rotation(n: int, fixed: int, orbits: int) -> None:
    x = np.random.default_rng(n).standard_normal((fixed + 3 * orbits, n * n))
    half, gradient = Triangle(n, fixed, orbits).normal(x.ravel(), LAM, 0.3)
    whole, same = Rotation(n, fixed, orbits).normal(x.ravel(), LAM, 0.3)
    np.testing.assert_allclose(np.tril(half), np.tril(whole), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(gradient, same)


def test_every_change_is_a_scheme_of_the_asked_rank() -> None:
    rng = np.random.default_rng(0)
    frames = set()
    for _ in range(400):
        fixed, orbits = int(rng.integers(0, 8)), int(rng.integers(0, 4))
        if fixed + orbits == 0:
            continue
        frame = Triangle(2, fixed, orbits)
        x = rng.standard_normal((frame.rank, 4))
        rank = max(1, frame.rank + int(rng.choice([0, 0, 0, 1, -1, 3, -3, 2])))
        other = rng.standard_normal(x.shape)
        kept, before = x.copy(), other.copy()
        new, y = changed(frame, x, rank, [x, other], rng)
        assert new.rank == rank
        assert y.shape == (rank, 4)
        assert np.isfinite(y).all()
        np.testing.assert_array_equal(x, kept)  # what is known stays as it is
        np.testing.assert_array_equal(other, before)
        frames.add((new.fixed - fixed, rank - frame.rank))
    assert {(3, 0), (-3, 0), (0, 0)} <= frames  # trades go both ways


def test_chains_go_on_from_what_is_known_and_keep_it() -> None:
    """From <2,2,2> of rank 6 without any pool; then what is found is never lost, and stays invariant."""
    problem = Problem((2, 2, 2), 6, symmetry="cyclic")
    pool = Pool(problem)
    best = np.inf
    for seed in range(4):
        for scheme in get("rotation").run(problem, pool, np.random.default_rng(seed), Clock(None)):
            assert invariant_form(scheme) is not None
            pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
        (held, *_) = pool.cell((2, 2, 2), 6)
        assert held.cost <= best
        best = held.cost
    assert best < 0.1251  # 1/8 is what leaving out one product of Strassen's scheme gives


def test_it_serves_where_it_can_act() -> None:
    def serves(problem: Problem) -> float:
        return get("rotation").weight(problem, Pool(problem))

    assert serves(Problem((3, 3, 3), 20)) == serves(Problem((3, 3, 3), 20, symmetry="cyclic")) == 1
    for problem in (
        Problem((2, 3, 3), 12),
        Problem((3, 3, 3), 20, symmetry="transpose"),
        Problem((3, 3, 3), 23, ring="ZT"),
        Problem((9, 9, 9), 400),
        Problem((1, 1, 1), 1),
        Problem((3, 3, 3), 13),
    ):
        assert serves(problem) == 0
    assert serves(Problem((3, 3, 3), 13, strategies=("rotation",))) == 1
