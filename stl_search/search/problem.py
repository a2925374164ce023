"""What is looked for (``Problem``), and the sets of schemes met on the way (``Pool``)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from stl_search import rings, score
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape, parse_shape

__all__ = ["DEVICES", "Entry", "Pool", "Problem", "check_series", "cost", "density", "drawn", "ranks_near"]

_Item = TypeVar("_Item")
STARTS = ("none", "shipped", "catalog")
DEVICES = ("auto", "cpu", "cuda")
COEFFICIENTS = ("any", "sparse", "grid", "sparse+w", "grid+w")
LEAST = 1.0  # seconds that must be left for a slice of a campaign or a frontier to begin
THRIFT = 0.25  # schemes with cheap coefficients are compared by error^2 * (1 + THRIFT * share of non-zeros)


def check_series(time: float, seed: int, workers: int | None) -> None:
    """Raises UsageError where a series of slices, a campaign or a frontier, cannot run: in less time than one needs."""
    if not (time >= LEAST and math.isfinite(time)):
        raise UsageError(f"time is {time}, must be a number of seconds, {LEAST:g} at least")
    if seed < 0:
        raise UsageError(f"seed is {seed}, must be an integer >= 0")
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}, must be >= 1")


@dataclass(frozen=True)
class Problem:
    """A scheme of ``shape`` <m,k,n> with at most ``rank`` products over ``ring``, best at ``dtype`` when approximate.

    ``symmetry`` (see ``stl_search.search.symmetry.action``) asks for schemes that a group leaves invariant; ``device``
    ("cpu" or "cuda") is where strategy ``batch`` computes.
    ``symmetry`` (see ``stl_search.search.symmetry.action``) asks for schemes that a group leaves invariant.
    ``coefficients`` "sparse" asks for few non-zeros in u and v, "grid" for coefficients 0, +-1/4, +-1/2, +-1, +-2 and
    few non-zeros there; "+w" for the same in w, on the grid up to one scale a term.

    Raises UsageError for an unknown ring, dtype, start or wish for coefficients, and for a rank below 1.
    """

    shape: Shape
    rank: int
    ring: str = "R"
    dtype: str = "bf16"
    seed: int = 0
    starts: str = "none"
    strategies: tuple[str, ...] = ()
    symmetry: str = ""
    device: str = "cpu"
    coefficients: str = "any"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", parse_shape(self.shape))
        object.__setattr__(self, "ring", rings.get(self.ring).name)
        score.check_dtype(self.dtype)
        if self.ring == "C":
            raise UsageError("discover searches over R, Q, Z, ZT and Z2; C is not searched yet")
        if not isinstance(self.rank, int) or self.rank < 1:
            raise UsageError(f"rank is {self.rank!r}, must be an integer >= 1")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"seed is {self.seed!r}, must be an integer >= 0")
        if self.starts not in STARTS:
            raise UsageError(f"unknown starts {self.starts!r}; known: {', '.join(STARTS)}")
        if self.coefficients not in COEFFICIENTS:
            raise UsageError(f"unknown coefficients {self.coefficients!r:.40}; known: {', '.join(COEFFICIENTS)}")
        if self.thrifty and (self.exact or self.symmetry):
            raise UsageError("cheap coefficients are searched over R and without --symmetry")

    @property
    def exact(self) -> bool:
        """Whether an exact scheme is asked for (rings Z2, ZT, Z, Q)."""
        return rings.get(self.ring).exact

    @property
    def lam(self) -> float:
        """2 d(dtype)^2: the weight of the noise gain in error(dtype)^2."""
        return 2 * score.relative_rounding(self.dtype) ** 2

    @property
    def thrifty(self) -> tuple[int, ...]:
        """The factors that are to have cheap coefficients: none, (0, 1) for u and v, or (0, 1, 2)."""
        return () if self.coefficients == "any" else (0, 1, 2) if self.coefficients.endswith("+w") else (0, 1)

    @property
    def volume(self) -> int:
        """m*k*n."""
        m, k, n = self.shape
        return m * k * n

    def key(self, workers: int, version: str) -> str:
        """16 hex digits that name this search; the budget is no part, so that a longer one goes on from a shorter."""
        fields = [
            self.shape,
            self.rank,
            self.ring,
            self.dtype if not self.exact else "",
            self.seed,
            self.starts,
            self.strategies,
            self.symmetry,
            workers,
            version,
        ]
        more = ([self.device] if self.device != "cpu" else []) + ([self.coefficients] if self.thrifty else [])
        text = json.dumps(fields + more)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def cost(problem: Problem, scheme: Scheme) -> float:
    """What is minimised at a given rank: error(dtype)^2 over R, the number of additions over exact rings."""
    if problem.exact:
        return float(score.additions(scheme))
    return score.expected_error(scheme) + problem.lam * score.noise_gain(scheme)


def density(factors: Sequence[npt.NDArray[Any]]) -> float:
    """The share of non-zeros in all the factors together.

    >>> density([np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]])])
    0.25
    """
    return sum(int(np.count_nonzero(f)) for f in factors) / max(1, sum(f.size for f in factors))


def drawn(ordered: Sequence[_Item], rng: np.random.Generator) -> _Item:
    """One of a sequence that has the best first: the first with probability .35, each next one of what is left.

    >>> drawn([3.5], np.random.default_rng(0))
    3.5
    """
    return ordered[min(len(ordered), int(rng.geometric(0.35))) - 1]


def ranks_near(problem: Problem) -> range:
    """The ranks among which schemes are exchanged: more above the asked one, since walking down helps more."""
    return range(max(1, problem.rank - 4), min(problem.volume, problem.rank + max(6, problem.rank // 5)) + 1)


def _price(problem: Problem, scheme: Scheme, cost: float) -> float | None:
    """The cost with what non-zeros add to it; None for coefficients that were not asked for."""
    if not problem.thrifty:
        return None
    factors = [f.reshape(scheme.rank, -1) for f in scheme.as_float()]
    if problem.coefficients.startswith("grid"):
        if not (score.on_grid(factors[0]) and score.on_grid(factors[1])):
            return None
        if 2 in problem.thrifty and not score.on_grid(factors[2], scaled=True):
            return None
    return cost * (1 + THRIFT * density([factors[p] for p in problem.thrifty]))


@dataclass(frozen=True, order=True)
class Entry:
    """A scheme in a pool; ordered by cost, then content id, so that order never depends on time."""

    cost: float
    id: str
    scheme: Scheme = field(compare=False)
    strategy: str = field(compare=False, default="")


class Pool:
    """The best schemes met so far, a few for each (shape, rank); equal costs (to 1e-6) count as the same basin.

    Schemes over Z2 are kept as ``material`` too; in a search over another ring they are nothing else. Where cheap
    coefficients are asked for, schemes that have them are kept in cells of their own too, priced by their non-zeros,
    and are the only answers. A pool is a deterministic function of the sequence of ``add`` calls.
    """

    capacity = 16

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._cells: dict[tuple[Shape, int], list[Entry]] = {}
        self._thrifty: dict[tuple[Shape, int], list[Entry]] = {}
        self._material: dict[tuple[Shape, int], dict[str, Scheme]] = {}

    def would_take(self, shape: Shape, rank: int, cost: float) -> bool:
        """Whether a scheme of that cost would enter."""
        return self._fits(self._cells.get((shape, rank), []), cost)

    def _fits(self, cell: list[Entry], cost: float) -> bool:
        if any(abs(cost - e.cost) <= 1e-6 * max(cost, 1e-12) for e in cell):
            return False
        return len(cell) < self.capacity or cost < cell[-1].cost

    def wants(self, scheme: Scheme, cost: float) -> bool:
        """Whether ``add`` would take the scheme in."""
        if scheme.ring.characteristic and scheme.id not in self._material.get((scheme.shape, scheme.rank), {}):
            return True
        if not self._answers(scheme):
            return False
        price = _price(self.problem, scheme, cost)
        if price is not None and self._fits(self.thrifty_cell(scheme.shape, scheme.rank), price):
            return True
        return self.would_take(scheme.shape, scheme.rank, cost)

    def _answers(self, scheme: Scheme) -> bool:
        """Whether the scheme is one over the ring of the problem: over Z2 it is no scheme over any other ring."""
        return not scheme.ring.characteristic or self.problem.ring == "Z2"

    def _keep(self, entry: Entry) -> bool:
        """Keep a Z2 scheme as material, in the place of the oldest one; says whether it was new."""
        if not entry.scheme.ring.characteristic:
            return False
        kept = self._material.setdefault((entry.scheme.shape, entry.scheme.rank), {})
        if entry.id in kept:
            return False
        kept[entry.id] = entry.scheme
        if len(kept) > self.capacity:
            del kept[next(iter(kept))]
        return True

    def material(self, shape: Shape, rank: int) -> list[Scheme]:
        """Schemes over Z2 to walk from, whatever the ring of the problem: the last ones met, oldest first."""
        return list(self._material.get((shape, rank), {}).values())

    def material_ranks(self, shape: Shape) -> list[int]:
        """The ranks for which there is material, ascending."""
        return sorted(r for s, r in self._material if s == shape)

    def add(self, entry: Entry) -> bool:
        """Take the entry in if it is new and good enough; says whether it was."""
        key = (entry.scheme.shape, entry.scheme.rank)
        fresh = self._keep(entry)
        if not self._answers(entry.scheme):
            return fresh
        price = _price(self.problem, entry.scheme, entry.cost)
        if price is not None and self._enter(self._thrifty, key, replace(entry, cost=price)):
            fresh = True
        return self._enter(self._cells, key, entry) or fresh

    def _enter(self, cells: dict[tuple[Shape, int], list[Entry]], key: tuple[Shape, int], entry: Entry) -> bool:
        """Put an entry into its cell, if it fits there; says whether it did."""
        cell = cells.get(key, [])
        if not self._fits(cell, entry.cost):
            return False
        cells[key] = sorted([*cell, entry])[: self.capacity]
        return True

    def cell(self, shape: Shape, rank: int) -> list[Entry]:
        """The entries of that shape and rank, best first."""
        return self._cells.get((shape, rank), [])

    def thrifty_cell(self, shape: Shape, rank: int) -> list[Entry]:
        """The entries of that shape and rank that have the cheap coefficients asked for, by price, the lowest first."""
        return self._thrifty.get((shape, rank), [])

    def ranks(self, shape: Shape) -> list[int]:
        """The ranks present for a shape, ascending."""
        return sorted(r for s, r in self._cells if s == shape)

    def best(self, shape: Shape, rank: int) -> Entry | None:
        """The best entry of at most that rank: least cost over R, least rank and then additions over exact rings.

        Where cheap coefficients are asked for: the least price of those that have them, as its cost.
        """
        cells = self._thrifty if self.problem.thrifty else self._cells
        found = [cells[s, r][0] for s, r in sorted(cells) if s == shape and r <= rank]
        if not found:
            return None
        if self.problem.exact:
            return min(found, key=lambda e: (e.scheme.rank, e))
        return min(found)

    def __iter__(self) -> Iterator[Entry]:
        for key in sorted(self._cells):
            yield from self._cells[key]

    def describe(self) -> dict[str, Any]:
        """{"m,k,n r": best cost}, for messages and tests."""
        return {f"{','.join(map(str, s))} {r}": c[0].cost for (s, r), c in sorted(self._cells.items())}
