"""Rates: measured once, kept on disk, measured anew where the file is not theirs; the shape of curves."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stl_search.kernels import dense
from stl_search.runtime import calibrate
from stl_search.runtime.calibrate import Rates, at


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibrate, "cache_dir", lambda: tmp_path / "rates")
    calibrate._rates.cache_clear()
    return tmp_path / "rates"


def test_rates_are_measured_once_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SIZES", {"cpu": (8, 16, 32)})
    monkeypatch.setattr(calibrate, "SMALLEST", 16)
    monkeypatch.setattr(calibrate, "ENCODED", {"cpu": 64})
    monkeypatch.setattr(calibrate, "SETTLE", 0.0)
    monkeypatch.setattr(calibrate, "OUTDATED", 1e9)
    torch.manual_seed(7)
    drawn = torch.get_rng_state()
    first = calibrate.rates("cpu", "fp32")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [s for s, _ in first.dense] == [16.0, 32.0]
    assert [s for s, _ in first.slices] == [8.0, 16.0]
    assert all(speed > 0 for curve in (first.dense, first.slices, first.packed) for _, speed in curve)
    assert min(first.bandwidth, first.sums, first.call) > 0
    calls: list[str] = []
    measure = calibrate.measure
    monkeypatch.setattr(calibrate, "measure", lambda *a: calls.append("measured") or measure(*a))
    calibrate._rates.cache_clear()
    assert calibrate.rates("cpu", "fp32") == first
    assert calibrate.rates("cpu", "fp16") == first  # both dense products and sums are float32's
    assert calls == []
    (path,) = folder.iterdir()
    for text in ("{", json.dumps({**json.loads(path.read_text()), "format": 0}), "[]"):
        path.write_text(text)
        calibrate._rates.cache_clear()
        calibrate.rates("cpu", "fp32")
    assert calls == ["measured"] * 3


@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
def test_other_precisions_are_measured(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SIZES", {"cpu": (8, 16)})
    monkeypatch.setattr(calibrate, "SMALLEST", 8)
    monkeypatch.setattr(calibrate, "ENCODED", {"cpu": 64})
    monkeypatch.setattr(calibrate, "SETTLE", 0.0)
    with torch.device("meta"):  # of what is made where nothing is said
        found = calibrate.measure("cpu", dtype)
    assert min(found.bandwidth, found.sums, found.call, found.dense[0][1], found.slices[0][1]) > 0


def test_code_that_is_compiled_at_some_size_makes_no_way_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled counts for nothing: neither in the time of a call nor where ways are compared."""
    monkeypatch.setattr(calibrate, "SIZES", {"cpu": (16, 32, 64, 128)})
    monkeypatch.setattr(calibrate, "SMALLEST", 16)
    monkeypatch.setattr(calibrate, "ENCODED", {"cpu": 64})
    monkeypatch.setattr(calibrate, "LONGEST", 0.2)
    monkeypatch.setattr(calibrate.dense, "slice_ways", lambda kind: ["torch", "compiled"])
    monkeypatch.setattr(calibrate.dense, "packings", lambda b: [])
    seen: set[Any] = set()

    def slow_at_first(what: Any) -> None:
        if what not in seen:
            seen.add(what)
            time.sleep(0.3)

    def of_slices(kind: torch.dtype, size: int, ways: list[str]) -> dict[str, Any]:
        return {"torch": lambda: time.sleep(1e-4), "compiled": lambda: slow_at_first(size)}

    encode = calibrate.cpu.encode
    monkeypatch.setattr(calibrate.cpu, "encode", lambda *a, **k: slow_at_first("encode") or encode(*a, **k))
    monkeypatch.setattr(calibrate, "_of_slices", of_slices)
    monkeypatch.setattr(calibrate, "_in_runs", lambda x, y, way: None)
    monkeypatch.setattr(calibrate, "in_a_row", lambda kind, way: 100.0)
    found = calibrate.measure("cpu", "fp32")
    assert found.call < 0.1
    assert found.slice_ways == ("compiled",) * 3


