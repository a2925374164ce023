"""How fast walks in the flip graph are: flips a second of one core, plain, under each symmetry, and over {-1, 0, 1}."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stl_search import transform
from stl_search.errors import UsageError
from stl_search.scheme import Shape
from stl_search.search import flip_starts
from stl_search.search.flipgraph import MAX_SIDE, scheme_of, terms_of
from stl_search.verify import first_failure

if TYPE_CHECKING:
    from stl_search.search.flips import Walk
    from stl_search.search.flips_ternary import TernaryWalk

__all__ = ["SYMMETRIES", "flips"]

SYMMETRIES = ("cyclic", "transpose", "reverse", "cyclic+transpose", "cyclic+reverse")
_PATIENCE = 3000  # flips between plus-transitions, which keep a walk from places without flips


def flips(shape: Shape, seconds: float = 1.0, repeats: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for plain walks of <m,k,n> over Z2, for each symmetry that the shape allows, and for ternary walks.

    Each of ``repeats`` walks starts from (a form of) the classical algorithm and goes on for about ``seconds`` of CPU
    time; a row has the 20th, 50th and 80th percentile of flips a second. Only flips of walks whose end is a proved
    scheme are counted. Raises UsageError for a side above 8.
    """
    from stl_search.search.flips import Walk
    from stl_search.search.flips_ternary import TernaryWalk

    if max(shape) > MAX_SIDE:
        raise UsageError(f"a side of {max(shape)}: walks take sides up to {MAX_SIDE}")
    none = np.zeros((0, 3), dtype=np.uint64)
    starts = [("", terms_of(transform.classical(shape, "Z2")), none)]
    for symmetry in SYMMETRIES:
        with contextlib.suppress(UsageError):
            rng = np.random.default_rng(seed)
            starts.append((symmetry, *flip_starts.start(symmetry, shape, math.prod(shape), rng)))
    rows = []
    for symmetry, terms, fixed in starts:
        group = flip_starts.group_of(symmetry, shape)
        walks = [Walk(terms, fixed, group, np.random.default_rng([seed, repeat])) for repeat in range(repeats)]
        rows.append(_row(shape, symmetry or "none", walks, group.order, seconds))
    start = transform.classical(shape)
    ternary = [TernaryWalk(start, np.random.default_rng([seed, repeat])) for repeat in range(repeats)]
    rows.append(_row(shape, "ternary", ternary, 1, seconds))
    return rows


def _row(shape: Shape, name: str, walks: Sequence[Walk | TernaryWalk], order: int, seconds: float) -> dict[str, Any]:
    """The row of these walks, each made for about so many seconds."""
    from stl_search.search.flips import Walk

    rates, ranks = [], []
    for walk in walks:
        walk.run(1000, _PATIENCE, 2 * order)  # compiles, or reads the compiled loops from disk
        before, began = walk.flips, time.process_time()
        while time.process_time() < began + seconds:
            walk.run(1_000_000, _PATIENCE, 2 * order)
        rates.append((walk.flips - before) / (time.process_time() - began))
        end = scheme_of(shape, walk.terms()) if isinstance(walk, Walk) else walk.scheme()
        if first_failure(end) is not None:
            raise AssertionError(f"a walk on {shape} left the matmul tensor; this is a bug")
        ranks.append(walk.best_rank)
    p20, p50, p80 = (float(x) for x in np.percentile(rates, [20, 50, 80]))
    return {"shape": list(shape), "symmetry": name, "p20": p20, "p50": p50, "p80": p80, "rank": min(ranks)}
