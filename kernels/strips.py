"""The compiled part of ``cpu``: strips of memory combined in vector registers, by LLVM through numba.

``combine_rows`` is the loop; the intrinsics below it emit what numba's own vectoriser would not find: sums that stay in
registers, and the narrow formats, which numba does not know.
"""

# mypy: ignore-errors
# (what is compiled here has types of its own, and llvmlite declares none)

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["combine_rows"]

# Strip width in bytes of the sums: 8 vector registers of 64 bytes, or of 32 where the processor has no wider ones.
VECTORS = 8
WIDTH_BYTES = VECTORS * (64 if get_host_cpu_features().get("avx512f") else 32)


@intrinsic
def _strip(context, target, gathered, indices, factors, start, stop, place):
    """Store at address ``place`` the sum of factors[t] * gathered[indices[t]], start <= t < stop.

    ``gathered`` (P, strip) and ``factors`` have the type of the sums; that of ``target`` names the format in memory.
    """
    signature = types.void(target, gathered, indices, factors, start, stop, place)

    def build(context, builder, signature, args):
        wide = _wide(factors)
        gathered_, indices_, factors_ = (_pointer(context, builder, signature, args, i) for i in (1, 2, 3))
        start, stop, place = args[4:]
        word = ir.IntType(64)

        before = builder.basic_block
        head, body, after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        t = builder.phi(word)
        sums = [builder.phi(wide) for _ in range(VECTORS)]
        builder.cbranch(builder.icmp_signed("<", t, stop), body, after)

        builder.position_at_end(body)
        undefined = ir.Constant(wide, ir.Undefined)
        factor = builder.insert_element(
            undefined, builder.load(builder.gep(factors_, [t])), ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), wide.count), [0] * wide.count)
        factor = builder.shuffle_vector(factor, undefined, zeros)
        piece = builder.mul(builder.load(builder.gep(indices_, [t])), ir.Constant(word, WIDTH_BYTES))
        address = builder.add(builder.ptrtoint(gathered_, word), piece)
        added = []
        for v, total in enumerate(sums):
            strip = _load(builder, gathered.dtype, wide, address, v)
            term = builder.fmul(factor, strip, flags=("contract",))
            added.append(builder.fadd(total, term, flags=("contract",)))
        following = builder.add(t, ir.Constant(word, 1))
        builder.branch(head)
        for phi, first, later in [(t, start, following)] + [
            (total, ir.Constant(wide, [0.0] * wide.count), new) for total, new in zip(sums, added, strict=True)
        ]:
            phi.add_incoming(first, before)
            phi.add_incoming(later, body)

        builder.position_at_end(after)
        for v, total in enumerate(sums):
            _store(builder, target.dtype, wide, total, place, v)
        return context.get_dummy_value()

    return signature, build


@intrinsic
def _gather(context, source, gathered, piece, address):
    """gathered[piece] = the strip at an address, whose format in memory the type of ``source`` names."""

    def build(context, builder, signature, args):
        wide, word = _wide(gathered), ir.IntType(64)
        start = builder.ptrtoint(_pointer(context, builder, signature, args, 1), word)
        place = builder.add(start, builder.mul(args[2], ir.Constant(word, WIDTH_BYTES)))
        for v in range(VECTORS):
            _store(builder, gathered.dtype, wide, _load(builder, source.dtype, wide, args[3], v), place, v)
        return context.get_dummy_value()

    return types.void(source, gathered, types.int64, types.int64), build


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


def _load(builder, kind, wide, address, v):
    """The v-th vector of a strip, in the type of the sums."""
    lanes, single = wide.count, ir.VectorType(ir.FloatType(), wide.count)
    x = builder.load(_at(builder, address, kind, lanes, v), align=kind.bitwidth // 8)
    if kind == types.uint16:  # bf16 is the upper half of a float32
        words = ir.VectorType(ir.IntType(32), lanes)
        x = builder.shl(builder.zext(x, words), ir.Constant(words, [16] * lanes))
        x = builder.bitcast(x, single)
    return x if x.type == wide else builder.fpext(x, wide)


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
    source, in_base, in_batch, in_step, in_stride, in_rows, in_cols,
    target, out_base, out_batch, out_step, out_stride, out_rows, out_cols,
    starts, indices, factors, first, last,
):  # fmt: skip
    """The rows first <= batch * height + row < last of every output piece.

    The strips of all inputs are first gathered in the first cache, where they cannot evict each other. One that a piece
    holds in full moves as a whole, the last of a row overlapping its neighbour; others (ragged edges, columns that are
    no neighbours in memory) entry by entry, zeros beyond the edge.
    """
    strip = WIDTH_BYTES // factors.itemsize
    in_size, out_size = source.itemsize * in_stride, target.itemsize * out_stride
    pieces, outputs = len(in_base), len(out_base)
    gathered = np.zeros((pieces, strip), factors.dtype)
    scattered = np.zeros(strip, target.dtype)
    for g in range(first, last):
        b, i = g // height, g % height
        in_row, out_row = in_batch[b] + i * in_step, out_batch[b] + i * out_step
        whole = width  # columns that all pieces have
        for p in range(pieces):
            whole = min(whole, in_cols[p] if i < in_rows[p] else 0)
        for q in range(outputs):
            whole = min(whole, out_cols[q] if i < out_rows[q] else 0)
        j = 0
        while j < width:
            if j < whole < j + strip and whole >= strip:
                j = whole - strip
            stop = min(j + strip, width)
            for p in range(pieces):
                there = min(stop, in_cols[p]) - j if i < in_rows[p] else 0
                address = in_base[p] + in_row + j * in_size
                if there == strip and in_stride == 1:
                    _gather(source, gathered, p, address)
                    continue
                for t in range(there):
                    gathered[p, t] = _entry(source, gathered, address + t * in_size)
                for t in range(max(there, 0), strip):
                    gathered[p, t] = 0
            for q in range(outputs):
                there = min(stop, out_cols[q]) - j if i < out_rows[q] else 0
                address = out_base[q] + out_row + j * out_size
                if there == strip and out_stride == 1:
                    _strip(target, gathered, indices, factors, starts[q], starts[q + 1], address)
                elif there > 0:
                    _strip(target, gathered, indices, factors, starts[q], starts[q + 1], scattered.ctypes.data)
                    for t in range(there):
                        _set_entry(target, address + t * out_size, scattered[t])
            j += strip