def test_what_was_measured_on_a_busy_machine_is_measured_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that says a thousandth of the speed is replaced; one that says a thousand times as much is kept."""
    calls: list[float] = []

    def measured(device: str, dtype: str) -> Rates:
        calls.append(speed)
        return Rates(((64.0, speed),), ("torch",), ((64.0, speed),), ("torch",), (), (), 1.0, 1.0, 0.0)

    monkeypatch.setattr(calibrate, "measure", measured)
    for speed in (1e3, 1e20, 1e20):
        calibrate._rates.cache_clear()
        assert calibrate.rates("cpu", "fp32").dense == ((64.0, speed),)
        assert len(list(folder.glob("*"))) == (speed > 1e3)  # so slow a machine there is not: nothing is written
    assert calls == [1e3, 1e20]
    (path,) = folder.iterdir()
    path.write_text(path.read_text().replace("1e+20", "1e+3"))
    calibrate._rates.cache_clear()
    assert calibrate.rates("cpu", "fp32").dense == ((64.0, 1e20),)
    assert calls == [1e3, 1e20, 1e20]
    calibrate._rates.cache_clear()


def test_no_place_to_keep_them_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(calibrate, "cache_dir", lambda: tmp_path / "file" / "rates")
    rates = Rates(((1.0, 1.0),), ("torch",), ((1.0, 1.0),), ("torch",), (), (), 1.0, 1.0, 0.0)
    monkeypatch.setattr(calibrate, "measure", lambda *a: rates)
    calibrate._rates.cache_clear()
    assert calibrate.rates("cpu", "fp64") == rates
    calibrate._rates.cache_clear()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: AMD EPYC\ncpu family : 25\nmodel : 17\n\nmodel : 3\n", "AMD EPYC (family 25, model 17)"),
        ("model name : Some One", "Some One"),
        ("", "plain"),
    ],
)
def test_processors_are_told_apart_where_hosts_name_them_alike(
    text: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate.Path, "read_text", lambda *_: text)
    monkeypatch.setattr(calibrate.platform, "processor", lambda: "plain")
    assert calibrate.processor() == name
    before = calibrate.machine("cpu")
    monkeypatch.setattr(calibrate.Path, "read_text", lambda *_: text + "\ncpu family: 4\nmodel: 2")
    assert (calibrate.machine("cpu") == before) == ("family" in name)


def test_curves_and_ways() -> None:
    curve = ((100.0, 10.0), (400.0, 30.0))
    assert [at(curve, size) for size in (50.0, 100.0, 200.0, 400.0, 1e6)] == [5.0, 10.0, 20.0, 30.0, 30.0]
    rates = Rates(curve, ("torch", "onednn"), curve[:1], ("openblas",), (), (), 1.0, 1.0, 0.0)
    assert [rates.way(size) for size in (1, 199, 201, 1e5)] == ["torch", "torch", "onednn", "onednn"]
    assert [rates.slice_way(size) for size in (1, 1e5)] == ["openblas", "openblas"]
    assert rates.packing(400) is None
    slow, quick = ((400.0, 30.0),), ((400.0, 33.0),)
    for speed, slices, way, packing in (
        (quick, "torch", "onednn", "onednn"),
        (slow, "torch", "onednn", None),  # not worth its memory
        (slow, "panels", "panels", "panels"),  # which would be made at every product
        (slow, "panels", "onednn", "panels"),  # which is not much faster
        (slow, "torch", "panels", None),
    ):
        found = Rates(slow, ("torch",), slow, (slices,), speed, (way,), 1.0, 1.0, 0.0)
        assert found.packing(400) == packing
    small, large = ((100.0, 10.0), (400.0, 30.0)), ((100.0, 10.0), (400.0, 40.0))
    found = Rates(slow, ("torch",), small, ("torch",) * 2, large, ("onednn", "panels"), 1.0, 1.0, 0.0)
    assert [found.packing(size) for size in (50, 100, 350, 400)] == [None, None, "panels", "panels"]


def compared(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]], alone: dict[str, Any] | None = None
) -> tuple[calibrate._Comparison, list[str]]:
    """A comparison of ways that take so long, call by call, the last time over and over; and what was called."""
    called: list[str] = []

    def once(run: str, place: torch.device, times: int = 1) -> float:
        called.append(run)
        left = seconds[run]
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(calibrate, "_once", once)
    monkeypatch.setattr(calibrate, "SETTLE", 0.0)
    runs: dict[str, Any] = {way: way for way in seconds}
    return calibrate._Comparison("dense", 64, 1.0, runs, torch.device("cpu"), alone), called


def test_ways_are_run_in_turn_and_the_lesser_median_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, called = compared(monkeypatch, {"torch": [0.01], "onednn": [0.011, 0.011, 0.001, 0.011]})
    for _ in range(calibrate.ROUNDS):
        comparison.go_on()
    assert called[4:] == ["torch", "onednn"] * (len(called) // 2 - 2)  # after two calls of each
    assert comparison.fastest() == ("torch", 0.01)
    assert not comparison.hopeless


def test_whole_products_are_run_warm_and_the_shortest_run_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds its buffers as its own run before has left them; new memory, slow at first, does not decide."""
    seconds = {"openblas": [0.011], "panels": [0.02, 0.02, 0.02, 0.01, 0.02]}
    comparison, called = compared(monkeypatch, seconds, {"openblas": "openblas alone", "panels": "panels alone"})
    called.clear()
    seconds["panels alone"] = [0.007]
    comparison.go_on()
    comparison.go_on()
    assert called == ["openblas", "openblas", "panels", "panels"] * (len(called) // 4)
    assert comparison.fastest() == ("panels", 0.007)


@pytest.mark.parametrize(("numpy", "wins"), [(0.0099, False), (0.009, True)])
def test_numpy_has_to_gain_something(monkeypatch: pytest.MonkeyPatch, numpy: float, wins: bool) -> None:
    comparison, _ = compared(monkeypatch, {"torch": [0.01], "numpy": [numpy]})
    comparison.go_on()
    assert comparison.fastest()[0] == ("numpy" if wins else "torch")


def test_what_is_far_slower_is_left_out_and_what_takes_long_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, called = compared(monkeypatch, {"torch": [0.5], "float32": [0.01]})
    assert comparison.hopeless == {"torch"}
    called.clear()
    comparison.go_on()
    assert set(called) == {"float32"}
    comparison, called = compared(monkeypatch, {"torch": [9.0], "onednn": [8.0]})
    assert comparison.hopeless == {"torch", "onednn"}  # larger sizes are not tried
    comparison.go_on()
    assert called == ["torch", "onednn"]
    assert comparison.fastest() == ("onednn", 8.0)


def test_sizes_end_where_products_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SIZES", {"cpu": (16, 32, 64)})
    monkeypatch.setattr(calibrate, "SMALLEST", 16)
    monkeypatch.setattr(calibrate, "LONGEST", 0.0)
    found = calibrate._comparisons(torch.float32, torch.device("cpu"))
    assert {(c.name, c.size) for c in found} <= {("dense", 16), ("slices", 16), ("packed", 16)}
    assert ("dense", 16) in {(c.name, c.size) for c in found}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("row", [60, 500, 4096])
def test_how_many_products_are_added_up_in_a_row(row: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told from the errors alone, of sums made one product after another and begun anew after so many."""
    wide = torch.float64 if kind == torch.float64 else torch.float32

    def batched(a: torch.Tensor, b: torch.Tensor, way: str) -> torch.Tensor:
        assert a.dtype == b.dtype == wide
        whole = torch.zeros(1, a.shape[1], b.shape[2], dtype=wide)
        for start in range(0, a.shape[2], row):
            part = torch.zeros_like(whole)
            for i in range(start, min(start + row, a.shape[2])):
                part += a[:, :, i : i + 1] * b[:, i : i + 1]
            whole += part
        return whole

    monkeypatch.setattr(calibrate.dense, "batched", batched)
    found = calibrate.in_a_row(kind, "torch")
    if row == 4096:
        assert found == math.inf
    else:
        assert found == pytest.approx(row + 4096 / row, rel=0.15)  # parts are added up in a row, too


@pytest.mark.parametrize("way", dense.packings(torch.zeros(1, 8, 8)))
def test_packed_operands_are_added_up_in_rows_of_some_length(way: str) -> None:
    """oneDNN and panels begin anew after 1024 products; shorter rows there may be, infinite ones there are not."""
    assert 100 < calibrate.in_a_row(torch.float32, way) < 1200
