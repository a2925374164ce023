"""Products by OpenBLAS, as numpy carries it, in the threads of torch: each multiplies its share of the rows by itself.

OpenBLAS's own threads look out for more work for milliseconds after each product and keep the processors from those of
torch, whose next operation takes several times as long. Here they are not woken: the library is asked for one thread,
and its routine is called in each thread of torch's team from compiled code, so that none waits for the interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import threading
from array import array
from functools import cache
from typing import Any

import torch

from stl_search.kernels import gemm
from stl_search.kernels.threads import together

__all__ = ["products", "supports"]

Tensor = torch.Tensor

GRAIN = 1 << 20  # multiplications below which another thread is not worth its wake-up
AS_IT_IS, TURNED = 111, 112  # CblasNoTrans, CblasTrans
_ROUTINES = {torch.float32: "cblas_sgemm", torch.float64: "cblas_dgemm"}


class Library:
    """A loaded OpenBLAS; as long as somebody is inside, it works in the thread that calls it and in no other.

    ``routines`` are the addresses of its products by dtype, ``long`` says that its integers have 64 bits. The number of
    threads is a setting of the process: what others multiply by this library meanwhile takes longer.
    """

    def __init__(self, library: Any) -> None:
        """``library`` is a ``ctypes.CDLL``; AttributeError where it lacks something."""
        before, after = next(
            (b, a)
            for b, a in itertools.product(("scipy_", ""), ("64_", ""))
            if hasattr(library, f"{b}cblas_sgemm{a}") and hasattr(library, f"{b}openblas_get_config{a}")
        )

        def of(name: str) -> Any:
            return getattr(library, before + name + after)

        config = of("openblas_get_config")
        config.restype = ctypes.c_char_p
        self.long = b"USE64BITINT" in config()
        self.routines = {k: ctypes.cast(of(name), ctypes.c_void_p).value or 0 for k, name in _ROUTINES.items()}
        self.threads, self.set_threads = of("openblas_get_num_threads"), of("openblas_set_num_threads")
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._left)

    def _forget(self) -> None:
        self._lock, self._inside, self._usual = threading.Lock(), 0, 1

    def _left(self) -> None:
        """In a child process, where whoever was inside is not."""
        if self._inside:
            self.set_threads(self._usual)
        self._forget()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._usual = self.threads()
                self.set_threads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self.set_threads(self._usual)


@cache
def loaded() -> Library | None:
    """numpy's, or another that is loaded; None where there is none."""
    from threadpoolctl import ThreadpoolController

    for found in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        with contextlib.suppress(AttributeError, StopIteration):
            return Library(found.dynlib)
    return None


def supports(dtype: torch.dtype) -> bool:
    """Whether products of this dtype are made here: float32 and float64, where OpenBLAS is at hand."""
    return dtype in _ROUTINES and loaded() is not None


def products(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a: (r, M, K), b: (r, K, N) of one supported dtype -> ``out``: (r, M, N), whose rows are whole; r may be missing.

    Each slice is one thread's; those that are left over when all threads have had as many, all threads' together.
    """
    single = loaded()
    assert single is not None
    *several, rows, inner = a.shape
    cols = b.shape[-1]
    count = several[0] if several else 1
    work = count * rows * inner * cols
    if not work:
        return out.zero_()
    a, how_a, jump_a, step_a = _laid(a)
    b, how_b, jump_b, step_b = _laid(b)
    jump_c, step_c = (out.stride(0) if several else 0), max(out.stride(-2), cols)
    dtype = a.dtype
    size = dtype.itemsize
    threads = max(1, min(torch.get_num_threads(), work // GRAIN))
    head = [0, 0, single.routines[dtype], size == 8, single.long, how_a, how_b, cols, inner, step_a, step_b, step_c]
    down = step_a if how_a == AS_IT_IS else 1
    at_a, at_b, at_c = a.data_ptr(), b.data_ptr(), out.data_ptr()
    whole = count - count % threads
    for q in range(count):
        pieces = 1 if q < whole else threads
        top = 0
        for t in range(1, pieces + 1):
            bottom = rows * t // pieces
            if top < bottom:
                first_a, first_c = at_a + size * top * down, at_c + size * top * step_c
                head += first_a + size * q * jump_a, at_b + size * q * jump_b, first_c + size * q * jump_c, bottom - top
            top = bottom
    head[1] = parts = (len(head) - gemm.HEAD) // gemm.PART
    job = array("q", head)
    with single:
        together(gemm.worker(), job.buffer_info()[0], min(threads, parts))
    return out


def _laid(x: Tensor) -> tuple[Tensor, int, int, int]:
    """x: (..., rows, cols), copied where its matrices lie as no BLAS takes them.

    Returns it, how it lies, the entries from one matrix to the next and between the lines of each.
    """
    rows, cols = x.shape[-2:]
    *several, down, right = x.stride()
    jump = several[0] if several else 0
    if not x.is_neg():
        if (right == 1 or cols == 1) and (down >= cols or rows == 1):
            return x, AS_IT_IS, jump, max(down, cols)
        if (down == 1 or rows == 1) and (right >= rows or cols == 1):
            return x, TURNED, jump, max(right, rows)
    copy = torch.empty(x.shape, dtype=x.dtype).copy_(x)
    return copy, AS_IT_IS, rows * cols, cols
