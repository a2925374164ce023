"""Finite groups that act on <m,k,n> schemes over Z2, by name: what symmetric walks in the flip graph may be given.

A term stands in trace form: a (m, k), b (k, n) and c (n, m), the transpose of w, so that the tensor is the trace of
a b c. An element sends factor p, a flat vector of bits, to factor ``slots[p]`` of the image by the 0-1 matrix
``maps[p]``. Pairs (slots, maps) are what ``flips.Group.of`` takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape

__all__ = ["Gf2Action", "compose", "gf2_action", "image"]

Bits = npt.NDArray[Any]  # 0-1 integers
Element = tuple[tuple[int, int, int], tuple[Bits, Bits, Bits]]
_MAX_ORDER = 64  # of a group in the flip graph
_EXAMPLES = "cyclic, transpose, reverse, permute:(1,2), linear:01/11, or several joined by +"


@dataclass(frozen=True, eq=False)
class Gf2Action:
    """A finite group of symmetries of <m,k,n> over Z2: pairs (slots, maps), the identity first.

    Raises UsageError for elements that do not keep the matmul tensor modulo 2, or that form no group.
    """

    name: str
    shape: Shape
    elements: tuple[Element, ...]

    def __post_init__(self) -> None:
        m, k, n = self.shape
        sizes = (m * k, k * n, n * m)
        tensor = _trace_tensor(self.shape)
        keys = {_key(e) for e in self.elements}
        for i, (slots, maps) in enumerate(self.elements):
            fits = sorted(slots) == [0, 1, 2] and all(
                x.shape == (sizes[s], sizes[p]) for p, (s, x) in enumerate(zip(slots, maps, strict=True))
            )
            if not fits:
                raise UsageError(f"element {i} of {self.name!r} has maps of the wrong sizes for <{m},{k},{n}>")
            moved = np.einsum("xi,yj,zl,ijl->xyz", *maps, tensor, optimize=True).transpose(np.argsort(slots)) % 2
            if not np.array_equal(moved, tensor):
                raise UsageError(f"element {i} of {self.name!r} does not keep the tensor of <{m},{k},{n}> modulo 2")
        products = {_key(compose(f, g)) for f in self.elements for g in self.elements}
        if products != keys or len(keys) != len(self.elements):
            raise UsageError(f"the {len(self.elements)} elements of {self.name!r} form no group")

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.elements)


def gf2_action(name: str, shape: Shape) -> Gf2Action:
    """The group over Z2 of that name acting on <m,k,n>; parts are joined by ``+`` and generate it together.

    ``cyclic`` is (a, b, c) -> (b, c, a) for m = k = n, ``transpose`` is (a, b, c) -> (b^T, a^T, c^T) for m = n, and
    ``transpose:CYCLES`` composes it with the permutation. ``reverse`` reverses the indices of all spaces.
    ``permute:CYCLES`` permutes the indices of all three spaces alike (``permute:(1,2)(3,4)``; of different ones:
    ``permute:(1,2)/()/(1,2,3)`` for m, k, n). ``linear:ROWS`` is a -> X a X^-1 and so on with the invertible
    matrix X of these rows, for square shapes (``change_basis`` by X^T).

    >>> gf2_action("cyclic+permute:(1,2)", (3, 3, 3)).order, gf2_action("linear:010/001/101", (3, 3, 3)).order
    (6, 7)
    """
    generators = [_part(part, shape) for part in name.split("+")]
    m, k, n = shape
    one: Element = ((0, 1, 2), (_eye(m * k), _eye(k * n), _eye(n * m)))
    elements, known = [one], {_key(one)}
    for element in elements:  # grows while it is read
        for g in generators:
            new = compose(g, element)
            if _key(new) not in known:
                known.add(_key(new))
                elements.append(new)
        if len(elements) > _MAX_ORDER:
            raise UsageError(f"symmetry {name!r} generates more than {_MAX_ORDER} elements over Z2")
    return Gf2Action(name, shape, tuple(elements))


def image(element: Element, scheme: Scheme) -> Scheme:
    """A Z2 scheme with factors u (r, m, k), v (r, k, n), w (r, m, n) after an element."""
    m, k, n = scheme.shape
    old = (scheme.u, scheme.v, scheme.w.swapaxes(1, 2))
    new: list[Bits] = [scheme.u] * 3
    for factor, slot, matrix in zip(old, element[0], element[1], strict=True):
        rows, cols = ((m, k), (k, n), (n, m))[slot]
        flat = factor.reshape(scheme.rank, -1).astype(np.int64) @ matrix.T % 2
        new[slot] = flat.astype(np.int8).reshape(scheme.rank, rows, cols)
    return Scheme(scheme.shape, "Z2", new[0], new[1], new[2].swapaxes(1, 2))


def _part(part: str, shape: Shape) -> Element:
    m, k, n = shape
    kind, _, detail = part.partition(":")
    if kind == "cyclic" and not detail:
        if not m == k == n:
            raise UsageError(f"cyclic symmetry needs a square shape, not {m},{k},{n}")
        return (2, 0, 1), (_eye(m * m), _eye(m * m), _eye(m * m))
    if kind == "transpose":
        if m != n:
            raise UsageError(f"transposition needs a shape M,K,M, not {m},{k},{n}")
        flip: Element = ((1, 0, 2), (_flip(m, k), _flip(k, n), _flip(n, m)))
        return compose(_part(f"permute:{detail}", shape), flip) if detail else flip
    if kind == "reverse" and not detail:
        x, y, z = (_eye(side)[::-1] for side in shape)
        return _linear(x, y, z, x, y, z)
    if kind == "permute":
        cycles = detail.split("/")
        if len(cycles) not in (1, 3):
            raise UsageError(f"{part!r}: write the cycles once, or for m, k and n with / between them")
        x, y, z = (_permutation(part, c, side) for c, side in zip((cycles * 3)[:3], shape, strict=True))
        return _linear(x, y, z, x.T, y.T, z.T)
    if kind == "linear":
        rows = detail.split("/")
        if not m == k == n:
            raise UsageError(f"{part!r} needs a square shape, not {m},{k},{n}")
        if len(rows) != m or any(len(row) != m or set(row) - {"0", "1"} for row in rows):
            raise UsageError(f"{part!r}: write {m} rows of {m} bits with / between them")
        matrix = np.array([[int(bit) for bit in row] for row in rows])
        inverse = _inverse(matrix)
        if inverse is None:
            raise UsageError(f"{part!r}: the matrix is not invertible over Z2")
        return _linear(matrix, matrix, matrix, inverse, inverse, inverse)
    raise UsageError(f"no symmetry {part!r} over Z2; known: {_EXAMPLES}")


def _linear(x: Bits, y: Bits, z: Bits, xi: Bits, yi: Bits, zi: Bits) -> Element:
    """a -> X a Y^-1, b -> Y b Z^-1, c -> Z c X^-1."""
    return (0, 1, 2), (np.kron(x, yi.T), np.kron(y, zi.T), np.kron(z, xi.T))


def _permutation(part: str, cycles: str, side: int) -> Bits:
    """The matrix of a permutation in cycle notation, points from 1 on; points beyond the side are refused."""
    images = list(range(side))
    text = cycles.strip()
    if not (text.startswith("(") and text.endswith(")")):
        raise UsageError(f"{part!r}: write cycles like (1,2)(3,4), points from 1 on, or () for none")
    seen: set[str] = set()
    for cycle in text[1:-1].split(")("):
        points = [p.strip() for p in cycle.split(",")] if cycle.strip() else []
        known = [str(i + 1) for i in range(side)]
        if any(p not in known or p in seen for p in points) or len(set(points)) < len(points):
            raise UsageError(f"{part!r}: cycles must be disjoint and of points 1 to {side}")
        seen.update(points)
        for a, b in zip(points, points[1:] + points[:1], strict=True):
            images[int(a) - 1] = int(b) - 1
    matrix = np.zeros((side, side), dtype=np.int64)
    matrix[images, range(side)] = 1
    return matrix


def _inverse(matrix: Bits) -> Bits | None:
    """The inverse over Z2, or None: the power before the identity in a finite group."""
    power = _eye(len(matrix))
    seen: set[bytes] = set()
    while power.tobytes() not in seen:
        seen.add(power.tobytes())
        following = power @ matrix % 2
        if np.array_equal(following, _eye(len(matrix))):
            return power
        power = following
    return None


def _eye(size: int) -> Bits:
    return np.eye(size, dtype=np.int64)


def _flip(rows: int, cols: int) -> Bits:
    """The permutation matrix that carries a flat rows x cols matrix to its flat transpose."""
    return _eye(rows * cols)[np.arange(rows * cols).reshape(rows, cols).T.ravel()]


def compose(f: Element, g: Element) -> Element:
    """First g, then f."""
    x, y, z = (f[1][s] @ matrix % 2 for s, matrix in zip(g[0], g[1], strict=True))
    a, b, c = (f[0][s] for s in g[0])
    return (a, b, c), (x, y, z)


def _key(element: Element) -> tuple[Any, ...]:
    return (tuple(element[0]), *(np.asarray(x, dtype=np.int64).tobytes() for x in element[1]))


def _trace_tensor(shape: Sequence[int]) -> Bits:
    """(mk, kn, nm): 1 where a[i,j] b[j,l] c[l,i] stands in the trace of a b c."""
    m, k, n = shape
    tensor = np.zeros((m * k, k * n, n * m), dtype=np.int64)
    for i, j, h in itertools.product(range(m), range(k), range(n)):
        tensor[i * k + j, j * n + h, h * m + i] = 1
    return tensor
