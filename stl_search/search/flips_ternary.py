"""Compiled random walks in the flip graph over {-1, 0, 1}: what they meet is a scheme over ZT, with nothing to lift.

Imported only when a walk is made, since numba is heavy. The lists of equal factors are those of ``flips``, whose
changes numba's cache on disk does not see from here: delete the cache, or touch this file, after changing them.

A term is three factors (a, b, c), each at most 8 x 8, c the transpose of w. A factor is two bit masks, where it is +1
and where it is -1: those of slot s (see ``flips``) stand in ``val[s]`` and ``val[_SLOTS + s]``. Factors that are equal
up to sign have equal codes, ``code[s]``, a mix of both masks that takes the part of the masks over Z2; equal codes are
no proof, so that masks are compared before anything is done. With a' = t a, t = +-1, a flip is one of the two

    a (x) b (x) c + a' (x) b' (x) c'  ->  a (x) (b + e b') (x) c + a' (x) b' (x) (c' - e t c),    e = +-1,

refused where a coefficient would leave {-1, 0, 1}. A reduction joins terms that share two factors up to sign.

Kauers and Wood, "Exploring the meta flip graph for matrix multiplication", 2025; Perminov, "Fast matrix
multiplication via ternary meta flip graphs", 2025.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search.errors import UsageError
from stl_search.jit import compiled
from stl_search.scheme import Scheme, Shape
from stl_search.search.flips import (
    _GOLDEN,
    _HALF,
    _INDEX_SIZE,
    _MIX1,
    _MIX2,
    _NEXT,
    _ONE,
    _PAIRED,
    _PREV,
    _SLOTS,
    _TOP,
    _TWO,
    _U,
    _ZERO,
    CAPACITY,
    MAX_TERMS,
    Group,
    _below,
    _build,
    _inlined,
    _kinds,
    _link,
    _mix,
    _table_bits,
    _turn,
    _unlink,
)

__all__ = ["TernaryWalk"]

_TRIES = 32  # of a plus-transition, the second half of them with the split alone

Bits = npt.NDArray[np.uint64]


@_inlined
def _code(p: Any, m: Any) -> Any:
    """One word for a factor up to sign, given its two masks; without collisions for one mask fixed."""
    x, y = (p, m) if p > m else (m, p)
    y *= _MIX1
    return x * _MIX2 + (y ^ (y >> _HALF))


@_inlined
def _sign(val: Any, s: Any, t: Any) -> int:
    """1 where the factors of slots s and t are equal, -1 where they are opposite, or else 0."""
    p, m, q, r = val[s], val[s + _TOP], val[t], val[t + _TOP]
    if (p == q) & (m == r):
        return 1
    return -1 if (p == r) & (m == q) else 0


@_inlined
def _sum(p: Any, m: Any, q: Any, r: Any) -> Any:
    """The masks of the sum of two factors given by theirs, and a mask that is 0 where no coefficient is +-2."""
    plus, minus = p | q, m | r
    return plus & ~minus, minus & ~plus, (p & q) | (m & r)


@_inlined
def _put(val: Any, code: Any, s: Any, p: Any, m: Any) -> None:
    val[s] = p
    val[s + _TOP] = m
    code[s] = _code(p, m)


@compiled
def _copy(val: Any, code: Any, i: int, j: int) -> None:
    """Term j in the place of term i."""
    for factor in range(3):
        s, t = _U(factor * CAPACITY + i), _U(factor * CAPACITY + j)
        _put(val, code, s, val[t], val[t + _TOP])


@compiled
def _encode(val: Any, code: Any, n: int) -> None:
    """The codes of the first n terms."""
    for i in range(n):
        _copy(val, code, i, i)


@compiled
def _join(val: Any, code: Any, i: int, j: int) -> bool:
    """Add term i to term j where they share two factors up to sign and the sum is ternary; says whether it was."""
    for p in range(3):
        s, t = _U(p * CAPACITY + i), _U(p * CAPACITY + j)
        s1, t1 = _turn(s), _turn(t)
        if (code[s] == code[t]) & (code[s1] == code[t1]):
            sign = _sign(val, s, t) * _sign(val, s1, t1)
            if sign != 0:
                s2, t2 = _turn(s1), _turn(t1)
                q, r = val[s2], val[s2 + _TOP]
                if sign < 0:
                    q, r = r, q
                x, y, over = _sum(val[t2], val[t2 + _TOP], q, r)
                if over == _ZERO:
                    _put(val, code, t2, x, y)
                    return True
    return False


@compiled
def _settle(val: Any, code: Any, n: int) -> int:
    """Drop terms that are zero and join terms that can be joined, as long as there are any; returns their number."""
    again = True
    while again:
        again = False
        i = 0
        while i < n:
            zero = False
            for p in range(3):
                zero |= (val[p * CAPACITY + i] | val[_SLOTS + p * CAPACITY + i]) == _ZERO
            if zero:
                n -= 1
                _copy(val, code, i, n)
            else:
                i += 1
        for i in range(n):
            for j in range(i + 1, n):
                x = code[i] == code[j]
                y = code[CAPACITY + i] == code[CAPACITY + j]
                z = code[2 * CAPACITY + i] == code[2 * CAPACITY + j]
                if ((x & y) | (y & z) | (z & x)) and _join(val, code, i, j):
                    n -= 1
                    _copy(val, code, i, n)
                    again = True
                    break
            if again:
                break
    return n


@compiled
def _plus(val: Any, code: Any, n: int, state: Any) -> int:
    """One more term: a split of a term by a factor of another one, and a flip of the two, where all factors differ.

    With d, e = +-1,  a (x) b (x) c + a' (x) b' (x) c'
    -> a (x) (b + e b') (x) c + a (x) b' (x) (d c' - e c) + (a' - d a) (x) b' (x) c'.

    Where no two terms are found that allow it, the split alone: a' (x) b' (x) c' = d a (x) b' (x) c' + ....
    """
    if n < 2:
        return n
    for attempt in range(_TRIES):
        i, j = _below(state, n), _below(state, n)
        if i == j:
            continue
        p = _below(state, 3)
        step = 1 + _below(state, 2)
        p1 = (p + step) % 3
        p2 = (p1 + step) % 3
        signs = _below(state, 4)
        i0, i1, i2 = _U(p * CAPACITY + i), _U(p1 * CAPACITY + i), _U(p2 * CAPACITY + i)
        j0, j1, j2 = _U(p * CAPACITY + j), _U(p1 * CAPACITY + j), _U(p2 * CAPACITY + j)
        if code[i0] == code[j0]:
            continue
        a, a_ = val[i0], val[i0 + _TOP]
        cp, cm = val[j2], val[j2 + _TOP]
        if signs & 1:  # d = -1
            rp, rm, over = _sum(val[j0], val[j0 + _TOP], a, a_)
            cp, cm = cm, cp
        else:
            rp, rm, over = _sum(val[j0], val[j0 + _TOP], a_, a)
        if over != _ZERO:
            continue
        if attempt < _TRIES // 2:
            if (code[i1] == code[j1]) | (code[i2] == code[j2]):
                continue
            if signs & 2:  # e = -1
                bp, bm, over_b = _sum(val[i1], val[i1 + _TOP], val[j1 + _TOP], val[j1])
                cp, cm, over_c = _sum(cp, cm, val[i2], val[i2 + _TOP])
            else:
                bp, bm, over_b = _sum(val[i1], val[i1 + _TOP], val[j1], val[j1 + _TOP])
                cp, cm, over_c = _sum(cp, cm, val[i2 + _TOP], val[i2])
            if (over_b | over_c) != _ZERO:
                continue
            _put(val, code, i1, bp, bm)
        _put(val, code, _U(p * CAPACITY + n), a, a_)
        _put(val, code, _U(p1 * CAPACITY + n), val[j1], val[j1 + _TOP])
        _put(val, code, _U(p2 * CAPACITY + n), cp, cm)
        _put(val, code, j0, rp, rm)
        return n + 1
    return n


@compiled
def _advance(
    val: Any,
    code: Any,
    sizes: Any,
    best: Any,
    index: Any,
    state: Any,
    group: Any,
    steps: int,
    patience: int,
    margin: int,
    target: int,
) -> int:
    """Walk for ``steps`` steps, or until a reduction ends at rank <= ``target``; returns the steps made.

    A step is a flip, or a draw of two terms where both flips are refused. sizes: (terms, flips made so far, terms in
    ``best``, the lowest state). Plus-transitions are as in ``flips._advance``.
    """
    kinds = _kinds(group)
    n = sizes[0]
    bits = _table_bits(n)
    paired = _build(code, n, code, index, bits, kinds, group, True)
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
                sign = _sign(val, s, t)
                if sign == 0:  # equal codes, different factors
                    void += 1
                    continue
                sb, tb = _turn(s), _turn(t)  # b and c need no drawing: s and t are drawn
                sc, tc = _turn(sb), _turn(tb)
                bp, bm, bq, br = val[sb], val[sb + _TOP], val[tb], val[tb + _TOP]
                cp, cm, cq, cr = val[tc], val[tc + _TOP], val[sc], val[sc + _TOP]
                if sign > 0:  # now the flip for e = 1 adds both
                    cq, cr = cr, cq
                over = (bp & bq) | (bm & br) | (cp & cq) | (cm & cr)
                other = (bp & br) | (bm & bq) | (cp & cr) | (cm & cq)
                if (over != _ZERO) & (other != _ZERO):
                    void += 1
                    continue
                if (over != _ZERO) | ((other == _ZERO) & ((r & _TWO) != _ZERO)):
                    bq, br, cq, cr = br, bq, cr, cq
                bp, bm, over = _sum(bp, bm, bq, br)
                cp, cm, over = _sum(cp, cm, cq, cr)
                if ((bp | bm) == _ZERO) | ((cp | cm) == _ZERO):
                    _put(val, code, sb, bp, bm)
                    _put(val, code, tc, cp, cm)
                    event = True
                else:
                    paired = _unlink(code, index, paired, sb, bits, kinds)
                    paired = _unlink(code, index, paired, tc, bits, kinds)
                    _put(val, code, sb, bp, bm)
                    _put(val, code, tc, cp, cm)
                    paired, one = _link(code, code, index, paired, sb, bits, kinds, group, True)
                    paired, two = _link(code, code, index, paired, tc, bits, kinds, group, True)
                    event = (one | two) != _ZERO
                if event:
                    made = f + 1
                    break
            state[0] = x
            sizes[1] += made - void
        done += made
        since += made
        if event:
            terms = n
            n = _settle(val, code, n)
            if n == terms:  # what shares two factors cannot be joined, and the lists still hold
                continue
            since = 0
            if n < sizes[2]:
                sizes[2] = n
                for factor in range(6):
                    for i in range(n):
                        best[factor * CAPACITY + i] = val[factor * CAPACITY + i]
            if n <= target:
                break
            paired = _build(code, n, code, index, bits, kinds, group, True)
        elif stuck or since >= patience:
            since = 0
            if stuck and (margin == 0 or n < 2):
                break
            if (stuck or n < sizes[2] + margin) and n < MAX_TERMS:
                n = _plus(val, code, n, state)
                paired = _build(code, n, code, index, bits, kinds, group, True)
    sizes[0] = n
    return done


class TernaryWalk:
    """A walker from a scheme over ZT, sides <= 8, and what it has met.

    Two walkers with equal schemes, seed and calls of ``run`` make equal flips. Raises UsageError for a scheme that has
    other coefficients, too many terms or too large factors.
    """

    def __init__(self, scheme: Scheme, rng: np.random.Generator) -> None:
        n = scheme.rank
        if scheme.ring.name != "ZT":
            raise UsageError(f"a scheme over {scheme.ring.name}: ternary walks take schemes over ZT")
        if max(scheme.shape) > 8 or n > MAX_TERMS:
            raise UsageError(f"a scheme of sides {scheme.shape}, rank {n}: walks take sides <= 8, rank <= {MAX_TERMS}")
        self.shape: Shape = scheme.shape
        self._val = np.zeros(2 * _SLOTS, dtype=np.uint64)
        for p, factor in enumerate((scheme.u, scheme.v, scheme.w.swapaxes(1, 2))):
            flat = factor.reshape(n, -1)
            places = np.arange(flat.shape[1], dtype=np.uint64)
            for part, hit in enumerate((flat == 1, flat == -1)):
                at = part * _SLOTS + p * CAPACITY
                self._val[at : at + n] = (hit.astype(np.uint64) << places).sum(axis=1, dtype=np.uint64)
        self._code = np.zeros(_SLOTS, dtype=np.uint64)
        _encode(self._val, self._code, n)
        n = int(_settle(self._val, self._code, n))
        self._best = self._val.copy()
        self._sizes = np.array([n, 0, n], dtype=np.int64)
        self._index = np.zeros(_INDEX_SIZE, dtype=np.uint16)
        self._state = rng.integers(0, 2**64, size=1, dtype=np.uint64)
        self._group = _ALONE.array

    @property
    def rank(self) -> int:
        """The rank where the walk stands."""
        return int(self._sizes[0])

    @property
    def flips(self) -> int:
        """The flips made so far."""
        return int(self._sizes[1])

    @property
    def best_rank(self) -> int:
        """The lowest rank met."""
        return int(self._sizes[2])

    def run(self, steps: int, patience: int, margin: int, target: int = 0) -> int:
        """Walk on (see ``_advance``); returns the steps made."""
        done = _advance(
            self._val,
            self._code,
            self._sizes,
            self._best,
            self._index,
            self._state,
            self._group,
            steps,
            patience,
            margin,
            target,
        )
        return int(done)

    def scheme(self, best: bool = False) -> Scheme:
        """<m,k,n> over ZT: where the walk stands, or where its rank was lowest."""
        val, n = (self._best, self.best_rank) if best else (self._val, self.rank)
        m, k, o = self.shape
        factors = []
        for p, (rows, cols) in enumerate(((m, k), (k, o), (o, m))):
            places = np.arange(rows * cols, dtype=np.uint64)
            plus, minus = (
                (val[at : at + n, None] >> places & np.uint64(1)).astype(np.int8)
                for at in (p * CAPACITY, _SLOTS + p * CAPACITY)
            )
            factors.append((plus - minus).reshape(n, rows, cols))
        return Scheme(self.shape, "ZT", factors[0], factors[1], factors[2].swapaxes(1, 2))


_ALONE = Group.of([((0, 1, 2), tuple(np.eye(64, dtype=np.int64) for _ in range(3)))])  # type: ignore[list-item]
