"""Finite groups as frozen multiplication tables: the one type that every other file of this folder speaks.

Elements are the integers 0..n-1, element 0 is the identity and ``table[a, b]`` is the product ab. Everything that
follows from the table (inverses, orders, classes, ...) is computed once, when first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_search.errors import BudgetError, StlError

__all__ = ["MAX_ORDER", "Bools", "Group", "GroupError", "Ints", "from_permutations", "frozen", "permutation_label"]

Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

MAX_ORDER = 5040  # |S7|: a table of 100 MB; beyond that a multiplication table is the wrong representation


class GroupError(StlError, ValueError):
    """Data that is no group, a construction that does not exist, or a name that means no group."""


def frozen(array: ArrayLike) -> Ints:
    """A read-only copy of ``array`` as machine integers."""
    result = np.array(array, dtype=np.intp)
    result.setflags(write=False)
    return result


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """A finite group of order n: ``table`` (n, n) with ``table[a, b]`` = ab, ``labels`` n texts, ``name``, ``id``.

    Element 0 must be the identity. ``id`` is the number "order.i" in the small groups library where it is known,
    else "". The table is checked once, here: raises GroupError for a table that is no group, naming what fails.
    Associativity is proved by Light's test, (ag)b = a(gb) for the g of a generating set [1]. Two ``Group``s are
    equal when all four fields are; for "the same up to renaming" see ``isomorphism.isomorphism``.

    [1] Clifford and Preston, The Algebraic Theory of Semigroups I (1961), section 1.2.

    >>> g = Group([[0, 1, 2], [1, 2, 0], [2, 0, 1]], name="C3")
    >>> g.order, g.inverse.tolist(), g.element_orders.tolist()
    (3, [0, 2, 1], [1, 3, 3])
    >>> Group([[0, 1], [1, 1]])
    Traceback (most recent call last):
        ...
    stl_search.groups.group.GroupError: not a group: row 1 of the table holds an element twice
    """

    table: NDArray[np.int32]
    labels: tuple[str, ...] = ()
    name: str = ""
    id: str = ""

    def __init__(self, table: ArrayLike, labels: Iterable[str] = (), name: str = "", id: str = "") -> None:
        checked = _checked(table)
        n = len(checked)
        texts = tuple(labels) or ("1", *(f"g{a}" for a in range(1, n)))
        if len(texts) != n or len(set(texts)) != n:
            raise GroupError(f"a group of order {n} needs {n} different labels, got {len(set(texts))}")
        object.__setattr__(self, "table", checked)
        object.__setattr__(self, "labels", texts)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "id", id)

    def renamed(self, name: str | None = None, id: str | None = None, labels: Iterable[str] | None = None) -> Group:
        """The same table under another name, id or labels."""
        return replace(
            self,
            name=self.name if name is None else name,
            id=self.id if id is None else id,
            labels=self.labels if labels is None else tuple(labels),
        )

    def __repr__(self) -> str:
        called = self.name or "?"
        return f"<Group {called}{f' = {self.id}' if self.id else ''} of order {self.order}>"

    def __len__(self) -> int:
        return self.order

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Group):
            return NotImplemented
        same = (self.name, self.id, self.labels) == (other.name, other.id, other.labels)
        return same and np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.table.tobytes(), self.name, self.id, self.labels))

    # Elements.

    @property
    def order(self) -> int:
        """Number n of elements."""
        return len(self.table)

    @cached_property
    def inverse(self) -> Ints:
        """(n,): the inverse of every element."""
        return frozen(np.argmin(self.table, axis=1))  # the identity is 0

    def multiply(self, *elements: int) -> int:
        """The product of elements from left to right; the identity for none."""
        product = 0
        for a in elements:
            product = int(self.table[product, a])
        return product

    def power(self, exponent: int) -> Ints:
        """(n,): a^exponent for every element a; the exponent may be negative.

        >>> Group([[0, 1, 2], [1, 2, 0], [2, 0, 1]]).power(-4).tolist()
        [0, 2, 1]
        """
        base: Ints = np.arange(self.order) if exponent >= 0 else self.inverse
        result = np.zeros(self.order, dtype=np.intp)
        exponent = abs(exponent)
        while exponent:
            if exponent & 1:
                result = self.table[result, base].astype(np.intp)
            base = self.table[base, base].astype(np.intp)
            exponent >>= 1
        return frozen(result)

    @cached_property
    def element_orders(self) -> Ints:
        """(n,): the order of every element."""
        orders = np.zeros(self.order, dtype=np.intp)
        everything = np.arange(self.order)
        current = everything.copy()
        step = 1
        while not orders.all():
            orders[(current == 0) & (orders == 0)] = step
            current = self.table[current, everything].astype(np.intp)
            step += 1
        return frozen(orders)

    @cached_property
    def exponent(self) -> int:
        """Least e > 0 with a^e = 1 for all a."""
        return int(np.lcm.reduce(self.element_orders))

    @cached_property
    def is_abelian(self) -> bool:
        return bool(np.array_equal(self.table, self.table.T))

    # What elements generate.

    def closure(self, elements: Iterable[int]) -> Bools:
        """(n,) mask of the subgroup that ``elements`` generate.

        >>> Group([[0, 1, 2], [1, 2, 0], [2, 0, 1]]).closure([2]).tolist()
        [True, True, True]
        """
        mask = np.zeros(self.order, dtype=np.bool_)
        mask[0] = True
        mask[list(elements)] = True
        generators = frontier = inside = mask.nonzero()[0]
        while len(frontier):
            # All that is known multiplies the new elements, for few steps; the generators alone where that is much.
            factors = inside if len(frontier) * len(inside) <= 8192 else generators
            reached = np.zeros(self.order, dtype=np.bool_)
            reached[self.table[frontier[:, None], factors]] = True
            reached[inside] = False
            frontier = reached.nonzero()[0]
            mask |= reached
            inside = mask.nonzero()[0]
        return mask

    @cached_property
    def generators(self) -> tuple[int, ...]:
        """A small generating set, chosen greedily: elements of large order first.

        It is irredundant from left to right (each generator lies outside the subgroup of those before it).
        """
        chosen: list[int] = []
        mask = self.closure(())
        for a in sorted(range(self.order), key=lambda a: (-int(self.element_orders[a]), a)):
            if mask.all():
                break
            if not mask[a]:
                chosen.append(a)
                mask = self.closure(chosen)
        return tuple(chosen)

    # Conjugation.

    @cached_property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """Conjugacy classes, each sorted: the identity's first, then by element order, size, smallest member."""
        left: NDArray[np.int32] = np.full(self.order, -1, dtype=np.int32)
        found: list[tuple[int, ...]] = []
        everything = np.arange(self.order)
        for a in range(self.order):
            if left[a] < 0:
                members = np.unique(self.table[self.table[everything, a], self.inverse])
                left[members] = len(found)
                found.append(tuple(int(b) for b in members))
        return tuple(sorted(found, key=lambda c: (int(self.element_orders[c[0]]), len(c), c[0])))

    @cached_property
    def class_of(self) -> Ints:
        """(n,): the index in ``classes`` of every element."""
        result = np.zeros(self.order, dtype=np.intp)
        for index, members in enumerate(self.classes):
            result[list(members)] = index
        return frozen(result)

    @cached_property
    def class_sizes(self) -> Ints:
        """(k,): sizes of the k conjugacy classes."""
        return frozen([len(c) for c in self.classes])

    def class_power(self, exponent: int) -> Ints:
        """(k,): the class of the ``exponent``-th powers of each class."""
        return frozen(self.class_of[self.power(exponent)[[c[0] for c in self.classes]]])

    @cached_property
    def centre(self) -> tuple[int, ...]:
        """The elements that commute with all, sorted."""
        return tuple(int(a) for a in np.flatnonzero((self.table == self.table.T).all(axis=1)))

    def commutators(self) -> NDArray[np.int32]:
        """(n, n): [a, b] = a b a^-1 b^-1."""
        ab = self.table
        inverse_ba = self.table[self.inverse[:, None], self.inverse[None, :]]
        commutators: NDArray[np.int32] = self.table[ab, inverse_ba]
        return commutators

    def __reduce__(self) -> tuple[Any, ...]:
        return (Group, (self.table, self.labels, self.name, self.id))


