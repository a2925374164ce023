"""Weighted placements in R[G]: each step against the minimisation that it solves, sums of products against A B."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import decompose, groups, score
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme
from stl_search.search.group_algebra import BilinearAlgorithm, group_algorithm, least_squares_scheme
from stl_search.search.group_placements import (
    Placement,
    _weights,
    fit_weights,
    independent_products,
    placed_scheme,
    placement_of,
)

HOSTS = ["C4", "C2^3", "S3", "Q8", "C5"]
LAM = 1e-3


def random_placement(name: str, shape: tuple[int, int, int], seed: int) -> tuple[BilinearAlgorithm, Placement]:
    group, rng = groups.get(name), np.random.default_rng(seed)
    m, k, n = shape
    alpha, beta = (rng.standard_normal((x, group.order)) for x in (m * k, k * n))
    return group_algorithm(group), Placement(group, shape, alpha, beta)


def objective(scheme: Scheme, lam: float) -> float:
    return score.expected_error(scheme) + lam * score.noise_gain(scheme)


@pytest.mark.parametrize("name", HOSTS)
def test_unit_weights_are_the_maps(name: str) -> None:
    group = groups.get(name)
    maps = groups.anneal_maps(group, (2, 3, 2), np.random.default_rng(0), 100)
    placement, algorithm = placement_of(maps), group_algorithm(group)
    assert (placement.alpha.sum(axis=1) == 1).all()
    assert (placement.beta.argmax(axis=1) == maps.b.ravel()).all()
    found = score.expected_error(placed_scheme(algorithm, placement))
    assert found == pytest.approx(score.expected_error(least_squares_scheme(algorithm, maps)), abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(HOSTS), st.integers(0, 2**32), st.booleans(), st.sampled_from([0.0, LAM]))
def test_fitting_never_makes_it_worse(name: str, seed: int, single: bool, lam: float) -> None:
    algorithm, start = random_placement(name, (2, 2, 3), seed)
    if single:
        maps = groups.anneal_maps(start.group, (2, 2, 3), np.random.default_rng(seed), 20)
        start = placement_of(maps)
    values = [objective(placed_scheme(algorithm, start, lam), lam)]
    for _ in range(4):
        start = fit_weights(algorithm, start, lam, 1, single)
        values.append(objective(placed_scheme(algorithm, start, lam), lam))
    assert all(after <= before + 1e-8 for before, after in pairwise(values))
    if single:
        assert ((start.alpha != 0).sum(axis=1) <= 1).all()
        assert ((start.beta != 0).sum(axis=1) <= 1).all()


@pytest.mark.parametrize("name", ["C4", "S3", "Q8"])
@pytest.mark.parametrize("single", [False, True])
def test_a_step_is_the_minimum_over_every_choice(name: str, single: bool) -> None:
    shape = (2, 2, 2)
    algorithm, start = random_placement(name, shape, 3)
    scheme = placed_scheme(algorithm, start, LAM)
    u, v, w = (f.reshape(scheme.rank, -1) for f in scheme.as_float())
    target = (w.reshape(-1, 2, 2) @ v.reshape(-1, 2, 2).transpose(0, 2, 1)).reshape(-1, 4)
    alpha = _weights(algorithm.u, v, w, target, LAM, single)

    def value(rows: np.ndarray) -> float:
        return float(decompose.objective(shape, ((algorithm.u @ rows.T)[None], v[None], w[None]), LAM)[0])

    least = value(alpha)
    assert single or least <= value(start.alpha)
    rng = np.random.default_rng(5)
    for entry in range(4):
        for g in range(start.group.order):
            for step in (-0.3, 0.01, 0.5, *rng.standard_normal(2)):
                other = alpha.copy()
                if single:  # any other element, any other weight
                    other[entry] = 0.0
                other[entry, g] += step
                assert value(other) >= least - 1e-9


def test_full_weights_in_an_elementary_abelian_group_are_every_scheme() -> None:
    algorithm = group_algorithm(groups.get("C2^3"))
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((8, 6)), rng.standard_normal((8, 6))
    placement = Placement(
        groups.get("C2^3"), (2, 3, 2), np.linalg.solve(algorithm.u, u).T, np.linalg.solve(algorithm.v, v).T
    )
    scheme = placed_scheme(algorithm, placement)
    assert np.allclose(scheme.as_float()[0].reshape(8, 6), u)
    assert np.allclose(scheme.as_float()[1].reshape(8, 6), v)


def test_full_weights_come_close_to_an_exact_scheme_where_they_are_free() -> None:
    algorithm, start = random_placement("C2^3", (2, 2, 2), 1)  # 8 products, any encoders; one lost would cost 1/8
    assert score.expected_error(placed_scheme(algorithm, fit_weights(algorithm, start, 0.0, 300))) < 1e-3


def test_rounding_noise_is_no_product() -> None:
    # these maps leave some products of SD16 zero but for rounding, which once became products of their own
    group = groups.get("SD16")
    algorithm = group_algorithm(group)
    maps = groups.anneal_maps(group, (4, 4, 4), np.random.default_rng(0), 2000)
    start = placement_of(maps)
    sizes = np.linalg.norm(algorithm.u @ start.alpha.T, axis=1) * np.linalg.norm(algorithm.v @ start.beta.T, axis=1)
    scheme = placed_scheme(algorithm, start, LAM)
    assert scheme.rank == (sizes > 1e-9).sum()
    fitted = placed_scheme(algorithm, fit_weights(algorithm, start, LAM, 10, single=True), LAM)
    assert objective(fitted, LAM) <= objective(scheme, LAM) + 1e-9


def check_product(scheme: Scheme) -> None:
    m, k, n = scheme.shape
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
    u, v, w = scheme.as_float()
    products = np.einsum("qij,ij->q", u, a) * np.einsum("qjl,jl->q", v, b)
    assert np.allclose(np.einsum("q,qil->il", products, w), a @ b, atol=1e-12)


class TestIndependentProducts:
    """Simultaneous triples as one block matrix product."""

    @pytest.mark.parametrize("grid", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
    def test_two_products_along_each_side(self, grid: tuple[int, int, int]) -> None:
        group, triples = groups.puzzle_triples([(3, 1, 2), (1, 2, 3)], 3)
        algorithm = group_algorithm(group)
        scheme = independent_products(algorithm, group, triples, grid)
        assert scheme.shape == tuple(2 * x for x in grid)
        assert scheme.rank == algorithm.rank == 40
        check_product(scheme)

    def test_a_grid_of_all_three_sides(self) -> None:
        group = groups.get("C2^4")
        found = groups.find_stpp(group, (1, 1, 1), 4)
        assert found is not None
        scheme = independent_products(group_algorithm(group), group, found, (2, 1, 2))
        assert scheme.name == "2x1x2_r16_R"
        check_product(scheme)

    def test_blocks_of_different_sizes(self) -> None:
        rows = [(3, 1, 2, 3), (1, 2, 3, 3)]
        group, triples = groups.puzzle_triples(rows, 3)
        sizes = [tuple(map(len, x)) for x in triples]
        assert sizes == [(4, 2, 2), (4, 2, 2)]
        group, triples = groups.puzzle_triples([(3, 1, 2, 3), (1, 2, 3, 1)], 3)
        assert [tuple(map(len, x)) for x in triples] == [(4, 2, 2), (2, 4, 2)]
        with pytest.raises(UsageError, match=r"do not fit a grid of \(1, 2, 1\)"):
            independent_products(group_algorithm(group), group, triples, (1, 2, 1))

    def test_what_makes_no_sense_is_refused(self) -> None:
        group = groups.get("C3")
        algorithm = group_algorithm(group)
        same = (((0,), (0,), (0,)),) * 2
        with pytest.raises(UsageError, match="simultaneous triple product property"):
            independent_products(algorithm, group, same, (1, 2, 1))
        with pytest.raises(UsageError, match="one product for each of 2 triples"):
            independent_products(algorithm, group, same, (2, 2, 1))


def test_a_placement_has_a_row_for_each_entry() -> None:
    with pytest.raises(StlError, match=r"beta has shape \(3, 4\), must be \(4, 4\)"):
        Placement(groups.get("C4"), (2, 2, 2), np.zeros((4, 4)), np.zeros((3, 4)))
