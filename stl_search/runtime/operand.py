"""Operands of ``amm``: torch tensors and numpy arrays read alike, and operands that were encoded in advance."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from stl_search.errors import FormatError, StlError, UsageError
from stl_search.kernels import gpu_multiply, multiply, reference
from stl_search.kernels.plan import Plan, dtype_name, numpy_dtype, torch_dtype
from stl_search.kernels.watched import carried
from stl_search.runtime import calibrate
from stl_search.scheme import Scheme

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

    ``side`` is "lhs" or "rhs"; ``shape``, ``dtype`` and ``kind`` are those of the operand that it was made from, and
    its partner must have the same dtype and kind. It is a constant: no gradient flows into it. ``held`` is what is in
    memory: ``stored``, or the same numbers packed for the library that multiplies fastest with them.
    """

    plan: Plan
    side: str
    held: reference.Stored | multiply.Packed = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    kind: str

    @property
    def stored(self) -> reference.Stored:
        """(r, ..., rows', cols') in ``plan.dtype``, zeros beyond the edge encoded with the rest."""
        return self.held if isinstance(self.held, reference.Stored) else reference.Stored(self.held.unpacked())

    @property
    def complex(self) -> bool:
        """Whether its entries are complex."""
        return self.plan.complex

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.held.data.device if isinstance(self.held, reference.Stored) else self.held.device

    @property
    def nbytes(self) -> int:
        """Bytes held: about r/(mk) or r/(kn) of the operand's, times the ratio of the dtypes' sizes."""
        if not isinstance(self.held, reference.Stored):
            return self.held.nbytes
        scale = self.held.scale
        return self.held.data.nbytes + (scale.nbytes if scale is not None else 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file, with its plan; raises UsageError when the file cannot be written."""
        from safetensors.torch import save_file

        stored = self.stored
        data = stored.data.contiguous()
        tensors = {"data": torch.view_as_real(data) if data.dtype == torch.complex128 else data}  # the format has none
        if stored.scale is not None:
            tensors["scale"] = stored.scale.contiguous()
        plan = {name: getattr(self.plan, name) for name in PLAN_FIELDS}
        about = {"format": FORMAT, "side": self.side, "shape": self.shape, "dtype": self.dtype, "kind": self.kind}
        text = json.dumps({**about, "plan": {**plan, "scheme": self.plan.scheme.to_json()}})
        try:
            save_file(tensors, path, metadata={"stl_search": text})
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path} cannot be written: {error}") from None

    @staticmethod
    def load(path: str | os.PathLike[str], device: Any = "cpu") -> EncodedOperand:
        """What ``save`` wrote, on a device; raises FormatError, in one sentence, for any other file."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                about = json.loads((file.metadata() or {})["stl_search"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise FormatError(f"{path} holds no encoded operand: {error!s:.100}") from None
        except (AssertionError, RuntimeError) as error:  # torch's own, of a device that is not there
            raise UsageError(f"{path} cannot be loaded to {device}: {error!s:.100}") from None
        try:
            if about["format"] != FORMAT:
                raise FormatError(f"{path} has format {about['format']!r:.40}, this version reads {FORMAT!r}")
            scheme = Scheme.from_json(about["plan"]["scheme"])
            plan = Plan(scheme, **{n: about["plan"][n] for n in PLAN_FIELDS if n != "device"}, device=str(device))
            shape, side = tuple(about["shape"]), about["side"]
            if len(shape) < 2 or any(type(size) is not int or size < 0 for size in shape):
                raise ValueError(f"{list(shape)} is no shape of a matrix")
            data = tensors["data"]
            whole = plan.complex and plan.dtype == "fp64" and data.dtype == torch.float64
            stored = reference.Stored(torch.view_as_complex(data) if whole else data, tensors.get("scale"))
            _check_stored(stored, plan, side, shape)
            if about["kind"] not in ("torch", "numpy") or dtype_name(about["dtype"])[0] != about["dtype"]:
                raise ValueError("unknown kind or dtype")
            if about["dtype"] == "fp8_e4m3":
                raise ValueError("no operand has dtype fp8_e4m3")
        except FormatError:
            raise
        except (StlError, KeyError, RuntimeError, ValueError, TypeError) as error:
            raise FormatError(f"{path} is damaged: {error!s:.100}") from None
        stored = gpu_multiply.for_products(stored, side) if stored.data.is_cuda else stored
        return EncodedOperand(plan, side, _packed(stored, plan, side), shape, about["dtype"], about["kind"])


FORMAT = "stl-operand/1"
PLAN_FIELDS = ("dtype", "product", "out", "layout", "device", "complex")


def _check_stored(stored: reference.Stored, plan: Plan, side: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the numbers have the shape and type that the plan gives them."""
    m, k, n = plan.scheme.shape
    rows, cols = {"lhs": (m, k), "rhs": (k, n)}[side]
    wanted = (plan.scheme.rank, *shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // cols))
    if tuple(stored.data.shape) != wanted or stored.data.dtype != torch_dtype(plan.dtype, plan.complex):
        raise ValueError(f"{tuple(stored.data.shape)} {stored.data.dtype} where {wanted} in {plan.dtype} belongs")
    if (plan.dtype == "fp8_e4m3") != (stored.scale is not None):
        raise ValueError("scales belong to fp8_e4m3 and to nothing else")
    scale = stored.scale
    if scale is not None and (tuple(scale.shape) != (*wanted[:-2], 1, 1) or not scale.is_floating_point()):
        raise ValueError(f"scales {tuple(scale.shape)} {scale.dtype} where one a slice belongs")


def read(x: Any, name: str) -> Operand:
    """A: (..., M, K) as an Operand; shares memory unless torch cannot (negative strides, foreign byte order).

    Raises UsageError for anything but dense floating-point or complex torch tensors and numpy arrays.
    """
    if isinstance(x, torch.Tensor):
        kind, array, tensor = "torch", None, x
        if x.is_nested:
            raise UsageError(f"{name} is a nested tensor: amm multiplies matrices of one size")
        if x.layout != torch.strided:
            raise UsageError(f"{name} is a sparse tensor: amm multiplies dense ones, call {name}.to_dense() first")
    elif isinstance(x, np.ma.MaskedArray):
        raise UsageError(f"{name} is a masked array: fill it first, amm would not see the mask")
    elif isinstance(x, (np.ndarray, np.generic)):  # products of two vectors are numpy scalars
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
        tensor = tensor_of(array)
    assert tensor is not None
    if tensor.is_neg():
        tensor = tensor.resolve_neg()  # once, not for each part of a product that reads memory
    return Operand(name, kind, tensor, dtype, is_complex, array)


def tensor_of(array: np.ndarray[Any, Any]) -> torch.Tensor:
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
    if carried(x.tensor):
        raise UsageError(f"a transform or a derivative runs over {x.name}, and an encoded operand is a constant")
    if x.kind == "numpy":
        numpy_dtype(plan.out, plan.complex)  # a result that numpy cannot hold is refused here, not at each product
    # usable later, also where gradients of the partner are taken, or a transform runs over it
    with torch.inference_mode(False), torch.no_grad(), torch._C._DisableFuncTorch():
        if multiply.applies(plan, x.tensor):
            stored = reference.Stored(multiply.encode(x.tensor, plan, side))
        elif gpu_multiply.applies(plan, x.device, x.dtype):
            stored = gpu_multiply.encode(x.tensor, plan, side)
        else:
            stored = reference.store(reference.encode_operand(x.tensor, plan, side), plan.dtype)
        return EncodedOperand(plan, side, _packed(stored, plan, side), x.shape, x.dtype, x.kind)


def _packed(stored: reference.Stored, plan: Plan, side: str) -> reference.Stored | multiply.Packed:
    """The same, packed where that makes products faster: B on the processor, of some size."""
    b = stored.data
    if side == "rhs" and stored.scale is None and b.numel() and min(b.shape[-2:]) >= calibrate.SMALLEST_SLICE:
        size = calibrate.side(max(b.shape[-2:]), *b.shape[-2:])  # with as many rows as there may be
        way = calibrate.rates("cpu", plan.dtype).packing(size) if multiply.applies(plan, b) else None
        found = multiply.pack(b, plan, way) if way else b
        return stored if isinstance(found, torch.Tensor) else found
    return stored
