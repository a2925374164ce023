"""Strategy ``twisted``: schemes that a large group of isotropies leaves invariant, faithful on every side.

An isotropy (X, Y, Z) acts by u -> X u Y^T, v -> Y v Z^T, w -> X w Z^T. The groups of ``isotropy`` come from random
generators, which seldom generate a large group. Here a group is built up: each new generator normalises what is there,
so that it grows by a prime factor at a time, up to order 32. Rows, inner indices and columns carry the same abstract
group, each by another representation. A scheme of a few orbits has about a hundred unknowns, and a start takes a tenth
of a second: enough of them can be made to meet the one in a thousand that leads to <4,4,4> of rank 48 over Q. That the
scheme of that rank in arXiv 2506.13131 has a large 2-group of symmetries was known (A. Conner's computations,
github.com/adconner/mmsymmetry); of the groups met here, some of order 8 and 16 do it with long orbits alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from stl_search import decompose, known, score
from stl_search.decompose import Floats
from stl_search.scheme import Scheme, Shape
from stl_search.search import isotropy
from stl_search.search.border import fading
from stl_search.search.numeric import discrete, variables
from stl_search.search.problem import Pool, Problem
from stl_search.search.representatives import Representatives
from stl_search.search.strategy import Clock, register
from stl_search.search.symmetry import Element, OrbitType, images_of, linear

__all__ = ["Isotropies", "SignedPermutations", "Twisted", "drawn", "long_orbit", "short_orbit", "simplest", "structure"]

Ints = npt.NDArray[Any]
Triple = tuple[int, int, int]  # of signed permutations, one a side, by their numbers

_ORDERS = {6: 0.5, 8: 2.0, 12: 0.5, 16: 4.0, 32: 1.0}  # of groups, and how often each is drawn
_SIDES = (3, 5)  # on sides of 2 only groups of order 4 are faithful, and those of 6 have 23040 signed permutations
_LARGEST = 1000  # unknowns
_WHERE_FLIPS_FAIL = 3000.0  # weight below the best rank known over Z: ten jobs for each of flip graphs
_DRAWS = 20  # attempts at one group
_MEETINGS = 60  # attempts to find a generator that normalises a group, and what each tries of one kind
_PICKS = 20
_LONG = 0.8  # how often all orbits are long where that is possible
_STARTS = 2  # of one group and structure
_GROUPS = 5  # of a job
_WEIGHT = 1e-5  # of the noise gain, at gentle starts
_PROMISING = 1e-3  # F / mkn at that weight up to which a start may be exact: a noise gain of 100
_STEPS = 150
_BASES = 25  # tried until a find is rounded
_ROUNDINGS = 24  # of a simple find, a tenth of a second each
_LIKE_ISOTROPY = 0.5  # how many starts over R are, at a first weight that lets coefficients grow


class Twisted:
    """Levenberg-Marquardt on representatives, from random starts under large groups of signed permutations.

    Over R the best of some starts is yielded, and what it becomes without its symmetry. Over exact rings every start
    that becomes exact is made discrete.
    """

    name = "twisted"

    def weight(self, problem: Problem, pool: Pool) -> float:
        if problem.symmetry or not _SIDES[0] <= min(problem.shape) <= max(problem.shape) <= _SIDES[1]:
            return 0.0
        if not _orders(problem.shape, problem.rank):
            return 0.0
        named = float(self.name in problem.strategies)
        rational, integral = known.rank(problem.shape, "Q"), known.rank(problem.shape, "Z")
        if not problem.exact:  # what it finds is exact, or no better than what others find
            return max(named, float(rational is not None and problem.rank >= rational.rank))
        if problem.ring != "Q":
            return named  # it has fractions more often than not
        return _WHERE_FLIPS_FAIL if integral is not None and problem.rank < integral.rank else 1.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        choices = _choices(problem, rng)
        if not problem.exact:
            yield from isotropy.best_of(problem, pool, ((None, kinds) for kinds in choices), _fallen, rng, clock)
            return
        for kinds in choices:
            found = _solved(Representatives(problem.shape, kinds), rng, clock)
            if found is not None:
                scheme = simplest(found, problem.ring, rng, clock)
                if scheme is not None:
                    yield scheme
                    return
            if clock.expired():
                return


def _solved(frame: Representatives, rng: np.random.Generator, clock: Clock) -> Scheme | None:
    """The exact scheme, in floats, that one start leads to; None where it leads to none."""
    x, value = _gentle(frame, rng, clock)
    if value > _PROMISING * math.prod(frame.shape) or clock.expired():
        return None
    for weight in (_WEIGHT, 1e-7, 1e-9, 1e-11):  # to the least noise gain: there the coefficients are the simplest
        x, _ = frame.solved(x, weight, 100, 1e-4, tolerance=1e-9, stop=clock.expired)
    x, value = frame.solved(x, 0.0, 100, 1e-6, goal=1e-26, tolerance=1e-9, stop=clock.expired)
    return None if value > 1e-18 else decompose.scheme_of(frame.shape, frame.batch(x))


def simplest(scheme: Scheme, ring: str, rng: np.random.Generator, clock: Clock) -> Scheme | None:
    """An exact scheme over the ring that a float one is made into, or None; of simple ones that with fewest additions.

    Each begins in another basis, by lines of the factors drawn at random. Schemes that have other fractions than those
    of powers of two take many seconds to round: of them the first one is taken.
    """
    found = discrete(scheme, ring, rng, clock, _BASES)
    if found is None or not _dyadic(found):
        return found
    more = [discrete(scheme, ring, rng, clock, 1) for _ in range(_ROUNDINGS)]
    return min((one for one in [found, *more] if one is not None), key=score.additions)


def _dyadic(scheme: Scheme) -> bool:
    fractions = (Fraction(x) for f in scheme.factors for x in f.ravel().tolist())
    return all(x.denominator & (x.denominator - 1) == 0 for x in fractions)


def _fallen(
    frame: Representatives, lam: float, bound: float, rng: np.random.Generator, clock: Clock
) -> tuple[Floats, float]:
    """(x, F) of a random start: as those of ``isotropy``, or a gentle one, which ends at border schemes less often."""
    if rng.random() < _LIKE_ISOTROPY:
        return isotropy.fallen(frame, lam, bound, rng, clock)
    x, value = _gentle(frame, rng, clock)
    if value < bound:
        x = isotropy.followed(frame, x, _WEIGHT, lam, clock)
    return x, frame.measure(x, lam)


def _gentle(frame: Representatives, rng: np.random.Generator, clock: Clock) -> tuple[Floats, float]:
    """(x, F) at ``_WEIGHT``, which keeps coefficients small, under a fading ridge."""
    ridge = float(rng.choice([0.03, 0.1, 0.2]))
    start = 0.4 * rng.standard_normal(frame.size)
    return frame.solved(start, _WEIGHT, _STEPS, 1.0, fading(ridge, _STEPS), tolerance=1e-4, stop=clock.expired)


@dataclass(frozen=True, eq=False)
class SignedPermutations:
    """The signed permutations of some coordinates up to sign; number 0 is the identity.

    ``matrices`` (g, side, side); ``table`` (g, g), the number of a b; ``inverse`` (g,).
    """

    matrices: Ints
    table: Ints
    inverse: Ints

    @staticmethod
    @lru_cache(maxsize=8)
    def of(side: int) -> SignedPermutations:
        """All 2^(side-1) side! of them."""
        signs = np.array([(1, *s) for s in product((1, -1), repeat=side - 1)])
        rows = np.array(list(permutations(range(side))))
        p, s = np.repeat(rows, len(signs), axis=0), np.tile(signs, (len(rows), 1))  # e_i -> s_i e_(p_i), s_0 = 1
        digits = (2 * side) ** np.arange(side)
        codes = (2 * p + (s < 0)) @ digits
        order = np.argsort(codes)
        table = np.empty((len(p), len(p)), dtype=np.int16)
        for a in range(len(p)):
            sign = s * s[a][p]  # of a b: e_i -> e_(p_a(p_b(i)))
            negative = sign != sign[:, :1]
            table[a] = order[np.searchsorted(codes[order], (2 * p[a][p] + negative) @ digits)]
        matrices = np.zeros((len(p), side, side))
        matrices[np.arange(len(p))[:, None], p, np.arange(side)] = s
        return SignedPermutations(matrices, table, np.argmin(table, axis=1))


@dataclass(frozen=True, eq=False)
class Isotropies:
    """A group of isotropies of <m,k,n>, each counted once up to signs (s, t, u) of its matrices, which fix all terms.

    ``triples`` (g, 3): numbers of signed permutations of the three sides, the identity (0, 0, 0) first.
    """

    shape: Shape
    triples: Ints

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.triples)

    @cached_property
    def elements(self) -> tuple[Element, ...]:
        """Their action on terms: one choice of signs each."""
        sides = [SignedPermutations.of(side).matrices for side in self.shape]
        return tuple(linear(*(m[i] for m, i in zip(sides, t, strict=True))) for t in self.triples)

    @cached_property
    def table(self) -> Ints:
        """(g, g): the number of the product a b."""
        numbers = {tuple(t): i for i, t in enumerate(self.triples.tolist())}
        columns = [
            SignedPermutations.of(side).table[np.ix_(own, own)].ravel().tolist()
            for side, own in zip(self.shape, self.triples.T, strict=True)
        ]
        return np.array([numbers[t] for t in zip(*columns, strict=True)]).reshape(self.order, self.order)


def drawn(shape: Shape, orders: dict[int, float], rng: np.random.Generator) -> Isotropies | None:
    """A random group of one of these orders; None where none is met."""
    order = int(rng.choice(list(orders), p=np.array(list(orders.values())) / sum(orders.values())))
    sides = [SignedPermutations.of(side) for side in shape]
    steps = _prime_factors(order)
    for _ in range(_DRAWS):
        elements: list[Triple] = [(0, 0, 0)]
        generators: list[Triple] = []
        for prime in rng.permutation(steps):
            new = _normalising(sides, elements, generators, int(prime), rng)
            if new is None:
                break
            generators.append(new)
            elements = _extended(sides, elements, new, int(prime))
        if len(elements) == order:
            return Isotropies(shape, np.array(elements))
    return None


def structure(group: Isotropies, rank: int, rng: np.random.Generator) -> list[OrbitType] | None:
    """Random orbit types with ``rank`` terms in all, all long or some of them short; None where none adds up."""
    long = long_orbit(group)
    if rank % group.order == 0 and rng.random() < _LONG:
        return [long] * (rank // group.order)
    count = max(0, rank // group.order - int(rng.geometric(0.6)) + 1)
    left, kinds = rank - count * group.order, [long] * count
    for number in range(1, 60):
        if not left:
            return kinds
        kind = short_orbit(group, number, rng)
        if kind is None or kind.size > left or (2 * kind.size < left and rng.random() < 0.7):
            continue
        kinds.append(kind)
        left -= kind.size
    return None


def long_orbit(group: Isotropies) -> OrbitType:
    """The kind of orbit whose representative nothing fixes."""
    m, k, n = group.shape
    return _orbit(group, [0], np.eye(m * k + k * n + m * n), 0)


def short_orbit(group: Isotropies, number: int, rng: np.random.Generator) -> OrbitType | None:
    """A kind of orbit whose representative one or two random elements fix up to signs; None where they fix none.

    ``number`` tells kinds of one size apart.
    """
    generators = rng.integers(1, group.order, 1 + int(rng.random() < 0.3)).tolist()
    stabiliser = [0]
    for a in stabiliser:  # grows while it is read
        stabiliser += [b for b in {int(group.table[a, g]) for g in generators} if b not in stabiliser]
    signs = rng.choice((1, -1), (len(generators), 2))
    signs = np.column_stack([signs, signs.prod(axis=1)])
    bases = []
    for i in range(3):
        gap = np.zeros_like(group.elements[0].maps[i])
        for g, sign in zip(generators, signs, strict=True):
            away = group.elements[g].maps[i] - sign[i] * np.eye(len(gap))
            gap += away.T @ away
        values, vectors = np.linalg.eigh(gap)
        bases.append(vectors[:, values < 1e-9])
    if not all(basis.shape[1] for basis in bases):
        return None
    return _orbit(group, stabiliser, scipy.linalg.block_diag(*bases), number)


def _orbit(group: Isotropies, stabiliser: Sequence[int], basis: Ints, number: int) -> OrbitType:
    images = images_of(group, stabiliser, basis)
    size = len(images[0])
    return OrbitType(size, tuple(sorted(stabiliser)), basis, images, (-size, number))


def _prime_factors(number: int) -> list[int]:
    """Smallest first.

    >>> _prime_factors(24)
    [2, 2, 2, 3]
    """
    factors = []
    prime = 2
    while number > 1:
        while number % prime == 0:
            factors.append(prime)
            number //= prime
        prime += 1
    return factors


def _times(sides: Sequence[SignedPermutations], a: Triple, b: Triple) -> Triple:
    x, y, z = (int(s.table[i, j]) for s, i, j in zip(sides, a, b, strict=True))
    return x, y, z


def _extended(sides: Sequence[SignedPermutations], elements: list[Triple], new: Triple, prime: int) -> list[Triple]:
    """The group that normal ``elements`` and ``new`` generate, the prime power of which is among them."""
    whole, power = list(elements), new
    for _ in range(prime - 1):
        whole += [_times(sides, e, power) for e in elements]
        power = _times(sides, power, new)
    return whole


def _normalising(
    sides: Sequence[SignedPermutations],
    elements: list[Triple],
    generators: list[Triple],
    prime: int,
    rng: np.random.Generator,
) -> Triple | None:
    """A random triple that normalises a group, has its prime power in it, and acts like none of it on any side.

    A side's signed permutations are sorted by what they make of the generators, a bit mask each of the elements that
    act so on this side; three of them normalise the group together where the masks meet.
    """
    sorts: list[dict[tuple[int, ...], list[int]]] = []
    for i, side in enumerate(sides):
        masks: dict[int, int] = {}
        for j, element in enumerate(elements):
            masks[element[i]] = masks.get(element[i], 0) | 1 << j
        conjugates = [side.table[side.table[:, g[i]], side.inverse].tolist() for g in generators]
        sort: dict[tuple[int, ...], list[int]] = {}
        for x, images in enumerate(zip(*conjugates, strict=True) if conjugates else [()] * len(side.inverse)):
            key = tuple(masks.get(image, 0) for image in images)
            if all(key) and x not in masks:
                sort.setdefault(key, []).append(x)
        sorts.append(sort)
    inside = set(elements)
    for _ in range(_MEETINGS):
        pools, meeting = [], ((1 << len(elements)) - 1,) * len(generators)
        for sort in sorts:
            keys = [key for key in sort if all(a & b for a, b in zip(meeting, key, strict=True))]
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            meeting = tuple(a & b for a, b in zip(meeting, key, strict=True))
            pools.append(sort[key])
        if len(pools) < 3:
            continue
        for _ in range(_PICKS):
            x, y, z = (pool[int(rng.integers(len(pool)))] for pool in pools)
            power: Triple = (0, 0, 0)
            for _ in range(prime):
                power = _times(sides, power, (x, y, z))
            if power in inside:
                return x, y, z
    return None


@lru_cache(maxsize=64)
def _orders(shape: Shape, rank: int) -> dict[int, float]:
    """The orders to choose from: those that divide the number of signed permutations of all sides."""
    counts = [2 ** (side - 1) * math.factorial(side) for side in shape]
    size = variables(shape, rank)
    return {
        order: often
        for order, often in _ORDERS.items()
        if order <= rank and size <= _LARGEST * order and not any(count % order for count in counts)
    }


def _choices(problem: Problem, rng: np.random.Generator) -> Iterator[list[OrbitType]]:
    """Orbit types for every start of a job."""
    for _ in range(_GROUPS):
        group = drawn(problem.shape, _orders(problem.shape, problem.rank), rng)
        kinds = None if group is None else structure(group, problem.rank, rng)
        if kinds is not None:
            yield from [kinds] * _STARTS


register(Twisted())
