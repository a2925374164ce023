"""Every group of a given order <= 63 by cyclic extension, up to isomorphism.

A solvable group G > 1 has a normal subgroup N of prime index p. With t outside N, G is given by N, the automorphism
s: x -> t x t^-1 of N, and z = t^p in N; and every pair (s, z) with s(z) = z and s^p = conjugation by z gives a group
of order p |N| [1]. Pairs that differ by an automorphism of N or by another choice of t give isomorphic groups, so one
pair of each orbit is enough; what remains is sorted out by isomorphism tests. The only group of order below 64 that
is not solvable is A5.

[1] O. Hölder; see M. Hall, The Theory of Groups (1959), chapter 15, and for the use made of it here R. Laue, Zur
    Konstruktion und Klassifikation endlicher auflösbarer Gruppen, Bayreuther Math. Schr. 9 (1982), and Besche, Eick
    and O'Brien, A millennium project: constructing small groups, Int. J. Algebra Comput. 12 (2002), 623-644.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stl_search.groups.group import Group, GroupError, Ints
from stl_search.groups.isomorphism import automorphism_group, fingerprint, isomorphic
from stl_search.groups.named import alternating, cyclic
from stl_search.groups.subgroups import primes_of

__all__ = ["ENUMERATED", "Extension", "enumerate_groups", "extend", "extension_data", "spread"]

ENUMERATED = 63  # largest order that ``enumerate_groups`` vouches for: A5 is the only group below it that is missed


@dataclass(frozen=True)
class Extension:
    """A group of order p |N| as an extension of ``base`` = N: ``images`` (|N|,) of s, and the element z = t^p."""

    base: Group
    prime: int
    images: tuple[int, ...]
    power: int

    def group(self) -> Group:
        """The group itself."""
        return extend(self.base, self.prime, np.array(self.images), self.power)


def extend(base: Group, prime: int, images: Ints, power: int) -> Group:
    """The extension G of N = ``base`` by t: t x t^-1 = images[x], t^p = ``power``; x t^i has index x + |N| i.

    Raises GroupError where (images, power) fit no group (the table is checked like any other).

    >>> from stl_search.groups.named import cyclic
    >>> extend(cyclic(4), 2, np.array([0, 3, 2, 1]), 2).element_orders.tolist()  # Q8
    [1, 4, 2, 4, 4, 4, 4, 4]
    """
    n = base.order
    twisted = [np.arange(n)]
    for _ in range(prime - 1):
        twisted.append(images[twisted[-1]])
    x, i = np.arange(prime * n) % n, np.arange(prime * n) // n
    acted = np.array(twisted)[i[:, None], x[None, :]]  # t^i y = s^i(y) t^i
    steps = i[:, None] + i[None, :]
    carry = np.where(steps >= prime, power, 0)
    table = base.table[base.table[x[:, None], acted], carry] + n * (steps % prime)
    return Group(table, _word_labels(base, prime))


def _word_labels(base: Group, prime: int) -> list[str]:
    """Labels x t^i, t the first letter that no label of ``base`` uses."""
    used = "".join(base.labels)
    letter = next(c for c in string.ascii_letters if c not in used)
    powers = ["", letter, *(f"{letter}^{i}" for i in range(2, prime))]
    return [" ".join(filter(None, (w if w != "1" else "", t))) or "1" for t in powers for w in base.labels]


def spread(base: Group, primes: Sequence[int], images: Sequence[int]) -> Ints:
    """(|N|,): the automorphism of N = ``base`` that sends the generator t of each of its own extensions to an image.

    ``primes`` are the indices of the chain 1 < N_1 < N_2 < ... < N of extensions; x t^i has index x + |N_j| i.

    >>> from stl_search.groups.named import cyclic
    >>> c4 = extend(cyclic(2), 2, np.array([0, 1]), 1)
    >>> spread(c4, [2, 2], [1, 3]).tolist()
    [0, 1, 3, 2]
    """
    result = np.zeros(1, dtype=np.intp)
    for prime, image in zip(primes, images, strict=True):
        layers = [result]
        for _ in range(prime - 1):
            layers.append(base.table[layers[-1], image].astype(np.intp))
        result = np.concatenate(layers)
    return result


def extension_data(base: Group, prime: int) -> list[Extension]:
    """One pair (s, z) of each orbit under Aut(N), under t -> xt for x in N and under t -> t^j for j prime to p.

    Sorted, so that the result is the same on every machine.
    """
    n = base.order
    automorphisms = automorphism_group(base)
    elements = automorphisms.elements()
    powered = elements
    for _ in range(prime - 1):
        powered = np.take_along_axis(elements, powered, axis=1)
    conjugation = base.table[base.table, base.inverse[:, None]].astype(np.intp)  # row x: y -> x y x^-1
    inducing: dict[bytes, list[int]] = {}
    for x in range(n):
        inducing.setdefault(conjugation[x].tobytes(), []).append(x)
    pairs = {
        (tuple(s.tolist()), z)
        for s, p_fold in zip(elements, powered, strict=True)
        for z in inducing.get(p_fold.tobytes(), ())
        if s[z] == z
    }

    def moved(s: NDArray[np.intp], z: int) -> Iterable[tuple[NDArray[np.intp], int]]:
        for a in automorphisms.generators:
            undone = np.argsort(a)
            yield a[s[undone]], int(a[z])
        for x in base.generators:
            product, image = 0, x
            for _ in range(prime):  # (xt)^p = x s(x) ... s^(p-1)(x) z
                product, image = int(base.table[product, image]), int(s[image])
            yield conjugation[x][s], int(base.table[product, z])
        power = s
        for j in range(2, prime):
            power = s[power]
            yield power, int(base.power(j)[z])

    chosen: list[Extension] = []
    while pairs:
        first = min(pairs)
        chosen.append(Extension(base, prime, *first))
        pairs.remove(first)
        queue = [first]
        while queue:
            images, z = queue.pop()
            for s_moved, z_moved in moved(np.array(images), z):
                key = (tuple(s_moved.tolist()), z_moved)
                if key in pairs:
                    pairs.remove(key)
                    queue.append(key)
    return chosen


def enumerate_groups(order: int, smaller: Mapping[int, Sequence[Group]]) -> list[tuple[Group, Extension | None]]:
    """All groups of an order <= 63, one of each isomorphism type, each with the extension that it is.

    ``smaller[m]`` must hold all groups of order m for m = order / p, p prime. The trivial group and A5 come with None.
    The result depends on the order of ``smaller`` only in which of several extensions stands for a group.
    Raises GroupError above 63.

    >>> library = {1: [g for g, _ in enumerate_groups(1, {})]}
    >>> library[2] = [g for g, _ in enumerate_groups(2, library)]
    >>> len(enumerate_groups(4, library))
    2
    """
    if not 1 <= order <= ENUMERATED:
        raise GroupError(f"groups are enumerated for orders 1..{ENUMERATED}, not {order}")
    if order == 1:
        return [(cyclic(1).renamed(name=""), None)]
    found: dict[tuple[int, tuple[int, ...]], list[tuple[Group, Extension | None]]] = {}
    for prime in primes_of(order):
        for base in smaller[order // prime]:
            for data in extension_data(base, prime):
                group = data.group()
                alike = found.setdefault(fingerprint(group), [])
                if not any(isomorphic(group, other) for other, _ in alike):
                    alike.append((group, data))
    result = [entry for alike in found.values() for entry in alike]
    if order == 60:
        result.append((alternating(5).renamed(name=""), None))
    return result
