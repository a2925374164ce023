"""Pictures of groups: Cayley tables and character tables as heat maps, PNG or SVG by the ending of the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stl_search.errors import UsageError

if TYPE_CHECKING:
    from stl_search.groups import Group

__all__ = ["cayley_picture", "character_picture"]

_ENDINGS = (".png", ".svg", ".pdf")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure drawn without a display: no global state of matplotlib is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{target.name}: a picture ends in {', '.join(_ENDINGS)}")
    try:
        figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    return target


def cayley_picture(group: Group, path: str | os.PathLike[str]) -> Path:
    """The multiplication table (n, n) with one colour an element, rows and columns ordered by conjugacy class."""
    n = group.order
    order = np.array([g for members in group.classes for g in members])
    rank = np.empty(n, dtype=int)
    rank[order] = np.arange(n)
    size = min(12.0, max(3.0, 0.28 * n + 1.2))
    figure, axes = _figure(size, size)
    axes.imshow(rank[np.asarray(group.table)[np.ix_(order, order)]], cmap="viridis", interpolation="nearest")
    axes.set_title(f"{group.name}: Cayley table, row times column")
    labels = [str(group.labels[g]) for g in order]
    if n <= 32:
        axes.set_xticks(range(n), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(n), labels, fontsize=7)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    for edge in np.cumsum([len(members) for members in group.classes])[:-1]:
        axes.axhline(edge - 0.5, color="white", linewidth=0.6)
        axes.axvline(edge - 0.5, color="white", linewidth=0.6)
    return _save(figure, path)


def character_picture(group: Group, path: str | os.PathLike[str]) -> Path:
    """The character table (irreducibles, classes): colour is the real part over the degree, text the exact value."""
    from stl_search.groups import character_table

    table = character_table(group)
    values = np.asarray(table.complex_values)
    lines = [line.split() for line in table.format().splitlines()]
    head, rows = lines[0], lines[2:]
    k = len(values)
    figure, axes = _figure(min(14.0, 1.6 + 0.75 * k), min(12.0, 1.2 + 0.42 * k))
    scaled = values.real / np.array(table.degrees, dtype=float)[:, None]
    image = axes.imshow(scaled, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(k), head[:k], fontsize=8)
    axes.set_yticks(range(k), [row[0] for row in rows], fontsize=8)
    axes.set_title(f"{group.name}: character table")
    if k <= 24:
        for i, row in enumerate(rows):
            for j, text in enumerate(row[1 : k + 1]):
                dark = abs(scaled[i, j]) > 0.6
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, label="Re X(g) / X(1)")
    return _save(figure, path)
