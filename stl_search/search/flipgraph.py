"""Strategy ``flipgraph``: random walks over Z2 in the flip graph, plain or C3-symmetric, and Hensel lifting of finds.

The walks themselves are compiled loops in ``flips``; here is where they start, how long they last, and what becomes of
what they meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stl_search import transform
from stl_search.scheme import Scheme, Shape
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register
from stl_search.verify import first_failure

if TYPE_CHECKING:
    from stl_search.search.flips import Walk

__all__ = ["MAX_SIDE", "FlipGraph", "orbits_of", "scheme_of", "symmetric_start", "terms_of"]

Bits = npt.NDArray[np.uint64]

MAX_SIDE = 8  # a factor of 8 x 8 entries fills a word
_SHARE = 300.0  # of the jobs: others take a minute each at sizes where this one is done in seconds, and answers wait
_FLIPS = 20_000_000  # of a job: a second or two
_CHUNK = 2_000_000  # between two looks at the clock
_GROWTH = 2_000_000  # for each shape on the way from a small one
_BASES = 3  # in which a scheme is lifted
_LIFTS = 6  # attempts a job, each on another scheme of the rank
_BETWEEN_LIFTS = 100_000  # flips


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


def orbits_of(terms: Bits) -> tuple[Bits, Bits] | None:
    """(one term of each orbit, cubes) of the terms of an <n,n,n> scheme that rotation permutes; None for others."""
    left: dict[tuple[int, ...], int] = {}
    for term in terms.tolist():
        left[tuple(term)] = left.get(tuple(term), 0) + 1
    orbits, cubes = [], []
    for term in sorted(left):
        count = left[term]
        if len(set(term)) == 1:
            cubes += [term[0]] * count
            continue
        turned = [term, term[1:] + term[:1], term[2:] + term[:2]]
        if any(left.get(t, 0) != count for t in turned):
            return None
        if term == min(turned):
            orbits += [term] * count
    return np.array(orbits, dtype=np.uint64).reshape(-1, 3), np.array(cubes, dtype=np.uint64)


def symmetric_start(n: int, blocks: Sequence[Sequence[int]]) -> tuple[Bits, Bits]:
    """(one term of each orbit, cubes): <n,n,n> under C3, with the cube of the identity of each block of indices.

    The classical algorithm, with the cubes added and, as orbits of three equal terms, added once more (over Z2 that
    makes nothing). Where the blocks are a partition of 0 .. n-1 these are the starts that lead low: one block of 4
    finds <4,4,4> 49, blocks of 1 and 2 <3,3,3> 23.
    """
    unit = [[1 << (i * n + j) for j in range(n)] for i in range(n)]
    turned = [(i, j, h) for i in range(n) for j in range(n) for h in range(n) if (i, j, h) <= min((j, h, i), (h, i, j))]
    orbits = [(unit[i][j], unit[j][h], unit[h][i]) for i, j, h in turned]
    cubes = [sum(unit[i][i] for i in block) for block in blocks]
    orbits += [(cube, cube, cube) for cube in cubes]
    return np.array(orbits, dtype=np.uint64), np.array(cubes, dtype=np.uint64)


class FlipGraph:
    """Walks over Z2 from the classical algorithm, from smaller shapes, from symmetric starts, and from the pool.

    Over Z2 a walk's scheme is the find; over ZT, Z and Q it is lifted first (``transform.lift``). Schemes over Z2 that
    are no answers go to the pool as material for later jobs. On square shapes half of the jobs walk among C3-symmetric
    schemes.
    """

    name = "flipgraph"
    symmetric = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        square = len(set(problem.shape)) == 1
        if not problem.exact or max(problem.shape) > MAX_SIDE or problem.symmetry not in ("", "cyclic"):
            return 0.0
        return 0.0 if problem.symmetry and not square else _SHARE

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, target = problem.shape, problem.rank
        symmetric = len(set(shape)) == 1 and (bool(problem.symmetry) or rng.random() < 0.5)
        if symmetric:
            walk = self._symmetric(problem, pool, rng)
            patience, margin = int(10 ** rng.uniform(3.3, 4.7)), int(rng.choice([3, 6]))
        else:
            walk = self._plain(problem, pool, rng, clock)
            patience, margin = int(10 ** rng.uniform(3.0, 5.0)), int(rng.choice([2, 3]))
        done = lifts = 0
        while done < _FLIPS and not clock.expired():
            goal = 0 if lifts else target
            chunk = _BETWEEN_LIFTS if lifts else _CHUNK
            done += max(1, walk.run(min(chunk, _FLIPS - done), patience, margin, goal))
            if walk.rank <= target:
                found = _answer(problem, scheme_of(shape, walk.terms()), rng)
                if found is not None:
                    yield found
                    return
                lifts += 1
                if lifts == 1 or lifts > _LIFTS:
                    yield scheme_of(shape, walk.terms())
                if lifts > _LIFTS:
                    return
        yield scheme_of(shape, walk.terms(best=True))

    def _symmetric(self, problem: Problem, pool: Pool, rng: np.random.Generator) -> Walk:
        """A C3-symmetric scheme of the pool, or a fresh one whose rank has the residue of the asked one modulo 3."""
        from stl_search.search.flips import Walk

        n = problem.shape[0]
        if rng.random() < 0.5:
            known = [orbits_of(terms_of(s)) for s in _material(problem, pool)]
            kept = [k for k in known if k is not None and len(k[0])]
            if kept:
                return Walk(*kept[int(rng.integers(len(kept)))], 3, rng)
        counts = [count for count in range(n + 1) if (problem.rank - count) % 3 == 0]
        return Walk(*symmetric_start(n, _partition(n, int(rng.choice(counts)), rng)), 3, rng)

    def _plain(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Walk:
        """A scheme of the pool, the classical algorithm, or one grown side by side from a smaller shape."""
        from stl_search.search.flips import Walk

        none = np.zeros(0, dtype=np.uint64)
        choice = rng.random()
        known = _material(problem, pool)
        if choice < 0.4 and known:
            return Walk(terms_of(known[int(rng.integers(len(known)))]), none, 1, rng)
        if choice < 0.7:
            return Walk(terms_of(transform.classical(problem.shape, "Z2")), none, 1, rng)
        m, k, n = problem.shape
        grown = (min(2, m), min(2, k), min(2, n))
        scheme = transform.classical(grown, "Z2")
        while True:
            walk = Walk(terms_of(scheme), none, 1, rng)
            if grown == problem.shape or clock.expired():
                break
            walk.run(_GROWTH, 5000, 2)
            sides = [i for i in range(3) if grown[i] < problem.shape[i]]
            side = sides[int(rng.integers(len(sides)))]
            scheme = scheme_of(grown, walk.terms(best=True))
            grown = (grown[0] + (side == 0), grown[1] + (side == 1), grown[2] + (side == 2))
            scheme = transform.extend(scheme, grown)
        return Walk(terms_of(transform.extend(scheme, problem.shape)), none, 1, rng)


def _partition(n: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """0 .. n-1 in ``count`` consecutive blocks of random sizes, none empty; no block at all for 0."""
    if not count:
        return []
    cuts = sorted(int(c) for c in 1 + rng.permutation(n - 1)[: count - 1])
    return [list(range(a, b)) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


def _material(problem: Problem, pool: Pool) -> list[Scheme]:
    """The Z2 schemes of the pool to walk from: those of the lowest ranks, a few at least."""
    found: list[Scheme] = []
    for rank in pool.material_ranks(problem.shape):
        found += pool.material(problem.shape, rank)
        if len(found) >= 4:
            break
    return found


def _answer(problem: Problem, scheme: Scheme, rng: np.random.Generator) -> Scheme | None:
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
