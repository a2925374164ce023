"""Triton kernels that encode: x (B, M, K) -> out (R, B, M', K'), out[q] = sum_s u[q,s] x_s, s = (a, b) the parts of x.

Entry (i, j) of part (a, b) lies at row a * row_part + i * ROW_ITEM of x and at column b * col_part + j * COL_ITEM, so
one kernel serves both layouts ("block": part steps M' and K', item steps 1; "tile": part steps 1, item steps m and
k). Beyond (rows, cols) x counts as zero and is never read. Two forms: ``encode_unrolled`` has the coefficients
compiled in and skips zeros, ``encode_dot`` reads them from memory and multiplies matrices. Each has two modes: to
store, times a scale for each slice where one is given, and to find only the largest |out[q]| of each slice.
The oracle is ``reference.encode``; ``gpu.encode`` launches.
"""

import triton
import triton.language as tl


@triton.jit
def parts_offset(row, col, rows, cols, stride_row, stride_col):
    """Offsets of entries (row, col), int64, and whether they lie inside (rows, cols)."""
    return row.to(tl.int64) * stride_row + col.to(tl.int64) * stride_col, (row < rows) & (col < cols)


@triton.jit
def tile_of(tile, height, width, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """(batch, first row, first column) of tile number ``tile``, tiles (HIGH, WIDE) of a stack of (height, width)."""
    across = tl.cdiv(width, WIDE)
    count = tl.cdiv(height, HIGH) * across
    inside = tile % count
    return tile // count, inside // across * HIGH, inside % across * WIDE


@triton.jit
def peak_to(peak, slice, y):
    """peak[slice] = max(peak[slice], max |y|). Non-negative floats are ordered as their bits, and NaN above them all:
    an integer maximum is exact, in whatever order programs arrive."""
    tl.atomic_max(peak + slice, tl.max(tl.max(tl.abs(y).to(tl.int32, bitcast=True), 1), 0))


@triton.jit
def dot_exact(u, x, y, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """y + u x, fp32 coefficients u: (rows, terms) times stored entries x: (terms, columns), summed in fp32.

    PRECISION "split" multiplies bf16 entries as they are by u in two bf16 terms, which keep 16 bits of a coefficient;
    others are tl.dot's own, on x in fp32. WIDEN makes the terms fp32 again, for the interpreter, whose bf16 arithmetic
    is not what a GPU does.
    """
    if PRECISION == "split":
        high = u.to(x.dtype)
        low = (u - high.to(tl.float32)).to(x.dtype)
        if WIDEN:
            y += tl.dot(high.to(tl.float32), x.to(tl.float32)) + tl.dot(low.to(tl.float32), x.to(tl.float32))
        else:
            y = tl.dot(high, x, tl.dot(low, x, y))
    else:
        y = tl.dot(u, x.to(tl.float32), y, input_precision=PRECISION)
    return y


@triton.jit
def encode_unrolled(
    x,
    out,
    scale,
    peak,
    rows,
    cols,
    height,
    width,
    batches,
    x_batch,
    x_row,
    x_col,
    row_part,
    col_part,
    COEFFICIENTS: tl.constexpr,
    R: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    ROW_ITEM: tl.constexpr,
    COL_ITEM: tl.constexpr,
    SCALED: tl.constexpr,
    PEAK: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: a tile (HIGH, WIDE) of all R slices; the tile's M * K parts are read once and held in registers."""
    batch, i0, j0 = tile_of(tl.program_id(0), height, width, HIGH, WIDE)
    i = (i0 + tl.arange(0, HIGH))[:, None]
    j = (j0 + tl.arange(0, WIDE))[None, :]
    inside = (i < height) & (j < width)
    x += batch.to(tl.int64) * x_batch
    parts = ()
    for s in tl.static_range(M * K):
        row = i * ROW_ITEM + (s // K) * row_part
        col = j * COL_ITEM + (s % K) * col_part
        offset, there = parts_offset(row, col, rows, cols, x_row, x_col)
        parts = parts + (tl.load(x + offset, mask=there & inside, other=0.0).to(tl.float32),)
    place = i.to(tl.int64) * width + j
    for q in tl.static_range(R):
        y = tl.full((HIGH, WIDE), 0.0, tl.float32)
        for s in tl.static_range(M * K):
            if COEFFICIENTS[q * M * K + s] == 1.0:
                y += parts[s]
            elif COEFFICIENTS[q * M * K + s] == -1.0:
                y -= parts[s]
            elif COEFFICIENTS[q * M * K + s] != 0.0:
                y += parts[s] * COEFFICIENTS[q * M * K + s]
        slice = batch.to(tl.int64) + tl.cast(batches, tl.int64) * q
        if PEAK:
            peak_to(peak, slice, y)
        else:
            if SCALED:
                y *= tl.load(scale + slice)
            tl.store(out + slice * height * width + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def encode_dot(
    x,
    coefficients,
    out,
    scale,
    peak,
    rows,
    cols,
    height,
    width,
    batches,
    x_batch,
    x_row,
    x_col,
    row_part,
    col_part,
    rank,
    M: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    ROW_ITEM: tl.constexpr,
    COL_ITEM: tl.constexpr,
    SCALED: tl.constexpr,
    PEAK: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    RANKS: tl.constexpr,
):
    """One program: a tile (HIGH, WIDE) of all slices, RANKS at a time: (RANKS, PARTS) times (PARTS, HIGH * WIDE).

    ``coefficients`` is contiguous (rank, M, K) in fp32; PARTS is M * K padded to a power of two, at least 16. PRECISION
    and WIDEN are those of ``dot_exact``.
    """
    batch, i0, j0 = tile_of(tl.program_id(0), height, width, HIGH, WIDE)
    s = tl.arange(0, PARTS)
    item = tl.arange(0, HIGH * WIDE)
    i, j = i0 + item // WIDE, j0 + item % WIDE
    inside = (i < height) & (j < width)
    row = i[None, :] * ROW_ITEM + (s // K)[:, None] * row_part
    col = j[None, :] * COL_ITEM + (s % K)[:, None] * col_part
    offset, there = parts_offset(row, col, rows, cols, x_row, x_col)
    x += batch.to(tl.int64) * x_batch
    parts = tl.load(x + offset, mask=there & inside[None, :] & (s < M * K)[:, None], other=0.0)
    place = i.to(tl.int64) * width + j
    for q0 in range(0, rank, RANKS):
        q = q0 + tl.arange(0, RANKS)
        u = tl.load(
            coefficients + q[:, None] * (M * K) + s[None, :],
            mask=(q < rank)[:, None] & (s < M * K)[None, :],
            other=0.0,
        )
        y = dot_exact(u, parts, tl.full((RANKS, HIGH * WIDE), 0.0, tl.float32), PRECISION, WIDEN)
        slice = q.to(tl.int64) * batches + batch
        if PEAK:
            bits = tl.max(tl.abs(y).to(tl.int32, bitcast=True), 1)
            tl.atomic_max(peak + slice, bits, mask=q < rank)
        else:
            if SCALED:
                y *= tl.load(scale + slice, mask=q < rank, other=1.0)[:, None]
            tl.store(
                out + (slice * height * width)[:, None] + place[None, :],
                y.to(out.dtype.element_ty),
                mask=(q < rank)[:, None] & inside[None, :],
            )
