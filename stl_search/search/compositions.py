"""What given approximate schemes give for larger shapes: the best Kronecker products and direct sums, rank by rank.

No scheme is formed to compare compositions. With c = <T, S>/mkn, s = |S|^2/mkn and kappa, which multiply under
Kronecker products and are averaged, weighted by volume, under direct sums, error(dtype)^2 = 1 - 2c + s + lam kappa.
"""

from __future__ import annotations

import math
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from stl_search import decompose, score, transform
from stl_search.catalog import store
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape, parse_shape
from stl_search.search.compose import Operation, splits

__all__ = [
    "Made",
    "Mark",
    "built",
    "check_work",
    "front",
    "joined",
    "lower_hull",
    "mark",
    "pareto",
    "parts_for",
    "replaced",
    "written",
]

STRATEGY = "composition"  # in the provenance of what ``written`` writes
NOISES = (1, 4, 16, 64)  # where rounding weighs as many times as much, other parts are best: see _fronts
MAX_WORK = 50_000_000  # pairs of ranks compared for one shape: <8,8,8> has a tenth and takes seconds, <10,10,10> passes


@dataclass(frozen=True)
class Made:
    """How a mark is composed: an operation on two parts, whose shapes may be permuted."""

    operation: Operation
    shapes: tuple[Shape, Shape]
    parts: tuple[Mark, Mark]


@dataclass(frozen=True)
class Mark:
    """The figures of a scheme of a sorted shape; ``source`` is the scheme, or how it is composed, or None.

    None stands for ``rank`` of the mkn elementary products.
    """

    shape: Shape
    rank: int
    c: float
    s: float
    kappa: float
    source: Scheme | Made | None = None

    def cost(self, lam: float) -> float:
        """error(dtype)^2 with lam = 2 d(dtype)^2."""
        return 1 - 2 * self.c + self.s + lam * self.kappa

    def exact(self, lam: float) -> bool:
        """Whether it computes A B up to far less than rounding adds, as what was fitted to an exact scheme does."""
        return 1 - 2 * self.c + self.s < 0.01 * lam * self.kappa

    def leaves(self) -> tuple[Scheme, ...]:
        """The schemes that it is made from."""
        if self.source is None:
            return ()
        if isinstance(self.source, Scheme):
            return (self.source,)
        return tuple({s.id: s for part in self.source.parts for s in part.leaves()}.values())


def mark(scheme: Scheme) -> Mark:
    """The mark of a real scheme.

    >>> m = mark(transform.classical((1, 2, 2)))
    >>> m.rank, m.cost(0.0)
    (4, 0.0)
    """
    u, v, w = (f.reshape(scheme.rank, -1).astype(np.float64) for f in scheme.as_float())
    m, k, n = scheme.shape
    products = np.matmul(u.reshape(-1, m, k), v.reshape(-1, k, n)).reshape(scheme.rank, -1)
    c = float((products * w).sum()) / scheme.volume
    # E itself is free of cancellation; s follows from it
    s = score.expected_error(scheme) - 1 + 2 * c
    return Mark(_sorted(scheme.shape), scheme.rank, c, s, score.noise_gain(scheme), scheme)


def check_work(shape: Shape) -> None:
    """Raises UsageError where ``front`` would compare more than MAX_WORK pairs for <m,k,n> and what it is made of.

    >>> check_work((64, 64, 64))
    Traceback (most recent call last):
    stl_search.errors.UsageError: <64,64,64> is too large to be composed: over 50000000 pairs of parts to compare
    """
    work, known, ahead = 0, set(), [_sorted(shape)]
    while ahead:
        key = ahead.pop()
        if key in known or min(key) == 1:
            continue
        known.add(key)
        for _, *parts in splits(key):
            work += math.prod(math.prod(part) + 1 for part in parts)
            ahead += map(_sorted, parts)
        if work > MAX_WORK:
            name = ",".join(map(str, shape))
            raise UsageError(f"<{name}> is too large to be composed: over {MAX_WORK} pairs of parts to compare")


