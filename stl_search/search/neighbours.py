"""Exact schemes of one shape made from schemes of others: projections, extensions, direct sums, Kronecker products.

A find for <m,k,n> is in this way a start for the search of every neighbouring shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from stl_search import transform
from stl_search.scheme import Scheme, Shape
from stl_search.search.compose import splits

__all__ = ["Made", "derived", "distance", "to_shape"]

_REACH = 2  # how much the sides of two shapes may differ, in all, for one to be brought to the other
_KEPT = 12


def distance(a: Shape, b: Shape) -> int:
    """By how much the sides differ in all, in the best order of sides.

    >>> distance((2, 4, 5), (5, 5, 2)), distance((2, 2, 2), (3, 3, 3))
    (1, 3)
    """
    return sum(abs(x - y) for x, y in zip(sorted(a), sorted(b), strict=True))


def to_shape(scheme: Scheme, shape: Shape) -> Scheme:
    """<m,k,n> -> any shape: sides in the nearest order, projected where too long, extended by standard products.

    Of the rows, inner indices or columns, those are left out without which fewest terms remain.

    >>> to_shape(transform.classical((3, 2, 4)), (2, 3, 3)).rank
    18
    """
    orders = sorted(set(itertools.permutations(scheme.shape)))
    nearest = min(orders, key=lambda order: sum(abs(x - y) for x, y in zip(order, shape, strict=True)))
    return transform.extend(_projected(transform.permute_to(scheme, nearest), shape), shape)


def _projected(scheme: Scheme, shape: Shape) -> Scheme:
    """The scheme with its sides cut down to those of ``shape``, one index after another, fewest terms first."""
    for side in range(3):
        while scheme.shape[side] > shape[side]:
            indices = range(scheme.shape[side])
            options = []
            for left_out in indices:
                kept: list[list[int] | None] = [None, None, None]
                kept[side] = [i for i in indices if i != left_out]
                options.append(transform.project(scheme, *kept))
            scheme = transform.simplify(min(options, key=lambda one: one.rank))
    return scheme


@dataclass(frozen=True)
class Made:
    """A scheme, and those that it was made from."""

    scheme: Scheme
    sources: tuple[Scheme, ...]


def derived(shape: Shape, schemes: Iterable[Scheme]) -> list[Made]:
    """Schemes of ``shape`` made from those given (of one ring, or of rings within each other), lowest ranks first.

    Each one near enough is brought to the shape by itself; two of them, or one and a classical part with a side of 1,
    are put together where the shape is their direct sum or Kronecker product.

    >>> parts = [transform.classical((2, 2, 2)), transform.classical((2, 3, 3))]
    >>> [made.scheme.rank for made in derived((2, 2, 3), parts)]
    [12]
    """
    given = sorted(schemes, key=lambda one: (one.rank, one.id))
    made = [Made(to_shape(one, shape), (one,)) for one in given if distance(one.shape, shape) <= _REACH]
    best: dict[tuple[int, ...], Scheme] = {}
    for one in given:
        best.setdefault(tuple(sorted(one.shape)), one)
    for operation, first, second in splits(shape) if given else ():
        known = [best.get(tuple(sorted(part))) for part in (first, second)]
        used = tuple(one for one in known if one is not None)
        if used and all(one is not None or min(part) == 1 for one, part in zip(known, (first, second), strict=True)):
            one, two = (
                transform.classical(part, given[0].ring) if one is None else transform.permute_to(one, part)
                for one, part in zip(known, (first, second), strict=True)
            )
            made.append(Made(getattr(transform, operation)(one, two), used))
    unique: dict[str, Made] = {}
    for new in made:
        unique.setdefault(new.scheme.id, new)
    return sorted(unique.values(), key=lambda new: (new.scheme.rank, new.scheme.id))[:_KEPT]
