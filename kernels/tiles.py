"""The compiled part of ``panels``: tiles of a product that stay in vector registers, by LLVM through numba."""

# mypy: ignore-errors
# (what is compiled here has types of its own, and llvmlite declares none)

from __future__ import annotations

import functools

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from stl_search.jit import compiled, compiled_worker
from stl_search.kernels.vectors import (
    BYTES,
    LINE,
    WIDE,
    entry,
    fetch,
    load,
    loop,
    multiply_add,
    set_entry,
    spread,
    store,
    taken,
    wide_of,
    word,
    zero,
)

__all__ = ["BLOCK", "HEAD", "ROWS", "VECTORS", "multiply_rows", "worker"]

# A tile of ROWS rows and VECTORS vectors of columns fills the registers, but for those that hold what is multiplied:
# 12 and 4 of 16, with AVX-512 24 and 4 of 32.
VECTORS = 3
ROWS = 8 if WIDE else 4
INNER = 4096  # bytes of a row of A that a tile takes up at a time; the next ones are added
BLOCK = 512  # rows of A that meet all panels before the next
UNROLLED = 4
# A job in memory, 64-bit words, HEAD of them: the next part's number and how many parts; the first matrix that is cut
# into smaller runs, the rows of a run before it and from it on; rows, inner dimension and columns; addresses of A, B
# and C; bytes from matrix to matrix of each, and from row to row of A and of C.
HEAD = 16
HIGH = (0,) * ROWS


@intrinsic
def _tile(context, tag, rows, vectors, a, a_step, b, c, c_step, length, more, ahead, following):
    """c[i] = sum_t a[i, t] b[t] for i < len(rows), len(vectors) vectors wide; with ``more``, it is added to c[i].

    The numbers are of the type of ``tag``; a, b and c are addresses, from row to row of a and c there are ``a_step``
    and ``c_step`` bytes, of b a whole panel's width. 0 <= t < length. c is fetched into the second cache first; unless
    ``ahead`` is empty, so is meanwhile, from the address ``following`` on, a line for every UNROLLED rows of b.
    """
    high, across = len(rows), len(vectors)

    def build(context, builder, signature, args):
        kind, wide = tag.dtype, wide_of(tag)
        a, a_step, b, c, c_step, length, more, _, following = args[3:]
        number = wide.element.as_pointer()
        starts = [builder.inttoptr(builder.add(a, builder.mul(a_step, word(i))), number) for i in range(high)]

        def term(t, sums):
            row = builder.add(b, builder.mul(t, word(VECTORS * BYTES)))
            strips = [load(builder, kind, wide, row, v) for v in range(across)]
            found = []
            for i in range(high):
                factor = spread(builder, wide, starts[i], t)
                found += [multiply_add(builder, sums[i * across + v], factor, strip) for v, strip in enumerate(strips)]
            return found

        def some(group, sums):
            first = builder.mul(group, word(UNROLLED))
            if len(ahead):
                fetch(builder, builder.add(following, builder.mul(group, word(LINE))))
            for u in range(UNROLLED):
                sums = term(builder.add(first, word(u)), sums)
            return sums

        for i in range(high):
            for offset in range(0, across * BYTES, LINE):
                fetch(builder, builder.add(builder.add(c, builder.mul(c_step, word(i))), word(offset)))
        groups = builder.lshr(length, word(UNROLLED.bit_length() - 1))
        sums = loop(builder, word(0), groups, [zero(wide)] * (high * across), some)
        sums = loop(builder, builder.mul(groups, word(UNROLLED)), length, sums, term)
        places = [builder.add(c, builder.mul(c_step, word(i))) for i in range(high)]
        with builder.if_else(builder.icmp_signed("!=", more, word(0))) as (again, once):
            with again:
                for i, v in np.ndindex(high, across):
                    total = builder.fadd(load(builder, kind, wide, places[i], v), sums[i * across + v])
                    store(builder, kind, wide, total, places[i], v)
            with once:
                for i, v in np.ndindex(high, across):
                    store(builder, kind, wide, sums[i * across + v], places[i], v)
        return context.get_dummy_value()

    return types.void(tag, rows, vectors, *[types.int64] * 7, ahead, following), build


