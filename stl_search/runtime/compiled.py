"""``amm`` as torch.compile sees it: one operator that, each time it runs, does what a call outside a graph would do.

A graph holds tensors and constants, an encoder may be an object: it enters as a name. Selectors and paths are their own
names; a ``Scheme`` or ``Plan`` is named after its content and an ``EncodedOperand`` by a number, both known here from
the first trace on. Reading catalogs, taking locks and choosing happen when the operator runs, with the sizes it then
meets, so that one graph serves all of them; tracing needs the shape and dtype of the result alone.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import weakref
from typing import Any, Sequence  # noqa: UP035 (torch 2.6 knows no other Sequence in an operator's signature)

import numpy as np
import torch
from torch import library

from stl_search.errors import UsageError
from stl_search.kernels import ops, reference
from stl_search.kernels.plan import Plan, dtype_name, torch_dtype, wider
from stl_search.runtime.dispatch import out_name, request_of
from stl_search.runtime.operand import EncodedOperand, read
from stl_search.scheme import Scheme

__all__ = ["multiply", "traced"]

Tensor = torch.Tensor

_encoders: dict[str, Scheme | Plan] = {}  # by name, kept for the graphs that mention them
_operands: weakref.WeakValueDictionary[str, EncodedOperand] = weakref.WeakValueDictionary()  # graphs guard their lives
_numbers = itertools.count()
MARK = "registered:"  # begins the names of objects, and of no selector


# -- while a graph is made ---------------------------------------------------------------------------------------------


def traced(
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
        result = traced(a, b, encoder, rtol, speedup, out_dtype, backend, check, randomize, workspace)
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
    c: Tensor = multiply(
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
    _encoders.setdefault(name, found)
    return MARK + name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _operand_name(address: int) -> str:
    """A name for an encoded operand, given by its ``id``; it is not kept alive for that."""
    operand = _object(address)
    known = next((name for name, other in _operands.items() if other is operand), None)
    name = known or f"operand {next(_numbers)}"
    _operands[name] = operand
    return name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _result_dtype(given: Any, encoder: str, operand: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the product: as asked for, else the plan's, else the operands'."""
    given = _object(given) if isinstance(given, int) else given
    if given is not None:
        return torch_dtype(out_name(given, dtype.is_complex), dtype.is_complex)
    plan = _operands[operand].plan if operand else _encoders.get(encoder.removeprefix(MARK))
    return torch_dtype(plan.out, plan.complex) if isinstance(plan, Plan) else dtype


def _place_holder(operand: str) -> Tensor:
    """An empty tensor on the device, and in the dtype, of an encoded operand."""
    return torch.empty(0, dtype=_dtype_of(operand), device=_device_of(operand))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _dtype_of(operand: str) -> torch.dtype:
    found = _operands[operand]
    return torch_dtype(found.dtype, found.complex)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator, unused-ignore]
def _device_of(operand: str) -> str:
    return str(_operands[operand].device)


# -- when it runs ------------------------------------------------------------------------------------------------------


