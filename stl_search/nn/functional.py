"""The arithmetic of STL layers: encode, multiply, decode, with gradients to everything.

x: (..., M, K) times B: (K, N), cut into contiguous m x k and k x n tiles (a ragged edge counts as padded with zeros).
Each inner tile may have an encoder of its own: u: (r, m, k) for all, or (J, r, m, k) for the J = ceil(K/k) of them.
Plain torch operations, which are also the oracle, but for large results without gradients: there compiled kernels take
over, see ``LARGE``, those of ``stl_search.kernels.multiply`` on the processor and of ``ops`` elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from stl_search.kernels import cpu, multiply, ops, panels
from stl_search.kernels.plan import dtype_name, torch_dtype, wider
from stl_search.kernels.reference import decode_naive
from stl_search.kernels.watched import watched
from stl_search.scheme import Shape

__all__ = ["at_once", "by_parts", "decode", "encode_lhs", "encode_rhs", "in_parts", "pack", "stl_product", "tiles"]

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
# Of whole products: entries of the larger of encoding and products, and rows of a slice, from which going through them
# part by part is the faster form.
LARGE_PRODUCT, ROWS = 1 << 15, 32
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))  # which are what they hold


def _by_kernels(entries: int, x: Tensor, *factors: Tensor) -> bool:
    """Whether the operators make this many entries from x and these factors; else plain torch operations do."""
    if any(f.ndim == 4 for f in factors) or not x.is_floating_point() or watched(x, *factors):
        return False
    if _learnt_from(x, *factors):
        return False
    if x.device.type == "cpu":
        return not torch.compiler.is_compiling() and entries >= LARGE
    return x.device.type == "cuda"


def _learnt_from(*tensors: Tensor) -> bool:
    """Whether gradients are to reach any of these."""
    return torch.is_grad_enabled() and any(y.requires_grad for y in tensors)


def encode_lhs(x: Tensor, u: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x: (..., M, K), u: (r, m, k) or (J, r, m, k) -> (r, ..., I, J): out[q, ..., i, j] = <u_j[q], x_ij>.

    Sums run in the wider precision of the two, of which ``dtype`` keeps what it can (by default all).
    """
    rows, cols = x.shape[-2:]
    r, m, k = u.shape[-3:]
    entries = r * math.prod(x.shape[:-2]) * -(-rows // m) * -(-cols // k)
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


@dataclass(frozen=True, eq=False)
class _Learnt:
    """u: (r, m, k) and w: (r, m, n) as ``multiply`` takes them, with encoded operands and products in ``dtype``."""

    u: Tensor
    w: Tensor
    dtype: str
    out: str
    layout: str = "tile"
    complex: bool = False
    derived: dict[Any, Any] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return (*self.u.shape[1:], self.w.shape[2])

    @property
    def rank(self) -> int:
        return len(self.w)

    @property
    def product(self) -> str:
        return self.dtype

    @property
    def compute(self) -> str:
        return self.out

    def coefficients(self, side: str, dtype: str, device: Any) -> Tensor:
        return {"lhs": self.u, "out": self.w}[side].detach().to(device, torch_dtype(dtype))

    @classmethod
    def of(cls, x: Tensor, u: Tensor, w: Tensor, stored: torch.dtype) -> _Learnt:
        """For the product of x, whose result is in the precision of the sums."""
        dtype = dtype_name(stored)[0]
        return cls(u, w, dtype, wider(wider("fp32", dtype), dtype_name(x.dtype)[0]))


def in_parts(x: Tensor, b_hat: Tensor, u: Tensor, w: Tensor, cols: int) -> bool:
    """Whether ``stl_product`` goes through these part by part, see ``multiply``, where encodings stay in cache."""
    given = (x, b_hat, u, w)
    if torch.compiler.is_compiling() or u.ndim == 4 or any(type(y) not in PLAIN or not y.is_cpu for y in given):
        return False
    if watched(*given) or not cpu.supports(*(y.dtype for y in given)):  # sizes may be symbols only then
        return False
    (r, *parts), down = b_hat.shape, x.shape[:-1].numel() / u.shape[1]
    if down < ROWS or parts != [-(-x.shape[-1] // u.shape[2]), -(-cols // w.shape[2])]:
        return False
    return r * down * max(parts) >= LARGE_PRODUCT and not _learnt_from(*given)


def pack(x: Tensor, b_hat: Tensor, u: Tensor, w: Tensor, stored: torch.dtype) -> multiply.Operand:
    """B_hat: (r, J, L), constant, as ``stl_product`` of many x like this one takes it fastest."""
    form = _Learnt.of(x, u, w, stored)
    return multiply.pack(b_hat.detach().to(stored), form, _way(form))


def _way(form: _Learnt) -> str:
    """How slices are multiplied: as was fastest on all processors that were measured, since a layer measures none."""
    return "panels" if panels.supports(multiply.made_in(form)) else "torch"


def by_parts(
    x: Tensor, b_hat: multiply.Operand, u: Tensor, w: Tensor, cols: int, stored: torch.dtype | None = None
) -> Tensor:
    """What ``stl_product`` gives, where ``in_parts`` says so; ``b_hat`` may be what ``pack`` made of it."""
    form = _Learnt.of(x, u, w, stored or x.dtype)
    right = b_hat.detach().to(torch_dtype(form.dtype)) if isinstance(b_hat, Tensor) else b_hat
    return multiply.multiply(x.detach(), right, form, x.shape[-2], cols, (False, True), way=_way(form))


def stl_product(x: Tensor, b_hat: Tensor, u: Tensor, w: Tensor, cols: int, stored: torch.dtype | None = None) -> Tensor:
    """x: (..., M, K), B_hat: (r, J, L), u, w: (r, m, n) -> (..., M, cols), about x B; differentiable in all four.

    Sums of encoding and decoding run in float32 at least; ``stored`` (by default x's dtype) is what both encoded
    operands are rounded to for the r products. The result is in the precision of the sums.
    """
    made = by_parts if in_parts(x, b_hat, u, w, cols) else at_once
    return made(x, b_hat, u, w, cols, stored)


def at_once(x: Tensor, b_hat: Tensor, u: Tensor, w: Tensor, cols: int, stored: torch.dtype | None = None) -> Tensor:
    """``stl_product`` with all encodings and products in memory; differentiable."""
    stored = stored or x.dtype
    wide = torch.promote_types(torch.promote_types(stored, torch.float32), x.dtype)
    a_hat = encode_lhs(x, u.to(wide), stored)
    r, *batch, down, _ = a_hat.shape
    p = torch.bmm(a_hat.flatten(1, -2), b_hat.to(stored))
    return decode(p.reshape(r, *batch, down, p.shape[-1]), w.to(wide), x.shape[-2], cols)
