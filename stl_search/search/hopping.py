"""Strategy ``hopping``: walks from basin to basin at one rank, by new terms or a shake and alternating least squares.

A hop puts one to four random terms in the place of others, or shakes all, fits afresh under a weight of the noise gain
that falls to the asked one, and is kept if the error is then below what it was plus a random allowance. The walk is
basin hopping (Wales and Doye, "Global optimization by basin-hopping", J. Phys. Chem. A 101, 1997) with exponential
allowances, which is Metropolis's rule. Fits are compiled and cheap, some 1 to 30 ms, and need not be good: a walk makes
hundreds, and what it meets at best is fitted to its last digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.decompose import Floats
from stl_search.scheme import Scheme, Shape
from stl_search.search.deflate import dropped, picked
from stl_search.search.numeric import variables
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register

__all__ = ["Hopping", "hops_of", "walked"]

_Factors = tuple[Floats, Floats, Floats]  # with the products innermost, as ``alternating`` has them

_MOST = 8000  # unknowns; a fit of <5,5,5> of rank 93 takes a second
_FALLING, _SWEEPS = 200, 600  # sweeps of a fit: while the weight falls, and at the asked one
_WORK, _LONGEST, _SHORTEST = 4e6, 400, 8  # multiplications of a sweep times hops of a walk; hops
_LAST = 20000  # sweeps of the last fit, at most
_SIZE = 0.6  # standard deviation of new entries
_HIGHEST, _LOWEST = 3e-2, 3e-5  # the weights from which it falls, by halves
_WARMEST, _COOLER = 3e-3, 6  # mean allowance, as error^2: this, or down to so many halvings of it, less one
_TURNS = 150  # hops without a new best after which the walk goes back to it


class Hopping:
    """A walk from a scheme of the pool at the asked rank, from a neighbouring rank's with a term less or more, or from
    nothing."""

    name = "hopping"

    def weight(self, problem: Problem, pool: Pool) -> float:
        fits = not problem.exact and not problem.thrifty and not problem.symmetry
        return 4.0 if fits and variables(problem.shape, problem.rank) <= _MOST else 0.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, rank, lam = problem.shape, problem.rank, problem.lam
        factors = self._start(problem, pool, rng)
        allowance = math.ldexp(_WARMEST, -int(rng.integers(_COOLER)))
        factors, value = walked(shape, factors, lam, hops_of(shape, rank), allowance, rng, clock)
        if pool.would_take(shape, rank, value):
            if not clock.expired():
                from stl_search.search.alternating import fitted

                fitted(shape, factors, lam, _LAST, least=1e-9 * value * problem.volume)
            u, v, w = factors
            yield decompose.scheme_of(shape, (u.T[None], v.T[None], w.T[None]))

    def _start(self, problem: Problem, pool: Pool, rng: np.random.Generator) -> _Factors:
        ranks, rank = pool.ranks(problem.shape), problem.rank
        choices = [(rank, 6.0), (rank + 1, 1.0), (rank - 1, 1.0)]
        choices = [(0, 1.0), *((r, share) for r, share in choices if r in ranks)]
        shares = np.array([share for _, share in choices])
        source = choices[int(rng.choice(len(choices), p=shares / shares.sum()))][0]
        if source == 0:
            batch = decompose.random_batch(problem.shape, rank, 1, rng, _SIZE)
            return _inward((batch[0][0], batch[1][0], batch[2][0]))
        u, v, w = picked(problem, pool, source, rng)
        if source > rank:
            u, v, w = dropped((u, v, w), problem.lam, rng)
        elif source < rank:
            more = decompose.random_batch(problem.shape, 1, 1, rng, _SIZE)
            u, v, w = (np.vstack([f, new[0]]) for f, new in zip((u, v, w), more, strict=True))
        return _inward((u, v, w))


def _inward(factors: _Factors) -> _Factors:
    u, v, w = (np.array(f.T, dtype=np.float64, order="C") for f in factors)
    return u, v, w


def hops_of(shape: Shape, rank: int) -> int:
    """How many hops a walk of about two seconds has.

    >>> hops_of((3, 3, 3), 9), hops_of((4, 4, 4), 40)
    (400, 18)
    """
    m, k, n = shape
    rows = m * k + k * n + m * n
    sweep = rank * rank * (rank + 2 * rows) + 3 * rank * m * k * n
    return max(_SHORTEST, min(_LONGEST, round(_WORK / sweep)))


def walked(
    shape: Shape, factors: _Factors, lam: float, hops: int, allowance: float, rng: np.random.Generator, clock: Clock
) -> tuple[_Factors, float]:
    """The best that a walk meets, the start among it, and its error^2; factors u (mk, r), v (kn, r), w (mn, r).

    A hop is kept if it leaves error^2 below that of where it began plus ``allowance`` times an exponential variable.
    """
    from stl_search.search.alternating import fitted

    volume, rank = math.prod(shape), factors[0].shape[1]
    lam = float(np.float32(lam))  # the same on all machines, as all else is
    fewest, most = (max(0, math.frexp(end / lam)[1] - 1) for end in (_LOWEST, _HIGHEST))
    place = _copy(factors)
    here = fitted(shape, place, lam, 10 * _SWEEPS, least=1e-7 * volume)
    best, least, idle = place, here, 0
    for _ in range(hops):
        if clock.expired():
            break
        trial = _copy(place)
        if rng.random() < 0.75:
            for q in rng.integers(rank, size=int(rng.integers(1, 5))):
                for f in trial:
                    f[:, q] = _SIZE * rng.standard_normal(len(f))
        else:
            noise = math.ldexp(_SIZE, -int(rng.integers(1, 6)))
            for f in trial:
                f += noise * rng.standard_normal(f.shape)
        halvings = int(rng.integers(fewest, most + 1))
        limit = here + allowance * volume * float(rng.exponential())
        value = fitted(
            shape,
            trial,
            lam,
            _SWEEPS,
            halvings=halvings,
            falling=_FALLING // max(1, halvings),
            least=min(2e-5 * volume, 1e-3 * here),
            limit=limit,
        )
        idle += 1
        if value < limit:
            place, here = trial, value
            if here < least:
                idle = 0 if here < (1 - 1e-4) * least else idle
                best, least = place, here
        if idle >= _TURNS:
            place, here, idle = best, least, 0
    return best, least / volume


def _copy(factors: _Factors) -> _Factors:
    u, v, w = (f.copy() for f in factors)
    return u, v, w


register(Hopping())
