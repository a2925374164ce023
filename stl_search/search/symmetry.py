"""Finite groups that act on <m,k,n> schemes, the orbits of terms under them, and the linear space of invariant schemes.

The matmul tensor is kept by u -> X^-T u Y^T, v -> Y^-T v Z^T, w -> X w Z^-1, by cyclic rotation (square shapes) and
by transposition (m = n). With orthogonal X, Y, Z every element acts on flat factors as

    new factor i = maps[i] @ (old factor slots[i])

and keeps E and kappa. A scheme is invariant when the group permutes its terms; the terms then fall into orbits, each
given by one representative, which its stabiliser fixes up to signs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse

from stl_search.errors import UsageError
from stl_search.scheme import Shape

__all__ = [
    "Acting",
    "Action",
    "Element",
    "OrbitType",
    "action",
    "form",
    "generated",
    "images_of",
    "linear",
    "long_orbit",
    "orbit_types",
    "span",
]

Reals = npt.NDArray[Any]
Signs = tuple[int, int, int]

_PATTERNS: tuple[Signs, ...] = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
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


class Acting(Protocol):
    """What orbits ask of a group: its elements, numbered, their products (``table[a][b]``) and the shape."""

    @property
    def shape(self) -> Shape: ...

    @property
    def order(self) -> int: ...

    @property
    def elements(self) -> tuple[Element, ...]: ...

    @property
    def table(self) -> Any: ...


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

    @cached_property
    def group(self) -> Any:
        """The abstract group, a ``stl_search.groups.Group`` with the same numbering."""
        from stl_search import groups

        return groups.Group(self.table, name=self.name)

    def subgroups(self) -> list[tuple[int, ...]]:
        """All subgroups up to conjugacy, smallest first; sorted element indices."""
        from stl_search import groups

        return [same[0] for same in groups.subgroup_classes(self.group)]


def _flip(rows: int, cols: int) -> Reals:
    """The permutation matrix that carries a flat rows x cols matrix to its flat transpose."""
    return np.eye(rows * cols)[np.arange(rows * cols).reshape(rows, cols).T.ravel()]


def _cyclic(shape: Shape) -> Element:
    """(u, v, w) -> (v, w^T, u^T): tr(A B C^T) read from its second factor on."""
    n = shape[0]
    return Element((1, 2, 0), (np.eye(n * n), _flip(n, n), _flip(n, n)))


def form(side: int, minus: int) -> Reals:
    """(side,): the diagonal of D in ``transpose:P``: ``minus`` last entries -1 (all where that is more), else 1."""
    return np.where(np.arange(side) < side - minus, 1.0, -1.0)


def _transposition(shape: Shape, minus: int) -> Element:
    """(u, v, w) -> (D v^T D, D u^T D, D w^T D): C^T = B^T A^T, for <m,k,m>; D has ``minus`` last entries -1, else 1."""
    m, k, n = shape
    twist = linear(*(np.diag(form(side, minus)) for side in shape))
    return twist @ Element((1, 0, 2), (_flip(k, n), _flip(m, k), _flip(m, n)))


def linear(x: Reals, y: Reals, z: Reals) -> Element:
    """u -> X u Y^T, v -> Y v Z^T, w -> X w Z^T for orthogonal X, Y, Z."""
    return Element((0, 1, 2), (np.kron(x, y), np.kron(y, z), np.kron(x, z)))


def _represented(name: str, shape: Shape) -> list[Element]:
    """Generators of the named group acting through faithful real representations of dimensions m, k, n."""
    from stl_search import groups

    base, _, number = name.partition(":")
    if number and not (number.isascii() and number.isdigit()):
        raise UsageError(f"{name!r}: write {base} or {base}:N with the number N of a representation, from 0 on")
    group = groups.get(base)
    irreps = groups.real_irreps(group)
    matrices = {side: list(itertools.islice(_faithful(irreps, side), int(number or 0) + 1)) for side in set(shape)}
    missing = sorted(side for side, found in matrices.items() if not found)
    if missing:
        raise UsageError(f"{base} has no faithful real representation of dimension {missing[0]}")
    few = sorted(side for side, found in matrices.items() if len(found) <= int(number or 0))
    if few:
        known = len(matrices[few[0]])
        raise UsageError(f"{base} has only {known} faithful real representations of dimension {few[0]}, from 0 on")
    return [linear(*(matrices[side][-1][g] for side in shape)) for g in group.generators]


def _faithful(irreps: Any, side: int) -> Iterator[Reals]:
    """(order, side, side): the sums of irreducible representations of that dimension in which only 1 acts as 1."""
    degrees = [irrep.degree for irrep in irreps]
    for count in range(1, side + 1):
        for chosen in itertools.combinations_with_replacement(range(len(irreps)), count):
            if sum(degrees[i] for i in chosen) != side:
                continue
            blocks = [irreps[i].matrices for i in chosen]
            whole = np.stack([scipy.linalg.block_diag(*(b[g] for b in blocks)) for g in range(len(blocks[0]))])
            if int((np.abs(whole - np.eye(side)).max(axis=(1, 2)) < 1e-6).sum()) == 1:
                yield whole


@cache
def action(name: str, shape: Shape) -> Action:
    """The group of that name acting on schemes of <m,k,n>.

    Names are joined by ``+``: ``cyclic`` (C3: rotation, square shapes), ``transpose`` (C2: <m,k,m>), and the name of
    any group of ``stl_search.groups`` (``S3``, ``D4``, ``C2 x C2`` ..), which acts through a faithful real
    representation of each space: the first one that is found, or the N-th after it as ``S3:N``. ``transpose:P`` is
    A -> D A^T D with P minus signs in D, the involutions that belong to indefinite forms: over R they differ from
    ``transpose``, and Strassen's scheme has the one with P = 1. ``cyclic+transpose:1`` is S3 acting by permutation of
    the factors.

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
    return generated(name, shape, generators)


