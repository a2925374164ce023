"""Float solutions become exact schemes, or are refused; nothing is believed that integers did not prove."""

import numpy as np
import pytest

from stl_search import decompose
from stl_search.discretize import discretize
from stl_search.errors import SchemeError
from stl_search.scheme import Scheme, Shape
from stl_search.search.numeric import solve_exact
from stl_search.search.strategy import Clock
from stl_search.transform import change_basis, classical
from stl_search.verify import residual, verify


def float_solution(shape: Shape, rank: int, seed: int) -> Scheme:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        batch, f = decompose.levenberg_marquardt(
            shape,
            decompose.random_batch(shape, rank, 1, rng),
            ridge=lambda i: max(0.0, 1e-2 * (1 - i / 150)),
            goal=1e-22,
        )
        if f[0] < 1e-18:
            return decompose.scheme_of(shape, batch)
    raise AssertionError("no float solution in 20 starts")


@pytest.mark.parametrize("ring", ["ZT", "Z", "Q", "Z2"])
@pytest.mark.parametrize(("shape", "rank"), [((2, 2, 2), 7), ((2, 3, 2), 11)])
def test_a_float_solution_becomes_exact(shape: Shape, rank: int, ring: str) -> None:
    found = None
    for seed in range(5):  # some solutions lie on no rational point: the search goes on with another
        found = discretize(float_solution(shape, rank, seed), ring, np.random.default_rng(seed), attempts=25)
        if found is not None:
            break
    assert found is not None
    assert (found.shape, found.rank) == (shape, rank)
    assert ring in verify(found).rings


def test_a_rotated_classical_scheme_is_found_again() -> None:
    rng = np.random.default_rng(3)
    x, y, z = (np.linalg.qr(rng.standard_normal((s, s)))[0] for s in (2, 3, 2))
    rotated = change_basis(Scheme((2, 3, 2), "R", *classical((2, 3, 2)).factors), x, y, z)
    assert 0 < residual(rotated) < 1e-28
    found = discretize(rotated, "ZT", rng, attempts=40)
    assert found is not None
    assert verify(found).kind == "exact"


def test_an_approximate_scheme_is_refused() -> None:
    batch, _ = decompose.refine((2, 2, 2), decompose.random_batch((2, 2, 2), 6, 1, np.random.default_rng(0)), 1e-4)
    with pytest.raises(SchemeError, match="not an exact scheme in floating point: squared residual"):
        discretize(decompose.scheme_of((2, 2, 2), batch), "Q", np.random.default_rng(0))


def test_a_ring_that_is_no_target_is_refused() -> None:
    with pytest.raises(SchemeError, match="cannot round to R"):
        discretize(Scheme((1, 1, 1), "R", [[1.0]], [[1.0]], [[1.0]]), "R", np.random.default_rng(0))


def test_laderman_rank_is_reached_over_the_ternary_integers() -> None:
    rng = np.random.default_rng(1)
    found = next(s for _ in range(12) if (s := solve_exact((3, 3, 3), 23, "ZT", rng, Clock(None))) is not None)
    assert found.rank == 23
    assert "ZT" in verify(found).rings
