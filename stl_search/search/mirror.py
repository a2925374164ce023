"""Strategy ``mirror``: near-border schemes that a small group leaves invariant, then without the symmetry.

Transposition A -> D A^T D halves the unknowns of a shape with two equal sides, and near-border schemes are met there
that random starts in the whole space hardly ever reach. Shapes are turned so that the equal sides are m and n.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.decompose import Batch, Floats
from stl_search.scheme import Scheme, Shape
from stl_search.search.border import Factors, fading, tightened
from stl_search.search.deflate import shaken as shaken_factors
from stl_search.search.invariant import Orbits, added, drop_costs, expanded, recognised, shaken
from stl_search.search.numeric import variables
from stl_search.search.orbit import choose_orbits
from stl_search.search.problem import Pool, Problem, cost, drawn
from stl_search.search.strategy import Clock, register
from stl_search.search.symmetry import Action, action, span
from stl_search.transform import permute_to

__all__ = ["Mirror", "changed", "turned"]

_LARGEST = 1300  # unknowns of the whole scheme: the normal matrix is formed in full before it is projected
_FRESH = 1e-9  # weight of the noise gain in the first stage of a random start
_TOLERANCE = 1e-4
_BEST = 0.6  # one minus sign in D gave the best schemes of <3,3,3> and <4,2,4> by far (docs/log.md)
_HOPS = 2400  # unknowns times steps of a chain


class Mirror:
    """Chains of invariant Levenberg-Marquardt solutions, each from a change of the best so far, as in ``border``."""

    name = "mirror"

    def weight(self, problem: Problem, pool: Pool) -> float:
        fits = turned(problem.shape) is not None and min(problem.shape) > 1 and problem.rank > 1
        return 0.5 if fits and not problem.exact and variables(problem.shape, problem.rank) <= _LARGEST else 0.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape = turned(problem.shape)
        assert shape is not None
        forms = ["transpose:1", *(f"transpose:{p}" for p in range(max(shape) // 2 + 1) if p != 1)]
        group = action(forms[0] if rng.random() < _BEST else forms[int(rng.integers(len(forms)))], shape)
        found = self._chain(problem, group, pool, rng, clock)
        if found is None:
            return
        yield permute_to(found, problem.shape)
        if clock.expired():
            return
        u, v, w = (f.reshape(found.rank, -1) for f in found.as_float())
        start = shaken_factors((u, v, w), float(rng.choice([0.02, 0.05, 0.1, 0.2])), rng)
        first = problem.lam * 10 ** float(rng.uniform(-3, 0))
        free = _solved(shape, start, problem.lam, first, 60, 0.0, 1e-1, None, clock)
        yield permute_to(decompose.scheme_of(shape, free), problem.shape)

    def _chain(
        self, problem: Problem, group: Action, pool: Pool, rng: np.random.Generator, clock: Clock
    ) -> Scheme | None:
        rank, lam = problem.rank, problem.lam
        now = _first(problem, group, pool, rng)
        if now is None:
            return None
        best = self._fitted(problem, group, now, _FRESH, 150, float(10 ** rng.uniform(-3, -2)), 1.0, clock)
        value = cost(problem, best)
        for _ in range(max(2, min(6, _HOPS // variables(problem.shape, rank)))):
            if clock.expired():
                break
            here = recognised(group, best)
            trial = None if here is None else changed(group, here, rank, lam, rng)
            if trial is None:
                break
            first = lam * 10 ** float(rng.uniform(-3, 0))
            ridge = float(rng.choice([0.0, 1e-3, 1e-2]))
            other = self._fitted(problem, group, trial, first, 80, ridge, float(rng.choice([1e-2, 1.0])), clock)
            if cost(problem, other) < value:
                best, value = other, cost(problem, other)
        return best

    def _fitted(
        self,
        problem: Problem,
        group: Action,
        start: Orbits,
        first: float,
        steps: int,
        ridge: float,
        damping: float,
        clock: Clock,
    ) -> Scheme:
        u, v, w = (f[0] for f in expanded([start]))
        inside = span(group, list(start.kinds))
        batch = _solved(group.shape, (u, v, w), problem.lam, first, steps, ridge, damping, inside, clock)
        return decompose.scheme_of(group.shape, batch)


def turned(shape: Shape) -> Shape | None:
    """The shape with two equal sides as m and n; None when all differ.

    >>> turned((2, 4, 4)), turned((2, 3, 4))
    ((4, 2, 4), None)
    """
    orders = [(m, k, n) for m, k, n in itertools.permutations(shape) if m == n]
    return min(orders, default=None)


def _solved(
    shape: Shape,
    start: Factors,
    lam: float,
    first: float,
    steps: int,
    ridge: float,
    damping: float,
    inside: Floats | None,
    clock: Clock,
) -> Batch:
    """A batch of one after Levenberg-Marquardt within a subspace, tightened from ``first`` to ``lam``."""
    state: list[Batch] = [(start[0][None], start[1][None], start[2][None])]

    def solve(weight: float, iterations: int, ridge: float, damping: float) -> None:
        state[0], _ = decompose.levenberg_marquardt(
            shape, state[0], weight, iterations, damping, fading(ridge, iterations) if ridge else None,
            tolerance=_TOLERANCE, span=inside, stop=clock.expired,
        )  # fmt: skip

    tightened(lam, first, solve, steps, ridge, damping, clock)
    return state[0]


def _first(problem: Problem, group: Action, pool: Pool, rng: np.random.Generator) -> Orbits | None:
    """An invariant scheme of the pool at the asked rank, changed, or a random one."""
    if rng.random() < 0.5:
        known = (e.scheme for e in pool.cell(problem.shape, problem.rank))
        forms = [form for s in known if (form := recognised(group, permute_to(s, group.shape))) is not None]
        if forms:
            here = drawn(forms, rng)
            return changed(group, here, problem.rank, problem.lam, rng)
    kinds = choose_orbits(group, problem.rank, rng)
    if kinds is None:
        return None
    return Orbits(tuple(kinds), tuple(0.7 * rng.standard_normal((kind.basis.shape[1],)) for kind in kinds))


def changed(group: Action, here: Orbits, rank: int, lam: float, rng: np.random.Generator) -> Orbits | None:
    """An invariant scheme of ``rank`` terms from another one: with noise, or some orbits exchanged for others."""
    if here.rank == rank and rng.random() < 0.4:
        return shaken(here, float(rng.choice([0.05, 0.1, 0.2, 0.4])), rng)
    rest = here
    left_out = int(rng.choice([1, 1, 2, 3]))
    while (left_out > 0 or rest.rank > rank) and len(rest.kinds) > 1:
        left_out -= 1
        costs = drop_costs(rest, lam) * rng.lognormal(0.0, 1.0, len(rest.kinds))
        rest = rest.without(int(np.argmin(np.abs(costs))))
    if rest.rank > rank:
        return None
    fill = choose_orbits(group, rank - rest.rank, rng)
    return None if fill is None else shaken(added(group, rest, fill, rng), 0.05, rng)


register(Mirror())
