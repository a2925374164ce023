"""``amm``: C = A B by a scheme, for torch tensors and numpy arrays of any size; and operands encoded in advance."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.compiler import is_compiling, is_dynamo_compiling

from stl_search.errors import UsageError
from stl_search.kernels import dense, gpu_multiply, multiply, ops, reference
from stl_search.kernels.plan import Plan, numpy_dtype, torch_dtype, wider, with_out
from stl_search.kernels.watched import watched
from stl_search.runtime import calibrate, compiled, recall  # noqa: F401 (saved graphs find its operators)
from stl_search.runtime.dispatch import (
    DEFAULT,
    Explanation,
    Problem,
    Request,
    choose,
    dense_way,
    explain,
    out_name,
    request_of,
    seen,
)
from stl_search.runtime.estimate import frobenius, guarded
from stl_search.runtime.operand import EncodedOperand, Operand, encode, read, to_kind
from stl_search.runtime.recall import TENSORS

__all__ = ["BACKENDS", "EncodedOperand", "amm", "encode_lhs", "encode_rhs", "explain", "relative_error"]

BACKENDS = ("auto", "reference")
_clock = time.monotonic


def amm(
    A: Any,
    B: Any,
    encoder: Any = DEFAULT,
    *,
    rtol: float | None = None,
    speedup: float | None = None,
    out_dtype: Any = None,
    backend: str = "auto",
    check: bool = False,
    randomize: Any = None,
    workspace: int | None = None,
) -> Any:
    """A: (..., M, K), B: (..., K, N) -> C: (..., M, N), about A @ B, by a bilinear scheme; of the operands' kind.

    Any sizes (padding inside), batches and one-dimensional operands as in torch.matmul; float16, bfloat16, float32,
    float64, complex64, complex128; any strides; torch tensors on any one device or numpy arrays. The result has the
    operands' dtype, or ``out_dtype``. Gradients flow to both operands, as if nothing was rounded.

    ``encoder`` is a selector, a path, a ``Scheme`` or a ``Plan``; what names one scheme is used as asked. An open
    selector (no shape or no rank) leaves the choice to the catalog and a cost model, with plain dense among the
    choices: the fastest that is exact up to rounding; with ``rtol`` the fastest whose predicted error is within it;
    with ``speedup`` s the most accurate with s times fewer multiplications. ``explain`` tells the choice.

    Products are kept in float32 (float64 for such operands). On a processor that multiplies bfloat16 faster than
    float32 they cost twice what they need to: ``rtol`` and ``speedup`` let the choice keep them in bfloat16 where the
    error allows, and for one scheme ``Plan(scheme, "bf16", product="bf16")`` asks for it; ``explain`` gives both times.

    A or B may be an ``EncodedOperand``: then its plan is meant. ``backend`` is "auto" (the fastest kernels at hand) or
    "reference" (plain torch).

    A NaN or infinity in A or B makes at least those entries of C non-finite that it makes non-finite in A @ B, and may
    spread to the entries that share its place in other blocks (with ``randomize``, to all entries); it never
    disappears. In float16, sums of entries near 65504 overflow to infinity.

    Memory on the processor, without gradients, beside operands and result: B encoded (r/(k n) of its size, and where
    16-bit operands are multiplied in float32 once more in float32; of more than 256 MB some columns at a time) and one
    chunk of encoded rows of A and of products, 48 MB or 16 rows of each slice, of which 48 MB at most stay for the next
    call; ``workspace`` is a bound in bytes on all of that, honoured at the price of speed and refused where it cannot
    be. With gradients, on other devices, and at several levels, A encoded and all products (r/(m k) and r/(m n) of A
    and C) are in memory at once.

    ``check`` estimates the error of the result (``estimate_error``) and returns the fastest dense product at hand, with
    a StlWarning that says so, where it exceeds ``rtol``; an encoder that names one scheme may then come with ``rtol``.
    ``randomize`` is a seed: rows, columns and inner indices are mixed by random orthogonal transforms that cancel in
    the result, so that the expected error does not hinge on structure in the data: ("hadamard", seed), or ("signs",
    seed) for signs alone, which are cheaper and leave the magnitudes of entries where they are; see
    ``runtime.estimate``.

    Inside torch.compile the call is one operator, whose graph serves all sizes: encoders and encoded operands may be
    anything, and an open selector chooses when the product runs. There, ``check`` and ``randomize`` have no gradients.
    Under a transform of ``torch.func``, in forward-mode differentiation and for tensors without data (FakeTensorMode)
    products are made of plain torch operations, which these can follow, and not by the kernels.

    Raises UsageError in one sentence for operands that do not go together, and what loading ``encoder`` raises.

    >>> import stl_search as stl
    >>> one = stl.Scheme((1, 1, 1), "ZT", [[1]], [[1]], [[1]])
    >>> amm(np.eye(2), np.array([[1.0, 2.0], [3.0, 4.0]]), one)
    array([[1., 2.],
           [3., 4.]])
    """
    if is_dynamo_compiling():  # the shorter of two calls, for the sake of what follows
        from stl_search.runtime import traced

        return traced.multiplied(A, B, encoder, rtol, speedup, out_dtype, backend, check, randomize, workspace)
    if encoder is None:
        encoder = DEFAULT
    # What small products pay for, see ``recall``: after a product that has filled the caches each line of this costs
    # more than it seems, and a call most, so that it stands here.
    plain = out_dtype is workspace is randomize is None and backend == "auto" and check is False
    default = encoder is DEFAULT or (type(encoder) is str and encoder == DEFAULT)
    simple = plain and default and rtol is speedup is None and type(A) in TENSORS and type(B) in TENSORS
    if simple and not A.is_nested and not B.is_nested:  # the tests end the process where they meet nested tensors
        for alike, product in seen.latest:
            if alike(A, B) and _clock() < seen.until:
                return product(A, B)
    if plain and (quick := recall.product(A, B, encoder, rtol, speedup)) is not None:
        return quick
    if is_compiling():  # for torch.export, whose tensors have no data
        from stl_search.runtime import traced

        return traced.multiplied(A, B, encoder, rtol, speedup, out_dtype, backend, check, randomize, workspace)
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r:.40}; known: {', '.join(BACKENDS)}")
    if workspace is not None and (isinstance(workspace, bool) or not isinstance(workspace, int) or workspace <= 0):
        raise UsageError(f"workspace is {workspace!r:.40}, must be a positive number of bytes")
    if check or randomize is not None:
        if out_dtype is not None and not isinstance(A, EncodedOperand):
            _out_name(out_dtype, read(A, "A"))  # refused before the work
        again = partial(
            amm, encoder=encoder, speedup=speedup, out_dtype=out_dtype, backend=backend, workspace=workspace
        )
        return guarded(again, partial(_dense_as, out_dtype), A, B, encoder, rtol, check, randomize)
    a = A if isinstance(A, EncodedOperand) else read(A, "A")
    b = B if isinstance(B, EncodedOperand) else read(B, "B")
    batch = _check_pair(a, b)
    out = None if out_dtype is None else _out_name(out_dtype, a)
    chosen = planned(a, b, encoder, rtol, speedup, out, batch)
    if chosen.plan is None:
        assert isinstance(a, Operand)
        assert isinstance(b, Operand)
        if plain and (a.device.type == "cuda" or (a.device.type == "cpu" and a.dtype != "fp16")):
            recall.remember(A, B, (encoder, rtol, speedup), chosen.way)
        return _dense(a, b, out or a.dtype, chosen.way)
    plan, levels = chosen.plan, chosen.levels
    if a.kind == "numpy":
        numpy_dtype(plan.out, plan.complex)  # refused before the work, not after
    with no_autocast(a.device):
        c = _by_scheme(a, b, plan, levels, backend, workspace)
    if len(a.shape) == 1:
        c = c.squeeze(-2)
    if len(b.shape) == 1:
        c = c.squeeze(-1)
    return to_kind(c, a.kind)


def encode_lhs(A: Any, encoder: Any) -> EncodedOperand:
    """A: (..., M, K) -> its encoding for ``amm(A_hat, B)``, made once for many B; see ``encode_rhs``."""
    if is_compiling():
        from stl_search.runtime import traced

        outside: EncodedOperand = traced.encoded(A, "A", encoder, "lhs")
        return outside
    return _encode(A, "A", encoder, "lhs")


def encode_rhs(B: Any, encoder: Any) -> EncodedOperand:
    """B: (..., K, N) -> its encoding for ``amm(A, B_hat)``, made once for many A (weights); frozen.

    ``encoder`` must name one scheme (a selector with shape and rank, a path, a ``Scheme`` or a ``Plan``): how large
    the products will be is not known yet; ``explain(...).plan`` is one that a cost model chose. Raises UsageError
    otherwise, and for a B that requires a gradient.

    torch.compile leaves this call out of its graphs: encode outside of a compiled function, and multiply inside.
    """
    if is_compiling():
        from stl_search.runtime import traced

        outside: EncodedOperand = traced.encoded(B, "B", encoder, "rhs")
        return outside
    return _encode(B, "B", encoder, "rhs")


def relative_error(C: Any, A: Any, B: Any) -> float:
    """|C - A B|_F / |A B|_F for C: (..., M, N), A: (..., M, K), B: (..., K, N), with A B in float64; over all batches.

    0 when both are zero, infinite when only A B is. Of float64 operands the reference itself carries rounding errors.
    """
    c, a, b = (read(x, name) for x, name in ((C, "C"), (A, "A"), (B, "B")))
    _check_pair(a, b)
    exact = torch.matmul(*(x.tensor.detach().to(torch_dtype("fp64", x.complex)) for x in (a, b)))
    if c.shape != tuple(exact.shape):
        raise UsageError(f"C has shape {c.shape}, A B has {tuple(exact.shape)}")
    gap, size = (frobenius(x) for x in (c.tensor.detach() - exact, exact))
    return gap / size if size else (math.inf if gap else 0.0)


def planned(
    a: Operand | EncodedOperand,
    b: Operand | EncodedOperand,
    encoder: Any,
    rtol: float | None,
    speedup: float | None,
    out: str | None,
    batch: tuple[int, ...] | None = None,
) -> Explanation:
    """How ``amm`` multiplies these operands; ``out`` is the precision asked for, ``batch`` that of the product."""
    request = request_of(encoder, rtol, speedup)
    if isinstance(a, EncodedOperand) or isinstance(b, EncodedOperand):
        plan = _encoded_plan(a, b, request, encoder == DEFAULT or encoder is None, out)
        return Explanation(plan, math.nan, math.nan, 1, "an operand is encoded by it")
    return choose(request, _problem(a, b, _check_pair(a, b) if batch is None else batch, out), out)


def _encode(x: Any, name: str, encoder: Any, side: str) -> EncodedOperand:
    if isinstance(x, EncodedOperand):
        raise UsageError(f"{name} is encoded already")
    operand = read(x, name)
    if operand.tensor.ndim < 2:
        raise UsageError(f"{name} has {operand.tensor.ndim} dimensions: only matrices and stacks of them are encoded")
    request = request_of(encoder)
    if request.named is None:
        raise UsageError(f"an open selector cannot encode {name} alone: name one scheme, with shape= and rank=")
    rows, cols = operand.shape[-2:]
    sizes = (rows, cols, 1) if side == "lhs" else (1, rows, cols)
    problem = Problem(*sizes, operand.dtype, operand.dtype, operand.complex, str(operand.device))
    plan = choose(request, problem).plan
    assert plan is not None
    with no_autocast(operand.device):
        return encode(operand, plan, side)


def _by_scheme(
    a: Operand | EncodedOperand,
    b: Operand | EncodedOperand,
    plan: Plan,
    levels: int,
    backend: str,
    workspace: int | None,
) -> torch.Tensor:
    """A: (..., M, K), B: (..., K, N) -> C: (..., M, N) by the fastest path that these operands can take."""
    rows = a.shape[-2] if len(a.shape) > 1 else 1
    cols = b.shape[-1] if len(b.shape) > 1 else 1
    given = [x for x in (a, b) if isinstance(x, Operand)]
    gradient = torch.is_grad_enabled() and any(x.tensor.requires_grad for x in given)
    if watched(*(x.tensor for x in given)):
        backend = "reference"
    if backend == "auto" and not gradient and _in_memory(a, b, plan):
        left, right = (_held(x, side) for x, side in ((a, "lhs"), (b, "rhs")))
        assert isinstance(left, torch.Tensor)
        encoded = isinstance(a, EncodedOperand), isinstance(b, EncodedOperand)
        tall = rows if len(b.shape) > 2 else math.prod(a.shape[:-1])
        way = calibrate.slice_way(plan, (tall, a.shape[-1], cols), levels)
        return multiply.multiply(left, right, plan, rows, cols, encoded, levels, workspace, way=way)
    if workspace is not None:
        raise UsageError("a workspace is kept to on the processor only, for real operands without gradients")
    if backend == "auto" and not gradient and gpu_multiply.applies(plan, a.device, *(x.dtype for x in given)):
        sides = ((a, "lhs"), (b, "rhs"))
        stored = [
            x.stored if isinstance(x, EncodedOperand) else gpu_multiply.encode(_matrix(x, side), plan, side)
            for x, side in sides
        ]
        return gpu_multiply.multiply(stored[0], stored[1], plan, rows, cols)
    if backend == "auto" and not plan.complex and plan.dtype != "fp8_e4m3" and a.device.type != "meta":
        hats = [_by_operator(x, plan, side) for x, side in ((a, "lhs"), (b, "rhs"))]
        p = ops.product(hats[0], hats[1], torch_dtype(plan.product))
        w = plan.coefficients("out", plan.compute, p.device)
        c: torch.Tensor = ops.decode(p, w, rows, cols, plan.layout, torch_dtype(plan.out))
        return c
    hats = [_encoded(x, plan, side) for x, side in ((a, "lhs"), (b, "rhs"))]
    return reference.multiply_encoded(hats[0], hats[1], rows, cols, plan)


def _in_memory(a: Operand | EncodedOperand, b: Operand | EncodedOperand, plan: Plan) -> bool:
    """Whether ``kernels.multiply`` takes these operands."""
    return a.device.type == "cpu" and multiply.applies(plan, *(x.tensor for x in (a, b) if isinstance(x, Operand)))


def _held(x: Operand | EncodedOperand, side: str) -> multiply.Operand:
    """What ``kernels.multiply`` takes for an operand: a matrix or stack, or what is held of an encoded one."""
    if isinstance(x, EncodedOperand):
        return x.held.data if isinstance(x.held, reference.Stored) else x.held
    return _matrix(x, side)


def _matrix(x: Operand, side: str) -> torch.Tensor:
    """x: (..., rows, cols), one-dimensional operands as a row or a column."""
    if x.tensor.ndim > 1:
        return x.tensor
    return x.tensor[None, :] if side == "lhs" else x.tensor[:, None]


def _by_operator(x: Operand | EncodedOperand, plan: Plan, side: str) -> torch.Tensor:
    """x: (..., rows, cols) -> (r, ..., rows', cols') in ``plan.dtype``, by an operator with a gradient."""
    if isinstance(x, EncodedOperand):
        return x.stored.data
    u = plan.coefficients(side, wider(plan.compute, x.dtype), x.device)
    found: torch.Tensor = ops.encode(_matrix(x, side), u, plan.layout, torch_dtype(plan.dtype))
    return found


def _encoded(x: Operand | EncodedOperand, plan: Plan, side: str) -> torch.Tensor:
    """x: (..., rows, cols) -> (r, ..., rows', cols') as it comes back from storage, in ``plan.compute``."""
    if isinstance(x, EncodedOperand):
        return reference.restore(x.stored, plan.compute)
    return reference.rounded(reference.encode_operand(_matrix(x, side), plan, side), plan.dtype, plan.compute)


def _encoded_plan(
    a: Operand | EncodedOperand, b: Operand | EncodedOperand, request: Request, silent: bool, out: str | None
) -> Plan:
    """The plan of the encoded operands, once they agree and nothing else was named."""
    encoded = [x for x in (a, b) if isinstance(x, EncodedOperand)]
    plan = encoded[0].plan
    if encoded[-1].plan != plan:
        raise UsageError(
            f"A was encoded by {plan.scheme.name} ({plan.dtype}, {plan.layout}), B by {encoded[-1].plan.scheme.name} "
            f"({encoded[-1].plan.dtype}, {encoded[-1].plan.layout}): encode both by one plan"
        )
    if request.rtol is not None or request.speedup is not None:
        raise UsageError("rtol and speedup choose a scheme, but an encoded operand has its own: drop them")
    if not silent:
        named = request.named(encoded[0].dtype) if request.named is not None else None
        if named != (plan if isinstance(named, Plan) else plan.scheme):
            raise UsageError(f"an operand is encoded by {plan.scheme.name}, encoder names another: leave encoder out")
    return plan if out is None else with_out(plan, out)


def _problem(a: Operand, b: Operand, batch: tuple[int, ...], out: str | None) -> Problem:
    return Problem(
        rows=a.shape[-2] if len(a.shape) > 1 else 1,
        inner=a.shape[-1],
        cols=b.shape[-1] if len(b.shape) > 1 else 1,
        dtype=a.dtype,
        out=out or a.dtype,
        complex=a.complex,
        device=str(a.device),
        lhs_count=math.prod(a.shape[:-2]),
        rhs_count=math.prod(b.shape[:-2]),
        count=math.prod(batch),
    )


def _check_pair(a: Operand | EncodedOperand, b: Operand | EncodedOperand) -> tuple[int, ...]:
    """The batch (...) of the product of (..., M, K) and (..., K, N); raises UsageError unless the two go together."""
    for x, side, name in ((a, "lhs", "A"), (b, "rhs", "B")):
        if isinstance(x, EncodedOperand) and x.side != side:
            raise UsageError(f"{name} was made by encode_{x.side}: on this side encode_{side} belongs")
    if a.kind != b.kind:
        words = {"torch": "a torch tensor", "numpy": "a numpy array"}
        raise UsageError(f"A is {words[a.kind]} and B {words[b.kind]}: pass both as the same kind")
    if (a.dtype, a.complex) != (b.dtype, b.complex):
        names = [str(torch_dtype(x.dtype, x.complex)).removeprefix("torch.") for x in (a, b)]
        raise UsageError(f"A is {names[0]} and B {names[1]}: convert one to the other's dtype")
    if a.device != b.device:
        raise UsageError(f"A is on {a.device} and B on {b.device}: move one to the other's device")
    if not a.shape or not b.shape:
        raise UsageError(f"{'B' if a.shape else 'A'} is a scalar: multiply with * instead")
    inner = a.shape[-1], b.shape[-2] if len(b.shape) > 1 else b.shape[0]
    if inner[0] != inner[1]:
        raise UsageError(f"A {a.shape} and B {b.shape} do not multiply: inner sizes {inner[0]} and {inner[1]} differ")
    try:
        return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise UsageError(f"A {a.shape} and B {b.shape} do not multiply: their batches do not broadcast") from None


def _out_name(out_dtype: Any, a: Operand | EncodedOperand) -> str:
    """The precision that ``out_dtype`` names for the operands' kind and field."""
    name = out_name(out_dtype, a.complex)
    if a.kind == "numpy":
        numpy_dtype(name, a.complex)
    return name


