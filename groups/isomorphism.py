"""When are two groups the same: invariants, isomorphisms and automorphisms.

Elements get colours (64-bit numbers) that every isomorphism preserves. Colours only narrow the search down; what is
returned is always checked against the tables, so that no result rests on colours being different by accident.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_search.errors import BudgetError
from stl_search.groups.group import Group, Ints, frozen
from stl_search.groups.subgroups import abelian_invariants, derived_series, nilpotency_class

__all__ = [
    "AutomorphismGroup",
    "Invariants",
    "automorphism_group",
    "colours",
    "fingerprint",
    "inner_automorphisms",
    "invariants",
    "isomorphic",
    "isomorphism",
]

Colours = NDArray[np.uint64]


@dataclass(frozen=True)
class Invariants:
    """What isomorphic groups share, in numbers that people compare.

    ``element_orders`` are pairs (order, how many elements); ``derived_orders`` the orders of G, G', G'', ...;
    ``abelianization`` the prime-power orders of the cyclic factors of G/G'; ``nilpotency_class`` None where G is
    not nilpotent; ``class_sizes`` the sizes of the conjugacy classes, rising.
    """

    order: int
    exponent: int
    abelian: bool
    class_number: int
    class_sizes: tuple[int, ...]
    element_orders: tuple[tuple[int, int], ...]
    centre_order: int
    derived_orders: tuple[int, ...]
    abelianization: tuple[int, ...]
    solvable: bool
    nilpotency_class: int | None

    def as_json(self) -> dict[str, Any]:
        """A dictionary of numbers, booleans and lists of these."""
        return {key: _listed(value) for key, value in asdict(self).items()}


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


@lru_cache(maxsize=1024)
def invariants(group: Group) -> Invariants:
    """The ``Invariants`` of a group.

    >>> from stl_search.groups.named import symmetric
    >>> invariants(symmetric(3)).element_orders, invariants(symmetric(4)).derived_orders
    (((1, 1), (2, 3), (3, 2)), (24, 12, 4, 1))
    """
    values, counts = np.unique(group.element_orders, return_counts=True)
    derived = tuple(len(s) for s in derived_series(group))
    return Invariants(
        order=group.order,
        exponent=group.exponent,
        abelian=group.is_abelian,
        class_number=len(group.classes),
        class_sizes=tuple(sorted(len(c) for c in group.classes)),
        element_orders=tuple((int(v), int(c)) for v, c in zip(values, counts, strict=True)),
        centre_order=len(group.centre),
        derived_orders=derived,
        abelianization=abelian_invariants(group),
        solvable=derived[-1] == 1,
        nilpotency_class=nilpotency_class(group),
    )


def _mix(x: Colours) -> Colours:
    """Scrambles 64-bit numbers one to one (splitmix64); sums of scrambled numbers serve as colours of multisets."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=1024)
def colours(group: Group) -> Colours:
    """(n,): a colour of every element that isomorphisms preserve, refined until it separates no further.

    Start: order and class size. Step: the colours of x^2, x^3, x^-1 and the multiset, over y, of the colours of
    y, xy and [x, y].
    """
    with np.errstate(over="ignore"):
        sizes = group.class_sizes[group.class_of]
        current = _mix(group.element_orders.astype(np.uint64) * np.uint64(8192) + sizes.astype(np.uint64))
        powers = [group.power(2), group.power(3), group.inverse]
        commutators = group.commutators()
        kinds = 0
        while kinds < (kinds := len(np.unique(current))):
            pairs = _mix(current[None, :] + _mix(current[group.table] + _mix(current[commutators])))
            refined = current + _mix(pairs.sum(axis=1, dtype=np.uint64))
            for image in powers:
                refined = _mix(refined) + current[image]
            current = _mix(refined)
        current.setflags(write=False)
        return current


def fingerprint(group: Group) -> tuple[int, tuple[int, ...]]:
    """Order and sorted colours: equal for isomorphic groups, and different for most others.

    >>> from stl_search.groups.named import dicyclic, dihedral
    >>> fingerprint(dicyclic(2)) == fingerprint(dihedral(4))
    False
    """
    return group.order, tuple(sorted(colours(group).tolist()))


@dataclass(frozen=True)
class _Chain:
    """Generators g_1..g_d of a group and, for each i, how the elements of H_i = <g_1..g_i> are products of them.

    ``elements[i]`` lists H_i in an order where each element after the first is an earlier one times a generator:
    ``elements[i][j] = elements[i][parents[i][j]] * g[letters[i][j]]``.
    """

    generators: tuple[int, ...]
    elements: tuple[Ints, ...]
    parents: tuple[Ints, ...]
    letters: tuple[Ints, ...]


