"""Compiled random walks in the flip graph over Z2: flips, reductions and plus-transitions, also in C3-symmetric space.

Imported by ``flipgraph`` only when a walk is made, since numba is heavy.

A term is three factors (a, b, c), each at most 8 x 8, as bit masks: a (m, k) and b (k, n) row-major, c (n, m) the
*transpose* of w, so that the tensor is the trace of a b c and rotation (a, b, c) -> (b, c, a) needs no transposition.
Factor p of term i stands in ``val[p * CAPACITY + i]``; that place is called a slot. With ``fold`` 3 each term stands
for its three rotations (an orbit under C3), and fixed cubes a (x) a (x) a, which no flip touches, stand apart.

A flip takes two terms with a common factor,

    a (x) b (x) c + a (x) b' (x) c'  ->  a (x) (b + b') (x) c + a (x) b' (x) (c + c'),

and a reduction joins two terms that share two factors. Slots of equal value are kept in circular lists, found by an
open hash table, and those with company stand in one array, so that a flip costs the same whatever the rank.

Kauers and Moosbauer, "Flip graphs for matrix multiplication", ISSAC 2023; plus-transitions: Arai, Ichikawa and
Hukushima, "Adaptive flip graph algorithm for matrix multiplication", ISSAC 2024; with symmetry: Moosbauer and Poole,
"Flip graphs with symmetry and new matrix multiplication schemes", ISSAC 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["CAPACITY", "MAX_TERMS", "Walk", "advance", "settle"]

CAPACITY = 1024  # terms; a power of two, so that slots are taken apart by shifts and masks
MAX_TERMS = CAPACITY - 2  # a plus-transition adds one
_SLOTS = 3 * CAPACITY
_MAX_BITS = 12  # of a hash table: 4096 cells a factor

# Everything that indexes is unsigned: numba then needs no test for negative indices, which makes a flip 3 times faster.
_U = np.uint64
_CAP, _TOP, _MASK, _SHIFT = _U(CAPACITY), _U(_SLOTS), _U(CAPACITY - 1), _U(CAPACITY.bit_length() - 1)
_ZERO, _ONE, _TWO, _WORD, _HALF = _U(0), _U(1), _U(2), _U(64), _U(32)
# One uint16 array holds all book-keeping: next and previous slot of equal value, the slots with company, where each
# stands among them, and the hash table.
_NEXT, _PREV, _PAIRED, _PLACE, _TABLE = (_U(i * _SLOTS) for i in range(5))
_NONE = _U(0xFFFF)
_GOLDEN, _MIX1, _MIX2 = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)

Bits = npt.NDArray[np.uint64]


def _compiled(function: Callable[..., Any]) -> Any:
    """The function compiled, and kept on disk where some folder for that can be written."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba finds no folder to write to
        return njit(nogil=True, error_model="numpy")(function)


