"""The Triton encoder against its oracle, entry for entry: integer data, whose sums are exact in every precision.

Runs in Triton's interpreter where there is no GPU, on the GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stl_search.errors import UsageError
from stl_search.kernels import reference

pytest.importorskip("triton")

from stl_search.kernels import gpu

pytestmark = pytest.mark.usefixtures("poisoned")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (x, grid of parts, rank): ragged both ways, smaller than the grid, batches, several tiles, one column, rank above 16.
CASES = [
    ((), (37, 53), (2, 2), 7),
    ((3,), (17, 21), (2, 3), 5),
    ((2, 2), (5, 9), (3, 4), 4),
    ((), (2, 3), (4, 4), 3),
    ((), (1, 70), (1, 2), 2),
    ((), (66, 1), (4, 1), 18),
]


def integers(seed: int, *shape: int, most: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32))


def small(grid: tuple[int, int], rank: int) -> torch.Tensor:
    """Coefficients -1, 0, 1, and one of another size in each slice."""
    u = integers(1, rank, *grid, most=1)
    u[:, 0, 0] = 0.5
    return u


@pytest.mark.parametrize("method", ["unrolled", "dot"])
@pytest.mark.parametrize("layout", ["block", "tile"])
@pytest.mark.parametrize(("batch", "size", "grid", "rank"), CASES)
def test_every_entry(
    batch: tuple[int, ...], size: tuple[int, int], grid: tuple[int, int], rank: int, layout: str, method: str
) -> None:
    x, u = integers(0, *batch, *size), small(grid, rank)
    expected = reference.encode_naive(x, u, layout)
    found = gpu.encode(x.to(DEVICE), u, layout, "fp32", method=method)
    assert found.scale is None
    assert found.data.is_contiguous()
    torch.testing.assert_close(found.data.cpu(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["unrolled", "dot"])
@pytest.mark.parametrize("out", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("given", ["bf16", "fp16", "fp32"])
def test_every_dtype(given: str, out: str, method: str) -> None:
    x, u = integers(2, 19, 23).to(reference.torch_dtype(given)), small((2, 2), 5)
    found = gpu.encode(x.to(DEVICE), u, "block", out, method=method).data.cpu()
    assert found.dtype == reference.torch_dtype(out)
    torch.testing.assert_close(found.float(), reference.encode_naive(x.float(), u), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["unrolled", "dot"])
@pytest.mark.parametrize("layout", ["block", "tile"])
def test_any_strides(layout: str, method: str) -> None:
    base, u = integers(3, 41, 2, 40), small((3, 2), 4)
    for x in (base[:, 0].T, base[::2, 1, 1::3], base.permute(1, 0, 2), base[:, :1].expand(41, 2, 40).transpose(0, 1)):
        found = gpu.encode(x.to(DEVICE), u.numpy(), layout, torch.float32, method=method).data.cpu()
        torch.testing.assert_close(found, reference.encode_naive(x, u, layout), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["unrolled", "dot"])
def test_fp8_has_a_scale_for_each_slice(method: str) -> None:
    """One entry of each slice is 7 at most and all are integers: with peaks of 7 scaled to 448 = 7 * 64, exact."""
    x = integers(4, 2, 21, 18, most=7)
    x[:, 0, 0] = 7
    u = torch.eye(4).reshape(4, 2, 2)
    x = x.to(DEVICE)
    found = gpu.encode(x, u, "block", "fp8_e4m3", method=method)
    expected = reference.store(reference.encode_naive(x.cpu(), u), "fp8_e4m3")
    assert found.data.dtype == torch.float8_e4m3fn
    assert found.scale is not None
    assert expected.scale is not None
    torch.testing.assert_close(found.scale.cpu(), expected.scale, rtol=0, atol=0)
    torch.testing.assert_close(found.data.cpu().float(), expected.data.float(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("method", ["unrolled", "dot"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_scales(bad: float, method: str) -> None:
    x, u = torch.ones(2, 40, 8), torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    x[1, 39, 7] = bad
    found = gpu.encode(x.to(DEVICE), u, "block", "fp8_e4m3", method=method)
    expected = reference.store(reference.encode_naive(x, u), "fp8_e4m3")
    assert found.scale is not None
    torch.testing.assert_close(found.scale.cpu(), expected.scale, rtol=0, atol=0, equal_nan=True)
    there, wanted = (reference.restore(s, "fp32").isfinite() for s in (found, expected))
    torch.testing.assert_close(there.cpu(), wanted)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 3, 4)])
def test_nothing_to_encode(shape: tuple[int, ...]) -> None:
    u = small((2, 2), 3)
    x = torch.zeros(shape, device=DEVICE)
    assert gpu.encode(x, u, "block", "fp32").data.shape == reference.encode_naive(torch.zeros(shape), u).shape


@pytest.mark.parametrize("method", ["unrolled", "dot"])
def test_coefficients_of_any_kind(method: str) -> None:
    x, u = integers(0, 5, 4), small((2, 2), 3)
    for given in (u.numpy(), u.numpy().astype(np.float64), u.bfloat16(), u.double().requires_grad_()):
        found = gpu.encode(x.to(DEVICE), given, "block", "fp32", method=method).data.cpu()
        torch.testing.assert_close(found, reference.encode_naive(x, u), rtol=0, atol=0)


def test_refusals() -> None:
    x, u = torch.zeros(4, 4, device=DEVICE), small((2, 2), 3)
    with pytest.raises(UsageError, match="float64"):
        gpu.encode(x.double(), u)
    with pytest.raises(UsageError, match="known: block, tile"):
        gpu.encode(x, u, "rows")
    with pytest.raises(UsageError, match="coefficients are complex"):
        gpu.encode(x, u.to(torch.complex64))
    with pytest.raises(UsageError, match="auto, unrolled, dot"):
        gpu.encode(x, u, method="fast")
    with pytest.raises(UsageError, match="at most 64 parts"):
        gpu.encode(x, torch.zeros(1, 13, 5))
