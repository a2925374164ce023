"""Strategy ``descent``: where ways begin, that they do not hang on where they end, and that they end below the line."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from stl_search import decompose, score, transform
from stl_search.errors import UsageError
from stl_search.scheme import Scheme
from stl_search.search import descent, portfolio
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock
from stl_search.testing import STRASSEN, StrategyContract
from stl_search.verify import first_failure


class TestDescent(StrategyContract):
    strategy = "descent"
    problem = Problem((2, 2, 3), 8)
    jobs = 2


def pool_of(problem: Problem, *schemes: Scheme) -> Pool:
    pool = Pool(problem)
    for scheme in schemes:
        pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
    return pool


def way(
    rank: int, *schemes: Scheme, shape: tuple[int, int, int] = (2, 2, 3), seed: int = 1
) -> Iterator[tuple[int, decompose.Batch]]:
    problem = Problem(shape, rank)
    return descent.descend(problem, pool_of(problem, *schemes), np.random.default_rng(seed), Clock(None))


def test_a_way_does_not_hang_on_where_it_ends() -> None:
    short, long = list(way(8)), list(way(5))
    assert [rank for rank, _ in long] == list(range(11, 4, -1))
    assert [rank for rank, _ in short] == [11, 10, 9, 8]
    for (_, one), (_, other) in zip(short, long, strict=False):
        assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def test_a_way_begins_nearly_exact_and_loses_little_with_each_term() -> None:
    lam = Problem((2, 2, 3), 5).lam
    values = [decompose.objective((2, 2, 3), batch, lam)[0] / 12 for _, batch in way(5)]
    assert values[0] < 0.03
    assert all(low < high for low, high in itertools.pairwise(values))
    assert values[-1] < score.line((2, 2, 3), 5) - 0.02


def test_it_begins_at_other_exact_schemes_than_the_one_it_is_given() -> None:
    moved = [descent._moved(transform.sum_n(STRASSEN, STRASSEN), np.random.default_rng(seed)) for seed in range(4)]
    assert len({scheme.id for scheme in moved}) == 4
    assert all(scheme.rank <= 14 and first_failure(scheme) is None for scheme in moved)


@pytest.mark.parametrize("held", [False, True])
def test_it_may_begin_at_what_is_given(held: bool) -> None:
    *_, (_, batch) = way(5, shape=(2, 2, 2))
    given = descent.settled((2, 2, 2), batch, Problem((2, 2, 2), 5).lam)
    schemes = (STRASSEN, given) if held else (STRASSEN,)
    tops = {next(way(3, *schemes, shape=(2, 2, 2), seed=seed))[0] for seed in range(12)}
    assert tops == ({5, 7} if held else {7})


def test_what_it_serves() -> None:
    big = Problem((4, 4, 4), 40)
    assert not descent.Descent().weight(big, Pool(big))  # random starts of <4,4,4> would take minutes
    assert descent.serves((4, 4, 4), 40, given=True)
    assert not descent.serves((4, 4, 4), 49, given=True)  # 48 is known
    assert not descent.serves((8, 8, 8), 100, given=True)
    exact = Problem((2, 2, 2), 6, ring="Z")
    assert not descent.Descent().weight(exact, Pool(exact))


def test_discover_by_it_alone() -> None:
    found = portfolio.discover((2, 2, 2), 5, strategies=("descent",), steps=2, workers=1)
    assert found.scheme is not None
    assert found.strategy == "descent"
    assert score.expected_error(found.scheme) < 0.2601  # the border scheme of five products has .25


def test_discover_by_it_from_what_is_given() -> None:
    starts = [transform.kron(STRASSEN, STRASSEN)]
    with pytest.raises(UsageError, match="no strategy of descent applies"):
        portfolio.discover((4, 4, 4), 47, strategies=("descent",), steps=1, workers=1)
    found = portfolio.discover((4, 4, 4), 47, strategies=("descent",), steps=1, workers=1, given=starts)
    assert found.strategy == "descent"
    assert found.scheme is not None
    assert cost(Problem((4, 4, 4), 47), found.scheme) < 0.035  # two products of 64 left out are .0313


def test_steps_in_single_precision_converge_too() -> None:
    rng = np.random.default_rng(3)
    start = decompose.batch_of([STRASSEN])
    start = tuple(f + 0.1 * rng.standard_normal(f.shape) for f in start)  # type: ignore[assignment]
    (double, f), (single, g) = (
        decompose.levenberg_marquardt((2, 2, 2), start, 0.0, 100, goal=1e-20, single=s) for s in (False, True)
    )
    assert max(f[0], g[0]) < 1e-16
    assert not np.array_equal(double[0], single[0])
    assert single[0].dtype == np.float64
