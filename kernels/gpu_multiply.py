"""C = A B by a plan on a GPU, without gradients: coefficients compiled in, fp8 kept with its scales, decoding fused.

Fused with the products, that is, where it was measured to be faster (``gpu.product_decode``). The oracle is
``reference.multiply``.
"""

from __future__ import annotations

import torch

from stl_search.kernels import gpu, tuning
from stl_search.kernels.plan import Plan
from stl_search.kernels.reference import Stored

__all__ = ["applies", "decoded", "encode", "encode_with", "for_products", "multiply", "there"]

Tensor = torch.Tensor


def applies(plan: Plan, device: torch.device, *dtypes: str) -> bool:
    """Whether operands of these dtypes are multiplied here: real, on a GPU that has Triton, in formats and sizes of
    parts that the kernels take, and storage that the GPU multiplies."""
    m, k, n = plan.scheme.shape
    return (
        there(device)
        and not plan.complex
        and plan.dtype in (*gpu.DTYPES, "fp8_e4m3")
        and (plan.dtype != "fp8_e4m3" or tuning.multiplies_fp8(device))
        and {plan.product, plan.out, *dtypes} <= set(gpu.DTYPES)
        and max(m * k, k * n, m * n) <= gpu.MOST_PARTS
    )


def encode(x: Tensor, plan: Plan, side: str) -> Stored:
    """x: (..., M, K) for side "lhs", (..., K, N) for "rhs" -> (r, ..., rows, cols) in ``plan.dtype``."""
    return encode_with(x, plan.factors[("lhs", "rhs").index(side)], plan.layout, plan.dtype, side)


def encode_with(x: Tensor, coefficients: gpu.Coefficients, layout: str, dtype: str, side: str) -> Stored:
    """As ``gpu.encode``, the slices lying as products want them: fp8 tensor cores take B with K' innermost."""
    if side == "lhs" or dtype != "fp8_e4m3":
        return gpu.encode(x, coefficients, layout, dtype)
    turned = gpu.encode(x.mT, coefficients.swapaxes(1, 2), layout, dtype)
    return Stored(turned.data.mT, turned.scale)


def for_products(stored: Stored, side: str) -> Stored:
    """An encoded operand, from a file for one, as ``encode_with`` lays it out."""
    data = stored.data
    if stored.scale is None or side == "lhs" or data.stride(-2) == 1:
        return stored
    return Stored(data.mT.contiguous().mT, stored.scale)


def multiply(a: Stored, b: Stored, plan: Plan, rows: int, cols: int) -> Tensor:
    """a: (r, ..., M', K'), b: (r, ..., K', N') in ``plan.dtype`` -> C: (..., rows, cols) in ``plan.out``.

    Products are kept in ``plan.product``, or not kept at all.
    """
    return decoded(a, b, plan.factors[2], rows, cols, plan.layout, plan.product, plan.out)


def decoded(
    a: Stored, b: Stored, coefficients: gpu.Coefficients, rows: int, cols: int, layout: str, product: str, out: str
) -> Tensor:
    """As ``gpu.product_decode``, of operands as they are stored."""
    scales = None if a.scale is None or b.scale is None else (a.scale, b.scale)
    return gpu.product_decode(
        a.data, b.data, coefficients, rows, cols, layout, out, scales=scales, product_dtype=product
    )


def there(device: torch.device) -> bool:
    """Whether the kernels run on that device."""
    return device.type == "cuda" and gpu.available()
