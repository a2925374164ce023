"""Work shared among threads on the processor: those of torch's own OpenMP team where that can be reached.

A worker of such a team looks out for more work for some milliseconds after each product and keeps its processor busy
meanwhile. Work in other threads would have to share that processor; in the same team it begins at once.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["each", "share", "together"]

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_HOME = os.getpid()  # a fork has none of its parent's threads, and a team that waits for them


def share(work: Callable[[int], Any], count: int) -> None:
    """work(0), ..., work(count - 1), each in a thread; raises what one of them raised, the others done.

    ``work`` should let go of the interpreter's lock, as compiled code can. Any number of callers may be here at once.
    """
    if count == 1:
        work(0)
        return
    left = list(range(count))  # a team may be smaller than asked for: its threads take what is left
    failed: list[BaseException] = []

    def body(_: Any) -> None:
        while True:
            try:
                part = left.pop()
            except IndexError:
                return
            try:
                work(part)
            except BaseException as error:
                failed.append(error)

    together(_BODY(body), None, count)
    if failed:
        raise failed[0]


def each(work: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> None:
    """work(*part) for each of the parts, the first ones first, in as many threads as torch would use."""
    left = list(reversed(parts))

    def take(_: int) -> None:
        while True:
            try:
                part = left.pop()
            except IndexError:
                return
            work(*part)

    if left:
        share(take, min(max(1, torch.get_num_threads()), len(left)))


def together(work: Any, address: int | None, count: int) -> None:
    """work(address) in so many threads, or in fewer: a function that shares the work out itself and raises nothing.

    ``work`` is a ``ctypes.CFUNCTYPE(None, c_void_p)``, best of compiled code that never asks for the interpreter.
    """
    if count == 1:
        work(address)
        return
    start = _team(os.getpid())
    if start is None:
        for job in [_pool(os.getpid()).submit(work, address) for _ in range(count)]:
            job.result()
    else:
        start(work, address, count, 0)


@functools.lru_cache(maxsize=1)
def _team(process: int) -> Any:
    """The entry of OpenMP's library, the one torch is linked with, that runs a function in each thread of a team."""
    if process != _HOME:
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        start = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    start.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start


@functools.lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process. Jobs never wait for one another."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="stl-cpu")
