"""Data-aware discovery: figures against brute force over tiles, the gain on rows kept back."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stl_search import decompose, score
from stl_search.catalog import store
from stl_search.cli import main
from stl_search.errors import CatalogError, FormatError, UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.calibrated import LAYOUTS, Calibration, calibrated, fit, measured, read_matrix, tiles
from stl_search.testing import STRASSEN

SHAPES = [(2, 2, 2), (2, 3, 1), (3, 1, 2)]


def some(shape: Shape, rank: int, seed: int = 0) -> Scheme:
    return decompose.scheme_of(shape, decompose.random_batch(shape, rank, 1, np.random.default_rng(seed)))


def data(shape: Shape, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated matrices with a mean, whose sides are multiples of the tile's."""
    m, k, n = shape
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((8 * m, 6 * k)) + 0.3
    b = rng.standard_normal((6 * k, 4 * n)) - 0.2
    a[:, k:] += 0.7 * a[:, :-k]
    return a, b


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_figures_are_expectations_over_independent_tiles(shape: Shape, layout: str) -> None:
    """E: the mean of |residual(A-tile sum, B-tile)|^2 over all pairs of tiles, plus means for the other inner tiles."""
    m, k, n = shape
    a, b = data(shape)
    calibration = Calibration.of(shape, a, b, layout)
    scheme = some(shape, 3)
    u, v, w = (f.reshape(3, -1) for f in scheme.as_float())
    x, y = (t / np.sqrt((t * t).mean()) for t in (tiles(a, m, k, layout), tiles(b, k, n, layout)))

    def products(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.einsum("iab,jbc->ijac", s.reshape(-1, m, k), t.reshape(-1, k, n)).reshape(len(s), len(t), -1)

    exact = products(x, y)
    gap = exact - np.einsum("iq,jq,qc->ijc", x @ u.T, y @ v.T, w)
    mean, gap_mean = exact.mean(axis=(0, 1)), gap.mean(axis=(0, 1))
    extra = a.shape[1] // k - 1
    whole = (exact**2).sum(axis=2).mean() + extra * (mean**2).sum()
    expected = ((gap**2).sum(axis=2).mean() + extra * (gap_mean**2).sum()) / whole
    e, kappa = calibration.figures(scheme)
    assert e == pytest.approx(expected, rel=1e-6)  # the ridge of 1e-9 on the moments
    noise = (((x @ u.T) ** 2).mean(axis=0) * ((y @ v.T) ** 2).mean(axis=0) * (w**2).sum(axis=1)).sum() / whole
    assert kappa == pytest.approx(noise, rel=1e-6)


def test_white_data_give_the_universal_figures() -> None:
    rng = np.random.default_rng(1)
    eye = np.eye(4)
    calibration = Calibration((2, 2, 2), (eye, eye), (np.zeros(4), np.zeros(4)), 7)
    scheme = some((2, 2, 2), 5, seed=int(rng.integers(100)))
    e, kappa = calibration.figures(scheme)
    assert e == pytest.approx(score.expected_error(scheme), rel=1e-12)
    assert kappa == pytest.approx(score.noise_gain(scheme), rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_exact_scheme_is_measured_at_the_rounding_alone(layout: str) -> None:
    a, b = data((2, 2, 2))
    assert measured(STRASSEN, a, b, "fp64", layout) < 1e-14
    assert 1e-4 < measured(STRASSEN, a, b, "bf16", layout) < 0.02


def test_a_fit_lowers_the_cost_and_is_stationary() -> None:
    a, b = data((2, 3, 1))
    calibration = Calibration.of((2, 3, 1), a, b)
    lam = 1e-4
    start = some((2, 3, 1), 3)
    u, v, _ = (f.reshape(3, -1) for f in start.as_float())
    found = fit(calibration, u, v, lam, iterations=2000)
    value = calibration.cost(found, lam)
    assert value < calibration.cost(start, lam)
    rng = np.random.default_rng(0)
    for _ in range(20):
        near = Scheme(found.shape, "R", *(f + 1e-4 * rng.standard_normal(f.shape) for f in found.factors))
        assert calibration.cost(near, lam) > value - 1e-7


def test_structured_data_are_served_better_than_by_the_universal_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    batch, _ = decompose.refine((2, 2, 2), decompose.random_batch((2, 2, 2), 4, 4, np.random.default_rng(0)), 1e-5, 200)
    store.add(decompose.scheme_of((2, 2, 2), batch), {}, tmp_path / "mine", "bf16")
    rng = np.random.default_rng(3)
    alike = np.repeat(rng.standard_normal((256, 24)), 2, axis=1) + 0.2 * rng.standard_normal((256, 48))
    np.save(tmp_path / "a.npy", alike)  # alike within a tile, tiles independent
    np.save(tmp_path / "b.npy", rng.standard_normal((48, 32)))
    words = ["discover", "--tile", "2", "--rank", "4", "--steps", "3", "--layout", "tile", "--json"]
    words += ["--calibrate", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(main, words)
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["held_out"] < 0.8 * found["held_out_universal"]
    assert found["held_out"] == pytest.approx(found["error"], rel=0.1)  # 64 x 24 x 16 tiles of each
    assert json.loads(CliRunner().invoke(main, words).stdout)["id"] == found["id"]
    record = json.loads(Path(found["path"]).read_text())["provenance"]
    assert record["calibration"]["layout"] == "tile"
    assert "--calibrate a.npy b.npy" in record["command"]
    # nothing of a catalog is built upon unless that is asked for: the universal scheme stands beside, for comparison
    assert record["starts"] == []
    begun = json.loads(CliRunner().invoke(main, [*words, "--starts", "catalog"]).stdout)
    record = json.loads(Path(begun["path"]).read_text())["provenance"]
    assert record["starts"] == [found["universal"]]
    assert "--starts catalog" in record["command"]


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    store.add(some((2, 2, 2), 5), {}, tmp_path / "mine", "bf16")
    a, b = data((2, 2, 2))
    fits = []

    def counted(*arguments: Any, **options: Any) -> Scheme:
        fits.append(1)
        return fit(*arguments, **options)

    monkeypatch.setattr("stl_search.search.calibrated.fit", counted)

    def search(out: str, stop: int = 99, steps: int = 3, **options: Any) -> dict[str, Any]:
        def progress(tried: int, error: float) -> None:
            if tried == stop:
                raise KeyboardInterrupt

        fits.clear()
        return calibrated(
            (2, 2, 2), 6, a, b, steps=steps, starts="catalog", out=tmp_path / out, progress=progress, **options
        )

    whole = search("whole")
    assert len(fits) == 3
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            search("cut", stop)
        first = len(fits)
        found = search("cut")
        assert len(fits) == 3 - stop
        assert first == stop
        assert found["id"] == whole["id"]
        assert Path(found["path"]).read_text() == Path(whole["path"]).read_text()
        Path(found["path"]).unlink()  # a finished journal is not gone on with
    with pytest.raises(KeyboardInterrupt):
        search("cut", 2)
    assert search("cut", fresh=True)["id"] == whole["id"]
    assert len(fits) == 3
    with pytest.raises(KeyboardInterrupt):
        search("cut", 2)
    few = search("cut", steps=1)
    assert len(fits) == 0
    assert few["id"] == search("few", steps=1)["id"]
    with pytest.raises(KeyboardInterrupt):
        search("cut", 2)
    a[0, 0] += 1  # other data, another search
    search("cut")
    assert len(fits) == 3


def test_the_journal_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    a, b = data((2, 2, 2))

    def interrupted(tried: int, error: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated((2, 2, 2), 6, a, b, steps=2, out=tmp_path, progress=interrupted)
    (path,) = (tmp_path / ".journal").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    text = b'{"job": 0}\n'
    path.write_bytes(lines[0] + b"%08x " % zlib.crc32(text) + text)
    with pytest.raises(CatalogError, match="use --fresh"):
        calibrated((2, 2, 2), 6, a, b, steps=2, out=tmp_path)
    assert calibrated((2, 2, 2), 6, a, b, steps=1, out=tmp_path, fresh=True)["id"]


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    a, b = data((2, 2, 2))
    with pytest.raises(UsageError, match="inner sizes differ"):
        Calibration.of((2, 2, 2), a, b[:-2])
    with pytest.raises(UsageError, match="too small"):
        calibrated((2, 2, 2), 4, a[:3], b, steps=1)
    with pytest.raises(UsageError, match="empty or zero"):
        Calibration.of((2, 2, 2), 0 * a, b)
    (tmp_path / "x.npy").write_text("no matrix")
    with pytest.raises(FormatError, match="no matrix file"):
        read_matrix(tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(FormatError, match="1 dimensions"):
        read_matrix(tmp_path / "y.npy")
    for options, named in (
        (["--ring", "ZT"], "--ring"),
        (["--start", "x"], "--start"),
        (["--workers", "2"], "--work"),
        (["--coefficients", "grid"], "--coeff"),
    ):
        refused = CliRunner().invoke(
            main, ["discover", "--tile", "2", "--rank", "7", *options, "--calibrate", "a", "b"]
        )
        assert refused.exit_code == 2
        assert named in refused.stderr
    for wrong in ({"steps": 0}, {"time": -1.0}, {"starts": "mine"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            calibrated((2, 2, 2), 4, a, b, **wrong)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.numpy").save_file
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    save({"weight": a, "bias": np.zeros(3, np.float32)}, str(tmp_path / "w.safetensors"))
    assert (read_matrix(tmp_path / "w.safetensors") == a).all()
