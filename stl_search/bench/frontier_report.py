"""The atlas of approximate schemes: error against multiplications kept, with reference lines, tables and commands.

One picture a shape, one for all shapes with the lower convex hull of all entries, and a Markdown file with the numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stl_search import decompose, score
from stl_search.catalog import store
from stl_search.errors import UsageError
from stl_search.scheme import Shape
from stl_search.search.compositions import front, lower_hull, mark

__all__ = ["SHAPES", "Rival", "frontier_report", "random_als", "rivals"]

SHAPES: tuple[Shape, ...] = (
    (2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 2, 5), (2, 3, 3), (2, 4, 4), (3, 3, 3), (3, 3, 4), (4, 4, 4),
)  # fmt: skip
SHOWN = ("fp8_e4m3", "bf16", "fp16", "fp32")
_ALS_RANKS = 10  # of a shape, for the line of random starts
_ALS_STARTS = 2
_ALS_SWEEPS = 60
_SIDE = 512  # of the Gaussian matrices on which rivals are measured
_COLOURS = {"fp8_e4m3": "tab:red", "bf16": "tab:blue", "fp16": "tab:green", "fp32": "tab:purple", "fp64": "black"}


@dataclass(frozen=True)
class Rival:
    """What else one could do to a Gaussian product: nominal cost (1: dense bf16) and measured error^2."""

    name: str
    cost: float
    error2: float


def rivals(rng: np.random.Generator, side: int = _SIDE) -> list[Rival]:
    """Measured on Gaussian matrices (side, side): what a user would otherwise do for less than a dense bf16 product."""
    a, b = rng.standard_normal((2, side, side))
    exact = a @ b

    def error2(x: Any) -> float:
        return float(np.sum((x - exact) ** 2) / np.sum(exact**2))

    def by_row(x: Any, top: float) -> Any:
        return np.abs(x).max(axis=1, keepdims=True) / top

    def fp8(x: Any) -> Any:
        scale = by_row(x, 448.0)
        return score.round_to(x / scale, "fp8_e4m3") * scale

    def int8(x: Any) -> Any:
        scale = by_row(x, 127.0)
        return np.rint(x / scale) * scale

    groups = np.abs(b.reshape(side // 4, 4, side))
    kept = groups >= np.sort(groups, axis=1)[:, 2:3]
    left, values, right = np.linalg.svd(b)
    few = side // 4  # two thin products of side * few, together half of the dense one
    chosen = rng.choice(side, side // 2, replace=False)
    drawn = rng.integers(side, size=side // 2)
    return [
        Rival("bf16", 1.0, error2(score.round_to(a, "bf16") @ score.round_to(b, "bf16"))),
        Rival("fp8", 0.5, error2(fp8(a) @ fp8(b.T).T)),
        Rival("int8", 0.5, error2(int8(a) @ int8(b.T).T)),
        Rival("2:4 sparse", 0.5, error2(a @ (b * kept.reshape(side, side)))),
        Rival("SVD of B", 0.5, error2((a @ left[:, :few] * values[:few]) @ right[:few])),
        Rival("columns dropped", 0.5, error2(a[:, chosen] @ b[chosen])),
        Rival("columns sampled", 0.5, error2(2 * a[:, drawn] @ b[drawn])),
    ]


def random_als(shape: Shape, ranks: Sequence[int], dtype: str, rng: np.random.Generator) -> list[float]:
    """error^2 of alternating least squares from random starts: what one gets without any search, for each rank."""
    lam = 2 * score.relative_rounding(dtype) ** 2
    found = []
    for rank in ranks:
        batch = decompose.random_batch(shape, rank, _ALS_STARTS, rng)
        batch = decompose.als(shape, batch, max(lam, 1e-3), sweeps=20, ridge=1e-2)
        batch = decompose.als(shape, batch, lam, sweeps=_ALS_SWEEPS)
        found.append(float(decompose.objective(shape, batch, lam).min()) / math.prod(shape))
    return found


def frontier_report(
    out: str | os.PathLike[str],
    shapes: Sequence[Shape] = SHAPES,
    dtype: str = "bf16",
    ending: str = "png",
    dirs: Sequence[str | os.PathLike[str]] | None = None,
    als: bool = True,
) -> dict[str, Any]:
    """Write ``frontier.md`` and the pictures to a folder; the object that ``stl-search report frontier --json`` prints.

    Points come from the shipped and the user's catalog, or ``dirs``. ``als`` false leaves out the line of random
    starts, which takes some seconds. Raises UsageError for an ending that is none of png, svg, pdf, or a folder that
    cannot be written.
    """
    score.check_dtype(dtype)
    if ending not in ("png", "svg", "pdf"):
        raise UsageError(f"pictures are png, svg or pdf, not {ending!r:.40}")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}") from None
    rng = np.random.default_rng(0)
    lam = 2 * score.relative_rounding(dtype) ** 2
    fronts = {shape: store.frontier(shape, dtype, dirs) for shape in shapes}
    fronts = {shape: points for shape, points in fronts.items() if points}
    if not fronts:
        raise UsageError("the catalogs hold no scheme of these shapes")
    places = {(p.rank / math.prod(s), p.error**2) for s, points in fronts.items() for p in points}
    hull = lower_hull([(0.0, 1.0), *places])
    others = rivals(rng)
    smallest = [mark(store.scheme_of(p.entry)) for p in store.frontier((2, 2, 2), dtype, dirs)]
    pictures = []
    for shape, points in fronts.items():
        volume = math.prod(shape)
        ranks = np.unique(np.linspace(1, points[-1].rank, _ALS_RANKS).astype(int)).tolist() if als else []
        lines = {
            "random-start ALS": [
                (r / volume, e) for r, e in zip(ranks, random_als(shape, ranks, dtype, rng), strict=True)
            ]
        }
        if smallest and all(side % 2 == 0 for side in shape) and shape != (2, 2, 2):
            composed = [m for m in front(shape, smallest, lam, own=False) if m.rank <= points[-1].rank]
            lines["compositions of <2,2,2>"] = sorted({(m.rank / volume, m.cost(lam)) for m in composed})
        named = folder / f"frontier_{'x'.join(map(str, shape))}.{ending}"
        _shape_picture(named, shape, dtype, points, lines, hull, dirs)
        pictures.append(str(named))
    named = folder / f"frontier_all.{ending}"
    _whole_picture(named, dtype, fronts, hull, others)
    pictures.append(str(named))
    text = folder / "frontier.md"
    text.write_text(_markdown(dtype, fronts, hull, others, ending), encoding="utf-8", newline="\n")
    news = [
        {"shape": list(s), "rank": p.rank, "id": p.entry.id}
        for s, points in fronts.items()
        for p in points
        if _is_news(s, p, hull)
    ]
    count = sum(len(points) for points in fronts.values())
    return {"dtype": dtype, "path": str(text), "pictures": pictures, "points": count, "below_hull": news}


def _is_news(shape: Shape, point: store.Point, hull: Sequence[tuple[float, float]]) -> bool:
    """Whether the point lies below the lower hull of (0, 1) and all other entries: whether it is a vertex of all."""
    return (point.rank / math.prod(shape), point.error**2) in hull


def _name(shape: Shape) -> str:
    return f"<{','.join(map(str, shape))}>"


# -- pictures ----------------------------------------------------------------------------------------------------------


def _axes(panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * panels, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def _shape_picture(
    path: Path,
    shape: Shape,
    dtype: str,
    points: Sequence[store.Point],
    lines: dict[str, list[tuple[float, float]]],
    hull: Sequence[tuple[float, float]],
    dirs: Sequence[str | os.PathLike[str]] | None,
) -> None:
    """Left: error^2 against r/mkn with its reference lines; right: the error of every dtype, on a logarithmic scale."""
    volume = math.prod(shape)
    figure, (left, right) = _axes(2)
    kept = np.array([0, *(p.rank for p in points)]) / volume
    left.plot([0, 1], [1, 0], color="0.55", linestyle="--", label="line: keep r of mkn products")
    ranks = np.arange(volume + 1)
    left.plot(ranks / volume, [score.floor(shape, int(r)) for r in ranks], color="0.75", linestyle=":", label="floor")
    left.plot(*zip(*hull, strict=True), color="tab:orange", linewidth=1, label="lower hull of all entries")
    for (label, line), style in zip(lines.items(), ("x", "s"), strict=False):
        if line:
            left.plot(*zip(*line, strict=True), style, color="0.35", markersize=4, markerfacecolor="none", label=label)
    left.plot(kept, [1, *(p.error**2 for p in points)], color="tab:blue", linewidth=0.8)
    strict = [p for p in points if not p.truncation]
    ties = [p for p in points if p.truncation]
    left.plot([p.rank / volume for p in strict], [p.error**2 for p in strict], "o", color="tab:blue", markersize=4,
              label=f"catalog, {dtype}")  # fmt: skip
    if ties:
        left.plot([p.rank / volume for p in ties], [p.error**2 for p in ties], "o", color="tab:blue", markersize=4,
                  markerfacecolor="white", label="catalog: truncation")  # fmt: skip
    left.set(xlabel="multiplications kept, r/mkn", ylabel="error²", xlim=(0, 1), ylim=(0, 1.02))
    left.set_title(f"{_name(shape)} at {dtype}")
    left.legend(fontsize=8, loc="lower left")
    left.secondary_xaxis("top", functions=(lambda x: x * volume, lambda r: r / volume)).set_xlabel("rank r", fontsize=8)
    for name in SHOWN:
        front_ = store.frontier(shape, name, dirs)
        right.plot([p.rank / volume for p in front_], [p.error for p in front_], ".-", color=_COLOURS[name],
                   linewidth=0.8, markersize=5, label=name)  # fmt: skip
    right.set(xlabel="multiplications kept, r/mkn", ylabel="error", yscale="log", xlim=(0, 1))
    right.set_title("best error at each precision")
    right.legend(fontsize=8, loc="lower left")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    _save(figure, path)


def _whole_picture(
    path: Path,
    dtype: str,
    fronts: dict[Shape, list[store.Point]],
    hull: Sequence[tuple[float, float]],
    others: Sequence[Rival],
) -> None:
    """All shapes in one: error^2 as it is and on a logarithmic scale, with the lower hull and the rivals."""
    from matplotlib import colormaps

    figure, (left, right) = _axes(2)
    palette = colormaps["tab10"]
    for axes in (left, right):
        for i, (shape, points) in enumerate(fronts.items()):
            x = [p.rank / math.prod(shape) for p in points]
            y = [p.error**2 for p in points]
            axes.plot(x, y, ".", color=palette(i % 10), markersize=5, label=_name(shape))
        axes.plot(*zip(*hull, strict=True), color="black", linewidth=0.9, label="lower hull")
        axes.grid(alpha=0.25)
        axes.set(xlabel="multiplications kept, r/mkn", ylabel="error²", xlim=(0, 1.03))
    left.plot([0, 1], [1, 0], color="0.55", linestyle="--", linewidth=0.9)
    left.set_ylim(0, 1.02)
    left.set_title(f"all shapes at {dtype}")
    left.legend(fontsize=8, loc="lower left")
    right.set_yscale("log")
    right.set_ylim(1e-6, 3.0)
    right.set_title("the same, and rivals on Gaussian data at their nominal cost")
    for rival in others:
        right.plot([rival.cost], [rival.error2], "k^", markersize=6, markerfacecolor="none")
    shown = sorted(others, key=lambda rival: -rival.error2)
    # where the frontier runs, labels stand below it
    heights = [math.log10(r.error2) if r.error2 > 1 else min(math.log10(r.error2), -1.0) for r in shown]
    thread = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.4"}
    for rival, exponent in zip(shown, _spread(heights, 0.27), strict=True):
        place = (rival.cost - 0.12, 10.0**exponent)
        right.annotate(
            rival.name, (rival.cost, rival.error2), place, fontsize=8, ha="right", va="center", arrowprops=thread
        )
    _save(figure, path)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights, descending, moved down as little as needed to keep ``gap`` between neighbours."""
    placed: list[float] = []
    for height in heights:
        placed.append(min(height, placed[-1] - gap) if placed else height)
    return placed