def _dense_as(out_dtype: Any, a: Operand, b: Operand) -> tuple[Any, str]:
    """A @ B in the precision that ``amm`` was asked for, by the fastest routine at hand; and its name."""
    out = a.dtype if out_dtype is None else _out_name(out_dtype, a)
    way = dense_way(_problem(a, b, _check_pair(a, b), out))
    return _dense(a, b, out, way), way


def _dense(a: Operand, b: Operand, out: str, way: str = "torch") -> Any:
    """A @ B by the fastest library at hand (on the processor ``way``), rounded once to ``out``; of their kind."""
    wide = wider(out, a.dtype)
    if wide == "fp16" and a.device.type == "cpu":
        wide = "fp32"  # numpy and torch have no fast float16 product on most CPUs: 25 to 150 times slower
    if a.array is not None and b.array is not None and (way == "numpy" or recall.small(a.array, b.array)):
        given = numpy_dtype(wide, a.complex)
        with np.errstate(all="ignore"):  # NaN and infinity pass here as they do everywhere in amm
            c = np.matmul(a.array.astype(given, copy=False), b.array.astype(given, copy=False))
            return c.astype(numpy_dtype(out, a.complex), copy=False)
    kind = torch_dtype(wide, a.complex)
    x, y = a.tensor.to(kind), b.tensor.to(kind)
    with no_autocast(a.device):
        gradient = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
        if way == "torch" or gradient or watched(x, y) or a.device.type != "cpu" or min(x.ndim, y.ndim) < 2:
            c = torch.matmul(x, y)
        else:
            c = dense.matmul(x, y, way)
        return to_kind(c.to(torch_dtype(out, a.complex)), a.kind)


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Sums run in the plan's own precision, whatever torch.autocast says around the call."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