def front(shape: Shape, marks: Iterable[Mark], lam: float, own: bool = True) -> list[Mark]:
    """For ranks 0 .. mkn: the best at most of that rank, of the marks given and of all that is composed of them.

    With ``own`` false marks of the shape itself are left out.
    """
    fronts: dict[Shape, list[list[Mark]]] = {}
    return _fronts(_sorted(shape), list(marks), [lam * noise for noise in NOISES], fronts, own)[0]


def _fronts(
    key: Shape, marks: Sequence[Mark], lams: Sequence[float], memo: dict[Shape, list[list[Mark]]], own: bool
) -> list[list[Mark]]:
    """``front`` for each of several lam; for the first alone where marks of the shape itself are left out.

    A Kronecker product with an exact scheme is best for the part that is best at lam times the other's kappa, so that
    parts that are best at any lam are tried; a direct sum is best for those that are best at its own.
    """
    if key in memo:
        return memo[key]
    volume = math.prod(key)
    ahead = lams if own else lams[:1]
    fronts = [[Mark(key, r, r / volume, r / volume, r / volume) for r in range(volume + 1)] for _ in ahead]
    if min(key) > 1:  # else every product is needed: a flattening has full rank, with equal singular values
        for best, lam in zip(fronts, ahead, strict=True):
            for one in marks:
                if own and one.shape == key and one.rank <= volume and one.cost(lam) < best[one.rank].cost(lam):
                    best[one.rank] = one
        seen: set[tuple[bool, frozenset[Shape]]] = set()
        for operation, *shapes in splits(key):
            kron, sides = operation == "kron", (_sorted(shapes[0]), _sorted(shapes[1]))
            if (kron, frozenset(sides)) in seen:
                continue  # the same figures, by a permutation
            seen.add((kron, frozenset(sides)))
            first, second = (_fronts(side, marks, lams, memo, True) for side in sides)
            made = shapes[0], shapes[1]
            if kron:
                _compose(fronts, operation, made, (_all(first), _all(second)), ahead)
            else:
                for best, lam, *parts in zip(fronts, ahead, first, second, strict=False):
                    _compose([best], operation, made, (parts[0], parts[1]), [lam])
        for best, lam in zip(fronts, ahead, strict=True):
            for rank in range(1, volume + 1):
                if best[rank - 1].cost(lam) <= best[rank].cost(lam):
                    best[rank] = best[rank - 1]
    if own:
        memo[key] = fronts
    return fronts


def _all(fronts: Iterable[Iterable[Mark]]) -> list[Mark]:
    """The marks of several fronts, each once."""
    return list({id(one): one for front in fronts for one in front}.values())


def _compose(
    fronts: Iterable[list[Mark]],
    operation: Operation,
    shapes: tuple[Shape, Shape],
    parts: tuple[list[Mark], list[Mark]],
    lams: Iterable[float],
) -> None:
    """Put the compositions of two lists of marks that are better into a front for each lam."""
    (c1, s1, k1), (c2, s2, k2) = ([np.array([getattr(m, f) for m in p]) for f in ("c", "s", "kappa")] for p in parts)
    r1, r2 = (np.array([m.rank for m in p]) for p in parts)
    if operation == "kron":
        c, s, kappa = (np.multiply.outer(x, y).ravel() for x, y in ((c1, c2), (s1, s2), (k1, k2)))
        rank = np.multiply.outer(r1, r2).ravel()
    else:
        share = math.prod(shapes[0]) / (math.prod(shapes[0]) + math.prod(shapes[1]))
        c, s, kappa = (np.add.outer(share * x, (1 - share) * y).ravel() for x, y in ((c1, c2), (s1, s2), (k1, k2)))
        rank = np.add.outer(r1, r2).ravel()
    order = np.argsort(rank, kind="stable")
    ranks, firsts = np.unique(rank[order], return_index=True)
    ends = [*firsts[1:], len(order)]
    for best, lam in zip(fronts, lams, strict=True):
        cost = (1 - 2 * c + s + lam * kappa)[order]
        least = np.minimum.reduceat(cost, firsts)
        for r, low, start, end in zip(ranks.tolist(), least.tolist(), firsts.tolist(), ends, strict=True):
            if r < len(best) and low < best[r].cost(lam) - 1e-12:
                at = int(order[start + int(np.argmin(cost[start:end]))])
                i, j = divmod(at, len(r2))
                made = Made(operation, shapes, (parts[0][i], parts[1][j]))
                best[r] = Mark(best[r].shape, r, float(c[at]), float(s[at]), float(kappa[at]), made)