def _checked(table: ArrayLike) -> NDArray[np.int32]:
    """The table as a read-only int32 array; raises GroupError where it is none of a group with identity 0."""
    raw = np.asarray(table)
    if raw.ndim != 2 or raw.shape[0] != raw.shape[1] or raw.size == 0 or raw.dtype.kind not in "iu":
        raise GroupError(f"not a group: a table must be a square of integers, got {raw.dtype} of shape {raw.shape}")
    n = len(raw)
    if n > MAX_ORDER:
        raise BudgetError(f"a multiplication table of order {n} is too large; the limit is {MAX_ORDER}")
    if raw.min() < 0 or raw.max() >= n:
        raise GroupError(f"not a group: the table of order {n} must hold elements 0..{n - 1}")
    result = raw.astype(np.int32)
    everything = np.arange(n)
    if not (np.array_equal(result[0], everything) and np.array_equal(result[:, 0], everything)):
        raise GroupError("not a group: element 0 must be the identity")
    for axis, line in ((0, "row"), (1, "column")):
        lines = result if axis == 0 else result.T
        hit = np.zeros((n, n), dtype=np.bool_)
        hit[everything[:, None], lines] = True
        if not hit.all():
            where = int(np.argmin(hit.all(axis=1)))
            raise GroupError(f"not a group: {line} {where} of the table holds an element twice")
    for g in _magma_generators(result):
        wrong = result[result[:, g], :] != result[:, result[g, :]]
        if wrong.any():
            a, b = (int(i) for i in np.argwhere(wrong)[0])
            raise GroupError(f"not a group: ({a}*{g})*{b} differs from {a}*({g}*{b})")
    result.setflags(write=False)
    return result


