"""Products whose right operand lies in panels: a few vectors of columns each, row after row, as registers take them.

The scheme of Goto and van de Geijn (doi 10.1145/1356052.1356053) with B arranged beforehand and A as it is: a tile of
C stays in registers while a run of A's rows meets one panel of B. A library arranges B at every call; for some
hundred rows that costs a tenth of the product and more. Here B encoded is arranged once, however many rows follow.
"""

from __future__ import annotations

import math
from array import array

import numpy as np
import torch

from stl_search.kernels import cpu
from stl_search.kernels.threads import together
from stl_search.kernels.tiles import BLOCK, ROWS, VECTORS, worker
from stl_search.kernels.vectors import BYTES, FUSED, LINE

__all__ = ["Panels", "supports"]

Tensor = torch.Tensor

RUN = BLOCK  # rows of A that one thread multiplies at a time
SHARES = 8  # runs that a matrix is cut into while the last ones are multiplied, so that no thread is waited for long
LEAST = 32  # rows of such a run

_KINDS = {torch.float32: np.float32, torch.float64: np.float64}


def supports(dtype: torch.dtype) -> bool:
    """Whether products of this dtype are made here: float32 and float64, where the processor adds products at once."""
    return FUSED and dtype in _KINDS


def _across(dtype: torch.dtype) -> int:
    """Columns of a panel."""
    return VECTORS * BYTES // dtype.itemsize


class Panels:
    """r matrices B: (r, K, N) in panels: ``data`` (r, ceil(N / c), K, c), zeros beyond the last column.

    Between matrices a line of cache is left free: rows of all of them are written together, and would else often be at
    the same place of the caches.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, data: Tensor | None = None) -> None:
        """Nothing in it yet; ``data`` may be memory to use, of the bytes that ``size`` says or more."""
        self.shape, self.dtype, self.device = torch.Size(shape), dtype, torch.device("cpu")
        whole = self.size(shape, dtype)
        held = cpu.empty((whole,), torch.uint8) if data is None else data.view(torch.uint8)[:whole]
        one = math.prod(self.inside(shape, dtype)[1:])
        self.data = (
            held.view(dtype).view(shape[0], one + LINE // dtype.itemsize)[:, :one].view(self.inside(shape, dtype))
        )

    @classmethod
    def of(cls, b: Tensor) -> Panels:
        """b: (r, K, N), float32 or float64."""
        r, inner, cols = b.shape
        made = cls((r, inner, cols), b.dtype)
        made.fill(b)
        return made

    @staticmethod
    def inside(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[int, int, int, int]:
        """The shape of ``data``."""
        r, inner, cols = shape
        across = _across(dtype)
        return r, -(-cols // across), inner, across

    @classmethod
    def size(cls, shape: tuple[int, int, int], dtype: torch.dtype) -> int:
        """The bytes of ``data`` and between."""
        r, *one = cls.inside(shape, dtype)
        return r * (math.prod(one) * dtype.itemsize + LINE)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        r, inner, cols = self.shape
        return self.size((r, inner, cols), self.dtype)

    def columns(self, left: int, count: int) -> Panels:
        """``count`` columns from ``left`` on, which begins a panel; in the same memory."""
        across = self.data.shape[-1]
        first, last = left // across, -(-(left + count) // across)
        part = object.__new__(Panels)
        part.shape, part.dtype, part.device = torch.Size((*self.shape[:2], count)), self.dtype, self.device
        part.data = self.data[:, first:last]
        return part

    def fill(self, b: Tensor, top: int = 0) -> None:
        """The rows from ``top`` on become those of b: (r, rows, N), of any dtype."""
        r, rows, cols = b.shape
        across = self.data.shape[-1]
        whole = cols // across
        part = self.data[:, :, top : top + rows]
        part[:, :whole].copy_(b[..., : whole * across].reshape(r, rows, whole, across).transpose(1, 2))
        if whole * across < cols:
            part[:, whole, :, cols - whole * across :] = 0
            part[:, whole, :, : cols - whole * across].copy_(b[..., whole * across :])

    def unpacked(self) -> Tensor:
        """(r, K, N), contiguous: the same numbers."""
        r, inner, cols = self.shape
        return self.data.transpose(1, 2).flatten(2)[..., :cols].contiguous()

    def products(self, a: Tensor, out: Tensor | None = None) -> Tensor:
        """a: (r, ..., M, K) of the same dtype -> (r, ..., M, N), on ``out`` where that is given.

        Whole matrices, or runs of their rows, are shared among as many threads as torch would use. Sums over K are made
        in one order, whatever the threads.
        """
        r, inner, cols = self.shape
        if out is None:
            out = cpu.empty((*a.shape[:-1], cols), self.dtype)
        rows, size = math.prod(a.shape[1:-1]), self.dtype.itemsize
        if not inner:
            return out.zero_()
        flat, to = a.reshape(r, rows, inner), out.view(r, rows, cols)
        if flat.stride(-1) != 1:
            flat = flat.contiguous()
        threads = max(1, torch.get_num_threads())
        first = max(0, r - 2 * threads)
        small = min(RUN, max(LEAST, -(-rows // SHARES // ROWS) * ROWS))
        parts = first * -(-rows // RUN) + (r - first) * -(-rows // small)
        job = array(
            "q",
            (
                0, parts, first, RUN, small, rows, inner, cols, flat.data_ptr(), self.data.data_ptr(), to.data_ptr(),
                size * flat.stride(0), size * self.data.stride(0), size * to.stride(0),
                size * flat.stride(1), size * to.stride(1),
            ),
        )  # fmt: skip
        if parts:
            together(worker(_KINDS[self.dtype]), job.buffer_info()[0], min(threads, parts))
        return out