# -- text --------------------------------------------------------------------------------------------------------------


def _markdown(
    dtype: str,
    fronts: dict[Shape, list[store.Point]],
    hull: Sequence[tuple[float, float]],
    others: Sequence[Rival],
    ending: str,
) -> str:
    lines = [
        f"# Approximate schemes at {dtype}",
        "",
        f"Written by `stl-search report frontier --dtype {dtype}`. error² = E + 2 d² kappa is the expected relative "
        "squared error for independent entries with encoded operands rounded to the precision; the line is "
        "1 - r/mkn, what keeping r of the mkn elementary products gives, and *truncation* marks what only ties it. "
        "*hull* marks a point below the lower convex hull of all other entries of all shapes: no mixture of them is as "
        "good.",
        "",
        f"![all shapes](frontier_all.{ending})",
        "",
        f"| rival, Gaussian {_SIDE} x {_SIDE} | nominal cost | error² |",
        "|---|---|---|",
        *(f"| {r.name} | {r.cost:g} | {r.error2:.3g} |" for r in others),
        "",
    ]
    for shape, points in fronts.items():
        volume = math.prod(shape)
        lines += [f"## {_name(shape)}", "", f"![{_name(shape)}](frontier_{'x'.join(map(str, shape))}.{ending})", ""]
        lines += ["| r | r/mkn | error² | E | kappa | largest coefficient | line | | id |", "|" + "---|" * 9]
        for p in points:
            marks = ["truncation"] * p.truncation + ["hull"] * _is_news(shape, p, hull)
            largest = score.max_coefficient(store.scheme_of(p.entry))
            lines.append(
                f"| {p.rank} | {p.rank / volume:.3f} | {p.error**2:.5g} | {p.E:.5g} | {p.kappa:.4g} | {largest:.3g} "
                f"| {score.line(shape, p.rank):.4f} | {', '.join(marks)} | {p.entry.id[:8]} |"
            )
        lines += ["", "Commands:", "", "```"]
        for p in points:
            lines.append(f"{p.rank:3d} {p.entry.id[:8]}  {p.entry.provenance.get('command', '-')}")
        lines += ["```", ""]
    return "\n".join(lines)
