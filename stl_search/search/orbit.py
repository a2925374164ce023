"""Strategy ``orbit``: schemes invariant under a finite group, found in the linear space of their representatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search import decompose
from stl_search.decompose import Floats
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.compose import promise, splits
from stl_search.search.constructions import simplex
from stl_search.search.deflate import settled
from stl_search.search.invariant import Orbits, added, drop_costs, expanded, frame, recognised, shaken
from stl_search.search.numeric import batch_size, discrete, variables
from stl_search.search.problem import Pool, Problem, cost, drawn, ranks_near
from stl_search.search.representatives import Representatives
from stl_search.search.strategy import Clock, register
from stl_search.search.symmetry import Action, OrbitType, action, form, orbit_types
from stl_search.transform import kron, to_ring

__all__ = [
    "Orbit",
    "choose_orbits",
    "exact_invariant",
    "factored",
    "polished",
    "randomly",
    "reordered",
    "solve_invariant",
    "walked",
]

Ints = npt.NDArray[Any]
Factoring = tuple[Action, Action, tuple[Ints, Ints, Ints]]
_VARIABLES = 2400  # of the whole scheme, where it need not be exact
_UNKNOWNS = 1000  # of the representatives, where it must: a step of Levenberg-Marquardt takes a hundredth of a second
_DEFAULT = ("cyclic", "transpose", "transpose:1", "cyclic+transpose:1")  # tried where the problem names no symmetry


def choose_orbits(group: Action, rank: int, rng: np.random.Generator) -> list[OrbitType] | None:
    """A random multiset of orbit types with ``rank`` terms in all, richer in large orbits; None when none adds up.

    Every multiset has a positive probability. Each short type is used a geometric number of times, long orbits fill up.
    """
    kinds = orbit_types(group)
    full = max(kinds, key=lambda kind: kind.size)
    for _ in range(50):
        left, chosen = rank, list[OrbitType]()
        for i in rng.permutation(len(kinds)):
            kind = kinds[i]
            if kind.size == full.size:
                continue
            count = min(int(rng.geometric(0.4)) - 1, left // kind.size)
            chosen += [kind] * count
            left -= count * kind.size
        chosen += [full] * (left // full.size)
        left %= full.size
        for kind in sorted(kinds, key=lambda kind: kind.key):  # what does not fill an orbit
            if kind.size <= left:
                chosen += [kind] * (left // kind.size)
                left %= kind.size
        if not left:
            return sorted(chosen, key=lambda kind: kind.key)
    return None


def solve_invariant(
    shape: Shape, kinds: list[OrbitType], rng: np.random.Generator, clock: Clock
) -> tuple[decompose.Batch, float]:
    """One start in the invariant subspace: (batch of one, F) by Levenberg-Marquardt with a fading ridge."""
    frame = Representatives(shape, kinds)
    ridge = float(rng.choice([1e-2, 2e-2]))
    steps = 250
    x, f = frame.solved(
        0.7 * rng.standard_normal(frame.size),
        0.0,
        steps,
        ridge=lambda i: ridge * max(0.0, 1 - i / (0.6 * steps)),
        goal=1e-22,
        tolerance=1e-5,
        stop=clock.expired,
    )
    return frame.batch(x), f


def exact_invariant(problem: Problem, kinds: list[OrbitType], rng: np.random.Generator, clock: Clock) -> Scheme | None:
    """The exact scheme over the problem's ring that one start leads to; None where it leads to none."""
    batch, f = solve_invariant(problem.shape, kinds, rng, clock)
    if f > 1e-18 or clock.expired():
        return None
    return discrete(decompose.scheme_of(problem.shape, batch), problem.ring, rng, clock, 25)


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
        size = variables(problem.shape, problem.rank)
        if problem.exact:  # on representatives, where a group of order g leaves a g-th of the unknowns
            fits = any(size <= _UNKNOWNS * action(name, problem.shape).order for name in self._names(problem))
        else:
            fits = size <= _VARIABLES and bool(self._names(problem))
        if not fits:
            return 0.0
        if problem.symmetry:
            return 1.0
        return 1.0 if problem.exact and variables(problem.shape, problem.rank) > 300 else 0.1

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        if _constructible(problem):
            yield to_ring(simplex(problem.shape[0]), problem.ring)
            return
        names = self._names(problem)
        name = names[int(rng.integers(len(names)))]
        yield from (self._exact if problem.exact else self._approximate)(problem, name, pool, rng, clock)

    def _exact(
        self, problem: Problem, name: str, pool: Pool, rng: np.random.Generator, clock: Clock
    ) -> Iterator[Scheme]:
        group = action(name, problem.shape)
        for _ in range(max(1, min(4, 600 * group.order // variables(problem.shape, problem.rank)))):
            kinds = choose_orbits(group, problem.rank, rng)
            if kinds is None or clock.expired():
                return
            found = exact_invariant(problem, kinds, rng, clock)
            if found is not None:
                yield found
                return

    def _approximate(
        self, problem: Problem, name: str, pool: Pool, rng: np.random.Generator, clock: Clock
    ) -> Iterator[Scheme]:
        """Random starts, Kronecker products of smaller invariant schemes, and walks between neighbouring ranks."""
        group = action(name, problem.shape)
        known = sum(len(pool.cell(problem.shape, r)) for r in ranks_near(problem))
        starts: list[Orbits] | None = None
        if rng.random() > 1 / (1 + known / 8) + 0.1:
            starts = walked(problem, group, pool, rng)
        plan = _plan(name, problem, pool, rng) if starts is None and rng.random() < 0.9 else None
        if plan is not None:
            (one, two, orders), ranks = plan
            parts = []
            for part, rank in zip((one, two), ranks, strict=True):
                cell = [e.scheme for e in pool.cell(part.shape, rank) if recognised(part, e.scheme) is not None][:4]
                if not cell or rng.random() < 0.1:
                    cell = _solved(part, rank, problem.lam, rng)
                    yield from cell
                if not cell or clock.expired():
                    return
                parts.append(cell[min(len(cell), int(rng.geometric(0.6))) - 1])
            whole = recognised(group, reordered(kron(parts[0], parts[1]), orders))
            if whole is None:
                return
            noises = rng.choice([0.005, 0.03, 0.1, 0.2, 0.4], size=max(4, batch_size(problem.rank)))
            starts = [shaken(whole, float(noise), rng) for noise in noises]
        made_up = starts is None
        starts = starts or randomly(group, problem.rank, rng)
        if starts is None:
            return
        batch, inside = expanded(starts), frame(group, starts[0].kinds)
        if made_up:  # against strong noise first: it tames random starts, and would lead others away from their basin
            batch, _ = decompose.refine(problem.shape, batch, max(1e-3, problem.lam), 120, span=inside)
        for scheme in settled(problem, pool, starts[0].rank, batch, clock, inside):
            yield scheme
            if not problem.symmetry and not clock.expired():
                loose = decompose.batch_of([scheme])
                loose = tuple(x + 0.02 * np.sqrt((x * x).mean()) * rng.standard_normal(x.shape) for x in loose)
                free, _ = decompose.refine(problem.shape, loose, problem.lam, 600)
                yield decompose.scheme_of(problem.shape, free)


def polished(problem: Problem, scheme: Scheme) -> Scheme:
    """The same local optimum among the schemes with the symmetry of the problem, to its last digits."""
    group = action(problem.symmetry, problem.shape)
    whole = recognised(group, scheme)
    if whole is None:
        return scheme
    inside = frame(group, whole.kinds)
    batch, _ = decompose.refine(problem.shape, expanded([whole]), problem.lam, 2000, tolerance=1e-12, span=inside)
    better = decompose.scheme_of(problem.shape, batch)
    return better if cost(problem, better) < cost(problem, scheme) else scheme


def walked(problem: Problem, group: Action, pool: Pool, rng: np.random.Generator) -> list[Orbits] | None:
    """Starts made from one scheme of the pool by leaving out orbits, putting in others, and shaking; or None.

    Source and target rank are drawn by what the step promises, as in ``deflate``.
    """
    shape = problem.shape
    best = {r: pool.cell(shape, r)[0].cost for r in pool.ranks(shape)}
    reach = max(kind.size for kind in orbit_types(group))
    options: list[tuple[int, int]] = []
    weights: list[float] = []
    for target in ranks_near(problem):
        for source in best:
            if abs(source - target) <= reach:
                gain = (best.get(target, 1.0) - best[source]) * problem.volume
                gain -= (1.2 if source > target else 1.0) * (source - target)
                options.append((source, target))
                weights.append((2.0 if target == problem.rank else 1.0) * (1 + 4 * min(max(gain, 0.0), 5.0)))
                weights[-1] *= 2.0 if source == target else 1.0
    if not options:
        return None
    source, target = options[int(rng.choice(len(options), p=np.array(weights) / np.sum(weights)))]
    cell = pool.cell(shape, source)
    whole = recognised(group, drawn(cell, rng).scheme)
    if whole is None:
        return None
    more = int(rng.geometric(0.5)) - 1  # orbits left out beyond what must be
    rest, dropped = whole, list[OrbitType]()
    while rest.kinds and (rest.rank > target or more > 0):
        more -= rest.rank <= target
        orbit = _dropped(rest, problem.lam, rng, None)
        dropped.append(rest.kinds[orbit])
        rest = rest.without(orbit)
    fill = choose_orbits(group, target - rest.rank, rng)
    if fill is None:
        return None
    noise = 0.02 if dropped or fill else float(rng.choice([0.05, 0.15, 0.4]))
    starts = []
    for _ in range(batch_size(target)):
        rest = whole
        for kind in dropped:
            rest = rest.without(_dropped(rest, problem.lam, rng, kind))
        starts.append(shaken(added(group, rest, fill, rng), noise, rng))
    return starts


def _dropped(scheme: Orbits, lam: float, rng: np.random.Generator, kind: OrbitType | None) -> int:
    """The orbit (of this kind) that costs little, each term of it: a random choice among the cheap ones."""
    costs = drop_costs(scheme, lam) / np.array([k.size for k in scheme.kinds])
    costs = costs * rng.lognormal(0.0, 0.6, len(costs))
    if kind is not None:
        costs[[k is not kind for k in scheme.kinds]] = np.inf
    return int(np.argmin(costs))


def randomly(group: Action, rank: int, rng: np.random.Generator) -> list[Orbits] | None:
    """Random starts of one random orbit structure, with factors of about N(0, .49) entries."""
    kinds = choose_orbits(group, rank, rng)
    if kinds is None:
        return None
    size = batch_size(rank)
    return [
        Orbits(tuple(kinds), tuple(0.7 * rng.standard_normal((kind.basis.shape[1],)) for kind in kinds))
        for _ in range(size)
    ]


def _solved(group: Action, rank: int, lam: float, rng: np.random.Generator) -> list[Scheme]:
    """A few good invariant schemes of a small shape, from random starts."""
    starts = randomly(group, rank, rng)
    if starts is None:
        return []
    inside = frame(group, starts[0].kinds)
    batch, _ = decompose.refine(group.shape, expanded(starts), max(1e-3, lam), 120, span=inside)
    batch, f = decompose.refine(group.shape, batch, lam, 400, span=inside)
    return [decompose.scheme_of(group.shape, batch, int(i)) for i in np.argsort(f, kind="stable")[:4]]


def factored(name: str, shape: Shape) -> list[Factoring]:
    """Pairs of actions whose Kronecker product is the named one, and the order of rows and columns in which it is.

    Rotation is a product of rotations; ``transpose:P`` of such ones whose forms multiply to its form, up to order and
    sign. Groups that act through representations have none here.
    """
    parts = name.split("+")
    twists = [part for part in parts if part.partition(":")[0] == "transpose"]
    if len(twists) > 1 or any(part != "cyclic" and part not in twists for part in parts):
        return []
    found = []
    for operation, one, two in splits(shape):
        fits = all((s[0] == s[2] or not twists) and (s[0] == s[1] == s[2] or "cyclic" not in parts) for s in (one, two))
        if operation != "kron" or not fits:
            continue
        if not twists:
            orders = [np.arange(side) for side in shape]
            found.append((action("cyclic", one), action("cyclic", two), (orders[0], orders[1], orders[2])))
            continue
        minus = int(twists[0].partition(":")[2] or 0)
        for p, q in itertools.product(range(max(one) // 2 + 1), range(max(two) // 2 + 1)):
            aligned = [_aligned(form(a, p), form(b, q), form(a * b, minus)) for a, b in zip(one, two, strict=True)]
            x, y, z = aligned
            if x is not None and y is not None and z is not None:
                names = ["+".join([*(["cyclic"] if "cyclic" in parts else []), f"transpose:{i}"]) for i in (p, q)]
                found.append((action(names[0], one), action(names[1], two), (x, y, z)))
    return found


def _aligned(one: Floats, two: Floats, whole: Floats) -> Ints | None:
    """The order that makes the Kronecker product of two sign vectors equal to a third, up to sign; or None."""
    signs = np.kron(one, two)
    for sign in (1.0, -1.0):
        order = np.argsort(-sign * signs, kind="stable")
        if (sign * signs[order] == whole).all():
            return order
    return None


def reordered(scheme: Scheme, orders: tuple[Ints, Ints, Ints]) -> Scheme:
    """The scheme with the indices of the m, k and n sides in other orders."""
    x, y, z = orders
    u, v, w = scheme.as_float()
    return Scheme(scheme.shape, "R", u[:, x][:, :, y], v[:, y][:, :, z], w[:, x][:, :, z])


def _plan(
    name: str, problem: Problem, pool: Pool, rng: np.random.Generator
) -> tuple[Factoring, tuple[int, int]] | None:
    """A Kronecker product, and ranks of its factors: the better what they promise, the likelier."""
    options: list[tuple[Factoring, tuple[int, int]]] = []
    merits: list[float] = []
    window = ranks_near(problem)
    for factoring in factored(name, problem.shape):
        one, two = factoring[0].shape, factoring[1].shape
        for r1, r2 in itertools.product(range(1, math.prod(one) + 1), range(1, math.prod(two) + 1)):
            if r1 * r2 in window:
                kept = (1 - promise(pool, one, r1)) * (1 - promise(pool, two, r2))
                near = min((r1 * r2 - problem.rank) / 3, (problem.rank - r1 * r2) / 6)
                options.append((factoring, (r1, r2)))
                merits.append((kept - r1 * r2 / problem.volume) / 0.02 + near)
    if not options:
        return None
    weights = np.exp(np.array(merits) - max(merits))
    return options[int(rng.choice(len(options), p=weights / weights.sum()))]


register(Orbit())
