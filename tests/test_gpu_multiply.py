"""Whole products by the GPU's kernels (interpreted where there is no GPU), against ``reference.multiply``; through
``amm``, the operators and encoded operands, with fp8 kept as it is stored."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stl_search.kernels import reference
from stl_search.kernels.plan import LAYOUTS, Plan, torch_dtype
from stl_search.runtime.amm import EncodedOperand, amm, encode_lhs, encode_rhs
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN
from stl_search.transform import classical, kron

pytest.importorskip("triton")

from stl_search.kernels import gpu, gpu_multiply, multiply, ops, tuning

pytestmark = pytest.mark.usefixtures("poisoned", "as_on_a_gpu")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STORED = ["fp8_e4m3", "bf16", "fp16", "fp32"]
CASES = list(itertools.product(STORED, ["unfused", "registers", "arrival"]))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, operands in memory go the way of those on a GPU, to the same kernels, interpreted."""
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu_multiply, "there", lambda device: True)
        monkeypatch.setattr(multiply, "applies", lambda *_: False)
        monkeypatch.setattr(ops, "_numba", lambda *_: False)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operands of every ``gpu.product_decode``."""
    seen: list[Any] = []
    real = gpu.product_decode

    def spy(a: torch.Tensor, b: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append((a, b, options))
        return real(a, b, *rest, **options)

    monkeypatch.setattr(gpu, "product_decode", spy)
    return seen


def plan_for(scheme: Scheme, stored: str, **more: Any) -> Plan:
    return Plan(scheme, stored, device=DEVICE, **more)


def tuned(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    """As if that form had been measured to be the fastest on this GPU."""
    real = tuning.choose

    def choose(key: tuning.Key, uses: tuple[str, ...], *rest: Any) -> dict[str, Any]:
        if key.kernel != "product_decode":
            return real(key, uses, *rest)
        assert use in uses
        if DEVICE == "cuda":
            shipped = tuning.shipped(tuning.architecture(torch.cuda.get_device_capability()), key)
            return next(config for config in shipped if config["use"] == use)
        return {"use": use} | tuning.INTERPRETER | tuning.INTERPRETER_MORE.get(use, {})

    monkeypatch.setattr(tuning, "choose", choose)


def signs(seed: int, *shape: int) -> torch.Tensor:
    """-1, 0 and 1. Slices by Strassen's encoders have peaks of 1 or 2, which fp8 scales to 448: all is exact."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32))


