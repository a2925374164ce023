"""Compiled loops of ``groups.tpp``: cliques in quotient graphs, and annealing of maps into a group. Needs numba.

Imported by ``groups.tpp`` only when a search is run; the plain versions that they are tested against are there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stl_search.jit import compiled

__all__ = ["anneal", "find_clique", "kept"]


@compiled
def find_clique(table: Any, inverse: Any, allowed: Any, size: int, out: Any) -> bool:
    """Whether some {0 = x_0 < x_1 < .. < x_(size-1)} has every x_i x_j^-1 (i != j) in ``allowed`` (n,); fills ``out``.

    ``allowed`` must be closed under inversion. Depth first, with the candidates of each depth kept.
    """
    n = len(table)
    out[0] = 0
    if size == 1:
        return True
    candidates = np.zeros((size, n), dtype=np.bool_)
    for x in range(1, n):
        candidates[1, x] = allowed[x]
    cursor = np.zeros(size, dtype=np.int64)
    depth = 1
    while depth >= 1:
        x = cursor[depth] + 1
        while x < n and not candidates[depth, x]:
            x += 1
        if x >= n:
            depth -= 1
            continue
        cursor[depth] = x
        out[depth] = x
        if depth == size - 1:
            return True
        left = 0
        for y in range(n):
            candidates[depth + 1, y] = y > x and candidates[depth, y] and allowed[table[y, inverse[x]]]
            left += candidates[depth + 1, y]
        if left >= size - 1 - depth:
            depth += 1
            cursor[depth] = x
    return False


@compiled
def kept(table: Any, a: Any, b: Any, m: int, k: int, n: int, counts: Any) -> float:
    """sum over (i, c) and g of n_ic(g)^2 / N(g), for flat maps a (m*k,) and b (k*n,); ``counts`` (order,) is scratch.

    N(g) counts the (i, j, j', c) with a_ij b_j'c = g, n_ic(g) those with j = j'.
    """
    for g in range(len(counts)):
        counts[g] = 0
    for p in range(m * k):
        for q in range(k * n):
            counts[table[a[p], b[q]]] += 1
    total = 0.0
    for i in range(m):
        for c in range(n):
            for j in range(k):
                g = table[a[i * k + j], b[j * n + c]]
                same = 0
                for h in range(k):
                    if table[a[i * k + h], b[h * n + c]] == g:
                        same += 1
                total += same / counts[g]
    return total


@compiled
def anneal(
    table: Any,
    inverse: Any,
    structured: bool,
    state: Any,
    m: int,
    k: int,
    n: int,
    places: Any,
    values: Any,
    coins: Any,
    heats: Any,
    counts: Any,
    flat: Any,
    top: Any,
) -> float:
    """Metropolis on ``state``, which becomes the best met; returns its ``kept``.

    ``structured``: state = (s, t, u) end to end, a_ij = s_i^-1 t_j and b_jc = t_j^-1 u_c; else state = (a, b) flat.
    Step x proposes values[x] at places[x] and takes a loss d with probability exp(-d / heats[x]), by coins[x].
    ``counts`` (order,), ``flat`` (m*k + k*n,), ``top`` (as state) are scratch. Plain loops, since these compile fast.
    """
    best, now = -1.0, -1.0
    for x in range(-1, len(places)):
        old = 0
        if x >= 0:
            old = state[places[x]]
            state[places[x]] = values[x]
        if structured:
            for i in range(m):
                for j in range(k):
                    flat[i * k + j] = table[inverse[state[i]], state[m + j]]
            for j in range(k):
                for c in range(n):
                    flat[m * k + j * n + c] = table[inverse[state[m + j]], state[m + k + c]]
        else:
            for p in range(len(flat)):
                flat[p] = state[p]
        new = kept(table, flat, flat[m * k :], m, k, n, counts)
        if x >= 0 and new < now and coins[x] >= math.exp((new - now) / heats[x]):
            state[places[x]] = old
            continue
        now = new
        if now > best + 1e-9:
            best = now
            for p in range(len(state)):
                top[p] = state[p]
            if best > m * k * n - 1e-9:
                break
    for p in range(len(state)):
        state[p] = top[p]
    return best
