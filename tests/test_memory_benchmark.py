"""The benchmark of encode and decode on the processor: what it compares, that it checks first, and its rows."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stl_search.kernels import cpu
from stl_search.kernels.plan import Plan
from stl_search.testing import STRASSEN


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    module = importlib.import_module("memory")
    monkeypatch.setattr(module, "always_fresh", lambda: True)  # the allocator of the tests stays as it is
    monkeypatch.setattr(module, "CACHE", 1 << 10)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_both_sides_move_as_many_bytes(memory: ModuleType, dtype: str) -> None:
    plan = Plan(STRASSEN, dtype)
    for what, state, moved, call, clone in memory.cases(plan, 24):
        size = {"fp32": 4}.get(dtype, 2)
        assert moved == (24 * 24 + 7 * 12 * 12) * size
        copied = clone()
        assert 2 * copied.nbytes == moved
        found = call()
        assert (found is None) == (state == "used")
        if found is not None:
            assert found.shape == ((7, 12, 12) if what == "encode" else (24, 24))


def test_a_wrong_kernel_stops_it(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cpu.decode
    monkeypatch.setattr(cpu, "decode", lambda *x: real(*x) * 1.001)
    with pytest.raises(SystemExit, match=r"decode by 2x2x2_r7_ZT.* is wrong"):
        memory.cases(Plan(STRASSEN, "fp32"), 24)


def test_rows(memory: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["--size", "16", "--ranks", "7", "--dtypes", "fp32", "--repeats", "3"]
    assert memory.main(asked) == 0
    assert not list(tmp_path.iterdir())
    assert memory.main([*asked, "--keep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("fp32")] == 2 * [
        ["fp32", "block", "7"], ["fp32", "tile", "7"],
    ]  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "memory_cpu.jsonl").read_text().splitlines()]
    assert [(r["layout"], r["what"], r["memory"]) for r in rows] == [
        (layout, what, state)
        for layout in ("block", "tile")
        for what in ("encode", "decode")
        for state in ("fresh", "used")
    ]
    assert {"machine", "torch", "version", "commit", "dtype", "size", "p20", "p50", "p80", "bytes"} <= set(rows[0])
    assert rows[0]["ratio"] == pytest.approx(rows[0]["p50"] / rows[0]["baseline"]["p50"])


def test_the_allocator_can_be_told(memory: ModuleType) -> None:
    """Large blocks are then mapped anew: one that was written comes back as zeros."""

    code = (
        "import sys, torch; sys.path.insert(0, 'benchmarks'); import memory; assert memory.always_fresh()\n"
        "for _ in range(4):\n"
        "    x = torch.empty(9 << 20, dtype=torch.uint8); assert not x.any(); x.fill_(1); del x\n"
    )
    if sys.platform != "linux":
        pytest.skip("mallopt is glibc's")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    # left alone, the allocator hands out what was written
    left = subprocess.run(
        [sys.executable, "-c", code.replace("assert memory.always_fresh()", "pass")],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert "AssertionError" in left.stderr
