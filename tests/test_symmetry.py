"""Group actions on schemes: they keep the tensor, form groups, and the span holds exactly the invariant schemes."""

import numpy as np
import pytest

from stl_search import score
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme, Shape, matmul_tensor
from stl_search.search.orbit import choose_orbits, solve_invariant
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, suitable
from stl_search.search.symmetry import Action, Element, action, orbit_types, span
from stl_search.testing import StrategyContract
from stl_search.transform import classical, cyclic, transpose
from stl_search.verify import verify

CASES = [
    ("cyclic", (2, 2, 2), 3),
    ("cyclic", (3, 3, 3), 3),
    ("transpose", (2, 3, 2), 2),
    ("transpose:1", (3, 2, 3), 2),
    ("cyclic+transpose", (2, 2, 2), 6),
    ("cyclic+transpose:1", (2, 2, 2), 6),
    ("C2", (2, 3, 4), 2),
    ("S3", (2, 2, 2), 6),
    ("cyclic+S3", (2, 2, 2), 18),
    ("C2 x C2", (2, 3, 2), 4),
]


def dense(factors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """(r, I, J, K): the terms one by one."""
    return np.einsum("qi,qj,qk->qijk", *(f.reshape(len(f), -1) for f in factors))


def moved(element: Element, factors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    """A scheme's flat factors after a symmetry."""
    return tuple(factors[s] @ m.T for s, m in zip(element.slots, element.maps, strict=True))


def same_terms(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two lists of terms are permutations of each other."""
    left = list(two)
    for term in one:
        index = next((i for i, t in enumerate(left) if np.abs(t - term).max() < 1e-9), None)
        if index is None:
            return False
        del left[index]
    return not left


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]} {c[1]}")
def group(request: pytest.FixtureRequest) -> Action:
    name, shape, _ = request.param
    return action(name, shape)


@pytest.mark.parametrize(("name", "shape", "order"), CASES)
def test_orders(name: str, shape: Shape, order: int) -> None:
    assert action(name, shape).order == order


def test_every_element_keeps_the_matmul_tensor(group: Action) -> None:
    factors = classical(group.shape).flat()
    for element in group.elements:
        assert dense(moved(element, factors)).sum(axis=0) == pytest.approx(matmul_tensor(group.shape), abs=1e-9)


def test_the_table_is_that_of_a_group(group: Action) -> None:
    n = group.order
    table = np.array(group.table)
    assert (table[0] == np.arange(n)).all()
    assert (np.sort(table, axis=0) == np.arange(n)[:, None]).all()
    assert (np.sort(table, axis=1) == np.arange(n)).all()
    a, b, c = np.ogrid[:n, :n, :n]
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    factors = classical(group.shape).flat()
    for g in range(n):
        for h in range(n):
            both = moved(group.elements[g], moved(group.elements[h], factors))
            assert dense(both) == pytest.approx(dense(moved(group.elements[table[g, h]], factors)), abs=1e-9)


def test_cyclic_and_transpose_are_those_of_transform() -> None:
    rng = np.random.default_rng(0)
    s = Scheme((2, 2, 2), "R", *(rng.standard_normal((3, 4)) for _ in range(3)))
    rotations = [dense(moved(e, s.flat())) for e in action("cyclic", (2, 2, 2)).elements[1:]]
    assert any(np.abs(r - dense(cyclic(s).flat())).max() < 1e-12 for r in rotations)
    t = Scheme((2, 3, 2), "R", *(rng.standard_normal((3, i)) for i in (6, 6, 4)))
    element = action("transpose", (2, 3, 2)).elements[1]
    assert dense(moved(element, t.flat())) == pytest.approx(dense(transpose(t).flat()))


def test_whatever_lies_in_the_span_is_invariant(group: Action) -> None:
    rng = np.random.default_rng(1)
    m, k, n = group.shape
    for kind in orbit_types(group):
        assert kind.size * len(kind.stabiliser) == group.order
    for _ in range(3):
        kinds = choose_orbits(group, 2 * group.order + 1, rng)
        if kinds is None:  # no orbit of one term: nothing to test at this rank
            kinds = [orbit_types(group)[0]]
        inside = span(group, kinds)
        rank = sum(kind.size for kind in kinds)
        x = inside @ rng.standard_normal(inside.shape[1])
        parts = np.split(x, [rank * m * k, rank * (m * k + k * n)])
        factors = tuple(p.reshape(rank, -1) for p in parts)
        terms = dense(factors)
        assert np.abs(terms).max() > 0
        for element in group.elements:
            assert same_terms(dense(moved(element, factors)), terms)


def test_subgroups_of_s3_up_to_conjugacy() -> None:
    assert [len(h) for h in action("S3", (2, 2, 2)).subgroups()] == [1, 2, 3, 6]


def test_an_invariant_solution_stays_invariant() -> None:
    group = action("cyclic", (2, 2, 2))
    rng = np.random.default_rng(2)
    kinds = [k for k in orbit_types(group) if k.size == 3] * 2 + [k for k in orbit_types(group) if k.size == 1]
    solved = [solve_invariant((2, 2, 2), group, kinds, 0.0, rng, Clock(None)) for _ in range(6)]
    batch, f = min(solved, key=lambda x: x[1])
    assert f < 1e-18
    factors = tuple(x[0] for x in batch)
    assert same_terms(dense(moved(group.elements[1], factors)), dense(factors))
    assert score.expected_error(Scheme((2, 2, 2), "R", *factors)) < 1e-18


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("cyclic", (2, 2, 3), "needs a square shape"),
        ("transpose", (2, 2, 3), "needs a shape M,K,M"),
        ("transpose:x", (2, 2, 2), "number P of minus signs"),
        ("nonsense", (2, 2, 2), "no group is called"),
        ("A5", (2, 2, 2), "no faithful real representation of dimension 2"),
        ("cyclic+S4", (3, 3, 3), None),
        ("cyclic+A5", (3, 3, 3), "more than 96"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, shape: Shape, words: str | None) -> None:
    if words is None:
        assert action(name, shape).order == 72
    else:
        with pytest.raises(StlError, match=words):
            action(name, shape)


def test_only_symmetric_strategies_take_part_when_a_symmetry_is_asked_for() -> None:
    problem = Problem((2, 2, 2), 7, ring="ZT", symmetry="cyclic")
    assert [s.name for s, _ in suitable(problem, Pool(problem))] == ["orbit"]
    with pytest.raises(UsageError, match="no strategy of numeric applies to <2,2,2> over ZT with symmetry cyclic"):
        suitable(Problem((2, 2, 2), 7, ring="ZT", symmetry="cyclic", strategies=("numeric",)), Pool(problem))


@pytest.mark.parametrize(("rank", "ring"), [(61, "ZT"), (64, "Q"), (61, "Z2")])
def test_a_rank_that_the_simplex_reaches_needs_no_search(rank: int, ring: str) -> None:
    problem = Problem((4, 4, 4), rank, ring=ring, strategies=("orbit",))
    chosen = suitable(problem, Pool(problem))[0][0]
    (found,) = chosen.run(problem, Pool(problem), np.random.default_rng(0), Clock(None))
    assert found.rank == 61
    assert ring in verify(found).rings


class TestOrbit(StrategyContract):
    strategy = "orbit"
    problem = Problem((2, 2, 2), 5, symmetry="cyclic")


class TestOrbitExact(StrategyContract):
    strategy = "orbit"
    problem = Problem((2, 2, 2), 7, ring="ZT", symmetry="cyclic+transpose:1")


class TestOrbitThroughARepresentation(StrategyContract):
    strategy = "orbit"
    problem = Problem((2, 2, 2), 7, ring="Q", symmetry="cyclic+S3")