def _magma_generators(table: NDArray[np.int32]) -> list[int]:
    """Elements whose products, however bracketed, give all of a quasigroup's table (which need not associate)."""
    n = len(table)
    mask = np.zeros(n, dtype=np.bool_)
    mask[0] = True
    chosen: list[int] = []
    while not mask.all():
        chosen.append(int(np.argmin(mask)))
        mask[chosen[-1]] = True
        size = 0
        while size < (size := int(mask.sum())):
            inside = np.flatnonzero(mask)
            mask[table[np.ix_(inside, inside)]] = True
    return chosen


def permutation_label(images: Sequence[int]) -> str:
    """Cycle notation, points counted from 1; "()" for the identity.

    >>> permutation_label([1, 2, 0, 3]), permutation_label([0, 1])
    ('(1,2,3)', '()')
    """
    seen: set[int] = set()
    text = ""
    for start in range(len(images)):
        cycle: list[int] = []
        point = start
        while point not in seen:
            seen.add(point)
            cycle.append(point + 1)
            point = int(images[point])
        if len(cycle) > 1:
            text += "(" + ",".join(map(str, cycle)) + ")"
    return text or "()"


def from_permutations(generators: Iterable[Sequence[int]], name: str = "", degree: int | None = None) -> Group:
    """The group that permutations of 0..d-1 generate, each given by its images; ab means "first b, then a".

    Elements are sorted lexicographically by images (the identity comes first) and labelled by their cycles.
    Raises GroupError for sequences that are no permutations of one degree, BudgetError above MAX_ORDER elements.

    >>> g = from_permutations([[1, 0, 2], [1, 2, 0]], name="S3")
    >>> g.order, g.labels
    (6, ('()', '(2,3)', '(1,2)', '(1,2,3)', '(1,3,2)', '(1,3)'))
    """
    gens = [tuple(int(i) for i in g) for g in generators]
    d = len(gens[0]) if gens else (degree or 1)
    if any(sorted(g) != list(range(d)) for g in gens) or (degree is not None and degree != d):
        raise GroupError(f"the generators must be permutations of 0..{d - 1}, each a list of images")
    identity = tuple(range(d))
    found = {identity}
    frontier = [identity]
    while frontier:
        reached = {tuple(g[i] for i in p) for p in frontier for g in gens} - found
        found |= reached
        if len(found) > MAX_ORDER:
            raise BudgetError(f"the permutations generate more than {MAX_ORDER} elements, too many for a table")
        frontier = list(reached)
    elements = np.array(sorted(found), dtype=np.intp)
    return Group(_permutation_table(elements), (permutation_label(p) for p in elements.tolist()), name)


def _permutation_table(elements: Ints) -> NDArray[np.int32]:
    """(n, n) table of n different permutations (n, d) that are closed under products; row a after row b.

    The images of a few points (a base) tell all elements apart. They are read through a trie, one level a point.
    """
    n, d = elements.shape
    levels: list[tuple[int, Ints]] = []  # a point, and the trie: (node, image of the point) -> node of the next level
    node = np.zeros(n, dtype=np.intp)
    for point in range(d):
        nodes = int(node.max()) + 1
        if nodes == n:
            break
        refined = np.unique(node * d + elements[:, point], return_inverse=True)[1].astype(np.intp)
        if refined.max() + 1 > nodes:
            trie = np.zeros((nodes, d), dtype=np.intp)
            trie[node, elements[:, point]] = refined
            levels.append((point, trie))
            node = refined
    element_at = np.argsort(node)
    table = np.zeros((n, n), dtype=np.int32)
    for a in range(n):
        reached = np.zeros(n, dtype=np.intp)
        for point, trie in levels:
            reached = trie[reached, elements[a][elements[:, point]]]
        table[a] = element_at[reached]
    return table
