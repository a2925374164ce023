"""The Triton products, alone and with decoding fused, against their oracles, entry for entry on integer data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stl_search.errors import UsageError
from stl_search.kernels import reference
from stl_search.testing import STRASSEN

pytest.importorskip("triton")

from stl_search.kernels import gpu, tuning

pytestmark = pytest.mark.usefixtures("poisoned")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = pytest.mark.parametrize("method", ["unfused", "registers", "arrival"])
# (r, batch of a, batch of b, M', K', N'): ragged, several tiles and steps, batches on both sides, one, none inside.
CASES = [
    (3, (), (), 33, 45, 21),
    (2, (3,), (), 7, 16, 18),
    (2, (1, 2), (1, 2), 5, 9, 3),
    (2, (2, 1), (3,), 4, 5, 6),
    (2, (), (4,), 17, 3, 2),
    (1, (), (), 1, 1, 1),
    (2, (), (), 3, 0, 4),
]


def integers(seed: int, *shape: int, most: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32))


def pair(case: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    r, batch_a, batch_b, rows, inner, cols = case
    return integers(0, r, *batch_a, rows, inner), integers(1, r, *batch_b, inner, cols)


def scaled(x: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x in fp8_e4m3 times powers of two, one a slice, and these scales: all exact."""
    scale = torch.exp2(integers(seed, *x.shape[:-2], 1, 1))
    return (x * scale).to(torch.float8_e4m3fn).to(DEVICE), scale.to(DEVICE)


@pytest.mark.parametrize("method", ["triton", "bmm"])
@pytest.mark.parametrize("case", CASES)
def test_every_entry(case: tuple[Any, ...], method: str) -> None:
    a, b = pair(case)
    found = gpu.product(a.to(DEVICE), b.to(DEVICE), method=method)
    assert found.is_contiguous()
    torch.testing.assert_close(found.cpu(), reference.product(a, b), rtol=0, atol=0)


@pytest.mark.parametrize("out", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("given", ["bf16", "fp16", "fp32"])
def test_every_dtype(given: str, out: str) -> None:
    """Integers below 2 over 45 terms stay below 2^8: exact in bf16 too."""
    a, b = (x.clamp(-1, 1) for x in pair(CASES[0]))
    kind = reference.torch_dtype(given)
    found = gpu.product(a.to(DEVICE, kind), b.to(DEVICE, kind), out, method="triton").cpu()
    assert found.dtype == reference.torch_dtype(out)
    torch.testing.assert_close(found.float(), reference.product(a, b), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["triton", "bmm"])
def test_any_strides(method: str) -> None:
    base = integers(2, 19, 4, 23, 2)
    for a in (
        base.permute(3, 1, 0, 2),
        base.permute(1, 3, 2, 0),
        base[::3, :, 1::2].transpose(0, 1)[:, :, :, 0][:, None],
    ):
        b = integers(3, 8, 2 * a.shape[0], a.shape[-1]).transpose(0, 1)[::2].mT[:, None]
        found = gpu.product(a.to(DEVICE), b.to(DEVICE), method=method).cpu()
        torch.testing.assert_close(found, reference.product(a, b), rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES[:5])
def test_fp8_is_divided_by_both_scales(case: tuple[Any, ...]) -> None:
    a, b = pair(case)
    (a_hat, a_scale), (b_hat, b_scale) = scaled(a, 5), scaled(b, 6)
    found = gpu.product(a_hat, b_hat, "fp32", (a_scale, b_scale))
    torch.testing.assert_close(found.cpu(), reference.product(a, b), rtol=0, atol=0)


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_used_when_asked_for_and_only_then(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter computes both alike; what a GPU is told is seen in what is launched."""
    seen = []
    real = tuning.launch

    def launch(*args: Any, **keywords: Any) -> None:
        seen.append(keywords.get("PRECISION"))
        real(*args, **keywords)

    monkeypatch.setattr(tuning, "launch", launch)
    a, b = (x.to(DEVICE) for x in pair(CASES[0]))
    gpu.product(a, b, method="triton", tf32=tf32)
    gpu.product_decode(a, b, integers(4, 3, 2, 2).numpy(), 40, 30, out_dtype="fp32", method="registers", tf32=tf32)
    assert seen == ["tf32" if tf32 else "ieee"] * 2


def decoded(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor, rows: int, cols: int, layout: str) -> torch.Tensor:
    return reference.decode_naive(reference.product(a, b), w, rows, cols, layout)


@FUSED
@pytest.mark.parametrize("layout", ["block", "tile"])
@pytest.mark.parametrize("case", [(7, (), (), 17, 20, 5), (7, (2,), (), 5, 16, 3), (7, (2,), (2,), 3, 2, 18)])
def test_fused_every_entry(case: tuple[Any, ...], layout: str, method: str) -> None:
    a, b = pair(case)
    w = torch.from_numpy(STRASSEN.as_float()[2]).float()
    rows, cols = 2 * case[3] - 1, 2 * case[5]
    found = gpu.product_decode(a.to(DEVICE), b.to(DEVICE), w, rows, cols, layout, "fp32", method=method).cpu()
    torch.testing.assert_close(found, decoded(a, b, w, rows, cols, layout), rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["block", "tile"])
def test_sixteen_parts_by_arrival(layout: str) -> None:
    """A rank above BESIDE, more tiles than a chunk has, a last chunk that is not full, general coefficients."""
    a, b = pair((5, (), (), 3, 5, 70))
    w = integers(4, 5, 4, 4) / 2
    found = gpu.product_decode(a.to(DEVICE), b.to(DEVICE), w, 11, 277, layout, "fp32", method="arrival").cpu()
    torch.testing.assert_close(found, decoded(a, b, w, 11, 277, layout), rtol=0, atol=0)


@FUSED
@pytest.mark.parametrize("given", ["bf16", "fp16", "fp32", "fp8_e4m3"])
def test_fused_dtypes_bias_and_activation(given: str, method: str) -> None:
    a, b = pair((7, (2,), (2,), 6, 5, 7))
    w = torch.from_numpy(STRASSEN.as_float()[2]).float()
    bias = integers(7, 13)
    if given == "fp8_e4m3":
        (a_hat, a_scale), (b_hat, b_scale) = scaled(a, 5), scaled(b, 6)
        scales = (a_scale, b_scale)
    else:
        (a_hat, b_hat), scales = (x.to(DEVICE, reference.torch_dtype(given)) for x in (a, b)), None
    found = gpu.product_decode(
        a_hat, b_hat, w, 12, 13, "block", "fp32",
        scales=scales, product_dtype="fp16", bias=bias.to(DEVICE), activation="relu", method=method,
    )  # fmt: skip
    expected = torch.relu(decoded(a, b, w, 12, 13, "block") + bias)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)


def test_refusals() -> None:
    a, b = (x.to(DEVICE) for x in pair(CASES[0]))
    w = integers(0, 3, 3, 3)
    with pytest.raises(UsageError, match="do not multiply"):
        gpu.product(a, b[:, 1:])
    with pytest.raises(UsageError, match="must agree"):
        gpu.product(a, b.half())
    with pytest.raises(UsageError, match="carry scales"):
        gpu.product(a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn))
    with pytest.raises(UsageError, match="auto, unfused, arrival"):
        gpu.product_decode(a, b, w, 99, 63, method="registers")
    with pytest.raises(UsageError, match="rank 2"):
        gpu.product_decode(a, b, w[:2], 99, 63)
