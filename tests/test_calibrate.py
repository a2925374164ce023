"""Rates: measured once, kept on disk, measured anew where the file is not theirs; the shape of curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stl_search.runtime import calibrate
from stl_search.runtime.calibrate import Rates, at


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibrate, "cache_dir", lambda: tmp_path / "rates")
    calibrate._rates.cache_clear()
    return tmp_path / "rates"


def test_rates_are_measured_once_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SIZES", {"cpu": (16, 32)})
    monkeypatch.setattr(calibrate, "ENCODED", {"cpu": 64})
    monkeypatch.setattr(calibrate, "SETTLE", 0.0)
    first = calibrate.rates("cpu", "fp32")
    assert [s for s, _ in first.dense] == [16.0, 32.0]
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


def test_no_place_to_keep_them_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(calibrate, "cache_dir", lambda: tmp_path / "file" / "rates")
    rates = Rates(((1.0, 1.0),), ("torch",), ((1.0, 1.0),), ("torch",), (), (), 1.0, 1.0, 0.0)
    monkeypatch.setattr(calibrate, "measure", lambda *a: rates)
    calibrate._rates.cache_clear()
    assert calibrate.rates("cpu", "fp64") == rates
    calibrate._rates.cache_clear()


def test_curves_and_ways() -> None:
    curve = ((100.0, 10.0), (400.0, 30.0))
    assert [at(curve, size) for size in (50.0, 100.0, 200.0, 400.0, 1e6)] == [5.0, 10.0, 20.0, 30.0, 30.0]
    rates = Rates(curve, ("torch", "onednn"), curve[:1], ("openblas",), (), (), 1.0, 1.0, 0.0)
    assert [rates.way(size) for size in (1, 199, 201, 1e5)] == ["torch", "torch", "onednn", "onednn"]
    assert [rates.slice_way(size) for size in (1, 1e5)] == ["openblas", "openblas"]
    assert rates.packing is None
    slow, quick = ((400.0, 30.0),), ((400.0, 33.0),)
    for speed, slices, way, packing in (
        (quick, "torch", "onednn", "onednn"),
        (slow, "torch", "onednn", None),  # not worth its memory
        (slow, "panels", "panels", "panels"),  # which would be made at every product
        (slow, "torch", "panels", None),
    ):
        found = Rates(slow, ("torch",), slow, (slices,), speed, (way,), 1.0, 1.0, 0.0)
        assert found.packing == packing