@_compiled
def _mix(z: Any) -> Any:
    """The output function of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (z ^ (z >> _U(30))) * _MIX1
    z = (z ^ (z >> _U(27))) * _MIX2
    return z ^ (z >> _U(31))


@_compiled
def _below(state: Any, n: int) -> Any:
    """A random integer in 0 .. n-1."""
    state[0] += _GOLDEN
    return np.int64(((_mix(state[0]) >> _HALF) * _U(n)) >> _HALF)


@_compiled
def _turn(s: Any) -> Any:
    """The slot of the next factor of the same term."""
    t = s + _CAP
    return t - _TOP if t >= _TOP else t


@_compiled
def _home(x: Any, s: Any, bits: Any, apart: Any) -> Any:
    """The cell where value x of slot s belongs: one table a factor where they are kept apart (1), else one for all."""
    return ((x * _GOLDEN) >> (_WORD - bits)) + (((s >> _SHIFT) * apart) << bits)


@_compiled
def _link(val: Any, index: Any, paired: Any, s: Any, bits: Any, apart: Any) -> Any:
    """Take slot s into the lists; (number of paired slots, whether its term now shares two factors with another)."""
    x = val[s]
    h = _home(x, s, bits, apart)
    mask = (_ONE << bits) - _ONE
    head = _U(index[_TABLE + h])
    while head != _NONE and val[head] != x:
        h = (h & ~mask) | ((h + _ONE) & mask)
        head = _U(index[_TABLE + h])
    if head == _NONE:
        index[_TABLE + h] = s
        index[_NEXT + s] = s
        index[_PREV + s] = s
        return paired, False
    after = _U(index[_NEXT + head])
    if after == head:
        index[_PLACE + head] = paired
        index[_PAIRED + paired] = head
        paired += _ONE
    index[_NEXT + head] = s
    index[_PREV + s] = head
    index[_NEXT + s] = after
    index[_PREV + after] = s
    index[_PLACE + s] = paired
    index[_PAIRED + paired] = s
    paired += _ONE
    s1 = _turn(s)
    y, z = val[s1], val[_turn(s1)]
    reducible = False
    t = head
    while t != s:
        t1 = _turn(t)
        reducible |= ((val[t1] == y) | (val[_turn(t1)] == z)) & (((s ^ t) & _MASK) != _ZERO)
        t = _U(index[_PREV + t])
    return paired, reducible


@_compiled
def _leave(index: Any, paired: Any, s: Any) -> Any:
    """Strike slot s from the paired ones."""
    place = _U(index[_PLACE + s])
    paired -= _ONE
    last = _U(index[_PAIRED + paired])
    index[_PAIRED + place] = last
    index[_PLACE + last] = place
    return paired


@_compiled
def _unlink(val: Any, index: Any, paired: Any, s: Any, bits: Any, apart: Any) -> Any:
    """Take slot s out of the lists, before its value changes; returns the number of paired slots."""
    x = val[s]
    h = _home(x, s, bits, apart)
    mask = (_ONE << bits) - _ONE
    head = _U(index[_TABLE + h])
    while val[head] != x:
        h = (h & ~mask) | ((h + _ONE) & mask)
        head = _U(index[_TABLE + h])
    after = _U(index[_NEXT + s])
    if after != s:
        before = _U(index[_PREV + s])
        index[_NEXT + before] = after
        index[_PREV + after] = before
        index[_TABLE + h] = after
        paired = _leave(index, paired, s)
        if before == after:
            paired = _leave(index, paired, after)
        return paired
    hole, cell = h, h  # the last of its value: its cell is emptied, and later ones move up (Knuth 6.4, algorithm R)
    while True:
        cell = (cell & ~mask) | ((cell + _ONE) & mask)
        head = _U(index[_TABLE + cell])
        if head == _NONE:
            break
        if ((cell - _home(val[head], head, bits, apart)) & mask) >= ((cell - hole) & mask):
            index[_TABLE + hole] = head
            hole = cell
    index[_TABLE + hole] = _NONE
    return paired


@_compiled
def _build(val: Any, n: int, index: Any, bits: Any, apart: Any) -> Any:
    """The lists of the first n terms from scratch; returns the number of paired slots."""
    for cell in range(3 << bits):
        index[_TABLE + _U(cell)] = _NONE
    paired = _ZERO
    for p in range(3):
        for i in range(n):
            paired, _ = _link(val, index, paired, _U(p) * _CAP + _U(i), bits, apart)
    return paired


@_compiled
def _remove(val: Any, n: int, i: int) -> int:
    """Term i out, the last one in its place; returns the number of terms."""
    n -= 1
    for p in range(3):
        val[p * CAPACITY + i] = val[p * CAPACITY + n]
    return n


@_compiled
def settle(val: Any, n: int, fold: int) -> int:
    """Drop terms with a zero factor and join terms that share two, as long as there are any; returns their number."""
    again = True
    while again:
        again = False
        i = 0
        while i < n:
            if val[i] == _ZERO or val[CAPACITY + i] == _ZERO or val[2 * CAPACITY + i] == _ZERO:
                n = _remove(val, n, i)
            else:
                i += 1
        for i in range(n):
            x, y, z = val[i], val[CAPACITY + i], val[2 * CAPACITY + i]
            for j in range(i + 1, n):
                for turn in range(fold):
                    a = val[turn * CAPACITY + j]
                    b = val[(turn + 1) % 3 * CAPACITY + j]
                    c = val[(turn + 2) % 3 * CAPACITY + j]
                    if int(x == a) + int(y == b) + int(z == c) >= 2:
                        if x != a:
                            val[i] = x ^ a
                        elif y != b:
                            val[CAPACITY + i] = y ^ b
                        else:
                            val[2 * CAPACITY + i] = z ^ c
                        n = _remove(val, n, j)
                        again = True
                        break
                if again:
                    break
            if again:
                break
    return n


@_compiled
def _plus(val: Any, n: int, fold: int, state: Any) -> int:
    """One more term: a split of a term by a factor of another one, and a flip of the two, where all factors differ.

    a (x) b (x) c + a' (x) b' (x) c' -> a (x) (b + b') (x) c + a (x) b' (x) (c + c') + (a + a') (x) b' (x) c'

    Where no two terms are found that differ in all factors, the split alone.
    """
    if n < 2:
        return n
    for attempt in range(32):
        i, j = _below(state, n), _below(state, n)
        if i == j:
            continue
        p = _below(state, 3)
        q = _below(state, 3) if fold == 3 else p
        step = 1 + _below(state, 2)
        p1, q1 = (p + step) % 3, (q + step) % 3
        p2, q2 = (p1 + step) % 3, (q1 + step) % 3
        a1, b1, c1 = val[p * CAPACITY + i], val[p1 * CAPACITY + i], val[p2 * CAPACITY + i]
        a2, b2, c2 = val[q * CAPACITY + j], val[q1 * CAPACITY + j], val[q2 * CAPACITY + j]
        if a1 == a2:
            continue
        if attempt < 16:
            if b1 == b2 or c1 == c2:
                continue
            val[p1 * CAPACITY + i] = b1 ^ b2
            val[p2 * CAPACITY + n] = c1 ^ c2
        else:
            val[p2 * CAPACITY + n] = c2
        val[p * CAPACITY + n] = a1
        val[p1 * CAPACITY + n] = b2
        val[q * CAPACITY + j] = a1 ^ a2
        return n + 1
    return n


@_compiled
def _rank(val: Any, n: int, cubes: Any, fold: int) -> int:
    """Terms in all; modulo 2 an orbit of three equal terms is one cube, and with an equal cube nothing."""
    rank = len(cubes) + fold * n
    if fold == 3:
        for i in range(n):
            if val[i] == val[CAPACITY + i] and val[i] == val[2 * CAPACITY + i]:
                rank -= 2
                for j in range(len(cubes)):
                    if cubes[j] == val[i]:
                        rank -= 2
    return rank


@_compiled
def advance(
    val: Any,
    sizes: Any,
    cubes: Any,
    best: Any,
    best_sizes: Any,
    index: Any,
    state: Any,
    fold: int,
    steps: int,
    patience: int,
    margin: int,
    target: int,
) -> int:
    """Walk for ``steps`` steps, or until a reduction ends at rank <= ``target``; returns the steps made.

    A step is a flip, except where it drew two factors of one orbit. sizes: (terms, flips made so far); cubes: their
    factors; best_sizes: (terms, rank) of the copy in ``best`` of the lowest state. After ``patience`` steps without a
    reduction a plus-transition is made, where the rank is below the best one + margin; where there is nothing to flip,
    one is made at once (none and the end of the walk with margin 0).
    """
    n = sizes[0]
    apart = _ONE if fold == 1 else _ZERO
    bits = _U(4)
    while bits < _U(_MAX_BITS) and (1 << np.int64(bits)) < 8 * (n if fold == 1 else 3 * n):
        bits += _ONE
    paired = _build(val, n, index, bits, apart)
    done, since = 0, 0
    while done < steps:
        left = min(steps - done, patience - since)
        made, void = left, 0
        event = False
        stuck = paired == _ZERO
        if stuck:
            made = 1
        else:
            x = state[0]
            for f in range(left):
                x += _GOLDEN
                r = _mix(x)
                s = _U(index[_PAIRED + (((r >> _HALF) * paired) >> _HALF)])
                t = _U(index[_NEXT + s]) if r & _ONE else _U(index[_PREV + s])
                if (s ^ t) & _MASK == _ZERO:  # two factors of one orbit
                    void += 1
                    continue
                s1, t1 = _turn(s), _turn(t)
                s2, t2 = _turn(s1), _turn(t1)
                swap = (r & _TWO) != _ZERO
                sa, ta = (s2, t2) if swap else (s1, t1)
                sb, tb = (s1, t1) if swap else (s2, t2)
                a = val[sa] ^ val[ta]
                b = val[sb] ^ val[tb]
                if a == _ZERO or b == _ZERO:
                    val[sa] = a
                    val[tb] = b
                    event = True
                else:
                    paired = _unlink(val, index, paired, sa, bits, apart)
                    paired = _unlink(val, index, paired, tb, bits, apart)
                    val[sa] = a
                    val[tb] = b
                    paired, first = _link(val, index, paired, sa, bits, apart)
                    paired, second = _link(val, index, paired, tb, bits, apart)
                    event = first or second
                if event:
                    made = f + 1
                    break
            state[0] = x
            sizes[1] += made - void
        done += made
        since += made
        if event:
            since = 0
            n = settle(val, n, fold)
            rank = _rank(val, n, cubes, fold)
            if rank < best_sizes[1]:
                best_sizes[0], best_sizes[1] = n, rank
                for p in range(3):
                    for i in range(n):
                        best[p * CAPACITY + i] = val[p * CAPACITY + i]
            if rank <= target:
                break
            paired = _build(val, n, index, bits, apart)
        elif stuck or since >= patience:
            since = 0
            if stuck and (margin == 0 or n < 2):
                break
            if (stuck or len(cubes) + fold * n < best_sizes[1] + margin) and n < MAX_TERMS:
                n = _plus(val, n, fold, state)
                paired = _build(val, n, index, bits, apart)
    sizes[0] = n
    return done


class Walk:
    """A walker: terms (r', 3) of bit masks (with ``fold`` 3 one for each orbit) and fixed cubes, and what it has met.

    Two walkers with equal terms, seed and calls of ``run`` make equal flips.
    """

    def __init__(self, terms: Bits, cubes: Bits, fold: int, rng: np.random.Generator) -> None:
        if len(terms) > MAX_TERMS:
            raise ValueError(f"{len(terms)} terms; a walk takes at most {MAX_TERMS}")
        self.fold = fold
        self.cubes = np.array(cubes, dtype=np.uint64)
        self._val = np.zeros(_SLOTS, dtype=np.uint64)
        for p in range(3):
            self._val[p * CAPACITY : p * CAPACITY + len(terms)] = terms[:, p]
        n = int(settle(self._val, len(terms), fold))
        self._sizes = np.array([n, 0], dtype=np.int64)
        self._best = self._val.copy()
        self._best_sizes = np.array([n, int(_rank(self._val, n, self.cubes, fold))], dtype=np.int64)
        self._index = np.zeros(4 * _SLOTS + (3 << _MAX_BITS), dtype=np.uint16)
        self._state = rng.integers(0, 2**64, size=1, dtype=np.uint64)

    @property
    def rank(self) -> int:
        """The rank where the walk stands."""
        return int(_rank(self._val, int(self._sizes[0]), self.cubes, self.fold))

    @property
    def flips(self) -> int:
        """The flips made so far."""
        return int(self._sizes[1])

    @property
    def best_rank(self) -> int:
        """The lowest rank met."""
        return int(self._best_sizes[1])

    def run(self, steps: int, patience: int, margin: int, target: int = 0) -> int:
        """Walk on (see ``advance``); returns the steps made."""
        done = advance(
            self._val,
            self._sizes,
            self.cubes,
            self._best,
            self._best_sizes,
            self._index,
            self._state,
            self.fold,
            steps,
            patience,
            margin,
            target,
        )
        return int(done)

    def terms(self, best: bool = False) -> Bits:
        """(r, 3): every term where the walk stands, or where its rank was lowest; orbits are written out."""
        val, n = (self._best, int(self._best_sizes[0])) if best else (self._val, int(self._sizes[0]))
        orbits = np.stack([val[p * CAPACITY : p * CAPACITY + n] for p in range(3)], axis=1)
        if self.fold == 1:
            return orbits
        flat = (orbits[:, 0] == orbits[:, 1]) & (orbits[:, 0] == orbits[:, 2])
        turned = [np.roll(orbits[~flat], -turn, axis=1) for turn in range(3)]
        single, count = np.unique(np.concatenate([self.cubes, orbits[flat, 0]]), return_counts=True)
        return np.concatenate([*turned, np.repeat(single[count % 2 == 1, None], 3, axis=1)])
