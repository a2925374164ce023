"""GPU calls that were made before: done again by what was compiled for the same facts, and by nothing else.

Where there is no GPU, Triton's interpreter stands for a compiled kernel: a stand-in takes, as Triton's own does, what
the kernel takes at run time and then its constants, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from stl_search.kernels import reference
from stl_search.kernels.plan import Plan
from stl_search.testing import STRASSEN

pytest.importorskip("triton")

from stl_search.kernels import gpu, triton_decode, triton_encode, tuning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
U, V, W = Plan(STRASSEN).factors


class Made:
    """A kernel compiled for one set of constants: what ``kernel[grid](...)`` of Triton returns."""

    asm: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, kernel: Any, count: int, runs: list[str]) -> None:
        self.kernel, self.count, self.runs = kernel, count, runs

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def run(*args: Any) -> None:
            names = self.kernel.arg_names
            assert len(args) == len(names)
            self.runs.append(names[0])
            self.kernel[grid[:1]](
                *args[: self.count], **dict(zip(names[self.count :], args[self.count :], strict=True))
            )

        return run


class Compiling:
    """An interpreted kernel that says what it was compiled to."""

    def __init__(self, kernel: Any, runs: list[str]) -> None:
        self.kernel, self.arg_names, self.runs = kernel, kernel.arg_names, runs

    def __getitem__(self, grid: tuple[int]) -> Any:
        def run(*args: Any, **keywords: Any) -> Made:
            self.kernel[grid](*args, **keywords)
            return Made(self.kernel, len(args), self.runs)

        return run


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The launches that were made again without Triton's own dispatch (on a GPU, all that ``Launch.repeat`` made)."""
    found: list[str] = []
    gpu._again.clear()
    if DEVICE == "cpu":
        for module in (triton_encode, triton_decode):
            for name in ("encode_unrolled", "encode_dot", "decode_unrolled", "decode_dot"):
                if module.__name__.endswith(name.partition("_")[0]):
                    monkeypatch.setattr(module, name, Compiling(getattr(module, name), found))
    else:
        real = tuning.Launch.repeat

        def repeat(self: tuning.Launch, *tensors: torch.Tensor) -> Any:
            again = real(self, *tensors)
            return lambda *others: (found.append("x"), again(*others))[1]

        monkeypatch.setattr(tuning.Launch, "repeat", repeat)
    yield found
    gpu._again.clear()


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def encoded(x: torch.Tensor, u: np.ndarray) -> torch.Tensor:
    return reference.encode(x.float(), torch.from_numpy(u.copy()).float().to(DEVICE), "block")


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["unrolled", "dot"])
@pytest.mark.usefixtures("poisoned")
def test_encoding(method: str, runs: list[str]) -> None:
    """Aligned, not aligned, of other sizes, strides, dtypes and coefficients, in turn: each by what was made for it."""
    other = -3 * U
    other.flags.writeable = False
    for turn in range(3):
        wide = gaussian(40, 67, seed=turn)
        operands = [wide[:32, :64], wide[:32, 1:65], wide[1:33, :32], wide.half()[:32, :64], wide.T[:32, :32]]
        for x in operands:
            for u in (U, other):
                check(gpu.encode(x, u, "block", "fp32", method=method).data, encoded(x, u))
        assert len(runs) == 2 * len(operands) * turn
    assert len(gpu._again) == 2 * len(operands)
    gpu.encode(operands[0], U.copy(), "block", "fp32", method=method)  # may be written to before the next call
    assert len(gpu._again) == 2 * len(operands)


@pytest.mark.usefixtures("poisoned")
def test_decoding_and_products(runs: list[str]) -> None:
    w = torch.from_numpy(W.copy()).float().to(DEVICE)
    for turn in range(3):
        p = gaussian(7, 9, 11, seed=turn)
        for activation in (None, "relu"):
            expected = reference.decode(p, w, 17, 21, "tile")
            expected = expected.relu() if activation else expected
            check(gpu.decode(p, W, 17, 21, "tile", "fp32", activation=activation), expected)
            check(gpu.decode(p, W, 17, 20, "tile", "fp32", activation=activation), expected[:, :20])
    assert len(runs) == 8
    runs.clear()
    for turn in range(3):
        a, b = gaussian(7, 9, 6, seed=turn), gaussian(7, 6, 11, seed=9 + turn)
        found = gpu.product_decode(a, b, W, 17, 21, "block", "fp32", method="unfused")
        check(found, reference.decode(reference.product(a, b), w, 17, 21, "block"))
        bias = gaussian(21, seed=turn)
        found = gpu.product_decode(a, b, W, 17, 21, "block", "fp32", method="unfused", bias=bias)
        check(found, reference.decode(reference.product(a, b), w, 17, 21, "block") + bias)
    assert len(runs) == 2  # a bias is another each time
    assert {key[0] for key in gpu._again} == {"product", "decode", "product_decode"}


def test_new_measurements_end_it(runs: list[str]) -> None:
    x = gaussian(8, 8)
    gpu.encode(x, U)
    with tuning.measuring():
        gpu.encode(x, U)
    assert not runs
    gpu.encode(x, U)
    assert len(runs) == 1
    tuning._changes[0] += 1
    gpu.encode(x, U)
    assert len(runs) == 1


def test_it_is_kept_within_bounds(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MOST_HOSTS", 3)
    for n in range(2, 9):
        gpu.encode(gaussian(n, n), U, "block", "fp32")
        assert len(gpu._again) <= 3
    assert not runs
