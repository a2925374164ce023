"""Proved lower bounds on the rank of <m,k,n>, each with its source, and the ranks that are known to be reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stl_search.scheme import Shape

__all__ = ["LowerBound", "lower_bound", "reached_rank"]


@dataclass(frozen=True)
class LowerBound:
    """Every exact scheme has rank >= ``rank``; ``source`` says who proved it."""

    rank: int
    source: str


def lower_bound(shape: Shape, ring: str) -> LowerBound:
    """The best bound known to this program for exact schemes of ``shape`` over ``ring``.

    A bound over Z2 holds for ZT and Z as well, since reduction modulo 2 keeps a scheme exact.

    >>> lower_bound((2, 2, 2), "Q").rank, lower_bound((3, 3, 3), "Q").rank, lower_bound((3, 2, 3), "Z").rank
    (7, 19, 15)
    """
    small, middle, large = sorted(shape)
    bounds = [LowerBound(middle * large, "a flattening of the tensor has this matrix rank")]
    if small == 1:
        bounds.append(LowerBound(middle * large, "attained by the classical algorithm"))
    modular = ring in ("Z2", "ZT", "Z")
    if small == 2:
        if (middle, large) == (2, 2):
            bounds.append(LowerBound(7, "Winograd 1971, Linear Algebra Appl. 4 (any field)"))
        if (middle, large) == (2, 3):
            bounds.append(LowerBound(11, "Alekseyev 1985, J. Algorithms 6 (any field)"))
        if (middle, large) == (2, 4):
            bounds.append(LowerBound(14, "Alekseev and Smirnov 2013, Proc. Steklov Inst. Math. 282 (any field)"))
        if modular and middle == 2:
            bounds.append(LowerBound(math.ceil(7 * large / 2), "Hopcroft and Kerr 1971, SIAM J. Appl. Math. 20 (Z2)"))
        if modular and (middle, large) == (3, 3):
            bounds.append(LowerBound(15, "Hopcroft and Kerr 1971, SIAM J. Appl. Math. 20 (Z2)"))
    if small >= 3:
        # n x m by m x n, m >= n >= 3, in each way that two equal sides allow
        for n, m in {(small, large)} if small == middle else {(middle, small)} if middle == large else set():
            if m >= n:
                bounds.append(LowerBound(2 * m * n + 2 * n - m - 2, "Blaeser 2003, J. Complexity 19 (any field)"))
    return max(bounds, key=lambda b: b.rank)


# Ranks that exact schemes are known to reach over Z (sorted shape): targets for the factors that a composition needs.
_REACHED = {
    (2, 2, 2): 7,
    (2, 2, 3): 11,
    (2, 2, 4): 14,
    (2, 2, 5): 18,
    (2, 3, 3): 15,
    (2, 3, 4): 20,
    (2, 3, 5): 25,
    (2, 4, 4): 26,
    (2, 4, 5): 33,
    (2, 5, 5): 40,
    (3, 3, 3): 23,
    (3, 3, 4): 29,
    (3, 3, 5): 36,
    (3, 4, 4): 38,
    (3, 4, 5): 47,
    (3, 5, 5): 58,
    (4, 4, 4): 49,
    (4, 4, 5): 61,
    (4, 5, 5): 76,
    (5, 5, 5): 93,
}


def reached_rank(shape: Shape) -> int:
    """A rank that exact integer schemes of this shape are known to reach; m*k*n where nothing better is recorded."""
    m, k, n = shape
    low, mid, high = sorted(shape)
    return _REACHED.get((low, mid, high), m * k * n)
