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

from stl_search.kernels.strips import KEPT, combine_rows
from stl_search.kernels.threads import share
from stl_search.kernels.vectors import LINE

__all__ = ["decode", "decode_into", "empty", "encode", "encode_into", "supports"]

Tensor = torch.Tensor

GRAIN = 1 << 15  # entries below which a second thread is not worth its wake-up
LARGE = 1 << 22  # bytes of an array from which on pages of 2 MB are asked for
STEP = 4  # what is kept in registers is a multiple of it, so that few forms are compiled

# How the compiled code tells the number formats apart: by the numpy type of an empty array.
_TAGS = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
}


def supports(*dtypes: torch.dtype) -> bool:
    """Whether operands and results of these types are handled here: float16, bfloat16, float32, float64."""
    return all(dtype in _TAGS for dtype in dtypes)


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

    p: (r, ..., rows, cols), or its r slices, all laid out alike.
    """
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

    ``base`` (P,) and ``batch`` are addresses and offsets in bytes, ``step`` the bytes from row to row, ``stride`` the
    entries from column to column; ``rows`` and ``cols`` (P,) say how much of each piece is there, the rest is zero.
    So many pieces in a row as ``apart`` has entries lie between each other, entry by entry.
    """

    def __init__(self, x: Tensor, base: Any, step: int, stride: int, rows: Any, cols: Any, apart: int = 1) -> None:
        """``x`` is one piece, (..., rows, cols), or what all lie in; ``base`` holds addresses."""
        size = x.itemsize
        self.tag = _TAGS[x.dtype]
        self.base = np.asarray(base, np.int64).ravel()
        offsets = np.zeros((), np.int64)
        for length, jump in zip(x.shape[:-2], x.stride()[:-2], strict=True):
            offsets = np.add.outer(offsets, size * jump * np.arange(length))
        self.batch = offsets.ravel()
        self.step, self.stride = size * step, stride
        self.apart = (0,) * apart  # the compiled code knows its length
        self.rows, self.cols = (np.maximum(n, 0).astype(np.int64).ravel() for n in (rows, cols))

    @classmethod
    def of_matrix(cls, x: Tensor, coefficients: Tensor, layout: str, top: int, left: int) -> _Side:
        """The m k blocks of x: (..., M, K), or what its tiles hold at each of the m k places, from (top, left) on."""
        _, m, k = coefficients.shape
        down, right = x.stride()[-2:]
        a, b = np.arange(m)[:, None], np.arange(k)[None, :]
        one = np.ones((m, k), np.int64)
        if layout == "block":
            height, width = -(-x.shape[-2] // m), -(-x.shape[-1] // k)
            rows = np.minimum(x.shape[-2] - a * height, height) * one - top
            cols = np.minimum(x.shape[-1] - b * width, width) * one - left
            entries = (a * height + top) * down + (b * width + left) * right
            return cls(x, x.data_ptr() + x.itemsize * entries, down, right, rows, cols)
        rows = -((a - x.shape[-2]) // m) * one - top
        cols = -((b - x.shape[-1]) // k) * one - left
        entries = (a + top * m) * down + (b + left * k) * right
        apart = k if right == 1 else 1
        return cls(x, x.data_ptr() + x.itemsize * entries, m * down, k * right, rows, cols, apart)

    @classmethod
    def of_slices(cls, x: Tensor | Sequence[Tensor]) -> _Side:
        """The r slices of x: (r, ..., rows, cols)."""
        one = x[0]
        if isinstance(x, Tensor):
            base = x.data_ptr() + x.itemsize * x.stride(0) * np.arange(len(x))
        else:
            base = np.array([piece.data_ptr() for piece in x], np.int64)
        rows, cols = (np.full(len(x), n) for n in one.shape[-2:])
        return cls(one, base, one.stride(-2), one.stride(-1), rows, cols)

    def arguments(self) -> tuple[Any, ...]:
        """As ``combine_rows`` takes them."""
        return self.tag, self.base, self.batch, self.step, self.stride, self.rows, self.cols, self.apart


def _run(source: _Side, target: _Side, piece: Sequence[int], coefficients: Tensor, by_output: bool) -> None:
    """All rows of the slices, each (..., height, width), shared among as many threads as torch would use."""
    height, width = piece[-2:]
    total = len(source.batch) * height
    if total == 0 or width == 0:
        return
    terms = _terms(coefficients, by_output)
    work = functools.partial(combine_rows, height, width, *source.arguments(), *target.arguments(), *terms)
    entries = total * width * max(len(source.base), len(target.base))
    threads = max(1, min(torch.get_num_threads(), total, entries // GRAIN))
    cuts = [total * t // threads for t in range(threads + 1)]
    share(lambda t: work(cuts[t], cuts[t + 1]), threads)


def _terms(coefficients: Tensor, by_output: bool) -> tuple[Any, ...]:
    """The matrix (outputs, inputs) as ``combine_rows`` takes it: by rows, where each begins, the inputs and the factors
    of its non-zeros; whole, and how many inputs or outputs are kept in registers, where no zero in it saves work."""
    table = coefficients.detach().reshape(len(coefficients), -1).numpy()
    kept = -(-table.shape[1] // STEP) * STEP
    none: tuple[int, ...] = ()
    inputs = outputs = none
    whole = np.zeros((0, 0), table.dtype)
    if kept <= KEPT and table.all():
        whole = np.pad(table, ((0, 0), (0, kept - table.shape[1])))
        inputs, outputs = ((0,) * kept, none) if by_output else (none, (0,) * kept)
    if not by_output:
        table = table.T
    rows, cols = np.nonzero(table)
    starts = np.searchsorted(rows, np.arange(len(table) + 1))
    factors = np.ascontiguousarray(table[rows, cols])
    return starts.astype(np.int64), cols.astype(np.int64), factors, whole, inputs, outputs
