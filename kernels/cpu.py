"""Encode and decode on the processor, compiled by numba: one pass over memory, whatever the layout and the edges.

Both are the same act: output strip s = sum_p matrix[s, p] * input strip p, for strips of a few dozen neighbours of one
row. An encoder's inputs are the m k blocks of an operand and its outputs the r slices; a decoder's the other way round.
The accumulators of a strip stay in vector registers, the inputs in the first cache; zeros of the matrix cost nothing.
Row ranges run in several threads without the interpreter's lock, and any number of callers may run at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import types

from stl_search.kernels.strips import KEPT, WIDTH_BYTES, combine_rows, pieces
from stl_search.kernels.threads import share
from stl_search.kernels.vectors import LINE

__all__ = ["decode", "decode_into", "empty", "encode", "encode_into", "supports"]

Tensor = torch.Tensor

GRAIN = 1 << 15  # entries below which a second thread is not worth its wake-up
LARGE = 1 << 22  # bytes of an array from which on pages of 2 MB are asked for
STEP = 4  # what is kept in registers is a multiple of it, so that few forms are compiled

# How the compiled code names the number formats.
_KINDS = {
    torch.float32: types.float32,
    torch.float64: types.float64,
    torch.bfloat16: types.uint16,
    torch.float16: types.int16,
}


def supports(*dtypes: torch.dtype) -> bool:
    """Whether operands and results of these types are handled here: float16, bfloat16, float32, float64."""
    return all(dtype in _KINDS for dtype in dtypes)


def encode(x: Tensor, coefficients: Tensor, layout: str = "block", dtype: torch.dtype | None = None) -> Tensor:
    """x: (..., M, K), coefficients: (r, m, k) -> (r, ..., ceil(M/m), ceil(K/k)) in ``dtype``, rounded once.

    Sums run in the coefficients' dtype, float32 or float64. The oracle is ``reference.encode_naive``. A column-major x
    gives slices that are column-major too.
    """
    if x.stride(-1) != 1 and x.stride(-2) == 1 and x.shape[-1] > 1:
        return encode(x.mT, coefficients.mT, layout, dtype).mT
    r, m, k = coefficients.shape
    *batch, rows, cols = x.shape
    shape = (r, *batch, -(-rows // m), -(-cols // k))
    out = empty(shape, dtype or coefficients.dtype)
    encode_into(x, coefficients, layout, out)
    return out


def encode_into(x: Tensor, coefficients: Tensor, layout: str, out: Tensor, top: int = 0, left: int = 0) -> None:
    """Into ``out``: (r, ..., rows, cols), the window of all slices of x: (..., M, K) that begins at (top, left)."""
    if not len(out):
        return
    x = x.resolve_neg()  # torch may hold a sign as a note, which memory does not tell
    blocks = _Side.of_matrix(x, coefficients, layout, top, left)
    _run(blocks, _Side.of_slices(out), out.shape[1:], coefficients, by_output=True)


def decode(
    p: Tensor, coefficients: Tensor, rows: int, cols: int, layout: str = "block", dtype: torch.dtype | None = None
) -> Tensor:
    """p: (r, ..., M', N'), coefficients: (r, m, n) -> (..., rows, cols) in ``dtype``, rounded once.

    Sums run in the coefficients' dtype. The oracle is ``reference.decode_naive``.
    """
    out = empty((*p.shape[1:-2], rows, cols), dtype or coefficients.dtype)
    decode_into(p, coefficients, layout, out)
    return out


def decode_into(
    p: Tensor | Sequence[Tensor], coefficients: Tensor, layout: str, out: Tensor, top: int = 0, left: int = 0
) -> None:
    """What p, the window of all slices that begins at (top, left), decodes to in ``out``: (..., M, N).

    p: (r, ..., rows, cols), or its r slices, all laid out alike; of none, all of ``out`` is zero.
    """
    if not len(p):
        out.zero_()
        return
    blocks = _Side.of_matrix(out, coefficients, layout, top, left)
    _run(_Side.of_slices(p), blocks, p[0].shape, coefficients, by_output=False)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new tensor that begins with a line of cache; a large one on pages of 2 MB where the system grants them.

    Those are first touched far faster.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return torch.empty(shape, dtype=dtype, device="cpu")
    held = np.empty(size + LINE, np.uint8)  # numpy asks for them
    start = -held.ctypes.data % LINE
    return torch.from_numpy(held[start : start + size]).view(dtype).view(shape)


class _Side:
    """Where the strips of one side lie: P pieces of memory, each with a row for every (batch, row) that is asked for.

    ``places`` (3, P) holds for each piece its address, and how many rows and columns of it are there; the rest is zero.
    ``batch`` holds offsets in bytes, ``step`` the bytes from row to row, ``size`` those of an entry, ``stride`` the
    entries from column to column. As many pieces in a row as ``apart`` says lie between each other, entry by entry.
    """

    def __init__(self, x: Tensor, places: Any, step: int, stride: int, apart: int = 1) -> None:
        """``x`` is one piece, (..., rows, cols), or what all lie in."""
        self.kind, self.size = _KINDS[x.dtype], x.itemsize
        self.places = places
        self.batch = _ONE
        if x.ndim > 2:
            offsets = np.zeros((), np.int64)
            for length, jump in zip(x.shape[:-2], x.stride()[:-2], strict=True):
                offsets = np.add.outer(offsets, self.size * jump * np.arange(length))
            self.batch = offsets.ravel()
        self.step, self.stride, self.apart = self.size * step, stride, apart

    @classmethod
    def of_matrix(cls, x: Tensor, coefficients: Tensor, layout: str, top: int, left: int) -> _Side:
        """The m k blocks of x: (..., M, K), or what its tiles hold at each of the m k places, from (top, left) on."""
        _, m, k = coefficients.shape
        a, b = _grid(m, k)
        rows, cols = x.shape[-2:]
        down, right = x.stride()[-2:]
        places = np.empty((3, m * k), np.int64)
        if layout == "block":
            height, width = -(-rows // m), -(-cols // k)
            places[0] = (a * height + top) * down + (b * width + left) * right
            places[1] = np.minimum(rows - a * height, height) - top
            places[2] = np.minimum(cols - b * width, width) - left
            step, stride, apart = down, right, 1
        else:
            places[0] = (a + top * m) * down + (b + left * k) * right
            places[1] = -((a - rows) // m) - top
            places[2] = -((b - cols) // k) - left
            step, stride, apart = m * down, k * right, k if right == 1 else 1
        places[0] *= x.itemsize
        places[0] += x.data_ptr()
        return cls(x, places, step, stride, apart)

    @classmethod
    def of_slices(cls, x: Tensor | Sequence[Tensor]) -> _Side:
        """The r slices of x: (r, ..., rows, cols)."""
        one = x[0]
        places = np.empty((3, len(x)), np.int64)
        if isinstance(x, Tensor):
            places[0] = x.data_ptr() + x.itemsize * x.stride(0) * np.arange(len(x))
        else:
            places[0] = [piece.data_ptr() for piece in x]
        places[1], places[2] = one.shape[-2:]
        return cls(one, places, one.stride(-2), one.stride(-1))

    def arguments(self) -> tuple[Any, ...]:
        """As ``combine_rows`` takes them."""
        return self.places, self.batch, self.step, self.size, self.stride, self.apart


_ONE = np.zeros(1, np.int64)  # where no batch is, one matrix at no offset


@functools.cache
def _grid(m: int, k: int) -> tuple[Any, Any]:
    """(rows, columns) of the m k places of a tile, row by row."""
    a, b = np.divmod(np.arange(m * k), k)
    return a, b


def _run(source: _Side, target: _Side, piece: Sequence[int], coefficients: Tensor, by_output: bool) -> None:
    """All rows of the slices, each (..., height, width), shared among as many threads as torch would use."""
    height, width = piece[-2:]
    total = len(source.batch) * height
    if total == 0 or width == 0:
        return
    terms = _Terms(coefficients, by_output)
    functions = pieces(
        source.kind, target.kind, _KINDS[coefficients.dtype], source.apart, target.apart, terms.inputs, terms.outputs
    )
    strip = WIDTH_BYTES // coefficients.itemsize
    gathered = max(source.places.shape[1], terms.inputs) * WIDTH_BYTES
    row = strip * target.size
    made = row * np.arange(max(target.places.shape[1], terms.outputs))

    def work(first: int, last: int) -> None:
        held = np.zeros(LINE + gathered + row * len(made), np.uint8)  # of each thread its own
        address = held.ctypes.data
        address += -address % LINE
        combine_rows(
            height, width, strip, functions.addresses, address, address + gathered, address + gathered + made,
            *source.arguments(), *target.arguments(), *terms.arguments(), first, last,
        )  # fmt: skip

    entries = total * width * max(source.places.shape[1], target.places.shape[1])
    threads = max(1, min(torch.get_num_threads(), total, entries // GRAIN))
    cuts = [total * t // threads for t in range(threads + 1)]
    share(lambda t: work(cuts[t], cuts[t + 1]), threads)


class _Terms:
    """The matrix (outputs, inputs) as ``combine_rows`` takes it.

    By rows: where each begins, the inputs and the factors of its non-zeros. Where no zero in it saves work, whole, and
    how many ``inputs`` or ``outputs`` are kept in registers.
    """

    def __init__(self, coefficients: Tensor, by_output: bool) -> None:
        table = coefficients.detach().reshape(len(coefficients), -1).numpy()
        kept = -(-table.shape[1] // STEP) * STEP
        self.inputs = self.outputs = 0
        self.starts = self.cols = _ONE
        self.factors = self.whole = table[:0]
        if kept <= KEPT and table.all():
            self.whole = np.pad(table, ((0, 0), (0, kept - table.shape[1])))
            self.inputs, self.outputs = (kept, 0) if by_output else (0, kept)
            return
        if not by_output:
            table = table.T
        rows, cols = np.nonzero(table)
        self.starts = np.searchsorted(rows, np.arange(len(table) + 1))
        self.cols = np.ascontiguousarray(cols)
        self.factors = table[rows, cols]

    def arguments(self) -> tuple[Any, ...]:
        """As ``combine_rows`` takes them; good as long as this object is."""
        return self.starts, self.cols, self.factors.ctypes.data, self.whole.ctypes.data, len(self.whole)
