"""The custom operators: their values, gradients of operands and factors, opcheck, compilation, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stl_search.kernels import ops, reference
from stl_search.kernels.plan import LAYOUTS, Plan
from stl_search.testing import STRASSEN

F16, F32, F64 = torch.bfloat16, torch.float32, torch.float64


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
    torch.library.opcheck(op, arguments)


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


def test_complex_operands() -> None:
    u, v, w = factors(torch.complex128)
    a, b = gaussian(3, 4, dtype=torch.complex128, seed=1), gaussian(4, 5, dtype=torch.complex128, seed=2)
    rest = ("block", torch.complex128, torch.complex128, torch.complex128)
    assert torch.autograd.gradcheck(lambda *x: ops.amm(*x, *rest), (a, b, u, v, w))
    real = factors()  # real factors keep real gradients
    assert torch.autograd.gradcheck(lambda *x: ops.amm(*x, *rest), (a, b, *real))


def test_compiled_whole_with_gradients() -> None:
    u, v, w = factors(F32)
    a, b = gaussian(6, 8, dtype=F32, seed=1), gaussian(8, 10, dtype=F32, seed=2)

    def step(*x: torch.Tensor) -> torch.Tensor:
        a_hat, b_hat = ops.encode(x[0], x[2], "tile", F32), ops.encode(x[1], x[3], "tile", F32)
        c = ops.decode(ops.product(a_hat, b_hat, F32), x[4], 6, 10, "tile", F32)
        return (c + ops.amm(*x, "tile", F32, F32, F32)).square().sum()

    expected = torch.autograd.grad(step(a, b, u, v, w), (a, b, u, v, w))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(a, b, u, v, w), (a, b, u, v, w)), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_autocast_narrows_products_and_leaves_factors() -> None:
    plan = Plan(STRASSEN)
    u, v, w = (plan.coefficients(side, "fp32", "cpu") for side in ("lhs", "rhs", "out"))
    a, b = gaussian(6, 8, dtype=F32, seed=1), gaussian(8, 10, dtype=F32, seed=2)
    narrow = [x.detach().to(F16) for x in (a, b)]
    with torch.autocast("cpu", dtype=F16):
        assert ops.encode(a, u, "block", F32).dtype == F32
        p = ops.product(a[None], b[None], F32)
        c = ops.amm(a, b, u, v, w, "block", F32, F32, F32)
    assert torch.equal(p, ops.product(narrow[0][None], narrow[1][None], F32))
    assert torch.equal(c, ops.amm(*narrow, u, v, w, "block", F16, F32, F16))
    c.float().sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == F32
