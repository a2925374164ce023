"""Strategy ``numeric``: random starts, refined in batches; for exact rings Levenberg-Marquardt and discretisation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.discretize import discretize
from stl_search.errors import SchemeError
from stl_search.scheme import Scheme, Shape
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register

__all__ = ["Numeric", "batch_size", "discrete", "solve_approximate", "solve_exact"]

_LAST_DIGITS = 600  # up to so many unknowns a Levenberg-Marquardt step takes milliseconds
_NEARLY_EXACT = 1e-4  # |T - S|^2 of an optimum that the noise term alone keeps from being exact
_EXACT_VARIABLES = 3000  # beyond, one Levenberg-Marquardt step takes seconds and random starts hardly ever arrive


def batch_size(rank: int) -> int:
    """Starts in one batch: enough to hide the overhead of small matrices, few where each one is work by itself."""
    return max(4, min(16, 256 // rank))


def variables(shape: Shape, rank: int) -> int:
    """r(mk + kn + mn)."""
    m, k, n = shape
    return rank * (m * k + k * n + m * n)


def solve_approximate(
    shape: Shape, rank: int, lam: float, rng: np.random.Generator, polish: int = 600, clock: Clock | None = None
) -> tuple[decompose.Batch, decompose.Floats]:
    """(batch, F): random starts, first against strong noise, then the asked one, the better half polished.

    Alternating least squares with a ridge tames the start, L-BFGS goes on from there.
    """
    size = batch_size(rank)
    batch = decompose.random_batch(shape, rank, size, rng)
    batch = decompose.als(shape, batch, max(lam, 1e-3), sweeps=20, ridge=1e-2)
    batch, _ = decompose.refine(shape, batch, max(lam, 1e-3), 120)
    batch, f = decompose.refine(shape, batch, lam, 150)
    if clock is not None and clock.expired():
        return batch, f
    keep = np.argsort(f, kind="stable")[: max(1, size // 2)]
    return decompose.refine(shape, (batch[0][keep], batch[1][keep], batch[2][keep]), lam, polish)


def solve_exact(shape: Shape, rank: int, ring: str, rng: np.random.Generator, clock: Clock) -> Scheme | None:
    """One start: Levenberg-Marquardt with a ridge that fades to 0 at 60% of the steps, then discretisation; or None."""
    steps = 250
    ridge = float(rng.choice([1e-2, 2e-2]))
    batch = decompose.random_batch(shape, rank, 1, rng)
    batch, f = decompose.levenberg_marquardt(
        shape,
        batch,
        iterations=steps,
        damping=1.0,
        ridge=lambda i: ridge * max(0.0, 1 - i / (0.6 * steps)),
        goal=1e-22,
        tolerance=1e-5,
        stop=clock.expired,
    )
    if f[0] > 1e-18 or clock.expired():
        return None
    return discrete(decompose.scheme_of(shape, batch), ring, rng, clock, 25)


def discrete(scheme: Scheme, ring: str, rng: np.random.Generator, clock: Clock, attempts: int) -> Scheme | None:
    """``discretize``, or None for a solution that is not exact to the last digits; a deadline met is told the clock."""
    try:
        found = discretize(scheme, ring, rng, clock.deadline, attempts)
    except SchemeError:
        return None
    clock.expired()
    return found


def _rounded(shape: Shape, batch: decompose.Batch, rng: np.random.Generator, clock: Clock) -> Scheme | None:
    """An exact rational scheme next to a member that is nearly one, when there is one to be found."""
    batch, f = decompose.levenberg_marquardt(
        shape, batch, iterations=60, damping=1e-3, goal=1e-22, tolerance=1e-5, stop=clock.expired
    )
    if f[0] > 1e-18 or clock.expired():
        return None
    return discrete(decompose.scheme_of(shape, batch), "Q", rng, clock, 10)


class Numeric:
    """Random restarts at the asked shape and rank.

    Over R: alternating least squares, L-BFGS, and Levenberg-Marquardt for the last digits of small ones; a solution
    that is nearly exact is rounded to an exact one as well. Over exact rings: Levenberg-Marquardt with a fading ridge
    (after Smirnov 2013), then discretisation.
    """

    name = "numeric"

    def weight(self, problem: Problem, pool: Pool) -> float:
        if problem.exact:
            size = variables(problem.shape, problem.rank)
            return min(1.0, (700 / size) ** 2) if size <= _EXACT_VARIABLES else 0.0
        return 0.3 if pool.cell(problem.shape, problem.rank) else 1.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        if problem.exact:
            # small shapes take many starts a job, large ones a single start
            for _ in range(max(1, 400 // variables(problem.shape, problem.rank))):
                found = solve_exact(problem.shape, problem.rank, problem.ring, rng, clock)
                if found is not None:
                    yield found
                    return
                if clock.expired():
                    return
            return
        batch, f = solve_approximate(problem.shape, problem.rank, problem.lam, rng, clock=clock)
        order = np.argsort(f, kind="stable")
        best = (batch[0][order[:1]], batch[1][order[:1]], batch[2][order[:1]])
        if variables(problem.shape, problem.rank) <= _LAST_DIGITS and not clock.expired():
            best, _ = decompose.levenberg_marquardt(
                problem.shape, best, problem.lam, iterations=30, damping=1e-4, stop=clock.expired
            )
        yield decompose.scheme_of(problem.shape, best)
        for i in order[1:4]:
            yield decompose.scheme_of(problem.shape, batch, int(i))
        if float(decompose.objective(problem.shape, best)[0]) < _NEARLY_EXACT and not clock.expired():
            exact = _rounded(problem.shape, best, rng, clock)
            if exact is not None:
                yield exact


register(Numeric())
