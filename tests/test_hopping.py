"""Strategy ``hopping`` and the compiled alternating least squares beneath it, beside the one of ``decompose``."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from stl_search import decompose, score
from stl_search.decompose import Floats
from stl_search.scheme import Scheme, Shape
from stl_search.search.alternating import fitted
from stl_search.search.hopping import Hopping, hops_of, walked
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock, suitable, usual
from stl_search.testing import STRASSEN, StrategyContract

LAM = 2 * score.relative_rounding("bf16") ** 2
_Factors = tuple[Floats, Floats, Floats]


class TestHopping(StrategyContract):
    strategy = "hopping"
    problem = Problem((2, 2, 3), 8)
    jobs = 2


def drawn(shape: Shape, rank: int, seed: int = 0) -> _Factors:
    m, k, n = shape
    rng = np.random.default_rng(seed)
    return tuple(0.6 * rng.standard_normal((rows, rank)) for rows in (m * k, k * n, m * n))  # type: ignore[return-value]


def batch_of(factors: _Factors) -> decompose.Batch:
    return tuple(np.ascontiguousarray(f.T)[None] for f in factors)  # type: ignore[return-value]


def value_of(shape: Shape, factors: _Factors, lam: float) -> float:
    """F from the residual itself."""
    batch = batch_of(factors)
    gap = decompose.residual_tensor(shape, batch)[0]
    noise = np.prod([(f * f).sum(axis=0) for f in factors], axis=0).sum()
    return float((gap * gap).sum() + lam * noise)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((1, 1, 1), 1), ((2, 2, 2), 7), ((2, 3, 4), 11), ((4, 2, 3), 5), ((3, 3, 3), 19), ((1, 5, 2), 9)],
)
@pytest.mark.parametrize("lam", [1e-2, LAM])
def test_a_sweep_is_that_of_the_oracle(shape: Shape, rank: int, lam: float) -> None:
    """Also where a weight falls: three sweeps at each halving, as the oracle does them one by one."""
    factors = drawn(shape, rank)
    expected = decompose.als(shape, batch_of(factors), lam, sweeps=3)
    value = fitted(shape, factors, lam, 3)
    assert value == pytest.approx(value_of(shape, factors, lam), abs=1e-10)
    for mine, other in zip(decompose.balance(batch_of(factors)), decompose.balance(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-7)

    factors = drawn(shape, rank, 1)
    expected = batch_of(factors)
    for weight in (4 * lam, 2 * lam):
        expected = decompose.als(shape, expected, weight, sweeps=3)
    fitted(shape, factors, lam, 0, halvings=2, falling=3)
    for mine, other in zip(decompose.balance(batch_of(factors)), decompose.balance(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-7)


def test_more_sweeps_are_never_worse_and_steps_ahead_pay() -> None:
    shape, rank = (3, 3, 3), 15
    values = []
    for sweeps in range(60):
        factors = drawn(shape, rank)
        fitted(shape, factors, LAM, sweeps)
        values.append(value_of(shape, factors, LAM))
    assert all(after <= before + 1e-10 for before, after in itertools.pairwise(values))
    plain = decompose.objective(shape, decompose.als(shape, batch_of(drawn(shape, rank)), LAM, sweeps=600), LAM)[0]
    assert fitted(shape, drawn(shape, rank), LAM, 600) < plain


def test_it_ends_early_where_it_is_told_that_it_may() -> None:
    shape, rank = (3, 3, 3), 15
    whole = fitted(shape, drawn(shape, rank), LAM, 5000)
    early = fitted(shape, drawn(shape, rank), LAM, 5000, least=0.1)
    hopeless = fitted(shape, drawn(shape, rank), LAM, 5000, limit=whole / 2)
    assert whole < early <= hopeless
    assert fitted(shape, drawn(shape, rank), LAM, 5000, limit=2 * hopeless) == whole  # never out of reach
    assert fitted(shape, drawn(shape, rank), LAM, 200, limit=0.0) == fitted(shape, drawn(shape, rank), LAM, 200)


def test_terms_that_are_parallel_or_nothing_do_no_harm() -> None:
    factors = drawn((2, 2, 2), 7)
    for f in factors:
        f[:, 1] = f[:, 0]
        f[:, 2] = 0.0
    assert fitted((2, 2, 2), factors, LAM, 400) < 8
    assert all(np.isfinite(f).all() for f in factors)
    nothing = tuple(np.zeros((4, 3)) for _ in range(3))
    assert fitted((2, 2, 2), nothing, LAM, 8) == 8.0  # type: ignore[arg-type]


def test_all_processors_make_the_same_bits() -> None:
    """Of sweeps and of a walk: no sum is left to a library, and none to the width of a vector."""
    factors = drawn((3, 3, 4), 13)
    fitted((3, 3, 4), factors, 2.0**-17, 500, halvings=9, falling=20)
    digest = hashlib.sha256(b"".join(f.tobytes() for f in factors)).hexdigest()
    assert digest[:16] == "d1854a356aae0042"
    met, _ = walked((2, 3, 3), drawn((2, 3, 3), 9), LAM, 20, 1e-3, np.random.default_rng(0), Clock(None))
    digest = hashlib.sha256(b"".join(f.tobytes() for f in met)).hexdigest()
    assert digest[:16] == "560316b15fc713fa"


def test_a_walk_goes_far_below_its_start_and_leaves_that_alone() -> None:
    shape, rank = (3, 3, 3), 9
    start = drawn(shape, rank)
    before = [f.copy() for f in start]
    alone = fitted(shape, drawn(shape, rank), LAM, 5000) / 27
    met, value = walked(shape, start, LAM, 200, 1e-3, np.random.default_rng(3), Clock(None))
    assert all((f == g).all() for f, g in zip(start, before, strict=True))
    assert value == pytest.approx(value_of(shape, met, LAM) / 27, abs=1e-9)
    assert value < alone - 0.003
    stopped = Clock(0.0)
    met, value = walked(shape, start, LAM, 10**9, 1e-3, np.random.default_rng(3), stopped)
    assert stopped.cut
    assert value <= alone + 1e-4


def test_it_begins_at_the_rank_beside_it_or_from_nothing() -> None:
    shape = (2, 2, 2)
    problem = Problem(shape, 6)
    for given in (7, 5, 6):
        pool = Pool(problem)
        scheme = STRASSEN if given == 7 else Scheme(shape, "R", *(f[:given] for f in STRASSEN.as_float()))
        pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
        yielded = 0
        for seed in range(6):
            for found in Hopping().run(problem, pool, np.random.default_rng(seed), Clock(None)):
                assert found.shape == shape
                assert found.rank == 6
                assert cost(problem, found) == pytest.approx(0.12504, abs=2e-5)  # one product left out of Strassen's
                yielded += 1
        assert yielded >= 5


def test_what_it_serves() -> None:
    assert "hopping" in usual()
    assert "hopping" in {s.name for s, _ in suitable(Problem((4, 4, 4), 20), Pool(Problem((4, 4, 4), 20)))}
    for other in (
        Problem((3, 3, 3), 23, ring="ZT"),
        Problem((3, 3, 3), 20, symmetry="cyclic"),
        Problem((2, 2, 2), 6, coefficients="sparse"),
        Problem((8, 8, 8), 300),
    ):
        assert Hopping().weight(other, Pool(other)) == 0
    assert hops_of((1, 1, 1), 1) == 400
    assert hops_of((5, 5, 5), 90) == 8