@lru_cache(maxsize=1024)
def _chain(group: Group) -> _Chain:
    """A chain whose generators have few possible images: rare colours first, then large subgroups."""
    colour = colours(group)
    values, where, counts = np.unique(colour, return_inverse=True, return_counts=True)
    rarity = counts[where]
    generators: list[int] = []
    mask = group.closure(())
    while not mask.all():
        best: tuple[float, int, int] | None = None
        choice = -1
        outside = np.flatnonzero(~mask)
        for a in outside[np.unique(colour[outside], return_index=True)[1]].tolist():  # the first of each colour
            size = int(group.closure((*generators, a)).sum())
            # images a step costs, against the growth of the subgroup that it buys
            score = (float(np.log(rarity[a] + 1) / np.log(size / mask.sum())), -size, a)
            if best is None or score < best:
                best, choice = score, a
        generators.append(choice)
        mask = group.closure(generators)
    levels = [_words(group, generators[: i + 1]) for i in range(len(generators))]
    return _Chain(
        tuple(generators),
        tuple(level[0] for level in levels),
        tuple(level[1] for level in levels),
        tuple(level[2] for level in levels),
    )


def _words(group: Group, generators: list[int]) -> tuple[Ints, Ints, Ints]:
    position = {0: 0}
    elements, parents, letters = [0], [0], [0]
    head = 0
    while head < len(elements):
        for letter, g in enumerate(generators):
            product = int(group.table[elements[head], g])
            if product not in position:
                position[product] = len(elements)
                elements.append(product)
                parents.append(head)
                letters.append(letter)
        head += 1
    return frozen(elements), frozen(parents), frozen(letters)


def _images(source: Group, target: Group, chain: _Chain, fixed: tuple[int, ...], candidates: Ints) -> list[int]:
    """The candidates y such that g_i -> fixed_i, g_(d+1) -> y extends to an injective homomorphism on H_(d+1).

    It must preserve colours too. Checked on every product of an element of H_(d+1) with a generator.
    """
    level = len(fixed)
    elements, parents, letters = chain.elements[level], chain.parents[level], chain.letters[level]
    many = len(candidates)
    generator_images = np.empty((level + 1, many), dtype=np.intp)
    generator_images[:level] = np.array(fixed, dtype=np.intp)[:, None]
    generator_images[level] = candidates
    image = np.zeros((source.order, many), dtype=np.intp)  # rows outside H_(d+1) stay unused
    for element, parent, letter in zip(elements[1:], elements[parents[1:]], letters[1:], strict=True):
        image[element] = target.table[image[parent], generator_images[letter]]
    inside = image[elements]
    good = (colours(target)[inside] == colours(source)[elements][:, None]).all(axis=0)
    good &= (np.diff(np.sort(inside, axis=0), axis=0) != 0).all(axis=0)
    for letter in range(level + 1):
        products = source.table[elements, chain.generators[letter]]
        good &= (image[products] == target.table[inside, generator_images[letter]]).all(axis=0)
    kept: list[int] = candidates[good].tolist()
    return kept


def _extend(source: Group, target: Group, chain: _Chain, fixed: tuple[int, ...]) -> tuple[int, ...] | None:
    """Images of all generators of the chain that begin with ``fixed`` and give an isomorphism, or None."""
    if len(fixed) == len(chain.generators):
        return fixed
    wanted = colours(source)[chain.generators[len(fixed)]]
    candidates = np.flatnonzero(colours(target) == wanted)
    for y in _images(source, target, chain, fixed, candidates):
        complete = _extend(source, target, chain, (*fixed, y))
        if complete is not None:
            return complete
    return None


def _as_map(source: Group, target: Group, chain: _Chain, images: tuple[int, ...]) -> Ints:
    """(n,): the homomorphism that sends the generators of the chain to ``images``."""
    result = np.zeros(source.order, dtype=np.intp)
    if images:
        elements, parents, letters = chain.elements[-1], chain.parents[-1], chain.letters[-1]
        for element, parent, letter in zip(elements[1:], elements[parents[1:]], letters[1:], strict=True):
            result[element] = target.table[result[parent], images[letter]]
    return frozen(result)


