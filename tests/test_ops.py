"""The custom operators: their values, gradients of operands and factors, opcheck, compilation, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import library

from stl_search.kernels import ops, reference
from stl_search.kernels.plan import LAYOUTS, Plan
from stl_search.testing import STRASSEN

F16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
FP8 = torch.float8_e4m3fn
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def gaussian(*shape: int, dtype: torch.dtype = F64, seed: int = 0, grad: bool = True) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 7 * len(shape)))
    return x.to(dtype).requires_grad_(grad)


def factors(dtype: torch.dtype = F64) -> list[torch.Tensor]:
    """Of no scheme at all: what is tested is bilinear in any three of them. u: (5, 2, 3), v: (5, 3, 2), w: (5, 2, 2)"""
    return [gaussian(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(5, 2, 3), (5, 3, 2), (5, 2, 2)])]


def cases(layout: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Each operator with arguments in float64: ragged sizes, batches that broadcast."""
    u, v, w = factors()
    a, b = gaussian(2, 1, 3, 4, seed=3), gaussian(3, 4, 5, seed=4)
    return {
        "encode": (ops.encode, (a, u, layout, F64)),
        "decode": (ops.decode, (gaussian(5, 2, 2, 3), w, 3, 5, layout, F64)),
        "product": (ops.product, (gaussian(2, 2, 1, 3, 4), gaussian(2, 3, 4, 5), F64)),
        "amm": (ops.amm, (a, b, u, v, w, layout, F64, F64, F64)),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["encode", "decode", "product", "amm"])
def test_gradients_of_operands_and_factors_are_those_of_finite_differences(name: str, layout: str) -> None:
    op, arguments = cases(layout)[name]
    count = sum(isinstance(x, torch.Tensor) for x in arguments)
    tensors, rest = arguments[:count], arguments[count:]
    assert torch.autograd.gradcheck(lambda *x: op(*x, *rest), tensors)


def test_second_derivatives_exist() -> None:
    op, (a, u, *rest) = cases("block")["encode"]
    assert torch.autograd.gradgradcheck(lambda x, c: op(x, c, *rest), (a, u))


@pytest.mark.parametrize("name", ["encode", "decode", "product", "amm"])
def test_opcheck(name: str) -> None:
    op, arguments = cases("block")[name]
    library.opcheck(op, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F16, torch.float16, F32, F64])
def test_values_are_those_of_the_oracles(dtype: torch.dtype, layout: str) -> None:
    """Whole numbers, exact in every precision."""
    plan = Plan(STRASSEN)
    u, v, w = (plan.coefficients(side, "fp64" if dtype == F64 else "fp32", "cpu") for side in ("lhs", "rhs", "out"))
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-2, 3, s, generator=generator).to(dtype) for s in ((2, 3, 5, 7), (3, 7, 4)))
    a_hat = ops.encode(a, u, layout, dtype)
    assert a_hat.dtype == dtype
    assert a_hat.is_contiguous()
    torch.testing.assert_close(a_hat, reference.encode_naive(a, u, layout).to(dtype), rtol=0, atol=0)
    p = ops.product(a_hat, ops.encode(b, v, layout, dtype), u.dtype)
    torch.testing.assert_close(ops.decode(p, w, 5, 4, layout, dtype), (a.double() @ b.double()).to(dtype))
    c = ops.amm(a, b, u, v, w, layout, dtype, u.dtype, dtype)
    torch.testing.assert_close(c, (a.double() @ b.double()).to(dtype), rtol=0, atol=0)


def moved(arguments: tuple[Any, ...], device: str, dtype: torch.dtype, stored: torch.dtype) -> tuple[Any, ...]:
    """Those of ``cases`` elsewhere, tensors in ``dtype``, results in ``stored``."""
    tensors = [x.detach().to(device, dtype).requires_grad_() for x in arguments if isinstance(x, torch.Tensor)]
    return (*tensors, *(stored if x == F64 else x for x in arguments[len(tensors) :]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "stored"), [(F32, F32), (F32, F16), (F16, F16), (torch.float16, torch.float16)])
@pytest.mark.parametrize("name", ["encode", "decode", "product", "amm"])
def test_opcheck_in_every_precision(
    name: str, dtype: torch.dtype, stored: torch.dtype, layout: str, device: str
) -> None:
    op, arguments = cases(layout)[name]
    given = moved(arguments, device, dtype, stored)
    if name != "product":  # factors stay in float32, in which sums are made
        count = {"encode": 1, "decode": 1, "amm": 2}[name]
        given = tuple(
            x.detach().float().requires_grad_() if i >= count and isinstance(x, torch.Tensor) else x
            for i, x in enumerate(given)
        )
    library.opcheck(op, given, test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))


@pytest.mark.parametrize("device", DEVICES)
def test_fp8_is_stored_with_scales(device: str) -> None:
    op, arguments = cases("tile")["amm"]
    a, b, u, v, w = (x.detach().to(device, F32).requires_grad_() for x in arguments[:5])
    c, wide = (op(a, b, u, v, w, "tile", stored, F32, F32).detach() for stored in (FP8, F32))
    hats = [
        reference.restore(reference.store(reference.encode(x, f, "tile"), "fp8_e4m3"), "fp32")
        for x, f in ((a.detach(), u.detach()), (b.detach(), v.detach()))
    ]
    expected = reference.decode(reference.product(*hats), w.detach(), 3, 5, "tile")
    # A GPU's tensor cores add products of fp8 with 13 bits behind the point of the largest.
    few = 2.0**-13 * float(expected.abs().max()) if device == "cuda" else 1e-5
    torch.testing.assert_close(c, expected, rtol=1.3e-6, atol=few)
    assert float((c - wide).norm() / c.norm()) > 1e-3
    library.opcheck(op, (a, b, u, v, w, "tile", FP8, F32, F32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F16, torch.float16, F32])
