"""Walks over {-1, 0, 1}: every flip is one that plain numpy knows, and they keep the tensor over the integers."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from stl_search import transform
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search import flipgraph, ternary
from stl_search.search.flipgraph import FlipGraph
from stl_search.search.flips_ternary import TernaryWalk
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock, suitable, usual
from stl_search.testing import StrategyContract
from stl_search.verify import first_failure, verify

SHAPES = [(2, 2, 2), (1, 2, 3), (2, 3, 4), (4, 3, 2), (3, 2, 5), (3, 3, 3), (4, 4, 4), (2, 8, 3), (8, 8, 8)]

Term = list[npt.NDArray[np.int64]]  # its factors u, v, w as vectors


def walk_from(scheme: Scheme, seed: int = 0) -> TernaryWalk:
    return TernaryWalk(scheme, np.random.default_rng(seed))


def factors_of(scheme: Scheme) -> list[Term]:
    return [[f[q].astype(np.int64) for f in scheme.flat()] for q in range(scheme.rank)]


def normal(terms: list[Term]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The terms in order, the first non-zero coefficients of u and v positive."""
    out = []
    for u, v, w in terms:
        s, t = (int(f[np.flatnonzero(f)[0]]) for f in (u, v))
        out.append(tuple(tuple(f.tolist()) for f in (s * u, t * v, s * t * w)))
    return tuple(sorted(out))


def naive_flips(terms: list[Term]) -> Iterator[list[Term]]:
    """All that two terms with a factor in common, up to sign, can become within {-1, 0, 1}."""
    for i, one in enumerate(terms):
        for j, two in enumerate(terms):
            for p in range(3) if i != j else ():
                for sign in (1, -1):
                    if (one[p] != sign * two[p]).any():
                        continue
                    for b, c in (((p + 1) % 3, (p + 2) % 3), ((p + 2) % 3, (p + 1) % 3)):
                        for e in (1, -1):
                            first, second = list(one), list(two)
                            first[b] = one[b] + e * two[b]
                            second[c] = two[c] - e * sign * one[c]
                            if max(np.abs(first[b]).max(), np.abs(second[c]).max()) <= 1:
                                yield [first if q == i else second if q == j else t for q, t in enumerate(terms)]


@pytest.mark.parametrize(("shape", "flips"), [((2, 2, 2), 4), ((2, 3, 3), 30)])
def test_one_flip_is_one_of_plain_numpy_and_each_of_those_is_made(shape: Shape, flips: int) -> None:
    """From where both flips of two terms are mostly allowed, and from where mostly one is, or none."""
    walk = walk_from(transform.classical(shape), 2)
    walk.run(flips, 10**9, 0)
    start = walk.scheme()
    known = {normal(terms) for terms in naive_flips(factors_of(start))}
    assert any(-1 in factor for term in factors_of(start) for factor in term)
    made = set()
    for seed in range(20 * len(known)):
        walk = walk_from(start, seed)
        while not walk.flips:  # a draw that is refused both ways is a step, but no flip
            walk.run(1, 10**9, 0)
        made.add(normal(factors_of(walk.scheme())))
    assert made == known


def test_a_flip_that_would_leave_the_ring_is_refused() -> None:
    v, w = [[1, 1], [1, -1]], [[1, -1], [1, 1]]  # v + v', v - v', w + w' and w - w' have a 2 each
    scheme = Scheme((1, 1, 2), "ZT", [[1], [-1]], v, w)
    assert not list(naive_flips(factors_of(scheme)))
    walk = walk_from(scheme)
    assert walk.run(1000, 10**9, 0) == 1000
    assert walk.flips == 0
    assert walk.scheme() == scheme


def test_terms_that_share_two_factors_are_joined_where_the_sum_is_ternary() -> None:
    def rank(v: list[list[int]], w: list[list[int]]) -> int:
        u = [[1, 1, 0], [-1, -1, 0]]
        return walk_from(Scheme((1, 3, 1), "ZT", u, v, w)).rank

    assert rank([[1, -1, 0], [-1, 1, 0]], [[1], [1]]) == 2  # u v w twice: 2 is no coefficient
    assert rank([[1, -1, 0], [1, -1, 0]], [[1], [1]]) == 0  # they cancel
    assert rank([[1, -1, 0], [-1, 0, 1]], [[1], [1]]) == 2  # v - v' has a 2
    assert rank([[1, -1, 0], [1, 0, 1]], [[1], [1]]) == 1
    assert rank([[1, -1, 0], [0, 0, 0]], [[1], [1]]) == 1  # a zero term is dropped
    walk = walk_from(Scheme((1, 3, 1), "ZT", [[1, 1, 0], [-1, -1, 0]], [[1, -1, 0], [1, 0, 1]], [[1], [1]]))
    assert normal(factors_of(walk.scheme())) == (((1, 1, 0), (0, 1, 1), (-1,)),)


