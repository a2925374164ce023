"""The atlas: hull, rivals, pictures and tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stl_search import score, transform
from stl_search.bench.frontier_report import frontier_report, random_als, rivals
from stl_search.catalog import store
from stl_search.cli import main
from stl_search.errors import UsageError
from stl_search.scheme import Scheme
from stl_search.search.compositions import lower_hull
from stl_search.testing import STRASSEN


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalog beside an empty shipped one; the user's folder is returned."""
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    return tmp_path / "mine"


def test_no_point_lies_below_the_hull_and_its_slopes_rise() -> None:
    rng = np.random.default_rng(0)
    points = [(0.0, 1.0), *((float(x), float((1 - x) ** 2 + 0.2 * y)) for x, y in rng.random((60, 2)))]
    hull = lower_hull(points)
    assert set(hull) <= set(points)
    xs, ys = np.array(hull).T
    assert (np.diff(np.diff(ys) / np.diff(xs)) > 0).all()
    assert all(y >= np.interp(x, xs, ys) - 1e-12 for x, y in points)


def test_rivals_are_where_theory_puts_them() -> None:
    found = {r.name: r for r in rivals(np.random.default_rng(1), 256)}
    assert found["bf16"].error2 == pytest.approx(2 * score.relative_rounding("bf16") ** 2, rel=0.05)
    assert found["fp8"].error2 == pytest.approx(2 * score.relative_rounding("fp8_e4m3") ** 2, rel=0.1)
    assert found["columns dropped"].error2 == pytest.approx(0.5, rel=0.1)
    assert found["columns sampled"].error2 == pytest.approx(2.0, rel=0.2)  # inner / samples
    x = np.sort(np.abs(np.random.default_rng(2).standard_normal((100_000, 4))), axis=1)
    assert found["2:4 sparse"].error2 == pytest.approx(float((x[:, :2] ** 2).sum() / (x**2).sum()), rel=0.05)
    assert 0.2 < found["SVD of B"].error2 < 0.5
    assert {r.cost for r in found.values()} == {0.5, 1.0}


def test_random_starts_are_above_the_floor_and_below_nothing() -> None:
    values = random_als((2, 2, 2), [2, 7], "bf16", np.random.default_rng(0))
    assert score.floor((2, 2, 2), 2) <= values[0] <= 1
    assert 0 < values[1] < values[0]


def test_a_report_has_pictures_tables_and_commands(home: Path, tmp_path: Path) -> None:
    store.add(STRASSEN, {"command": "stl-search discover --of strassen"}, home)
    u, v, w = (f[:4].astype(float) for f in transform.classical((2, 2, 2)).factors)
    store.add(Scheme((2, 2, 2), "R", u, v, w), {"command": "stl-search discover --of half"}, home, "bf16")
    words = ["report", "frontier", "--shape", "2,2,2", "--shape", "4,4,4", "--out", str(tmp_path / "r"), "--json"]
    found = json.loads(CliRunner().invoke(main, [*words, "--format", "svg"]).stdout)
    assert [Path(p).name for p in found["pictures"]] == ["frontier_2x2x2.svg", "frontier_all.svg"]
    assert all(Path(p).stat().st_size > 1000 for p in found["pictures"])
    assert found["points"] == 2
    assert [point["rank"] for point in found["below_hull"]] == [7]
    text = Path(found["path"]).read_text()
    assert "stl-search discover --of strassen" in text
    assert "| truncation |" in text
    assert "| hull |" in text


def test_a_report_on_nothing_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scheme of these shapes"):
        frontier_report(tmp_path, [(2, 2, 2)], als=False)
    with pytest.raises(UsageError, match="png, svg or pdf"):
        frontier_report(tmp_path, [(2, 2, 2)], ending="bmp")
