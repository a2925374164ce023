"""Strategy ``isotropy``: schemes that a small group of isotropies leaves invariant, a new group for every start.

An isotropy (X, Y, Z) acts on rows, inner indices and columns, by another matrix on each: u -> X u Y^T, v -> Y v Z^T,
w -> X w Z^T. The groups of ``symmetric`` act alike on equal sides; those drawn here need not, and lead to near-border
schemes where others do not: most of all groups of order 4 on <4,4,4>, whose terms fall into long orbits alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np

from stl_search import decompose
from stl_search.decompose import Floats
from stl_search.scheme import Scheme, Shape
from stl_search.search.border import fading, settled, stages
from stl_search.search.deflate import shaken
from stl_search.search.numeric import variables
from stl_search.search.orbit import exact_invariant
from stl_search.search.problem import Pool, Problem
from stl_search.search.representatives import Representatives
from stl_search.search.strategy import Clock, register
from stl_search.search.symmetric import chained
from stl_search.search.symmetry import Action, Element, OrbitType, generated, linear, long_orbit, orbit_types

__all__ = ["Isotropy", "best_of", "drawn", "fallen", "followed", "structure"]

Choice = tuple[Action | None, list[OrbitType]]
Start = Callable[[Representatives, float, float, np.random.Generator, Clock], tuple[Floats, float]]
Signed = tuple[tuple[int, ...], tuple[int, ...]]  # rows and signs of a signed permutation: e_i -> sign_i e_(row_i)
_ORDERS = {2: 1.0, 3: 1.0, 4: 4.0, 6: 0.5, 8: 1.5}  # of groups up to sign, and how often each is drawn
_LARGEST = 1000  # unknowns of the representatives: a step takes a hundredth of a second
_SHORT = 4  # order of groups up to sign, up to which short orbits are enumerated; beyond, it takes seconds
_LONG = 0.7  # how often all orbits are long where that is possible
_WORK = 500  # unknowns of starts that make a job of some seconds
_TOLERANCE = 1e-4
_STEPS = 150  # of a random start at its first weight
_SCALE = 0.7  # of random coordinates
_FRESH = 1e-7  # first weight of random starts at least, for precisions that would allow less
_HOPELESS = 1.5  # times the best error^2: a start that is above it at its first weight is left
_WORTH = 1.1  # times the best error^2, up to which the symmetry of a find is let go


class Isotropy:
    """Levenberg-Marquardt on representatives, from random starts under groups of signed permutations.

    Over R a few starts a job, the best one then changed orbit by orbit; it is yielded, and what it becomes without its
    symmetry. Exact rings: a fading ridge, and discretisation.
    """

    name = "isotropy"

    def weight(self, problem: Problem, pool: Pool) -> float:
        if problem.exact and self.name not in problem.strategies:
            return 0.0  # only where it is named: discretising is seldom the way
        return float(bool(_orders(problem.shape, problem.rank)) and min(problem.shape) > 1)

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        if problem.exact:
            yield from _exact(problem, rng, clock)
        else:
            yield from best_of(
                problem, pool, (_chosen(problem, rng) for _ in range(_starts(problem))), fallen, rng, clock
            )


def drawn(shape: Shape, orders: dict[int, float], rng: np.random.Generator) -> Action | None:
    """A random group of isotropies by signed permutations, of one of these orders up to sign; None where none is met.

    Elements that differ by signs (s, t, u) with stu = 1, which fix every term, count as one, and are all in the action.
    """
    order = int(rng.choice(list(orders), p=np.array(list(orders.values())) / sum(orders.values())))
    for _ in range(100):
        generators: list[tuple[Signed, ...]] = []
        size = 1
        for _ in range(20):
            new = tuple(_signed(side, rng) for side in shape)
            found = _closure([*generators, new], order)
            if found > size:
                generators, size = [*generators, new], found
            if size == order:
                return _acting(shape, tuple(generators))
    return None


def structure(group: Action, rank: int, rng: np.random.Generator) -> list[OrbitType] | None:
    """Random orbit types with ``rank`` terms in all: long ones alone, or some short ones too; None where none adds up.

    Of large groups only long orbits are known here.
    """
    long = long_orbit(group)
    if rank % long.size == 0 and (group.order > _SHORT * len(long.stabiliser) or rng.random() < _LONG):
        return [long] * (rank // long.size)
    short = [kind for kind in orbit_types(group) if kind.size < long.size] if long.size <= _SHORT else []
    count = max(0, rank // long.size - int(rng.geometric(0.6)) + 1)
    left, chosen = rank - count * long.size, [long] * count
    while left:
        fitting = [kind for kind in short if kind.size <= left]
        if not fitting:
            return None
        chosen.append(fitting[int(rng.integers(len(fitting)))])
        left -= chosen[-1].size
    return sorted(chosen, key=lambda kind: kind.key)


def _signed(side: int, rng: np.random.Generator) -> Signed:
    signs = rng.choice((1, -1), side)
    return tuple(int(i) for i in rng.permutation(side)), tuple(int(s) for s in signs * signs[0])


def _product(one: Signed, two: Signed) -> Signed:
    """``two``, then ``one``; up to sign, so that the first sign is 1."""
    signs = [s * one[1][i] for i, s in zip(two[0], two[1], strict=True)]
    return tuple(one[0][i] for i in two[0]), tuple(s * signs[0] for s in signs)


def _closure(generators: list[tuple[Signed, ...]], limit: int) -> int:
    """The order of the group that triples generate up to sign; 0 where it does not divide ``limit``."""
    identity = tuple((tuple(range(len(g[0]))), (1,) * len(g[0])) for g in generators[0])
    elements, known = [identity], {identity}
    for element in elements:  # grows while it is read
        for generator in generators:
            new = tuple(_product(g, e) for g, e in zip(generator, element, strict=True))
            if new not in known:
                known.add(new)
                elements.append(new)
                if len(elements) > limit:
                    return 0
    return len(elements) if limit % len(elements) == 0 else 0


@lru_cache(maxsize=256)
def _acting(shape: Shape, generators: tuple[tuple[Signed, ...], ...]) -> Action:
    elements: list[Element] = []
    for generator in generators:
        matrices = []
        for rows, signs in generator:
            matrix = np.zeros((len(rows), len(rows)))
            matrix[list(rows), range(len(rows))] = signs
            matrices.append(matrix)
        elements.append(linear(*matrices))
    return generated("isotropies", shape, elements)


def _orders(shape: Shape, rank: int) -> dict[int, float]:
    """The orders to choose from: those that the shape has, and that leave few enough unknowns."""
    size = variables(shape, rank)
    possible = (order for order in _ORDERS if max(shape) > 2 or order % 3)  # of signed permutations
    return {order: _ORDERS[order] for order in possible if order <= rank and size <= _LARGEST * order}


def _exact(problem: Problem, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
    for _ in range(_starts(problem)):
        found = _chosen(problem, rng)
        scheme = None if found is None else exact_invariant(problem, found[1], rng, clock)
        if scheme is not None:
            yield scheme
            return
        if clock.expired():
            return


def _chosen(problem: Problem, rng: np.random.Generator) -> Choice | None:
    """A random group and random orbit types for the problem's rank; None where they do not fit."""
    group = drawn(problem.shape, _orders(problem.shape, problem.rank), rng)
    kinds = None if group is None else structure(group, problem.rank, rng)
    return None if group is None or kinds is None else (group, kinds)


