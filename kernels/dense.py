"""Plain dense products on the processor by the libraries at hand; which is fastest hangs on the machine.

``WAYS`` lists them: torch's own (MKL or OpenBLAS); numpy's, in numpy's threads; numpy's OpenBLAS in torch's threads,
each with its share of the rows, or of the slices of a batch; and oneDNN, which torch carries but uses for float32 only
when a global setting is changed; here it is called directly, in full float32. What has 16 bits may be widened first:
without instructions for bfloat16, torch's own product of it takes fifty times as long. Batches have ``panels`` besides.
All are deterministic; ``panels`` rounds about twice as much as the libraries, which make shorter sums and add these up.
``runtime.calibrate`` measures and chooses. Nothing here makes gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stl_search.kernels import cpu, openblas, panels, reference

__all__ = ["WAYS", "Packed", "batched", "matmul", "pack", "packings", "routine", "slice_ways", "ways"]

Tensor = torch.Tensor


@cache
def _onednn() -> Any:
    """torch's entry to oneDNN's linear layer, None where this torch has none or it does not compute A B."""
    try:
        linear, reorder = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight
        with _disable_current_modes():
            a, b = torch.eye(3, 4, device="cpu"), torch.arange(8.0, device="cpu").reshape(4, 2)
            for weight in (b.T, reorder(b.T, 3)):
                if not torch.equal(linear(a, weight, None, "none", [], ""), b[:3]):
                    return None
            if not torch.equal(reorder(b.T, 3).to_dense(), b.T):
                return None
    except (AttributeError, RuntimeError, TypeError):
        return None
    return torch.ops.mkldnn


def _by_torch(a: Tensor, b: Tensor) -> Tensor:
    if a.ndim == b.ndim == 2 and a.shape[0] * b.shape[1] * a.itemsize >= cpu.LARGE:
        return torch.mm(a, b, out=cpu.empty((a.shape[0], b.shape[1]), a.dtype))
    return torch.matmul(a, b)


def _by_numpy(a: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(a.resolve_neg().numpy() @ b.resolve_neg().numpy())


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    found: Tensor = _onednn()._linear_pointwise(a, b.mT, None, "none", [], "")
    return found


def _by_openblas(a: Tensor, b: Tensor) -> Tensor:
    out = cpu.empty((*a.shape[:-1], b.shape[1]), a.dtype)
    if a.ndim == 2:
        return openblas.products(a, b, out)
    openblas.products(a.reshape(-1, a.shape[-1]), b, out.view(-1, b.shape[1]))
    return out


def _by_float32(a: Tensor, b: Tensor) -> Tensor:
    x, y = a.float(), b.float()
    return (_by_openblas(x, y) if openblas.supports(x.dtype) else _by_torch(x, y)).to(a.dtype)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": _by_torch,
    "numpy": _by_numpy,
    "openblas": _by_openblas,
    "onednn": _by_onednn,
    "float32": _by_float32,
}

_TAKES = {
    "numpy": (torch.float32, torch.float64),
    "openblas": (torch.float32, torch.float64),
    "onednn": (torch.float32,),
    "float32": (torch.bfloat16, torch.float16),
}


def ways(dtype: torch.dtype) -> list[str]:
    """The names of the routines that multiply this dtype here; torch's is always among them.

    numpy's is left out where torch was told to use fewer threads than there are processors: it would not obey.
    """
    found = ["torch"]
    if dtype in _TAKES["numpy"] and torch.get_num_threads() >= (os.cpu_count() or 1):
        found.append("numpy")
    found += [way for way in slice_ways(dtype)[1:] if way in WAYS]
    if dtype in _TAKES["onednn"] and _onednn() is not None:
        found.append("onednn")
    if dtype in _TAKES["float32"]:
        found.append("float32")
    return found


def slice_ways(dtype: torch.dtype) -> list[str]:
    """The names of the routines that ``batched`` takes here; torch's is the first of them."""
    found = ["torch"]
    if openblas.supports(dtype):
        found.append("openblas")
    if panels.supports(dtype):
        found.append("panels")
    return found


def matmul(a: Tensor, b: Tensor, way: str = "torch") -> Tensor:
    """A: (..., M, K), B: (..., K, N) -> (..., M, N) of one dtype, by the routine of that name where it applies.

    Stacks on the right, empty operands and dtypes that the routine does not know go to torch.
    """
    return routine(a, b, way)(a, b)


def routine(a: Tensor, b: Tensor, way: str) -> Callable[[Tensor, Tensor], Tensor]:
    """What ``matmul`` calls for such operands."""
    if way != "torch" and (b.ndim > 2 or a.dtype not in _TAKES[way] or not a.numel() or not b.numel()):
        way = "torch"
    return WAYS[way]


class Packed:
    """Encoded B: (r, K', N') as oneDNN keeps weights, so that no product has to arrange it anew; constant."""

    def __init__(self, b: Tensor) -> None:
        self.shape, self.dtype, self.device = b.shape, b.dtype, b.device
        self._weights = [_onednn()._reorder_linear_weight(x.T, None) for x in b]

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def nbytes(self) -> int:
        """Bytes held, the library's own padding apart."""
        return self.shape.numel() * self.dtype.itemsize

    def unpacked(self) -> Tensor:
        """(r, K', N'), contiguous: the same numbers."""
        return torch.stack([x.to_dense().T for x in self._weights])

    def products(self, a: Tensor) -> list[Tensor]:
        """a: (r, ..., M', K') -> r times (..., M', N')."""
        multiply = _onednn()._linear_pointwise
        return [multiply(x, w, None, "none", [], "") for x, w in zip(a, self._weights, strict=True)]


@cache
def _reorders(dtype: torch.dtype) -> bool:
    """Whether oneDNN arranges weights of this dtype on this processor: bf16 needs AVX-512 or later instructions."""
    if dtype not in (torch.float32, torch.bfloat16) or _onednn() is None:
        return False
    try:
        x = torch.ones(1, 16, 16, dtype=dtype, device="cpu")
        Packed(x).products(x)
    except RuntimeError:
        return False
    return True


def pack(b: Tensor, way: str) -> Packed | panels.Panels:
    """b: (r, K', N') -> the same, packed for one of the ``packings``."""
    return panels.Panels.of(b) if way == "panels" else Packed(b)


def packings(b: Tensor) -> list[str]:
    """The names of the ways in which encoded B: (r, ..., K', N') can be packed here."""
    if b.ndim != 3 or not b.numel() or b.device.type != "cpu":
        return []
    ways = {"onednn": _reorders(b.dtype), "panels": panels.supports(b.dtype)}
    return [way for way, there in ways.items() if there]


def batched(a: Tensor, b: Tensor, out: Tensor | None = None, way: str = "torch") -> Tensor:
    """a: (r, ..., M', K'), b: (r, ..., K', N') of one dtype -> (r, ..., M', N'); ``out`` may be given for 3-D b.

    ``way`` is one of ``slice_ways``, for 3-D b; other stacks, empty ones and dtypes it does not know go to torch.
    """
    if b.ndim == 3:  # all rows of a slice of A are one matrix
        flat = a.flatten(1, -2) if a.ndim > 3 else a
        if out is None:
            out = cpu.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        to = out.view(len(a), flat.shape[1], b.shape[-1])
        if way == "openblas" and openblas.supports(a.dtype):
            openblas.products(flat, b, to)
        elif way == "panels" and panels.supports(a.dtype):
            panels.Panels.of(b).products(flat, to)
        else:
            torch.bmm(flat, b, out=to)
        return out
    return reference.product(a, b)