def operands(stored: str, left: tuple[int, ...], right: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    kind = torch.bfloat16 if stored == "fp8_e4m3" else torch_dtype(stored)
    return signs(1, *left).to(DEVICE, kind), signs(2, *right).to(DEVICE, kind)


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.double() @ b.double()


@pytest.mark.parametrize(("stored", "use", "layout"), [(*case, LAYOUTS[i % 2]) for i, case in enumerate(CASES)])
def test_amm(stored: str, layout: str, use: str, products: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged, with a batch; whole numbers below 2^8, which every precision holds."""
    tuned(monkeypatch, use)
    plan = plan_for(STRASSEN, stored, layout=layout)
    a, b = operands(stored, (2, 9, 21), (21, 13))
    c = amm(a, b, plan)
    assert c.dtype == torch_dtype(plan.out)
    torch.testing.assert_close(c.double(), exact(a, b), rtol=0, atol=0)
    torch.testing.assert_close(c, amm(a, b, plan, backend="reference"), rtol=0, atol=0)
    left, right, options = products[0]
    assert len(products) == 1
    assert left.dtype == right.dtype == torch_dtype(stored)
    assert (options["scales"] is not None) == (stored == "fp8_e4m3")


@pytest.mark.parametrize("stored", STORED)
def test_rounding_is_that_of_the_reference(stored: str) -> None:
    """Gaussian operands and a scheme over R: the same numbers are rounded the same way, sums run in another order."""
    scheme = kron(STRASSEN, classical((1, 2, 1)))
    plan = plan_for(scheme, stored, out="fp32")
    generator = torch.Generator().manual_seed(0)
    kind = torch.bfloat16 if stored == "fp8_e4m3" else torch_dtype(stored)
    a, b = (torch.randn(s, generator=generator).to(DEVICE, kind) for s in ((11, 30), (30, 7)))
    expected = reference.multiply(a, b, plan)
    if stored in ("fp8_e4m3", "bf16") and DEVICE == "cpu":
        # Triton's interpreter (3.9) truncates to bf16, and to fp8 it rounds 124 to 64 where 128 is the nearest
        sides = [reference.store(reference.encode_operand(x, plan, s), stored) for x, s in ((a, "lhs"), (b, "rhs"))]
        found = gpu_multiply.multiply(*sides, plan, 11, 7)
    else:
        found = amm(a, b, plan)
    # of an entry that lies between two stored numbers to the last bit of fp32, either may be taken
    unit = {"fp8_e4m3": 2.0**-4, "bf16": 2.0**-9, "fp16": 2.0**-12, "fp32": 2.0**-24}[stored]
    assert float((found - expected).abs().max()) <= 2 * unit * float(expected.abs().max())
    assert float((found - expected).norm() / expected.norm()) < 0.1 * unit + 30 * 2.0**-24


@pytest.mark.parametrize(("stored", "layout"), [*zip(STORED, LAYOUTS * 2, strict=True), ("fp8_e4m3", "tile")])
def test_encoded_operands(stored: str, layout: str, products: list[Any], tmp_path: Path) -> None:
    """Made in advance, read from a file, on either side; fp8 slices of B lie with their rows' index innermost."""
    plan = plan_for(STRASSEN, stored, layout=layout)
    a, b = operands(stored, (9, 21), (21, 13))
    left, right = encode_lhs(a, plan), encode_rhs(b, plan)
    right.save(tmp_path / "b")
    read = EncodedOperand.load(tmp_path / "b", DEVICE)
    for x, y in ((left, b), (a, right), (left, right), (a, read)):
        torch.testing.assert_close(amm(x, y).double(), exact(a, b), rtol=0, atol=0)
    if stored == "fp8_e4m3":
        assert right.nbytes == 7 * (11 * 7 + 4)  # a byte an entry, a scale a slice
        assert all(b_hat.stride(-2) == 1 for _, b_hat, _ in products[1:3])
        back = gpu_multiply.for_products(reference.Stored(right.stored.data.contiguous(), right.stored.scale), "rhs")
        assert back.data.stride(-2) == 1
        assert torch.equal(back.data.float(), right.stored.data.float())


def test_what_the_kernels_do_not_take_goes_another_way(products: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = operands("fp32", (5, 8), (8, 3))
    for plan in (plan_for(STRASSEN, "fp64"), plan_for(classical((9, 8, 1)), "fp32")):
        torch.testing.assert_close(amm(a, b, plan).double(), exact(a, b), rtol=0, atol=0)
    x = a.clone().requires_grad_()
    c = amm(x, b, plan_for(STRASSEN, "fp8_e4m3"))  # with a gradient
    c.sum().backward()
    torch.testing.assert_close(x.grad.double(), exact(torch.ones_like(c.detach()), b.mT))
    assert not gpu_multiply.applies(Plan(STRASSEN, "fp32", complex=True), a.device)
    monkeypatch.setattr(tuning, "multiplies_fp8", lambda device: False)
    torch.testing.assert_close(amm(a, b, plan_for(STRASSEN, "fp8_e4m3")).double(), exact(a, b), rtol=0, atol=0)
    assert products == []


@pytest.mark.parametrize(("stored", "use", "layout"), [(*case, LAYOUTS[1 - i % 2]) for i, case in enumerate(CASES)])
def test_the_operator(stored: str, layout: str, use: str, products: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors on the host, so that decoding can be fused."""
    tuned(monkeypatch, use)
    plan = plan_for(STRASSEN, stored, layout=layout)
    u, v, w = (plan.coefficients(side, "fp32", "cpu") for side in ("lhs", "rhs", "out"))
    a, b = operands(stored, (2, 1, 9, 21), (2, 21, 13))
    kinds = torch_dtype(stored), torch.float32, torch_dtype(plan.out)
    c = ops.amm(a, b, u, v, w, layout, *kinds)
    assert c.is_contiguous()
    torch.testing.assert_close(c.double(), exact(a, b), rtol=0, atol=0)
    assert products[0][0].dtype == torch_dtype(stored)


@pytest.mark.parametrize("stored", STORED)
def test_gradients_of_the_operator(stored: str) -> None:
    """Of operands and factors, as if nothing was rounded; on whole numbers nothing is."""
    plan = Plan(STRASSEN, stored)
    factors = [plan.coefficients(side, "fp32", "cpu").to(DEVICE) for side in ("lhs", "rhs", "out")]
    given = [*(x.float() for x in operands(stored, (5, 9), (9, 4))), *factors]
    grads = []
    for kind in (torch_dtype(stored), torch.float64):
        inputs = [x.to(torch.float64 if kind == torch.float64 else x.dtype).requires_grad_() for x in given]
        wide = torch.float64 if kind == torch.float64 else torch.float32
        c = ops.amm(*inputs, "block", kind, wide, wide)
        grads.append(torch.autograd.grad(c, inputs, signs(3, 5, 4).to(c)))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=0)
