"""Functions compiled by numba, and kept on disk where some folder for that can be written. Heavy to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cfunc, njit, types

__all__ = ["compiled", "compiled_piece", "compiled_worker"]

_NO_PLACE = "no locator available"  # what numba says where it can keep nothing


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compiled for each set of types that it is called with; lets other threads run meanwhile, divides as numpy does.

    >>> compiled(lambda x: x + 1)(2)
    3
    """
    return _kept(lambda cache: njit(cache=cache, nogil=True, error_model="numpy", **options)(function))


def compiled_piece(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compiled for arguments of these types of numba's, without a result; the ``address`` is called as C would."""
    return _kept(lambda cache: cfunc(types.void(*arguments), cache=cache, error_model="numpy")(function))


def compiled_worker(function: Callable[..., Any]) -> Any:
    """A function of an address, compiled, as ``kernels.threads.together`` takes it."""
    held = compiled_piece(function, types.voidptr)
    worker = held.ctypes
    worker.held = held  # whose code it is
    return worker


def _kept(make: Callable[[bool], Any]) -> Any:
    """What ``make`` makes with a cache, or without one where there is no folder for it."""
    try:
        return make(True)
    except RuntimeError as error:
        if _NO_PLACE not in str(error):
            raise
        return make(False)
