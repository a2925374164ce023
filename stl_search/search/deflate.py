"""Strategy ``deflate``: walk between neighbouring ranks; drop a term and refit, add one, exchange, or perturb."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stl_search import decompose
from stl_search.scheme import Scheme
from stl_search.search import compose
from stl_search.search.numeric import batch_size
from stl_search.search.problem import Pool, Problem, drawn, ranks_near
from stl_search.search.strategy import Clock, register

__all__ = ["Deflate", "dropped", "picked", "settled", "shaken"]

_Factors = tuple[decompose.Floats, decompose.Floats, decompose.Floats]


class Deflate:
    """Moves around the schemes of the pool, at ranks near the asked one; an improvement at one serves its neighbours.

    The first jobs, with no scheme of the shape in the pool, start from ``compose``.
    """

    name = "deflate"

    def weight(self, problem: Problem, pool: Pool) -> float:
        return 0.0 if problem.exact else 2.0 if pool.ranks(problem.shape) else 0.1

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, lam = problem.shape, problem.lam
        if not pool.ranks(shape):
            yield from compose.Compose().run(problem, pool, rng, clock)
            return
        target, move = self._choose(problem, pool, rng)
        starts = []
        size = batch_size(target)
        for _ in range(size):
            source = {"drop": target + 1, "add": target - 1}.get(move, target)
            factors = picked(problem, pool, source, rng)
            if move in ("drop", "exchange"):
                factors = dropped(factors, lam, rng)
            if move in ("add", "exchange"):
                factors = self._add(problem, factors, rng)
            if move == "split":
                factors = dropped(_split(factors, rng), lam, rng)
            noise = float(rng.choice([0.05, 0.15, 0.4])) if move == "perturb" else 0.02
            starts.append(shaken(factors, noise, rng))
        batch: decompose.Batch = tuple(np.stack([s[i] for s in starts]) for i in range(3))  # type: ignore[assignment]
        yield from settled(problem, pool, target, batch, clock)

    def _choose(self, problem: Problem, pool: Pool, rng: np.random.Generator) -> tuple[int, str]:
        """A rank to aim at and a move that some scheme of the pool allows, the likelier the more it promises.

        Dropping a term costs about 1.2/(mkn) and adding one gains about 1/(mkn); where that would beat what the pool
        holds, the move carries a good basin to its neighbours.
        """
        best = {r: pool.cell(problem.shape, r)[0].cost for r in pool.ranks(problem.shape)}
        choices: list[tuple[int, str, float]] = []
        for r in ranks_near(problem):
            near = 2.0 if r == problem.rank else 1.0
            if r in best:
                choices += [(r, "perturb", near), (r, "exchange", near), (r, "split", 0.5 * near)]
            for source, move, step in ((r + 1, "drop", 1.2), (r - 1, "add", -1.0)):
                if source in best:
                    gain = (best.get(r, 1.0) - best[source]) * problem.volume - step
                    choices.append((r, move, near * (1 + 4 * min(max(gain, 0.0), 5.0))))
        if not choices:  # everything known lies outside the window: come one step nearer
            nearest = min(best, key=lambda r: (abs(r - problem.rank), r))
            return (nearest - 1, "drop") if nearest > problem.rank else (nearest + 1, "add")
        weights = np.array([c[2] for c in choices])
        pick = choices[int(rng.choice(len(choices), p=weights / weights.sum()))]
        return pick[0], pick[1]

    def _add(self, problem: Problem, factors: _Factors, rng: np.random.Generator) -> _Factors:
        gap = decompose.residual_tensor(problem.shape, (factors[0][None], factors[1][None], factors[2][None]))[0]
        term = decompose.best_residual_term(gap, rng, starts=1, sweeps=6)
        return np.vstack([factors[0], term[0]]), np.vstack([factors[1], term[1]]), np.vstack([factors[2], term[2]])


def picked(problem: Problem, pool: Pool, rank: int, rng: np.random.Generator) -> _Factors:
    """(u, v, w), each (rank, ..), of a scheme of the pool, the likelier the better it is."""
    entry = drawn(pool.cell(problem.shape, rank), rng)
    u, v, w = (f.reshape(rank, -1) for f in entry.scheme.as_float())  # the pool may hold exact schemes too
    return u, v, w


def dropped(factors: _Factors, lam: float, rng: np.random.Generator) -> _Factors:
    """All terms but one, mostly one that costs little to leave out."""
    costs = decompose.drop_costs((factors[0][None], factors[1][None], factors[2][None]), lam)[0]
    q = int(np.argmin(costs * rng.lognormal(0.0, 0.6, len(costs))))
    return np.delete(factors[0], q, 0), np.delete(factors[1], q, 0), np.delete(factors[2], q, 0)


def shaken(factors: _Factors, noise: float, rng: np.random.Generator) -> _Factors:
    """Independent normal noise, ``noise`` times the root mean square of each factor."""
    u, v, w = (f + noise * np.sqrt((f * f).mean()) * rng.standard_normal(f.shape) for f in factors)
    return u, v, w


def _split(factors: _Factors, rng: np.random.Generator) -> _Factors:
    """One term u (x) v (x) w becomes (u + d) (x) v (x) w/2 and (u - d) (x) v (x) w/2 with a random direction d."""
    u, v, w = factors
    q = int(rng.integers(len(u)))
    d: decompose.Floats = rng.standard_normal((u.shape[1],))
    d *= np.linalg.norm(u[q]) / (np.linalg.norm(d) + 1e-300)
    return (
        np.vstack([np.delete(u, q, 0), u[q] + d, u[q] - d]),
        np.vstack([np.delete(v, q, 0), v[q], v[q]]),
        np.vstack([np.delete(w, q, 0), w[q] / 2, w[q] / 2]),
    )


def settled(
    problem: Problem, pool: Pool, rank: int, batch: decompose.Batch, clock: Clock, span: Any = None
) -> Iterator[Scheme]:
    """A batch refined in earnest, the better half first; what the pool would take to its last digits."""
    shape, lam, size = problem.shape, problem.lam, len(batch[0])
    batch, f = decompose.refine(shape, batch, lam, 120, span=span)
    if clock.expired():
        keep = np.argsort(f, kind="stable")[:2]
    else:
        keep = np.argsort(f, kind="stable")[: size // 2]
        batch, f = decompose.refine(shape, (batch[0][keep], batch[1][keep], batch[2][keep]), lam, 300, span=span)
        keep = np.argsort(f, kind="stable")[:1]
        if not clock.expired() and pool.would_take(shape, rank, float(f[keep[0]]) / problem.volume):
            # worth its last digits
            best, _ = decompose.refine(shape, (batch[0][keep], batch[1][keep], batch[2][keep]), lam, 1500, span=span)
            yield decompose.scheme_of(shape, best)
        keep = np.argsort(f, kind="stable")[1:4]
    for i in keep:
        yield decompose.scheme_of(shape, batch, int(i))


register(Deflate())
