"""Least squares on calibration data: what a layer sees, what error to expect there, and factors fitted to it.

A layer's inputs are rows x: (..., M, K) of A; ``Seen`` gathers their moments and a sample. All fits have closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from stl_search.errors import UsageError
from stl_search.nn import functional
from stl_search.nn.layers import Encoders, STLConv2d, STLLayer, windows
from stl_search.scheme import Scheme, matmul_tensor

__all__ = ["Seen", "allocate", "correct_bias", "fit_directions", "output_error", "predicted_error", "refit"]

Tensor = torch.Tensor
SAMPLE = 4096  # rows kept of each layer's inputs to fit on, and a quarter as many to measure on
RIDGE = 1e-3  # of the mean diagonal of each normal matrix: keeps what a calibration set did not show from growing
WEIGHT_RIDGES = (1e-1, 1e-2, 1e-3)  # the same for encoded weights, which have far more unknowns: tried on held-out rows
LARGEST = 6144  # unknowns of one normal matrix: its factorisation takes 8e10 multiplications


class Seen:
    """The rows x: (..., M, K) that enter one layer: how many, their mean and covariance, and samples (S, K).

    A quarter of each call's rows (whole leading entries where there are several, else the last rows) is held out: it
    is in ``held_out`` and in nothing else. Samples keep m consecutive rows together for every m that divides M.
    """

    def __init__(self, layer: nn.Module, size: int) -> None:
        self.layer = layer
        self.rows = 0
        self.count = 0
        self.sum = torch.zeros(size, dtype=torch.float64, device="cpu")
        self.products = self.sum.new_zeros(size, size)  # of rows less ``shift``, near their mean
        self.shift: Tensor | None = None
        self._fit: list[Tensor] = []
        self._held: list[Tensor] = []

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take in what enters the layer in one call."""
        if isinstance(self.layer, nn.Conv2d | STLConv2d):
            x = windows(self.layer, x)
        rows = x.shape[-2] if x.ndim > 1 else 1
        x = x.detach().reshape(-1, rows, x.shape[-1])
        self.rows += x.shape[0] * rows
        cut = x.shape[0] - max(1, x.shape[0] // 4) if x.shape[0] > 1 else 0
        if cut:
            fit, held = x[:cut].flatten(0, 1), x[cut:].flatten(0, 1)
        else:
            cut = rows - rows // 4
            fit, held = x[0, :cut], x[0, cut:]
        for part, sample, limit in ((fit, self._fit, SAMPLE), (held, self._held, SAMPLE // 4)):
            space = limit - sum(len(s) for s in sample)
            if space > 0 and len(part):
                sample.append(part[:space].clone())
        wide = fit.to(torch.promote_types(fit.dtype, torch.float32))
        if self.shift is None and len(wide):
            self.shift = wide.mean(0)
        self.count += len(wide)
        self.sum += wide.double().sum(0).cpu()
        wide = wide - self.shift if self.shift is not None else wide
        self.products += (wide.T @ wide).double().cpu()  # rounded in float32 at worst, far below RIDGE

    @property
    def mean(self) -> Tensor:
        """E x: (K,)."""
        return self.sum / max(self.count, 1)

    @property
    def covariance(self) -> Tensor:
        """E (x - E x)(x - E x)^T: (K, K)."""
        off = self.mean - (0.0 if self.shift is None else self.shift.double().cpu())
        return self.products / max(self.count, 1) - torch.outer(off, off)

    @property
    def sample(self) -> Tensor:
        """Rows to fit on: (S, K)."""
        return torch.cat(self._fit) if self._fit else self.sum.new_zeros(0, len(self.sum))

    @property
    def held_out(self) -> Tensor:
        """Rows to measure on: (S, K); those to fit on where too few were seen."""
        return torch.cat(self._held) if self._held else self.sample


@torch.no_grad()
def output_error(layer: STLLayer, dense: Tensor, bias: Tensor | None, x: Tensor) -> float:
    """|layer(x) - dense layer(x)|_F / |x B - mean|_F on rows x: (S, K), for the dense weight (N, ...).

    Relative to the centred output, since a constant is what any bias corrects; infinite where that is constant.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    exact = x.to(wide) @ layer._matrix(dense).to(wide)
    gap = layer._multiply(x).to(wide) - (exact if bias is None else exact + bias)
    size = torch.linalg.vector_norm(exact - exact.mean(0))
    return float(torch.linalg.vector_norm(gap) / size) if size > 0 else math.inf


def predicted_error(scheme: Scheme, x: Tensor, b: Tensor) -> float:
    """sqrt(E) of a scheme <m,k,n> on rows x: (S, K) times B: (K, N), from second moments of tiles alone.

    With R = T - T_hat, S_A and S_B the uncentred second moments of the flattened tiles, mu_A and mu_B their means and
    L inner tiles: |R|_S^2 = |R x1 S_A^(1/2) x2 S_B^(1/2)|^2 + (L - 1) |R(mu_A, mu_B)|^2, and E = |R|_S^2 / |T|_S^2.
    Correlation between inner tiles is not covered, so a measured error belongs beside it.
    """
    m, k, n = scheme.shape
    target = matmul_tensor(scheme.shape).astype(np.float64)
    u, v, w = (np.asarray(f) for f in Scheme(scheme.shape, "R", *scheme.as_float()).flat())
    moments = []
    for operand, height, width in ((x, m, k), (b, k, n)):
        grid = functional.tiles(operand.detach().double().cpu(), height, width)
        flat = grid.transpose(1, 2).reshape(-1, height * width).numpy()
        moments.append((flat.T @ flat / len(flat), flat.mean(0)))
    (s_a, mu_a), (s_b, mu_b) = moments
    inner = -(-x.shape[-1] // k)

    def size(t: Any) -> float:
        spread = np.einsum("abc,dec,ad,be->", t, t, s_a, s_b, optimize=True)
        return float(spread + (inner - 1) * (np.einsum("abc,a,b->c", t, mu_a, mu_b) ** 2).sum())

    whole = size(target)
    return math.sqrt(max(size(target - np.einsum("qa,qb,qc->abc", u, v, w)), 0.0) / whole) if whole else 0.0


def fit_directions(scheme: Scheme, width: int, seen: Seen, b: Tensor) -> tuple[Encoders, Tensor, float]:
    """Encoders for inner tiles ``width`` >= k features wide, B_hat: (r, J, L), and the expected relative error.

    In each tile the features are replaced by the k combinations that carry most of the output's variance (principal
    directions of C_jj^(1/2) B_j B_j^T C_jj^(1/2), C the covariance of x), and the scheme <m,k,n> multiplies those: an
    encoder of its own for each block-row. The weight on all chosen directions together is then refitted by least
    squares, C Q^T (Q C Q^T + ridge)^-1, which takes up what tiles share. The multiplications are r/(m width n). Only
    exact schemes have an expected error here; its square is the share of the centred output's variance that is lost.
    Raises UsageError where ``width`` < k.
    """
    m, k, n = scheme.shape
    if width < k:
        raise UsageError(f"tiles {width} features wide cannot serve a scheme with k = {k}: width must be at least k")
    size, cols = b.shape
    count = -(-size // width)
    covariance = seen.covariance
    c = covariance.new_zeros(count * width, count * width)
    c[:size, :size] = covariance
    full = c.new_zeros(count * width, cols)
    full[:size] = b.detach().double().cpu()
    tile = torch.arange(count, device=c.device)
    blocks = c.reshape(count, width, count, width)[tile, :, tile]
    level = blocks.diagonal(dim1=1, dim2=2).mean().clamp_min(torch.finfo(torch.float64).tiny)
    root = torch.linalg.cholesky(blocks + 1e-9 * level * torch.eye(width, dtype=c.dtype, device=c.device))
    rows = root.mT @ full.reshape(count, width, cols)
    top = torch.linalg.eigh(rows @ rows.mT)[1].flip(-1)[..., :k].mT  # (J, k, width), orthonormal rows
    reduce = torch.linalg.solve_triangular(root, top, upper=False, left=False)  # z = reduce x: uncorrelated in a tile
    expand = top @ root.mT  # x is about expand^T z
    cross = torch.einsum("jab,jbc->jac", reduce, c.reshape(count, width, -1)).reshape(count * k, -1)  # E z x^T
    gram = torch.einsum("jab,ijb->ija", reduce, cross.reshape(-1, count, width)).reshape(count * k, count * k)
    unit = torch.eye(count * k, dtype=c.dtype, device=c.device)
    fitted = torch.linalg.solve(gram + RIDGE * unit, cross @ full)  # (J k, N)
    kept = 2 * (fitted * (cross @ full)).sum() - (fitted * (gram @ fitted)).sum()
    total = (full * (c @ full)).sum()
    error = math.sqrt(max(float(1 - kept / total), 0.0)) if total > 0 else 0.0
    u, v, w = (torch.tensor(np.asarray(f), device=c.device) for f in scheme.as_float())
    made = Encoders(torch.einsum("qab,jbc->jqac", u, reduce), torch.einsum("qbn,jbc->jqcn", v, expand), w)
    return made.to(b.device, b.dtype), functional.encode_rhs(fitted, v).to(b.device, b.dtype), error


@torch.no_grad()
def refit(
    layer: STLLayer, x: Tensor, y: Tensor, mean: Tensor | None = None, rounds: int = 2, ridge: float | None = None
) -> None:
    """Least squares on rows x: (S, K) with outputs y: (S, N) before the bias, in place and in turn, ``rounds`` times.

    The decoder w, given the rest, solves an r x r system. With a ``ridge``, relative to the mean diagonal, an encoded
    weight first solves one of r J unknowns, the same for all columns (left alone above ``LARGEST``); it wants several
    times r J / m rows. A dense weight stays, and so do its encoders. Never worse on x than before, but for ridges. For
    rows centred by ``mean``, (K,), what the layer makes of the mean counts too: as far as it differs from one row of a
    tile to the next, since the rest is left to the bias.
    """
    e = layer.encoders
    m, n = e.w.shape[1:]
    kind = torch.promote_types(x.dtype, torch.float32)
    x, y, u = x.to(kind), y.to(kind), e.u.to(kind)
    a = functional.encode_lhs(x, u)  # (r, I, J)
    r, down, across = a.shape
    constant = a.new_zeros(r, 1, across) if mean is None else functional.encode_lhs(mean.to(x).expand(m, -1), u)
    constant = constant * math.sqrt(down)  # one tile that weighs as much as all of them
    target = functional.tiles(y, m, n)  # (I, m, L, n)
    turn = _averages_first(m).to(x)
    weight = layer.encoded is not None and ridge is not None and r * across <= LARGEST
    for _ in range(rounds if weight else 1):
        if weight:
            assert layer.encoded is not None
            assert ridge is not None
            w = e.w.to(kind)
            gram = a.new_zeros(r * across, r * across)
            for hat, decoder in ((a, w), (constant, w - w.mean(1, keepdim=True))):
                flat = hat.permute(0, 2, 1).reshape(r * across, -1)
                pairs = torch.einsum("qac,pac->qp", decoder, decoder)
                gram += flat @ flat.T * pairs.repeat_interleave(across, 0).repeat_interleave(across, 1)
            right = torch.einsum("qij,qil->qjl", a, torch.einsum("qac,ialc->qil", w, target))
            before = layer.encoded.to(kind).reshape(r * across, -1)
            found = _ridge_solve(gram, right.reshape(r * across, -1), before, ridge)
            layer.encoded.copy_(found.reshape(layer.encoded.shape))
        b_hat = layer.encoded_weight().to(kind)
        p, c = (torch.einsum("qij,qjl->qil", hat, b_hat).flatten(1) for hat in (a, constant))
        turned = torch.einsum("ha,ialc->hilc", turn, target).reshape(m, p.shape[1], n)
        w = torch.einsum("ha,qac->hqc", turn, e.w.to(kind))
        w = torch.stack([_ridge_solve(p @ p.T + (c @ c.T if h else 0), p @ turned[h], w[h]) for h in range(m)])
        e.w.copy_(torch.einsum("ha,hqc->qac", turn, w))


def _averages_first(size: int) -> Tensor:
    """An orthonormal basis of R^size, (size, size), whose first row is constant."""
    basis = torch.eye(size, dtype=torch.float64, device="cpu")
    basis[:, 0] = 1.0
    q: Tensor = torch.linalg.qr(basis)[0]
    return q.mT


def _ridge_solve(gram: Tensor, right: Tensor, before: Tensor, ridge: float = RIDGE) -> Tensor:
    """argmin of the quadratic form plus a ridge towards what was there ``before``."""
    level = ridge * gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    left = gram + level * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    found: Tensor = torch.linalg.solve(left, right + level * before)
    return found


@torch.no_grad()
def correct_bias(layer: STLLayer, dense: Tensor, mean: Tensor) -> None:
    """Make the layer right at x = mean, (K,), by its bias, which is made where it has none."""
    held = layer.encoded if layer.encoded is not None else dense
    mean = mean.to(held.device, torch.promote_types(held.dtype, torch.float32))
    m = layer.encoders.shape[0]
    u, w, b_hat = (f.to(mean.dtype) for f in (layer.encoders.u, layer.encoders.w, layer.encoded_weight()))
    mine = functional.stl_product(mean.expand(m, -1), b_hat, u, w, layer.cols).mean(0)
    right = mean @ layer._matrix(dense).to(mean.dtype) - mine
    if layer.bias is None:
        layer.bias = nn.Parameter(right.to(held.dtype))
    else:
        right = right + layer.bias.to(mean.dtype)
        layer.bias = nn.Parameter(right.to(held.dtype), requires_grad=layer.bias.requires_grad)


def allocate(costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], budget: float) -> list[int]:
    """One choice for each layer, given costs[layer][choice] and losses[layer][choice], with total cost <= ``budget``.

    Minimises sum loss + lambda cost at the smallest lambda that fits (Everett's Lagrangian: optimal for the cost that
    it ends at), then spends what is left greedily, each time on the change that saves most loss for its cost. Raises
    UsageError when even the cheapest choices cost more.

    >>> allocate([[4, 2], [4, 2]], [[0, 1], [0, 9]], 6)
    [1, 0]
    """
    least = sum(min(row) for row in costs)
    if least > budget * (1 + 1e-12):
        raise UsageError(f"the budget {budget:.4g} is below the cheapest choices, {least:.4g}: add cheaper candidates")

    def chosen(price: float) -> list[int]:
        return [
            min(range(len(row)), key=lambda i, row=row, loss=loss: (loss[i] + price * row[i], row[i]))  # type: ignore[misc]
            for row, loss in zip(costs, losses, strict=True)
        ]

    def total(choice: Iterable[int]) -> float:
        return sum(row[i] for row, i in zip(costs, choice, strict=True))

    prices = sorted(
        {
            (loss[j] - loss[i]) / (row[i] - row[j])
            for row, loss in zip(costs, losses, strict=True)
            for i in range(len(row))
            for j in range(len(row))
            if row[i] > row[j] and loss[j] >= loss[i]
        }
        | {0.0}
    )
    low, high = 0, len(prices)  # at prices[high] and above it fits; beyond the last price each layer is at its cheapest
    while low < high:
        middle = (low + high) // 2
        if total(chosen(prices[middle] * (1 + 1e-9))) <= budget:
            high = middle
        else:
            low = middle + 1
    cheapest = [min(range(len(row)), key=row.__getitem__) for row in costs]
    choice = chosen(prices[high] * (1 + 1e-9)) if high < len(prices) else cheapest
    while True:
        left = budget - total(choice)
        steps = [
            ((losses[n][i] - losses[n][j]) / max(costs[n][j] - costs[n][i], 1e-300), n, j)
            for n, i in enumerate(choice)
            for j in range(len(costs[n]))
            if losses[n][j] < losses[n][i] and costs[n][j] - costs[n][i] <= left
        ]
        if not steps:
            return choice
        _, layer, better = max(steps)
        choice[layer] = better
