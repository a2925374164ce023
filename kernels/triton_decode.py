"""Triton kernels that decode: p (R, B, M', N') -> out (B, rows, cols), out_s = sum_q w[q,s] p[q], s = (a, c) its parts.

Where parts lie is said as in ``triton_encode``; what would fall beyond (rows, cols) is dropped. Sums run in fp32 in
the order of q. A bias for each column and an activation may follow, before the one rounding. The oracle is
``reference.decode``; ``gpu.decode`` launches.
"""

import triton
import triton.language as tl

from stl_search.kernels.triton_encode import dot_exact, parts_offset, tile_of


@triton.jit
def finish(y, bias, col, cols, BIAS: tl.constexpr, ACTIVATION: tl.constexpr):
    """activation(y + bias[col]) in fp32; NaN stays NaN."""
    if BIAS:
        y += tl.load(bias + col, mask=col < cols, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        y = tl.where(y < 0.0, 0.0, y)
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    return y


@triton.jit
def add_term(sums, p, COEFFICIENTS: tl.constexpr, q: tl.constexpr, S: tl.constexpr):
    """The S sums, a tuple of tiles, plus the term of product q: sums[s] + w[q,s] p."""
    new = ()
    for s in tl.static_range(S):
        if COEFFICIENTS[q * S + s] == 1.0:
            new = new + (sums[s] + p,)
        elif COEFFICIENTS[q * S + s] == -1.0:
            new = new + (sums[s] - p,)
        elif COEFFICIENTS[q * S + s] != 0.0:
            new = new + (sums[s] + p * COEFFICIENTS[q * S + s],)
        else:
            new = new + (sums[s],)
    return new


@triton.jit
def store_parts(
    sums,
    out,
    bias,
    i,
    j,
    inside,
    rows,
    cols,
    row_part,
    col_part,
    S: tl.constexpr,
    N: tl.constexpr,
    ROW_ITEM: tl.constexpr,
    COL_ITEM: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Finishes the S sums, tiles at rows i: (HIGH, 1) and columns j: (1, WIDE), and stores them where they belong."""
    for s in tl.static_range(S):
        row = i * ROW_ITEM + (s // N) * row_part
        col = j * COL_ITEM + (s % N) * col_part
        offset, there = parts_offset(row, col, rows, cols, cols, 1)
        y = finish(sums[s], bias, col, cols, BIAS, ACTIVATION)
        tl.store(out + offset, y.to(out.dtype.element_ty), mask=there & inside)


@triton.jit
def decode_unrolled(
    p,
    out,
    bias,
    rows,
    cols,
    height,
    width,
    p_slice,
    p_batch,
    p_row,
    p_col,
    row_part,
    col_part,
    COEFFICIENTS: tl.constexpr,
    R: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    ROW_ITEM: tl.constexpr,
    COL_ITEM: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One program: a tile (HIGH, WIDE) of all M * N parts, held in registers; each product is read once."""
    batch, i0, j0 = tile_of(tl.program_id(0), height, width, HIGH, WIDE)
    i = (i0 + tl.arange(0, HIGH))[:, None]
    j = (j0 + tl.arange(0, WIDE))[None, :]
    inside = (i < height) & (j < width)
    place = batch.to(tl.int64) * p_batch + i.to(tl.int64) * p_row + j.to(tl.int64) * p_col
    sums = ()
    for _ in tl.static_range(M * N):
        sums = sums + (tl.full((HIGH, WIDE), 0.0, tl.float32),)
    for q in tl.static_range(R):
        term = tl.load(p + tl.cast(p_slice, tl.int64) * q + place, mask=inside, other=0.0).to(tl.float32)
        sums = add_term(sums, term, COEFFICIENTS, q, M * N)
    out += batch.to(tl.int64) * rows * cols
    store_parts(
        sums, out, bias, i, j, inside, rows, cols, row_part, col_part, M * N, N, ROW_ITEM, COL_ITEM, BIAS, ACTIVATION
    )


@triton.jit
def decode_dot(
    p,
    coefficients,
    out,
    bias,
    rows,
    cols,
    height,
    width,
    p_slice,
    p_batch,
    p_row,
    p_col,
    row_part,
    col_part,
    rank,
    w_batch,
    M: tl.constexpr,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    ROW_ITEM: tl.constexpr,
    COL_ITEM: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    RANKS: tl.constexpr,
):
    """One program: a tile (HIGH, WIDE) of all parts: (PARTS, RANKS) times (RANKS, HIGH * WIDE), summed over the rank.

    ``coefficients`` is contiguous (rank, M, N) in fp32, one such array for each batch at steps of ``w_batch`` (0 when
    all share one). PARTS is M * N padded to a power of two, RANKS a power of two of at least 16;
    PRECISION and WIDEN are those of ``dot_exact``.
    """
    batch, i0, j0 = tile_of(tl.program_id(0), height, width, HIGH, WIDE)
    s = tl.arange(0, PARTS)
    item = tl.arange(0, HIGH * WIDE)
    i, j = i0 + item // WIDE, j0 + item % WIDE
    inside = (i < height) & (j < width)
    place = batch.to(tl.int64) * p_batch + i.to(tl.int64) * p_row + j.to(tl.int64) * p_col
    coefficients += batch.to(tl.int64) * w_batch
    y = tl.full((PARTS, HIGH * WIDE), 0.0, tl.float32)
    for q0 in range(0, rank, RANKS):
        q = q0 + tl.arange(0, RANKS)
        term = tl.load(
            p + (q.to(tl.int64) * p_slice)[:, None] + place[None, :],
            mask=(q < rank)[:, None] & inside[None, :],
            other=0.0,
        )
        w = tl.load(
            coefficients + q[None, :] * (M * N) + s[:, None],
            mask=(q < rank)[None, :] & (s < M * N)[:, None],
            other=0.0,
        )
        y = dot_exact(w, term, y, PRECISION, WIDEN)
    row = i[None, :] * ROW_ITEM + (s // N)[:, None] * row_part
    col = j[None, :] * COL_ITEM + (s % N)[:, None] * col_part
    offset, there = parts_offset(row, col, rows, cols, cols, 1)
    y = finish(y, bias, col, cols, BIAS, ACTIVATION)
    out += batch.to(tl.int64) * rows * cols
    tl.store(out + offset, y.to(out.dtype.element_ty), mask=there & inside[None, :] & (s < M * N)[:, None])
