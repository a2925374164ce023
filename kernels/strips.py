"""The compiled part of ``cpu``: strips of memory combined in vector registers, by LLVM through numba.

``combine_rows`` is the loop, ``worker`` what calls it, in threads that no interpreter stops. It knows no number format:
what it does with a strip are small functions, ``pieces``, compiled for their formats alone and called at an address, so
that a new combination of formats takes some hundredths of a second. The intrinsics emit what numba's own vectoriser
would not find: sums that stay in registers, tiles taken apart and put together in registers, and the narrow formats,
which numba does not know.
"""

# mypy: ignore-errors
# (what is compiled here has types of its own, and llvmlite declares none)

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from stl_search.jit import compiled, compiled_piece, compiled_worker
from stl_search.kernels.vectors import (
    BYTES,
    LINE,
    WIDE,
    WORD,
    entry_at,
    fetch,
    load,
    loop,
    memory_of,
    multiply_add,
    place_of,
    read,
    spread,
    store,
    taken,
    wide_of,
    widened,
    word,
    zero,
)

__all__ = ["HEAD", "KEPT", "SIDE", "VECTORS", "Pieces", "combine_rows", "pieces", "worker"]

VECTORS = 8  # of a strip, at most
KEPT = 16 if WIDE else 8  # inputs or sums, a vector of each, that are kept in registers together
ADDRESS = 8  # bytes of one
# A job in memory, 64-bit words, HEAD of them: the next thread's number, the next part's, how many parts for each thread
# and for how many threads; rows in all, height, width, entries of a strip, bytes of one of sums, of a part of a result,
# and from one to the next in memory; five functions; the memory of all threads, the bytes of one's, where in it
# ``made`` begins, from one to the next of ``made_bases``, and how many those are; addresses and lengths of starts and
# of indices; factors, table and its length. Then SIDE for what is read and SIDE for what is written: where it begins,
# addresses and lengths of places and of batch, step, entry, stride, apart.
HEAD, SIDE = 28, 9
CHAINS = 4  # sums of one output that are made side by side, since an addition waits for the one before


class Pieces(NamedTuple):
    """The functions that ``combine_rows`` calls, of one set of number formats.

    Their addresses are good as long as they are held.
    """

    addresses: tuple[int, ...]
    held: tuple[object, ...]


@functools.cache
def pieces(source, target, sums, vectors, parts, in_apart, out_apart, inputs, outputs) -> Pieces:
    """Those of numba's types of the numbers in memory and of the sums, for strips of so many ``vectors`` of sums.

    A strip is written in as many ``parts``, equally far from each other.

    ``in_apart`` and ``out_apart`` say how many pieces lie between each other, entry by entry; ``inputs`` or
    ``outputs``, where not 0, how many of them are kept in registers.
    """
    held = (
        _gatherer(source, sums, vectors, in_apart),
        _end_gatherer(source, sums),
        _dense_adder(sums, target, vectors, inputs, outputs)
        if inputs + outputs
        else _adder(sums, target, vectors, parts),
        _scatterer(sums, target, vectors, parts, out_apart),
        _end_scatterer(target),
    )
    return Pieces(tuple(function.address for function in held), held)


@functools.cache
def _gatherer(source, sums, vectors, count):
    def gather(offset, place, bases, inputs, ahead):
        p = 0
        while p < inputs:
            _gather(offset, place, bases[p], p, ahead, vectors, count)
            p += count

    pointers = (types.CPointer(kind) for kind in (source, sums, types.int64))
    return compiled_piece(gather, *pointers, types.int64, types.int64)


@functools.cache
def _end_gatherer(source, sums):
    def gather_ends(address, place, there, stride, strip):
        for t in range(there):
            place[t] = entry_at(address, place, t * stride)
        for t in range(max(there, 0), strip):
            place[t] = 0

    return compiled_piece(gather_ends, types.CPointer(source), types.CPointer(sums), *[types.int64] * 3)


@functools.cache
def _adder(sums, target, vectors, parts):
    def add(gathered, indices, factors, offset, bases, starts, results, jump):
        q = 0
        while q < results:
            _strip(gathered, indices, factors, offset, bases[q], starts[q], starts[q + 1], jump, vectors, parts)
            q += 1

    pointers = (types.CPointer(kind) for kind in (sums, types.int64, sums, target, types.int64, types.int64))
    return compiled_piece(add, *pointers, types.int64, types.int64)


@functools.cache
def _dense_adder(sums, target, vectors, inputs, outputs):
    def add_all(gathered, table, made, length):
        _dense(gathered, table, made, length, vectors, inputs, outputs)

    return compiled_piece(add_all, *(types.CPointer(kind) for kind in (sums, sums, target)), types.int64)


