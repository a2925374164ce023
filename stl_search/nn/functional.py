"""The arithmetic of STL layers: encode, multiply, decode, with gradients to everything.

x: (..., M, K) times B: (K, N), cut into contiguous m x k and k x n tiles (a ragged edge counts as padded with zeros).
Each inner tile may have an encoder of its own: u: (r, m, k) for all, or (J, r, m, k) for the J = ceil(K/k) of them.
Plain torch operations, which are also the oracle, but for large results without gradients: there the compiled kernels
of ``stl_search.kernels.ops`` take over, see ``LARGE``.
"""

from __future__ import annotations

import torch

from stl_search.kernels import ops
from stl_search.kernels.reference import decode_naive
from stl_search.kernels.watched import watched

__all__ = ["decode", "encode_lhs", "encode_rhs", "stl_product", "tiles"]

Tensor = torch.Tensor


def tiles(x: Tensor, height: int, width: int) -> Tensor:
    """x: (..., M, K) -> (..., ceil(M/height), height, ceil(K/width), width), zeros beyond the edge."""
    *batch, rows, cols = x.shape
    down, across = -(-rows // height), -(-cols // width)
    if rows != height * down or cols != width * across:
        x = torch.nn.functional.pad(x, (0, width * across - cols, 0, height * down - rows))
    return x.reshape(*batch, down, height, across, width)


# Entries of encodings and products from which the kernels are the faster form on the processor (docs/log.md). With
# gradients they are not, and inside torch.compile plain operations can be fused with what stands around them.
LARGE = 1 << 20


def _by_kernels(entries: int, x: Tensor, *factors: Tensor) -> bool:
    """Whether the operators make this many entries from x and these factors; else plain torch operations do."""
    if any(f.ndim == 4 for f in factors) or not x.is_floating_point() or watched(x, *factors):
        return False
    if torch.is_grad_enabled() and any(y.requires_grad for y in (x, *factors)):
        return False
    if x.device.type == "cpu":
        return not torch.compiler.is_compiling() and entries >= LARGE
    return x.device.type == "cuda"


def encode_lhs(x: Tensor, u: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x: (..., M, K), u: (r, m, k) or (J, r, m, k) -> (r, ..., I, J): out[q, ..., i, j] = <u_j[q], x_ij>.

    Sums run in the wider precision of the two, of which ``dtype`` keeps what it can (by default all).
    """
    rows, cols = x.shape[-2:]
    r, m, k = u.shape[-3:]
    entries = r * x.shape[:-2].numel() * -(-rows // m) * -(-cols // k)
    wide = torch.promote_types(x.dtype, u.dtype)
    if _by_kernels(entries, x, u):
        made: Tensor = ops.encode(x, u.to(wide), "tile", dtype or wide)
        return made
    grid = tiles(x.to(wide), m, k)
    form = "jqab,...iajb->q...ij" if u.ndim == 4 else "qab,...iajb->q...ij"
    return torch.einsum(form, u.to(wide), grid).to(dtype or wide)


def encode_rhs(b: Tensor, v: Tensor) -> Tensor:
    """B: (K, N), v: (r, k, n) or (J, r, k, n) -> (r, J, L): out[q, j, l] = <v_j[q], B_jl>."""
    if v.ndim == 4:
        return torch.einsum("jqbc,jblc->qjl", v, tiles(b, v.shape[-2], v.shape[-1]))
    return encode_lhs(b, v)


def decode(p: Tensor, w: Tensor, rows: int, cols: int) -> Tensor:
    """p: (r, ..., I, L), w: (r, m, n) -> (..., rows, cols): the tile (i, l) is sum_q p[q, ..., i, l] w[q]."""
    if _by_kernels(p.numel(), p, w):
        wide = torch.promote_types(p.dtype, w.dtype)
        made: Tensor = ops.decode(p, w.to(wide), rows, cols, "tile", wide)
        return made
    return decode_naive(p, w, rows, cols, "tile")


def stl_product(x: Tensor, b_hat: Tensor, u: Tensor, w: Tensor, cols: int, stored: torch.dtype | None = None) -> Tensor:
    """x: (..., M, K), B_hat: (r, J, L), u, w: (r, m, n) -> (..., M, cols), about x B; differentiable in all four.

    Sums of encoding and decoding run in float32 at least; ``stored`` (by default x's dtype) is what both encoded
    operands are rounded to for the r products. The result is in the precision of the sums.
    """
    stored = stored or x.dtype
    wide = torch.promote_types(torch.promote_types(stored, torch.float32), x.dtype)
    a_hat = encode_lhs(x, u.to(wide), stored)
    r, *batch, down, _ = a_hat.shape
    p = torch.bmm(a_hat.flatten(1, -2), b_hat.to(stored))
    return decode(p.reshape(r, *batch, down, p.shape[-1]), w.to(wide), x.shape[-2], cols)
