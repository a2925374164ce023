"""Strategy ``flipgraph``: random walks over Z2 in the flip graph, plain or symmetric, and Hensel lifting of finds.

The walks themselves are compiled loops in ``flips``, symmetric starts are made in ``flip_starts``; here is how long
walks last, and what becomes of what they meet.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stl_search import transform
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search import flip_starts, ternary
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register
from stl_search.search.ternary import MAX_SIDE, SHARE
from stl_search.verify import first_failure

if TYPE_CHECKING:
    from stl_search.search.flips import Walk

__all__ = ["LIFTS", "MAX_SIDE", "FlipGraph", "answer", "scheme_of", "terms_of"]

Bits = npt.NDArray[np.uint64]

_FLIPS = 60_000_000  # of a job at most: a few seconds
_IDLE = 12_000_000  # of them without a lower rank end a job
_SETTLED = 64  # mkn up to which that is enough on oblong shapes; above, both grow with its square
_CHUNK = 2_000_000  # between two looks at the clock
_GROWTH = 2_000_000  # for each shape on the way from a small one
_LOOKED_AT = 40  # schemes of the pool, for a symmetry
_BASES = 3  # in which a scheme is lifted
LIFTS = 6  # attempts a job, each on another scheme of the rank
_BETWEEN_LIFTS = 100_000  # flips
_TERNARY = 0.1  # of the jobs without symmetry, where the ring is not Z2
_SYMMETRIES = {"cyclic": 8, "cyclic+reverse": 1, "transpose": 0.5, "reverse": 0.5}  # how often each is drawn


def terms_of(scheme: Scheme) -> Bits:
    """(r, 3): the factors of a Z2 scheme of sides <= 8 as bit masks, the third one transposed (see ``flips``).

    >>> terms_of(transform.classical((1, 2, 1), "Z2")).tolist()
    [[1, 1, 1], [2, 2, 1]]
    """
    factors = (scheme.u, scheme.v, scheme.w.swapaxes(1, 2))
    packed = [
        (f.reshape(len(f), -1).astype(np.uint64) << np.arange(f[0].size, dtype=np.uint64)).sum(1, dtype=np.uint64)
        for f in factors
        if scheme.rank
    ]
    return np.stack(packed, axis=1) if packed else np.zeros((0, 3), dtype=np.uint64)


def scheme_of(shape: Shape, terms: Bits) -> Scheme:
    """The Z2 scheme of (r, 3) bit masks, ``terms_of`` undone."""
    m, k, n = shape
    factors = []
    for p, (rows, cols) in enumerate(((m, k), (k, n), (n, m))):
        places = np.arange(rows * cols, dtype=np.uint64)
        bits = (terms[:, p, None] >> places) & np.uint64(1)
        factors.append(bits.astype(np.int8).reshape(len(terms), rows, cols))
    return Scheme(shape, "Z2", factors[0], factors[1], factors[2].swapaxes(1, 2))


class FlipGraph:
    """Walks over Z2 from the classical algorithm, from smaller shapes, from symmetric starts, and from the pool.

    Over Z2 a walk's scheme is the find; over ZT, Z and Q it is lifted first (``transform.lift``). Schemes over Z2 that
    are no answers go to the pool as material for later jobs. On square shapes half of the jobs walk among schemes with
    a symmetry, mostly the cyclic one, elsewhere few do; a problem with a symmetry is searched under that one alone.
    The symmetry is that of the scheme over Z2: its lift need not have it.
    """

    name = "flipgraph"
    symmetric = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        if not problem.exact or max(problem.shape) > MAX_SIDE:
            return 0.0
        return SHARE if not problem.symmetry or _allowed(problem.symmetry, problem.shape) else 0.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, target = problem.shape, problem.rank
        symmetry = problem.symmetry or _drawn(shape, rng)
        if not symmetry and problem.ring != "Z2" and rng.random() < _TERNARY:
            yield from ternary.walk(problem, pool, rng, clock)
            return
        if symmetry:
            walk = self._symmetric(problem, symmetry, pool, rng)
            patience = int(10 ** rng.uniform(3.5, 5.0))
            margin = walk.group.order * int(rng.choice([1, 2, 4]))
        else:
            walk = yield from self._plain(problem, pool, rng, clock)
            patience, margin = int(10 ** rng.uniform(3.0, 4.7)), int(rng.choice([1, 2, 2, 3]))
        done = lifts = idle = 0
        lowest = walk.best_rank
        square = len(set(shape)) == 1  # there other starts serve better than longer walks
        scale = 1.0 if square else max(1.0, problem.volume / _SETTLED) ** 2
        budget, resting = int(_FLIPS * scale), int(_IDLE * scale)
        while done < budget and idle < resting and not clock.expired():
            goal = 0 if lifts else target
            chunk = _BETWEEN_LIFTS if lifts else _CHUNK
            made = max(1, walk.run(min(chunk, budget - done), patience, margin, goal))
            done += made
            clock.count(made)
            idle = 0 if walk.best_rank < lowest else idle + made
            lowest = walk.best_rank
            if walk.rank <= target:
                found = answer(problem, scheme_of(shape, walk.terms()), rng)
                if found is not None:
                    yield found
                    return
                lifts += 1
                if lifts == 1 or lifts > LIFTS:
                    yield scheme_of(shape, walk.terms())
                if lifts > LIFTS:
                    return
        yield scheme_of(shape, walk.terms(best=True))

    def _symmetric(self, problem: Problem, symmetry: str, pool: Pool, rng: np.random.Generator) -> Walk:
        """A scheme of the pool that has the symmetry, or a fresh one."""
        from stl_search.search.flips import Walk

        group = flip_starts.group_of(symmetry, problem.shape)
        if rng.random() < 0.5:
            met = _material(pool, problem.shape)[:_LOOKED_AT]
            found = {s.id: flip_starts.orbits_of(terms_of(s), group) for s in met}
            kept = [s for s in met if found[s.id]]
            if kept:
                known = found[_picked(kept, rng).id]
                if known is not None and len(known[0]):
                    return Walk(*known, group, rng)
        return Walk(*flip_starts.start(symmetry, problem.shape, problem.rank, rng), group, rng)

    def _plain(
        self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock
    ) -> Generator[Scheme, None, Walk]:
        """A scheme of the pool, the classical algorithm, or one grown side by side from a smaller shape.

        On the way up schemes of the smaller shapes are yielded, and better ones that the pool has are gone on with.
        """
        from stl_search.search.flips import Walk

        none, alone = np.zeros((0, 3), dtype=np.uint64), flip_starts.group_of("", problem.shape)
        choice = rng.random()
        known = _material(pool, problem.shape)
        if choice < 0.5 and known:
            return Walk(terms_of(_picked(known, rng)), none, alone, rng)
        if choice < 0.53:
            return Walk(terms_of(transform.classical(problem.shape, "Z2")), none, alone, rng)
        m, k, n = problem.shape
        grown = (min(2, m), min(2, k), min(2, n))
        scheme = transform.classical(grown, "Z2")
        while grown != problem.shape and not clock.expired():
            best = _material(pool, grown)
            if best and best[0].rank < scheme.rank:
                scheme = _picked(best, rng)
            walk = Walk(terms_of(scheme), none, alone, rng)
            clock.count(walk.run(_GROWTH, 5000, 2))
            scheme = scheme_of(grown, walk.terms(best=True))
            if not best or scheme.rank <= best[0].rank:
                yield scheme
            sides = [i for i in range(3) if grown[i] < problem.shape[i]]
            side = sides[int(rng.integers(len(sides)))]
            grown = (grown[0] + (side == 0), grown[1] + (side == 1), grown[2] + (side == 2))
            scheme = transform.extend(scheme, grown)
        return Walk(terms_of(transform.extend(scheme, problem.shape)), none, alone, rng)


@cache
def _allowed(symmetry: str, shape: Shape) -> bool:
    """Whether there are walks with this symmetry on this shape."""
    try:
        flip_starts.check(symmetry, shape)
    except UsageError:
        return False
    return True


def _drawn(shape: Shape, rng: np.random.Generator) -> str:
    """The symmetry of a job that was asked for none: often one on square shapes, seldom elsewhere, mostly empty."""
    square = len(set(shape)) == 1
    if rng.random() >= (0.5 if square else 0.05):
        return ""
    choices = [name for name in _SYMMETRIES if _allowed(name, shape)]
    weights = np.array([_SYMMETRIES[name] for name in choices])
    return str(rng.choice(choices, p=weights / weights.sum()))


def _material(pool: Pool, shape: Shape) -> list[Scheme]:
    """The Z2 schemes of the pool to walk from, lowest ranks first."""
    return [scheme for rank in pool.material_ranks(shape) for scheme in pool.material(shape, rank)]


def _picked(schemes: list[Scheme], rng: np.random.Generator) -> Scheme:
    """One of the lowest rank, or at times of the next one that there is; ``schemes`` has the lowest ranks first."""
    ranks = sorted({s.rank for s in schemes})
    rank = ranks[int(len(ranks) > 1 and rng.random() < 0.15)]
    among = [s for s in schemes if s.rank == rank]
    return among[int(rng.integers(len(among)))]


def answer(problem: Problem, scheme: Scheme, rng: np.random.Generator) -> Scheme | None:
    """The Z2 scheme as a proved one over the ring of the problem, or None."""
    if first_failure(scheme):
        raise AssertionError("a walk left the matmul tensor; this is a bug")
    if problem.ring == "Z2":
        return scheme
    order = ("ZT", "Z", "Q")
    for basis in range(_BASES):
        # any basis serves, and few ones make a ternary lift likely; the first one is the walk's own
        lifted = transform.lift(transform.sparsify(scheme if not basis else _turned(scheme, rng)))
        if lifted.scheme is not None and order.index(lifted.scheme.ring.name) <= order.index(problem.ring):
            return lifted.scheme
        if lifted.modulus_bits == 1:  # proved: no lift in any basis
            return None
    return None


def _turned(scheme: Scheme, rng: np.random.Generator) -> Scheme:
    """The scheme in a random basis: products of unitriangular matrices of both kinds."""
    matrices = []
    for side in scheme.shape:
        lower, upper = (np.tril(rng.integers(0, 2, (side, side)), -1) + np.eye(side, dtype=int) for _ in range(2))
        matrices.append((lower @ upper.T) % 2)
    return transform.change_basis(scheme, *matrices)


register(FlipGraph())
