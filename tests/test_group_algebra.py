"""Group algebra products as schemes: blocks against structure constants, decoders against the collision formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import groups, score
from stl_search.errors import SchemeError
from stl_search.groups import FreeMaps, Group, Maps
from stl_search.scheme import Scheme, matmul_tensor
from stl_search.search.group_algebra import (
    chosen_blocks,
    collision_scheme,
    direct_algorithm,
    division_algorithm,
    group_algorithm,
    least_squares_decoder,
    least_squares_scheme,
    matrix_product,
    real_rank,
    reduced,
)
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.testing import StrategyContract
from stl_search.transform import classical, kron
from stl_search.verify import verify

HOSTS = ["C5", "C2^3", "S3", "Q8", "D4", "Dic3", "A4", "21.1"]


def structure(group: Group) -> np.ndarray:
    """(n, n, n): e_g e_h = e_gh."""
    n = group.order
    tensor = np.zeros((n, n, n))
    for g in range(n):
        for h in range(n):
            tensor[g, h, group.multiply(g, h)] = 1
    return tensor


def random_maps(group: Group, seed: int, free: bool) -> FreeMaps:
    rng = np.random.default_rng(seed)
    m, k, n = (int(x) for x in rng.integers(1, 5, size=3))
    if free:
        return FreeMaps(group, rng.integers(group.order, size=(m, k)), rng.integers(group.order, size=(k, n)))
    return Maps(group, *(rng.integers(group.order, size=x).tolist() for x in (m, k, n)))


@pytest.mark.parametrize(("algebra", "rank"), [("R", 1), ("C", 3), ("H", 8)])
def test_division_algebras_take_the_least_number_of_products(algebra: str, rank: int) -> None:
    algorithm = division_algorithm(algebra)
    assert algorithm.rank == rank
    assert np.array_equal(algorithm.tensor(), groups.division_algebra(algebra))  # exactly: small dyadic numbers
    assert np.array_equal(algorithm.u, np.rint(algorithm.u))


def test_quaternions_multiply_as_hamilton_carved_it() -> None:
    # i^2 = j^2 = k^2 = ijk = -1, without the structure constants of the library
    def times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        a = division_algorithm("H")
        return ((a.u @ x) * (a.v @ y)) @ a.w

    one, i, j, k = np.eye(4)
    for unit in (i, j, k):
        assert np.array_equal(times(unit, unit), -one)
    assert np.array_equal(times(times(i, j), k), -one)
    assert np.array_equal(times(j, i), -times(i, j))


@pytest.mark.parametrize("name", [*HOSTS, "SL(2,3)", "S4", "AGL(1,5)"])
def test_the_algorithm_multiplies_in_the_group_algebra(name: str) -> None:
    group = groups.get(name)
    algorithm = group_algorithm(group)
    assert algorithm.rank == real_rank(group) == len(algorithm.blocks)
    assert np.abs(algorithm.tensor() - structure(group)).max() < 1e-13
    parts = [group_algorithm(group, blocks=[b]) for b in range(len(groups.wedderburn(group)))]
    assert sum(p.rank for p in parts) == algorithm.rank
    assert np.abs(sum(p.tensor() for p in parts) - structure(group)).max() < 1e-13


def test_the_algorithm_by_definition() -> None:
    group = groups.get("S3")
    assert np.array_equal(direct_algorithm(group).tensor(), structure(group))
    assert direct_algorithm(group).rank == 36


@pytest.mark.parametrize(
    ("name", "rank"),
    [("S3", 1 + 1 + 7), ("C2^4", 16), ("C3", 1 + 3), ("Q8", 4 + 8), ("D4", 4 + 7), ("21.1", 1 + 3 + 81)],
)
def test_real_ranks_of_small_groups(name: str, rank: int) -> None:
    group = groups.get(name)
    assert real_rank(group) == rank  # 21.1 = C7 : C3 has blocks R + C + M3(C), <3,3,3> classical here
    assert real_rank(group, lambda size: size**3) >= rank


def test_walsh_hadamard_encoders_are_signs() -> None:
    algorithm = group_algorithm(groups.get("C2^4"))
    assert algorithm.rank == 16
    assert np.isin(algorithm.u, (-1, 1)).all()
    assert np.isin(algorithm.v, (-1, 1)).all()


def test_matrix_blocks_come_from_the_pool_when_it_is_better() -> None:
    problem = Problem((3, 3, 3), 23)
    pool = Pool(problem)
    rng = np.random.default_rng(0)

    def enter(scheme: Scheme) -> None:
        pool.add(Entry(cost(problem, scheme), scheme.id, scheme))

    strassen = matrix_product(2)
    assert strassen.rank == 7
    assert verify(strassen).rings
    assert matrix_product(4, pool).rank == 64
    enter(kron(strassen, strassen))
    enter(Scheme((4, 4, 4), "R", *(rng.standard_normal((40, 4, 4)) for _ in range(3))))  # fewer, but not exact
    assert matrix_product(4, pool).rank == 49
    assert matrix_product(2, pool) == strassen
    group = groups.get("A4")  # C3 on top of the Klein group: R + C + M3(R)
    assert group_algorithm(group, lambda d: matrix_product(d, pool)).rank == 1 + 3 + 27


class TestExactTripleProduct:
    """Schemes from triples with the property are exact up to the rounding of the Fourier transform."""

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("S3", (2, 2, 2)),
            ("C8", (2, 2, 2)),
            ("Q8", (2, 2, 2)),
            ("D4", (1, 2, 3)),
            ("A4", (2, 2, 3)),
            ("Dic3", (3, 2, 2)),
            ("21.1", (3, 3, 3)),
            ("SL(2,3)", (3, 3, 3)),
        ],
    )
    def test_schemes_verify(self, name: str, shape: tuple[int, int, int]) -> None:
        group = groups.get(name)
        triple = groups.find_tpp(group, shape)
        assert triple is not None
        maps = Maps(group, *triple)
        assert maps.shape == shape
        algorithm = group_algorithm(group)
        for scheme in (collision_scheme(algorithm, maps), least_squares_scheme(algorithm, maps)):
            assert scheme.shape == shape
            assert scheme.rank <= algorithm.rank
            assert score.expected_error(scheme) < 1e-20
            assert score.expected_error(reduced(scheme)) < 1e-20

    def test_2x2_matrices_in_s3_take_nine_products(self) -> None:
        group = groups.symmetric(3)
        triple = groups.find_tpp(group, (2, 2, 2))
        assert triple is not None
        scheme = reduced(collision_scheme(group_algorithm(group), Maps(group, *triple)))
        assert scheme.rank == 9
        assert score.expected_error(scheme) < 1e-20


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(HOSTS), st.integers(0, 10**6), st.booleans())
def test_the_collision_formula_is_the_error_of_the_scheme(name: str, seed: int, free: bool) -> None:
    group = groups.get(name)
    maps = random_maps(group, seed, free)
    expected = groups.collision_error(maps)
    algorithm = group_algorithm(group)
    scheme = collision_scheme(algorithm, maps)
    assert score.expected_error(scheme) == pytest.approx(expected, abs=1e-12)
    # no other reading of the coefficients of the product does better: the gradient in the decoder vanishes
    m, k, n = maps.shape
    places = np.eye(group.order)
    u, v = algorithm.u[:, maps.a.ravel()], algorithm.v[:, maps.b.ravel()]
    products = np.einsum("qi,qj,qg->gij", u, v, algorithm.w @ places).reshape(group.order, -1)
    target = matmul_tensor(maps.shape).reshape(-1, m * n).astype(float)
    best = np.linalg.lstsq(products.T, target, rcond=1e-10)[0]
    assert ((products.T @ best - target) ** 2).sum() / (m * k * n) == pytest.approx(expected, abs=1e-12)
    # decoding the products one by one can only help
    assert score.expected_error(least_squares_scheme(algorithm, maps)) <= expected + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_walsh_hadamard_products_hold_nothing_more_than_their_group_algebra(seed: int) -> None:
    group = groups.get("C2^3")
    maps = random_maps(group, seed, free=bool(seed % 2))
    found = score.expected_error(least_squares_scheme(group_algorithm(group), maps))
    assert found == pytest.approx(groups.collision_error(maps), abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 1e-2])
def test_the_decoder_is_the_least_squares_one(lam: float) -> None:
    rng = np.random.default_rng(0)
    m, k, n = shape = (2, 3, 2)
    u, v = rng.standard_normal((7, m * k)), rng.standard_normal((7, k * n))
    u[6], v[6] = -2 * u[5], v[5]  # a repeated product
    w = least_squares_decoder(shape, u, v, lam)
    rows = np.einsum("qi,qj->qij", u, v).reshape(7, -1)
    target = matmul_tensor(shape).reshape(-1, m * n)
    damped = np.vstack([rows.T, np.sqrt(lam) * np.diag(np.linalg.norm(rows, axis=1))])
    expected = np.linalg.lstsq(damped, np.vstack([target, np.zeros((7, m * n))]), rcond=1e-10)[0]
    for decoder in (w, expected):
        gap = rows.T @ decoder - target
        noise = lam * ((rows**2).sum(axis=1) @ (decoder**2).sum(axis=1))
        if decoder is w:
            value = (gap**2).sum() + noise
        else:
            assert value == pytest.approx((gap**2).sum() + noise, abs=1e-10)


@pytest.mark.parametrize("name", ["S3", "Q8", "A4", "C2^3"])
def test_blocks_are_chosen_within_the_rank(name: str) -> None:
    group = groups.get(name)
    seen = set()
    for seed in range(30):
        rank = 1 + seed % 10
        blocks = chosen_blocks(group, rank, np.random.default_rng(seed))
        seen.add(tuple(blocks))
        assert blocks == sorted(set(blocks))
        assert 0 < group_algorithm(group, blocks=blocks).rank <= rank  # each of these groups has a block R
    assert len(seen) >= 3  # A4 = R + C + M3(R): R, C, or both
    assert chosen_blocks(group, 10**6, np.random.default_rng(0)) == list(range(len(groups.wedderburn(group))))


def test_merging_keeps_what_a_scheme_computes() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((4, 6)), rng.standard_normal((4, 6)), rng.standard_normal((4, 4))]
    u, v, w = parts
    doubled = [np.vstack([u, -2 * u[:2], u[2:3], u[:1] * 0]), np.vstack([v, v[:2] / 4, v[3:], v[:1]]), None]
    doubled[2] = np.vstack([w, rng.standard_normal((1, 4)), w[1:2], rng.standard_normal((1, 4)), w[:1]])
    doubled[1][4:6] = [v[0] / 4, -v[1]]  # the same lines as terms 0 and 1
    scheme = Scheme((2, 3, 2), "R", *doubled)
    smaller = reduced(scheme)
    assert scheme.rank == 8
    assert smaller.rank == 5  # a zero term, and two merged
    dense = [np.einsum("qi,qj,qk->ijk", *s.flat()) for s in (scheme, smaller)]
    assert np.abs(dense[0] - dense[1]).max() < 1e-12


def test_reduction_drops_the_cheapest_terms_and_decodes_anew() -> None:
    scheme = Scheme((2, 2, 2), "R", *classical((2, 2, 2)).factors)
    for rank in range(1, 8):
        smaller = reduced(scheme, rank)
        assert smaller.rank == rank
        assert score.expected_error(smaller) == pytest.approx(score.line((2, 2, 2), rank), abs=1e-12)
    group = groups.get("C2^3")
    maps = groups.anneal_maps(group, (2, 2, 2), np.random.default_rng(0), 500)
    full = least_squares_scheme(group_algorithm(group), maps)
    errors = [score.expected_error(reduced(full, r)) for r in range(full.rank, 0, -1)]
    assert errors == sorted(errors)
    with pytest.raises(SchemeError, match="not over Z2"):
        reduced(Scheme((1, 1, 1), "Z2", [[1]], [[1]], [[1]]))


@pytest.mark.parametrize("name", ["S3", "Q8"])
def test_each_drop_is_the_best_of_all_single_ones(name: str) -> None:
    group = groups.get(name)
    maps = random_maps(group, 5, free=True)
    scheme = least_squares_scheme(group_algorithm(group), maps)
    u, v, _ = scheme.flat()
    spread = 0.0
    for rank in range(scheme.rank - 1, 2, -1):
        fits = []
        for q in range(len(u)):
            x, y = np.delete(u, q, 0), np.delete(v, q, 0)
            fits.append(score.expected_error(Scheme(maps.shape, "R", x, y, least_squares_decoder(maps.shape, x, y))))
        spread = max(spread, max(fits) - min(fits))
        smaller = reduced(scheme, rank)
        assert score.expected_error(smaller) == pytest.approx(min(fits), abs=1e-10)
        u, v, _ = smaller.flat()
    assert spread > 1e-3


class TestGroupAlgebra(StrategyContract):
    strategy = "group-algebra"
    problem = Problem((2, 2, 2), 5)


class TestGroupAlgebraRectangular(StrategyContract):
    strategy = "group-algebra"
    problem = Problem((2, 3, 2), 8)
    jobs = 2
