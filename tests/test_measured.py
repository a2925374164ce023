"""Timings of a scheme against the plain product: what is timed, what is kept, what counts as decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stl_search.kernels import dense, gpu_multiply, multiply
from stl_search.kernels.plan import Plan
from stl_search.runtime import calibrate, measured
from stl_search.testing import STRASSEN

PLAN = Plan(STRASSEN)
SIDE = st.integers(1, 20000)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibrate, "cache_dir", lambda: tmp_path / "rates")
    measured._known.clear()
    return tmp_path / "rates"


@given(SIDE, SIDE, SIDE, st.floats(1e-3, 100), st.tuples(*[st.integers(1, 5)] * 3))
def test_a_size_class_is_near_and_aligned_alike(
    m: int, k: int, n: int, seconds: float, parts: tuple[int, int, int]
) -> None:
    shrink = min(1.0, (measured.LONGEST / seconds) ** (1 / 3))
    for size, timed, part in zip((m, k, n), measured.size_class((m, k, n), seconds, parts), parts, strict=True):
        unit = 16 * part
        assert timed % unit == size % unit or timed == 1 or timed < unit
        assert abs(timed - size * shrink) <= 0.1 * size * shrink + 2 * unit


def test_both_are_run_in_turn_on_the_sizes_of_the_class(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    runs: list[Any] = []
    multiplied, plain = multiply.multiply, dense.matmul

    def scheme(a: torch.Tensor, b: torch.Tensor, plan: Plan, *rest: Any, **options: Any) -> torch.Tensor:
        runs.append(("scheme", tuple(a.shape), tuple(b.shape), options["levels"]))
        return multiplied(a, b, plan, *rest, **options)

    def product(a: torch.Tensor, b: torch.Tensor, way: str) -> torch.Tensor:
        runs.append((way, tuple(a.shape), tuple(b.shape), 1))
        return plain(a, b, way)

    monkeypatch.setattr(multiply, "multiply", scheme)
    monkeypatch.setattr(dense, "matmul", product)
    times = iter(range(10**6))
    monkeypatch.setattr(measured, "_seconds", lambda run, *_: run() or [1.0, 2.0][next(times) % 2])
    with torch.inference_mode():
        found = measured.slowdown(PLAN, 1, (66, 64, 33), 0.01, "torch")
    assert found == 0.5
    shapes = ((66, 64), (64, 33))
    assert runs == [("scheme", *shapes, 1), ("torch", *shapes, 1)] * (measured.PAIRS + 1)
    runs.clear()
    assert measured.slowdown(PLAN, 1, (66, 64, 33), 0.01, "torch") == 0.5
    measured._known.clear()  # as in another process: the file answers
    assert measured.slowdown(PLAN, 1, (66, 64, 33), 0.01, "torch") == 0.5
    assert not runs
    (path,) = folder.iterdir()
    assert json.loads(path.read_text())["slowdown"] == 0.5
    measured.slowdown(PLAN, 2, (66, 64, 33), 0.01, "torch")  # another question
    assert len(list(folder.iterdir())) == 2


def test_what_is_undecided_is_not_kept(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    times = iter(range(10**6))
    monkeypatch.setattr(measured, "_seconds", lambda *_: [1.0, 2.0, 2.0, 1.0][next(times) % 4])
    assert measured.slowdown(PLAN, 1, (64, 64, 64), 0.01, "torch") == 1.0
    assert not folder.exists() or not list(folder.iterdir())


def test_a_real_timing_gives_a_ratio() -> None:
    assert measured.slowdown(PLAN, 1, (64, 64, 64), 0.01, "torch") > 0


def test_what_may_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long real products in memory, and on a GPU those that its kernels take, shorter ones too."""
    assert measured.timeable(PLAN, 1.0)
    assert not measured.timeable(PLAN, 0.01)
    assert not measured.timeable(Plan(STRASSEN, complex=True), 1.0)
    assert not measured.timeable(Plan(STRASSEN, device="meta"), 1.0)
    monkeypatch.setattr(gpu_multiply, "there", lambda device: True)
    assert measured.timeable(Plan(STRASSEN, device="cuda:0"), 0.01)
    assert not measured.timeable(Plan(STRASSEN, device="cuda:0"), 1e-5)
    assert not measured.timeable(Plan(STRASSEN, "fp64", device="cuda:0"), 0.01)
    monkeypatch.setattr(gpu_multiply, "there", lambda device: False)
    assert not measured.timeable(Plan(STRASSEN, device="cuda:0"), 0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_real_timing_on_a_gpu() -> None:
    assert measured.slowdown(Plan(STRASSEN, device="cuda"), 1, (512, 512, 512), 0.001, "torch") > 0
