"""Alternating least squares on one scheme, compiled: what ``decompose.als`` does on batches, some twenty times as fast.

Imported by ``hopping`` only when it walks, since numba is heavy. The objective is that of ``decompose``,

    F(u, v, w) = |T - sum_q u_q (x) v_q (x) w_q|^2  +  lam * sum_q |u_q|^2 |v_q|^2 |w_q|^2,

and a sweep solves for u, then v, then w, each of which is a linear system with the matrix (v v^T) * (w w^T), its
diagonal times 1 + lam. Factors stand with the products innermost: u (m*k, r), v (k*n, r), w (m*n, r).

Nothing here but +, -, *, / and square roots, in an order that is written down: every processor makes the same bits, and
so the same walk, however wide its vectors are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search.jit import compiled
from stl_search.scheme import Shape

__all__ = ["fitted"]

_EVERY = 4  # sweeps from one step ahead to the next
_BLOCK = 100  # sweeps between looks at the gain; a multiple of _EVERY, so that no step ahead spans a rescaling
_BLOCKS = 5  # so many more with the last gain must be enough to come below the limit
_BOLDEST = 60.0
_TINY = 1e-280  # a pivot that counts as none: parallel terms make the matrix singular but for the weight


@compiled
def _contract(m: int, k: int, n: int, kind: int, a: Any, b: Any, out: Any) -> None:
    """out = T contracted with the two other factors: u from (v, w) for kind 0, v from (u, w) for 1, w from (u, v)."""
    r = a.shape[1]
    for x in range(out.shape[0]):
        for q in range(r):
            out[x, q] = 0.0
    for i in range(m):
        for j in range(k):
            for s in range(n):
                x, y, z = i * k + j, j * n + s, i * n + s
                if kind == 0:
                    x, y, z = y, z, x
                elif kind == 1:
                    y, z = z, y
                for q in range(r):
                    out[z, q] += a[x, q] * b[y, q]


@compiled
def _gram(a: Any, g: Any) -> None:
    """The upper triangle of g = a^T a."""
    r = a.shape[1]
    for p in range(r):
        for q in range(p, r):
            g[p, q] = 0.0
    for x in range(a.shape[0]):
        for p in range(r):
            for q in range(p, r):
                g[p, q] += a[x, p] * a[x, q]


@compiled
def _solve(first: Any, second: Any, lam: float, right: Any, out: Any, g: Any, y: Any) -> None:
    """out with out (first * second + lam diag) = right, of the upper triangles of Gram matrices; g and y are scratch.

    Cholesky's method from the left, each step on all rows that are left, so that inner loops run along memory.
    """
    r, rows = g.shape[0], right.shape[0]
    for p in range(r):
        for q in range(p, r):
            g[p, q] = first[p, q] * second[p, q]
        g[p, p] *= 1.0 + lam
    for x in range(rows):
        for p in range(r):
            y[p, x] = right[x, p]
    for p in range(r):
        over = 1.0
        if g[p, p] > _TINY:
            over = 1.0 / math.sqrt(g[p, p])
        else:  # a term that the ones before make too, or none: it gets nothing
            g[p, p] = 1.0
            for q in range(p + 1, r):
                g[p, q] = 0.0
            for x in range(rows):
                y[p, x] = 0.0
        for q in range(p, r):
            g[p, q] *= over
        for x in range(rows):
            y[p, x] *= over
        for q in range(p + 1, r):
            share = g[p, q]
            for s in range(q, r):
                g[q, s] -= share * g[p, s]
            for x in range(rows):
                y[q, x] -= share * y[p, x]
    for p in range(r - 1, -1, -1):
        over = 1.0 / g[p, p]
        for x in range(rows):
            y[p, x] *= over
        for q in range(p):
            share = g[q, p]
            for x in range(rows):
                y[q, x] -= share * y[p, x]
    for x in range(rows):
        for p in range(r):
            out[x, p] = y[p, x]


@compiled
def _balance(u: Any, v: Any, w: Any) -> None:
    """Give the three factors of each term one norm; Newton's method for the cube root."""
    for q in range(u.shape[1]):
        a, b, c = 0.0, 0.0, 0.0
        for x in range(u.shape[0]):
            a += u[x, q] * u[x, q]
        for x in range(v.shape[0]):
            b += v[x, q] * v[x, q]
        for x in range(w.shape[0]):
            c += w[x, q] * w[x, q]
        a, b, c = math.sqrt(a), math.sqrt(b), math.sqrt(c)
        cube = a * b * c
        if not cube > 0.0:
            continue
        root = (a + b + c) / 3.0  # not below the root
        for _ in range(100):
            nearer = (2.0 * root + cube / (root * root)) / 3.0
            if not nearer < root:
                break
            root = nearer
        for x in range(u.shape[0]):
            u[x, q] *= root / a
        for x in range(v.shape[0]):
            v[x, q] *= root / b
        for x in range(w.shape[0]):
            w[x, q] *= root / c


