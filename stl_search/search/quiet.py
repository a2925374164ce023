"""Strategy ``quiet``: exact schemes of small noise gain, by walks in the flip graph and then among real exact schemes.

The exact schemes of a rank form families of many dimensions, by changes of basis and beyond, and the noise gain varies
along each: from one with coefficients in {-1, 0, 1} to the least within reach it falls to about a half (<3,3,3> of rank
23 from 7.67 to 3.95), and walks end in ever other families (108 of <3,3,3>: 3.84 at best, half of them below 4.05).
Strassen's scheme goes from 4 to 2.78.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.scheme import Scheme
from stl_search.search.bounds import reached_rank
from stl_search.search.flipgraph import FlipGraph
from stl_search.search.numeric import variables
from stl_search.search.problem import Pool, Problem
from stl_search.search.relax import followed
from stl_search.search.strategy import Clock, register

__all__ = ["Quiet"]

# Between these powers of ten lies the weight of the noise gain to begin with. Under a small one steps along the exact
# schemes are short (<3,3,3> of rank 23 for fp32: 4.17 from 1e-6, 3.96 from 1e-4 and 1e-3, 3.88 from 1e-2).
_FIRST = -4.0, -2.0
_MOST = 1600  # unknowns; <3,4,4> of rank 38 has 1520, and takes five seconds


class Quiet:
    """A fresh exact scheme over {-1, 0, 1}, and what it becomes at the problem's weight of rounding."""

    name = "quiet"

    def weight(self, problem: Problem, pool: Pool) -> float:
        fits = not problem.exact and not problem.thrifty and not problem.symmetry
        if not fits or problem.rank < reached_rank(problem.shape) or variables(problem.shape, problem.rank) > _MOST:
            return 0.0
        walked = self._walked(problem)
        return float(FlipGraph().weight(walked, Pool(walked)) > 0)

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, lam = problem.shape, problem.lam
        walked = self._walked(problem)
        for scheme in FlipGraph().run(walked, Pool(walked), rng, clock):
            if scheme.shape == shape and scheme.rank <= problem.rank and not scheme.ring.characteristic:
                batch = decompose.balance(decompose.batch_of([scheme]))
                first = 10 ** float(rng.uniform(*_FIRST))
                yield decompose.scheme_of(shape, followed(shape, batch, first, lam, clock))

    @staticmethod
    def _walked(problem: Problem) -> Problem:
        """The same without an error: what the walks look for."""
        return Problem(problem.shape, problem.rank, ring="ZT", seed=problem.seed)


register(Quiet())
