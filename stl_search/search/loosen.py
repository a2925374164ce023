"""Strategy ``loosen``: what a scheme that rotation leaves invariant becomes at another precision, within rotation.

As ``relax`` does it, with a third of the unknowns, so that many more steps are to be had at each weight: near the
border rank the way down is a narrow bend, and after a few dozen steps a scheme lags behind what its weight allows.
Whoever wants the symmetry let go in the end runs ``relax`` on the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.decompose import Floats
from stl_search.scheme import Scheme
from stl_search.search.border import Rotation
from stl_search.search.numeric import variables
from stl_search.search.problem import Pool, Problem
from stl_search.search.relax import between, suited
from stl_search.search.rotation import LARGEST, known, solved
from stl_search.search.strategy import Clock, register

__all__ = ["Loosen", "loosened"]

_STEPS = 300  # at each weight, at most
_TOLERANCE = 1e-6  # relative gain below which the next weight is due
_LAST = 1000, 1e-9  # steps and tolerance at the asked weight


class Loosen:
    """The best scheme of the pool that has the asked rank and is invariant; there is no chance in it."""

    name = "loosen"
    on_request = True
    symmetric = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        m, k, n = problem.shape
        fits = m == k == n > 1 and problem.symmetry in ("", "cyclic") and not problem.exact and not problem.thrifty
        if not fits or variables(problem.shape, problem.rank) > 3 * LARGEST:
            return 0.0
        return float(bool(known(problem, pool, 0)))

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, lam = problem.shape, problem.lam
        for frame, x in known(problem, pool, 0)[:1]:
            u, v, w = frame.factors(x)
            first = suited(shape, (u[None], v[None], w[None]), lam)
            u, v, w = frame.factors(loosened(frame, x, first, lam, clock))
            yield decompose.scheme_of(shape, (u[None], v[None], w[None]))


def loosened(frame: Rotation, x: Floats, first: float, lam: float, clock: Clock) -> Floats:
    """The optimum x (r, n*n) at the weight ``lam`` that one at the weight ``first`` leads to, up or down."""
    for weight in between(first, lam)[:-1]:
        x, _ = solved(frame, x, weight, _STEPS, 0.0, 1e-3, clock, tolerance=_TOLERANCE)
    x, _ = solved(frame, x, lam, _LAST[0], 0.0, 1e-3, clock, tolerance=_LAST[1])
    return x


register(Loosen())