@compiled
def _sweep(
    m: int,
    k: int,
    n: int,
    u: Any,
    v: Any,
    w: Any,
    lam: float,
    one: Any,
    two: Any,
    g: Any,
    y: Any,
    mu: Any,
    mv: Any,
    mw: Any,
) -> Any:
    """F after solving for u, v, w in turn; ``one`` and ``two`` hold the Gram matrices of v and w, before and after."""
    r = u.shape[1]
    _contract(m, k, n, 0, v, w, mu)
    _solve(one, two, lam, mu, u, g, y)
    _gram(u, one)
    _contract(m, k, n, 1, u, w, mv)
    _solve(one, two, lam, mv, v, g, y)
    _gram(v, two)
    _contract(m, k, n, 2, u, v, mw)
    _solve(one, two, lam, mw, w, g, y)
    for p in range(r):
        for q in range(p, r):
            one[p, q] = two[p, q]
    _gram(w, two)
    met = 0.0  # <T, S>, which is |S|^2 and the noise together where w is best
    for x in range(w.shape[0]):
        for q in range(r):
            met += mw[x, q] * w[x, q]
    return m * k * n - met


@compiled
def _fitted(
    m: int,
    k: int,
    n: int,
    u: Any,
    v: Any,
    w: Any,
    halvings: int,
    falling: int,
    lam: float,
    sweeps: int,
    least: float,
    limit: float,
) -> Any:
    r = u.shape[1]
    one, two, g = np.zeros((r, r)), np.zeros((r, r)), np.zeros((r, r))
    mu, mv, mw = np.empty_like(u), np.empty_like(v), np.empty_like(w)
    y = np.empty((r, max(u.shape[0], v.shape[0], w.shape[0])))
    _balance(u, v, w)
    _gram(v, one)
    _gram(w, two)
    value, weight = np.inf, lam
    for _ in range(halvings):
        weight *= 2.0
    for _ in range(halvings):
        for _ in range(falling):
            value = _sweep(m, k, n, u, v, w, weight, one, two, g, y, mu, mv, mw)
        weight *= 0.5
    _balance(u, v, w)
    _gram(v, one)
    _gram(w, two)
    step, mark = 2.0, np.inf
    v_before, w_before, v_kept, w_kept = v.copy(), w.copy(), v.copy(), w.copy()
    for i in range(sweeps):
        if i % _EVERY < _EVERY - 1:
            v_before[:], w_before[:] = v, w
            value = _sweep(m, k, n, u, v, w, lam, one, two, g, y, mu, mv, mw)
        else:  # ahead along what the last sweep changed, and back if that is no gain
            v_kept[:], w_kept[:] = v, w
            for x in range(v.shape[0]):
                for q in range(r):
                    v[x, q] += step * (v[x, q] - v_before[x, q])
            for x in range(w.shape[0]):
                for q in range(r):
                    w[x, q] += step * (w[x, q] - w_before[x, q])
            _gram(v, one)
            _gram(w, two)
            ahead = _sweep(m, k, n, u, v, w, lam, one, two, g, y, mu, mv, mw)
            if ahead <= value:
                value = ahead
                step = min(1.3 * step, _BOLDEST)
            else:
                v[:], w[:] = v_kept, w_kept
                _gram(v, one)
                _gram(w, two)
                value = _sweep(m, k, n, u, v, w, lam, one, two, g, y, mu, mv, mw)
                step = max(1.0, 0.5 * step)
        if i % _BLOCK == _BLOCK - 1:
            gain = mark - value
            if not gain >= least or value - _BLOCKS * gain > limit:
                break
            mark = value
            _balance(u, v, w)
            _gram(v, one)
            _gram(w, two)
    return value


def fitted(
    shape: Shape,
    factors: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]],
    lam: float,
    sweeps: int,
    *,
    halvings: int = 0,
    falling: int = 0,
    least: float = 0.0,
    limit: float = math.inf,
) -> float:
    """F after ``sweeps`` sweeps at the weight ``lam`` at most; the factors (.., r) are changed in place, C-contiguous.

    Before these the weight falls to ``lam`` by ``halvings``, with ``falling`` sweeps at each. Every fourth sweep at
    ``lam`` sets out further along what the one before changed, and is taken back where that is no gain, so that F does
    not rise. Sweeps end where a hundred of them gain less than ``least``, or where five times what these gained would
    not bring F below ``limit``. F is inexact by about 1e-14 mkn.

    >>> rng = np.random.default_rng(0)
    >>> round(fitted((1, 1, 2), (rng.normal(size=(1, 2)), rng.normal(size=(2, 2)), rng.normal(size=(2, 2))), 0.0, 8), 9)
    0.0
    """
    return float(_fitted(*shape, *factors, halvings, falling, lam, sweeps, least, limit))
