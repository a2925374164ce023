"""Which configuration a kernel gets: shipped, measured, kept; with a GPU that is pretended where one is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from stl_search.errors import UsageError
from stl_search.kernels import gpu, tuning

KEY = tuning.Key("product", "bf16-fp32", "large")
CUDA = torch.device("cuda")  # a name only


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An H100 whose measurements would be kept in the file returned; times come from "num_warps" of a configuration."""
    path = tmp_path / "tuning" / "gpu.json"
    monkeypatch.delenv("STL_AUTOTUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(tuning, "cache_file", lambda name: path)
    kept = (tuning._measured, tuning._device_name, tuning._architecture)
    for function in kept:
        function.cache_clear()
    yield path
    for function in kept:
        function.cache_clear()


def test_the_default_is_the_first_that_applies(pretended: Path) -> None:
    options = tuning.shipped("sm_90", KEY)
    assert tuning.choose(KEY, ("bmm", "triton"), CUDA, lambda _: None) == options[0] == {"use": "bmm"}
    assert tuning.choose(KEY, ("triton",), CUDA, lambda _: None) == options[1]
    assert not pretended.exists(), "measured unasked"


def test_measuring_takes_the_fastest_and_keeps_it(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def seconds(run: Any, config: dict[str, Any]) -> float:
        asked.append(config)
        return float(config["num_warps"])

    monkeypatch.setattr(tuning, "_seconds", seconds)
    options = tuning.shipped("sm_90", KEY)[1:]
    with tuning.measuring():
        best = tuning.choose(KEY, ("triton",), CUDA, lambda _: None)
    assert asked == options
    assert best == min(options, key=lambda c: c["num_warps"]) != options[0]
    tuning._measured.cache_clear()  # as in another process
    monkeypatch.setattr(tuning, "_seconds", None)
    assert tuning.choose(KEY, ("triton",), CUDA, lambda _: None) == best
    assert list(json.loads(pretended.read_text("utf-8")).values()) == [best]


def test_a_damaged_file_and_a_folder_that_cannot_be_written(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_seconds", lambda run, config: 1.0)
    pretended.parent.write_text("a file where the folder should be")
    with tuning.measuring():
        tuning.choose(KEY, ("triton",), CUDA, lambda _: None)
    pretended.parent.unlink()
    pretended.parent.mkdir()
    pretended.write_text('{"cut off')
    tuning._measured.cache_clear()
    assert tuning.choose(KEY, ("triton",), CUDA, lambda _: None) == tuning.shipped("sm_90", KEY)[1]


def test_the_interpreter_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_AUTOTUNE", "1")
    monkeypatch.setattr(tuning, "_seconds", None)
    assert tuning.choose(KEY, ("triton",), torch.device("cpu"), lambda _: None)["use"] == "triton"


@pytest.mark.parametrize("grid", [(1, 2), (2, 2), (2, 3), (4, 4), (5, 5), (8, 8)])
@pytest.mark.parametrize("side", [5, 16, 128])
def test_whatever_launchers_ask_for_is_shipped(
    side: int, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuning.Key, tuple[str, ...]]] = []

    def choose(key: tuning.Key, uses: tuple[str, ...], device: Any, run: Any) -> None:
        asked.append((key, uses))
        raise KeyboardInterrupt  # nothing is run

    monkeypatch.setattr(tuning, "choose", choose)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    w = torch.ones(3, *grid)
    rows, cols = (side * g for g in grid)
    for name in ("bfloat16", "float16", "float32", "float8_e4m3fn"):
        x = torch.zeros(3, side, side).to(device, getattr(torch, name))
        scales = (torch.ones(3, 1, 1, device=device),) * 2 if name == "float8_e4m3fn" else None
        calls = [
            lambda x=x, s=scales: gpu.product(x, x, "fp32", s),
            lambda x=x, s=scales: gpu.product_decode(x, x, w, rows, cols, scales=s),
        ]
        if scales is None:
            calls += [lambda x=x: gpu.encode(x, w), lambda x=x: gpu.decode(x, w, rows, cols)]
        for call in calls:
            with pytest.raises(KeyboardInterrupt):
                call()
    for arch in tuning.ARCHITECTURES:
        for key, uses in asked:
            if uses not in tuning.PLAIN and not (arch == "sm_80" and "fp8" in key.dtypes):
                found = {c["use"] for c in tuning.shipped(arch, key)}
                assert found.intersection(uses), (arch, key, uses)


def test_fp8_is_refused_by_chips_without_it(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    tuning._architecture.cache_clear()
    with pytest.raises(UsageError, match=r"needs a GPU of compute capability 9\.0"):
        tuning.choose(tuning.Key("product", "fp8_e4m3-fp32", "large"), ("triton",), CUDA, lambda _: None)
