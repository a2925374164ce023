"""Strategy ``endurance``: long symmetric walks in the flip graph, for square shapes on which short ones stop too early.

What was measured on <5,5,5> under C3 (docs/log.md): the chance of a lower rank falls by half or so in the first twenty
million flips that a walk is at its rank, and little after that; only the last rank before the target is left within
some ten million flips or never. So a job stays as long as its rank pays, and begins from the fixed terms that serve: as
many as the target leaves over, of like size, for <5,5,5> the blocks of a partition 5 = 1 + 2 + 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from stl_search.errors import UsageError
from stl_search.scheme import Scheme
from stl_search.search import flip_starts
from stl_search.search.flipgraph import LIFTS, answer, scheme_of, terms_of
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register
from stl_search.search.ternary import MAX_SIDE, SHARE

if TYPE_CHECKING:
    from stl_search.search.flips import Walk

__all__ = ["Endurance"]

_LEAST = 5  # side: smaller shapes are done in seconds
_TIMES = 20  # as often as ``flipgraph``, whose other walks are of little use there
# Flips without a lower rank that end a job, by how many orbits the lowest rank is above the target.
_RESTING = (60_000_000, 60_000_000, 300_000_000, 250_000_000, 100_000_000)
_ABOVE = 40_000_000  # the same for all higher ranks
_CHUNK = 2_000_000  # between two looks at the clock
_BETWEEN_LIFTS = 100_000  # flips
_TRIES = 100  # starts, until one has the fixed terms that serve
_FROM_POOL = 0.5  # of the jobs, where the pool has a scheme to go on with
_GROUPS = ("cyclic", "cyclic+reverse")  # reversal leads <5,5,5> to 99 soon, and no further: for even sides alone


class Endurance:
    """Walks over Z2 under rotation, from a fresh start or from a scheme of the pool; finds are lifted as asked."""

    name = "endurance"
    symmetric = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        m, k, n = problem.shape
        fits = problem.exact and m == k == n and _LEAST <= n <= MAX_SIDE and problem.rank < n**3
        return _TIMES * SHARE if fits and _groups(problem) else 0.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        groups = _groups(problem)
        walk = _begun(problem, groups[int(rng.integers(len(groups)))], pool, rng)
        patience, margin = int(10 ** rng.uniform(4.5, 5.0)), walk.group.order * int(rng.choice([4, 8]))
        idle, resting = 0, _ABOVE
        while idle < resting and not clock.expired():
            lowest = walk.best_rank
            made = max(1, walk.run(_CHUNK, patience, margin, problem.rank))
            clock.count(made)
            idle = 0 if walk.best_rank < lowest else idle + made
            above = max(0, walk.best_rank - problem.rank) // walk.group.order
            resting = _RESTING[above] if above < len(_RESTING) else _ABOVE
            if walk.rank <= problem.rank:
                yield from _lifted(problem, walk, patience, margin, rng, clock)
                return
        yield scheme_of(problem.shape, walk.terms(best=True))


def _groups(problem: Problem) -> tuple[str, ...]:
    """The symmetries to choose from: the one asked for where walks know it, or those that serve."""
    names = (problem.symmetry,) if problem.symmetry else _GROUPS[: 1 + (problem.shape[0] % 2 == 0)]
    try:
        for name in names:
            flip_starts.check(name, problem.shape)
    except UsageError:
        return ()
    return names


def _begun(problem: Problem, symmetry: str, pool: Pool, rng: np.random.Generator) -> Walk:
    """From a scheme of the pool, whole orbits above the target and not at the last rank before it, or a fresh one."""
    from stl_search.search.flips import Walk

    group = flip_starts.group_of(symmetry, problem.shape)
    if rng.random() < _FROM_POOL:
        for rank in pool.material_ranks(problem.shape):
            if rank <= problem.rank + group.order or (rank - problem.rank) % group.order:
                continue
            forms = [flip_starts.orbits_of(terms_of(s), group) for s in pool.material(problem.shape, rank)]
            known = [form for form in forms if form is not None and len(form[0])]
            if known:
                return Walk(*known[int(rng.integers(len(known)))], group, rng)
    for _ in range(_TRIES):
        orbits, fixed = flip_starts.start(symmetry, problem.shape, problem.rank, rng)
        sizes = [int(term[0]).bit_count() for term in fixed]
        if sizes and (problem.rank - len(sizes)) % group.order == 0 and max(sizes) <= min(sizes) + 1:
            break
    return Walk(orbits, fixed, group, rng)


def _lifted(
    problem: Problem, walk: Walk, patience: int, margin: int, rng: np.random.Generator, clock: Clock
) -> Iterator[Scheme]:
    """The walk's scheme over the ring of the problem, or a later one of the rank; failing these, as material."""
    for attempt in range(LIFTS + 1):
        if walk.rank <= problem.rank:
            scheme = scheme_of(problem.shape, walk.terms())
            found = answer(problem, scheme, rng)
            if found is not None:
                yield found
                return
            if attempt in (0, LIFTS):
                yield scheme
        if clock.expired():
            return
        clock.count(walk.run(_BETWEEN_LIFTS, patience, margin))


register(Endurance())
