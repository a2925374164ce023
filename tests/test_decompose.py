"""The least-squares solvers against the dense oracle: objective, gradient, normal equations, monotone descent."""

import numpy as np
import pytest

from stl_search import decompose, score
from stl_search.scheme import Scheme, Shape, matmul_tensor

CASES = [((2, 2, 2), 5), ((2, 3, 4), 9), ((1, 3, 2), 4), ((3, 2, 1), 7)]
LAM = 1e-2


def dense_objective(shape: Shape, batch: decompose.Batch, lam: float) -> list[float]:
    """F straight from its definition."""
    values = []
    for u, v, w in zip(*batch, strict=True):
        gap = matmul_tensor(shape) - np.einsum("qi,qj,qk->ijk", u, v, w)
        noise = sum(float((a @ a) * (b @ b) * (c @ c)) for a, b, c in zip(u, v, w, strict=True))
        values.append(float((gap**2).sum()) + lam * noise)
    return values


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_objective_is_its_definition_and_the_score(shape: Shape, rank: int) -> None:
    batch = decompose.random_batch(shape, rank, 3, np.random.default_rng(0))
    assert decompose.objective(shape, batch, LAM) == pytest.approx(dense_objective(shape, batch, LAM), rel=1e-12)
    scheme = decompose.scheme_of(shape, batch, 1)
    value = decompose.objective(shape, batch, 2 * score.relative_rounding("bf16") ** 2)[1] / scheme.volume
    assert value == pytest.approx(score.error(scheme, "bf16") ** 2, rel=1e-12)


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_als_never_rises_and_solves_each_factor(shape: Shape, rank: int) -> None:
    batch = decompose.random_batch(shape, rank, 4, np.random.default_rng(1))
    before = decompose.objective(shape, batch, LAM)
    for _ in range(5):
        batch = decompose.als(shape, batch, LAM, sweeps=1)
        after = decompose.objective(shape, batch, LAM)
        assert (after <= before + 1e-9).all()
        before = after
    # w is optimal for (u, v): no perturbation of w lowers F
    rng = np.random.default_rng(2)
    for _ in range(10):
        moved = (batch[0], batch[1], batch[2] + 1e-3 * rng.standard_normal(batch[2].shape))
        assert (decompose.objective(shape, moved, LAM) > before).all()


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_refine_descends_reports_F_and_ends_stationary(shape: Shape, rank: int) -> None:
    start = decompose.random_batch(shape, rank, 5, np.random.default_rng(3))
    out, f = decompose.refine(shape, start, LAM, 2000, tolerance=1e-13)
    assert f == pytest.approx(dense_objective(shape, out, LAM), rel=1e-9)
    assert (f <= decompose.objective(shape, start, LAM)).all()
    swept = decompose.als(shape, out, LAM, sweeps=3)
    assert decompose.objective(shape, swept, LAM) == pytest.approx(f, rel=1e-6)  # nothing left for ALS to gain


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_normal_equations_are_the_jacobian_of_the_residual(shape: Shape, rank: int) -> None:
    factors = tuple(f[0] for f in decompose.random_batch(shape, rank, 1, np.random.default_rng(4)))
    hessian, gradient = decompose.normal_equations(shape, factors, LAM)
    x = np.concatenate([f.ravel() for f in factors])
    cuts = np.cumsum([f.size for f in factors])[:-1]

    def residuals(y: np.ndarray) -> np.ndarray:
        u, v, w = (p.reshape(f.shape) for p, f in zip(np.split(y, cuts), factors, strict=True))
        terms = np.einsum("qi,qj,qk->qijk", u, v, w)
        return np.concatenate([(terms.sum(axis=0) - matmul_tensor(shape)).ravel(), np.sqrt(LAM) * terms.ravel()])

    jacobian = np.stack([(residuals(x + h) - residuals(x - h)) / 2e-6 for h in 1e-6 * np.eye(len(x))], axis=1)
    assert hessian == pytest.approx(jacobian.T @ jacobian, rel=1e-5, abs=1e-6)
    assert gradient == pytest.approx(jacobian.T @ residuals(x), rel=1e-5, abs=1e-6)


def test_levenberg_marquardt_solves_strassens_problem() -> None:
    rng = np.random.default_rng(5)
    batch = decompose.random_batch((2, 2, 2), 7, 8, rng)
    out, f = decompose.levenberg_marquardt(
        (2, 2, 2), batch, iterations=250, ridge=lambda i: max(0.0, 1e-2 * (1 - i / 150)), goal=1e-22
    )
    assert (f < 1e-18).sum() >= 6  # 20 of 20 is what is usually seen
    best = int(f.argmin())
    assert score.expected_error(Scheme((2, 2, 2), "R", *(x[best] for x in out))) < 1e-19


def test_levenberg_marquardt_moves_only_what_is_free() -> None:
    batch = decompose.random_batch((2, 2, 2), 7, 1, np.random.default_rng(6))
    free = np.random.default_rng(7).random(7 * 12) < 0.5
    out, f = decompose.levenberg_marquardt((2, 2, 2), batch, iterations=20, free=free)
    before, after = (np.concatenate([x[0].ravel() for x in b]) for b in (batch, out))
    assert (before[~free] == after[~free]).all()
    assert (before[free] != after[free]).all()
    assert f[0] < decompose.objective((2, 2, 2), batch)[0]


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_drop_costs_are_what_dropping_costs(shape: Shape, rank: int) -> None:
    batch = decompose.als(shape, decompose.random_batch(shape, rank, 1, np.random.default_rng(8)), LAM, sweeps=2)
    f = decompose.objective(shape, batch, LAM)[0]
    for q, expected in enumerate(decompose.drop_costs(batch, LAM)[0]):
        rest = tuple(np.delete(x, q, axis=1) for x in batch)
        gram = (rest[0] @ rest[0].swapaxes(1, 2)) * (rest[1] @ rest[1].swapaxes(1, 2))
        d = np.arange(rank - 1)
        gram[:, d, d] *= 1 + LAM
        m, k, n = shape
        products = (rest[0].reshape(1, -1, m, k) @ rest[1].reshape(1, -1, k, n)).reshape(1, rank - 1, -1)
        refitted = (rest[0], rest[1], np.linalg.solve(gram, products))
        assert decompose.objective(shape, refitted, LAM)[0] - f == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_best_residual_term_lowers_the_residual() -> None:
    rng = np.random.default_rng(9)
    batch = decompose.random_batch((2, 3, 2), 4, 1, rng)
    gap = decompose.residual_tensor((2, 3, 2), batch)[0]
    a, b, c = decompose.best_residual_term(gap, rng)
    size = float(np.linalg.norm(np.einsum("i,j,k->ijk", a[0], b[0], c[0])))
    left = float(np.linalg.norm(gap - np.einsum("i,j,k->ijk", a[0], b[0], c[0])) ** 2)
    assert left == pytest.approx(float(np.linalg.norm(gap)) ** 2 - size**2, rel=1e-6)  # a best fit is orthogonal
    assert size**2 >= float((gap**2).sum()) / 12 / 2  # no worse than half the mean over rank-one directions


def test_balancing_keeps_the_products() -> None:
    batch = decompose.random_batch((2, 2, 2), 3, 2, np.random.default_rng(10))
    batch[1][0, 1] = 0
    balanced = decompose.balance(batch)
    before, after = (np.einsum("bqi,bqj,bqk->bqijk", *x) for x in (batch, balanced))
    assert after == pytest.approx(before, abs=1e-12)
    norms = [np.linalg.norm(f, axis=2) for f in balanced]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] == pytest.approx(norms[2])
