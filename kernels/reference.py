"""Encode, product and decode in plain torch: the naive oracles of every kernel, and the form that runs anywhere.

Encoded operands and products are contiguous (r, ..., rows, cols): each of the r slices is one ordinary matrix. Sums
run in the plan's ``compute`` precision (wider when the operand is); only what is stored is rounded. ``encode`` and
``decode`` are adjoint to each other, which is all that their gradients need. A ragged edge counts as padded with
zeros and is never copied to a padded operand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stl_search.errors import UsageError
from stl_search.kernels.plan import Plan, dtype_name, torch_dtype, wider
from stl_search.kernels.watched import watched

__all__ = [
    "Stored",
    "decode",
    "decode_naive",
    "encode",
    "encode_naive",
    "encode_operand",
    "multiply",
    "multiply_encoded",
    "product",
    "residuals",
    "restore",
    "rounded",
    "scale_for",
    "store",
]

Tensor = torch.Tensor
FP8_MAX = 448.0  # the largest number of float8_e4m3fn, which has no infinity


def encode_naive(x: Tensor, coefficients: Tensor, layout: str = "block") -> Tensor:
    """x: (..., M, K), coefficients: (r, m, k) -> (r, ..., ceil(M/m), ceil(K/k)): pad, cut, sum; ``encode``'s oracle."""
    r, m, k = coefficients.shape
    *batch, rows, cols = x.shape
    rows_out, cols_out = -(-rows // m), -(-cols // k)
    x = x.to(torch.promote_types(x.dtype, coefficients.dtype))
    x = torch.nn.functional.pad(x, (0, k * cols_out - cols, 0, m * rows_out - rows))
    if layout == "block":
        grid = x.reshape(*batch, m, rows_out, k, cols_out)
        return torch.einsum("qab,...aibj->q...ij", coefficients.to(x.dtype), grid)
    grid = x.reshape(*batch, rows_out, m, cols_out, k)
    return torch.einsum("qab,...iajb->q...ij", coefficients.to(x.dtype), grid)


def decode_naive(p: Tensor, coefficients: Tensor, rows: int, cols: int, layout: str = "block") -> Tensor:
    """p: (r, ..., M', N'), coefficients: (r, m, n) -> (..., rows, cols): sum, join, cut off; ``decode``'s oracle."""
    r, m, n = coefficients.shape
    _, *batch, height, width = p.shape
    p = p.to(torch.promote_types(p.dtype, coefficients.dtype))
    order = "...aicj" if layout == "block" else "...iajc"
    grid = torch.einsum(f"qac,q...ij->{order}", coefficients.to(p.dtype), p)
    return grid.reshape(*batch, m * height, n * width)[..., :rows, :cols]


def encode(x: Tensor, coefficients: Tensor, layout: str = "block") -> Tensor:
    """x: (..., M, K), coefficients: (r, m, k) -> (r, ..., ceil(M/m), ceil(K/k)), contiguous; differentiable in x.

    out[q] = sum_ab coefficients[q,a,b] x_ab, summed in the wider of the two precisions: one gather of the blocks (in
    place of padding) and one matrix product; in plain operations where these are asked for (``watched``).
    """
    if watched(x):
        return encode_naive(x, coefficients, layout)
    result: Tensor = _Encode.apply(x, coefficients, layout)  # type: ignore[no-untyped-call]
    return result


def decode(
    p: Tensor, coefficients: Tensor, rows: int, cols: int, layout: str = "block", dtype: torch.dtype | None = None
) -> Tensor:
    """p: (r, ..., M', N'), coefficients: (r, m, n) -> (..., rows, cols) in ``dtype``; differentiable in p.

    out_ac = sum_q coefficients[q,a,c] p[q], rounded once; what lies beyond (rows, cols) is dropped.
    """
    if watched(p):
        c = decode_naive(p, coefficients, rows, cols, layout)
        return c if dtype is None else c.to(dtype)
    result: Tensor = _Decode.apply(p, coefficients, rows, cols, layout, dtype)  # type: ignore[no-untyped-call]
    return result


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficients: Tensor, layout: str) -> Tensor:
        ctx.save_for_backward(coefficients)
        ctx.rest = (x.shape[-2], x.shape[-1], layout, x.dtype)
        r, m, k = coefficients.shape
        blocks = _gather(x, m, k, layout, torch.promote_types(x.dtype, coefficients.dtype))
        return _combine(coefficients.reshape(r, m * k), blocks.flatten(0, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (coefficients,) = ctx.saved_tensors
        rows, cols, layout, dtype = ctx.rest
        return decode(grads[0], coefficients.conj(), rows, cols, layout, dtype), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, p: Tensor, coefficients: Tensor, rows: int, cols: int, layout: str, dtype: torch.dtype | None
    ) -> Tensor:
        ctx.save_for_backward(coefficients)
        ctx.rest = (layout, p.dtype)
        r, m, n = coefficients.shape
        wide = torch.promote_types(p.dtype, coefficients.dtype)
        blocks = _combine(coefficients.reshape(r, m * n).T, p.to(wide))
        return _scatter(blocks.reshape(m, n, *blocks.shape[1:]), rows, cols, layout, dtype or wide)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (coefficients,) = ctx.saved_tensors
        layout, dtype = ctx.rest
        return encode(grads[0], coefficients.conj(), layout).to(dtype), None, None, None, None, None


def _combine(matrix: Tensor, slices: Tensor) -> Tensor:
    """matrix: (s, t), slices: (t, ...) -> (s, ...), a linear combination of slices; real matrices act on both parts."""
    rest = slices.shape[1:]
    if slices.is_complex() and not matrix.is_complex():
        flat = torch.view_as_real(slices.resolve_conj()).reshape(len(slices), 2 * math.prod(rest))
        return torch.view_as_complex(torch.mm(matrix.to(flat.dtype), flat).reshape(len(matrix), *rest, 2))
    return torch.mm(matrix.to(slices.dtype), slices.reshape(len(slices), math.prod(rest))).reshape(len(matrix), *rest)


def _gather(x: Tensor, m: int, k: int, layout: str, dtype: torch.dtype) -> Tensor:
    """x: (..., M, K) -> (m, k, ..., ceil(M/m), ceil(K/k)) in ``dtype``, zeros beyond the edge."""
    *batch, rows, cols = x.shape
    make = torch.zeros if rows % m or cols % k else torch.empty
    blocks = make((m, k, *batch, -(-rows // m), -(-cols // k)), dtype=dtype, device=x.device)
    for part, places in _pieces(x, blocks, layout):
        places.copy_(part)
    return blocks


def _scatter(blocks: Tensor, rows: int, cols: int, layout: str, dtype: torch.dtype) -> Tensor:
    """(m, n, ..., M', N') -> (..., rows, cols) in ``dtype``: the inverse of ``_gather``."""
    out = torch.empty((*blocks.shape[2:-2], rows, cols), dtype=dtype, device=blocks.device)
    for part, places in _pieces(out, blocks, layout):
        part.copy_(places)
    return out


def _pieces(x: Tensor, blocks: Tensor, layout: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of views of x: (..., M, K) and of blocks: (m, k, ..., M', K') that mirror each other; at most four cover x.

    Row index a * M' + i ("block") or i * m + a ("tile") splits into an outer and an inner index; all whole inner runs
    are one piece, what is left at a ragged edge is another. Columns alike.
    """
    m, k, *batch, height, width = blocks.shape
    row_a, col_b, row_i, col_j = 0, 1, blocks.ndim - 2, blocks.ndim - 1
    order = [row_a, row_i, col_b, col_j] if layout == "block" else [row_i, row_a, col_j, col_b]
    grid = blocks.permute(*range(2, blocks.ndim - 2), *order)  # (..., outer row, inner row, outer column, inner column)
    for top, rows, row_runs, row_length in _runs(x.shape[-2], grid.shape[-3]):
        for left, cols, col_runs, col_length in _runs(x.shape[-1], grid.shape[-1]):
            part = x[..., rows, cols].reshape(*batch, row_runs, row_length, col_runs, col_length)
            yield part, grid[..., top : top + row_runs, :row_length, left : left + col_runs, :col_length]


def _runs(size: int, length: int) -> list[tuple[int, slice, int, int]]:
    """(index of the first run, the span covered, number of runs, their length): the whole runs, then the rest."""
    whole, rest = divmod(size, length) if length else (0, 0)
    found = [(0, slice(0, whole * length), whole, length)] if whole else []
    if rest:
        found.append((whole, slice(whole * length, size), 1, rest))
    return found


@dataclass(frozen=True, eq=False)
class Stored:
    """x in storage, data: (r, ..., rows, cols); data = scale * x for fp8_e4m3, with scale: (r, ..., 1, 1)."""

    data: Tensor
    scale: Tensor | None = None


def store(x: Tensor, dtype: str) -> Stored:
    """x: (r, ..., rows, cols) rounded to nearest even in ``dtype``; fp8_e4m3 scales each slice's largest entry to 448.

    A slice that holds NaN or infinity becomes NaN throughout in fp8_e4m3, whose scale it ruins.
    """
    kind = torch_dtype(dtype, x.is_complex())
    if dtype != "fp8_e4m3":
        return Stored(x.to(kind).contiguous())
    peak = x.abs().amax(dim=(-2, -1), keepdim=True) if x.numel() else x.new_ones((*x.shape[:-2], 1, 1))
    scale = scale_for(peak)
    return Stored((x * scale).to(kind).contiguous(), scale)


def scale_for(peak: Tensor) -> Tensor:
    """The fp8_e4m3 scales of slices whose largest magnitudes are ``peak``, of any shape."""
    scale = torch.where(peak == 0, torch.ones_like(peak), FP8_MAX / peak)  # NaN ruins the scale, infinity makes it 0
    # A peak so small that its scale overflows is stored unscaled, as zero: nothing finite turns into NaN.
    return torch.where(torch.isinf(scale), torch.ones_like(scale), scale)


def restore(stored: Stored, dtype: str) -> Tensor:
    """The numbers that a stored operand stands for, in ``dtype``."""
    x = stored.data.to(torch_dtype(dtype, stored.data.is_complex()))
    return x if stored.scale is None else (x / stored.scale).to(x.dtype)


def rounded(x: Tensor, dtype: str, compute: str) -> Tensor:
    """x as it comes back from storage in ``dtype``, in ``compute``; the gradient passes as if nothing was rounded."""
    if dtype == compute and dtype_name(x.dtype)[0] == compute:
        return x
    if watched(x):
        wide = x.to(torch_dtype(wider(compute, dtype_name(x.dtype)[0]), x.is_complex()))
        kept = restore(store(wide.detach(), dtype), compute).to(wide.dtype)
        return (wide + (kept - wide.detach())).to(torch_dtype(compute, x.is_complex()))
    result: Tensor = _Rounded.apply(x, dtype, compute)  # type: ignore[no-untyped-call]
    return result


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: str, compute: str) -> Tensor:
        ctx.dtype = x.dtype
        return restore(store(x, dtype), compute)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].to(ctx.dtype), None, None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a: (r, ..., M', K'), b: (r, ..., K', N') -> (r, ..., M', N'): a[q] @ b[q], batches broadcast as in torch.matmul.

    Without a batch on the right, that of the left is folded into the rows: r products, nothing is copied.
    """
    batch = np.broadcast_shapes(a.shape[1:-2], b.shape[1:-2])
    rank, rows, inner, cols = a.shape[0], a.shape[-2], a.shape[-1], b.shape[-1]
    if math.prod(b.shape[1:-2]) == 1:
        count = math.prod(a.shape[1:-2])
        flat = torch.bmm(a.reshape(rank, count * rows, inner), b.reshape(rank, inner, cols))
        return flat.reshape(rank, *batch, rows, cols)
    a, b = (x.reshape(rank, *[1] * (len(batch) + 3 - x.ndim), *x.shape[1:]) for x in (a, b))
    return torch.matmul(a, b)


def residuals(u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """u: (S, r, m, k), v: (S, r, k, n), w: (S, r, m, n) -> (E, kappa), (S) each, as ``stl_search.score`` defines them.

    From the residual tensor itself, so that E is accurate near zero too; a few schemes at a time are in memory.
    """
    _, r, m, k = u.shape
    n = v.shape[-1]
    unit = [torch.eye(side, dtype=u.dtype, device=u.device) for side in (m, k, n)]
    target = torch.einsum("ax,by,cz->abycxz", *unit).reshape(m * k, k * n * m * n)
    found = []
    for some in zip(*(torch.split(f.flatten(2), max(1, (1 << 22) // target.numel())) for f in (u, v, w)), strict=True):
        rest = (some[1][..., None] * some[2][:, :, None, :]).flatten(2)
        gap = target - some[0].mT @ rest
        gain = torch.stack([(f * f).sum(-1) for f in some]).prod(0).sum(-1)
        found.append(torch.stack([(gap * gap).sum((1, 2)), gain]) / (m * k * n))
    both = torch.cat(found, dim=1) if found else u.new_empty((2, 0))
    return both[0], both[1]


def encode_operand(x: Tensor, plan: Plan, side: str) -> Tensor:
    """x: (..., M, K) for side "lhs", (..., K, N) for "rhs" -> (r, ..., rows, cols), encoded but not yet rounded."""
    coefficients = plan.coefficients(side, wider(plan.compute, dtype_name(x.dtype)[0]), x.device)
    return encode(x, coefficients, plan.layout)


def multiply_encoded(a: Tensor, b: Tensor, rows: int, cols: int, plan: Plan) -> Tensor:
    """a: (r, ..., M', K'), b: (r, ..., K', N') in ``plan.compute`` -> C: (..., rows, cols) in ``plan.out``."""
    p = rounded(product(a, b), plan.product, plan.compute)
    coefficients = plan.coefficients("out", plan.compute, p.device)
    return decode(p, coefficients, rows, cols, plan.layout, torch_dtype(plan.out, plan.complex))


def multiply(a: Tensor, b: Tensor, plan: Plan) -> Tensor:
    """A: (..., M, K), B: (..., K, N) -> C: (..., M, N) in ``plan.out``: encode, round, multiply, decode.

    Raises UsageError when inner dimensions differ or real and complex are mixed.
    """
    if a.shape[-1] != b.shape[-2]:
        raise UsageError(f"A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply: {a.shape[-1]} != {b.shape[-2]}")
    for x, name in ((a, "A"), (b, "B")):
        if x.is_complex() != plan.complex:
            raise UsageError(f"{name} is {'' if x.is_complex() else 'not '}complex, the plan says otherwise")
    a_hat, b_hat = (
        rounded(encode_operand(x, plan, side), plan.dtype, plan.compute) for x, side in ((a, "lhs"), (b, "rhs"))
    )
    return multiply_encoded(a_hat, b_hat, a.shape[-2], b.shape[-1], plan)
