"""``amm`` as torch.compile sees it: one operator that, each time it runs, does what a call outside a graph would do.

A graph holds tensors and constants, an encoder may be an object: it enters as a name. Selectors and paths are their own
names; a ``Scheme`` or ``Plan`` is named after its content and an ``EncodedOperand`` by a number, both known here from
the first trace on. Reading catalogs, taking locks and choosing happen when the operator runs, with the sizes it then
meets, so that one graph serves all of them; tracing needs the shape and dtype of the result alone.
"""

from __future__ import annotations

import weakref
from typing import Any, Sequence  # noqa: UP035 (torch 2.6 knows no other Sequence in an operator's signature)

import torch
from torch import library

from stl_search.errors import UsageError
from stl_search.kernels import ops, reference
from stl_search.kernels.plan import Plan, dtype_name, torch_dtype, wider
from stl_search.runtime.operand import EncodedOperand, read
from stl_search.scheme import Scheme

__all__ = ["multiply"]

Tensor = torch.Tensor

_encoders: dict[str, Scheme | Plan] = {}  # by name, kept for the graphs that mention them
_operands: weakref.WeakValueDictionary[str, EncodedOperand] = weakref.WeakValueDictionary()  # graphs guard their lives
MARK = "registered:"  # begins the names of objects, and of no selector


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
