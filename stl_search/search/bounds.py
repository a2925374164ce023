"""Proved lower bounds on the rank of <m,k,n>, each with its source, and ranks to aim at."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stl_search import known
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


def reached_rank(shape: Shape) -> int:
    """A rank that ternary schemes of this shape are known to reach; m*k*n where nothing better is listed."""
    found = known.rank(shape, "ZT")
    return math.prod(shape) if found is None else found.rank