@pytest.mark.parametrize("shape", SHAPES)
def test_walks_keep_the_tensor_over_the_integers(shape: Shape) -> None:
    start = transform.classical(shape)
    assert walk_from(start).scheme().id == start.id
    for patience in (50, 2000):  # with many plus-transitions, and with few
        walk = walk_from(start, patience)
        walk.run(20_000, patience, 3)
        assert walk.flips > 1000
        for scheme in (walk.scheme(), walk.scheme(best=True)):
            assert scheme.ring.name == "ZT"
            assert first_failure(scheme) is None
        assert walk.scheme().id != start.id
        assert walk.rank == walk.scheme().rank
        assert walk.best_rank == walk.scheme(best=True).rank


def test_plus_transitions_add_a_term_and_lead_out_of_dead_ends() -> None:
    walk = walk_from(transform.classical((2, 2, 2)))
    walk.run(10_000_000, 10**5, 2, 7)
    assert walk.rank == 7
    before = walk.scheme()
    assert walk.run(1000, 10**9, 0) == 1  # Strassen: nothing to flip
    assert walk.scheme() == before
    signs = set()
    for seed in range(60):
        walk = walk_from(before, seed)
        walk.run(1, 10**9, 1)
        assert walk.rank == 8
        assert first_failure(walk.scheme()) is None
        signs.add(walk.scheme().id)
    assert len(signs) > 30


def test_equal_seeds_make_equal_walks() -> None:
    def end(seed: int) -> str:
        walk = walk_from(transform.classical((3, 3, 4)), seed)
        walk.run(60_000, 1000, 2)
        return walk.scheme().id

    assert end(1) == end(1)
    assert end(1) != end(2)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((2, 2, 2), 7), ((2, 2, 3), 11), ((2, 3, 2), 11), ((3, 2, 2), 11), ((2, 3, 3), 15), ((3, 3, 3), 23)],
)
def test_known_ranks_are_found_at_any_order_of_the_sides(shape: Shape, rank: int) -> None:
    walk = walk_from(transform.classical(shape), 5)
    walk.run(20_000_000, 30_000, 2, rank)
    scheme = walk.scheme()
    assert scheme.rank == walk.best_rank == rank
    assert "ZT" in verify(scheme).rings


def test_what_cannot_be_walked_from_is_refused() -> None:
    with pytest.raises(UsageError, match="a scheme over Z2"):
        walk_from(transform.classical((2, 2, 2), "Z2"))
    with pytest.raises(UsageError, match="sides <= 8"):
        walk_from(transform.classical((9, 1, 1)))


@pytest.fixture
def ternary_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job of the strategy walks over {-1, 0, 1}, and is short."""
    monkeypatch.setattr(flipgraph, "_TERNARY", 1.0)
    monkeypatch.setattr(flipgraph, "_drawn", lambda shape, rng: "")
    monkeypatch.setattr(ternary, "_GROWTH", 200_000)


class TestTernary(StrategyContract):
    strategy = "ternary"
    problem = Problem((2, 3, 2), 11, ring="ZT", strategies=("ternary",))


def test_it_is_chosen_by_name_alone() -> None:
    problem = Problem((3, 4, 5), 47, ring="ZT")
    assert "ternary" not in {s.name for s, _ in suitable(problem, Pool(problem))}
    assert "ternary" not in usual()  # nor in the commands of such searches
    named = dataclasses.replace(problem, strategies=("ternary",))
    assert [s.name for s, _ in suitable(named, Pool(named))] == ["ternary"]
    with pytest.raises(UsageError, match="no strategy of ternary applies"):
        suitable(Problem((3, 3, 3), 23, ring="Z2", strategies=("ternary",)), Pool(problem))


@pytest.mark.usefixtures("ternary_jobs")
class TestTernaryJobs(StrategyContract):
    strategy = "flipgraph"
    problem = Problem((2, 3, 2), 11, ring="Z")


@pytest.mark.usefixtures("ternary_jobs")
def test_jobs_start_from_smaller_shapes_and_from_the_pool() -> None:
    problem = Problem((3, 3, 3), 23, ring="Q")
    pool = Pool(problem)
    jobs: list[list[Scheme]] = []
    while pool.best((3, 3, 3), 23) is None or len(jobs) < 6:
        jobs.append(list(FlipGraph().run(problem, pool, np.random.default_rng([3, len(jobs)]), Clock(None))))
        for scheme in jobs[-1]:
            assert scheme.ring.name == "ZT"
            assert first_failure(scheme) is None
            pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
        assert len(jobs) < 20
    found = pool.best((3, 3, 3), 23)
    assert found is not None
    assert (2, 2, 2) in {scheme.shape for job in jobs for scheme in job}
    later = [list(FlipGraph().run(problem, pool, np.random.default_rng([4, j]), Clock(None))) for j in range(8)]
    assert [found.scheme] in later  # a job that began where it was to end