def test_any_strides_and_gradients_of_any_strides(dtype: torch.dtype, layout: str, device: str) -> None:
    """Operands, factors and gradients that are turned, spread out or repeated give what contiguous ones give."""

    def spread(x: torch.Tensor) -> torch.Tensor:
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype, device=x.device)
        wide[..., ::2] = x
        return wide[..., ::2]

    def whole(x: torch.Tensor) -> torch.Tensor:
        return x.clone(memory_format=torch.contiguous_format)

    plan = Plan(STRASSEN)
    u, v, w = (plan.coefficients(side, "fp32", device) for side in ("lhs", "rhs", "out"))
    generator = torch.Generator().manual_seed(1)
    a, b, grad = (
        torch.randint(-2, 3, s, generator=generator).to(device, dtype) for s in ((3, 1, 5), (4, 5, 6), (3, 4, 1, 6))
    )
    results = []
    for given in (
        (a[:, None], b, u, v, w),
        (spread(a)[:, None], b.mT.contiguous().mT, spread(u), spread(v), spread(w)),
    ):
        inputs = [x.detach().requires_grad_() for x in given]
        c = ops.amm(*inputs, layout, dtype, F32, F32)
        a_hat, b_hat = ops.encode(inputs[0], inputs[2], layout, dtype), ops.encode(inputs[1], inputs[3], layout, dtype)
        d = ops.decode(ops.product(a_hat, b_hat, F32), inputs[4], 1, 6, layout, F32)
        assert torch.equal(c, d)
        turned = grad.float().mT.contiguous().mT if given[0] is not a else grad.float()
        results.append([c, *torch.autograd.grad(c, inputs, turned), *torch.autograd.grad(d, inputs, turned)])
    for found, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(whole(found), whole(expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1)])
def test_operands_of_no_size_or_one(sizes: tuple[int, int, int], device: str) -> None:
    rows, inner, cols = sizes
    plan = Plan(STRASSEN)
    u, v, w = (plan.coefficients(side, "fp32", device) for side in ("lhs", "rhs", "out"))
    a, b = (torch.ones(s, device=device).requires_grad_() for s in ((rows, inner), (inner, cols)))
    c = ops.amm(a, b, u, v, w, "block", F32, F32, F32)
    assert torch.equal(c, torch.full((rows, cols), float(inner), device=device))
    grads = torch.autograd.grad(c.sum(), (a, b))
    assert [tuple(g.shape) for g in grads] == [(rows, inner), (inner, cols)]
    assert torch.equal(grads[0], torch.full_like(a, cols))


def test_complex_operands() -> None:
    u, v, w = factors(torch.complex128)
    a, b = gaussian(3, 4, dtype=torch.complex128, seed=1), gaussian(4, 5, dtype=torch.complex128, seed=2)
    rest = ("block", torch.complex128, torch.complex128, torch.complex128)
    assert torch.autograd.gradcheck(lambda *x: ops.amm(*x, *rest), (a, b, u, v, w))
    real = factors()  # real factors keep real gradients
    assert torch.autograd.gradcheck(lambda *x: ops.amm(*x, *rest), (a, b, *real))


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_whole_with_gradients(device: str) -> None:
    given = (gaussian(6, 8, dtype=F32, seed=1), gaussian(8, 10, dtype=F32, seed=2), *factors(F32))
    a, b, u, v, w = (x.detach().to(device).requires_grad_() for x in given)

    def step(*x: torch.Tensor) -> torch.Tensor:
        a_hat, b_hat = ops.encode(x[0], x[2], "tile", F32), ops.encode(x[1], x[3], "tile", F32)
        c = ops.decode(ops.product(a_hat, b_hat, F32), x[4], 6, 10, "tile", F32)
        return (c + ops.amm(*x, "tile", F32, F32, F32)).square().sum()

    expected = torch.autograd.grad(step(a, b, u, v, w), (a, b, u, v, w))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(a, b, u, v, w), (a, b, u, v, w)), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_narrows_products_and_leaves_factors(device: str) -> None:
    plan = Plan(STRASSEN)
    u, v, w = (plan.coefficients(side, "fp32", device) for side in ("lhs", "rhs", "out"))
    given = gaussian(6, 8, dtype=F32, seed=1), gaussian(8, 10, dtype=F32, seed=2)
    a, b = (x.detach().to(device).requires_grad_() for x in given)
    narrow = [x.detach().to(F16) for x in (a, b)]
    with torch.autocast(device, dtype=F16):
        assert ops.encode(a, u, "block", F32).dtype == F32
        p = ops.product(a[None], b[None], F32)
        c = ops.amm(a, b, u, v, w, "block", F32, F32, F32)
    assert torch.equal(p, ops.product(narrow[0][None], narrow[1][None], F32))
    assert torch.equal(c, ops.amm(*narrow, u, v, w, "block", F16, F32, F16))
    c.float().sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == F32