@functools.cache
def _scatterer(sums, target, vectors, parts, count):
    lanes = BYTES * 8 // sums.bitwidth

    def scatter(made, offset, bases, results, jump):
        q = 0
        while q < results:
            _scatter(made, offset, bases[q], q, jump, lanes, vectors, parts, count)
            q += count

    pointers = (types.CPointer(kind) for kind in (target, target, types.int64))
    return compiled_piece(scatter, *pointers, types.int64, types.int64)


@functools.cache
def _end_scatterer(target):
    def scatter_ends(made, address, there, stride):
        for t in range(there):
            address[t * stride] = made[t]

    return compiled_piece(scatter_ends, *[types.CPointer(target)] * 2, *[types.int64] * 2)


@intrinsic(prefer_literal=True)
def _strip(context, gathered, indices, factors, offset, base, start, stop, jump, vectors, parts):
    """Store at offset + base the sum of factors[t] * gathered[indices[t]], start <= t < stop, a strip in ``parts``.

    They lie ``jump`` bytes from each other. ``gathered`` (P, strip) and ``factors`` are in the type of the sums, and
    that of ``offset`` is the format in memory.
    """

    held = vectors.literal_value
    each = held // parts.literal_value  # vectors of a part

    def build(context, builder, signature, args):
        wide = wide_of(factors)
        first, place = (builder.ptrtoint(args[i], WORD) for i in (0, 3))
        place = builder.add(place, args[4])

        def term(t, sums):
            factor = spread(builder, wide, args[2], t)
            index = builder.load(builder.gep(args[1], [t]))
            address = builder.add(first, builder.mul(index, word(held * BYTES)))
            strips = [load(builder, gathered.dtype, wide, address, v) for v in range(held)]
            return [multiply_add(builder, s, factor, x) for s, x in zip(sums, strips, strict=True)]

        for v, total in enumerate(loop(builder, args[5], args[6], [zero(wide)] * held, term)):
            goal = builder.add(place, builder.mul(args[7], word(v // each)))
            store(builder, offset.dtype, wide, total, goal, v % each)
        return context.get_dummy_value()

    return types.void(gathered, indices, factors, offset, base, start, stop, jump, vectors, parts), build


@intrinsic(prefer_literal=True)
def _dense(context, gathered, table, made, length, vectors, inputs, outputs):
    """made[q] = the strip sum_p matrix[q, p] * gathered[p] for all q, a vector's width of one side kept in registers.

    ``gathered`` (P, strip) is in the type of the sums, ``made`` (Q, strip) in the format in memory. What is kept are
    the inputs or the sums of the outputs, as many as the one says that is not 0; the matrix is given as ``table``,
    (Q, P) when it is the inputs, (P, Q) when it is the outputs, and ``length`` is its first side.
    """
    across, inputs_, outputs_ = (x.literal_value for x in (vectors, inputs, outputs))

    def build(context, builder, signature, args):
        wide, size = wide_of(table), memory_of(made.dtype, 1)[1]
        source, place = (builder.ptrtoint(args[i], WORD) for i in (0, 2))
        factors, count = args[1], args[3]
        kept = max(inputs_, outputs_)
        row = wide.count * across * size

        def entry(first, p):
            return spread(builder, wide, factors, builder.add(builder.mul(first, word(kept)), word(p)))

        def column(v, _):
            start = builder.add(source, builder.mul(v, word(BYTES)))
            goal = builder.add(place, builder.mul(v, word(row // across)))

            def output(q, _):
                sums = [None] * min(CHAINS, kept)
                for p, x in enumerate(held):
                    sums[p % CHAINS] = multiply_add(builder, sums[p % CHAINS], entry(q, p), x)
                while len(sums) > 1:
                    sums = [*sums[2:], builder.fadd(sums[0], sums[1])]
                store(builder, made.dtype, wide, sums[0], builder.add(goal, builder.mul(q, word(row))), 0)
                return []

            def term(p, sums):
                x = load(builder, table.dtype, wide, builder.add(start, builder.mul(p, word(across * BYTES))), 0)
                return [multiply_add(builder, total, entry(p, q), x) for q, total in enumerate(sums)]

            if inputs_:
                held = [load(builder, table.dtype, wide, start, p * across) for p in range(kept)]
                loop(builder, word(0), count, [], output)
            else:
                for q, total in enumerate(loop(builder, word(0), count, [zero(wide)] * kept, term)):
                    store(builder, made.dtype, wide, total, goal, q * across)
            return []

        loop(builder, word(0), word(across), [], column)
        return context.get_dummy_value()

    return types.void(gathered, table, made, length, vectors, inputs, outputs), build


@intrinsic(prefer_literal=True)
def _gather(context, offset, gathered, base, piece, ahead, vectors, apart):
    """gathered[piece + b] = the strip of every c-th entry from the b-th on, b < c = ``apart``, at offset + base.

    The type of ``offset`` names the format in memory. As many entries, ``ahead`` bytes further, are fetched into cache.
    """
    across, count = vectors.literal_value, apart.literal_value

    def build(context, builder, signature, args):
        wide = wide_of(gathered)
        address, place = (builder.ptrtoint(args[i], WORD) for i in (0, 1))
        address = builder.add(address, args[2])
        place = builder.add(place, builder.mul(args[3], word(across * BYTES)))
        following = builder.add(address, args[4])
        for line in range(0, count * across * memory_of(offset.dtype, wide.count)[1], LINE):
            fetch(builder, builder.add(following, word(line)))
        for v in range(across):
            taken = [read(builder, offset.dtype, wide.count, address, v * count + c) for c in range(count)]
            for b in range(count):
                x = _taken(builder, taken, [divmod(b + count * t, wide.count) for t in range(wide.count)])
                x = widened(builder, offset.dtype, wide, x)
                store(builder, gathered.dtype, wide, x, place, b * across + v)
        return context.get_dummy_value()

    return types.void(offset, gathered, base, piece, ahead, vectors, apart), build


@intrinsic(prefer_literal=True)
def _scatter(context, made, offset, base, piece, jump, lanes, vectors, parts, apart):
    """The strips made[piece + b], b < ``apart``, to offset + base, their entries in turn: ``_gather`` undone.

    All these in ``parts``, ``jump`` bytes from each other. A strip has ``vectors`` times ``lanes`` entries.
    """
    width, across, count = (x.literal_value for x in (lanes, vectors, apart))
    each = across * count // parts.literal_value  # vectors of a part

    def build(context, builder, signature, args):
        place, address = (builder.ptrtoint(args[i], WORD) for i in (0, 1))
        row = across * memory_of(made.dtype, width)[1]
        place = builder.add(place, builder.mul(args[3], word(row)))
        address = builder.add(address, args[2])
        for v in range(across):
            taken = [read(builder, made.dtype, width, place, b * across + v) for b in range(count)]
            for c in range(count):
                turns = [divmod(c * width + t, count) for t in range(width)]
                x = _taken(builder, taken, [(b, lane) for lane, b in turns])
                further, near = divmod(v * count + c, each)
                goal = builder.add(address, builder.mul(args[4], word(further)))
                goal = place_of(builder, goal, made.dtype, width, near)
                builder.store(x, goal, align=made.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(made, offset, base, piece, jump, lanes, vectors, parts, apart), build


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


@intrinsic
def _call(context, function, pointers, numbers):
    """Call the function at an address, which takes pointers, then whole numbers; both are given as tuples of int64."""

    def build(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        given = [
            builder.inttoptr(builder.extract_value(args[1], i), byte) for i in range(len(pointers))
        ] + [builder.extract_value(args[2], i) for i in range(len(numbers))]  # fmt: skip
        kind = ir.FunctionType(ir.VoidType(), [byte] * len(pointers) + [WORD] * len(numbers))
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), given)
        return context.get_dummy_value()

    return types.void(function, pointers, numbers), build


@intrinsic
def _at(context, array):
    """The address of the numbers of an array."""

    def build(context, builder, signature, args):
        return builder.ptrtoint(context.make_array(array)(context, builder, args[0]).data, WORD)

    return types.int64(array), build


@intrinsic
def _pointer(context, address):
    """To that address."""

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


@compiled
def _words(address, count):
    """The 64-bit words at an address."""
    return carray(_pointer(address), (count,), np.int64)


@compiled
def _reach(places, first, count, i, limit):
    """The columns, at most ``limit``, that ``count`` pieces from ``first`` on all have in row i; 0 without the row.

    ``places`` (3, P) holds where the pieces are, their rows and columns.
    """
    for p in range(first, first + count):
        limit = min(limit, places[2, p] if i < places[1, p] else 0)
    return limit


@compiled
def combine_rows(
    height, width, strip, wide, part, jump, functions, gathered, made, made_bases,
    in_places, in_batch, in_start, in_step, in_entry, in_stride, in_apart,
    out_places, out_batch, out_start, out_step, out_entry, out_stride, out_apart,
    starts, indices, factors, table, length, first, last,
):  # fmt: skip
    """The rows first <= batch * height + row < last of every output piece.

    The strips of all inputs are first gathered in the first cache, where they cannot evict each other, and all results
    are made there: at the addresses ``gathered``, with zeros beyond the inputs, and ``made``, each at one of
    ``made_bases``. One that a piece holds in full moves as a whole, the last of a row overlapping its neighbour; others
    (ragged edges, columns at unusual distances) move entry by entry, zeros beyond the edge. ``strip`` is the entries of
    one and ``wide`` the bytes of one of sums, ``in_entry`` and ``out_entry`` are the bytes of an entry, ``functions``
    the addresses of ``pieces``; ``factors`` and ``table`` are addresses too. With a ``length``, that of ``table``, all
    results are made at once. A result may go to memory in parts of so many bytes, ``jump`` bytes from each other:
    then rows are one strip each, of which results have all.
    """
    gather, gather_ends, add, scatter, scatter_ends = functions
    in_size, out_size = in_entry * in_stride, out_entry * out_stride
    inputs, results = in_places.shape[1], out_places.shape[1]
    in_bases, out_bases, to_made = _at(in_places), _at(out_places), _at(made_bases)
    sums = gathered, _at(indices), factors
    straight = out_apart == 1 and not length  # results that are not made elsewhere first
    for g in range(first, last):
        b, i = g // height, g % height
        in_row, out_row = in_start + in_batch[b] + i * in_step, out_start + out_batch[b] + i * out_step
        whole = _reach(in_places, 0, inputs, i, width)  # columns that all pieces have
        whole = _reach(out_places, 0, results, i, whole)
        j = 0
        while j < width:
            if j < whole < j + strip and whole >= strip:
                j = whole - strip
            stop = min(j + strip, width)
            ahead = strip * in_size if stop < width else in_step - j * in_size
            source, target = in_row + j * in_size, out_row + j * out_size
            moves_in = stop - j == strip and in_stride == in_apart  # as a whole, where all of it is there
            moves_out = stop - j == strip and out_stride == out_apart
            if moves_in and stop <= whole:
                _call(gather, (source, gathered, in_bases), (inputs, ahead))
            else:
                for p in range(0, inputs, in_apart):
                    if moves_in and _reach(in_places, p, in_apart, i, stop) == stop:
                        place = gathered + p * wide
                        _call(gather, (source, place, in_bases + p * ADDRESS), (in_apart, ahead))
                        continue
                    for c in range(p, p + in_apart):
                        there = _reach(in_places, c, 1, i, stop) - j
                        place = gathered + c * wide
                        _call(gather_ends, (source + in_places[0, c], place), (there, in_stride, strip))
            if straight and moves_out and stop <= whole:
                _call(add, (*sums, target, out_bases, _at(starts)), (results, jump))
                j += strip
                continue
            if length:
                _call(add, (gathered, table, made), (length,))
            else:
                _call(add, (*sums, 0, to_made, _at(starts)), (results, part))
            if moves_out and stop <= whole:
                _call(scatter, (made, target, out_bases), (results, jump))
            else:
                for q in range(0, results, out_apart):
                    if moves_out and _reach(out_places, q, out_apart, i, stop) == stop:
                        _call(scatter, (made_bases[q], target, out_bases + q * ADDRESS), (out_apart, jump))
                        continue
                    for c in range(q, q + out_apart):
                        there = _reach(out_places, c, 1, i, stop) - j
                        _call(scatter_ends, (made_bases[c], target + out_places[0, c]), (there, out_stride))
            j += strip


def _work(job):
    """Parts of a job, some rows each, one after another, until none is left; as many threads as it says may be here.

    Of threads that are equally fast each goes through rows that follow each other, and so do the pages of its memory.
    """
    head = carray(job, (HEAD + 2 * SIDE,), np.int64)
    address = head.ctypes.data
    each, threads, total, height, width = head[2], head[3], head[4], head[5], head[6]
    strip, wide, part, jump = head[7], head[8], head[9], head[10]
    functions = (head[11], head[12], head[13], head[14], head[15])
    memory, made, step, results = head[16] + taken(address) * head[17], head[18], head[19], head[20]
    starts, indices = _words(head[21], head[22]), _words(head[23], head[24])
    factors, table, length = head[25], head[26], head[27]
    source, target = head[HEAD : HEAD + SIDE], head[HEAD + SIDE :]
    made_bases = memory + made + step * np.arange(results)
    parts = each * threads
    while True:
        turn = taken(address + ADDRESS)
        if turn >= parts:
            return
        share = turn % threads * each + turn // threads
        combine_rows(
            height, width, strip, wide, part, jump, functions, memory, memory + made, made_bases,
            _words(source[1], 3 * source[2]).reshape(3, source[2]), _words(source[3], source[4]),
            source[0], source[5], source[6], source[7], source[8],
            _words(target[1], 3 * target[2]).reshape(3, target[2]), _words(target[3], target[4]),
            target[0], target[5], target[6], target[7], target[8],
            starts, indices, factors, table, length, total * share // parts, total * (share + 1) // parts,
        )  # fmt: skip


@functools.cache
def worker():
    """``_work`` as a function of C that takes an address."""
    return compiled_worker(_work)
