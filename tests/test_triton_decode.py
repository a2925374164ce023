"""The Triton decoder against its oracle, entry for entry on integer data; bias and activations against torch's."""

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
METHODS = pytest.mark.parametrize("method", ["unrolled", "dot"])
LAYOUTS = pytest.mark.parametrize("layout", ["block", "tile"])
# (batch, size of the output, grid of parts, rank), as for the encoder
CASES = [
    ((), (37, 53), (2, 2), 7),
    ((3,), (17, 21), (2, 3), 5),
    ((2, 2), (5, 9), (3, 4), 4),
    ((), (2, 3), (4, 4), 3),
    ((), (1, 70), (1, 2), 0),
    ((), (66, 1), (4, 1), 18),
]


def integers(seed: int, *shape: int, most: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.float32))


def small(grid: tuple[int, int], rank: int) -> torch.Tensor:
    """Coefficients -1, 0, 1, and one of another size in each slice."""
    w = integers(1, rank, *grid, most=1)
    w[:, 0, 0] = 0.5
    return w


def products(batch: tuple[int, ...], size: tuple[int, int], grid: tuple[int, int], rank: int) -> torch.Tensor:
    return integers(0, rank, *batch, *(-(-s // g) for s, g in zip(size, grid, strict=True)))


@METHODS
@LAYOUTS
@pytest.mark.parametrize(("batch", "size", "grid", "rank"), CASES)
def test_every_entry(
    batch: tuple[int, ...], size: tuple[int, int], grid: tuple[int, int], rank: int, layout: str, method: str
) -> None:
    p, w = products(batch, size, grid, rank), small(grid, rank)
    found = gpu.decode(p.to(DEVICE), w, *size, layout, "fp32", method=method)
    assert found.is_contiguous()
    torch.testing.assert_close(found.cpu(), reference.decode_naive(p, w, *size, layout), rtol=0, atol=0)


@METHODS
@pytest.mark.parametrize("out", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("given", ["bf16", "fp16", "fp32"])
def test_every_dtype(given: str, out: str, method: str) -> None:
    p, w = products((), (19, 23), (2, 2), 5).to(reference.torch_dtype(given)), small((2, 2), 5)
    found = gpu.decode(p.to(DEVICE), w, 19, 23, "block", out, method=method).cpu()
    assert found.dtype == reference.torch_dtype(out)
    torch.testing.assert_close(found.float(), reference.decode_naive(p.float(), w, 19, 23), rtol=0, atol=0)


@METHODS
@LAYOUTS
def test_any_strides(layout: str, method: str) -> None:
    base, w = integers(3, 20, 4, 2, 20), small((3, 2), 4)
    views = (base[:, :, 0].transpose(0, 1).mT, base[::2, :, 1, 1::3].transpose(0, 1), base.permute(1, 2, 3, 0))
    for p in views:
        rows, cols = 3 * p.shape[-2] - 2, 2 * p.shape[-1] - 1
        found = gpu.decode(p.to(DEVICE), w.numpy(), rows, cols, layout, torch.float32, method=method).cpu()
        torch.testing.assert_close(found, reference.decode_naive(p, w, rows, cols, layout), rtol=0, atol=0)


@METHODS
@LAYOUTS
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_bias_and_activation_come_before_the_rounding(activation: str | None, layout: str, method: str) -> None:
    """On multiples of 1/4, so that the sums are exact; what is left is the error of exp and erf in fp32."""
    p, w = products((2,), (17, 21), (2, 3), 5) / 4, small((2, 3), 5)
    bias = integers(5, 21) / 4
    found = gpu.decode(
        p.to(DEVICE), w, 17, 21, layout, "fp32", bias=bias.to(DEVICE), activation=activation, method=method
    ).cpu()
    plain = reference.decode_naive(p, w, 17, 21, layout) + bias
    expected = plain if activation is None else getattr(torch.nn.functional, activation)(plain)
    # erf and exp to 8 units of the last place of numbers up to |plain|
    near = 0.0 if activation in (None, "relu") else 8 * 2.0**-24 * float(plain.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=near)


@METHODS
def test_nan_passes_every_activation(method: str) -> None:
    p = torch.full((1, 3, 3), float("nan"), device=DEVICE)
    for activation in gpu.ACTIVATIONS:
        found = gpu.decode(p, torch.ones(1, 1, 1), 3, 3, "block", "fp32", activation=activation, method=method)
        assert found.isnan().all()


def test_coefficients_of_their_own_for_each_batch() -> None:
    p, w = integers(0, 18, 3, 5, 6), integers(1, 3, 18, 2, 2)
    found = gpu.decode(p.to(DEVICE), w.to(DEVICE), 9, 11, "block", "fp32").cpu()
    expected = torch.stack([reference.decode_naive(p[:, i], w[i], 9, 11) for i in range(3)])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_refusals() -> None:
    p, w = torch.zeros(3, 4, 4, device=DEVICE), small((2, 2), 3)
    with pytest.raises(UsageError, match="rank 3"):
        gpu.decode(p[:2], w, 8, 8)
    with pytest.raises(UsageError, match=r"\(9, 8\) asked of products that decode to \(8, 8\)"):
        gpu.decode(p, w, 9, 8)
    with pytest.raises(UsageError, match="known: relu, gelu, silu"):
        gpu.decode(p, w, 8, 8, activation="tanh")
    with pytest.raises(UsageError, match="bias"):
        gpu.decode(p, w, 8, 8, bias=torch.zeros(7))
    with pytest.raises(UsageError, match="out_dtype"):
        gpu.decode(p, w, 8, 8, out_dtype="fp8_e4m3")
