"""Triton kernels that multiply: a (R, B, M', K') times b (R, B, K', N'), sums in fp32; alone and with decoding fused.

``product`` stores all R products. ``product_decode_registers`` keeps the sums of the decoder in registers, which fits
for few parts (t = 2). ``product_decode_arrival`` computes the R products of a group of output tiles side by side, and
the last program to arrive at an output tile decodes it while its products are in L2: the counters only tell who is
last, sums run in the order of q, so results repeat bit by bit. The oracles are ``reference.product`` and
``reference.decode``; ``gpu.product`` and ``gpu.product_decode`` launch.
"""

import triton
import triton.language as tl

from stl_search.kernels.triton_decode import add_term, store_parts


@triton.jit
def tile_at(tile, height, width, HIGH: tl.constexpr, WIDE: tl.constexpr, GROUP: tl.constexpr):
    """(first row, first column) of tile ``tile`` of (height, width), GROUP tile rows at a time so that operands stay
    in L2."""
    down, across = tl.cdiv(height, HIGH), tl.cdiv(width, WIDE)
    group = tile // (GROUP * across)
    first = group * GROUP
    size = tl.minimum(down - first, GROUP)
    inside = tile % (GROUP * across)
    return (first + inside % size) * HIGH, inside // size * WIDE


@triton.jit
def tile_product(
    a,
    b,
    i0,
    j0,
    height,
    width,
    inner,
    a_row,
    a_col,
    b_row,
    b_col,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr,
    EVEN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
):
    """The tile (HIGH, WIDE) at (i0, j0) of a: (height, inner) times b: (inner, width), in fp32.

    EVEN says that DEEP divides ``inner``. WIDEN makes operands fp32 first, for the interpreter, whose 16-bit
    arithmetic is not what a GPU does. IMPRECISE bounds how many fp8 terms a tensor core sums with few bits.
    """
    i = i0 + tl.arange(0, HIGH)
    j = j0 + tl.arange(0, WIDE)
    k = tl.arange(0, DEEP)
    a += i.to(tl.int64)[:, None] * a_row + k[None, :] * a_col
    b += k.to(tl.int64)[:, None] * b_row + j.to(tl.int64)[None, :] * b_col
    there_a, there_b = (i < height)[:, None], (j < width)[None, :]
    sums = tl.full((HIGH, WIDE), 0.0, tl.float32)
    for k0 in range(0, inner, DEEP):
        if EVEN:
            x = tl.load(a, mask=there_a, other=0.0)
            y = tl.load(b, mask=there_b, other=0.0)
        else:
            x = tl.load(a, mask=there_a & (k < inner - k0)[None, :], other=0.0)
            y = tl.load(b, mask=there_b & (k < inner - k0)[:, None], other=0.0)
        if WIDEN:
            sums += tl.dot(x.to(tl.float32), y.to(tl.float32))
        else:
            sums = tl.dot(x, y, sums, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE)
        a += DEEP * a_col
        b += DEEP * b_row
    return sums


@triton.jit
def unscaled(y, a_scale, b_scale, q, batch, a_scale_slice, a_scale_batch, b_scale_slice, b_scale_batch):
    """y divided by the scales of the two slices that were multiplied, rounded as division is: / may be off by a bit."""
    first = tl.load(a_scale + q * a_scale_slice + batch * a_scale_batch)
    second = tl.load(b_scale + q * b_scale_slice + batch * b_scale_batch)
    return tl.div_rn(tl.div_rn(y, first), second)


