"""Real representations: irreducible ones with explicit orthogonal matrices, R[G] as a sum of matrix rings, and the
Fourier transform over R.

Every real irreducible representation belongs to a division algebra K = R, C or H (the quaternions) and is d x d
matrices over K [1]. Here it comes in a basis in which that is visible: each matrix entry x of K is a block of the
real matrix, the matrix of y -> xy on K in the basis 1; 1, i; or 1, i, j, k.

[1] J.-P. Serre, Linear Representations of Finite Groups (1977), sections 6.2 and 13.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_search.groups.characters import CharacterTable, character_table
from stl_search.groups.cyclotomic import power_basis, roots_of_unity
from stl_search.groups.group import Group, GroupError, Ints, frozen
from stl_search.groups.subgroups import centralizer, normal_subgroups, quotient

__all__ = [
    "TOLERANCE",
    "Block",
    "FourierTransform",
    "RealIrrep",
    "division_algebra",
    "fourier_transform",
    "real_irreps",
    "wedderburn",
    "wedderburn_text",
]

Reals = NDArray[np.float64]

TOLERANCE = 1e-12  # what orthogonality, products and traces of the matrices are held to before they are returned

_DRAWS = 200  # random elements of no special position are found in one or two draws

_ALGEBRA_OF = {1: "R", 0: "C", -1: "H"}
_DIMENSION = {"R": 1, "C": 2, "H": 4}


@lru_cache(maxsize=3)
def division_algebra(name: str) -> Ints:
    """(c, c, c) structure constants of K = R, C or H: basis element a times b is the sum of [a, b, t] basis t.

    The basis is 1; 1, i; or 1, i, j, k with ij = k.

    >>> division_algebra("C").tolist()
    [[[1, 0], [0, 1]], [[0, 1], [-1, 0]]]
    """
    if name not in _DIMENSION:
        raise GroupError(f"no division algebra {name!r}; known are R, C and H")
    quaternions = np.zeros((4, 4, 4), dtype=np.intp)
    for a, b, t, sign in [(0, 0, 0, 1), (1, 2, 3, 1), (2, 3, 1, 1), (3, 1, 2, 1)]:
        quaternions[a, b, t] = sign
        if a:
            quaternions[b, a, t] = -sign
            quaternions[a, a, 0] = -1
            quaternions[0, a, a] = quaternions[a, 0, a] = 1
    c = _DIMENSION[name]
    return frozen(quaternions[:c, :c, :c])


@dataclass(frozen=True)
class Block:
    """One factor M_d(K) of R[G]: ``algebra`` "R", "C" or "H", ``size`` d, ``characters`` the rows that it gathers.

    ``dimension`` d^2 dim K is its share of the group algebra, ``degree`` d dim K that of the real representation.
    """

    algebra: str
    size: int
    characters: tuple[int, ...]

    @property
    def dimension(self) -> int:
        return self.size**2 * _DIMENSION[self.algebra]

    @property
    def degree(self) -> int:
        return self.size * _DIMENSION[self.algebra]

    def __str__(self) -> str:
        return self.algebra if self.size == 1 else f"M{self.size}({self.algebra})"


def wedderburn(group: Group) -> tuple[Block, ...]:
    """R[G] as a sum of matrix rings, in the order of the character table; the dimensions sum to the order.

    From degrees and Frobenius-Schur indicators: real characters of degree d give M_d(R), conjugate pairs M_d(C),
    quaternionic ones M_(d/2)(H).

    >>> from stl_search.groups.named import cyclic, quaternion
    >>> [str(b) for b in wedderburn(quaternion())], [str(b) for b in wedderburn(cyclic(3))]
    (['R', 'R', 'R', 'R', 'H'], ['R', 'C'])
    """
    table = character_table(group)
    blocks: list[Block] = []
    for i in range(len(table)):
        algebra, other, degree = _ALGEBRA_OF[int(table.indicators[i])], int(table.conjugates[i]), int(table.degrees[i])
        if other >= i:
            rows = (i,) if algebra != "C" else (i, other)
            blocks.append(Block(algebra, degree // 2 if algebra == "H" else degree, rows))
    return tuple(blocks)


def wedderburn_text(group: Group) -> str:
    """The decomposition in one line, equal blocks gathered.

    >>> from stl_search.groups.named import dihedral
    >>> wedderburn_text(dihedral(4))
    '4 R + M2(R)'
    """
    counts: dict[str, int] = {}
    for block in wedderburn(group):
        counts[str(block)] = counts.get(str(block), 0) + 1
    return " + ".join(f"{c} {text}" if c > 1 else text for text, c in counts.items())


@dataclass(frozen=True, eq=False)
class RealIrrep:
    """A real irreducible representation of a group of order n, of degree D = d dim K.

    ``over`` (n, d, d, dim K): the matrix of each element over K, entries by coordinates (of K acting from the left).
    ``matrices`` (n, D, D): the same as orthogonal real matrices, row i dim K + a, column j dim K + b.
    ``block`` says K, d and the characters; the trace of ``over`` for K = C is the first of its two characters.
    """

    group: Group
    block: Block
    over: Reals

    @property
    def degree(self) -> int:
        """D, the size of the real matrices."""
        return self.block.degree

    @cached_property
    def matrices(self) -> Reals:
        constants = division_algebra(self.block.algebra)
        n, d, _, c = self.over.shape
        blocks = np.einsum("gija,abt->gitjb", self.over, constants)
        result: Reals = np.asarray(blocks.reshape(n, d * c, d * c))
        result.setflags(write=False)
        return result

    def character(self) -> Reals:
        """(n,): traces of the real matrices."""
        return np.asarray(np.trace(self.matrices, axis1=1, axis2=2))

    def defects(self) -> tuple[float, float, float]:
        """Largest deviations from orthogonality, from rho(g) rho(s) = rho(gs) for generators s, and of the traces.

        Traces are compared with the exact character table.
        """
        table = character_table(self.group)
        rho = self.matrices
        orthogonal = float(np.abs(rho @ rho.transpose(0, 2, 1) - np.eye(self.degree)).max())
        products = [float(np.abs(rho @ rho[s] - rho[self.group.table[:, s]]).max()) for s in self.group.generators]
        expected = table.complex_values[list(self.block.characters)].sum(axis=0).real * (
            2 if self.block.algebra == "H" else 1
        )
        traces = float(np.abs(self.character() - expected[self.group.class_of]).max())
        return orthogonal, max(products, default=0.0), traces


@lru_cache(maxsize=256)
def real_irreps(group: Group) -> tuple[RealIrrep, ...]:
    """All real irreducible representations, in the order of ``wedderburn``; matrices hold to TOLERANCE.

    Characters of degree 1 give exact signs and rotations. The others are cut out of the regular
    representation and brought to a basis adapted to an abelian subgroup, in which many entries are 0, 1 and -1.

    >>> from stl_search.groups.named import quaternion
    >>> irrep = real_irreps(quaternion())[-1]
    >>> irrep.over[quaternion().labels.index("i"), 0, 0].tolist(), irrep.matrices.shape
    ([0.0, 1.0, 0.0, 0.0], (8, 4, 4))
    """
    table = character_table(group)
    result = []
    for block in wedderburn(group):
        over = _linear(table, block) if table.degrees[block.characters[0]] == 1 else _inflated(table, block)
        over.setflags(write=False)
        irrep = RealIrrep(group, block, over)
        if max(irrep.defects()) > TOLERANCE:
            raise AssertionError(f"representation {block} of {group!r} is off by {max(irrep.defects())}: this is a bug")
        result.append(irrep)
    return tuple(result)


def _linear(table: CharacterTable, block: Block) -> Reals:
    """A character of degree 1: its values are roots of unity, found exactly."""
    e = table.conductor
    exponent = {row.tobytes(): j for j, row in enumerate(power_basis(e))}
    values = table.values[block.characters[0]]
    roots = roots_of_unity(e)[[exponent[np.ascontiguousarray(v).tobytes()] for v in values]][table.group.class_of]
    parts = (roots.real, roots.imag) if block.algebra == "C" else (roots.real,)
    return np.stack(parts, axis=1)[:, None, None, :]


def _inflated(table: CharacterTable, block: Block) -> Reals:
    """(n, d, d, dim K): a representation of higher degree, found for the factor group on which it is faithful."""
    group = table.group
    kernel = table.kernel(block.characters[0])
    if len(kernel) == 1:
        return _faithful(table, block)
    factor, projection = quotient(group, kernel)
    smaller = character_table(factor)
    wanted = table.complex_values[block.characters[0]][group.class_of]
    distances = np.abs(smaller.complex_values[:, factor.class_of[projection]] - wanted).max(axis=1)
    row = int(np.argmin(distances))  # different characters differ by more than rounding
    rows = tuple(dict.fromkeys((row, int(smaller.conjugates[row]))))
    return _faithful(smaller, Block(block.algebra, block.size, rows))[projection]


def _faithful(table: CharacterTable, block: Block) -> Reals:
    """(n, d, d, dim K): a representation of higher degree, from the regular one."""
    rho = _polished(_cut(table, block), table.group)
    units = _commutant(rho, block.algebra)
    if block.algebra == "C":  # i or -i: the trace must be the first of the two characters
        wanted = table.complex_values[block.characters[0]][table.group.class_of]
        traces = np.einsum("gab,ab->g", rho, units[1]) / 2  # trace of (rho J^T) = 2 Im chi
        if np.abs(traces - wanted.imag).max() > np.abs(traces + wanted.imag).max():
            units[1] = -units[1]
    basis = _adapted_basis(table.group, rho, units)
    over = _coordinates(basis.T @ rho @ basis, block.algebra)
    if block.algebra == "H":
        over = _aligned(over)
    return _snapped(over)


def _cut(table: CharacterTable, block: Block) -> Reals:
    """(n, D, D): the action on one irreducible subspace of R[G], in an orthonormal basis, to a few digits at least.

    Right multiplication by a random symmetric element a commutes with the action from the left; its eigenspaces in
    the block M_d(K) are irreducible when the d eigenvalues differ.
    """
    group = table.group
    n, degree = group.order, block.degree
    rows = list(block.characters)
    # Central idempotent of the block: chi(1)/n sum of chi(g^-1) g, as a matrix of left multiplication.
    coefficients = (table.degrees[rows, None] * table.complex_values[rows].real).sum(axis=0)[group.class_of] / n
    projection = coefficients[group.table[:, group.inverse]]
    rng = np.random.default_rng(n)
    for _ in range(_DRAWS):
        a = rng.standard_normal(n)
        a = (a + a[group.inverse]) / np.sqrt(n)
        right = a[group.table[group.inverse]]  # entry (h, g): a(h^-1 g), symmetric as a is
        shift = 4 * np.sqrt(n)  # moves the block away from the kernel of the projection
        operator = projection @ right @ projection + shift * projection
        eigenvalues, vectors = np.linalg.eigh((operator + operator.T) / 2)
        # The top eigenvalue belongs to one irreducible subspace if the next, or the end of the block, is well below.
        spread = eigenvalues[-1] - eigenvalues[-degree]
        gap = eigenvalues[-degree] - eigenvalues[-degree - 1] if n > degree else np.inf
        if spread < 1e-8 * shift and gap > 1e-3:
            break
    else:
        raise AssertionError(f"no irreducible subspace of degree {degree} found in the block {block} of {group!r}")
    basis = vectors[:, -degree:]
    moved = basis[group.table[group.inverse]]  # (g, h, D): (g v)(h) = v(g^-1 h)
    return np.asarray(np.einsum("ha,ghb->gab", basis, moved))


def _polished(rho: Reals, group: Group) -> Reals:
    """A representation near almost-multiplicative matrices (n, D, D): averages of rho(gh) rho(h)^T, made orthogonal.

    One step squares the error, here to below rounding; see Grove, Karcher and Ruh, Jacobi fields and Finsler metrics
    on compact Lie groups, Math. Ann. 211 (1974), 7-21.
    """
    n, degree, _ = rho.shape
    stacked = rho.transpose(0, 2, 1).reshape(n * degree, degree)
    averages = np.empty_like(rho)
    for g in range(n):
        averages[g] = rho[group.table[g]].transpose(1, 0, 2).reshape(degree, n * degree) @ stacked / n
    left, _, right = np.linalg.svd(averages)
    return np.asarray(left @ right)


def _commutant(rho: Reals, algebra: str) -> list[Reals]:
    """Orthogonal matrices, dim K of them, that commute with rho: the actions of 1, i, j, k from the right."""
    degree = rho.shape[1]
    units = [np.eye(degree)]
    rng = np.random.default_rng(degree)
    for _ in range(_DRAWS):
        if len(units) == min(_DIMENSION[algebra], 3):
            break
        x = rng.standard_normal((degree, degree))
        mean = (rho @ x @ rho.transpose(0, 2, 1)).mean(axis=0)
        skew = mean - mean.T  # the commutant is K; its skew part are the purely imaginary elements
        for unit in units[1:]:
            skew = skew - np.sum(skew * unit) / degree * unit
        norm = np.linalg.norm(skew) / np.sqrt(degree)
        if norm > 1 / np.sqrt(degree):  # of usual size: dividing by less would lose digits
            units.append(skew / norm)
    else:
        raise AssertionError(f"a representation of degree {degree} does not commute with {algebra}")
    if algebra == "H":
        units.append(units[2] @ units[1])  # from the right, y -> y(ij) is first i, then j
    return units


def _abelian_subgroups(group: Group) -> Iterator[tuple[bool, tuple[int, ...]]]:
    """Some abelian subgroups, with whether they are normal: all normal ones, and towers over each class."""
    for members in normal_subgroups(group)[1:]:
        if np.array_equal(group.table[np.ix_(members, members)], group.table[np.ix_(members, members)].T):
            yield True, members
    for first in group.classes[1:]:
        chosen = [first[0]]
        while True:
            mask = group.closure(chosen)
            yield False, tuple(np.flatnonzero(mask).tolist())
            more = [a for a in centralizer(group, chosen) if not mask[a]]
            if not more:
                break
            chosen.append(min(more, key=lambda a: (int(group.element_orders[a]), a)))


def _adapted_basis(group: Group, rho: Reals, units: list[Reals]) -> Reals:
    """(D, D) orthogonal: columns v, v i, v j, v k of d vectors v that an abelian subgroup splits as far as possible.

    Take the abelian subgroup under which the representation splits into most different pieces, a first vector v in
    the smallest piece, and then the components in the pieces of the images of v, as far as they are new.
    """
    degree = rho.shape[1]
    rng = np.random.default_rng(degree)
    weights = rng.standard_normal(group.order)
    best: tuple[tuple[int, bool, int], list[int], Reals, Ints] | None = None
    for normal, members in _abelian_subgroups(group):
        inside = list(members)
        symmetric = np.tensordot(weights[inside], rho[inside] + rho[inside].transpose(0, 2, 1), axes=1)
        eigenvalues, vectors = np.linalg.eigh(symmetric)
        piece = np.concatenate([[0], np.cumsum(np.diff(eigenvalues) > 1e-6)])
        score = (int(piece[-1]), normal, -len(inside))
        if best is None or score > best[0]:
            best = score, inside, vectors, piece
    assert best is not None  # a group with a representation of degree > 1 has non-trivial elements
    _, inside, vectors, piece = best
    pieces: list[Reals] = []
    for i in range(piece[-1] + 1):
        rough = vectors[:, piece == i]
        # Averaged over the subgroup, the projection is invariant to rounding, however close the eigenvalues were.
        projection = (rho[inside] @ (rough @ rough.T) @ rho[inside].transpose(0, 2, 1)).mean(axis=0)
        pieces.append(np.linalg.eigh(projection)[1][:, -rough.shape[1] :])
    pieces.sort(key=lambda part: part.shape[1])
    columns = [unit @ pieces[0][:, 0] for unit in units]
    for images in rho:
        moved = images @ columns[0]
        for part in pieces:
            new = part @ (part.T @ moved)
            for _ in range(2):  # twice, for orthogonality to rounding
                known = np.array(columns)
                new = new - known.T @ (known @ new)
            size = np.linalg.norm(new)
            if size > 0.5 / np.sqrt(degree):  # some image always has 1 / sqrt(degree) or more in what is still missing
                columns += [unit @ (new / size) for unit in units]
    return np.array(columns).T


def _coordinates(matrices: Reals, algebra: str) -> Reals:
    """(n, d, d, dim K) from real matrices (n, D, D) that are made of blocks of left multiplications (averaged)."""
    constants = division_algebra(algebra)
    c = len(constants)
    n, degree, _ = matrices.shape
    blocks = matrices.reshape(n, degree // c, c, degree // c, c)
    return np.asarray(np.einsum("gitjb,abt->gija", blocks, constants) / c)


def _aligned(over: Reals) -> Reals:
    """Quaternions turned so that the first imaginary part is along i and the first beyond it in the plane of i, j.

    Turning the imaginary part of all entries alike is an automorphism of H, so the matrices still multiply.
    """
    imaginary = over[..., 1:].reshape(-1, 3)
    axes: list[Reals] = []
    for vector in imaginary:
        for axis in axes:
            vector = vector - (vector @ axis) * axis
        size = np.linalg.norm(vector)
        if size > 1e-3:
            axes.append(vector / size)
        if len(axes) == 2:
            break
    frame = np.array([*axes, np.cross(axes[0], axes[1])])
    return np.concatenate([over[..., :1], over[..., 1:] @ frame.T], axis=-1)


def _snapped(values: Reals) -> Reals:
    """Entries within many roundings of 0, 1/2 or 1 in absolute value become that; the caller checks the result."""
    nearest = np.rint(2 * values) / 2
    return np.where(np.abs(values - nearest) < 1e-13, nearest + 0.0, values)


@dataclass(frozen=True, eq=False)
class FourierTransform:
    """R[G] -> sum of M_d(K) as a matrix, for a group of order n.

    ``matrix`` (n, n) sends coefficients a (of g = 0..n-1) to the coordinates of sum a_g rho(g), block after block in
    the order of ``irreps``; ``slices`` says where each block lies, and inside it the order is row, column, unit of K.
    ``weights`` (n,): rows have squared norm n / weight, so ``orthogonal`` = sqrt(weights / n) * matrix is orthogonal
    and ``inverse`` its rescaled transpose. For C_2^k, ``matrix`` is Sylvester's Walsh-Hadamard matrix; for C_n it
    holds the cosines and sines of the real DFT, in natural order but with the frequency n/2 second.

    >>> from stl_search.groups.named import elementary_abelian
    >>> fourier_transform(elementary_abelian(2, 2)).matrix.astype(int).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """

    group: Group
    irreps: tuple[RealIrrep, ...]
    slices: tuple[slice, ...]
    matrix: Reals
    weights: Ints

    @cached_property
    def orthogonal(self) -> Reals:
        return np.asarray(np.sqrt(self.weights / self.group.order)[:, None] * self.matrix)

    @cached_property
    def inverse(self) -> Reals:
        return np.asarray((self.matrix * (self.weights / self.group.order)[:, None]).T)

    def multiply(self, x: ArrayLike, y: ArrayLike) -> Reals:
        """(..., n): the product of two elements of the sum of matrix rings, given by coordinates (..., n)."""
        left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        parts = []
        for irrep, where in zip(self.irreps, self.slices, strict=True):
            d, constants = irrep.block.size, division_algebra(irrep.block.algebra)
            shape = (d, d, len(constants))
            a = left[..., where].reshape(*left.shape[:-1], *shape)
            b = right[..., where].reshape(*right.shape[:-1], *shape)
            product = np.einsum("...ija,...jkb,abt->...ikt", a, b, constants)
            parts.append(product.reshape(*product.shape[:-3], -1))
        return np.concatenate(parts, axis=-1)


@lru_cache(maxsize=256)
def fourier_transform(group: Group) -> FourierTransform:
    """The Fourier transform of a group over R; see ``FourierTransform``."""
    irreps = real_irreps(group)
    rows = [irrep.over.reshape(group.order, -1).T for irrep in irreps]
    bounds = np.cumsum([0, *(len(r) for r in rows)]).tolist()
    slices = tuple(slice(a, b) for a, b in pairwise(bounds))
    weights = np.concatenate([np.full(len(r), irrep.degree) for r, irrep in zip(rows, irreps, strict=True)])
    matrix = np.concatenate(rows)
    matrix.setflags(write=False)
    return FourierTransform(group, irreps, slices, matrix, frozen(weights))