def built(one: Mark, shape: Shape | None = None) -> Scheme:
    """The scheme over R that a mark describes, at any permutation of its shape."""
    if one.source is None:
        whole = transform.to_ring(transform.classical(one.shape), "R")
        scheme = Scheme(one.shape, "R", *(f[: one.rank] for f in whole.factors))
    elif isinstance(one.source, Scheme):
        scheme = transform.to_ring(one.source, "R")
    else:
        parts = [built(p, s) for p, s in zip(one.source.parts, one.source.shapes, strict=True)]
        scheme = reduce(getattr(transform, one.source.operation), parts)
    return scheme if shape is None else transform.permute_to(scheme, shape)


def joined(shape: Shape, rank: int, lam: float, schemes: Iterable[Scheme]) -> Scheme | None:
    """The best composition of at most that rank of the schemes given, of shapes other than this one; None without any.

    >>> half = Scheme((1, 1, 2), "R", [[1.0]], [[1.0, 0.0]], [[1.0, 0.0]])
    >>> joined((2, 2, 2), 7, 0.0, [half]) is None
    True
    """
    found = front(shape, map(mark, schemes), lam, own=False)[min(rank, math.prod(shape))]
    if not found.leaves():
        return None
    scheme = built(found, shape)
    return decompose.scheme_of(shape, decompose.batch_of([scheme])) if scheme.rank else None


def _sorted(shape: Shape) -> Shape:
    return parse_shape(sorted(shape))


def parts_for(shape: Shape, dtype: str, dirs: Iterable[str | os.PathLike[str]] | None = None) -> list[Mark]:
    """Marks of the catalog entries that a composition for <m,k,n> may use: of each smaller shape and rank the best.

    Best at the precision, and where its rounding weighs more, by NOISES. Compositions are left out: what they are made
    of serves as well, and they may be replaced.
    """
    own = sorted(shape)
    lams = [2 * score.relative_rounding(dtype) ** 2 * noise for noise in NOISES]
    best: dict[tuple[tuple[int, ...], int, float], tuple[float, store.Entry]] = {}
    for entry in store.candidates(ring="R", dirs=dirs):
        sides = sorted(entry.shape)
        fits = sides != own and sides[0] > 1 and all(a <= b for a, b in zip(sides, own, strict=True))
        fits = fits and not _composed(entry)
        if not fits or entry.E is None or entry.kappa is None:
            continue
        for lam in lams:
            key, cost = (tuple(sides), entry.rank, lam), entry.E + lam * entry.kappa
            if key not in best or cost < best[key][0]:
                best[key] = cost, entry
    entries = {entry.id: entry for _, entry in best.values()}
    return [mark(store.scheme_of(entry)) for entry in entries.values()]