@library.custom_op("stl_search::multiply", mutates_args=())
def multiply(
    a: Tensor,
    b: Tensor,
    lhs: str,
    rhs: str,
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    encoder: str,
    rtol: float | None,
    speedup: float | None,
    backend: str,
    check: bool,
    mix: str,
    seed: int,
    workspace: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """A: (..., M, K), B: (..., K, N) -> C: (..., M, N) in ``dtype``: ``amm`` with these arguments.

    ``lhs`` and ``rhs`` name operands that are encoded, of shapes ``lhs_shape`` and ``rhs_shape``; a or b is then empty.
    ``mix`` and ``seed`` are ``randomize``, "" for none.
    """
    from stl_search.runtime import amm

    x, y = (_operands[name] if name else z for z, name in ((a, lhs), (b, rhs)))
    out = None if dtype == a.dtype == b.dtype and not encoder.startswith(MARK) and x is a and y is b else dtype
    with torch.no_grad():
        c: Tensor = amm.amm(
            x,
            y,
            _named(encoder),
            rtol=rtol,
            speedup=speedup,
            out_dtype=out,
            backend=backend,
            check=check,
            randomize=(mix, seed) if mix else None,
            workspace=workspace,
        )
    return c


@multiply.register_fake
def _(
    a: Tensor,
    b: Tensor,
    lhs: str,
    rhs: str,
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    encoder: str,
    rtol: float | None,
    speedup: float | None,
    backend: str,
    check: bool,
    mix: str,
    seed: int,
    workspace: int | None,
    dtype: torch.dtype,
) -> Tensor:
    if a.dtype != b.dtype:
        raise UsageError(f"A is {a.dtype} and B {b.dtype}: convert one to the other's dtype")
    x: Sequence[int] = lhs_shape if lhs else a.shape
    y: Sequence[int] = rhs_shape if rhs else b.shape
    if x[-1] != y[-2]:
        raise UsageError(f"A {tuple(x)} and B {tuple(y)} do not multiply: inner sizes differ")
    batch: tuple[int, ...] = torch.broadcast_shapes(x[:-2], y[:-2])  # type: ignore[no-untyped-call]
    return a.new_empty((*batch, x[-2], y[-1]), dtype=dtype)


def _named(encoder: str) -> Any:
    return _encoders[encoder.removeprefix(MARK)] if encoder.startswith(MARK) else encoder or None


# -- gradients ---------------------------------------------------------------------------------------------------------


@library.custom_op("stl_search::multiply_gradients", mutates_args=())
def multiply_gradients(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    lhs: str,
    rhs: str,
    encoder: str,
    rtol: float | None,
    speedup: float | None,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """grad: (..., M, N) -> the gradients of a and b, as if nothing was rounded; empty where not ``needed``.

    By the same scheme, or plain product, as the product itself.
    """
    from stl_search.runtime import amm

    given = ((a, lhs, "A"), (b, rhs, "B"))
    x, y = (_operands[other] if other else read(z, name) for z, other, name in given)
    plan = amm.planned(x, y, _named(encoder), rtol, speedup, None).plan
    none = a.new_empty(0)
    with torch.no_grad(), amm.no_autocast(a.device):
        if plan is None:
            kind = torch.promote_types(grad.dtype, a.dtype)
            if kind == torch.float16 and a.device.type == "cpu":
                kind = torch.float32
            wide = [z.to(kind) for z in (grad, a, b)]
            for_a = (wide[0] @ wide[2].mH).sum_to_size(a.shape).to(a.dtype) if needed[0] else none
            for_b = (wide[1].mH @ wide[0]).sum_to_size(b.shape).to(b.dtype) if needed[1] else none
            return for_a, for_b
        stored = torch_dtype(plan.compute if plan.dtype == "fp8_e4m3" else plan.dtype, plan.complex)
        p = ops.encode(grad, _factor(plan, "out", grad).conj(), plan.layout, torch_dtype(plan.product, plan.complex))
        pairs = (("lhs", x, y, needed[0]), ("rhs", y, x, needed[1]))
        found = []
        for side, mine, other, wanted in pairs:
            if not wanted or isinstance(mine, EncodedOperand):
                found.append(none)
                continue
            hat = _hat(other, plan, "rhs" if side == "lhs" else "lhs", stored).mH
            product = ops.product(p, hat, stored) if side == "lhs" else ops.product(hat, p, stored)
            like = mine.tensor
            rank, batch, size = len(product), like.shape[:-2], product.shape[-2:]
            spread = (1,) * (product.ndim - 3 - len(batch))  # in front of its own batch, behind the slices
            product = product.sum_to_size((rank, *spread, *batch, *size)).reshape(rank, *batch, *size)
            factor = _factor(plan, side, like).conj()
            found.append(ops.decode(product, factor, like.shape[-2], like.shape[-1], plan.layout, like.dtype))
        return found[0], found[1]


@multiply_gradients.register_fake
def _(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    lhs: str,
    rhs: str,
    encoder: str,
    rtol: float | None,
    speedup: float | None,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    for_a, for_b = (x.new_empty(x.shape if wanted else (0,)) for x, wanted in zip((a, b), needed, strict=True))
    return for_a, for_b


def _hat(x: Any, plan: Plan, side: str, stored: torch.dtype) -> Tensor:
    """x encoded: (r, ..., rows, cols)."""
    if isinstance(x, EncodedOperand):
        return reference.restore(x.stored, plan.compute).to(stored)
    found: Tensor = ops.encode(x.tensor, _factor(plan, side, x.tensor), plan.layout, stored)
    return found


def _factor(plan: Plan, side: str, x: Tensor) -> Tensor:
    return plan.coefficients(side, wider(plan.compute, dtype_name(x.dtype)[0]), x.device)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, *ctx.names, _, _, ctx.encoder, ctx.rtol, ctx.speedup, _, _, _, _, _, _ = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:2])
    for_a, for_b = multiply_gradients(grad, a, b, *ctx.names, ctx.encoder, ctx.rtol, ctx.speedup, needed)
    return for_a if needed[0] else None, for_b if needed[1] else None, *[None] * 13


multiply.register_autograd(_backward, setup_context=_context)
