"""Every strategy keeps the contract of stl_search.testing, on a small problem of each kind it applies to."""

import dataclasses

import numpy as np
import pytest

from stl_search.errors import UsageError
from stl_search.search import strategy
from stl_search.search.compose import best_recipe, build, splits
from stl_search.search.problem import Entry, Pool, Problem, cost, ranks_near
from stl_search.search.strategy import Clock
from stl_search.testing import StrategyContract
from stl_search.transform import classical
from stl_search.verify import verify


class TestNumeric(StrategyContract):
    strategy = "numeric"
    problem = Problem((2, 2, 2), 5)


class TestNumericExact(StrategyContract):
    strategy = "numeric"
    problem = Problem((2, 2, 2), 7, ring="ZT")


class TestNumericModulo2(StrategyContract):
    strategy = "numeric"
    problem = Problem((2, 2, 2), 7, ring="Z2")

    def test_every_scheme_is_what_it_claims(self) -> None:
        assert {verify(e.scheme).rings for e in self._pool()} == {("Z2",)}


class TestCompose(StrategyContract):
    strategy = "compose"
    problem = Problem((2, 4, 2), 10)


class TestComposeExact(StrategyContract):
    strategy = "compose"
    problem = Problem((2, 2, 4), 14, ring="ZT")


class TestDeflate(StrategyContract):
    strategy = "deflate"
    problem = Problem((2, 2, 3), 8)


def test_an_unknown_strategy_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"known: batch, border, cheap, compose, deflate,.* numeric"):
        strategy.get("magic")


@pytest.mark.parametrize("ring", ["R", "Q", "Z", "ZT", "Z2"])
@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((2, 2, 2), 7),
        ((2, 3, 3), 14),
        ((3, 3, 3), 23),
        ((4, 4, 4), 47),
        ((4, 4, 4), 48),
        ((4, 5, 5), 73),
        ((5, 5, 5), 93),
    ],
)
def test_what_a_search_records_gives_each_strategy_the_same_share(
    shape: tuple[int, int, int], rank: int, ring: str
) -> None:
    """A search that names no strategy, and its command, which names those that took part, do the same jobs."""
    for symmetry in ("", "cyclic") if len(set(shape)) == 1 and ring != "R" else ("",):
        plain = Problem(shape, rank, ring, symmetry=symmetry)
        named = dataclasses.replace(plain, strategies=strategy.recorded(plain, Pool(plain)))
        shares = [[(s.name, w) for s, w in strategy.suitable(p, Pool(p))] for p in (plain, named)]
        assert shares[0] == shares[1]
        assert strategy.recorded(named, Pool(named)) == named.strategies


def test_a_problem_that_no_chosen_strategy_can_treat_is_refused() -> None:
    problem = Problem((2, 2, 2), 7, ring="ZT", strategies=("deflate",))
    with pytest.raises(UsageError, match="no strategy of deflate applies to <2,2,2> over ZT"):
        strategy.suitable(problem, Pool(problem))


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 3), (2, 3, 4), (4, 4, 4), (1, 2, 5)])
def test_splits_multiply_or_add_up_to_the_shape(shape: tuple[int, int, int]) -> None:
    for operation, first, second in splits(shape):
        if operation == "kron":
            assert tuple(a * b for a, b in zip(first, second, strict=True)) == shape
        else:
            axis = "mkn".index(operation[-1])
            assert first[axis] + second[axis] == shape[axis]
            assert [first[i] for i in range(3) if i != axis] == [second[i] for i in range(3) if i != axis]


def test_a_recipe_uses_the_schemes_of_the_pool_at_permuted_shapes() -> None:
    problem = Problem((4, 3, 2), 20, ring="ZT")
    pool = Pool(problem)
    assert best_recipe((4, 3, 2), pool).rank == 24  # nothing known: classical
    strassen = next(
        s
        for job in range(20)
        for s in strategy.get("numeric").run(
            Problem((2, 2, 2), 7, ring="ZT"), pool, np.random.default_rng(job), Clock(None)
        )
    )
    pool.add(Entry(cost(problem, strassen), strassen.id, strassen))
    recipe = best_recipe((4, 3, 2), pool)
    assert recipe.rank == 22  # two <2,2,2> of rank 7 and a <4,1,2> of rank 8
    scheme = build(recipe, (4, 3, 2))
    assert scheme.shape == (4, 3, 2)
    assert scheme.rank == 22
    assert "ZT" in verify(scheme).rings


def test_a_pool_keeps_the_best_of_each_rank_and_forgets_ties() -> None:
    problem = Problem((2, 2, 2), 6)
    pool = Pool(problem)
    one = classical((2, 2, 2))
    assert pool.add(Entry(0.5, "a", one))
    assert not pool.add(Entry(0.5 + 1e-8, "b", one))  # the same basin
    assert all(pool.add(Entry(0.4 + i / 100, str(i), one)) for i in range(9))
    assert [e.cost for e in pool.cell((2, 2, 2), 8)] == sorted(e.cost for e in pool.cell((2, 2, 2), 8))
    for i in range(40):
        pool.add(Entry(0.3 - i / 1000, f"c{i}", one))
    cell = pool.cell((2, 2, 2), 8)
    assert len(cell) == Pool.capacity
    assert cell[0].cost == pytest.approx(0.261)
    assert not pool.would_take((2, 2, 2), 8, 0.9)
    assert pool.best((2, 2, 2), 7) is None
    assert 6 in ranks_near(problem)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ring": "X"}, "unknown ring"),
        ({"ring": "C"}, "C is not searched"),
        ({"dtype": "fp4"}, "unknown dtype"),
        ({"rank": 0}, "rank is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"starts": "maybe"}, "unknown starts"),
        ({"shape": (2, 0, 2)}, "every side must be"),
    ],
)
def test_a_senseless_problem_is_refused(change: dict, words: str) -> None:
    with pytest.raises(Exception, match=words):
        Problem(**{"shape": (2, 2, 2), "rank": 5, **change})
