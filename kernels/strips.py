"""The compiled part of ``cpu``: strips of memory combined in vector registers, by LLVM through numba.

``combine_rows`` is the loop; the intrinsics below it emit what numba's own vectoriser would not find: sums that stay in
registers, tiles taken apart and put together in registers, and the narrow formats, which numba does not know.
"""

# mypy: ignore-errors
# (what is compiled here has types of its own, and llvmlite declares none)

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["KEPT", "combine_rows"]

# Strip width in bytes of the sums: 8 vector registers of 64 bytes, or of 32 where the processor has no wider ones.
VECTORS = 8
WIDE = bool(get_host_cpu_features().get("avx512f"))
WIDTH_BYTES = VECTORS * (64 if WIDE else 32)
KEPT = 16 if WIDE else 8  # inputs or sums, a vector of each, that are kept in registers together
WORD = ir.IntType(64)
LINE = 64  # bytes
CHAINS = 4  # sums of one output that are made side by side, since an addition waits for the one before


@intrinsic
def _strip(context, target, gathered, indices, factors, start, stop, place):
    """Store at address ``place`` the sum of factors[t] * gathered[indices[t]], start <= t < stop.

    ``gathered`` (P, strip) and ``factors`` have the type of the sums; that of ``target`` names the format in memory.
    """

    def build(context, builder, signature, args):
        wide = _wide(factors)
        base, indices_, factors_ = (_pointer(context, builder, signature, args, i) for i in (1, 2, 3))
        base = builder.ptrtoint(base, WORD)

        def term(t, sums):
            factor = _spread(builder, wide, factors_, t)
            address = builder.add(base, builder.mul(builder.load(builder.gep(indices_, [t])), _word(WIDTH_BYTES)))
            strips = [_load(builder, gathered.dtype, wide, address, v) for v in range(VECTORS)]
            return [_multiply_add(builder, s, factor, x) for s, x in zip(sums, strips, strict=True)]

        for v, total in enumerate(_loop(builder, args[4], args[5], [_zero(wide)] * VECTORS, term)):
            _store(builder, target.dtype, wide, total, args[6], v)
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
        wide, size = _wide(table), _memory(target.dtype, 1)[1]
        factors = _pointer(context, builder, signature, args, 2)
        source, place = (builder.ptrtoint(_pointer(context, builder, signature, args, i), WORD) for i in (1, 3))
        length = builder.extract_value(context.make_array(table)(context, builder, args[2]).shape, 0)
        kept = max(len(inputs), len(outputs))
        row = wide.count * VECTORS * size

        def entry(first, p):
            return _spread(builder, wide, factors, builder.add(builder.mul(first, _word(kept)), _word(p)))

        def column(v, _):
            start = builder.add(source, builder.mul(v, _word(WIDTH_BYTES // VECTORS)))
            goal = builder.add(place, builder.mul(v, _word(row // VECTORS)))

            def output(q, _):
                sums = [None] * min(CHAINS, kept)
                for p, x in enumerate(held):
                    sums[p % CHAINS] = _multiply_add(builder, sums[p % CHAINS], entry(q, p), x)
                while len(sums) > 1:
                    sums = [*sums[2:], builder.fadd(sums[0], sums[1])]
                _store(builder, target.dtype, wide, sums[0], builder.add(goal, builder.mul(q, _word(row))), 0)
                return []

            def term(p, sums):
                x = _load(builder, table.dtype, wide, builder.add(start, builder.mul(p, _word(WIDTH_BYTES))), 0)
                return [_multiply_add(builder, total, entry(p, q), x) for q, total in enumerate(sums)]

            if len(inputs):
                held = [_load(builder, table.dtype, wide, start, p * VECTORS) for p in range(kept)]
                _loop(builder, _word(0), length, [], output)
            else:
                for q, total in enumerate(_loop(builder, _word(0), length, [_zero(wide)] * kept, term)):
                    _store(builder, target.dtype, wide, total, goal, q * VECTORS)
            return []

        if kept:
            _loop(builder, _word(0), _word(VECTORS), [], column)
        return context.get_dummy_value()

    return types.void(target, gathered, table, made, inputs, outputs), build


@intrinsic
def _gather(context, source, gathered, piece, address, ahead, apart):
    """gathered[piece + b] = the strip of every c-th entry from the b-th on, b < c = len(apart), at an address.

    The type of ``source`` names the format in memory. As many entries at the address ``ahead`` are fetched into cache.
    """
    count = len(apart)

    def build(context, builder, signature, args):
        wide = _wide(gathered)
        start = builder.ptrtoint(_pointer(context, builder, signature, args, 1), WORD)
        place = builder.add(start, builder.mul(args[2], _word(WIDTH_BYTES)))
        for offset in range(0, count * VECTORS * _memory(source.dtype, wide.count)[1], LINE):
            _fetch(builder, builder.add(args[4], _word(offset)))
        for v in range(VECTORS):
            read = [_read(builder, source.dtype, wide.count, args[3], v * count + c) for c in range(count)]
            for b in range(count):
                x = _taken(builder, read, [divmod(b + count * t, wide.count) for t in range(wide.count)])
                x = _widened(builder, source.dtype, wide, x)
                _store(builder, gathered.dtype, wide, x, place, b * VECTORS + v)
        return context.get_dummy_value()

    return types.void(source, gathered, types.int64, types.int64, types.int64, apart), build


@intrinsic
def _scatter(context, gathered, made, piece, address, apart):
    """The strips made[piece + b], b < len(apart), to an address, their entries in turn: ``_gather`` undone.

    ``gathered`` stands for the type of the sums.
    """
    count = len(apart)

    def build(context, builder, signature, args):
        lanes = _wide(gathered).count
        row = VECTORS * _memory(made.dtype, lanes)[1]
        start = builder.ptrtoint(_pointer(context, builder, signature, args, 1), WORD)
        place = builder.add(start, builder.mul(args[2], _word(row)))
        for v in range(VECTORS):
            read = [_read(builder, made.dtype, lanes, place, b * VECTORS + v) for b in range(count)]
            for c in range(count):
                turns = [divmod(c * lanes + t, count) for t in range(lanes)]
                x = _taken(builder, read, [(b, lane) for lane, b in turns])
                goal = _at(builder, args[3], made.dtype, lanes, v * count + c)
                builder.store(x, goal, align=made.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(gathered, made, types.int64, types.int64, apart), build


@intrinsic
def _entry(context, source, gathered, address):
    """The entry at an address, in the type of ``gathered``."""

    def build(context, builder, signature, args):
        one = ir.VectorType(_wide(gathered).element, 1)
        x = _load(builder, source.dtype, one, args[2], 0)
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return gathered.dtype(source, gathered, types.int64), build


@intrinsic
def _set_entry(context, target, address, value):
    """The entry at an address becomes ``value``, given as it lies in memory."""

    def build(context, builder, signature, args):
        builder.store(args[2], builder.inttoptr(args[1], context.get_value_type(target.dtype).as_pointer()))
        return context.get_dummy_value()

    return types.void(target, types.int64, target.dtype), build


def _pointer(context, builder, signature, args, position):
    return context.make_array(signature.args[position])(context, builder, args[position]).data


def _word(n):
    return ir.Constant(WORD, n)


def _zero(wide):
    return ir.Constant(wide, [0.0] * wide.count)


def _loop(builder, start, stop, carried, body):
    """Emit ``for t in range(start, stop): carried = body(t, carried)`` and leave the builder behind it -> carried."""
    before = builder.basic_block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    t = builder.phi(WORD)
    held = [builder.phi(value.type) for value in carried]
    builder.cbranch(builder.icmp_signed("<", t, stop), inside, after)
    builder.position_at_end(inside)
    later = body(t, held)
    following = builder.add(t, _word(1))
    end = builder.basic_block
    builder.branch(head)
    for phi, first, last in [(t, start, following), *zip(held, carried, later, strict=True)]:
        phi.add_incoming(first, before)
        phi.add_incoming(last, end)
    builder.position_at_end(after)
    return held


def _spread(builder, wide, numbers, index):
    """The number at that index in every lane."""
    undefined = ir.Constant(wide, ir.Undefined)
    one = builder.insert_element(undefined, builder.load(builder.gep(numbers, [index])), ir.Constant(ir.IntType(32), 0))
    lanes = ir.VectorType(ir.IntType(32), wide.count)
    return builder.shuffle_vector(one, undefined, ir.Constant(lanes, [0] * wide.count))


def _multiply_add(builder, total, factor, strip):
    """total + factor * strip; ``total`` None stands for zero."""
    term = builder.fmul(factor, strip, flags=("contract",))
    return term if total is None else builder.fadd(total, term, flags=("contract",))


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


def _fetch(builder, address):
    """Ask for the line of an address, in the second cache; one that is not there does no harm."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type] + [number] * 3)
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(call, [pointer, *(ir.Constant(number, n) for n in (0, 2, 1))])


def _wide(array):
    """The vector in which sums of the array's type are made."""
    double = array.dtype == types.float64
    return ir.VectorType(ir.DoubleType() if double else ir.FloatType(), WIDTH_BYTES // VECTORS // (8 if double else 4))


def _memory(kind, lanes):
    """The vector in memory of a format, and its size in bytes."""
    element = {
        types.float32: ir.FloatType(), types.float64: ir.DoubleType(),
        types.uint16: ir.IntType(16), types.int16: ir.HalfType(),
    }[kind]  # fmt: skip
    return ir.VectorType(element, lanes), lanes * kind.bitwidth // 8


def _at(builder, address, kind, lanes, v):
    vector, size = _memory(kind, lanes)
    word = builder.add(address, ir.Constant(ir.IntType(64), v * size))
    return builder.inttoptr(word, vector.as_pointer())


def _read(builder, kind, lanes, address, v):
    """The v-th vector at an address, as it lies in memory."""
    return builder.load(_at(builder, address, kind, lanes, v), align=kind.bitwidth // 8)


def _widened(builder, kind, wide, x):
    """What was read in a format, in the type of the sums."""
    lanes, single = wide.count, ir.VectorType(ir.FloatType(), wide.count)
    if kind == types.uint16:  # bf16 is the upper half of a float32
        words = ir.VectorType(ir.IntType(32), lanes)
        x = builder.shl(builder.zext(x, words), ir.Constant(words, [16] * lanes))
        x = builder.bitcast(x, single)
    return x if x.type == wide else builder.fpext(x, wide)


def _load(builder, kind, wide, address, v):
    """The v-th vector of a strip, in the type of the sums."""
    return _widened(builder, kind, wide, _read(builder, kind, wide.count, address, v))


def _store(builder, kind, wide, x, address, v):
    """Rounded to nearest even; a NaN stays one."""
    lanes, single = wide.count, ir.VectorType(ir.FloatType(), wide.count)
    if kind != types.float64 and wide != single:
        x = builder.fptrunc(x, single)
    if kind == types.uint16:
        words = ir.VectorType(ir.IntType(32), lanes)

        def every(n):
            return ir.Constant(words, [n] * lanes)

        bits = builder.bitcast(x, words)
        upper = builder.lshr(bits, every(16))
        nearest = builder.add(builder.add(bits, every(0x7FFF)), builder.and_(upper, every(1)))
        broken = builder.fcmp_unordered("uno", x, x)
        x = builder.select(broken, builder.or_(upper, every(0x40)), builder.lshr(nearest, every(16)))
        x = builder.trunc(x, ir.VectorType(ir.IntType(16), lanes))
    elif kind == types.int16:
        x = builder.fptrunc(x, ir.VectorType(ir.HalfType(), lanes))
    elif kind == types.float64 and wide == single:
        x = builder.fpext(x, ir.VectorType(ir.DoubleType(), lanes))
    builder.store(x, _at(builder, address, kind, lanes, v), align=kind.bitwidth // 8)


def _compiled(function):
    """Compiled once for each set of formats; kept on disk where a place for that can be written."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        return njit(nogil=True, error_model="numpy")(function)


@_compiled
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
                        gathered[c, t] = _entry(source, gathered, address + t * in_size)
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
                        _set_entry(target, address + t * out_size, made[c, t])
            j += strip
