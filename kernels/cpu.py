"""Encode and decode on the processor, compiled by numba: one pass over memory, whatever the layout and the edges.

Both are the same act: output strip s = sum_p matrix[s, p] * input strip p, for strips of a few dozen neighbours of one
row. An encoder's inputs are the m k blocks of an operand and its outputs the r slices; a decoder's the other way round.
The accumulators of a strip stay in vector registers, the inputs in the first cache; zeros of the matrix cost nothing.
Row ranges run in several threads without the interpreter's lock, and any number of callers may run at once.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import types

from stl_search.kernels.strips import KEPT, VECTORS, pieces, worker
from stl_search.kernels.threads import together
from stl_search.kernels.vectors import BYTES, LINE

__all__ = ["Constant", "decode", "decode_into", "empty", "encode", "encode_into", "encode_panels", "supports"]

Tensor = torch.Tensor

GRAIN = 1 << 15  # entries below which a second thread is not worth its wake-up
MANY = 1024  # matrices of a batch, up to which what is known of it is kept
PARTS = 4  # for each thread, so that none waits long for one that began late
LARGE = 1 << 22  # bytes of an array from which on pages of 2 MB are asked for
STRIP_OF_PANELS = 2  # panels, where they are filled
TURN = 1.5  # vectors of a strip that take as long as what each strip takes beside
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


def encode(x: Tensor, coefficients: Factor, layout: str = "block", dtype: torch.dtype | None = None) -> Tensor:
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


def encode_into(x: Tensor, coefficients: Factor, layout: str, out: Tensor, top: int = 0, left: int = 0) -> None:
    """Into ``out``: (r, ..., rows, cols), the window of all slices of x: (..., M, K) that begins at (top, left)."""
    if not len(out):
        return
    x = x.resolve_neg()  # torch may hold a sign as a note, which memory does not tell
    blocks, (slices, goal) = _side_of_matrix(x, coefficients, layout, top, left), _side_of_slices(out)
    _run(blocks, x.data_ptr(), slices, goal, out.shape[1:], coefficients, by_output=True)


def encode_panels(x: Tensor, coefficients: Factor, layout: str, out: Tensor, top: int = 0, left: int = 0) -> None:
    """Into ``out``: (r, P, rows, c), the same window of all slices of x: (M, K), cut into panels of c columns.

    The last one is filled up with zeros.
    """
    r, count, rows, across = out.shape
    if not out.numel():
        return
    x = x.resolve_neg()
    _, m, k = coefficients.shape
    cols = -(-x.shape[1] // k) - left
    there = _side_of_matrix(x, coefficients, layout, top, left).places[2].min()
    whole = max(0, min(count, int(there) // across))  # panels in which no piece ends
    apart = x.stride(1) * across * (k if layout == "tile" else 1)
    done = 0
    for parts in (STRIP_OF_PANELS, 1):  # strips are as matrices of a batch, which lie side by side
        strips = (whole - done) // parts
        if strips and parts * across * coefficients.itemsize <= VECTORS * BYTES:
            shape, strides = (strips, *x.shape), (parts * apart, *x.stride())
            blocks = _blocks(x.dtype, shape, strides, (m, k), layout, top, left + done * across)
            shape, strides = (r, strips, rows, parts * across), out.stride()
            slices = _slices(out.dtype, shape, (strides[0], parts * strides[1], *strides[2:]))
            goal, jump = out[:, done:].data_ptr(), strides[1] * out.itemsize
            piece = (strips, rows, parts * across)
            _run(blocks, x.data_ptr(), slices, goal, piece, coefficients, True, parts, jump)
            done += strips * parts
    for p in range(done, count):
        here = min(across, cols - p * across)
        encode_into(x, coefficients, layout, out[:, p, :, :here], top, left + p * across)
        out[:, p, :, here:] = 0


def decode(
    p: Tensor, coefficients: Factor, rows: int, cols: int, layout: str = "block", dtype: torch.dtype | None = None
) -> Tensor:
    """p: (r, ..., M', N'), coefficients: (r, m, n) -> (..., rows, cols) in ``dtype``, rounded once.

    Sums run in the coefficients' dtype. The oracle is ``reference.decode_naive``.
    """
    out = empty((*p.shape[1:-2], rows, cols), dtype or coefficients.dtype)
    decode_into(p, coefficients, layout, out)
    return out


def decode_into(
    p: Tensor | Sequence[Tensor], coefficients: Factor, layout: str, out: Tensor, top: int = 0, left: int = 0
) -> None:
    """What p, the window of all slices that begins at (top, left), decodes to in ``out``: (..., M, N).

    p: (r, ..., rows, cols), or its r slices, all laid out alike; of none, all of ``out`` is zero.
    """
    if not len(p):
        out.zero_()
        return
    blocks, (slices, start) = _side_of_matrix(out, coefficients, layout, top, left), _side_of_slices(p)
    _run(slices, start, blocks, out.data_ptr(), p[0].shape, coefficients, by_output=False)


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

    ``places`` (3, P) holds for each piece where it is, in bytes from some address, and how many rows and columns of it
    are there; the rest is zero. ``batch`` holds offsets in bytes, ``step`` the bytes from row to row, ``size`` those of
    an entry, ``stride`` the entries from column to column. As many pieces in a row as ``apart`` says lie between each
    other, entry by entry. ``words`` are all of these as ``strips.worker`` takes them, good as long as this object is.
    """

    def __init__(self, dtype: torch.dtype, batch: Any, places: Any, step: int, stride: int, apart: int = 1) -> None:
        """``batch`` is (lengths, strides in entries), as ``step``."""
        self.kind, self.size, self.places, self.apart = _KINDS[dtype], dtype.itemsize, places, apart
        offsets = np.zeros((), np.int64)
        for length, jump in zip(*batch, strict=True):
            offsets = np.add.outer(offsets, self.size * jump * np.arange(length))
        self.batch = offsets.ravel()
        self.words = (
            places.ctypes.data, places.shape[1], self.batch.ctypes.data, len(self.batch),
            self.size * step, self.size, stride, apart,
        )  # fmt: skip


