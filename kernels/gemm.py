"""The compiled part of ``openblas``: calls of a library's matrix product from threads that no interpreter stops."""

# mypy: ignore-errors
# (what is compiled here has types of its own, and llvmlite declares none)

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from stl_search.jit import compiled_worker
from stl_search.kernels.vectors import taken

__all__ = ["HEAD", "PART", "WHERE", "worker"]

# A job in memory, 64-bit words. What all parts have in common: the number of the next part and how many there are, the
# routine, whether its numbers are doubles and its integers long, how A and B lie, columns and inner dimension, entries
# from row to row (of what is turned, from column to column) of A, B and C; and the addresses of A, B and C.
WHERE, HEAD = 12, 15
PART = 4  # of each part: where its rows of A, its B and its rows of C are, in bytes from these, and how many rows


@intrinsic
def _gemm(context, routine, how_a, how_b, rows, cols, inner, one, a, step_a, b, step_b, zero, c, step_c):
    """C = A B by the ``cblas_?gemm`` at an address, with integers of the type of ``rows`` and numbers of ``one``."""

    def build(context, builder, signature, args):
        row_major = ir.Constant(ir.IntType(32), 101)
        a, b, c = (builder.inttoptr(args[at], ir.IntType(8).as_pointer()) for at in (7, 9, 12))
        given = [row_major, *args[1:7], a, args[8], b, args[10], args[11], c, args[13]]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), given)
        return context.get_dummy_value()

    word, how = types.int64, types.int32
    return types.void(word, how, how, rows, rows, rows, one, word, rows, word, rows, one, word, rows), build


def _work(job):
    """Parts of a job, one after another, until none is left; any number of threads may be here."""
    head = carray(job, (HEAD,), np.int64)
    count, routine, double, long = head[1], head[2], head[3], head[4]
    how_a, how_b = np.int32(head[5]), np.int32(head[6])
    n, k, x, y, z = head[7], head[8], head[9], head[10], head[11]
    sn, sk, sx, sy, sz = np.int32(n), np.int32(k), np.int32(x), np.int32(y), np.int32(z)
    at_a, at_b, at_c = head[WHERE], head[WHERE + 1], head[WHERE + 2]
    parts = carray(job, (HEAD + PART * count,), np.int64)[HEAD:].reshape(count, PART)
    one, zero = np.float32(1.0), np.float32(0.0)
    while True:
        i = taken(head.ctypes.data)
        if i >= count:
            return
        a, b, c, m = at_a + parts[i, 0], at_b + parts[i, 1], at_c + parts[i, 2], parts[i, 3]
        sm = np.int32(m)
        if double and long:
            _gemm(routine, how_a, how_b, m, n, k, 1.0, a, x, b, y, 0.0, c, z)
        elif double:
            _gemm(routine, how_a, how_b, sm, sn, sk, 1.0, a, sx, b, sy, 0.0, c, sz)
        elif long:
            _gemm(routine, how_a, how_b, m, n, k, one, a, x, b, y, zero, c, z)
        else:
            _gemm(routine, how_a, how_b, sm, sn, sk, one, a, sx, b, sy, zero, c, sz)


@functools.cache
def worker():
    """``_work`` as a function of C that takes an address."""
    return compiled_worker(_work)