def generated(name: str, shape: Shape, generators: Sequence[Element]) -> Action:
    """The group that some symmetries generate; raises UsageError when it has more than 96 elements."""
    identity = linear(*(np.eye(side) for side in shape))
    elements, index, born = (
        [identity],
        {identity.key(): 0},
        [(0, 0)],
    )  # born: element b is generator b[0] @ element b[1]
    left: list[list[int]] = [[] for _ in generators]  # left[g][a]: the index of generator g @ element a
    for a, element in enumerate(elements):  # grows while it is read: breadth first
        for i, g in enumerate(generators):
            product = g @ element
            place = index.setdefault(product.key(), len(elements))
            left[i].append(place)
            if place == len(elements):
                elements.append(product)
                born.append((i, a))
                if len(elements) > _MAX_ORDER:
                    raise UsageError(f"symmetry {name!r} generates more than {_MAX_ORDER} elements")
    table = [tuple(range(len(elements)))]
    for i, a in born[1:]:
        table.append(tuple(left[i][b] for b in table[a]))
    return Action(name, shape, tuple(elements), tuple(table))


@dataclass(frozen=True, eq=False)
class OrbitType:
    """Orbits of ``size`` terms whose representative is fixed by ``stabiliser`` up to signs.

    ``basis`` (mk + kn + mn, d): the space of representatives (u, v, w) flat, one after the other; ``images`` (size,
    mk, d), (size, kn, d), (size, mn, d): from coordinates in it to the factors of every term of the orbit.
    """

    size: int
    stabiliser: tuple[int, ...]
    basis: Reals
    images: tuple[Reals, Reals, Reals]
    key: tuple[int, int]  # by which kinds are sorted: large orbits first, then as they are listed


@lru_cache(maxsize=256)  # groups drawn at random are many
def orbit_types(group: Action) -> tuple[OrbitType, ...]:
    """The kinds of orbit: stabilisers and their signs, up to conjugacy, that some term has as its whole stabiliser.

    An element h of the stabiliser multiplies the factors of the representative by signs s(h), whose product is 1.
    Signs that arise from each other by changing the signs of the factors, or by an element that normalises the
    stabiliser, are of one kind.
    """
    found: list[OrbitType] = []
    for subgroup in group.subgroups():
        for signs in _signs(group, subgroup):
            basis = _fixed_space(group, signs)
            if basis is not None and _stabiliser(group, basis) == subgroup:
                images = images_of(group, subgroup, basis)
                size = len(images[0])
                found.append(OrbitType(size, subgroup, basis, images, (-size, len(found))))
    return tuple(found)


def long_orbit(group: Action) -> OrbitType:
    """The kind of orbit whose representative only signs fix: elements that multiply all three factors by signs.

    It needs no list of subgroups, and its space is the whole one.
    """
    signs = tuple(
        g
        for g, e in enumerate(group.elements)
        if e.slots == (0, 1, 2) and all(np.allclose(x, x[0, 0] * np.eye(len(x))) for x in e.maps)
    )
    m, k, n = group.shape
    basis = np.eye(m * k + k * n + m * n)
    size = group.order // len(signs)
    return OrbitType(size, signs, basis, images_of(group, signs, basis), (-size, 0))


def _signs(group: Action, subgroup: tuple[int, ...]) -> list[dict[int, Signs]]:
    """The ways s in which a subgroup may multiply the factors of a term that it fixes, one of each kind.

    They satisfy s(gh)[i] = s(g)[i] s(h)[slots of g at i].
    """
    from stl_search.groups.subgroups import as_generators, normalizer

    slots = [e.slots for e in group.elements]
    generators = as_generators(group.group, subgroup)
    normal = normalizer(group.group, subgroup)
    inverse = group.group.inverse
    found: list[dict[int, Signs]] = []
    known: set[tuple[Signs, ...]] = set()
    for chosen in itertools.product(_PATTERNS, repeat=len(generators)):
        signs = _extended(group, dict(zip(generators, chosen, strict=True)))
        if signs is None or tuple(signs[h] for h in subgroup) in known:
            continue
        found.append(signs)
        for g in normal:
            moved = [signs[group.table[group.table[inverse[g]][h]][g]] for h in subgroup]
            moved = [(s[slots[g][0]], s[slots[g][1]], s[slots[g][2]]) for s in moved]
            for d in _PATTERNS:
                gauged = (
                    tuple(s[i] * d[i] * d[slots[h][i]] for i in range(3)) for h, s in zip(subgroup, moved, strict=True)
                )
                known.add(tuple(gauged))  # type: ignore[arg-type]
    return found


