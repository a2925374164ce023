"""Near-border strategies: the rotation-invariant normal equations against the dense ones, and basins that count."""

import itertools

import numpy as np
import pytest

from stl_search import decompose, score
from stl_search.scheme import Scheme
from stl_search.search import strategy
from stl_search.search.border import Rotation, invariant_form, stages
from stl_search.search.mirror import turned
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock
from stl_search.testing import STRASSEN, StrategyContract

FRAMES = [Rotation(2, 1, 2), Rotation(3, 2, 1), Rotation(2, 0, 1), Rotation(2, 3, 0)]
LAM = 1e-2


class TestBorder(StrategyContract):
    strategy = "border"
    problem = Problem((2, 2, 3), 8)


class TestBorderOfASquareShape(StrategyContract):
    strategy = "border"
    problem = Problem((2, 2, 2), 5)
    jobs = 2


class TestPlunge(StrategyContract):
    strategy = "plunge"
    problem = Problem((2, 2, 2), 5)
    jobs = 2


class TestMirror(StrategyContract):
    strategy = "mirror"
    problem = Problem((2, 2, 3), 8)
    jobs = 2


def expanded(frame: Rotation, x: decompose.Floats) -> decompose.Batch:
    u, v, w = frame.factors(x)
    return u[None], v[None], w[None]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_rotation_is_what_its_factors_are(frame: Rotation) -> None:
    rng = np.random.default_rng(frame.rank)
    x = rng.standard_normal((frame.rank, frame.n**2))
    shape = (frame.n,) * 3
    whole = expanded(frame, x)
    assert frame.measure(x, LAM) == pytest.approx(decompose.objective(shape, whole, LAM)[0], rel=1e-10)
    scheme = decompose.scheme_of(shape, whole)
    found = invariant_form(scheme)
    assert found is not None
    assert (found[0].fixed, found[0].orbits) == (frame.fixed, frame.orbits)
    again = decompose.scheme_of(shape, expanded(*found))
    assert score.expected_error(again) == pytest.approx(score.expected_error(scheme), rel=1e-10)
    loose = Scheme(shape, "R", *(f + 0.01 * rng.standard_normal(f.shape) for f in scheme.factors))
    assert invariant_form(loose) is None


@pytest.mark.parametrize("frame", FRAMES)
def test_its_normal_equations_are_those_of_the_whole_scheme_projected(frame: Rotation) -> None:
    rng = np.random.default_rng(frame.rank)
    r, side = frame.rank, frame.n**2
    x = rng.standard_normal((r, side))
    whole = tuple(f[0] for f in expanded(frame, x))
    hessian, gradient = decompose.normal_equations((frame.n,) * 3, whole, LAM)
    # the linear map from x to (u, v, w), column by column
    columns = []
    for i in range(r * side):
        unit = np.zeros(r * side)
        unit[i] = 1.0
        columns.append(np.concatenate([f.ravel() for f in frame.factors(unit)]))
    into = np.array(columns).T
    own_hessian, own_gradient = frame.normal(x, LAM)
    assert own_hessian == pytest.approx(into.T @ hessian @ into, abs=1e-9 * np.abs(own_hessian).max())
    assert own_gradient == pytest.approx(into.T @ gradient, abs=1e-9 * np.abs(own_gradient).max())
    rho = 0.3
    assert frame.normal(x, LAM, rho)[1] == pytest.approx(own_gradient + rho * x.ravel(), rel=1e-12)


def test_orbits_are_left_out_whole() -> None:
    frame = Rotation(2, 1, 2)
    x = np.random.default_rng(0).standard_normal((7, 4))
    assert frame.rows(0) == [0]
    assert frame.rows(2) == [4, 5, 6]
    rest, y = frame.without(x, 2)
    assert (rest.fixed, rest.orbits, len(y)) == (1, 1, 4)
    rest, y = frame.without(x, 0)
    assert (rest.fixed, rest.orbits, len(y)) == (0, 2, 6)


def test_strassens_scheme_is_invariant_and_its_rank_is_met() -> None:
    found = invariant_form(Scheme((2, 2, 2), "R", *(f.astype(float) for f in STRASSEN.factors)))
    assert found is not None
    assert (found[0].fixed, found[0].orbits) == (1, 2)
    assert found[0].measure(found[1], 0.0) < 1e-20
    frame = Rotation(2, 1, 2)
    clock, rng = Clock(None), np.random.default_rng(1)
    best = min(frame.solved(rng.standard_normal((7, 4)), 1e-9, 1e-9, 100, 1e-2, 1.0, clock)[1] for _ in range(6))
    assert best < 1e-6  # <2,2,2> of rank 7 exists with rotation: F is lam kappa mkn alone


def test_stages_rise_to_the_asked_weight() -> None:
    found = stages(5e-6, 1e-9)
    assert found[0] == 1e-9
    assert found[-1] == 5e-6
    assert all(1 < b / a <= 10.01 for a, b in itertools.pairwise(found))
    assert stages(1e-3, 1.0) == [1e-3]


def test_shapes_are_turned_for_the_mirror() -> None:
    assert turned((2, 3, 3)) == (3, 2, 3)
    assert turned((3, 3, 2)) == (3, 2, 3)
    assert turned((4, 4, 4)) == (4, 4, 4)
    assert strategy.get("mirror").weight(Problem((2, 3, 4), 12), Pool(Problem((2, 3, 4), 12))) == 0


def test_a_border_basin_is_found_from_nothing() -> None:
    """Bini's <2,2,3> of rank 10: random starts of the plain objective end at E = 1/12 or above."""
    problem = Problem((2, 2, 3), 10)
    pool = Pool(problem)
    for job in range(3):
        for scheme in strategy.get("border").run(problem, pool, np.random.default_rng([0, job]), Clock(None)):
            pool.add(Entry(cost(problem, scheme), scheme.id, scheme, "border"))
    best = pool.cell((2, 2, 3), 10)[0]
    assert best.cost < 0.0025
    assert score.max_coefficient(best.scheme) > 1.5  # large coefficients, held back by the noise term
