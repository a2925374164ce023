"""Strategy ``relax``: a scheme made for one precision, followed to what it becomes at another one.

The best scheme of bf16 is seldom that of fp32: where rounding weighs less, coefficients may grow, and near-border
schemes become ever more exact with them (<3,3,3> of rank 20 has E of .020 at the weight of bf16, .0013 at that of
fp32). Going over at once ends in another basin, or in the plateau between: the weight of the noise gain is changed in
small steps, from the one that the start is stationary at, with Levenberg-Marquardt at each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.decompose import Batch
from stl_search.scheme import Scheme, Shape
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register

__all__ = ["Relax", "between", "followed", "suited"]

_FEW = 4  # schemes that a job follows
_LEAST = 1e-16  # weight below which rounding in float64 is what is left
_MOST = 1e-1  # far above that of fp8
_STEP = 10**0.5  # factor between two weights
_STEPS = 60  # at each weight, at most
_TOLERANCE = 1e-5  # relative gain below which the next weight is due


class Relax:
    """The best few schemes of the pool that have the asked rank, one after another; there is no chance in it."""

    name = "relax"
    on_request = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        return float(not problem.exact and not problem.thrifty and bool(pool.cell(problem.shape, problem.rank)))

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, lam = problem.shape, problem.lam
        for entry in list(pool.cell(shape, problem.rank))[:_FEW]:
            batch = decompose.balance(decompose.batch_of([entry.scheme]))
            yield decompose.scheme_of(shape, followed(shape, batch, suited(shape, batch, lam), lam, clock))
            if clock.expired():
                return


def suited(shape: Shape, batch: Batch, other: float) -> float:
    """The weight of the noise gain at which a batch of one is nearest to stationary; ``other`` where none is.

    With g the gradient of |T - S|^2 and h that of the noise gain, |g + lam h| is least at lam = -<g, h>/<h, h>.
    """
    member = (batch[0][0], batch[1][0], batch[2][0])
    plain = decompose.normal_equations(shape, member, 0.0)[1]
    gain = decompose.normal_equations(shape, member, 1.0)[1] - plain
    square = float(gain @ gain)
    best = -float(plain @ gain) / square if square else 0.0
    return min(_MOST, max(_LEAST, best)) if best > 0 else other


def between(first: float, lam: float) -> list[float]:
    """Weights from one to another, up or down, by equal factors of at most 10^.5; without the first one.

    >>> [f"{x:.1e}" for x in between(1e-6, 1e-7)], between(1e-6, 1e-6)
    (['3.2e-07', '1.0e-07'], [1e-06])
    """
    stages = math.ceil(abs(math.log(lam / first, _STEP)))
    return [*(float(x) for x in np.geomspace(first, lam, stages + 1)[1:-1]), lam]


def followed(shape: Shape, batch: Batch, first: float, lam: float, clock: Clock) -> Batch:
    """The optimum (batch of one) at the weight ``lam`` that one at the weight ``first`` leads to."""
    for weight in between(first, lam):
        batch, _ = decompose.levenberg_marquardt(
            shape, batch, weight, _STEPS, 1e-3, tolerance=_TOLERANCE, stop=clock.expired
        )
        if clock.expired():
            break
    return batch


register(Relax())