def isomorphism(source: Group, target: Group) -> Ints | None:
    """(n,): images of an isomorphism from ``source`` to ``target``, or None where there is none.

    Complete: backtracking over the images of a few generators, each partial map checked to be an injective
    homomorphism on the subgroup reached so far.

    >>> from stl_search.groups.named import dihedral, symmetric
    >>> isomorphism(symmetric(3), dihedral(3)) is not None, isomorphism(symmetric(4), dihedral(12)) is None
    (True, True)
    """
    if fingerprint(source) != fingerprint(target):
        return None
    chain = _chain(source)
    images = _extend(source, target, chain, ())
    if images is None:
        return None
    return _as_map(source, target, chain, images)


def isomorphic(source: Group, target: Group) -> bool:
    """Whether two groups are the same up to renaming elements."""
    return isomorphism(source, target) is not None


@dataclass(frozen=True)
class AutomorphismGroup:
    """Aut(G): ``order``, ``generators`` (s, n) as rows of images, and coset leaders that give every element.

    ``transversals[i]`` (t_i, n) holds, for the stabiliser of the first i generators of G, one automorphism for each
    possible image of the next: every automorphism is one product u_1 u_2 ... (u_d applied first), so that
    ``order`` is the product of the t_i.
    """

    group: Group
    order: int
    generators: Ints
    transversals: tuple[Ints, ...]

    def elements(self, limit: int = 100_000) -> Ints:
        """(order, n): all automorphisms, the identity first. Raises BudgetError where they exceed ``limit``.

        >>> from stl_search.groups.named import abelian
        >>> automorphism_group(abelian([2, 2])).elements().tolist()[0]
        [0, 1, 2, 3]
        """
        if self.order > limit:
            raise BudgetError(f"{self.group!r} has {self.order} automorphisms, more than the limit of {limit}")
        result: Ints = np.arange(self.group.order)[None, :]
        for transversal in self.transversals:
            result = result[:, transversal].reshape(-1, self.group.order)
        return frozen(result)

    def orbits(self) -> tuple[tuple[int, ...], ...]:
        """Orbits of Aut(G) on the elements of G."""
        label = np.arange(self.group.order)
        while True:
            lowest = label.copy()
            for images in self.generators:
                lowest = np.minimum(lowest, lowest[images])
            if np.array_equal(lowest, label):
                break
            label = lowest
        return tuple(tuple(np.flatnonzero(label == first).tolist()) for first in np.unique(label).tolist())


@lru_cache(maxsize=512)
def automorphism_group(group: Group) -> AutomorphismGroup:
    """Aut(G) by a stabiliser chain: for each generator of G, the orbit of its images under what fixes the former.

    >>> from stl_search.groups.named import abelian, symmetric
    >>> automorphism_group(abelian([2] * 5)).order == 31 * 30 * 28 * 24 * 16, automorphism_group(symmetric(6)).order
    (True, 1440)
    """
    chain = _chain(group)
    depth = len(chain.generators)
    identity = frozen(np.arange(group.order))
    generators: list[Ints] = []
    transversals: list[Ints] = []
    order = 1
    for level in range(depth - 1, -1, -1):
        start = chain.generators[level]
        fixed = chain.generators[:level]
        leaders: dict[int, Ints] = {start: identity}
        _grow(leaders, generators)  # what fixes the former generators and is known from deeper levels
        candidates = np.flatnonzero(colours(group) == colours(group)[start])
        for y in _images(group, group, chain, fixed, candidates):
            if y in leaders:
                continue
            images = _extend(group, group, chain, (*fixed, y))
            if images is not None:
                generators.append(_as_map(group, group, chain, images))
                _grow(leaders, generators)
        transversals.insert(0, frozen([leaders[y] for y in sorted(leaders, key=lambda y: (y != start, y))]))
        order *= len(leaders)
    rows = frozen(np.array(generators, dtype=np.intp).reshape(-1, group.order))
    return AutomorphismGroup(group, order, rows, tuple(transversals))


def _grow(leaders: dict[int, Ints], generators: list[Ints]) -> None:
    """Completes the orbit that ``leaders`` (point -> automorphism that reaches it) have begun."""
    queue = list(leaders)
    while queue:
        point = queue.pop()
        for images in generators:
            reached = int(images[point])
            if reached not in leaders:
                leaders[reached] = frozen(images[leaders[point]])
                queue.append(reached)


def inner_automorphisms(group: Group) -> Ints:
    """(|G : Z(G)|, n): the different conjugations y -> x y x^-1, the identity first.

    >>> from stl_search.groups.named import dihedral
    >>> inner_automorphisms(dihedral(4)).shape
    (4, 8)
    """
    conjugations = group.table[group.table, group.inverse[:, None]]
    first = np.unique(conjugations, axis=0, return_index=True)[1]
    return frozen(conjugations[np.sort(first)])