@compiled
def _strip(tag, rows, a, a_step, b, c, c_step, length, cols, more, ahead, following):
    """A tile as wide as ``cols``, up to a panel's; it writes whole vectors."""
    lanes = BYTES // tag.itemsize
    if cols > 2 * lanes:
        _tile(tag, rows, (0, 0, 0), a, a_step, b, c, c_step, length, more, ahead, following)
    elif cols > lanes:
        _tile(tag, rows, (0, 0), a, a_step, b, c, c_step, length, more, ahead, following)
    else:
        _tile(tag, rows, (0,), a, a_step, b, c, c_step, length, more, ahead, following)


@compiled
def _tile_within(tag, rows, a, a_step, b, c, c_step, length, cols, more, ahead, following, edge):
    """The same, which writes nothing beyond ``cols``: what does not end with a vector is made on ``edge`` first."""
    if cols % (BYTES // tag.itemsize) == 0:
        _strip(tag, rows, a, a_step, b, c, c_step, length, cols, more, ahead, following)
        return
    _strip(tag, rows, a, a_step, b, edge.ctypes.data, VECTORS * BYTES, length, cols, 0, ahead, following)
    for i in range(len(rows)):
        for j in range(cols):
            place = c + i * c_step + j * tag.itemsize
            set_entry(tag, place, entry(tag, tag, place) + edge[i, j] if more else edge[i, j])


@compiled
def multiply_rows(tag, a, a_step, b, c, c_step, rows, inner, cols):
    """C: (rows, cols) = A: (rows, inner) times B: (inner, cols), which lies in panels.

    a, b and c are addresses of numbers of the type of ``tag``; from row to row of A and C there are ``a_step`` and
    ``c_step`` bytes, B's panels follow each other, each with all its rows.
    """
    size = tag.itemsize
    across, depth = VECTORS * BYTES // size, INNER // size
    edge = np.empty((ROWS, across), tag.dtype)
    for top in range(0, rows, BLOCK):
        bottom = min(top + BLOCK, rows)
        whole = bottom - (bottom - top) % ROWS
        for first in range(0, inner, depth):
            length = min(depth, inner - first)
            for left in range(0, cols, across):
                here = min(across, cols - left)
                panel = b + (left * inner + first * across) * size
                place = c + left * size
                following, end = panel + across * inner * size, panel + across * (inner + length) * size
                if left + across >= cols:
                    following = end
                for i in range(top, whole, ROWS):
                    row, to = a + i * a_step + first * size, place + i * c_step
                    if following < end:
                        _tile_within(
                            tag, HIGH, row, a_step, panel, to, c_step, length, here, first, (0,), following, edge
                        )
                        following += length // UNROLLED * LINE
                    else:
                        _tile_within(tag, HIGH, row, a_step, panel, to, c_step, length, here, first, (), 0, edge)
                for i in range(whole, bottom):
                    row, to = a + i * a_step + first * size, place + i * c_step
                    _tile_within(tag, (0,), row, a_step, panel, to, c_step, length, here, first, (), 0, edge)


@functools.cache
def worker(kind):
    """The products of a job of numbers of that type, as a function of C that takes an address.

    Runs of rows, one after another, until none is left; any number of threads may be there.
    """

    def work(job):
        head, tag = carray(job, (HEAD,), np.int64), carray(job, (0,), kind)
        parts, first, large, small = head[1], head[2], head[3], head[4]
        rows, inner, cols, a, b, c = head[5], head[6], head[7], head[8], head[9], head[10]
        before, after = -(-rows // large), -(-rows // small)  # runs of a matrix
        while True:
            part = taken(head.ctypes.data)
            if part >= parts:
                return
            if part < first * before:
                q, top, run = part // before, part % before * large, large
            else:
                part -= first * before
                q, top, run = first + part // after, part % after * small, small
            multiply_rows(
                tag, a + q * head[11] + top * head[14], head[14], b + q * head[12],
                c + q * head[13] + top * head[15], head[15], min(run, rows - top), inner, cols,
            )  # fmt: skip

    return compiled_worker(work)