def pareto(shape: Shape, dtype: str, count: int, dirs: Iterable[str | os.PathLike[str]] | None = None) -> list[Mark]:
    """At most ``count`` of the best compositions of catalog entries for <m,k,n>: each has less error than all below it.

    Those below it in rank are the other ones and the entries of the shape itself. Ranks end with the least one of an
    exact scheme: beyond it only rounding differs. The vertices of their lower convex hull come first, then those
    between, the one first that most lowers the error that is at hand, over most ranks. Raises UsageError for a shape
    that is too large.
    """
    check_work(shape)
    own = [e for e in store.candidates(shape, ring="R", dirs=dirs) if not _composed(e)]
    lam = 2 * score.relative_rounding(dtype) ** 2
    found: list[Mark] = []
    for one in front(shape, parts_for(shape, dtype, dirs), lam, own=False):
        if any(e.rank <= one.rank and e.exact for e in own) or (found and found[-1].exact(lam)):
            break
        if any(e.rank <= one.rank and e.error(dtype) ** 2 <= one.cost(lam) * (1 + 1e-6) for e in own):
            continue
        if one.leaves() and (not found or one.cost(lam) < found[-1].cost(lam) * (1 - 1e-6)):
            found.append(one)
    if len(found) <= count:
        return found
    corners = {rank for rank, _ in lower_hull([(one.rank, one.cost(lam)) for one in found])}
    chosen = set([i for i, one in enumerate(found) if one.rank in corners][:count])
    steps = [(one.rank, max(one.cost(lam), 1e-30)) for one in found]
    while len(chosen) < count:
        chosen.add(max((i for i in range(len(found)) if i not in chosen), key=lambda i: _saved(steps, chosen, i)))
    return [found[i] for i in sorted(chosen)]


def _saved(steps: Sequence[tuple[int, float]], chosen: Container[int], new: int) -> float:
    """By how much a point more lowers the logarithms of the errors at hand, summed over the ranks up to the next one.

    ``steps`` are (rank, error^2) of all points by rank; below the first one chosen a point has the error 1.
    """
    rank, cost = steps[new]
    before = next((steps[i][1] for i in range(new - 1, -1, -1) if i in chosen), 1.0)
    after = next((steps[i][0] for i in range(new + 1, len(steps)) if i in chosen), rank + 1)
    return math.log(before / cost) * (after - rank)


def lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The vertices of the falling part of the lower convex hull of points (x, y); a point on a chord is no vertex.

    >>> lower_hull([(0, 1), (0.5, 0.6), (0.5, 0.4), (1, 0), (0.25, 0.75), (1.1, 0.1)])
    [(0, 1), (0.5, 0.4), (1, 0)]
    """
    lowest = min(y for _, y in points)
    points = [p for p in points if p[0] <= min(x for x, y in points if y == lowest)]
    hull: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if hull and hull[-1][0] == x:
            continue  # the lowest of an x comes first
        while len(hull) > 1:
            (x1, y1), (x2, y2) = hull[-2:]
            if (y2 - y1) * (x - x1) < (y - y1) * (x2 - x1):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def written(one: Mark, provenance: Mapping[str, Any], out: str | os.PathLike[str]) -> str:
    """Puts a composition into a catalog folder as one ``stl-composition/1`` file; its id.

    ``provenance`` gets the strategy's name. Entries are named by id; what is composed of them on the way and
    elementary products are described in place. Raises UsageError for a mark that is not composed.
    """
    made = one.source
    if not isinstance(made, Made):
        raise UsageError("only what is composed of entries is written as a composition")
    parts = [_described(part) for part in made.parts]
    provenance = {**provenance, "strategy": STRATEGY}
    return store.load(store.add_composition(made.operation, parts, provenance, out, shapes=made.shapes)).id


def replaced(shape: Shape, kept: Iterable[str], out: str | os.PathLike[str]) -> list[Path]:
    """Deletes the compositions for <m,k,n> in a folder that this program wrote, but for those ``kept`` by id."""
    gone = [
        entry.path for entry in store.candidates(shape, dirs=[out]) if _composed(entry) and entry.id not in set(kept)
    ]
    for path in gone:
        path.unlink()
    return gone


def _composed(entry: store.Entry) -> bool:
    return entry.provenance.get("strategy") == STRATEGY


def _described(one: Mark) -> str | dict[str, Any]:
    """A part as a composition file has it."""
    if one.source is None:
        return {"op": "classical", "shape": list(one.shape), "rank": one.rank}
    if isinstance(one.source, Scheme):
        return one.source.id
    parts = [_described(part) for part in one.source.parts]
    return {"op": one.source.operation, "parts": parts, "shapes": [list(shape) for shape in one.source.shapes]}
