"""The compiled part of ``cpu``: strips of memory combined in vector registers, by LLVM through numba.

``combine_rows`` is the loop; the intrinsics below it emit what numba's own vectoriser would not find: sums that stay in
registers, tiles taken apart and put together in registers, and the narrow formats, which numba does not know.
"""

# mypy: ignore-errors
# (what is compiled here has types of its own, and llvmlite declares none)

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from stl_search.kernels.vectors import (
    BYTES,
    LINE,
    WIDE,
    WORD,
    compiled,
    entry,
    fetch,
    load,
    loop,
    memory_of,
    multiply_add,
    place_of,
    pointer,
    read,
    set_entry,
    spread,
    store,
    wide_of,
    widened,
    word,
    zero,
)

__all__ = ["KEPT", "combine_rows"]

VECTORS = 8  # of a strip
WIDTH_BYTES = VECTORS * BYTES  # of a strip of sums
KEPT = 16 if WIDE else 8  # inputs or sums, a vector of each, that are kept in registers together
CHAINS = 4  # sums of one output that are made side by side, since an addition waits for the one before


@intrinsic
def _strip(context, target, gathered, indices, factors, start, stop, place):
    """Store at address ``place`` the sum of factors[t] * gathered[indices[t]], start <= t < stop.

    ``gathered`` (P, strip) and ``factors`` have the type of the sums; that of ``target`` names the format in memory.
    """

    def build(context, builder, signature, args):
        wide = wide_of(factors)
        base, indices_, factors_ = (pointer(context, builder, signature, args, i) for i in (1, 2, 3))
        base = builder.ptrtoint(base, WORD)

        def term(t, sums):
            factor = spread(builder, wide, factors_, t)
            address = builder.add(base, builder.mul(builder.load(builder.gep(indices_, [t])), word(WIDTH_BYTES)))
            strips = [load(builder, gathered.dtype, wide, address, v) for v in range(VECTORS)]
            return [multiply_add(builder, s, factor, x) for s, x in zip(sums, strips, strict=True)]

        for v, total in enumerate(loop(builder, args[4], args[5], [zero(wide)] * VECTORS, term)):
            store(builder, target.dtype, wide, total, args[6], v)
        return context.get_dummy_value()

    return types.void(target, gathered, indices, factors, start, stop, place), build


