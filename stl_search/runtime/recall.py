"""Calls of ``amm`` that were answered by dense before, answered again at once.

A product of 256 square takes a quarter of a millisecond and leaves little in the caches: each function that is called
after it costs microseconds, and twenty of them a tenth of the product. So the last answers for ``DEFAULT`` are kept in
``dispatch.seen`` with a test of torch's own, made for the guards of its compiled graphs, that tells in one call whether
two operands are like others in class, dtype, sizes, device, layout and in who looks on; and all answers by what was
asked.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from stl_search.kernels import dense
from stl_search.kernels.watched import watched
from stl_search.runtime.dispatch import DEFAULT, REMEMBERED, catalog_stamp, seen
from stl_search.runtime.operand import tensor_of

TensorGuards: Any
try:
    from torch._C._dynamo import guards

    TensorGuards = guards.TensorGuards
except (ImportError, AttributeError):  # it is torch's own and may go: then no call is known by a single test
    TensorGuards = None

__all__ = ["TENSORS", "product", "remember", "small"]

SMALL_ARRAYS = 1 << 30  # entries of A times entries of B; numpy's own product is called for smaller arrays at once
HELD = 4  # answers that are known by a single test
_STRIDED, _matmul, _clock = torch.strided, torch.matmul, time.monotonic
TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))  # which are what they hold, and no more
_NUMBERS = frozenset((float, int, type(None)))
_ways: dict[Any, str] = {}  # what was asked of which shapes and dtypes, where the answer is dense -> by which routine
_tests: dict[Any, Any] = {}  # the same -> the test that such operands pass
_ways_for: list[Any] = [None]  # the catalog that both hold for


def product(A: Any, B: Any, *asked: Any) -> Any:
    """A: (..., M, K), B: (..., K, N) -> A @ B where the same was answered by dense before; None for all other calls.

    ``asked`` is the encoder, rtol and speedup, whatever they are.
    """
    encoder, rtol, speedup = asked
    if type(encoder) is not str or type(rtol) not in _NUMBERS or type(speedup) not in _NUMBERS:
        return None
    if type(A) in TENSORS and type(B) in TENSORS:
        if A.is_nested or B.is_nested or A.layout is not _STRIDED or B.layout is not _STRIDED:
            return None
        key = _key(A, B, asked)
        way = _ways.get(key)
        if way is None or not _still_holds() or torch.is_autocast_enabled(A.device.type):
            return None
        c = _matmul(A, B) if way == "torch" else _matmul_by(A, B, way)
        if encoder == DEFAULT and rtol is speedup is None and A is not B:
            _expect(A, B, key, way)
        return c
    if type(A) is np.ndarray is type(B):
        way = _ways.get(_key(A, B, asked))
        if way is None or not _still_holds():
            return None
        if way == "numpy" or small(A, B):
            with np.errstate(all="ignore"):
                return A @ B
        if torch.is_autocast_enabled("cpu"):
            return None
        x, y = tensor_of(A), tensor_of(B)
        if watched(x, y):
            return None
        return (_matmul(x, y) if way == "torch" else _matmul_by(x, y, way)).numpy()
    return None


def small(A: np.ndarray[Any, Any], B: np.ndarray[Any, Any]) -> bool:
    """Whether numpy's own product of these arrays is done before they have been turned into tensors."""
    return A.size * B.size < SMALL_ARRAYS


def _key(A: Any, B: Any, asked: tuple[Any, ...]) -> tuple[Any, ...]:
    places = () if type(A) is np.ndarray or (A.is_cpu and B.is_cpu) else (A.device, B.device)
    return (A.shape, B.shape, A.dtype, B.dtype, *asked, *places)


def _expect(A: torch.Tensor, B: torch.Tensor, key: Any, way: str) -> None:
    """Calls with such operands are known by a single test from now on, for a while.

    The test fails for a tensor with itself, where gradients are asked for and were not, or are not and were, and under
    other transforms than now; not in all modes. Nested tensors must not come near it. It knows autocast from none, but
    not one dtype from another: nobody calls this under autocast.
    """
    if TensorGuards is None:
        return
    test = _tests.get(key)
    if test is None or not test(A, B):
        sizes, free = ([f(x) for x in (A, B)] for f in (lambda x: list(x.shape), lambda x: [None] * x.ndim))
        test = TensorGuards(A, B, dynamic_dims_sizes=sizes, dynamic_dims_strides=free).check
        _tests[key] = test
    multiplied = _matmul
    if way != "torch" and not (A.requires_grad or B.requires_grad):
        multiplied = partial(_unless_watched, dense.routine(A, B, way))
    others = [pair for pair in seen.latest if pair[0] is not test]
    seen.latest = ((test, multiplied), *others[: HELD - 1])
    if _ways_for[0] is not seen.stamp:  # another thread has looked at the catalog meanwhile
        seen.latest = ()


def _unless_watched(routine: Any, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """A @ B by a routine, without gradients, where nobody looks on."""
    c: torch.Tensor = _matmul(A, B) if watched() else routine(A, B)
    return c


def _matmul_by(A: torch.Tensor, B: torch.Tensor, way: str) -> torch.Tensor:
    """A @ B by a routine that knows neither gradients nor transforms, where there are none."""
    if A.requires_grad or B.requires_grad or watched():
        return torch.matmul(A, B)
    return dense.matmul(A, B, way)


def _still_holds() -> bool:
    """Whether the catalog is the one that this holds for, as of a second ago at most; in less than a microsecond."""
    return _ways_for[0] is (seen.stamp if _clock() < seen.until else catalog_stamp())


def remember(A: Any, B: Any, asked: tuple[Any, Any, Any], way: str) -> None:
    """The routine of that name is the answer to such a call; for matrices and stacks in plain tensors and arrays."""
    stamp = catalog_stamp()
    if _ways_for[0] is not stamp or len(_ways) >= REMEMBERED:
        _ways.clear()
        _tests.clear()
        _ways_for[0] = stamp
    if type(asked[0]) is not str or min(A.ndim, B.ndim) < 2:
        return
    if (type(A) in TENSORS and type(B) in TENSORS) or type(A) is np.ndarray is type(B):
        _ways[_key(A, B, asked)] = way
