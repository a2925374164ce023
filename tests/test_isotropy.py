"""Strategy ``isotropy``: what its groups keep, what their orbits are, and that it finds what has to have symmetry."""

import itertools

import numpy as np
import pytest

from stl_search import decompose, score
from stl_search.scheme import Shape, matmul_tensor
from stl_search.search import isotropy, portfolio
from stl_search.search.invariant import recognised
from stl_search.search.problem import Pool, Problem
from stl_search.search.representatives import Representatives
from stl_search.search.strategy import Clock
from stl_search.search.symmetry import Action, long_orbit, orbit_types
from stl_search.testing import StrategyContract
from stl_search.verify import first_failure

SHAPES: list[Shape] = [(2, 2, 2), (2, 3, 4), (3, 3, 3), (4, 4, 4), (2, 2, 5)]


class TestIsotropy(StrategyContract):
    strategy = "isotropy"
    problem = Problem((2, 2, 3), 8)
    jobs = 2


def groups(shape: Shape, order: int, count: int = 6) -> list[Action]:
    rng = np.random.default_rng(order)
    found = [isotropy.drawn(shape, {order: 1.0}, rng) for _ in range(count)]
    return [group for group in found if group is not None]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", [2, 4, 8])
def test_every_element_keeps_the_product(shape: Shape, order: int) -> None:
    tensor = matmul_tensor(shape).astype(float)
    for group in groups(shape, order):
        for element in group.elements:
            assert element.slots == (0, 1, 2)
            assert np.array_equal(np.einsum("ai,bj,ck,ijk->abc", *element.maps, tensor, optimize=True), tensor)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", [2, 3, 4, 6, 8])
def test_long_orbits_have_as_many_terms_as_the_order(shape: Shape, order: int) -> None:
    if order not in isotropy._orders(shape, 8):
        assert shape == (2, 2, 2)  # signed permutations of two coordinates have orders 1, 2 and 4
        return
    found = groups(shape, order)
    assert found
    for group in found:
        frame = Representatives(group.shape, [long_orbit(group)])
        factors = frame.factors(np.random.default_rng(0).standard_normal(frame.size))
        terms = [np.einsum("i,j,k->ijk", *term).ravel() for term in zip(*factors, strict=True)]
        assert len(terms) == order
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(terms, 2)) > 1e-3


def test_groups_differ_between_equal_sides() -> None:
    differing = 0
    for group in groups((4, 4, 4), 4):
        kinds = {tuple(sorted(round(float(np.trace(e.maps[i]))) for e in group.elements)) for i in range(3)}
        differing += len(kinds) > 1
    assert differing


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 4, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("rank", [13, 16])
def test_structures_are_invariant_and_have_the_rank(shape: Shape, rank: int) -> None:
    rng = np.random.default_rng(3)
    seen = set()
    for group in [*groups(shape, 2), *groups(shape, 4), *groups(shape, 8)]:
        kinds = isotropy.structure(group, rank, rng)
        if kinds is None:
            assert rank % long_orbit(group).size  # where only long orbits are known, or short ones do not add up
            continue
        assert sum(kind.size for kind in kinds) == rank
        seen.add(len({kind.size for kind in kinds}))
        frame = Representatives(group.shape, kinds)
        batch = frame.batch(rng.standard_normal(frame.size))
        if long_orbit(group).size <= 4:
            assert recognised(group, decompose.scheme_of(shape, batch)) is not None
    assert seen >= ({2} if rank == 13 else {1})


def test_the_long_kind_is_the_one_that_subgroups_give() -> None:
    for group in groups((2, 3, 4), 4):
        long = long_orbit(group)
        same = [kind for kind in orbit_types(group) if kind.size == long.size]
        assert [kind.stabiliser for kind in same] == [long.stabiliser]
        assert same[0].basis.shape == long.basis.shape


def test_near_border_schemes_are_met() -> None:
    problem = Problem((2, 2, 3), 10, strategies=("isotropy",))
    costs = []
    for seed in range(2):
        pool = Pool(problem)
        found = isotropy.Isotropy().run(problem, pool, np.random.default_rng(seed), Clock(None))
        costs += [score.error(scheme, "bf16") ** 2 for scheme in found]
    assert min(costs) < 0.01  # one product left out of the exact scheme costs .08


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp32"])
def test_weights_lead_to_every_precision(dtype: str) -> None:
    problem = Problem((2, 2, 2), 6, dtype=dtype, strategies=("isotropy",))
    pool = Pool(problem)
    found = list(isotropy.Isotropy().run(problem, pool, np.random.default_rng(1), Clock(None)))
    assert found
    assert min(score.error(scheme, dtype) ** 2 for scheme in found) < score.line((2, 2, 2), 6) + 0.01


def test_exact_schemes_by_it_alone() -> None:
    result = portfolio.discover((2, 2, 2), 7, ring="Z", strategies=("isotropy",), steps=40, seed=1, workers=1)
    assert result.scheme is not None
    assert result.scheme.rank == 7
    assert first_failure(result.scheme) is None


def test_what_it_serves() -> None:
    big = Problem((8, 8, 8), 300)
    assert not isotropy.Isotropy().weight(big, Pool(big))
    exact = Problem((2, 2, 2), 7, ring="Z")
    assert not isotropy.Isotropy().weight(exact, Pool(exact))  # unless it is named
    one = Problem((2, 2, 2), 1)
    assert not isotropy.Isotropy().weight(one, Pool(one))
    assert set(isotropy._orders((4, 4, 4), 48)) == {3, 4, 6, 8}  # order 2 leaves more than 1000 unknowns
