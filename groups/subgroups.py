"""Subgroups of a finite group: all of them, the normal ones, the series they form, and quotients.

A subgroup is a sorted tuple of elements of its group; ``as_group`` turns it into a group of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

import numpy as np

from stl_search.errors import BudgetError
from stl_search.groups.group import Bools, Group, GroupError, Ints, frozen

__all__ = [
    "Subgroup",
    "abelian_invariants",
    "as_group",
    "centralizer",
    "commutator_subgroup",
    "complement",
    "derived_series",
    "generated",
    "invariant_factors",
    "is_normal",
    "is_simple",
    "is_solvable",
    "lower_central_series",
    "nilpotency_class",
    "normal_closure",
    "normal_subgroups",
    "normalizer",
    "primes_of",
    "quotient",
    "subgroup_classes",
    "subgroups",
]

Subgroup = tuple[int, ...]

MAX_SUBGROUPS = 20_000


def _members(mask: Bools) -> Subgroup:
    return tuple(int(a) for a in np.flatnonzero(mask))


def generated(group: Group, elements: Iterable[int]) -> Subgroup:
    """The subgroup that ``elements`` generate."""
    return _members(group.closure(elements))


def _check_subgroup(group: Group, members: Iterable[int]) -> Subgroup:
    given = tuple(sorted(int(a) for a in members))
    if not given or given[0] < 0 or given[-1] >= group.order or generated(group, given) != given:
        raise GroupError(f"{len(given)} elements that form no subgroup of {group!r}")
    return given


def as_group(group: Group, members: Iterable[int], name: str = "") -> Group:
    """A subgroup as a group of its own: element i is the i-th smallest member; labels are kept.

    Raises GroupError where ``members`` form no subgroup.

    >>> from stl_search.groups.named import symmetric
    >>> s3 = symmetric(3)
    >>> as_group(s3, generated(s3, [3])).labels
    ('()', '(1,2,3)', '(1,3,2)')
    """
    given = _check_subgroup(group, members)
    position = np.zeros(group.order, dtype=np.intp)
    position[list(given)] = np.arange(len(given))
    table = position[group.table[np.ix_(given, given)]]
    return Group(table, (group.labels[a] for a in given), name)


def quotient(group: Group, normal: Iterable[int], name: str = "") -> tuple[Group, Ints]:
    """G/N and the projection (n,) from G onto it; a coset is labelled by its smallest member in brackets.

    Raises GroupError where N is no normal subgroup.

    >>> from stl_search.groups.named import symmetric
    >>> q, projection = quotient(symmetric(3), [0, 3, 4])
    >>> q.order, projection.tolist()
    (2, [0, 1, 1, 0, 0, 1])
    """
    members = _check_subgroup(group, normal)
    if not is_normal(group, members):
        raise GroupError(f"the subgroup of order {len(members)} is not normal in {group!r}")
    leaders = group.table[:, list(members)].min(axis=1)
    smallest, projection = np.unique(leaders, return_inverse=True)
    table = projection[group.table[np.ix_(smallest, smallest)]]
    return Group(table, (f"[{group.labels[a]}]" for a in smallest), name), frozen(projection)


def is_normal(group: Group, members: Iterable[int]) -> bool:
    """Whether a subgroup is a union of conjugacy classes."""
    given = tuple(members)
    return sum(len(group.classes[c]) for c in {int(group.class_of[a]) for a in given}) == len(given)


def normal_closure(group: Group, elements: Iterable[int]) -> Subgroup:
    """The smallest normal subgroup that contains ``elements``."""
    return generated(group, (b for a in elements for b in group.classes[group.class_of[a]]))


def _joins(group: Group, atoms: list[tuple[Subgroup, tuple[int, ...]]], what: str) -> tuple[Subgroup, ...]:
    """All joins of ``atoms`` (subgroup, generators), the empty one included, by size and then lexicographically."""
    trivial = group.closure(())
    found = {trivial.tobytes(): trivial}
    queue: list[tuple[Bools, tuple[int, ...]]] = [(trivial, ())]
    while queue:
        mask, generators = queue.pop()
        for _, more in atoms:
            if mask[list(more)].all():
                continue
            union = (*generators, *more)
            joined = group.closure(union)
            key = joined.tobytes()
            if key not in found:
                found[key] = joined
                queue.append((joined, union))
                if len(found) > MAX_SUBGROUPS:
                    raise BudgetError(f"{group!r} has more than {MAX_SUBGROUPS} {what}")
    return tuple(sorted((_members(m) for m in found.values()), key=lambda s: (len(s), s)))


@lru_cache(maxsize=64)
def subgroups(group: Group) -> tuple[Subgroup, ...]:
    """All subgroups, by order and then lexicographically. Raises BudgetError where they are too many.

    >>> from stl_search.groups.named import symmetric
    >>> len(subgroups(symmetric(4)))
    30
    """
    atoms: dict[Subgroup, tuple[int, ...]] = {}
    for a in range(1, group.order):
        if len(primes_of(int(group.element_orders[a]))) == 1:  # cyclic subgroups of prime-power order generate all
            atoms.setdefault(generated(group, [a]), (a,))
    return _joins(group, list(atoms.items()), "subgroups")


@lru_cache(maxsize=256)
def normal_subgroups(group: Group) -> tuple[Subgroup, ...]:
    """All normal subgroups, by order and then lexicographically: the joins of normal closures of classes."""
    atoms: dict[Subgroup, tuple[int, ...]] = {}
    for members in group.classes[1:]:
        closure = generated(group, members)
        atoms.setdefault(closure, as_generators(group, closure))
    return _joins(group, list(atoms.items()), "normal subgroups")


def as_generators(group: Group, members: Subgroup) -> tuple[int, ...]:
    """A few members that generate the subgroup."""
    chosen: list[int] = []
    mask = group.closure(())
    for a in members:
        if not mask[a]:
            chosen.append(a)
            mask = group.closure(chosen)
    return tuple(chosen)


def subgroup_classes(group: Group) -> tuple[tuple[Subgroup, ...], ...]:
    """Subgroups gathered by conjugacy, in the order of ``subgroups``.

    >>> from stl_search.groups.named import symmetric
    >>> [len(c) for c in subgroup_classes(symmetric(3))]
    [1, 3, 1, 1]
    """
    left = dict.fromkeys(subgroups(group))
    result: list[tuple[Subgroup, ...]] = []
    while left:
        first = next(iter(left))
        conjugated = group.table[group.table[:, list(first)], group.inverse[:, None]]
        orbit = sorted({tuple(int(a) for a in row) for row in np.sort(conjugated, axis=1)})
        for member in orbit:
            del left[member]
        result.append(tuple(orbit))
    return tuple(result)


def centralizer(group: Group, elements: Iterable[int]) -> Subgroup:
    """The elements that commute with each of ``elements``."""
    given = list(elements)
    return _members((group.table[:, given] == group.table[given, :].T).all(axis=1))


def normalizer(group: Group, members: Iterable[int]) -> Subgroup:
    """The elements g with gHg^-1 = H."""
    given = sorted(members)
    conjugated = np.sort(group.table[group.table[:, given], group.inverse[:, None]], axis=1)
    return _members((conjugated == np.array(given)).all(axis=1))


def commutator_subgroup(group: Group, left: Iterable[int], right: Iterable[int]) -> Subgroup:
    """The subgroup generated by all [a, b], a in ``left`` and b in ``right``."""
    commutators = group.commutators()[np.ix_(sorted(left), sorted(right))]
    return generated(group, np.unique(commutators).tolist())


def derived_series(group: Group) -> tuple[Subgroup, ...]:
    """G, G', G'', ... until it repeats; ends with the trivial subgroup exactly when G is solvable."""
    series = [tuple(range(group.order))]
    while True:
        following = commutator_subgroup(group, series[-1], series[-1])
        if following == series[-1]:
            return tuple(series)
        series.append(following)


