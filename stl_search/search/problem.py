"""What is looked for (``Problem``), and the sets of schemes met on the way (``Pool``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stl_search import rings, score
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape, parse_shape

__all__ = ["DEVICES", "Entry", "Pool", "Problem", "cost", "ranks_near"]

STARTS = ("none", "shipped", "catalog")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Problem:
    """A scheme of ``shape`` <m,k,n> with at most ``rank`` products over ``ring``, best at ``dtype`` when approximate.

    ``symmetry`` (see ``stl_search.search.symmetry.action``) asks for schemes that a group leaves invariant; ``device``
    ("cpu" or "cuda") is where strategy ``batch`` computes.

    Raises UsageError for an unknown ring, dtype or start, and for a rank below 1.
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

    @property
    def exact(self) -> bool:
        """Whether an exact scheme is asked for (rings Z2, ZT, Z, Q)."""
        return rings.get(self.ring).exact

    @property
    def lam(self) -> float:
        """2 d(dtype)^2: the weight of the noise gain in error(dtype)^2."""
        return 2 * score.relative_rounding(self.dtype) ** 2

    @property
    def volume(self) -> int:
        """m*k*n."""
        m, k, n = self.shape
        return m * k * n

    def key(self, workers: int, version: str) -> str:
        """16 hex digits that name this search; the budget is no part, so that a longer one goes on from a shorter."""
        text = json.dumps(
            [
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
            + ([self.device] if self.device != "cpu" else [])
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def cost(problem: Problem, scheme: Scheme) -> float:
    """What is minimised at a given rank: error(dtype)^2 over R, the number of additions over exact rings."""
    if problem.exact:
        return float(score.additions(scheme))
    return score.expected_error(scheme) + problem.lam * score.noise_gain(scheme)


def ranks_near(problem: Problem) -> range:
    """The ranks among which schemes are exchanged: more above the asked one, since walking down helps more."""
    return range(max(1, problem.rank - 4), min(problem.volume, problem.rank + max(6, problem.rank // 5)) + 1)


@dataclass(frozen=True, order=True)
class Entry:
    """A scheme in a pool; ordered by cost, then content id, so that order never depends on time."""

    cost: float
    id: str
    scheme: Scheme = field(compare=False)
    strategy: str = field(compare=False, default="")


class Pool:
    """The best schemes met so far, a few for each (shape, rank); equal costs (to 1e-6) count as the same basin.

    Schemes over Z2 are kept as ``material`` too; in a search over another ring they are nothing else. A pool is a
    deterministic function of the sequence of ``add`` calls.
    """

    capacity = 16

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._cells: dict[tuple[Shape, int], list[Entry]] = {}
        self._material: dict[tuple[Shape, int], dict[str, Scheme]] = {}

    def would_take(self, shape: Shape, rank: int, cost: float) -> bool:
        """Whether a scheme of that cost would enter."""
        cell = self._cells.get((shape, rank), [])
        if any(abs(cost - e.cost) <= 1e-6 * max(cost, 1e-12) for e in cell):
            return False
        return len(cell) < self.capacity or cost < cell[-1].cost

    def wants(self, scheme: Scheme, cost: float) -> bool:
        """Whether ``add`` would take the scheme in."""
        if scheme.ring.characteristic and scheme.id not in self._material.get((scheme.shape, scheme.rank), {}):
            return True
        return self._answers(scheme) and self.would_take(scheme.shape, scheme.rank, cost)

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
        if not self.would_take(*key, entry.cost):
            return fresh
        cell = self._cells.setdefault(key, [])
        cell.append(entry)
        cell.sort()
        del cell[self.capacity :]
        return True

    def cell(self, shape: Shape, rank: int) -> list[Entry]:
        """The entries of that shape and rank, best first."""
        return self._cells.get((shape, rank), [])

    def ranks(self, shape: Shape) -> list[int]:
        """The ranks present for a shape, ascending."""
        return sorted(r for s, r in self._cells if s == shape)

    def best(self, shape: Shape, rank: int) -> Entry | None:
        """The best entry of at most that rank: least cost over R, least rank and then additions over exact rings."""
        found = [self._cells[shape, r][0] for r in self.ranks(shape) if r <= rank]
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
