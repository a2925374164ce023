"""Pieces of the compiled loops of ``strips`` and ``panels``: vector instructions emitted as LLVM's, through numba.

Vectors are as wide as the processor's registers; formats that are narrower in memory are widened on the way.
"""

# mypy: ignore-errors
# (what is compiled here has types of its own, and llvmlite declares none)

from __future__ import annotations

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "BYTES",
    "FUSED",
    "LINE",
    "WIDE",
    "WORD",
    "entry",
    "entry_at",
    "fetch",
    "load",
    "loop",
    "memory_of",
    "multiply_add",
    "place_of",
    "read",
    "set_entry",
    "spread",
    "store",
    "taken",
    "wide_of",
    "widened",
    "word",
    "zero",
]

_FEATURES = get_host_cpu_features()
WIDE = bool(_FEATURES.get("avx512f"))
FUSED = WIDE or bool(_FEATURES.get("avx2") and _FEATURES.get("fma"))  # a product is added in one instruction
BYTES = 64 if WIDE else 32  # of a vector
LINE = 64  # bytes of a line of cache
WORD = ir.IntType(64)


@intrinsic
def entry(context, source, gathered, address):
    """The entry at an address, in the type of ``gathered``."""

    def build(context, builder, signature, args):
        return _single(builder, source, gathered, args[2])

    return gathered.dtype(source, gathered, types.int64), build


@intrinsic
def set_entry(context, target, address, value):
    """The entry at an address becomes ``value``, given as it lies in memory."""

    def build(context, builder, signature, args):
        builder.store(args[2], builder.inttoptr(args[1], context.get_value_type(target.dtype).as_pointer()))
        return context.get_dummy_value()

    return types.void(target, types.int64, target.dtype), build


@intrinsic
def entry_at(context, source, wide, index):
    """source[index], in the type of what ``wide`` points to."""

    def build(context, builder, signature, args):
        offset = builder.mul(args[2], word(source.dtype.bitwidth // 8))
        return _single(builder, source, wide, builder.add(builder.ptrtoint(args[0], WORD), offset))

    return wide.dtype(source, wide, types.int64), build


@intrinsic
def taken(context, address):
    """The number at an address, which is one more from now on: no two threads get the same."""

    def build(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], WORD.as_pointer()), word(1), "seq_cst")

    return types.int64(types.int64), build


def _single(builder, source, wide, address):
    """The entry at an address in the format of ``source``, in the type of ``wide``."""
    one = ir.VectorType(wide_of(wide).element, 1)
    return builder.extract_element(load(builder, source.dtype, one, address, 0), ir.Constant(ir.IntType(32), 0))


def word(n):
    return ir.Constant(WORD, n)


def zero(wide):
    return ir.Constant(wide, [0.0] * wide.count)


def loop(builder, start, stop, carried, body):
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
    following = builder.add(t, word(1))
    end = builder.basic_block
    builder.branch(head)
    for phi, first, last in [(t, start, following), *zip(held, carried, later, strict=True)]:
        phi.add_incoming(first, before)
        phi.add_incoming(last, end)
    builder.position_at_end(after)
    return held


def spread(builder, wide, numbers, index):
    """The number at that index in every lane."""
    undefined = ir.Constant(wide, ir.Undefined)
    one = builder.insert_element(undefined, builder.load(builder.gep(numbers, [index])), ir.Constant(ir.IntType(32), 0))
    lanes = ir.VectorType(ir.IntType(32), wide.count)
    return builder.shuffle_vector(one, undefined, ir.Constant(lanes, [0] * wide.count))


def multiply_add(builder, total, factor, strip):
    """total + factor * strip; ``total`` None stands for zero."""
    term = builder.fmul(factor, strip, flags=("contract",))
    return term if total is None else builder.fadd(total, term, flags=("contract",))


def fetch(builder, address):
    """Ask for the line of an address, in the second cache; one that is not there does no harm."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type] + [number] * 3)
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(call, [pointer, *(ir.Constant(number, n) for n in (0, 2, 1))])


def wide_of(array):
    """The vector in which sums of the array's type are made."""
    double = array.dtype == types.float64
    return ir.VectorType(ir.DoubleType() if double else ir.FloatType(), BYTES // (8 if double else 4))


def memory_of(kind, lanes):
    """The vector in memory of a format, and its size in bytes."""
    element = {
        types.float32: ir.FloatType(), types.float64: ir.DoubleType(),
        types.uint16: ir.IntType(16), types.int16: ir.HalfType(),
    }[kind]  # fmt: skip
    return ir.VectorType(element, lanes), lanes * kind.bitwidth // 8


def place_of(builder, address, kind, lanes, v):
    vector, size = memory_of(kind, lanes)
    at = builder.add(address, word(v * size))
    return builder.inttoptr(at, vector.as_pointer())


def read(builder, kind, lanes, address, v):
    """The v-th vector at an address, as it lies in memory."""
    return builder.load(place_of(builder, address, kind, lanes, v), align=kind.bitwidth // 8)


def widened(builder, kind, wide, x):
    """What was read in a format, in the type of the sums."""
    lanes, single = wide.count, ir.VectorType(ir.FloatType(), wide.count)
    if kind == types.uint16:  # bf16 is the upper half of a float32
        words = ir.VectorType(ir.IntType(32), lanes)
        x = builder.shl(builder.zext(x, words), ir.Constant(words, [16] * lanes))
        x = builder.bitcast(x, single)
    return x if x.type == wide else builder.fpext(x, wide)


def load(builder, kind, wide, address, v):
    """The v-th vector of a strip, in the type of the sums."""
    return widened(builder, kind, wide, read(builder, kind, wide.count, address, v))


def store(builder, kind, wide, x, address, v):
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
    builder.store(x, place_of(builder, address, kind, lanes, v), align=kind.bitwidth // 8)