def _starts(problem: Problem) -> int:
    return max(2, min(20, 4 * _WORK // variables(problem.shape, problem.rank)))


def best_of(
    problem: Problem, pool: Pool, choices: Iterable[Choice | None], start: Start, rng: np.random.Generator, clock: Clock
) -> Iterator[Scheme]:
    """The best of a start for each choice, its last digits, and what it becomes when its symmetry is let go.

    Where a choice names its group and that is small, the best is first changed orbit by orbit.
    """
    shape, lam = problem.shape, problem.lam
    cell = pool.cell(shape, problem.rank)
    known = cell[0].cost * problem.volume if cell else np.inf
    best: tuple[float, Action | None, Representatives, Floats] | None = None
    for choice in choices:
        if best is not None and clock.expired():
            break
        if choice is None:
            continue
        group, kinds = choice
        frame = Representatives(shape, kinds)
        bound = _HOPELESS * min(known, np.inf if best is None else best[0])
        x, value = start(frame, lam, bound, rng, clock)
        if best is None or value < best[0]:
            best = value, group, frame, x
    if best is None:
        return
    value, group, frame, x = best
    worth = value < _WORTH * known and not clock.expired()
    if worth and group is not None and long_orbit(group).size <= _SHORT:
        changed = chained(problem, group, frame.orbits(x), rng, clock)
        if changed is not None and changed[0].measure(changed[1], lam) < value:
            frame, x = changed
    x, _ = frame.solved(x, lam, 200, 1e-3, tolerance=1e-7, stop=clock.expired)
    batch = frame.batch(x)
    yield decompose.scheme_of(shape, batch)
    if not worth or clock.expired():
        return
    u, v, w = shaken((batch[0][0], batch[1][0], batch[2][0]), float(rng.choice([0.01, 0.05, 0.1])), rng)
    first = lam * 10 ** float(rng.uniform(-2, 0))
    yield settled(shape, lam, (u[None], v[None], w[None]), first, 60, 0.0, 1e-1, clock)


def fallen(
    frame: Representatives, lam: float, bound: float, rng: np.random.Generator, clock: Clock
) -> tuple[Floats, float]:
    """(x, F) of a random start: at a first weight with a fading ridge, then, below ``bound``, on to the asked one."""
    first = max(lam, _FRESH) * 10 ** float(rng.uniform(-1.7, 0))
    ridge = float(rng.choice([3e-3, 1e-2, 3e-2]))
    x, value = frame.solved(
        _SCALE * rng.standard_normal(frame.size), first, _STEPS, 1.0, fading(ridge, _STEPS),
        tolerance=_TOLERANCE, stop=clock.expired,
    )  # fmt: skip
    if value < bound:
        x = followed(frame, x, first, lam, clock)
    return x, frame.measure(x, lam)


def followed(frame: Representatives, x: Floats, first: float, lam: float, clock: Clock) -> Floats:
    """The optimum at the asked weight that one at a first weight leads to."""
    for weight in _weights(first, lam):
        x, _ = frame.solved(x, weight, 60, 1e-3, tolerance=_TOLERANCE, stop=clock.expired)
    return x


def _weights(first: float, lam: float) -> list[float]:
    """From one weight to another, up or down, by factors of at most ten; without the first one.

    >>> [f"{x:.0e}" for x in _weights(1e-7, 5e-6)], [f"{x:.0e}" for x in _weights(1e-7, 7e-10)]
    (['1e-06', '5e-06'], ['1e-08', '1e-09', '7e-10'])
    """
    if first <= lam:
        return stages(lam, first)[1:]
    return [1 / weight for weight in stages(1 / lam, 1 / first)[1:]]


register(Isotropy())