@functools.lru_cache(maxsize=512)  # making one takes as long as encoding a small matrix
def _blocks(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    tile: tuple[int, int],
    layout: str,
    top: int,
    left: int,
) -> _Side:
    """The m k blocks of (..., M, K), or what its tiles hold at each of the m k places, from (top, left) on."""
    m, k = tile
    a, b = np.divmod(np.arange(m * k), k)
    rows, cols = shape[-2:]
    down, right = strides[-2:]
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
    places[0] *= dtype.itemsize
    return _Side(dtype, (shape[:-2], strides[:-2]), places, step, stride, apart)


@functools.lru_cache(maxsize=512)
def _slices(dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> _Side:
    """The r slices of (r, ..., rows, cols)."""
    places = np.empty((3, shape[0]), np.int64)
    places[0] = dtype.itemsize * strides[0] * np.arange(shape[0])
    places[1], places[2] = shape[-2:]
    return _Side(dtype, (shape[1:-2], strides[1:-2]), places, strides[-2], strides[-1])


def _side_of_matrix(x: Tensor, coefficients: Factor, layout: str, top: int, left: int) -> _Side:
    """Of x: (..., M, K), from its first entry on."""
    made = _blocks if math.prod(x.shape[:-2]) <= MANY else _blocks.__wrapped__
    _, m, k = coefficients.shape
    return made(x.dtype, x.shape, x.stride(), (m, k), layout, top, left)


def _side_of_slices(x: Tensor | Sequence[Tensor]) -> tuple[_Side, int]:
    """Of x: (r, ..., rows, cols), or of r tensors that are laid out alike, and the address from which on they lie."""
    if isinstance(x, Tensor):
        made = _slices if math.prod(x.shape[1:-2]) <= MANY else _slices.__wrapped__
        return made(x.dtype, x.shape, x.stride()), x.data_ptr()
    one = x[0]
    places = np.empty((3, len(x)), np.int64)
    places[0] = [piece.data_ptr() for piece in x]
    places[1], places[2] = one.shape[-2:]
    batch = one.shape[:-2], one.stride()[:-2]
    return _Side(one.dtype, batch, places, one.stride(-2), one.stride(-1)), 0


def _run(
    source: _Side,
    start: int,
    target: _Side,
    goal: int,
    piece: Sequence[int],
    coefficients: Factor,
    by_output: bool,
    parts: int = 1,
    jump: int = 0,
) -> None:
    """All rows of the slices, each (..., height, width), shared among as many threads as torch would use.

    What is read lies from the address ``start`` on, what is written from ``goal`` on; rows that are one strip each may
    be written in ``parts``, ``jump`` bytes from each other.
    """
    height, width = piece[-2:]
    total = len(source.batch) * height
    if total == 0 or width == 0:
        return
    constant = coefficients if isinstance(coefficients, Constant) else Constant(coefficients)
    terms = constant.terms(by_output)
    lanes = BYTES // coefficients.itemsize
    vectors = _vectors(width, lanes) if parts == 1 else width // lanes
    strip, wide = vectors * lanes, vectors * BYTES
    functions = pieces(
        source.kind, target.kind, _KINDS[coefficients.dtype], vectors, parts,
        source.apart, target.apart, terms.inputs, terms.outputs,
    )  # fmt: skip
    inputs, outputs = source.places.shape[1], target.places.shape[1]
    entries = total * width * max(inputs, outputs)
    threads = max(1, min(torch.get_num_threads(), total, entries // GRAIN))
    results = max(outputs, terms.outputs)
    gathered, row = max(inputs, terms.inputs) * wide, strip * target.size
    apart = -(-(gathered + row * results) // LINE) * LINE
    memory = np.empty(LINE + threads * apart, np.uint8)  # each thread's inputs and results of a strip
    if terms.inputs > inputs:  # those that are not there count as zeros
        memory[:] = 0
    own = memory.ctypes.data
    own += -own % LINE
    shares = min(total // threads, PARTS) if threads > 1 else 1  # for each
    job = array(
        "q",
        (
            0, 0, shares, threads, total, height, width, strip, wide, row // parts, jump, *functions.addresses,
            own, apart, gathered, row, results, *terms.words, start, *source.words, goal, *target.words,
        ),
    )  # fmt: skip
    together(worker(), job.buffer_info()[0], threads)


@functools.cache
def _vectors(width: int, lanes: int) -> int:
    """Of a strip, where rows of ``width`` entries are soonest done; strips overlap where they do not go into a row.

    >>> [_vectors(width, 16) for width in (8, 64, 96, 128, 150, 4096)]
    [1, 4, 6, 8, 5, 8]
    """
    fitting = range(1, min(VECTORS, max(1, width // lanes)) + 1)
    return min(fitting, key=lambda v: (math.ceil(width / (v * lanes)) * (v + TURN), -v))


_NONE = np.zeros(0, np.int64)


class _Terms:
    """The matrix (outputs, inputs) as ``strips.combine_rows`` takes it.

    By rows: where each begins, the inputs and the factors of its non-zeros. Where no zero in it saves work, whole, and
    how many ``inputs`` or ``outputs`` are kept in registers.
    """

    def __init__(self, coefficients: Tensor, by_output: bool) -> None:
        table = coefficients.detach().reshape(len(coefficients), -1).numpy()
        kept = -(-table.shape[1] // STEP) * STEP
        self.inputs = self.outputs = 0
        self.starts = self.cols = _NONE
        self.factors = self.whole = table[:0]
        if kept <= KEPT and table.all():
            self.whole = np.zeros((len(table), kept), table.dtype)
            self.whole[:, : table.shape[1]] = table
            self.inputs, self.outputs = (kept, 0) if by_output else (0, kept)
            return
        if not by_output:
            table = table.T
        rows, cols = np.nonzero(table)
        self.starts = np.searchsorted(rows, np.arange(len(table) + 1))
        self.cols = np.ascontiguousarray(cols)
        self.factors = table[rows, cols]

    @functools.cached_property
    def words(self) -> tuple[int, ...]:
        """As ``strips.worker`` takes them; good as long as this object is."""
        starts, cols, whole = self.starts, self.cols, self.whole
        return (
            starts.ctypes.data, len(starts), cols.ctypes.data, len(cols),
            self.factors.ctypes.data, whole.ctypes.data, len(whole),
        )  # fmt: skip


class Constant:
    """Coefficients (r, rows, cols) in float32 or float64 that never change: what is made of them is kept with them."""

    def __init__(self, coefficients: Tensor) -> None:
        self._numbers = coefficients
        self.shape, self.dtype, self.itemsize = coefficients.shape, coefficients.dtype, coefficients.itemsize
        self._terms: dict[bool, _Terms] = {}

    @functools.cached_property
    def mT(self) -> Constant:
        """(r, cols, rows)."""
        return Constant(self._numbers.mT)

    def __reduce__(self) -> tuple[Any, ...]:
        return Constant, (self._numbers,)  # what is kept knows addresses, which a copy has others of

    def terms(self, by_output: bool) -> _Terms:
        """For encoding, or decoding."""
        if by_output not in self._terms:
            self._terms[by_output] = _Terms(self._numbers, by_output)
        return self._terms[by_output]


Factor = Tensor | Constant
