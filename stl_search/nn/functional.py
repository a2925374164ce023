"""The arithmetic of STL layers in plain torch operations: encode, multiply, decode, with gradients to everything.

x: (..., M, K) times B: (K, N), cut into contiguous m x k and k x n tiles (a ragged edge counts as padded with zeros).
Each inner tile may have an encoder of its own: u: (r, m, k) for all, or (J, r, m, k) for the J = ceil(K/k) of them.
"""

from __future__ import annotations

import torch

from stl_search.kernels.reference import decode_naive

__all__ = ["decode", "encode_lhs", "encode_rhs", "stl_product", "tiles"]

Tensor = torch.Tensor


def tiles(x: Tensor, height: int, width: int) -> Tensor:
    """x: (..., M, K) -> (..., ceil(M/height), height, ceil(K/width), width), zeros beyond the edge."""
    *batch, rows, cols = x.shape
    down, across = -(-rows // height), -(-cols // width)
    if rows != height * down or cols != width * across:
        x = torch.nn.functional.pad(x, (0, width * across - cols, 0, height * down - rows))
    return x.reshape(*batch, down, height, across, width)


def encode_lhs(x: Tensor, u: Tensor) -> Tensor:
    """x: (..., M, K), u: (r, m, k) or (J, r, m, k) -> (r, ..., I, J): out[q, ..., i, j] = <u_j[q], x_ij>."""
    grid = tiles(x, u.shape[-2], u.shape[-1])
    return torch.einsum("jqab,...iajb->q...ij" if u.ndim == 4 else "qab,...iajb->q...ij", u, grid)


def encode_rhs(b: Tensor, v: Tensor) -> Tensor:
    """B: (K, N), v: (r, k, n) or (J, r, k, n) -> (r, J, L): out[q, j, l] = <v_j[q], B_jl>."""
    grid = tiles(b, v.shape[-2], v.shape[-1])
    return torch.einsum("jqbc,jblc->qjl" if v.ndim == 4 else "qbc,jblc->qjl", v, grid)


def decode(p: Tensor, w: Tensor, rows: int, cols: int) -> Tensor:
    """p: (r, ..., I, L), w: (r, m, n) -> (..., rows, cols): the tile (i, l) is sum_q p[q, ..., i, l] w[q]."""
    return decode_naive(p, w, rows, cols, "tile")


def stl_product(x: Tensor, b_hat: Tensor, u: Tensor, w: Tensor, cols: int, stored: torch.dtype | None = None) -> Tensor:
    """x: (..., M, K), B_hat: (r, J, L), u, w: (r, m, n) -> (..., M, cols), about x B; differentiable in all four.

    Sums of encoding and decoding run in float32 at least; ``stored`` (by default x's dtype) is what both encoded
    operands are rounded to for the r products. The result is in the precision of the sums.
    """
    stored = stored or x.dtype
    wide = torch.promote_types(torch.promote_types(stored, torch.float32), x.dtype)
    a_hat = encode_lhs(x.to(wide), u.to(wide)).to(stored)
    r, *batch, down, across = a_hat.shape
    p = torch.bmm(a_hat.reshape(r, -1, across), b_hat.to(stored))
    return decode(p.reshape(r, *batch, down, p.shape[-1]).to(wide), w.to(wide), x.shape[-2], cols)
