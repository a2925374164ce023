"""Fits in step on a device, against the numpy forms in ``stl_search.decompose``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stl_search import decompose, score
from stl_search.kernels import batch_fit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAM = 2 * score.relative_rounding("bf16") ** 2
CASES = [((2, 2, 2), 5), ((2, 3, 4), 7), ((1, 2, 3), 4)]  # the last has more terms than a flattening has rows


def moved(batch: decompose.Batch) -> batch_fit.Batch:
    return tuple(torch.from_numpy(f).to(DEVICE) for f in batch)  # type: ignore[return-value]


def back(batch: batch_fit.Batch) -> decompose.Batch:
    return tuple(f.cpu().numpy() for f in batch)  # type: ignore[return-value]


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_sweeps_are_those_of_numpy(shape: tuple[int, int, int], rank: int) -> None:
    start = decompose.random_batch(shape, rank, 5, np.random.default_rng(1))
    found = back(batch_fit.als(shape, moved(start), LAM, sweeps=6, ridge=1e-2))
    for got, expected in zip(found, decompose.als(shape, start, LAM, sweeps=6, ridge=1e-2), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("shape", "rank"), CASES[:2])
def test_a_few_steps_are_those_of_numpy(shape: tuple[int, int, int], rank: int) -> None:
    """All members take the same steps: line searches, histories and stops are each member's own in both."""
    start = decompose.random_batch(shape, rank, 7, np.random.default_rng(2))
    found, f = batch_fit.refine(shape, moved(start), LAM, iterations=12)
    expected, wanted = decompose.refine(shape, start, LAM, iterations=12)
    np.testing.assert_allclose(f.cpu().numpy(), wanted, rtol=1e-8)
    for got, want in zip(back(found), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_optimum_is_that_of_numpy() -> None:
    """<2,2,2> of rank 4 ends in several optima; after hundreds of steps each start still ends where numpy's does."""
    start = decompose.random_batch((2, 2, 2), 4, 24, np.random.default_rng(3))
    found, f = batch_fit.refine((2, 2, 2), moved(start), LAM, iterations=2000, tolerance=1e-12)
    _, wanted = decompose.refine((2, 2, 2), start, LAM, iterations=2000, tolerance=1e-12)
    assert np.ptp(wanted) > 0.01 * wanted.min()
    assert (np.abs(f.cpu().numpy() - wanted) < 1e-6 * wanted).mean() > 0.9
    assert float(f.min()) == pytest.approx(wanted.min(), rel=1e-9)
    np.testing.assert_allclose(decompose.objective((2, 2, 2), back(found), LAM), f.cpu().numpy(), rtol=1e-10)


def test_the_objective_never_rises_and_runs_repeat() -> None:
    start = moved(decompose.random_batch((3, 3, 3), 9, 16, np.random.default_rng(4)))
    values, batches = [], []
    for steps in (1, 5, 25, 25):
        batch, f = batch_fit.refine((3, 3, 3), start, LAM, iterations=steps)
        values.append(f)
        batches.append(batch)
    assert (values[1] <= values[0]).all()
    assert (values[2] <= values[1]).all()
    assert all(torch.equal(a, b) for a, b in zip(batches[2], batches[3], strict=True))


def test_parallel_terms_do_no_harm() -> None:
    """Equal terms make the normal matrix singular: only the jitter keeps it solvable, and elimination where that
    is not enough."""
    start = decompose.random_batch((2, 2, 2), 6, 4, np.random.default_rng(5))
    for f in start:
        f[:, 1] = f[:, 0]
        f[0] = 0.0
    _, f = batch_fit.refine((2, 2, 2), moved(start), 0.0, iterations=30)
    _, wanted = decompose.refine((2, 2, 2), start, 0.0, iterations=30)
    assert torch.isfinite(f).all()
    assert float(f[0]) == 8.0  # nothing but zeros stays where it is
    assert (f.cpu().numpy()[1:] < 8.0).all()
    assert (wanted[1:] < 8.0).all()


def test_an_indefinite_matrix_is_solved_by_elimination() -> None:
    g = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64, device=DEVICE)
    rhs = torch.ones(2, 2, 3, dtype=torch.float64, device=DEVICE)
    expected = torch.linalg.solve(g, rhs)
    torch.testing.assert_close(batch_fit._solve(g.clone(), rhs), expected)


def test_it_stops_when_told() -> None:
    start = moved(decompose.random_batch((2, 2, 3), 7, 4, np.random.default_rng(6)))
    asked = []
    batch_fit.refine((2, 2, 3), start, LAM, iterations=200, stop=lambda: asked.append(1) or len(asked) == 2)
    assert len(asked) == 2
