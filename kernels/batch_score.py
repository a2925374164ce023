"""Many candidate schemes scored at once on a GPU: E and kappa in one launch, and the product error that they really
have when encoded operands are stored in a dtype, measured by the kernels that would run them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from stl_search.errors import UsageError
from stl_search.kernels import gpu, reference
from stl_search.kernels.plan import Plan
from stl_search.scheme import Scheme, Shape

__all__ = ["figures", "monte_carlo", "of_factors"]

Numbers = npt.NDArray[np.float64]


def figures(schemes: Sequence[Scheme], device: str = "cuda") -> tuple[Numbers, Numbers]:
    """(E, kappa) of S real schemes of one shape, (S) each: ``score.expected_error`` and ``score.noise_gain`` of all.

    Ranks may differ. Raises UsageError for schemes of several shapes, over Z2 or over C, and without a CUDA device.
    """
    factors = [scheme.as_float() for scheme in schemes]
    _, u, v, w = _stacked(schemes, factors)
    found = gpu.residuals(*(x.to(device) for x in (u, v, w)))
    return found[0].cpu().numpy(), found[1].cpu().numpy()


def of_factors(shape: Shape, u: torch.Tensor, v: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E, kappa), (S) each, of flat factors u: (S, r, m*k), v: (S, r, k*n), w: (S, r, m*n) in fp64, where they lie:
    one launch on a GPU that has Triton, plain torch elsewhere."""
    m, k, n = shape
    factors = (x.reshape(*x.shape[:-1], *size) for x, size in ((u, (m, k)), (v, (k, n)), (w, (m, n))))
    return (gpu.residuals if u.is_cuda and gpu.available() else reference.residuals)(*factors)


def monte_carlo(
    schemes: Sequence[Scheme],
    dtype: str,
    rng: np.random.Generator,
    blocks: int = 24,
    trials: int = 4,
    device: str = "cuda",
) -> tuple[Numbers, Numbers]:
    """(mean, its standard error), (S) each, of the measured relative Frobenius error on Gaussian matrices.

    As ``score.monte_carlo`` on the same draws, with A: (m * blocks, k * blocks) and B: (k * blocks, n * blocks) shared
    by all S schemes, but encoded, multiplied and decoded by the GPU's kernels in fp32. All slices of all schemes are
    one launch of each kernel. Raises UsageError as ``figures`` does, and for dtypes that the kernels do not store.
    """
    plans = [Plan(scheme, dtype) for scheme in schemes]
    (m, k, n), u, v, w = _stacked(schemes, [plan.factors for plan in plans])
    count, rank = u.shape[:2]
    coefficients = w.to(device, torch.float32)
    lhs, rhs = (x.flatten(0, 1).to(device, torch.float32) for x in (u, v))
    found = np.empty((trials, count))
    for trial in range(trials):
        a, b = (_matrix(rng.standard_normal((*grid, blocks, blocks))).to(device) for grid in ((m, k), (k, n)))
        exact = a @ b
        a_hat, b_hat = (gpu.encode(x.to(torch.float32), c, "block", dtype) for x, c in ((a, lhs), (b, rhs)))
        scales = None if a_hat.scale is None or b_hat.scale is None else (a_hat.scale, b_hat.scale)
        p = gpu.product(a_hat.data, b_hat.data, "fp32", scales)
        p = p.reshape(count, rank, *p.shape[1:]).transpose(0, 1)
        c = gpu.decode(p, coefficients, m * blocks, n * blocks, "block", "fp32")
        gap = torch.linalg.vector_norm(c.to(torch.float64) - exact, dim=(1, 2)) / torch.linalg.vector_norm(exact)
        found[trial] = gap.cpu().numpy()
    spread = found.std(0, ddof=1) / math.sqrt(trials) if trials > 1 else np.full(count, np.nan)
    return found.mean(0), spread


def _stacked(
    schemes: Sequence[Scheme], factors: Sequence[tuple[Numbers, ...]]
) -> tuple[Shape, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The shape, and u: (S, r, m, k), v: (S, r, k, n), w: (S, r, m, n) in fp64; lower ranks are filled with zeros."""
    shapes = {scheme.shape for scheme in schemes}
    if len(shapes) != 1:
        raise UsageError(f"schemes of one shape are scored together, not of {len(shapes)} shapes")
    for scheme in schemes:
        if scheme.ring.characteristic or scheme.ring.name == "C":
            raise UsageError(f"{scheme.name} is over {scheme.ring.name}: only real schemes are scored here")
    rank = max(scheme.rank for scheme in schemes)
    stacks = []
    for side in range(3):
        stack = np.zeros((len(schemes), rank, *factors[0][side].shape[1:]))
        for place, own in zip(stack, factors, strict=True):
            place[: len(own[side])] = own[side]
        stacks.append(torch.from_numpy(stack))
    return shapes.pop(), stacks[0], stacks[1], stacks[2]


def _matrix(grid: Numbers) -> torch.Tensor:
    """Blocks (m, k, i, j) -> the matrix (m * i, k * j)."""
    m, k, i, j = grid.shape
    return torch.from_numpy(grid.transpose(0, 2, 1, 3).reshape(m * i, k * j))
