"""Strategy ``orbit``: schemes invariant under a finite group, found in the linear space of their representatives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.constructions import simplex
from stl_search.search.numeric import discrete, variables
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register
from stl_search.search.symmetry import Action, OrbitType, action, orbit_types, span
from stl_search.transform import to_ring

__all__ = ["Orbit", "choose_orbits", "solve_invariant"]

_VARIABLES = 2400  # of the whole scheme: the normal matrix is formed in full before it is projected
_DEFAULT = ("cyclic", "transpose", "transpose:1", "cyclic+transpose:1")  # tried where the problem names no symmetry


def choose_orbits(group: Action, rank: int, rng: np.random.Generator) -> list[OrbitType] | None:
    """A random multiset of orbit types with ``rank`` terms in all, richer in large orbits; None when none adds up.

    Every multiset has a positive probability. Each short type is used a geometric number of times, long orbits fill up.
    """
    kinds = orbit_types(group)
    for _ in range(50):
        left, chosen = rank, list[OrbitType]()
        for i in rng.permutation(len(kinds)):
            kind = kinds[i]
            if kind.size == group.order:
                continue
            count = min(int(rng.geometric(0.4)) - 1, left // kind.size)
            chosen += [kind] * count
            left -= count * kind.size
        full = next(kind for kind in kinds if kind.size == group.order)
        chosen += [full] * (left // full.size)
        left %= full.size
        for kind in sorted(kinds, key=lambda kind: (-kind.size, kind.stabiliser)):  # what does not fill an orbit
            if kind.size <= left:
                chosen += [kind] * (left // kind.size)
                left %= kind.size
        if not left:
            return sorted(chosen, key=lambda kind: (-kind.size, kind.stabiliser))
    return None


def solve_invariant(
    shape: Shape,
    group: Action,
    kinds: list[OrbitType],
    lam: float,
    rng: np.random.Generator,
    clock: Clock,
    steps: int = 250,
) -> tuple[decompose.Batch, float]:
    """One start in the invariant subspace: (batch of one, F) by Levenberg-Marquardt with a fading ridge."""
    m, k, n = shape
    inside = span(group, kinds)
    rank = sum(kind.size for kind in kinds)
    start = inside @ (0.7 * rng.standard_normal((inside.shape[1],)))
    u, v, w = np.split(start, [rank * m * k, rank * (m * k + k * n)])
    ridge = float(rng.choice([1e-2, 2e-2]))
    batch, f = decompose.levenberg_marquardt(
        shape,
        (u.reshape(1, rank, m * k), v.reshape(1, rank, k * n), w.reshape(1, rank, m * n)),
        lam,
        iterations=steps,
        damping=1.0,
        ridge=lambda i: ridge * max(0.0, 1 - i / (0.6 * steps)),
        goal=1e-22,
        tolerance=1e-5,
        span=inside,
        stop=clock.expired,
    )
    return batch, float(f[0])


def _constructible(problem: Problem) -> bool:
    """Whether the orbit of a simplex answers the question outright."""
    n = problem.shape[0]
    square = problem.shape == (n, n, n)
    return problem.exact and not problem.symmetry and square and problem.rank >= n**3 - n + 1


class Orbit:
    """CP search in the space of invariant schemes (Ballard, Ikenmeyer, Landsberg and Ryder 2018).

    The symmetry is the problem's, or one of the permutations of the factors where it names none. Orbit structures are
    drawn at random. Over R the invariant optimum is yielded, and what it becomes without the symmetry.
    """

    name = "orbit"
    symmetric = True

    def _names(self, problem: Problem) -> list[str]:
        """The symmetries to choose from; raises UsageError when the one asked for does not fit the shape."""
        if problem.symmetry:
            action(problem.symmetry, problem.shape)
            return [problem.symmetry]
        found = []
        for name in _DEFAULT:
            try:
                action(name, problem.shape)
            except UsageError:
                continue
            found.append(name)
        return found

    def weight(self, problem: Problem, pool: Pool) -> float:
        if _constructible(problem):
            return 1.0
        if variables(problem.shape, problem.rank) > _VARIABLES or not self._names(problem):
            return 0.0
        if problem.symmetry:
            return 1.0
        return 1.0 if problem.exact and variables(problem.shape, problem.rank) > 300 else 0.1

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        if _constructible(problem):
            yield to_ring(simplex(problem.shape[0]), problem.ring)
            return
        names = self._names(problem)
        group = action(names[int(rng.integers(len(names)))], problem.shape)
        for _ in range(max(1, 600 // variables(problem.shape, problem.rank))):
            kinds = choose_orbits(group, problem.rank, rng)
            if kinds is None or clock.expired():
                return
            lam = 0.0 if problem.exact else problem.lam
            steps = 250 if problem.exact else 120
            batch, f = solve_invariant(problem.shape, group, kinds, lam, rng, clock, steps)
            if not problem.exact:
                yield decompose.scheme_of(problem.shape, batch)
                if not problem.symmetry and not clock.expired():
                    shaken = tuple(x + 0.02 * np.sqrt((x * x).mean()) * rng.standard_normal(x.shape) for x in batch)
                    free, _ = decompose.refine(problem.shape, (shaken[0], shaken[1], shaken[2]), problem.lam, 600)
                    yield decompose.scheme_of(problem.shape, free)
            elif f < 1e-18 and not clock.expired():
                solved = decompose.scheme_of(problem.shape, batch)
                found = discrete(solved, problem.ring, rng, clock, 25)
                if found is not None:
                    yield found
                    return


register(Orbit())