def lower_central_series(group: Group) -> tuple[Subgroup, ...]:
    """G, [G, G], [[G, G], G], ... until it repeats; ends with the trivial subgroup when G is nilpotent."""
    series = [tuple(range(group.order))]
    while True:
        following = commutator_subgroup(group, series[-1], series[0])
        if following == series[-1]:
            return tuple(series)
        series.append(following)


def is_solvable(group: Group) -> bool:
    """Whether the derived series reaches the trivial subgroup."""
    return len(derived_series(group)[-1]) == 1


def nilpotency_class(group: Group) -> int | None:
    """Length of the lower central series of a nilpotent group (0 for the trivial one), else None."""
    series = lower_central_series(group)
    return len(series) - 1 if len(series[-1]) == 1 else None


def is_simple(group: Group) -> bool:
    """Whether there are exactly two normal subgroups."""
    return group.order > 1 and all(len(normal_closure(group, c[:1])) == group.order for c in group.classes[1:])


def complement(group: Group, normal: Subgroup) -> Subgroup | None:
    """A subgroup H with N H = G and N, H meeting in 1 alone (the first in ``subgroups``), or None."""
    inside = set(normal)
    wanted = group.order // len(normal)
    for candidate in subgroups(group):
        if len(candidate) == wanted and not inside.intersection(candidate[1:]):
            return candidate
    return None


def primes_of(n: int) -> list[int]:
    """The different primes that divide n, rising."""
    found: list[int] = []
    p = 2
    while n > 1:
        if p * p > n:
            p = n
        if n % p == 0:
            found.append(p)
            while n % p == 0:
                n //= p
        p += 1
    return found


def abelian_invariants(group: Group) -> tuple[int, ...]:
    """Orders of the cyclic p-groups whose product is G/G', rising.

    >>> from stl_search.groups.named import abelian, symmetric
    >>> abelian_invariants(abelian([12, 2])), abelian_invariants(symmetric(4))
    ((2, 3, 4), (2,))
    """
    derived = commutator_subgroup(group, range(group.order), range(group.order))
    factor = group if len(derived) == 1 else quotient(group, derived)[0]
    found: list[int] = []
    for p in primes_of(factor.order):
        # log_p of the number of elements with a^(p^i) = 1 grows, at step i, by the number of factors >= p^i.
        logs = [0]
        while not logs[1:] or logs[-1] > logs[-2]:
            solutions = int((factor.power(p ** len(logs)) == 0).sum())
            logs.append(round(np.log(solutions) / np.log(p)))
        growth = [b - a for a, b in pairwise(logs)]
        for i, (here, above) in enumerate(pairwise(growth), start=1):
            found += [p**i] * (here - above)
    return tuple(sorted(found))


def invariant_factors(invariants: Iterable[int]) -> tuple[int, ...]:
    """Prime powers gathered into factors d1, d2, ... where each divides the one before.

    >>> invariant_factors([2, 3, 4])
    (12, 2)
    """
    columns: dict[int, list[int]] = {}
    for q in sorted(invariants, reverse=True):
        columns.setdefault(primes_of(q)[0], []).append(q)
    depth = max((len(c) for c in columns.values()), default=0)
    return tuple(int(np.prod([c[i] for c in columns.values() if i < len(c)])) for i in range(depth))
