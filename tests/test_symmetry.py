"""Group actions on schemes: they keep the tensor, form groups, and the span holds exactly the invariant schemes."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from stl_search import decompose, score
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme, Shape, matmul_tensor
from stl_search.search.invariant import Orbits, expanded, frame, recognised
from stl_search.search.orbit import choose_orbits, factored, randomly, reordered, solve_invariant, walked
from stl_search.search.problem import Entry, Pool, Problem, cost, ranks_near
from stl_search.search.strategy import Clock, suitable
from stl_search.search.symmetry import Action, Element, action, orbit_types, span
from stl_search.search.worker import polished
from stl_search.testing import StrategyContract
from stl_search.transform import classical, cyclic, kron, transpose
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


def test_stabilisers_may_need_three_generators() -> None:
    group = action("C2 x C2+transpose", (2, 2, 2))
    assert group.order == 4  # C2 x C2 acts through (-1, -1) as 1: two generators
    group = action("C2 x C2 x C2+transpose", (4, 4, 4))
    assert group.group.is_abelian
    assert set(group.group.element_orders.tolist()) == {1, 2}
    assert len(group.subgroups()) == 67  # of C2^4: 1 + 15 + 35 + 15 + 1
    assert {len(kind.stabiliser) for kind in orbit_types(group)} == {1, 2, 4, 8, 16}


def test_a_generic_representative_of_each_kind_has_just_its_stabiliser(group: Action) -> None:
    rng = np.random.default_rng(3)
    for kind in orbit_types(group):
        whole = Orbits((kind,), (rng.standard_normal(kind.basis.shape[1]),))
        terms = dense(tuple(f[0] for f in expanded([whole])))
        fixing = [g for g, e in enumerate(group.elements) if _fixes(e, whole)]
        assert tuple(fixing) == kind.stabiliser
        assert all(np.abs(a - b).max() > 1e-6 for a, b in itertools.combinations(terms, 2))


def _fixes(element: Element, orbit: Orbits) -> bool:
    (kind,), (point,) = orbit.kinds, orbit.points
    parts = np.split(kind.basis @ point, np.cumsum([len(kind.images[0][0]), len(kind.images[1][0])]))
    one = tuple(p[None] for p in parts)
    return bool(np.abs(dense(moved(element, one)) - dense(one)).max() < 1e-9)


@pytest.mark.parametrize(("name", "shape"), [(c[0], c[1]) for c in CASES if c[2] <= 6])
def test_every_way_to_fix_a_term_belongs_to_a_kind(name: str, shape: Shape) -> None:
    """Elements, and the signs by which they multiply the factors of a term, against brute force over both."""
    group = action(name, shape)
    patterns = [s for s in itertools.product((1, -1), repeat=3) if np.prod(s) == 1]

    def gauged(h: int, signs: tuple[int, ...]) -> tuple[int, ...]:
        slots = group.elements[h].slots
        return min(tuple(signs[i] * d[i] * d[slots[i]] for i in range(3)) for d in patterns)

    wanted = {(h, gauged(h, s)) for h in range(group.order) for s in patterns if _fixed_dimensions(group, h, s)}
    found = set()
    for kind in orbit_types(group):
        point = np.random.default_rng(9).standard_normal(kind.basis.shape[1])
        factors = tuple(f[0] for f in expanded([Orbits((kind,), (point,))]))
        for h, element in enumerate(group.elements):
            after = moved(element, factors)
            for q in range(kind.size):
                if np.abs(dense(after)[q] - dense(factors)[q]).max() < 1e-9:
                    signs = tuple(int(np.sign(x[q] @ y[q])) for x, y in zip(factors, after, strict=True))
                    found.add((h, gauged(h, signs)))
    assert found == wanted


def _fixed_dimensions(group: Action, h: int, signs: tuple[int, ...]) -> bool:
    """Whether some (u, v, w) without a zero factor is multiplied by these signs: by the null space of one matrix."""
    sizes = [len(m) for m in group.elements[h].maps]
    ends = np.cumsum([0, *sizes])
    matrix = np.zeros((ends[-1], ends[-1]))
    for i, (slot, m) in enumerate(zip(group.elements[h].slots, group.elements[h].maps, strict=True)):
        matrix[ends[i] : ends[i + 1], ends[slot] : ends[slot + 1]] += m
        matrix[ends[i] : ends[i + 1], ends[i] : ends[i + 1]] -= signs[i] * np.eye(sizes[i])
    basis = scipy.linalg.null_space(matrix)
    return all(np.abs(basis[a:b]).max(initial=0.0) > 1e-9 for a, b in itertools.pairwise(ends))


def test_an_invariant_scheme_is_recognised_whatever_the_order_and_signs_of_its_terms(group: Action) -> None:
    rng = np.random.default_rng(4)
    kinds = choose_orbits(group, 2 * group.order, rng)
    assert kinds is not None
    whole = Orbits(tuple(kinds), tuple(rng.standard_normal(kind.basis.shape[1]) for kind in kinds))
    factors = tuple(f[0][order] for order in [rng.permutation(whole.rank)] for f in expanded([whole]))
    signs = rng.choice([-1.0, 1.0], size=(2, whole.rank, 1))
    u, v, w = factors[0] * signs[0], 2 * factors[1] * signs[1], 0.5 * factors[2] * signs[0] * signs[1]
    found = recognised(group, Scheme(group.shape, "R", u, v, w))
    assert found is not None
    assert found.kinds == whole.kinds
    assert same_terms(dense(tuple(f[0] for f in expanded([found]))), dense((u, v, w)))
    u = u.copy()
    u[0, 0] += 0.1
    assert recognised(group, Scheme(group.shape, "R", u, v, w)) is None


@pytest.mark.parametrize("name", ["cyclic", "transpose:1", "cyclic+transpose"])
def test_refining_inside_the_symmetry_stays_there_and_descends(name: str) -> None:
    group = action(name, (2, 2, 2))
    starts = randomly(group, 6, np.random.default_rng(5))
    assert starts is not None
    inside, batch, lam = frame(group, starts[0].kinds), expanded(starts), 1e-3
    assert (inside.T @ inside).toarray() == pytest.approx(np.eye(inside.shape[1]))
    refined, f = decompose.refine((2, 2, 2), batch, lam, 60, span=inside)
    assert f == pytest.approx(decompose.objective((2, 2, 2), refined, lam), abs=1e-9)
    assert (f < decompose.objective((2, 2, 2), batch, lam)).all()
    for i in range(3):
        assert recognised(group, decompose.scheme_of((2, 2, 2), refined, i)) is not None


@pytest.mark.parametrize("name", ["cyclic", "transpose:2", "cyclic+transpose:2"])
def test_kronecker_products_of_invariant_schemes_are_invariant(name: str) -> None:
    rng = np.random.default_rng(6)
    group = action(name, (4, 4, 4))
    pairs = [f for f in factored(name, (4, 4, 4)) if f[0].shape == (2, 2, 2)]
    assert pairs
    for one, two, orders in pairs:
        parts = []
        for part in (one, two):
            starts = randomly(part, 3, rng)
            assert starts is not None
            parts.append(decompose.scheme_of(part.shape, expanded(starts)))
        found = recognised(group, reordered(kron(*parts), orders))
        assert found is not None
        assert found.rank == 9
    assert not factored("cyclic+S3", (4, 4, 4))
    assert not factored("cyclic", (3, 3, 3))


def test_walks_change_orbits_and_keep_the_symmetry() -> None:
    problem = Problem((3, 3, 3), 12, symmetry="cyclic")
    group, pool, rng = action("cyclic", (3, 3, 3)), Pool(problem), np.random.default_rng(7)
    starts = randomly(group, 12, rng)
    assert starts is not None
    scheme = decompose.scheme_of((3, 3, 3), expanded(starts))
    pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
    ranks = set()
    for _ in range(12):
        made = walked(problem, group, pool, rng)
        assert made is not None
        assert made[0].rank in ranks_near(problem)
        ranks.add(made[0].rank)
        assert recognised(group, decompose.scheme_of((3, 3, 3), expanded(made))) is not None
    assert len(ranks) > 2


def test_what_discover_polishes_keeps_its_symmetry() -> None:
    problem = Problem((3, 3, 3), 10, symmetry="cyclic")
    group = action("cyclic", (3, 3, 3))
    starts = randomly(group, 10, np.random.default_rng(8))
    assert starts is not None
    scheme = decompose.scheme_of((3, 3, 3), expanded(starts))
    better = polished(problem, scheme)
    assert cost(problem, better) < cost(problem, scheme)
    assert recognised(group, better) is not None


def test_an_invariant_solution_stays_invariant() -> None:
    group = action("cyclic", (2, 2, 2))
    rng = np.random.default_rng(2)
    kinds = [k for k in orbit_types(group) if k.size == 3] * 2 + [k for k in orbit_types(group) if k.size == 1]
    solved = [solve_invariant(group.shape, kinds, rng, Clock(None)) for _ in range(6)]
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
    assert [s.name for s, _ in suitable(problem, Pool(problem))] == ["flipgraph", "orbit"]
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