@triton.jit
def product(
    a,
    b,
    a_scale,
    b_scale,
    out,
    rank,
    batches,
    height,
    width,
    inner,
    a_slice,
    a_batch,
    a_row,
    a_col,
    b_slice,
    b_batch,
    b_row,
    b_col,
    a_scale_slice,
    a_scale_batch,
    b_scale_slice,
    b_scale_batch,
    SCALED: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr,
    EVEN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Persistent: each program takes every num_programs-th tile of all slices, in slices after one another."""
    count = tl.cdiv(height, HIGH) * tl.cdiv(width, WIDE)
    for tile in range(tl.program_id(0), rank * batches * count, tl.num_programs(0)):
        slice = (tile // count).to(tl.int64)
        q, batch = slice // batches, slice % batches
        i0, j0 = tile_at(tile % count, height, width, HIGH, WIDE, GROUP)
        y = tile_product(
            a + q * a_slice + batch * a_batch,
            b + q * b_slice + batch * b_batch,
            i0,
            j0,
            height,
            width,
            inner,
            a_row,
            a_col,
            b_row,
            b_col,
            WIDEN,
            PRECISION,
            IMPRECISE,
            EVEN,
            HIGH,
            WIDE,
            DEEP,
        )
        if SCALED:
            y = unscaled(y, a_scale, b_scale, q, batch, a_scale_slice, a_scale_batch, b_scale_slice, b_scale_batch)
        i = (i0 + tl.arange(0, HIGH))[:, None]
        j = (j0 + tl.arange(0, WIDE))[None, :]
        place = slice * height * width + i.to(tl.int64) * width + j
        tl.store(out + place, y.to(out.dtype.element_ty), mask=(i < height) & (j < width))


@triton.jit
def product_decode_registers(
    a,
    b,
    a_scale,
    b_scale,
    out,
    bias,
    rows,
    cols,
    batches,
    height,
    width,
    inner,
    a_slice,
    a_batch,
    a_row,
    a_col,
    b_slice,
    b_batch,
    b_row,
    b_col,
    a_scale_slice,
    a_scale_batch,
    b_scale_slice,
    b_scale_batch,
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
    SCALED: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr,
    EVEN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program: a tile (HIGH, WIDE) of all M * N parts of the output; products never leave the registers."""
    count = tl.cdiv(height, HIGH) * tl.cdiv(width, WIDE)
    tile = tl.program_id(0)
    batch = (tile // count).to(tl.int64)
    i0, j0 = tile_at(tile % count, height, width, HIGH, WIDE, GROUP)
    sums = ()
    for _ in tl.static_range(M * N):
        sums = sums + (tl.full((HIGH, WIDE), 0.0, tl.float32),)
    for q in tl.static_range(R):
        y = tile_product(
            a + tl.cast(a_slice, tl.int64) * q + batch * a_batch,
            b + tl.cast(b_slice, tl.int64) * q + batch * b_batch,
            i0,
            j0,
            height,
            width,
            inner,
            a_row,
            a_col,
            b_row,
            b_col,
            WIDEN,
            PRECISION,
            IMPRECISE,
            EVEN,
            HIGH,
            WIDE,
            DEEP,
        )
        if SCALED:
            y = unscaled(y, a_scale, b_scale, q, batch, a_scale_slice, a_scale_batch, b_scale_slice, b_scale_batch)
        sums = add_term(sums, y, COEFFICIENTS, q, M * N)
    i = (i0 + tl.arange(0, HIGH))[:, None]
    j = (j0 + tl.arange(0, WIDE))[None, :]
    inside = (i < height) & (j < width)
    out += batch * rows * cols
    store_parts(
        sums, out, bias, i, j, inside, rows, cols, row_part, col_part, M * N, N, ROW_ITEM, COL_ITEM, BIAS, ACTIVATION
    )


@triton.jit
def product_decode_arrival(
    a,
    b,
    a_scale,
    b_scale,
    products,
    arrived,
    out,
    bias,
    rows,
    cols,
    batches,
    height,
    width,
    inner,
    a_slice,
    a_batch,
    a_row,
    a_col,
    b_slice,
    b_batch,
    b_row,
    b_col,
    a_scale_slice,
    a_scale_batch,
    b_scale_slice,
    b_scale_batch,
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
    SCALED: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr,
    EVEN: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    GROUP: tl.constexpr,
    BESIDE: tl.constexpr,
    STRIP: tl.constexpr,
):
    """One program: a tile (HIGH, WIDE) of one product, stored in ``products`` (R, batches, M', N').

    Programs run in chunks of BESIDE output tiles times R, tiles first, so that those that run at one time share rows
    and columns of a[q] and b[q]. ``arrived`` holds a zero for each output tile at first; who finds R - 1 there
    decodes the tile, STRIP rows at a time.
    """
    across = tl.cdiv(height, HIGH) * tl.cdiv(width, WIDE)
    count = batches * across
    chunk = tl.program_id(0) // (BESIDE * R)
    inside_chunk = tl.program_id(0) % (BESIDE * R)
    size = tl.minimum(count - chunk * BESIDE, BESIDE)
    q = (inside_chunk // size).to(tl.int64)
    tile = chunk * BESIDE + inside_chunk % size
    batch = (tile // across).to(tl.int64)
    i0, j0 = tile_at(tile % across, height, width, HIGH, WIDE, GROUP)
    y = tile_product(
        a + q * a_slice + batch * a_batch,
        b + q * b_slice + batch * b_batch,
        i0,
        j0,
        height,
        width,
        inner,
        a_row,
        a_col,
        b_row,
        b_col,
        WIDEN,
        PRECISION,
        IMPRECISE,
        EVEN,
        HIGH,
        WIDE,
        DEEP,
    )
    if SCALED:
        y = unscaled(y, a_scale, b_scale, q, batch, a_scale_slice, a_scale_batch, b_scale_slice, b_scale_batch)
    i = (i0 + tl.arange(0, HIGH))[:, None]
    j = (j0 + tl.arange(0, WIDE))[None, :]
    product_step = tl.cast(batches, tl.int64) * height * width
    products += batch * height * width
    place = q * product_step + i.to(tl.int64) * width + j
    tl.store(products + place, y.to(products.dtype.element_ty), mask=(i < height) & (j < width))
    # All threads' stores come before the arrival (barrier, then release); who is last sees everyone's (acquire).
    tl.debug_barrier()
    before = tl.atomic_add(arrived + tile, 1, sem="acq_rel", scope="gpu")
    if before == R - 1:
        tl.debug_barrier()
        out += batch * rows * cols
        for strip in range(0, HIGH, STRIP):
            row = (i0 + strip + tl.arange(0, STRIP))[:, None]
            inside = (row < height) & (j < width)
            sums = ()
            for _ in tl.static_range(M * N):
                sums = sums + (tl.full((STRIP, WIDE), 0.0, tl.float32),)
            for term in tl.static_range(R):
                there = products + product_step * term + row.to(tl.int64) * width + j
                # .cg reads L2, past an L1 that knows nothing of other programs' stores
                p = tl.load(there, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
                sums = add_term(sums, p, COEFFICIENTS, term, M * N)
            store_parts(
                sums,
                out,
                bias,
                row,
                j,
                inside,
                rows,
                cols,
                row_part,
                col_part,
                M * N,
                N,
                ROW_ITEM,
                COL_ITEM,
                BIAS,
                ACTIVATION,
            )
