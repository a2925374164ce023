"""Custom operators stl_search::encode, ::product, ::decode and ::amm: what layers train with and torch.compile sees.

Shapes are those of ``stl_search.kernels.reference``, whose naive forms are the oracles. Each operator runs the fastest
kernel of the operands' device: numba on the processor, Triton on CUDA devices where it is installed, plain torch
elsewhere. Gradients flow to the operands and to all three factors, as if nothing was rounded on the way; second
derivatives too. Under torch.autocast, ``product`` and ``amm`` take their operands in the autocast dtype, as
torch.matmul does, while ``encode`` and ``decode`` run as they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import library

from stl_search.kernels import gpu, gpu_multiply, reference, tuning
from stl_search.kernels.plan import dtype_name

__all__ = ["amm", "decode", "encode", "product"]

Tensor = torch.Tensor
_FP8 = torch.float8_e4m3fn
_GPU_DTYPES = {torch.bfloat16, torch.float16, torch.float32}


# -- encode and decode, adjoint to each other --------------------------------------------------------------------------


@library.custom_op("stl_search::encode", mutates_args=())
def encode(x: Tensor, coefficients: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    """x: (..., M, K), coefficients: (r, m, k) -> (r, ..., ceil(M/m), ceil(K/k)) in ``dtype``, contiguous.

    out[q] = sum_ab coefficients[q,a,b] x_ab, summed in the coefficients' dtype (or the wider one of x), rounded once.
    """
    coefficients = coefficients.detach()
    if _numba(x, coefficients, dtype):
        from stl_search.kernels import cpu

        return cpu.encode(x, coefficients, layout, dtype).contiguous()
    if _on_gpu(x, (coefficients.dtype, dtype), coefficients):
        found: Tensor = gpu.encode(x, coefficients, layout, dtype_name(dtype)[0]).data
        return found
    return reference.encode(x, coefficients, layout).to(dtype).contiguous()


@encode.register_fake
def _(x: Tensor, coefficients: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    r, m, k = coefficients.shape
    shape = (r, *x.shape[:-2], (x.shape[-2] + m - 1) // m, (x.shape[-1] + k - 1) // k)
    return x.new_empty(shape, dtype=dtype)


@library.custom_op("stl_search::decode", mutates_args=())
def decode(p: Tensor, coefficients: Tensor, rows: int, cols: int, layout: str, dtype: torch.dtype) -> Tensor:
    """p: (r, ..., M', N'), coefficients: (r, m, n) -> (..., rows, cols) in ``dtype``, contiguous.

    out_ac = sum_q coefficients[q,a,c] p[q], summed in the coefficients' dtype (or the wider one of p), rounded once;
    what lies beyond (rows, cols) is dropped.
    """
    coefficients = coefficients.detach()
    if _numba(p, coefficients, dtype):
        from stl_search.kernels import cpu

        return cpu.decode(p, coefficients, rows, cols, layout, dtype)
    if _on_gpu(p, (coefficients.dtype, dtype), coefficients):
        found: Tensor = gpu.decode(p.contiguous(), coefficients, rows, cols, layout, dtype_name(dtype)[0])
        return found
    return reference.decode(p, coefficients, rows, cols, layout, dtype)


@decode.register_fake
def _(p: Tensor, coefficients: Tensor, rows: int, cols: int, layout: str, dtype: torch.dtype) -> Tensor:
    return p.new_empty((*p.shape[1:-2], rows, cols), dtype=dtype)


def _encode_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, coefficients, ctx.layout, _ = inputs
    ctx.save_for_backward(x, coefficients)


def _encode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, coefficients = ctx.saved_tensors
    for_x = for_factor = None
    if ctx.needs_input_grad[0]:
        for_x = decode(grad, coefficients.conj(), x.shape[-2], x.shape[-1], ctx.layout, x.dtype)
    if ctx.needs_input_grad[1]:
        for_factor = _contract(grad, x, coefficients, ctx.layout)
    return for_x, for_factor, None, None


def _decode_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    p, coefficients, _, _, ctx.layout, _ = inputs
    ctx.save_for_backward(p, coefficients)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    p, coefficients = ctx.saved_tensors
    for_p = for_factor = None
    if ctx.needs_input_grad[0]:
        for_p = encode(grad, coefficients.conj(), ctx.layout, p.dtype)
    if ctx.needs_input_grad[1]:
        for_factor = _contract(p, grad, coefficients, ctx.layout).conj()
    return for_p, for_factor, None, None, None, None


def _contract(slices: Tensor, x: Tensor, like: Tensor, layout: str) -> Tensor:
    """slices: (r, ..., M', K'), x: (..., M, K) -> (r, m, k) like a factor: each slice's products with each block."""
    r, m, k = like.shape
    wide = torch.promote_types(torch.promote_types(slices.dtype, x.dtype), like.dtype)
    units = torch.eye(m * k, dtype=like.dtype, device=x.device).reshape(m * k, m, k)
    blocks = encode(x.conj().to(wide), units, layout, wide).flatten(1)
    found = slices.to(wide).flatten(1) @ blocks.T
    return found.reshape(r, m, k).to(like.dtype) if like.is_complex() else _real(found).reshape(r, m, k).to(like.dtype)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


