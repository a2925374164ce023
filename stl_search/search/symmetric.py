"""Strategy ``symmetric``: near-border schemes invariant under a group, found among the representatives of their orbits.

A group of order g divides the unknowns by g and the price of a step by more, so that many starts fit in a second; and
some groups lead where starts without symmetry hardly ever do. That of order 6 which rotates <4,4,4> and turns each
pair of rows, columns and inner indices by a right angle (``cyclic+C4``) leads to schemes of rank 48.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np

from stl_search import decompose
from stl_search.decompose import Floats
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.border import fading, settled, tightened
from stl_search.search.deflate import shaken as shaken_factors
from stl_search.search.invariant import Orbits, recognised
from stl_search.search.mirror import changed, turned
from stl_search.search.numeric import variables
from stl_search.search.orbit import choose_orbits
from stl_search.search.problem import Pool, Problem, drawn
from stl_search.search.representatives import Representatives
from stl_search.search.strategy import Clock, register
from stl_search.search.symmetry import Action, action
from stl_search.transform import permute_to

__all__ = ["Symmetric", "chained"]

_LARGEST = 1000  # unknowns of the representatives: a step takes a hundredth of a second
_FRESH = 1e-9  # weight of the noise gain in the first stage of a random start
_TOLERANCE = 1e-5
_HOPELESS = 1.5  # times the best error^2: a start that is above it when the coefficients are still free is left
_WORK = 500  # unknowns of starts, and of steps of a chain, that make a job of a second or two
_SCALE = 0.7  # of random coordinates
# how often each is drawn, where it fits: by what 25 seconds of each gave on <4,4,4> and 12 on smaller shapes
_OFTEN = {
    "cyclic": 2.0, "cyclic+C4": 5.0, "cyclic+C2": 1.0, "cyclic+C2:1": 1.0, "cyclic+C3": 1.0, "cyclic+C3:1": 1.0,
    "transpose": 0.5, "transpose:1": 1.0, "transpose:2": 0.5, "transpose:1+C2:1": 0.5,
    "C2": 1.0, "C2:1": 1.0, "C3": 1.0, "C4": 0.5,
}  # fmt: skip


class Symmetric:
    """Levenberg-Marquardt from almost no charge for rounding to the asked one, as ``border``, on representatives.

    The group is the problem's, or one of a short list. A job makes random starts, of which those are followed that
    promise something, or a chain of changes to a scheme of the pool; the best is also yielded with its symmetry let go.
    """

    name = "symmetric"
    symmetric = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        if problem.exact or problem.rank < 2 or min(problem.shape) == 1:
            return 0.0
        return 1.0 if _groups(problem.symmetry, _frame_shape(problem), problem.rank) else 0.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, lam = _frame_shape(problem), problem.lam
        groups = _groups(problem.symmetry, shape, problem.rank)
        often = np.array([_OFTEN.get(group.name, 1.0) for group in groups])
        group = groups[int(rng.choice(len(groups), p=often / often.sum()))]
        here = _known(problem, group, pool, rng) if rng.random() < 0.5 else None
        if here is None:
            found = self._plunged(problem, group, pool, rng, clock)
        else:
            found = chained(problem, group, here, rng, clock)
        if found is None:
            return
        frame, x = found
        batch = frame.batch(x)
        yield permute_to(decompose.scheme_of(shape, batch), problem.shape)
        if clock.expired() or problem.symmetry:
            return
        u, v, w = shaken_factors((batch[0][0], batch[1][0], batch[2][0]), float(rng.choice([0.01, 0.05, 0.1])), rng)
        first = lam * 10 ** float(rng.uniform(-2, 0))
        free = settled(shape, lam, (u[None], v[None], w[None]), first, 60, 0.0, 1e-1, clock)
        yield permute_to(free, problem.shape)

    def _plunged(
        self, problem: Problem, group: Action, pool: Pool, rng: np.random.Generator, clock: Clock
    ) -> tuple[Representatives, Floats] | None:
        """The best of some random starts; all but the first are left early when far above the best known error."""
        cell = pool.cell(problem.shape, problem.rank)
        best: tuple[float, Representatives, Floats] | None = None
        for _ in range(max(1, min(4, _WORK * group.order // variables(problem.shape, problem.rank)))):
            kinds = choose_orbits(group, problem.rank, rng)
            if kinds is None or (best is not None and clock.expired()):
                break
            frame = Representatives(group.shape, kinds)
            x = _SCALE * rng.standard_normal(frame.size)
            ridge = float(10 ** rng.uniform(-2.5, -1.5))
            x, value = _tightened(frame, x, _FRESH, _FRESH, 200, ridge, 1.0, clock)
            if best is not None:
                bound = min(best[0], cell[0].cost * problem.volume) if cell else best[0]
                if value > _HOPELESS * bound:
                    continue
            x, value = _tightened(frame, x, problem.lam, 10 * _FRESH, 60, 0.0, 1e-3, clock)
            if best is None or value < best[0]:
                best = (value, frame, x)
        return None if best is None else best[1:]


def chained(
    problem: Problem, group: Action, here: Orbits, rng: np.random.Generator, clock: Clock
) -> tuple[Representatives, Floats] | None:
    """The best of a chain, each link a change of the best so far; None where no change gives the asked rank."""
    lam, best, value = problem.lam, None, np.inf
    for _ in range(max(3, min(10, _WORK * group.order // variables(problem.shape, problem.rank)))):
        trial = changed(group, here, problem.rank, lam, rng)
        if trial is None or (best is not None and clock.expired()):
            break
        frame = Representatives(group.shape, trial.kinds)
        first, ridge = lam * 10 ** float(rng.uniform(-3.5, 0)), float(rng.choice([0.0, 1e-3, 1e-2]))
        x, new = _tightened(
            frame, np.concatenate(trial.points), lam, first, 100, ridge, float(rng.choice([1e-2, 1.0])), clock
        )
        if new < value:
            best, value, here = (frame, x), new, frame.orbits(x)
    return best


def _tightened(
    frame: Representatives,
    x: Floats,
    lam: float,
    first: float,
    steps: int,
    ridge: float,
    damping: float,
    clock: Clock,
) -> tuple[Floats, float]:
    """(x, F) after Levenberg-Marquardt, the weight of the noise gain raised from ``first`` to ``lam``."""
    state = [x]

    def solve(weight: float, iterations: int, ridge: float, damping: float) -> None:
        falling = fading(ridge, iterations) if ridge else None
        state[0], _ = frame.solved(
            state[0], weight, iterations, damping, falling, tolerance=_TOLERANCE, stop=clock.expired
        )

    tightened(lam, first, solve, steps, ridge, damping, clock)
    return state[0], frame.measure(state[0], lam)


def _frame_shape(problem: Problem) -> Shape:
    """The shape as it is, or with two equal sides as m and n, where transposition can act."""
    return problem.shape if problem.symmetry else turned(problem.shape) or problem.shape


@cache
def _groups(symmetry: str, shape: Shape, rank: int) -> tuple[Action, ...]:
    """The actions to choose from: those that fit the shape and leave few enough unknowns.

    Raises UsageError when the one asked for does not fit.
    """
    if symmetry:
        return (action(symmetry, shape),)
    found = []
    for name in _OFTEN:
        try:
            group = action(name, shape)
        except UsageError:
            continue
        if math.ceil(variables(shape, rank) / group.order) <= _LARGEST:
            found.append(group)
    return tuple(found)


def _known(problem: Problem, group: Action, pool: Pool, rng: np.random.Generator) -> Orbits | None:
    """An invariant scheme of the pool, of the asked rank or at most an orbit away from it; near and good ones first."""
    reach = [r for r in pool.ranks(problem.shape) if abs(r - problem.rank) <= group.order]
    known = [e for r in reach for e in pool.cell(problem.shape, r)]
    forms = []
    for entry in sorted(known, key=lambda e: (abs(e.scheme.rank - problem.rank), e.cost)):
        form = recognised(group, permute_to(entry.scheme, group.shape))
        if form is not None:
            forms.append(form)
        if len(forms) == 6:
            break
    return drawn(forms, rng) if forms else None


register(Symmetric())
