"""Named exact schemes that group orbits give for every size, without any search."""

from __future__ import annotations

import itertools

import numpy as np

from stl_search.errors import UsageError
from stl_search.scheme import Scheme

__all__ = ["simplex"]


def simplex(n: int) -> Scheme:
    """u, v, w: (n^3 - n + 1, n, n) over ZT: the identity and an orbit of S_{n+1} on n + 1 vectors of sum 0.

    Grochow and Moore, "Designing Strassen's algorithm" (2017), theorem 1. With vectors w_0 .. w_n, sum w_i = 0, and
    covectors f_i such that sum w_i f_i = I, the sum over all i, j, k of

        w_i (f_j - f_i)  (x)  w_j (f_k - f_j)  (x)  w_k (f_i - f_k)

    is T - I (x) I (x) I in trace form: every mixed product sums one of the w's alone. Terms with two equal indices
    vanish, which leaves (n + 1) n (n - 1). There a unitary 2-design; here w_i = e_i, w_n = -(1, .., 1), f_i = e_i and
    f_n = 0, which are ternary. For n = 2 it is Strassen's algorithm.

    Raises UsageError for n below 1.

    >>> simplex(2).rank, simplex(3).rank
    (7, 25)
    """
    if n < 1:
        raise UsageError(f"n is {n}, must be at least 1")
    w = np.vstack([np.eye(n, dtype=np.int8), -np.ones((1, n), dtype=np.int8)])
    f = np.vstack([np.eye(n, dtype=np.int8), np.zeros((1, n), dtype=np.int8)])
    one = np.eye(n, dtype=np.int8)
    terms = [(one, one, one)]
    for i, j, k in itertools.permutations(range(n + 1), 3):
        a, b, c = np.outer(w[i], f[j] - f[i]), np.outer(w[j], f[k] - f[j]), np.outer(w[k], f[i] - f[k])
        terms.append((a, b, c.T))  # trace form pairs c with C^T
    return Scheme((n, n, n), "ZT", *(np.stack(x) for x in zip(*terms, strict=True)))
