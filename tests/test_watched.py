"""Transforms, forward-mode derivatives, modes and default devices around ``amm`` and the layers: nothing is lost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad

import stl_search as stl
from stl_search.errors import UsageError
from stl_search.kernels import dense
from stl_search.kernels.plan import Plan
from stl_search.nn import functional
from stl_search.runtime import recall
from stl_search.runtime.amm import relative_error
from stl_search.testing import STRASSEN

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.complex64]
NEAR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.complex64: 1e-5}
ENCODERS = [STRASSEN, "catalog:best"]


def matrix(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def near(x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype) -> bool:
    x, y = x.to(torch.complex128), y.to(torch.complex128)
    return bool((x - y).norm() <= NEAR[dtype] * y.norm())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_func(dtype: torch.dtype, encoder: Any) -> None:
    a, b, stack = matrix(6, 5, dtype=dtype), matrix(5, 7, dtype=dtype, seed=1), matrix(3, 6, 5, dtype=dtype, seed=2)
    along = matrix(6, 5, dtype=dtype, seed=3)
    assert near(torch.func.vmap(lambda x: stl.amm(x, b, encoder))(stack), stack @ b, dtype)
    value, tangent = torch.func.jvp(lambda x: stl.amm(x, b, encoder), (a,), (along,))
    assert near(value, a @ b, dtype)
    assert near(tangent, along @ b, dtype)
    if not dtype.is_complex:
        gradient = torch.func.grad(lambda x: stl.amm(x, b, encoder).sum())(a)
        assert near(gradient, b.double().sum(1).expand(6, 5), dtype)


def test_second_derivatives_and_encoded_partners() -> None:
    a, b = matrix(2, 5, dtype=torch.float64), matrix(5, 4, dtype=torch.float64, seed=1)
    hessian = torch.func.hessian(lambda x: (stl.amm(x, b, STRASSEN) ** 2).sum())(a)
    assert torch.allclose(hessian, 2 * torch.einsum("ij,kl->ikjl", torch.eye(2, dtype=torch.float64), b @ b.T))
    held, stack = stl.encode_rhs(b, STRASSEN), matrix(3, 2, 5, dtype=torch.float64, seed=2)
    assert torch.allclose(torch.func.vmap(lambda x: stl.amm(x, held))(stack), stack @ b)


def test_encoding_inside_a_transform_takes_constants_alone() -> None:
    a, b = matrix(6, 5), matrix(5, 4, seed=1)
    gradient = torch.func.grad(lambda x: stl.amm(x, stl.encode_rhs(b, STRASSEN)).sum())(a)
    assert near(gradient, b.sum(1).expand(6, 5), torch.float32)
    held = []
    torch.func.vmap(lambda x: held.append(stl.encode_rhs(b, STRASSEN)) or x)(a)
    assert near(stl.amm(a, copy.deepcopy(held[0])), a @ b, torch.float32)  # of use afterwards
    for over in (
        lambda: torch.func.vmap(lambda y: stl.encode_rhs(y, STRASSEN).stored.data)(b[None]),
        lambda: torch.func.jvp(lambda y: stl.encode_rhs(y, STRASSEN).stored.data, (b,), (b,)),
    ):
        with pytest.raises(UsageError, match="an encoded operand is a constant"):
            over()
    with forward_ad.dual_level(), pytest.raises(UsageError, match="an encoded operand is a constant"):
        stl.encode_rhs(forward_ad.make_dual(b, b), STRASSEN)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_forward_mode_derivatives(encoder: Any) -> None:
    a, b, along = matrix(70, 50), matrix(50, 60, seed=1), matrix(70, 50, seed=2)
    with forward_ad.dual_level():
        for _ in range(2):  # the second call of a kind may take a shorter way
            value, tangent = forward_ad.unpack_dual(stl.amm(forward_ad.make_dual(a, along), b, encoder))
            assert near(value, a @ b, torch.float32)
            assert tangent is not None
            assert near(tangent, along @ b, torch.float32)


def test_a_plain_product_by_another_library_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_ways", {})
    a, b, along = matrix(20, 30), matrix(30, 20, seed=1), matrix(20, 30, seed=2)
    stl.amm(a, b)  # is remembered
    assert recall._ways
    for key in recall._ways:
        recall._ways[key] = "openblas"
    calls: list[str] = []
    real: Callable[..., torch.Tensor] = dense.matmul
    monkeypatch.setattr(dense, "matmul", lambda x, y, way: calls.append(way) or real(x, y, "torch"))
    stl.amm(a, b)
    assert calls == ["openblas"]
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(stl.amm(forward_ad.make_dual(a, along), b))[1]
        assert tangent is not None
        assert torch.equal(tangent, along @ b)
    assert calls == ["openblas"]


@pytest.mark.parametrize("frozen", [False, True])
def test_large_layers(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "LARGE", 1)
    layer, x, along = stl.nn.STLLinear(12, 10, encoder=STRASSEN), matrix(9, 12), matrix(9, 12, seed=1)
    assert layer.weight is not None
    wanted = along @ layer.weight.detach().T
    if frozen:
        layer.freeze()
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, along)))[1]
        assert tangent is not None
        assert near(tangent, wanted, torch.float32)
    assert near(torch.func.jvp(layer, (x,), (along,))[1].detach(), wanted, torch.float32)


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3"])
def test_rounding_is_the_same_and_has_no_derivative(dtype: str) -> None:
    plan = Plan(STRASSEN, dtype, out="fp32")
    a, b, along = matrix(8, 8), matrix(8, 8, seed=1), matrix(8, 8, seed=2)
    value, tangent = torch.func.jvp(lambda x: stl.amm(x, b, plan), (a,), (along,))
    assert torch.allclose(value, stl.amm(a, b, plan, backend="reference"), rtol=1e-5, atol=1e-5)
    slope = stl.amm(a, b, plan, backend="reference")
    assert relative_error(slope, a, b) > 1e-4  # it is rounded
    assert relative_error(tangent, along, b) < (0.01 if dtype == "bf16" else 0.1)  # as if x was not


def test_what_is_made_under_a_mode_does_not_stay() -> None:
    scheme = stl.Scheme(STRASSEN.shape, "ZT", *STRASSEN.factors)
    plan = Plan(scheme, "fp32")
    a, b = matrix(12, 12), matrix(12, 12, seed=1)
    with FakeTensorMode() as mode:
        for gradient in (False, True):
            x, y = mode.from_tensor(a).requires_grad_(gradient), mode.from_tensor(b)
            for encoder in (plan, "catalog:best"):
                found = stl.amm(x, y, encoder)
                assert isinstance(found, FakeTensor)
                assert found.shape == (12, 12)
    assert near(stl.amm(a, b, plan), a @ b, torch.float32)
    torch.func.grad(lambda x: stl.amm(x, b, plan).sum())(a)
    torch.func.jvp(lambda x: stl.amm(x, b, plan), (a,), (a,))
    held = copy.deepcopy(stl.encode_rhs(b, plan))
    assert near(stl.amm(a, held), a @ b, torch.float32)
    with FakeTensorMode() as mode:  # what was made before is of no use in it
        assert isinstance(stl.amm(mode.from_tensor(a), mode.from_tensor(b), plan), FakeTensor)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_another_default_device(encoder: Any) -> None:
    a, b = matrix(40, 30), matrix(30, 50, seed=1)
    with torch.device("meta"):
        for options in ({}, {"randomize": 1}, {"check": True, "rtol": 1e-3}):
            if "check" in options and not isinstance(encoder, str):
                continue
            assert relative_error(stl.amm(a, b, encoder, **options), a, b) < 1e-5
            assert relative_error(stl.amm(a.numpy(), b.numpy(), encoder, **options), a.numpy(), b.numpy()) < 1e-5
        for way in dense.ways(torch.float32):
            assert near(dense.matmul(a, b, way), a @ b, torch.float32)
        assert stl.estimate_error(a @ b, a, b).estimate < 1e-5
        turned = torch.as_strided(a, (13, 9), (2, 3))  # lies as no BLAS takes it
        assert near(dense.matmul(turned, b[:9], "openblas"), turned @ b[:9], torch.float32)


def test_numpy_scalars_are_operands_of_estimates() -> None:
    a, b = np.arange(1.0, 5.0), np.ones(4)
    assert stl.amm(a, b, rtol=0.1, check=True) == 10.0
    assert stl.estimate_error(a @ b, a, b).estimate == 0.0
    assert stl.estimate_error(np.float64(20.0), a, b).estimate == pytest.approx(1.0)
