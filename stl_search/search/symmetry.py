"""Finite groups that act on <m,k,n> schemes, the orbits of terms under them, and the linear space of invariant schemes.

The matmul tensor is kept by u -> X^-T u Y^T, v -> Y^-T v Z^T, w -> X w Z^-1, by cyclic rotation (square shapes) and
by transposition (m = n). With orthogonal X, Y, Z every element acts on flat factors as

    new factor i = maps[i] @ (old factor slots[i])

and keeps E and kappa. A scheme is invariant when the group permutes its terms; the terms then fall into orbits, each
given by one representative, which its stabiliser fixes up to signs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse

from stl_search.errors import UsageError
from stl_search.scheme import Shape

__all__ = ["Action", "Element", "OrbitType", "action", "orbit_types", "span"]

Reals = npt.NDArray[Any]
_MAX_ORDER = 96  # of an action: more is of no use for schemes of the sizes searched here


@dataclass(frozen=True, eq=False)
class Element:
    """One symmetry: new factor i = maps[i] @ old factor slots[i], all factors flat and row-major."""

    slots: tuple[int, int, int]
    maps: tuple[Reals, Reals, Reals]

    def __matmul__(self, other: Element) -> Element:
        """First ``other``, then this one."""
        slots = tuple(other.slots[s] for s in self.slots)
        maps = tuple(m @ other.maps[s] for m, s in zip(self.maps, self.slots, strict=True))
        return Element(slots, maps)  # type: ignore[arg-type]

    def key(self) -> tuple[Any, ...]:
        """Equal for equal elements, whatever their rounding."""
        return (self.slots, *(np.rint(1e6 * m).astype(np.int64).tobytes() for m in self.maps))


@dataclass(frozen=True)
class Action:
    """A finite group of symmetries of <m,k,n>: its elements (the identity first) and their multiplication table."""

    name: str
    shape: Shape
    elements: tuple[Element, ...]
    table: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.elements)

    def subgroups(self) -> list[tuple[int, ...]]:
        """All subgroups with at most two generators, up to conjugacy, smallest first; sorted element indices."""
        found: dict[frozenset[int], None] = {}
        for a, b in itertools.combinations_with_replacement(range(self.order), 2):
            group = self._closure((a, b))
            conjugates = {
                frozenset(self.table[self.table[g][h]][self._inverse(g)] for h in group) for g in range(self.order)
            }
            if not any(c in found for c in conjugates):
                found[group] = None
        return sorted((tuple(sorted(g)) for g in found), key=lambda g: (len(g), g))

    def _closure(self, generators: tuple[int, ...]) -> frozenset[int]:
        group, front = {0}, [0]
        while front:
            front = [x for x in {self.table[a][g] for a in front for g in generators} if x not in group]
            group.update(front)
        return frozenset(group)

    def _inverse(self, g: int) -> int:
        return self.table[g].index(0)


def _flip(rows: int, cols: int) -> Reals:
    """The permutation matrix that carries a flat rows x cols matrix to its flat transpose."""
    return np.eye(rows * cols)[np.arange(rows * cols).reshape(rows, cols).T.ravel()]


def _cyclic(shape: Shape) -> Element:
    """(u, v, w) -> (v, w^T, u^T): tr(A B C^T) read from its second factor on."""
    n = shape[0]
    return Element((1, 2, 0), (np.eye(n * n), _flip(n, n), _flip(n, n)))


def _transposition(shape: Shape, minus: int) -> Element:
    """(u, v, w) -> (D v^T D, D u^T D, D w^T D): C^T = B^T A^T, for <m,k,m>; D has ``minus`` last entries -1, else 1."""
    m, k, n = shape
    signs = {side: np.diag([1.0] * (side - min(minus, side)) + [-1.0] * min(minus, side)) for side in shape}
    twist = _linear(signs[m], signs[k], signs[n])
    return twist @ Element((1, 0, 2), (_flip(k, n), _flip(m, k), _flip(m, n)))


def _linear(x: Reals, y: Reals, z: Reals) -> Element:
    """u -> X u Y^T, v -> Y v Z^T, w -> X w Z^T for orthogonal X, Y, Z."""
    return Element((0, 1, 2), (np.kron(x, y), np.kron(y, z), np.kron(x, z)))


def _represented(name: str, shape: Shape) -> list[Element]:
    """Generators of the named group acting through faithful real representations of dimensions m, k, n."""
    from stl_search import groups

    group = groups.get(name)
    irreps = groups.real_irreps(group)
    matrices = {side: _faithful(irreps, side) for side in set(shape)}
    missing = sorted(side for side, found in matrices.items() if found is None)
    if missing:
        raise UsageError(f"{name} has no faithful real representation of dimension {missing[0]}")
    by_side = {side: found for side, found in matrices.items() if found is not None}
    return [_linear(*(by_side[side][g] for side in shape)) for g in group.generators]


def _faithful(irreps: Any, side: int) -> Reals | None:
    """(order, side, side): the first sum of irreducible representations of that dimension in which only 1 acts as 1."""
    degrees = [irrep.degree for irrep in irreps]
    for count in range(1, side + 1):
        for chosen in itertools.combinations_with_replacement(range(len(irreps)), count):
            if sum(degrees[i] for i in chosen) != side:
                continue
            blocks = [irreps[i].matrices for i in chosen]
            whole = np.stack([scipy.linalg.block_diag(*(b[g] for b in blocks)) for g in range(len(blocks[0]))])
            if int((np.abs(whole - np.eye(side)).max(axis=(1, 2)) < 1e-6).sum()) == 1:
                return whole
    return None


@cache
def action(name: str, shape: Shape) -> Action:
    """The group of that name acting on schemes of <m,k,n>.

    Names are joined by ``+``: ``cyclic`` (C3: rotation, square shapes), ``transpose`` (C2: <m,k,m>), and the name of
    any group of ``stl_search.groups`` (``S3``, ``D4``, ``C2 x C2`` ..), which acts through a faithful real
    representation of each space. ``transpose:P`` is A -> D A^T D with P minus signs in D, the involutions that belong
    to indefinite forms: over R they differ from ``transpose``, and Strassen's scheme has the one with P = 1.
    ``cyclic+transpose:1`` is S3 acting by permutation of the factors.

    Raises UsageError where a part does not fit the shape.

    >>> action("cyclic", (2, 2, 2)).order, action("cyclic+transpose", (3, 3, 3)).order
    (3, 6)
    """
    m, k, n = shape
    generators: list[Element] = []
    for part in name.split("+"):
        if part == "cyclic":
            if not m == k == n:
                raise UsageError(f"cyclic symmetry needs a square shape, not {m},{k},{n}")
            generators.append(_cyclic(shape))
        elif part.partition(":")[0] == "transpose":
            minus = part.partition(":")[2]
            if minus and not (minus.isascii() and minus.isdigit()):
                raise UsageError(f"{part!r}: write transpose or transpose:P with a number P of minus signs")
            if m != n:
                raise UsageError(f"transposition needs a shape M,K,M, not {m},{k},{n}")
            generators.append(_transposition(shape, int(minus or 0)))
        else:
            generators += _represented(part, shape)
    identity = _linear(np.eye(m), np.eye(k), np.eye(n))
    elements, index = [identity], {identity.key(): 0}
    for element in elements:  # grows while it is read: breadth first
        for g in generators:
            product = g @ element
            if product.key() not in index:
                index[product.key()] = len(elements)
                elements.append(product)
                if len(elements) > _MAX_ORDER:
                    raise UsageError(f"symmetry {name!r} generates more than {_MAX_ORDER} elements")
    table = tuple(tuple(index[(a @ b).key()] for b in elements) for a in elements)
    return Action(name, shape, tuple(elements), table)


@dataclass(frozen=True, eq=False)
class OrbitType:
    """Orbits of ``size`` terms whose representative is fixed by ``stabiliser`` up to signs.

    ``basis`` (mk + kn + mn, d): the space of representatives (u, v, w) flat, one after the other; ``cosets``: an
    element of the action for every term of the orbit.
    """

    size: int
    stabiliser: tuple[int, ...]
    basis: Reals
    cosets: tuple[int, ...]


@cache
def orbit_types(group: Action) -> tuple[OrbitType, ...]:
    """The kinds of orbit: conjugacy classes of stabilisers (of at most two generators) and the signs of each one."""
    m, k, n = group.shape
    sizes = (m * k, k * n, m * n)
    ends = np.cumsum([0, *sizes])
    found: list[OrbitType] = []
    for subgroup in group.subgroups():
        cosets, seen = [], set[int]()
        for g in range(group.order):
            if g not in seen:
                cosets.append(g)
                seen |= {group.table[g][h] for h in subgroup}
        generators = _generating(group, subgroup)
        for signs in itertools.product(*(_sign_patterns(group.elements[h]) for h in generators)):
            rows = []
            for h, pattern in zip(generators, signs, strict=True):
                element = group.elements[h]
                block = np.zeros((ends[-1], ends[-1]))
                for i, (slot, matrix) in enumerate(zip(element.slots, element.maps, strict=True)):
                    block[ends[i] : ends[i + 1], ends[slot] : ends[slot + 1]] += matrix
                    block[ends[i] : ends[i + 1], ends[i] : ends[i + 1]] -= pattern[i] * np.eye(sizes[i])
                rows.append(block)
            basis = scipy.linalg.null_space(np.vstack(rows)) if rows else np.eye(ends[-1])
            parts = [basis[ends[i] : ends[i + 1]] for i in range(3)]
            if basis.shape[1] and all(np.abs(p).max(initial=0.0) > 1e-9 for p in parts):
                found.append(OrbitType(len(cosets), subgroup, basis, tuple(cosets)))
    return tuple(found)


def _generating(group: Action, subgroup: tuple[int, ...]) -> tuple[int, ...]:
    """One or two elements that generate a subgroup (none for the trivial one)."""
    if len(subgroup) == 1:
        return ()
    for count in (1, 2):
        for chosen in itertools.combinations(subgroup, count):
            if group._closure(chosen) == frozenset(subgroup):
                return chosen
    return subgroup


def _sign_patterns(element: Element) -> list[tuple[int, int, int]]:
    """The signs (product 1) with which an element may fix a term.

    Where it rotates the factors, or exchanges two and is an involution, they can be scaled away.
    """
    rotates = element.slots in ((1, 2, 0), (2, 0, 1))
    square = element @ element
    involution = square.slots == (0, 1, 2) and all(np.abs(m - np.eye(len(m))).max() < 1e-6 for m in square.maps)
    if rotates or (element.slots != (0, 1, 2) and involution):
        return [(1, 1, 1)]
    return [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]


def span(group: Action, kinds: list[OrbitType]) -> scipy.sparse.csr_matrix:
    """(r(mk + kn + mn), P): free parameters of the representatives -> the flat (u, v, w) of the whole invariant scheme.

    Terms stand orbit by orbit; P is the sum of the dimensions of the representatives' spaces.
    """
    m, k, n = group.shape
    sizes = (m * k, k * n, m * n)
    rank = sum(kind.size for kind in kinds)
    starts = np.cumsum([0, *(rank * s for s in sizes)])
    ends = np.cumsum([0, *sizes])
    columns = np.cumsum([0, *(kind.basis.shape[1] for kind in kinds)])
    data, row, col = [], [], []
    term = 0
    for kind, left in zip(kinds, columns, strict=False):
        for g in kind.cosets:
            element = group.elements[g]
            for i, (slot, matrix) in enumerate(zip(element.slots, element.maps, strict=True)):
                dense = matrix @ kind.basis[ends[slot] : ends[slot + 1]]
                at, across = np.nonzero(np.abs(dense) > 1e-14)
                data.append(dense[at, across])
                row.append(at + starts[i] + term * sizes[i])
                col.append(across + left)
            term += 1
    shape = (int(starts[-1]), int(columns[-1]))
    return scipy.sparse.csr_matrix((np.concatenate(data), (np.concatenate(row), np.concatenate(col))), shape=shape)
