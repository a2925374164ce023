"""The atlas of group hosts, docs/group_atlas.md: what every small group gives for a few shapes, beside what needs none.

Each row is a function of (seed, group, shape) alone, so that any of them can be made again by itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stl_search import decompose, groups, score
from stl_search.catalog import store
from stl_search.scheme import Scheme, Shape
from stl_search.search.constructions import simplex
from stl_search.search.group_algebra import group_algorithm, reduced
from stl_search.search.group_hosts import best_weights, catalog_products, generator, host
from stl_search.search.group_placements import independent_products, placed_scheme
from stl_search.transform import kron
from stl_search.verify import verify

__all__ = ["SHAPES", "Row", "atlas", "frontier", "row"]

SHAPES: tuple[Shape, ...] = ((2, 2, 2), (3, 3, 3), (4, 4, 4))
DTYPE = "bf16"
_SWEEPS = 80  # of alternating least squares from each start; three times as many from the best
_RANDOM = 3  # starts of the unconstrained fit, as many as full weights have
_ABOVE = 6  # ranks above the asked one from which a shipped scheme is walked down
_TIE = 1e-6  # E this close to the line is the line
_CLOSE = 1e-4  # error(bf16)^2 this close counts as the same: fits end before their last digits


@dataclass(frozen=True)
class Row:
    """One group and one shape. Figures are E for ``maps`` and error(bf16)^2 for the others; None where rank >= mkn."""

    group: groups.Group
    shape: Shape
    rank: int
    tpp: str
    maps: float
    one: float | None = None
    full: float | None = None
    frontier: float | None = None
    source: str = ""

    @property
    def line(self) -> float:
        """1 - r/mkn, or 0."""
        return score.line(self.shape, self.rank)

    @property
    def against_line(self) -> str:
        """won, tied or lost: the maps with unit weights against the line; "exact" where rank >= mkn."""
        return "exact" if self.full is None else _verdict(self.maps, self.line, _TIE)

    @property
    def against_frontier(self) -> str:
        """won, tied or lost: the better weights against the frontier; "exact" where rank >= mkn."""
        if self.full is None or self.one is None or self.frontier is None:
            return "exact"
        return _verdict(min(self.one, self.full), self.frontier, _CLOSE)

    def text(self) -> str:
        """A line of the table."""
        figures = ["-" if x is None else f"{x:.4f}" for x in (self.one, self.full, self.frontier)]
        cells = [self.group.id, self.group.name, groups.wedderburn_text(self.group), str(self.rank), self.tpp]
        cells += [f"{self.maps:.4f}", f"{self.line:.4f}", self.against_line, *figures, self.source or "-"]
        return f"| {' | '.join([*cells, self.against_frontier])} |"


_COLUMNS = ("id", "group", "R[G]", "rank", "TPP", "maps", "line", "", "one", "full", "frontier", "from", "")


def _verdict(value: float, rival: float, slack: float) -> str:
    return "won" if value < rival - slack else "tied" if value <= rival + slack else "lost"


@lru_cache(maxsize=1)
def _products() -> Callable[[int], Scheme]:
    return catalog_products("shipped")


@lru_cache(maxsize=1)
def _lam() -> float:
    return 2 * score.relative_rounding(DTYPE) ** 2


def row(group: groups.Group, shape: Shape, seed: int = 0) -> Row:
    """The row of a group and a shape: triple, maps and, below rank mkn, weights and what stands against them."""
    rng = generator(seed, group, shape)
    found = host(group, shape, rng, product_of=_products())
    plain = Row(group, shape, found.rank, found.answer, found.error)
    if found.rank >= math.prod(shape):
        return plain
    algorithm = group_algorithm(group, _products())
    one, full = (
        _squared(placed_scheme(algorithm, best_weights(algorithm, found.maps, _lam(), rng, _SWEEPS, single), _lam()))
        for single in (True, False)
    )
    best, source = frontier(shape, found.rank, seed)
    return Row(group, shape, found.rank, found.answer, found.error, one, full, best, source)


def _squared(scheme: Scheme) -> float:
    """error(bf16)^2."""
    return score.expected_error(scheme) + _lam() * score.noise_gain(scheme)


@lru_cache(maxsize=256)
def frontier(shape: Shape, rank: int, seed: int = 0) -> tuple[float, str]:
    """(error(bf16)^2, where from): the best at that rank that needs no group.

    Keeping r of the mkn products; shipped schemes of at most that rank; Kronecker products of two of them; a shipped
    scheme of a few more products walked down and refined; alternating least squares from random starts, with as many
    starts and sweeps as full weights get.
    """
    lam, volume = _lam(), math.prod(shape)
    shipped = [store.shipped_dir()]
    found = [(1 - rank / volume + lam * rank / volume, "line")]
    entries = store.candidates(shape, ring="R", dirs=shipped)
    for entry in entries:
        scheme = store.scheme_of(entry, shape)
        if scheme.rank <= rank:
            found.append((_squared(scheme), f"shipped {scheme.rank}"))
        elif scheme.rank <= rank + _ABOVE:
            batch = decompose.batch_of([reduced(scheme, rank, lam)])
            _, f = decompose.refine(shape, batch, lam, 3 * _SWEEPS)
            found.append((float(f[0]) / volume, f"shipped {scheme.rank}, walked down"))
    small = store.candidates((2, 2, 2), ring="R", dirs=shipped) if shape == (4, 4, 4) else []
    for first in small:
        for second in small:
            if first.rank * second.rank <= rank and first.id <= second.id:
                scheme = kron(store.scheme_of(first), store.scheme_of(second))
                found.append((_squared(scheme), f"kron {first.rank} x {second.rank}"))
    rng = np.random.default_rng([seed, rank, *shape])
    starts = decompose.random_batch(shape, rank, _RANDOM, rng)
    fitted = decompose.als(shape, starts, lam, _SWEEPS)
    best = int(np.argmin(decompose.objective(shape, fitted, lam)))
    last = decompose.als(shape, tuple(f[best : best + 1] for f in fitted), lam, 2 * _SWEEPS)  # type: ignore[arg-type]
    found.append((float(decompose.objective(shape, last, lam)[0]) / volume, "random starts"))
    return min(found)


def atlas(rows: Sequence[Row], command: str) -> str:
    """The text of the atlas, Markdown, from its rows and the command that makes it again."""
    shapes = sorted({r.shape for r in rows})
    parts = [_HEAD.format(command=command), "## In one table", "", *_summary(shapes, rows), ""]
    for shape in shapes:
        those = [r for r in rows if r.shape == shape]
        parts += [f"## {_name(shape)}", ""]
        parts += [*_findings(those), "", *_markdown(_COLUMNS, [r.text() for r in those]), ""]
    parts += ["## Simultaneous triples", "", _SIMULTANEOUS, "", *_simultaneous(), ""]
    parts += ["## Where groups help: as symmetries", "", _SYMMETRY, "", *_simplices(), ""]
    return "\n".join(parts)


def _name(shape: Sequence[int]) -> str:
    return f"<{','.join(map(str, shape))}>"


def _markdown(columns: Iterable[str], lines: Iterable[str]) -> list[str]:
    heads = list(columns)
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *lines]


def _summary(shapes: Iterable[Shape], rows: Sequence[Row]) -> list[str]:
    lines = []
    for shape in shapes:
        those = [r for r in rows if r.shape == shape]
        line, rival = (Counter(getattr(r, name) for r in those) for name in ("against_line", "against_frontier"))
        tpp = Counter(r.tpp for r in those)
        cells = [_name(shape), len(those), tpp["found"], tpp["undecided"], line["exact"]]
        cells += [line[x] for x in ("won", "tied", "lost")] + [rival[x] for x in ("won", "tied", "lost")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    heads = ["shape", "groups", "TPP", "undecided", "rank >= mkn"]
    heads += [f"{what} {x}" for what in ("maps", "weights") for x in ("won", "tied", "lost")]
    return _markdown(heads, lines)


def _findings(rows: Sequence[Row]) -> list[str]:
    """What the rows of one shape say, in sentences."""
    triples = [r.group.name for r in rows if r.tpp == "found"]
    smallest = next((r for r in rows if r.tpp == "found"), None)
    cheapest = min((r for r in rows if r.tpp == "found"), key=lambda r: r.rank, default=None)
    out = []
    if smallest is not None and cheapest is not None:
        out.append(
            f"Exact: {len(triples)} groups have a triple, the first {smallest.group.name} ({smallest.group.id}); the "
            f"least rank among them is {cheapest.rank} ({cheapest.group.name})."
        )
    else:
        out.append("Exact: no group has a triple.")
    for what, name in (("against_line", "Maps against the line"), ("against_frontier", "Weights against the frontier")):
        for verdict in ("won", "tied"):
            those = [f"{r.group.name} ({r.rank})" for r in rows if getattr(r, what) == verdict]
            if those:
                out.append(f"{name}, {verdict}: {', '.join(those)}.")
    return [f"- {x}" for x in out]


def _simplices() -> list[str]:
    """The orbit construction for a few sizes, proved while the atlas is made."""
    lines = []
    for n in (2, 3, 4, 5):
        scheme = simplex(n)
        rings = ", ".join(verify(scheme).rings)
        lines.append(f"| {_name(scheme.shape)} | S{n + 1} | {scheme.rank} | {n**3} | exact over {rings} |")
    return _markdown(("shape", "group", "rank", "mkn", "proved"), lines)


def _simultaneous() -> list[str]:
    """Local puzzles as one block matrix product each, exact, beside the same products by shipped schemes."""
    lines = []
    for rows, modulus, grid in _PUZZLES:
        group, triples = groups.puzzle_triples(rows, modulus)
        scheme = independent_products(group_algorithm(group, _products()), group, triples, grid)
        error = score.expected_error(scheme)
        apart = sum(_products()(len(triple[0])).rank for triple in triples)  # these are square
        sizes = ", ".join(sorted({_name([len(x) for x in triple]) for triple in triples}))
        cells = [
            " ".join("".join(map(str, x)) for x in rows),
            f"C{modulus}^{len(rows[0])}",
            f"{len(triples)} of {sizes}",
        ]
        cells += [_name(scheme.shape), str(scheme.rank), "< 1e-24" if error < 1e-24 else f"{error:.1e}"]
        lines.append(f"| {' | '.join([*cells, str(apart)])} |")
    heads = ("puzzle", "group", "products", "as one product", "rank", "E", "rank by shipped schemes")
    return _markdown(heads, lines)


_PUZZLES: tuple[tuple[list[tuple[int, ...]], int, tuple[int, int, int]], ...] = (
    ([(3, 1, 2), (1, 2, 3)], 2, (1, 2, 1)),
    ([(3, 1, 2), (1, 2, 3)], 3, (1, 2, 1)),
    ([(3, 1, 2), (1, 2, 3)], 4, (2, 1, 1)),
)

_HEAD = """# Atlas of groups as hosts of matrix products