@intrinsic
def _dense(context, target, gathered, table, made, inputs, outputs):
    """made[q] = the strip sum_p matrix[q, p] * gathered[p] for all q, a vector's width of one side kept in registers.

    ``gathered`` (P, strip) has the type of the sums, ``made`` (Q, strip) that of ``target``, which names the format.
    What is kept are the inputs or the sums of the outputs, whichever tuple is not empty, one for each entry of it; the
    matrix is given as ``table``, (Q, P) when it is the inputs, (P, Q) when it is the outputs.
    """

    def build(context, builder, signature, args):
        wide, size = wide_of(table), memory_of(target.dtype, 1)[1]
        factors = pointer(context, builder, signature, args, 2)
        source, place = (builder.ptrtoint(pointer(context, builder, signature, args, i), WORD) for i in (1, 3))
        length = builder.extract_value(context.make_array(table)(context, builder, args[2]).shape, 0)
        kept = max(len(inputs), len(outputs))
        row = wide.count * VECTORS * size

        def entry(first, p):
            return spread(builder, wide, factors, builder.add(builder.mul(first, word(kept)), word(p)))

        def column(v, _):
            start = builder.add(source, builder.mul(v, word(WIDTH_BYTES // VECTORS)))
            goal = builder.add(place, builder.mul(v, word(row // VECTORS)))

            def output(q, _):
                sums = [None] * min(CHAINS, kept)
                for p, x in enumerate(held):
                    sums[p % CHAINS] = multiply_add(builder, sums[p % CHAINS], entry(q, p), x)
                while len(sums) > 1:
                    sums = [*sums[2:], builder.fadd(sums[0], sums[1])]
                store(builder, target.dtype, wide, sums[0], builder.add(goal, builder.mul(q, word(row))), 0)
                return []

            def term(p, sums):
                x = load(builder, table.dtype, wide, builder.add(start, builder.mul(p, word(WIDTH_BYTES))), 0)
                return [multiply_add(builder, total, entry(p, q), x) for q, total in enumerate(sums)]

            if len(inputs):
                held = [load(builder, table.dtype, wide, start, p * VECTORS) for p in range(kept)]
                loop(builder, word(0), length, [], output)
            else:
                for q, total in enumerate(loop(builder, word(0), length, [zero(wide)] * kept, term)):
                    store(builder, target.dtype, wide, total, goal, q * VECTORS)
            return []

        if kept:
            loop(builder, word(0), word(VECTORS), [], column)
        return context.get_dummy_value()

    return types.void(target, gathered, table, made, inputs, outputs), build


@intrinsic
def _gather(context, source, gathered, piece, address, ahead, apart):
    """gathered[piece + b] = the strip of every c-th entry from the b-th on, b < c = len(apart), at an address.

    The type of ``source`` names the format in memory. As many entries at the address ``ahead`` are fetched into cache.
    """
    count = len(apart)

    def build(context, builder, signature, args):
        wide = wide_of(gathered)
        start = builder.ptrtoint(pointer(context, builder, signature, args, 1), WORD)
        place = builder.add(start, builder.mul(args[2], word(WIDTH_BYTES)))
        for offset in range(0, count * VECTORS * memory_of(source.dtype, wide.count)[1], LINE):
            fetch(builder, builder.add(args[4], word(offset)))
        for v in range(VECTORS):
            taken = [read(builder, source.dtype, wide.count, args[3], v * count + c) for c in range(count)]
            for b in range(count):
                x = _taken(builder, taken, [divmod(b + count * t, wide.count) for t in range(wide.count)])
                x = widened(builder, source.dtype, wide, x)
                store(builder, gathered.dtype, wide, x, place, b * VECTORS + v)
        return context.get_dummy_value()

    return types.void(source, gathered, types.int64, types.int64, types.int64, apart), build


@intrinsic
def _scatter(context, gathered, made, piece, address, apart):
    """The strips made[piece + b], b < len(apart), to an address, their entries in turn: ``_gather`` undone.

    ``gathered`` stands for the type of the sums.
    """
    count = len(apart)

    def build(context, builder, signature, args):
        lanes = wide_of(gathered).count
        row = VECTORS * memory_of(made.dtype, lanes)[1]
        start = builder.ptrtoint(pointer(context, builder, signature, args, 1), WORD)
        place = builder.add(start, builder.mul(args[2], word(row)))
        for v in range(VECTORS):
            taken = [read(builder, made.dtype, lanes, place, b * VECTORS + v) for b in range(count)]
            for c in range(count):
                turns = [divmod(c * lanes + t, count) for t in range(lanes)]
                x = _taken(builder, taken, [(b, lane) for lane, b in turns])
                goal = place_of(builder, args[3], made.dtype, lanes, v * count + c)
                builder.store(x, goal, align=made.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(gathered, made, types.int64, types.int64, apart), build


def _taken(builder, vectors, picks):
    """The vector of the (which vector, lane) that are picked, by shuffles of two vectors each."""
    lanes = ir.VectorType(ir.IntType(32), len(picks))
    found = vectors[0]
    place = [lane if which == 0 else 0 for which, lane in picks]
    for w in range(1, len(vectors)):
        mask = [len(picks) + lane if which == w else at for at, (which, lane) in zip(place, picks, strict=True)]
        found = builder.shuffle_vector(found, vectors[w], ir.Constant(lanes, mask))
        place = list(range(len(picks)))
    return found


@compiled
def combine_rows(
    height, width,
    source, in_base, in_batch, in_step, in_stride, in_rows, in_cols, in_apart,
    target, out_base, out_batch, out_step, out_stride, out_rows, out_cols, out_apart,
    starts, indices, factors, table, inputs, outputs, first, last,
):  # fmt: skip
    """The rows first <= batch * height + row < last of every output piece.

    The strips of all inputs are first gathered in the first cache, where they cannot evict each other, and all results
    are made there. One that a piece holds in full moves as a whole, the last of a row overlapping its neighbour; others
    (ragged edges, columns at unusual distances) move entry by entry, zeros beyond the edge. ``in_apart`` and
    ``out_apart`` are tuples as long as there are pieces that lie between each other, entry by entry. ``inputs`` and
    ``outputs`` choose the way of ``_dense``; both empty, it is ``_strip`` with what is not zero.
    """
    strip = WIDTH_BYTES // factors.itemsize
    in_size, out_size = source.itemsize * in_stride, target.itemsize * out_stride
    in_group, out_group = len(in_apart), len(out_apart)
    pieces, results = len(in_base), len(out_base)
    gathered = np.zeros((max(pieces, len(inputs)), strip), factors.dtype)
    made = np.zeros((max(results, len(outputs)), strip), target.dtype)
    full = len(inputs) + len(outputs) > 0
    for g in range(first, last):
        b, i = g // height, g % height
        in_row, out_row = in_batch[b] + i * in_step, out_batch[b] + i * out_step
        whole = width  # columns that all pieces have
        for p in range(pieces):
            whole = min(whole, in_cols[p] if i < in_rows[p] else 0)
        for q in range(results):
            whole = min(whole, out_cols[q] if i < out_rows[q] else 0)
        j = 0
        while j < width:
            if j < whole < j + strip and whole >= strip:
                j = whole - strip
            stop = min(j + strip, width)
            following = strip * in_size if stop < width else in_step - j * in_size
            for p in range(0, pieces, in_group):
                least = strip if in_stride == in_group else 0
                for c in range(p, p + in_group):
                    least = min(least, min(stop, in_cols[c]) - j if i < in_rows[c] else 0)
                if least == strip:
                    address = in_base[p] + in_row + j * in_size
                    _gather(source, gathered, p, address, address + following, in_apart)
                    continue
                for c in range(p, p + in_group):
                    there = min(stop, in_cols[c]) - j if i < in_rows[c] else 0
                    address = in_base[c] + in_row + j * in_size
                    for t in range(there):
                        gathered[c, t] = entry(source, gathered, address + t * in_size)
                    for t in range(max(there, 0), strip):
                        gathered[c, t] = 0
            if full:
                _dense(target, gathered, table, made, inputs, outputs)
            for q in range(0, results, out_group):
                least = strip if out_stride == out_group else 0
                for c in range(q, q + out_group):
                    least = min(least, min(stop, out_cols[c]) - j if i < out_rows[c] else 0)
                address = out_base[q] + out_row + j * out_size
                if least == strip and out_group == 1 and not full:
                    _strip(target, gathered, indices, factors, starts[q], starts[q + 1], address)
                    continue
                for c in range(q, q + out_group):
                    if not full:
                        _strip(target, gathered, indices, factors, starts[c], starts[c + 1], made[c].ctypes.data)
                if least == strip:
                    _scatter(gathered, made, q, address, out_apart)
                    continue
                for c in range(q, q + out_group):
                    there = min(stop, out_cols[c]) - j if i < out_rows[c] else 0
                    address = out_base[c] + out_row + j * out_size
                    for t in range(there):
                        set_entry(target, address + t * out_size, made[c, t])
            j += strip