def _extended(group: Action, signs: dict[int, Signs]) -> dict[int, Signs] | None:
    """The signs of all elements that some generate, from theirs; None where they contradict each other."""
    found: dict[int, Signs] = {0: (1, 1, 1)}
    front = [0]
    for h in front:  # grows while it is read
        for g, s in signs.items():
            x, y, z = (s[i] * found[h][group.elements[g].slots[i]] for i in range(3))
            product = group.table[g][h]
            if product not in found:
                front.append(product)
            if found.setdefault(product, (x, y, z)) != (x, y, z):
                return None
    return found


def _fixed_space(group: Action, signs: dict[int, Signs]) -> Reals | None:
    """Orthonormal columns: the (u, v, w) that the elements multiply by these signs; None where a factor must vanish.

    It is the image of the mean of all h with their signs, an orthogonal projection. Each column is zero outside the
    factors that the elements exchange with each other.
    """
    m, k, n = group.shape
    ends = np.cumsum([0, m * k, k * n, m * n])
    mean = np.zeros((ends[-1], ends[-1]))
    for h, s in signs.items():
        element = group.elements[h]
        for i, (slot, matrix) in enumerate(zip(element.slots, element.maps, strict=True)):
            mean[ends[i] : ends[i + 1], ends[slot] : ends[slot + 1]] += s[i] * matrix / len(signs)
    columns = []
    for slots in {tuple(sorted({group.elements[h].slots[i] for h in signs})) for i in range(3)}:
        rows = np.concatenate([np.arange(ends[i], ends[i + 1]) for i in slots])
        values, vectors = np.linalg.eigh(mean[np.ix_(rows, rows)])
        block = np.zeros((ends[-1], int((values > 0.5).sum())))
        block[rows] = vectors[:, values > 0.5]
        if not block.shape[1]:
            return None
        columns.append((slots, block))
    return np.hstack([block for _, block in sorted(columns, key=lambda c: c[0])])


def images_of(group: Acting, subgroup: Sequence[int], basis: Reals) -> tuple[Reals, Reals, Reals]:
    """See ``OrbitType``: the images of the basis under an element of each coset of the stabiliser."""
    m, k, n = group.shape
    parts = np.split(basis, np.cumsum([m * k, k * n]))
    cosets = sorted({min(group.table[g][h] for h in subgroup) for g in range(group.order)})
    moved = [[e.maps[i] @ parts[e.slots[i]] for e in (group.elements[g] for g in cosets)] for i in range(3)]
    return np.stack(moved[0]), np.stack(moved[1]), np.stack(moved[2])


def _stabiliser(group: Action, basis: Reals) -> tuple[int, ...]:
    """The elements that fix the term (u, v, w) of a generic vector of a space."""
    m, k, n = group.shape
    generic = basis @ np.random.default_rng(0).standard_normal(basis.shape[1])
    factors = np.split(generic, np.cumsum([m * k, k * n]))
    fixing = []
    for g, element in enumerate(group.elements):
        sizes = [x @ (e @ factors[s]) for x, s, e in zip(factors, element.slots, element.maps, strict=True)]
        if np.prod(sizes) > (1 - 1e-6) * np.prod([x @ x for x in factors]):
            fixing.append(g)
    return tuple(fixing)


def span(group: Action, kinds: list[OrbitType]) -> scipy.sparse.csr_matrix:
    """(r(mk + kn + mn), P): free parameters of the representatives -> the flat (u, v, w) of the whole invariant scheme.

    Terms stand orbit by orbit; P is the sum of the dimensions of the representatives' spaces.
    """
    m, k, n = group.shape
    rank = sum(kind.size for kind in kinds)
    starts = np.cumsum([0, rank * m * k, rank * k * n, rank * m * n])
    columns = np.cumsum([0, *(kind.basis.shape[1] for kind in kinds)])
    data, row, col = [], [], []
    term = 0
    for kind, left in zip(kinds, columns, strict=False):
        for start, images in zip(starts, kind.images, strict=False):
            q, at, across = np.nonzero(np.abs(images) > 1e-14)
            data.append(images[q, at, across])
            row.append(start + (term + q) * images.shape[1] + at)
            col.append(across + left)
        term += kind.size
    shape = (int(starts[-1]), int(columns[-1]))
    return scipy.sparse.csr_matrix((np.concatenate(data), (np.concatenate(row), np.concatenate(col))), shape=shape)