Generated by `{command}`; a test makes some rows again. Do not edit.

For each group G and shape <m,k,n>: the entries of A and B are placed in R[G], the product is computed there block by
block (`rank`: an upper bound of the rank of R[G] over the reals, from its Wedderburn blocks; matrix blocks by the
shipped exact schemes), and C is read off by least squares.

- TPP: whether G realises <m,k,n> exactly (triple product property), decided by exhaustion; "undecided" would mean that
  the search was given up.
- maps: least E found for maps of the entries into G with unit weights (a triple has 0); annealed, an upper bound.
- line: 1 - rank/mkn, the error of keeping that many of the mkn products. "tied" is E within 1e-6 of it: as good as a
  truncation, and no better.
- one, full: error(bf16)^2 with an element and a real weight for each entry, and with a real vector of R[G] for each,
  both fitted; each of the products decoded by itself.
- frontier: error(bf16)^2 of the best at that rank without any group: the line, shipped schemes of at most that rank,
  Kronecker products of them, shipped ones walked down from a few ranks above, and random starts with as many sweeps as
  full weights had. The last column compares the better of one and full with it (1e-4 counts as tied).
- exact: the rank is not below mkn, where the classical algorithm is exact anyway; nothing is to be won there.

Full weights are a *subset* of all schemes of that rank (encoders in the row spaces of the group's transform), so that
they cannot beat the true optimum; for C2^k they are all of it, and a block M_d(R) holds <d,d,d> itself. A win over
this frontier would mean that the unconstrained search beside it was too short, not that the group knows more.
"""

_SIMULTANEOUS = """Several independent products in one R[G], from local uniquely solvable puzzles (Cohn, Kleinberg,
Szegedy and Umans 2005, section 6), put together as one block matrix product. Exact, and at these sizes much dearer:"""

_SYMMETRY = """What groups are good for at these sizes is the other side of the decomposition: schemes that a group
leaves invariant. From docs/log.md (2026-11-22, symmetry): <2,2,2> 7 is found under cyclic rotation, under S3 through
its 2-dimensional representation and under both together, <3,3,3> 23 under cyclic rotation in 1.5 s where the search
without symmetry takes 6 to 9 s. The orbit of a simplex gives an exact scheme for every size (Grochow and Moore, rank
n^3 - n + 1), proved again here:"""
