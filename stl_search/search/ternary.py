"""Strategy ``ternary``: long random walks over {-1, 0, 1} itself, for ranks at which no scheme over Z2 lifts.

Over Z2 walks are two to four times faster and lifting is cheap, so that ``flipgraph`` comes first; but on some shapes
none of what they meet lifts (see docs/log.md), and a walk over {-1, 0, 1} meets nothing else. It is chosen by name.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from stl_search import transform
from stl_search.scheme import Scheme, Shape
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register
from stl_search.verify import first_failure

__all__ = ["MAX_SIDE", "SHARE", "Ternary", "walk"]

MAX_SIDE = 8  # a factor of 8 x 8 entries fills a word
SHARE = 300.0  # weight: others take a minute a job at sizes where this one is done in seconds, and answers wait
_FLIPS = 60_000_000  # of a job
_CHUNK = 2_000_000  # between two looks at the clock
_GROWTH = 2_000_000  # for each shape on the way from a small one
_BEST = 6  # ternary schemes of the pool among which one is chosen


class Ternary:
    """Walks from schemes over ZT of the pool; from the classical algorithm and smaller shapes where there are none."""

    name = "ternary"
    on_request = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        return SHARE if problem.exact and problem.ring != "Z2" and max(problem.shape) <= MAX_SIDE else 0.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        yield from walk(problem, pool, rng, clock, from_pool=0.9)


def walk(
    problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock, from_pool: float = 0.4
) -> Generator[Scheme, None, None]:
    """A job: a walk from the pool (that share of jobs, if it has any), the classical algorithm or smaller shapes."""
    from stl_search.search.flips_ternary import TernaryWalk

    shape, choice, patience = problem.shape, rng.random(), int(10 ** rng.uniform(4.5, 5.5))
    known = _entries(pool, shape)
    if choice < from_pool and known:
        scheme = known[int(rng.integers(len(known)))]
    else:
        m, k, n = shape if choice < from_pool + 0.1 else (min(2, side) for side in shape)
        scheme = transform.classical((m, k, n), "ZT")
    while scheme.shape != shape and not clock.expired():
        best = _entries(pool, scheme.shape)
        if best and best[0].rank < scheme.rank:
            scheme = best[int(rng.integers(sum(s.rank == best[0].rank for s in best)))]
        walker = TernaryWalk(scheme, rng)
        clock.count(walker.run(_GROWTH, patience, 2))
        scheme = walker.scheme(best=True)
        if not best or scheme.rank <= best[0].rank:
            yield scheme
        sides = [i for i in range(3) if scheme.shape[i] < shape[i]]
        grown = list(scheme.shape)
        grown[sides[int(rng.integers(len(sides)))]] += 1
        scheme = transform.extend(scheme, grown)
    walker = TernaryWalk(transform.extend(scheme, shape), rng)
    margin, done = int(rng.choice([2, 3])), 0
    while done < _FLIPS and walker.best_rank > problem.rank and not clock.expired():
        made = max(1, walker.run(min(_CHUNK, _FLIPS - done), patience, margin, problem.rank))
        done += made
        clock.count(made)
    scheme = walker.scheme(best=True)
    if first_failure(scheme):
        raise AssertionError("a walk left the matmul tensor; this is a bug")
    yield scheme


def _entries(pool: Pool, shape: Shape) -> list[Scheme]:
    """Some schemes over ZT of the pool, lowest ranks first."""
    cells = (pool.cell(shape, rank) for rank in pool.ranks(shape))
    return [e.scheme for cell in cells for e in cell if e.scheme.ring.name == "ZT"][:_BEST]


register(Ternary())
