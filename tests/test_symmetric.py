"""Representatives: their normal equations against those of the whole scheme; strategy ``symmetric``."""

import itertools

import numpy as np
import pytest

from stl_search import decompose
from stl_search.errors import UsageError
from stl_search.scheme import Shape
from stl_search.search.invariant import recognised
from stl_search.search.orbit import choose_orbits
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.representatives import Representatives
from stl_search.search.strategy import Clock, get
from stl_search.search.symmetry import action, orbit_types, span
from stl_search.testing import StrategyContract

LAM = 0.3
CASES: list[tuple[str, Shape, int]] = [
    ("cyclic", (3, 3, 3), 20),
    ("transpose:1", (3, 2, 3), 14),
    ("cyclic+transpose:1", (2, 2, 2), 7),
    ("S3", (3, 2, 2), 9),
    ("cyclic+C4", (2, 2, 2), 7),
    ("cyclic+C2 x C2", (3, 3, 3), 22),
    ("C2:1", (2, 3, 2), 5),
]


class TestSymmetric(StrategyContract):
    strategy = "symmetric"
    problem = Problem((2, 2, 3), 8)
    jobs = 2


class TestSymmetricOfASquareShape(StrategyContract):
    strategy = "symmetric"
    problem = Problem((2, 2, 2), 5)
    jobs = 2


def drawn(name: str, shape: Shape, rank: int, seed: int = 0) -> tuple[Representatives, decompose.Floats]:
    group, rng = action(name, shape), np.random.default_rng(seed)
    kinds = choose_orbits(group, rank, rng)
    assert kinds is not None
    frame = Representatives(group.shape, kinds[::-1])  # any order is put right
    return frame, rng.standard_normal(frame.size)


@pytest.mark.parametrize(("name", "shape", "rank"), CASES)
def test_normal_equations_are_those_of_the_whole_scheme_projected(name: str, shape: Shape, rank: int) -> None:
    frame, x = drawn(name, shape, rank)
    inside = span(action(name, shape), list(frame.kinds))
    u, v, w = frame.factors(x)
    assert frame.rank == rank == len(u)
    np.testing.assert_allclose(np.concatenate([u.ravel(), v.ravel(), w.ravel()]), inside @ x, atol=1e-12)
    whole, towards = decompose.normal_equations(shape, (u, v, w), LAM)
    hessian, gradient = frame.normal(x, LAM, 0.25)
    want = inside.T @ (inside.T @ whole).T
    np.testing.assert_allclose(hessian, want, atol=1e-10 * np.abs(want).max())
    np.testing.assert_allclose(gradient, inside.T @ towards + 0.25 * x, atol=1e-10 * np.abs(want).max())
    assert frame.measure(x, LAM) == pytest.approx(decompose.objective(shape, frame.batch(x), LAM)[0], rel=1e-9)


@pytest.mark.parametrize(("name", "shape", "rank"), [case for case in CASES if case[0] != "S3"])  # parallel terms
def test_orbits_are_the_same_scheme(name: str, shape: Shape, rank: int) -> None:
    frame, x = drawn(name, shape, rank, 1)
    orbits = frame.orbits(x)
    assert [kind.size for kind in orbits.kinds] == [kind.size for kind in frame.kinds]
    np.testing.assert_array_equal(np.concatenate(orbits.points), x)
    assert recognised(action(name, shape), decompose.scheme_of(shape, frame.batch(x))) is not None


def test_the_gradient_is_the_derivative_of_what_is_measured() -> None:
    frame, x = drawn("cyclic+transpose:1", (2, 2, 2), 7)
    _, gradient = frame.normal(x, LAM)
    for i in range(frame.size):
        step = np.zeros(frame.size)
        step[i] = 1e-6
        slope = (frame.measure(x + step, LAM) - frame.measure(x - step, LAM)) / 2e-6
        assert 2 * gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-5 * np.abs(gradient).max())


def test_strassens_rank_is_met_under_s3() -> None:
    group = action("cyclic+transpose:1", (2, 2, 2))
    rng = np.random.default_rng(0)
    values = []
    for _ in range(20):
        kinds = choose_orbits(group, 7, rng)
        assert kinds is not None
        frame = Representatives(group.shape, kinds)
        values.append(frame.solved(rng.standard_normal(frame.size), 0.0, 200, ridge=lambda i: max(0, 1e-2 - 1e-4 * i)))
    assert min(value for _, value in values) < 1e-20


def test_finds_have_the_symmetry_that_was_asked_for() -> None:
    problem = Problem((3, 3, 3), 20, symmetry="cyclic+C2", seed=3)
    group = action("cyclic+C2", (3, 3, 3))
    pool = Pool(problem)
    for j in range(2):
        for scheme in get("symmetric").run(problem, pool, np.random.default_rng((3, j)), Clock(None)):
            assert recognised(group, scheme) is not None
            assert cost(problem, scheme) < 1 - 20 / 27
            pool.add(Entry(cost(problem, scheme), scheme.id, scheme, "symmetric"))
    assert pool.cell((3, 3, 3), 20)


def test_a_symmetry_that_does_not_fit_is_refused() -> None:
    problem = Problem((2, 2, 3), 8, symmetry="cyclic")
    with pytest.raises(UsageError, match="square"):
        get("symmetric").weight(problem, Pool(problem))


def test_representations_are_counted_from_zero() -> None:
    """C2 on four dimensions: one sign, two, three; all different groups of maps, and no fifth."""
    sizes = [tuple(t.basis.shape[1] for t in orbit_types(action(f"C2:{i}", (4, 4, 4)))) for i in range(3)]
    assert sizes[0] != sizes[1]
    first, second = (action(f"cyclic+C2:{i}", (4, 4, 4)) for i in (0, 1))
    assert first.order == second.order == 6
    keys = [{e.key() for e in group.elements} for group in (first, second)]
    assert keys[0] != keys[1]
    with pytest.raises(UsageError, match="only 4 faithful real representations of dimension 4"):
        action("C2:4", (4, 4, 4))
    for name in ("C2:x", "C2:-1"):
        with pytest.raises(UsageError, match="number"):
            action(name, (4, 4, 4))
    for a, b in itertools.product(first.elements, repeat=2):
        assert (a @ b).key() in keys[0]
