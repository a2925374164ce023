"""Work shared among threads on the processor: those of torch's own OpenMP team where that can be reached.

A worker of such a team looks out for more work for some milliseconds after each product and keeps its processor busy
meanwhile. Work in other threads would have to share that processor; in the same team it begins at once.

What they work on are jobs in memory and compiled code, never Python: a thread that waits for the interpreter is woken
on the processor of the one that let go of it, and until the system tells them apart again, for 50 milliseconds, the two
take turns, each waiting at the end of its work for one that is not running.
"""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

__all__ = ["together"]

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_HOME = os.getpid()  # a fork has none of its parent's threads, and a team that waits for them


def together(work: Any, address: int | None, count: int) -> None:
    """work(address) in so many threads, or in fewer: a function that shares the work out itself and raises nothing.

    ``work`` is a ``ctypes.CFUNCTYPE(None, c_void_p)``, best of compiled code that never asks for the interpreter.
    """
    if count == 1:
        work(address)
        return
    start = _team(os.getpid())
    if start is None:
        jobs = [_pool(os.getpid()).submit(work, address) for _ in range(count)]
        try:
            for job in jobs:
                job.result()
        finally:  # nobody works on what an interrupted caller lets go of
            wait(jobs)
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