encode.register_autograd(_encode_backward, setup_context=_encode_context)
decode.register_autograd(_decode_backward, setup_context=_decode_context)


# -- product -----------------------------------------------------------------------------------------------------------


@library.custom_op("stl_search::product", mutates_args=())
def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a: (r, ..., M', K'), b: (r, ..., K', N') -> (r, ..., M', N') in ``dtype``: a[q] @ b[q], batches broadcast.

    Sums run in float32 at least, and in float64 when ``dtype`` or an operand is.
    """
    if a.dtype == b.dtype and _on_gpu(a, (dtype,)):
        found: Tensor = gpu.product(a, b, dtype_name(dtype)[0])
        return found
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), dtype)
    if not (a.dtype == b.dtype == dtype == torch.bfloat16):  # bf16 alone has a product that sums in float32
        wide = torch.promote_types(wide, torch.float32)
    return reference.product(a.to(wide), b.to(wide)).to(dtype).contiguous()


@product.register_fake
def _(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    batch = _broadcast(a.shape[1:-2], b.shape[1:-2])
    return a.new_empty((a.shape[0], *batch, a.shape[-2], b.shape[-1]), dtype=dtype)


def _product_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    for_a = for_b = None
    if ctx.needs_input_grad[0]:
        for_a = _sum_to(product(grad, b.mH, a.dtype), a)
    if ctx.needs_input_grad[1]:
        for_b = _sum_to(product(a.mH, grad, b.dtype), b)
    return for_a, for_b, None


def _sum_to(grad: Tensor, like: Tensor) -> Tensor:
    """(r, *batch, rows, cols) summed over the batch that ``like`` was broadcast along."""
    extra = grad.ndim - like.ndim
    if extra:
        grad = grad.sum(dim=tuple(range(1, 1 + extra)))
    spread = [i for i in range(1, like.ndim - 2) if like.shape[i] == 1 and grad.shape[i] != 1]
    return grad.sum(dim=spread, keepdim=True) if spread else grad


product.register_autograd(_product_backward, setup_context=_product_context)


# -- the whole ---------------------------------------------------------------------------------------------------------


@library.custom_op("stl_search::amm", mutates_args=())
def amm(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    v: Tensor,
    w: Tensor,
    layout: str,
    stored: torch.dtype,
    products: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """A: (..., M, K), B: (..., K, N), u: (r, m, k), v: (r, k, n), w: (r, m, n) -> C: (..., M, N) in ``dtype``.

    Encoded operands are kept in ``stored``, in float8_e4m3fn with a scale for each slice, products in ``products``;
    nothing between is kept for the gradient. On a GPU, decoding is fused with the products where that was measured to
    be faster and w lies on the host.
    """
    formats = (b.dtype, products, dtype, *(f.dtype for f in (u, v, w)))
    narrow = stored == _FP8 and tuning.multiplies_fp8(a.device)
    if (narrow or stored in _GPU_DTYPES) and _on_gpu(a, formats, u, v, w):
        kind = dtype_name(stored)[0]
        a_hat = gpu_multiply.encode_with(a, u.detach(), layout, kind, "lhs")
        b_hat = gpu_multiply.encode_with(b, v.detach(), layout, kind, "rhs")
        size, kept = (a.shape[-2], b.shape[-1]), (dtype_name(products)[0], dtype_name(dtype)[0])
        return gpu_multiply.decoded(a_hat, b_hat, w.detach(), *size, layout, *kept)
    p = product(_hat(a, u, layout, stored), _hat(b, v, layout, stored), products)
    c: Tensor = decode(p, w, a.shape[-2], b.shape[-1], layout, dtype)
    return c


def _hat(x: Tensor, factor: Tensor, layout: str, stored: torch.dtype) -> Tensor:
    """x encoded, as it comes back from storage: in ``stored``, or wide where that carries scales."""
    if stored != _FP8:
        hat: Tensor = encode(x, factor, layout, stored)
        return hat
    wide = torch.promote_types(torch.promote_types(x.dtype, factor.dtype), torch.float32)
    kept = reference.store(encode(x, factor, layout, wide), "fp8_e4m3")
    return reference.restore(kept, dtype_name(wide)[0])


@amm.register_fake
def _(
    a: Tensor,
    b: Tensor,
    u: Tensor,
    v: Tensor,
    w: Tensor,
    layout: str,
    stored: torch.dtype,
    products: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    batch = _broadcast(a.shape[:-2], b.shape[:-2])
    return a.new_empty((*batch, a.shape[-2], b.shape[-1]), dtype=dtype)


def _amm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _amm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, u, v, w = ctx.saved_tensors
    layout, stored, products, _ = ctx.rest
    need_a, need_b, need_u, need_v, need_w = ctx.needs_input_grad[:5]
    grads: list[Tensor | None] = [None] * 9
    rows, cols = a.shape[-2], b.shape[-1]
    a_hat, b_hat = _hat(a, u, layout, stored), _hat(b, v, layout, stored)
    if need_w:
        grads[4] = _contract(product(a_hat, b_hat, products), grad, w, layout).conj()
    if not (need_a or need_b or need_u or need_v):
        return tuple(grads)
    p_grad = encode(grad, w.conj(), layout, products)
    if need_a or need_u:
        hat = _sum_to(product(p_grad, b_hat.mH, a_hat.dtype), a_hat)
        grads[0] = decode(hat, u.conj(), rows, a.shape[-1], layout, a.dtype) if need_a else None
        grads[2] = _contract(hat, a, u, layout) if need_u else None
    if need_b or need_v:
        hat = _sum_to(product(a_hat.mH, p_grad, b_hat.dtype), b_hat)
        grads[1] = decode(hat, v.conj(), b.shape[-2], cols, layout, b.dtype) if need_b else None
        grads[3] = _contract(hat, b, v, layout) if need_v else None
    return tuple(grads)


amm.register_autograd(_amm_backward, setup_context=_amm_context)


# -- autocast ----------------------------------------------------------------------------------------------------------


_LIBRARY = library.Library("stl_search", "FRAGMENT")  # type: ignore[no-untyped-call]


def _narrowed(x: Tensor, kind: torch.dtype) -> Tensor:
    return x.to(kind) if x.dtype == torch.float32 else x


def _register_autocast(device: str, key: str) -> None:
    """As torch.matmul: float32 operands become the autocast dtype. The factors of ``amm`` stay as they are."""

    def product_cast(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        kind = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            p: Tensor = product(_narrowed(a, kind), _narrowed(b, kind), dtype)
        return p

    def amm_cast(
        a: Tensor,
        b: Tensor,
        u: Tensor,
        v: Tensor,
        w: Tensor,
        layout: str,
        stored: torch.dtype,
        products: torch.dtype,
        dtype: torch.dtype,
    ) -> Tensor:
        kind = torch.get_autocast_dtype(device)
        stored, dtype = (kind if x == torch.float32 else x for x in (stored, dtype))
        with torch.autocast(device, enabled=False):
            c: Tensor = amm(_narrowed(a, kind), _narrowed(b, kind), u, v, w, layout, stored, products, dtype)
        return c

    implement: Any = _LIBRARY.impl
    implement("product", product_cast, key)
    implement("amm", amm_cast, key)


for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _register_autocast(_device, _key)


# -- where what runs ---------------------------------------------------------------------------------------------------


def _broadcast(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    shape: tuple[int, ...] = torch.broadcast_shapes(first, second)  # type: ignore[no-untyped-call]
    return shape


def _numba(x: Tensor, coefficients: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels of ``cpu`` apply: real, in memory, and no sum narrower than what it adds."""
    if x.device.type != "cpu" or coefficients.dtype not in (torch.float32, torch.float64):
        return False
    from stl_search.kernels import cpu

    wide = torch.promote_types(x.dtype, coefficients.dtype) == coefficients.dtype
    return wide and coefficients.device.type == "cpu" and cpu.supports(x.dtype, dtype)


def _on_gpu(x: Tensor, dtypes: tuple[torch.dtype, ...], *factors: Tensor) -> bool:
    """Whether the kernels of ``gpu`` apply: they run where the operand is, and know all types and so many parts."""
    known = {x.dtype, *dtypes} <= _GPU_DTYPES and all(f.shape[-1] * f.shape[-2] <= gpu.MOST_PARTS for f in factors)
    return known and gpu_multiply.there(x.device)
