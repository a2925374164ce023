"""The best ranks known of exact schemes, by shape and ring, each with its source: the data of ``known_ranks.json``.

A rank is an upper bound that somebody has reached, not a proof that it cannot be beaten (those: ``search.bounds``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from stl_search import rings
from stl_search.errors import UsageError
from stl_search.scheme import Shape, parse_shape

__all__ = ["RINGS", "Known", "border", "rank", "shapes", "sources"]

RINGS = ("Z2", "ZT", "Z", "Q")


@dataclass(frozen=True)
class Known:
    """A rank that is reached, the key of its source (see ``sources``), and a remark, mostly empty."""

    rank: int
    source: str
    note: str = ""


@cache
def _data() -> dict[str, Any]:
    text = resources.files("stl_search").joinpath("known_ranks.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _table() -> dict[Shape, dict[str, Any]]:
    return {parse_shape(row["shape"]): row for row in _data()["shapes"]}


def sources() -> dict[str, str]:
    """Key -> citation."""
    return dict(_data()["sources"])


def shapes() -> list[Shape]:
    """The shapes of the table, sides ascending."""
    return sorted(_table())


def rank(shape: Iterable[int], ring: str) -> Known | None:
    """The best known rank of exact schemes of <m,k,n>, in any order of sides, over ``ring``; None where none is listed.

    Raises UsageError for a ring that is not exact.

    >>> rank((4, 4, 4), "Z2").rank, rank((4, 4, 4), "Z").rank, rank((5, 2, 4), "Q").source
    (47, 49, 'alphaevolve-2025')
    """
    name = rings.get(ring).name
    if name not in RINGS:
        raise UsageError(f"no ranks are listed over {name}; known rings: {', '.join(RINGS)}")
    return _known(shape, name)


def border(shape: Iterable[int]) -> Known | None:
    """The least rank of an explicit border-rank scheme of <m,k,n>, where one below the rank is listed."""
    return _known(shape, "border")


def _known(shape: Iterable[int], column: str) -> Known | None:
    low, middle, high = sorted(shape)
    row = _table().get((low, middle, high), {})
    if column not in row:
        return None
    number, source = row[column]
    note = _data()["notes"].get(f"{low},{middle},{high}", "") if column == "border" else ""
    return Known(number, source, note)
