"""What ``amm`` is while torch.compile makes a graph. Imports Dynamo, which takes a second, and so is imported then."""

from __future__ import annotations

import ctypes
import itertools
import os
from typing import Any

import numpy as np
import torch

from stl_search.errors import UsageError
from stl_search.kernels.plan import Plan, torch_dtype
from stl_search.runtime import compiled
from stl_search.runtime.dispatch import out_name, request_of
from stl_search.runtime.operand import EncodedOperand

__all__ = ["encoded", "multiplied"]

Tensor = torch.Tensor

_numbers = itertools.count()


def multiplied(
    A: Any,
    B: Any,
    encoder: Any,
    rtol: float | None,
    speedup: float | None,
    out_dtype: Any,
    backend: str,
    check: bool,
    randomize: Any,
    workspace: int | None,
) -> Any:
    """What ``amm`` is inside a graph, with the same arguments and result; Dynamo reads this function line by line.

    Gradients do not pass a product with ``check`` or ``randomize`` here: raises UsageError where they are wanted.
    """
    left, right = isinstance(A, EncodedOperand), isinstance(B, EncodedOperand)
    if isinstance(A, np.ndarray) or isinstance(B, np.ndarray):
        if not (isinstance(A, np.ndarray) or left) or not (isinstance(B, np.ndarray) or right):
            raise UsageError("one operand is a numpy array and the other is not: pass both as the same kind")
        a, b = A if left else torch.from_numpy(A), B if right else torch.from_numpy(B)
        result = multiplied(a, b, encoder, rtol, speedup, out_dtype, backend, check, randomize, workspace)
        return result.numpy()
    lhs, rhs = _operand_name(id(A)) if left else "", _operand_name(id(B)) if right else ""
    a = _place_holder(lhs) if left else A
    b = _place_holder(rhs) if right else B
    guarded = check or randomize is not None
    if guarded and torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        raise UsageError("check and randomize have no gradients inside torch.compile: call amm outside of the graph")
    one, other = a.ndim == 1 and not left, b.ndim == 1 and not right
    kind, seed = ("hadamard", randomize) if not isinstance(randomize, tuple) else randomize
    if isinstance(encoder, (int, float, tuple, list)):  # which have no id here; Dynamo 2.6 knows no unions
        raise UsageError(f"a scheme is given as a selector, a path or a Scheme, not {type(encoder).__name__}")
    name = _encoder_name(encoder if encoder is None or isinstance(encoder, str) else id(encoder))
    given = out_dtype if out_dtype is None or isinstance(out_dtype, (str, torch.dtype)) else id(out_dtype)
    c: Tensor = compiled.multiply(
        a.unsqueeze(0) if one else a,
        b.unsqueeze(1) if other else b,
        lhs,
        rhs,
        list(A.shape) if left else [],
        list(B.shape) if right else [],
        name,
        rtol,
        speedup,
        backend,
        check,
        "" if randomize is None else kind,
        0 if randomize is None else seed,
        workspace,
        _result_dtype(given, name, lhs or rhs, b.dtype if left else a.dtype),
    )
    c = c.squeeze(-2) if one else c
    return c.squeeze(-1) if other else c


def _object(address: int) -> Any:
    """The object that has this ``id``: Dynamo turns objects into nothing else, and guards the graph with it."""
    return ctypes.cast(address, ctypes.py_object).value


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _encoder_name(encoder: str | int | None) -> str:
    """A name for an encoder, given as itself where it is a text, else by its ``id``; raises what ``amm`` raises."""
    if encoder is None or isinstance(encoder, str):
        return encoder or ""
    found = _object(encoder)
    if isinstance(found, os.PathLike):
        return str(os.fspath(found))
    request_of(found)  # its complaint about what names nothing
    if isinstance(found, Plan):
        parts = [found.dtype, found.product, found.out, found.layout, found.device, str(found.complex)]
        name = ":".join(["plan", found.scheme.id, *parts])
    else:
        name = f"scheme:{found.id}"
    compiled._encoders.setdefault(name, found)
    return compiled.MARK + name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _operand_name(address: int) -> str:
    """A name for an encoded operand, given by its ``id``; it is not kept alive for that."""
    operand = _object(address)
    known = next((name for name, other in compiled._operands.items() if other is operand), None)
    name = known or f"operand {next(_numbers)}"
    compiled._operands[name] = operand
    return name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _result_dtype(given: Any, encoder: str, operand: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the product: as asked for, else the plan's, else the operands'."""
    given = _object(given) if isinstance(given, int) else given
    if given is not None:
        return torch_dtype(out_name(given, dtype.is_complex), dtype.is_complex)
    plan = compiled._operands[operand].plan if operand else compiled._encoders.get(encoder.removeprefix(compiled.MARK))
    return torch_dtype(plan.out, plan.complex) if isinstance(plan, Plan) else dtype


def _place_holder(operand: str) -> Tensor:
    """An empty tensor on the device, and in the dtype, of an encoded operand."""
    return torch.empty(0, dtype=_dtype_of(operand), device=_device_of(operand))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _dtype_of(operand: str) -> torch.dtype:
    found = compiled._operands[operand]
    return torch_dtype(found.dtype, found.complex)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _device_of(operand: str) -> str:
    return str(compiled._operands[operand].device)


@torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
def encoded(x: Any, name: str, encoder: Any, side: str) -> EncodedOperand:
    """``encode_lhs`` or ``encode_rhs`` of an operand, outside of the graph."""
    from stl_search.runtime import amm

    return amm._encode(x, name, encoder, side)
