"""Operands of ``amm``: torch tensors and numpy arrays read alike, and operands that were encoded in advance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stl_search.errors import UsageError
from stl_search.kernels import reference
from stl_search.kernels.plan import Plan, dtype_name, numpy_dtype

__all__ = ["EncodedOperand", "Operand", "encode", "read", "to_kind"]


@dataclass(frozen=True, eq=False)
class Operand:
    """A matrix or a stack of them, (..., rows, cols) or (length,), seen as a strided torch tensor.

    ``kind`` is "torch" or "numpy"; ``array`` is the numpy array that ``tensor`` shares memory with where it can.
    ``dtype`` is the precision of the entries or of their parts, ``complex`` says which.
    """

    name: str
    kind: str
    tensor: torch.Tensor
    dtype: str
    complex: bool
    array: np.ndarray[Any, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, a tuple of integers."""
        return tuple(self.tensor.shape)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tensor.device


@dataclass(frozen=True, eq=False)
class EncodedOperand:
    """An operand (..., rows, cols) as encoded by a plan, to be used in any number of products; frozen.

    ``side`` is "lhs" or "rhs"; ``stored`` holds (r, ..., rows', cols') in ``plan.dtype``, contiguous, zeros beyond the
    edge encoded with the rest; ``shape``, ``dtype`` and ``kind`` are those of the operand that it was made from, and
    its partner must have the same dtype and kind. It is a constant: no gradient flows into it.
    """

    plan: Plan
    side: str
    stored: reference.Stored = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    kind: str

    @property
    def complex(self) -> bool:
        """Whether its entries are complex."""
        return self.plan.complex

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.stored.data.device

    @property
    def nbytes(self) -> int:
        """Bytes held: about r/(mk) or r/(kn) of the operand's, times the ratio of the dtypes' sizes."""
        scale = self.stored.scale
        return self.stored.data.nbytes + (scale.nbytes if scale is not None else 0)


def read(x: Any, name: str) -> Operand:
    """A: (..., M, K) as an Operand; shares memory unless torch cannot (negative strides, foreign byte order).

    Raises UsageError for anything but dense floating-point or complex torch tensors and numpy arrays.
    """
    if isinstance(x, torch.Tensor):
        kind, array, tensor = "torch", None, x
        if x.layout != torch.strided:
            raise UsageError(f"{name} is a sparse tensor: amm multiplies dense ones, call {name}.to_dense() first")
    elif isinstance(x, np.ma.MaskedArray):
        raise UsageError(f"{name} is a masked array: fill it first, amm would not see the mask")
    elif isinstance(x, np.ndarray):
        kind, array, tensor = "numpy", np.asarray(x), None
    else:
        raise UsageError(f"{name} is a {type(x).__name__}: amm multiplies torch tensors and numpy arrays")
    try:
        dtype, is_complex = dtype_name(x.dtype)
    except UsageError:
        dtype, is_complex = "", False
    if dtype in ("", "fp8_e4m3") or (kind == "numpy" and dtype == "bf16"):
        ways = "float16, bfloat16, float32, float64" if kind == "torch" else "float16, float32, float64"
        given = str(x.dtype).removeprefix("torch.")
        raise UsageError(f"{name} is {given}: amm multiplies {ways}, complex64 and complex128; convert it first")
    if array is not None:
        tensor = _tensor_of(array)
    assert tensor is not None
    return Operand(name, kind, tensor, dtype, is_complex, array)


def _tensor_of(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor on the memory of the array; on a copy where torch knows no such strides, byte order or alignment."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.aligned or any(s < 0 or s % array.itemsize for s in array.strides):
        array = array.copy()
    if not array.flags.writeable:  # torch warns of these; nobody writes to operands here
        array = np.asarray(_Writeable(array))
    return torch.from_numpy(array)


class _Writeable:
    """A read-only array's memory, described as writeable; keeps the array alive."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.array = array


def to_kind(result: torch.Tensor, kind: str) -> Any:
    """The result as the operands were: a tensor, or an array (a numpy scalar where it has no dimension)."""
    return result if kind == "torch" else result.numpy()[()]


def encode(x: Operand, plan: Plan, side: str) -> EncodedOperand:
    """x: (..., rows, cols) -> its encoding by the plan, in storage; raises UsageError when it requires a gradient."""
    if x.tensor.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            f"{x.name} requires a gradient and an encoded operand is a constant: "
            f"pass {x.name}.detach(), or encode under torch.no_grad()"
        )
    if x.kind == "numpy":
        numpy_dtype(plan.out, plan.complex)  # a result that numpy cannot hold is refused here, not at each product
    with torch.inference_mode(False), torch.no_grad():  # usable later, also where gradients of the partner are taken
        stored = reference.store(reference.encode_operand(x.tensor, plan, side), plan.dtype)
    return EncodedOperand(plan, side, stored, x.shape, x.dtype, x.kind)
