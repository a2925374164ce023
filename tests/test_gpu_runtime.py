"""What only a GPU can show of the runtime: nothing of this runs where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stl_search.cli import main
from stl_search.runtime import calibrate, recall
from stl_search.runtime.amm import amm
from stl_search.runtime.dispatch import DEFAULT, explain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def gaussian(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to("cuda", dtype)


def test_a_small_product_is_plain_and_known_at_once() -> None:
    a, b = gaussian(64, 48), gaussian(48, 32, seed=1)
    c = amm(a, b)
    assert c.is_cuda
    torch.testing.assert_close(c, a @ b, rtol=0, atol=0)
    asked = (DEFAULT, None, None)
    assert torch.equal(recall.product(a, b, *asked), c)
    assert recall.product(a, b.cpu(), *asked) is None
    with torch.autocast("cuda", torch.bfloat16):
        assert recall.product(a, b, *asked) is None
        assert amm(a, b).dtype == torch.float32


def test_speeds_are_measured_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "cache_dir", lambda: tmp_path)
    calibrate._rates.cache_clear()
    found = calibrate.rates("cuda:0", "fp32")
    calibrate._rates.cache_clear()
    assert found.bandwidth > 1e11
    assert found.ways == ("torch",) * len(calibrate.SIZES_ELSEWHERE)
    text = str(explain((4096, 4096, 4096), "fp32", device="cuda:0", show=False))
    assert "modelled time" in text or "measured" in text


def test_the_bench_runs_there(tmp_path: Path) -> None:
    out = tmp_path / "rows"
    asked = "--sizes 256 --dtype bf16 --schemes 7 --repeats 2 --device cuda"
    done = CliRunner().invoke(main, ["bench", "amm", *asked.split(), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["machine"] for row in rows} == {torch.cuda.get_device_name()}
    assert all(row["ok"] for row in rows)
    assert {row["encoded"] for row in rows} == {"none", "rhs"}
