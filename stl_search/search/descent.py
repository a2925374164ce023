"""Strategy ``descent``: from exact schemes down, a term at a time, each job by another way; for approximate schemes.

Walks among the best schemes of neighbouring ranks stay in few basins: their pools hold what was best at each rank, and
the best at one rank seldom stands above the best some ranks below. A job here begins at a nearly exact scheme of its
own (random, or moved from one of the pool by flips) and goes all the way down by the cheapest of some terms, refitted,
without a look at what is held. What decides is the number of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_search import decompose, known
from stl_search.decompose import Batch
from stl_search.scheme import Scheme, Shape
from stl_search.search.border import fading, stages
from stl_search.search.deflate import shaken
from stl_search.search.numeric import variables
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register

__all__ = ["Descent", "descend", "serves", "settled"]

_DENSE = 650  # unknowns up to which Levenberg-Marquardt takes some milliseconds a step; beyond, L-BFGS is quicker
_STARTED = 1000  # unknowns up to which a random start takes some seconds
_LARGEST = 5000  # unknowns of an exact scheme, beyond which a descent takes many minutes
_TRIED = 8  # terms, of which the best to leave out is chosen
_STARTS = 20  # random starts, until one is nearly exact
_NEARLY = 0.03  # error^2 that counts as nearly exact: less than one product of most shapes
_FLIPS = 300_000  # of a walk between exact schemes
_LEAST = 10**-7.5  # weight of the noise gain on the way
_RISE = 1.5  # of that weight with each term left out


class Descent:
    """From random starts where these are quick, exact schemes of the pool, or approximate ones above."""

    name = "descent"
    on_request = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        given = bool(_exact(pool, problem.shape) or _above(pool, problem))
        return float(not problem.exact and serves(problem.shape, problem.rank, given))

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        for rank, batch in descend(problem, pool, rng, clock):
            if rank == problem.rank:
                yield settled(problem.shape, batch, problem.lam)


def serves(shape: Shape, rank: int, given: bool) -> bool:
    """Whether descents lead to that rank, by whether a scheme to begin from is given."""
    top = _top(shape)
    return top is not None and rank < top and variables(shape, top) <= _LARGEST and (given or _random(shape, top))


def descend(problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[tuple[int, Batch]]:
    """Yields (rank, batch of one) at each rank from the start to the asked one, refitted for little noise only.

    The way does not hang on the asked rank: of two jobs with one seed one goes further than the other.
    """
    shape, lam = problem.shape, problem.lam
    weight = float(10 ** rng.uniform(np.log10(min(_LEAST, lam)), np.log10(lam)))
    batch = _start(problem, pool, weight, rng, clock)
    spread = float(rng.choice([0.1, 0.3, 0.6]))
    while batch is not None:
        rank = len(batch[0][0])
        yield rank, batch
        if rank <= problem.rank or clock.expired():
            return
        batch = _lowered(shape, batch, weight, spread, rng)
        weight = min(lam, _RISE * weight)


def settled(shape: Shape, batch: Batch, lam: float) -> Scheme:
    """The scheme that a point on the way (batch of one) becomes at the asked weight, to the last digits."""
    for weight in stages(lam, 10 * _LEAST) if lam > 10 * _LEAST else [lam]:
        batch = _fitted(shape, batch, weight, 60, 1e-4)
    if _quick(shape, len(batch[0][0])):
        batch, _ = decompose.levenberg_marquardt(shape, batch, lam, 60, 1e-3, tolerance=1e-9)
    else:
        batch, _ = decompose.refine(shape, batch, lam, 1500)
    return decompose.scheme_of(shape, batch)


def _top(shape: Shape) -> int | None:
    """The rank to begin from: the best known of exact schemes over Q."""
    found = known.rank(shape, "Q")
    return None if found is None else found.rank


def _quick(shape: Shape, rank: int) -> bool:
    return variables(shape, rank) <= _DENSE


def _random(shape: Shape, rank: int) -> bool:
    """Whether random starts of nearly exact schemes take seconds."""
    return variables(shape, rank) <= _STARTED


def _exact(pool: Pool, shape: Shape) -> list[Scheme]:
    """Schemes of the pool that are exact over the rationals, the lowest rank alone."""
    for rank in pool.ranks(shape):
        found = [e.scheme for e in pool.cell(shape, rank) if e.scheme.ring.exact and not e.scheme.ring.characteristic]
        if found:
            return found
    return []


def _above(pool: Pool, problem: Problem) -> list[Scheme]:
    """Approximate schemes of the pool that have more terms than asked for, and fewer than the exact one."""
    ranks = (r for r in pool.ranks(problem.shape) if problem.rank < r < (_top(problem.shape) or 0))
    return [e.scheme for r in ranks for e in pool.cell(problem.shape, r)]


def _start(problem: Problem, pool: Pool, weight: float, rng: np.random.Generator, clock: Clock) -> Batch | None:
    """A nearly exact scheme, refitted for the weight, or one of the pool; None where random starts reached none."""
    shape, exact = problem.shape, _exact(pool, problem.shape)
    top = _top(shape) or problem.volume
    above = _above(pool, problem)
    held = bool(above) and (rng.random() < 0.4 or not (exact or _random(shape, top)))
    if held or (exact and (not _random(shape, top) or rng.random() < 0.5)):
        scheme = above[int(rng.integers(len(above)))] if held else _moved(exact[int(rng.integers(len(exact)))], rng)
        u, v, w = (f[0] for f in decompose.balance(decompose.batch_of([scheme])))
        u, v, w = shaken((u, v, w), float(rng.choice([0.02, 0.05] if held else [0.02, 0.1, 0.2])), rng)
        return _fitted(shape, (u[None], v[None], w[None]), weight, 100, 1e-3)
    for _ in range(_STARTS):
        batch = decompose.random_batch(shape, top, 1, rng, float(rng.uniform(0.4, 1.2)))
        ridge = fading(float(10 ** rng.uniform(-3, -2)), 120)
        batch, f = decompose.levenberg_marquardt(
            shape, batch, weight, 120, 1.0, ridge, tolerance=1e-3, stop=clock.expired, single=True
        )
        if f[0] <= _NEARLY * problem.volume:
            return batch
        if clock.expired():
            break
    return None


def _moved(scheme: Scheme, rng: np.random.Generator) -> Scheme:
    """Another exact scheme of that rank, or of a lower one, some flips away; the same where flips do not apply."""
    if scheme.ring.name != "ZT":
        return scheme
    from stl_search.search.flips_ternary import TernaryWalk

    walk = TernaryWalk(scheme, rng)
    walk.run(int(rng.integers(_FLIPS)), 20_000, 3)
    for _ in range(100):
        if walk.rank <= scheme.rank:
            return walk.scheme()
        walk.run(2_000, 1 << 40, 3)
    return walk.scheme(best=True)


def _lowered(shape: Shape, batch: Batch, weight: float, spread: float, rng: np.random.Generator) -> Batch:
    """Without one term, refitted: of some that cost little the one whose loss is the least then."""
    rank = len(batch[0][0])
    costs = np.abs(decompose.drop_costs(batch, weight)[0]) * rng.lognormal(0.0, spread, rank)
    tried = np.argsort(costs, kind="stable")[:_TRIED]
    u, v, w = (np.stack([np.delete(f[0], q, axis=0) for q in tried]) for f in batch)
    if _quick(shape, rank - 1):
        trials, f = decompose.levenberg_marquardt(shape, (u, v, w), weight, 40, 1e-2, tolerance=2e-3, single=True)
    else:
        trials, f = decompose.refine(shape, (u, v, w), weight, 40)
    q = int(np.argmin(f))
    best: Batch = (trials[0][q : q + 1], trials[1][q : q + 1], trials[2][q : q + 1])
    return _fitted(shape, best, weight, 60, 1e-4)


def _fitted(shape: Shape, batch: Batch, weight: float, steps: int, tolerance: float) -> Batch:
    if _quick(shape, len(batch[0][0])):
        return decompose.levenberg_marquardt(shape, batch, weight, steps, 1e-3, tolerance=tolerance, single=True)[0]
    return decompose.refine(shape, batch, weight, 3 * steps, tolerance=1e-7)[0]


register(Descent())
