"""The benchmark of the GPU kernels: its check of correctness, run on small operands; and its one line without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from stl_search.kernels import gpu
from stl_search.kernels.plan import Plan
from stl_search.testing import STRASSEN

SPEC = importlib.util.spec_from_file_location("device", Path(__file__).parents[1] / "benchmarks" / "device.py")
assert SPEC is not None
assert SPEC.loader is not None
device = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(device)
WHERE = "cuda" if torch.cuda.is_available() else "cpu"


def test_a_wrong_kernel_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(STRASSEN, "fp32")
    assert device.check(plan, WHERE, (9, 7, 11)) < 1
    real = gpu.product

    def wrong(*args: object, **keywords: object) -> torch.Tensor:
        return real(*args, **keywords) * 1.001

    monkeypatch.setattr(gpu, "product", wrong)
    with pytest.raises(SystemExit, match="product by triton is wrong"):
        device.check(plan, WHERE, (9, 7, 11))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main([]) == 2
    assert capsys.readouterr().err == "nothing measured: this needs a CUDA GPU and triton\n"
