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
from functools import cache, lru_cache
from typing import Any

import torch

from stl_search.kernels import gemm
from stl_search.kernels.threads import together

__all__ = ["products", "supports"]

Tensor = torch.Tensor

FEW = 1024  # slices of a product, up to which what is known of it is kept
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
    cols = b.shape[-1]
    work = a.numel() * cols
    if not work:
        return out.zero_()
    a, b = _fit(a), _fit(b)
    threads = max(1, min(torch.get_num_threads(), work // GRAIN))
    made = _job if a.ndim < 3 or len(a) <= FEW else _job.__wrapped__
    job = made(single, a.dtype, a.shape, cols, a.stride(), b.stride(), out.stride(), threads)[:]
    job[gemm.WHERE : gemm.HEAD] = array("q", (a.data_ptr(), b.data_ptr(), out.data_ptr()))
    with single:
        together(gemm.worker(), job.buffer_info()[0], min(threads, job[1]))
    return out


@lru_cache(maxsize=256)  # making one takes microseconds, and ten times as many where a product has left caches cold
def _job(
    library: Library,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    cols: int,
    stride_a: tuple[int, ...],
    stride_b: tuple[int, ...],
    stride_c: tuple[int, ...],
    threads: int,
) -> array[int]:
    """What ``gemm.worker`` works on for an A: (r, M, K) or (M, K) of that shape, but for the addresses."""
    *several, rows, inner = shape
    count = several[0] if several else 1
    left, right = _laid(shape, stride_a), _laid((*several, inner, cols), stride_b)
    assert left is not None
    assert right is not None
    (how_a, step_a), (how_b, step_b), step_c = left, right, max(stride_c[-2], cols)
    jump_a, jump_b, jump_c = (stride[0] if several else 0 for stride in (stride_a, stride_b, stride_c))
    size = dtype.itemsize
    head = [0, 0, library.routines[dtype], size == 8, library.long, how_a, how_b, cols, inner, step_a, step_b, step_c]
    head += 0, 0, 0
    down = step_a if how_a == AS_IT_IS else 1
    whole = count - count % threads
    for q in range(count):
        pieces = 1 if q < whole else threads
        top = 0
        for t in range(1, pieces + 1):
            bottom = rows * t // pieces
            if top < bottom:
                at_a, at_c = q * jump_a + top * down, q * jump_c + top * step_c
                head += size * at_a, size * q * jump_b, size * at_c, bottom - top
            top = bottom
    head[1] = (len(head) - gemm.HEAD) // gemm.PART
    return array("q", head)


def _fit(x: Tensor) -> Tensor:
    """The same numbers, copied where they lie as no BLAS takes them."""
    if _laid(x.shape, x.stride()) and not x.is_neg():
        return x
    return torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)


@lru_cache(maxsize=256)
def _laid(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int] | None:
    """How (..., rows, cols) lies, and the entries between the lines of a matrix; None where it lies as no BLAS takes
    it."""
    rows, cols = shape[-2:]
    down, right = stride[-2:]
    if (right == 1 or cols == 1) and (down >= cols or rows == 1):
        return AS_IT_IS, max(down, cols)
    if (down == 1 or rows == 1) and (right >= rows or cols == 1):
        return TURNED, max(right, rows)
    return None
