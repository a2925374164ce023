"""Matrix products inside group algebras: the triple product property, its relaxations, and the searches for them.

Conventions. Maps s: m -> G, t: k -> G, u: n -> G place the entry a_ij of A (m, k) at s_i^-1 t_j, b_jl of B (k, n) at
t_j^-1 u_l, and c_il of C = AB is read at s_i^-1 u_l of the product in R[G]. That is exact if and only if

    s' s^-1  t' t^-1  u' u^-1 = 1    only for    s = s', t = t', u = u'        (triple product property, TPP)

for the images S, T, U [1], with quotient sets Q(S) = {s' s^-1}; in the form with s'^-1 s stand the sets of inverses.
The property is symmetric: any order of S, T, U has it, and so has (Sx, Ty, Uz) for fixed x, y, z and every image under
an automorphism. Elements are indices into the group's table, and 0 is the identity.

[1] Cohn and Umans, A group-theoretic approach to fast matrix multiplication (2003), section 2.
[2] Cohn, Kleinberg, Szegedy and Umans, Group-theoretic algorithms for matrix multiplication (2005).
[3] Hedtke and Murthy, Search and test algorithms for triple product property triples, arXiv 1104.5097.
[4] Neumann, A note on the triple product property for subsets of finite groups (2011).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from itertools import combinations_with_replacement as ascending
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_search.errors import BudgetError, UsageError
from stl_search.groups.group import Group, GroupError, Ints, frozen
from stl_search.groups.isomorphism import automorphism_group

__all__ = [
    "FreeMaps",
    "Maps",
    "anneal_free_maps",
    "anneal_maps",
    "collision_error",
    "collisions",
    "exhaustive_maps",
    "find_stpp",
    "find_tpp",
    "find_usp",
    "is_local_usp",
    "is_stpp",
    "is_tpp",
    "is_usp",
    "puzzle_triples",
    "quotients",
    "tpp_excluded",
    "tpp_triples",
]

Bools = NDArray[np.bool_]
Triple = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

_AUTOMORPHISMS = 20_000  # up to so many are listed to break symmetries; beyond, inner ones are left out as well
_TUPLES = 2_000_000  # maps that an exhaustive search over (s, t, u) may visit


# Exact: the triple product property.


def quotients(group: Group, members: Iterable[int]) -> Bools:
    """(n,): the mask of Q(S) = {s' s^-1 : s, s' in S}; closed under inversion, unchanged when S becomes Sx.

    >>> from stl_search.groups.named import cyclic
    >>> quotients(cyclic(7), [0, 1, 3]).all()  # a difference set
    np.True_
    """
    chosen = _checked(group, members)
    mask: Bools = np.zeros(group.order, dtype=np.bool_)
    mask[group.table[np.ix_(chosen, group.inverse[chosen])]] = True
    return mask


def is_tpp(group: Group, s: Iterable[int], t: Iterable[int], u: Iterable[int]) -> bool:
    """Whether S, T, U, without repetitions, have the triple product property.

    Equivalent to Q(S) and Q(T), as well as Q(S)Q(T) and Q(U), meeting in 1 alone (in the manner of [3]):
    q_s q_t q_u = 1 puts q_u^-1 into both. Raises GroupError for what is no element.

    >>> from stl_search.groups.named import cyclic, symmetric
    >>> is_tpp(symmetric(3), [0, 1], [0, 2], [0, 5]), is_tpp(cyclic(6), [0, 1], [0, 2], [0, 3])
    (True, False)
    """
    sets = [_checked(group, x) for x in (s, t, u)]
    if any(len(set(x.tolist())) != len(x) for x in sets):
        return False
    qs, qt, qu = (quotients(group, x) for x in sets)
    if (qs & qt)[1:].any():
        return False
    reached = np.zeros(group.order, dtype=np.bool_)
    reached[group.table[np.ix_(np.flatnonzero(qs), np.flatnonzero(qt))]] = True
    return not (reached & qu)[1:].any()


def tpp_excluded(group: Group, sizes: Sequence[int]) -> bool:
    """Whether counting alone shows that a group of that order realises no <m,k,n>.

    The elements s^-1 x, x in T or U, are all different when T and U hold 1 (else some s' s^-1 t u^-1 = 1), hence
    |S| (|T| + |U| - 1) <= |G| for every order of the three [4]; in an abelian group so are the s t u, hence mkn <= |G|.

    >>> from stl_search.groups.named import cyclic, symmetric
    >>> [tpp_excluded(g, (2, 2, 2)) for g in (cyclic(7), symmetric(3), cyclic(8))]
    [True, False, False]
    """
    if len(sizes) != 3 or any(x < 1 for x in sizes):
        raise UsageError(f"sizes of a triple are three integers >= 1, not {tuple(sizes)}")
    m, k, n = sizes
    if group.is_abelian and m * k * n > group.order:
        return True
    return max(x * (m + k + n - x - 1) for x in sizes) > group.order


def tpp_triples(group: Group, sizes: Sequence[int], limit: int | None = None) -> Iterator[Triple]:
    """TPP triples (S, T, U) of sizes m, k, n, each holding 1: some for every triple up to symmetry, exhaustively.

    Of the smallest set one representative of each class under translation and automorphisms is taken, of the next one
    of each class under translation, and for the third a clique: some U for each (S, T) that has one. An
    empty iterator therefore *proves* that the group realises no <m,k,n>. Raises UsageError for sizes below 1, and
    BudgetError when there are more than ``limit`` pairs (S, T) to look at.
    """
    if tpp_excluded(group, sizes):
        return
    low, mid, high = sorted(sizes)
    n = group.order
    looked = 0
    from stl_search.groups.tpp_kernels import find_clique

    table, inverse = group.table.astype(np.int64), group.inverse.astype(np.int64)
    order = sorted(range(3), key=lambda i: sizes[i])
    out = np.zeros(high, dtype=np.int64)
    for first in _representatives(group, low):
        q_first = quotients(group, first)
        for second in _translates(group, mid, ~q_first):
            looked += 1
            if limit is not None and looked > limit:
                raise BudgetError(f"more than {limit} pairs of sets of sizes {low} and {mid} to look at in {group!r}")
            q_second = quotients(group, second)
            reached = np.zeros(n, dtype=np.bool_)
            reached[table[np.ix_(np.flatnonzero(q_first), np.flatnonzero(q_second))]] = True
            allowed = ~(reached | reached[inverse])
            if find_clique(table, inverse, allowed, high, out):
                found = dict(zip(order, (first, second, tuple(int(x) for x in out)), strict=True))
                yield found[0], found[1], found[2]


def find_tpp(group: Group, sizes: Sequence[int], limit: int | None = None) -> Triple | None:
    """The first TPP triple of sizes m, k, n, or None: then, proved by exhaustion, the group realises no <m,k,n>.

    Raises BudgetError when neither is known after ``limit`` pairs (S, T).

    >>> from stl_search.groups.named import dihedral
    >>> find_tpp(dihedral(3), (2, 2, 2)) is not None, find_tpp(dihedral(3), (2, 2, 3)) is None
    (True, True)
    """
    return next(tpp_triples(group, sizes, limit), None)


def _checked(group: Group, members: Iterable[int]) -> Ints:
    chosen: Ints = np.fromiter(members, dtype=np.intp)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < group.order):
        raise GroupError(f"elements of {group!r} are 0..{group.order - 1}, not {int(chosen.max())}")
    return chosen


def _representatives(group: Group, size: int) -> Iterator[tuple[int, ...]]:
    """Subsets of ``size`` with 1, one at least of each class under x -> alpha(x) c with automorphisms alpha."""
    automorphisms = automorphism_group(group)
    maps = automorphisms.generators if automorphisms.order > _AUTOMORPHISMS else automorphisms.elements()
    seen: set[tuple[int, ...]] = set()
    for rest in combinations(range(1, group.order), size - 1):
        subset = (0, *rest)
        if subset in seen:
            continue
        yield subset
        for c in group.inverse[list(subset)].tolist():  # every translate that holds 1, under every map
            moved = np.sort(maps[:, group.table[list(subset), c]], axis=1)
            seen.update(map(tuple, np.unique(moved, axis=0).tolist()))


def _translates(group: Group, size: int, allowed: Bools) -> Iterator[tuple[int, ...]]:
    """Subsets of ``size`` with 1 whose quotients but 1 are ``allowed``, the least of each class under translation."""
    ok = allowed & allowed[group.inverse]
    table, inverse = group.table, group.inverse

    def grow(chosen: tuple[int, ...], left: Ints) -> Iterator[tuple[int, ...]]:
        if len(chosen) == size:
            moved = np.sort(table[np.ix_(list(chosen), inverse[list(chosen)].tolist())].T, axis=1)
            if chosen == min(map(tuple, moved.tolist())):
                yield chosen
            return
        for at, x in enumerate(left.tolist()):
            rest = left[at + 1 :]
            yield from grow((*chosen, x), rest[ok[table[rest, inverse[x]]]])

    yield from grow((0,), np.flatnonzero(ok & (np.arange(group.order) > 0)))


# Simultaneous: several independent products in one group algebra.


def is_stpp(group: Group, triples: Sequence[Sequence[Iterable[int]]]) -> bool:
    """Whether triples (A_i, B_i, C_i) have the simultaneous triple product property ([2], definition 5.1).

    Each is TPP, and a_i a'_j^-1 b_j b'_k^-1 c_k c'_i^-1 = 1 implies i = j = k, so that R[G] computes the products
    <|A_i|, |B_i|, |C_i|> independently.
    """
    sets = [tuple(_checked(group, x) for x in triple) for triple in triples]
    if any(len(triple) != 3 for triple in sets):
        raise UsageError("a simultaneous triple product property is about triples of sets")
    if not all(is_tpp(group, *(x.tolist() for x in triple)) for triple in sets):
        return False

    def cross(left: Ints, right: Ints) -> Bools:
        """The mask of {x y^-1}."""
        mask: Bools = np.zeros(group.order, dtype=np.bool_)
        mask[group.table[np.ix_(left, group.inverse[right])]] = True
        return mask

    count = range(len(sets))
    ab = {(i, j): cross(sets[i][0], sets[j][0]) for i in count for j in count}
    bc = {(j, k): cross(sets[j][1], sets[k][1]) for j in count for k in count}
    ca = {(k, i): cross(sets[k][2], sets[i][2]) for k in count for i in count}
    for i, j in product(count, count):
        for k in count:
            if i == j == k:
                continue
            reached = np.zeros(group.order, dtype=np.bool_)
            reached[group.table[np.ix_(np.flatnonzero(ab[i, j]), np.flatnonzero(bc[j, k]))]] = True
            if (reached & ca[k, i][group.inverse]).any():
                return False
    return True


def find_stpp(group: Group, sizes: Sequence[int], copies: int, limit: int = 200_000) -> tuple[Triple, ...] | None:
    """``copies`` triples of sizes (m, k, n) with the simultaneous triple product property, or None when there are none.

    Exhaustive: the first triple is taken up to translation of each set and automorphisms where it may be, the others
    over all subsets. Raises BudgetError when more than ``limit`` triples would have to be looked at.
    """
    m, k, n = sizes
    if copies < 1 or min(sizes) < 1:
        raise UsageError(f"copies and sizes must be >= 1, not {copies} and {tuple(sizes)}")
    order = group.order
    if copies * max(m * k, k * n, n * m) > order:  # the products A_i^-1 B_i are disjoint
        return None
    # (A_i x, B_i y, C_i z) with common x, y, z keep the property: the first triple may hold 1 in each set
    looked = 0
    subsets = {size: list(combinations(range(order), size)) for size in set(sizes)}
    singles: list[Triple] | None = None

    def grow(chosen: tuple[Triple, ...]) -> tuple[Triple, ...] | None:
        nonlocal looked, singles
        if len(chosen) == copies:
            return chosen
        if singles is None:
            if len(subsets[m]) * len(subsets[k]) * len(subsets[n]) > limit:
                raise BudgetError(f"{group!r} has too many triples of sizes {tuple(sizes)} for an exhaustive search")
            singles = [x for x in product(subsets[m], subsets[k], subsets[n]) if is_tpp(group, *x)]
        for triple in singles:
            looked += 1
            if looked > limit:
                raise BudgetError(f"more than {limit} triples of sizes {tuple(sizes)} to look at in {group!r}")
            if is_stpp(group, (*chosen, triple)):
                found = grow((*chosen, triple))
                if found is not None:
                    return found
        return None

    for first in _representatives(group, m):
        for second in (x for x in subsets[k] if x[0] == 0):
            for third in (x for x in subsets[n] if x[0] == 0):
                if is_tpp(group, first, second, third):
                    found = grow(((first, second, third),))
                    if found is not None:
                        return found
    return None


# Uniquely solvable puzzles.


def is_usp(rows: Iterable[Sequence[int]], strong: bool = False) -> bool:
    """Whether rows over {1, 2, 3} of one width form a uniquely solvable puzzle (USP), or a strong one.

    For all permutations p1, p2, p3 of the rows, either they are equal or some row x and place i have at least two
    (strong: exactly two) of p1(x)_i = 1, p2(x)_i = 2, p3(x)_i = 3 ([2], section 3; p1 = 1 may be assumed).
    Raises UsageError for rows that are no puzzle.

    >>> is_usp([(1,)]), is_usp([(1, 1), (2, 2)]), is_usp([(3, 3, 1), (1, 3, 2), (3, 1, 2)], strong=True)
    (True, False, False)
    """
    puzzle = np.array([tuple(row) for row in rows], dtype=np.int64)
    if puzzle.ndim != 2 or not np.isin(puzzle, (1, 2, 3)).all():
        raise UsageError("a puzzle is a set of rows of one width with entries 1, 2, 3")
    if len({tuple(row) for row in puzzle.tolist()}) != len(puzzle):
        return False  # equal rows can be exchanged
    fits = _fits(puzzle, strong)
    size = len(puzzle)

    def other(row: int, used2: int, used3: int, diagonal: bool) -> bool:
        """Whether rows from ``row`` on can be matched so that not all of the matching is diagonal."""
        if row == size:
            return not diagonal
        for y in range(size):
            if used2 >> y & 1:
                continue
            for z in range(size):
                if not used3 >> z & 1 and fits[row, y, z]:
                    same = diagonal and row == y == z
                    if other(row + 1, used2 | 1 << y, used3 | 1 << z, same):
                        return True
        return False

    return not other(0, 0, 0, True)


def _fits(puzzle: Ints, strong: bool) -> Bools:
    """fits[x, y, z]: at no place do two or more (strong: exactly two) of x_i = 1, y_i = 2, z_i = 3 hold."""
    one, two, three = (np.asarray(puzzle == value, dtype=np.int64) for value in (1, 2, 3))
    count = one[:, None, None, :] + two[None, :, None, :] + three[None, None, :, :]
    bad = np.equal(count, 2) if strong else np.greater_equal(count, 2)
    result: Bools = np.logical_not(bad.any(axis=-1))
    return result


def is_local_usp(rows: Iterable[Sequence[int]]) -> bool:
    """Whether for all rows x, y, z, not all equal, some place has exactly two of x_i = 1, y_i = 2, z_i = 3.

    These are strong USPs ([2], section 6), recognised without permutations, that give simultaneous triples directly.

    >>> is_local_usp([(3, 1, 2), (1, 2, 3)]), is_local_usp([(3, 1), (1, 3)])
    (True, False)
    """
    puzzle = [tuple(row) for row in rows]
    if not is_usp(puzzle, strong=True):
        return False
    fits = _fits(np.array(puzzle, dtype=np.int64), strong=True).copy()
    same = np.arange(len(puzzle))
    fits[same, same, same] = False
    return not fits.any()


def puzzle_triples(rows: Sequence[Sequence[int]], modulus: int) -> tuple[Group, tuple[Triple, ...]]:
    """Simultaneous triples in C_n^width, one for each row of a local USP ([2], section 6).

    The row x gives the elements whose non-zero coordinates are the places with x_i = 3, 1, 2 for A, B, C, so that
    sizes are powers of n - 1. At a place with exactly two of x_i = 1, y_i = 2, z_i = 3 one of the six terms of
    (a_x - a_y) + (b_y - b_z) + (c_z - c_x) alone is not 0. Raises UsageError for what is no local USP.

    >>> group, triples = puzzle_triples([(3, 1, 2), (1, 2, 3)], 3)
    >>> group.order, [[len(x) for x in triple] for triple in triples], is_stpp(group, triples)
    (27, [[2, 2, 2], [2, 2, 2]], True)
    """
    from stl_search.groups.named import elementary_abelian

    if modulus < 2 or not is_local_usp(rows):
        raise UsageError(f"simultaneous triples need a local puzzle and a modulus >= 2, not {rows} and {modulus}")
    width = len(rows[0])
    group = elementary_abelian(modulus, width)
    coordinates = list(product(range(modulus), repeat=width))  # of the elements, in order

    def supported(row: Sequence[int], value: int) -> tuple[int, ...]:
        return tuple(
            at for at, x in enumerate(coordinates) if all((y > 0) == (r == value) for y, r in zip(x, row, strict=True))
        )

    return group, tuple((supported(row, 3), supported(row, 1), supported(row, 2)) for row in rows)


def find_usp(width: int, size: int, strong: bool = False, limit: int = 100_000) -> tuple[tuple[int, ...], ...] | None:
    """A (strong) USP of ``size`` rows of that width, or None, proved by exhaustion, when there is none.

    Every subset of a USP is one, so that rows are added one by one among those that fit each chosen row alone.
    Permuting the places or, in all rows, the symbols 1, 2, 3 changes nothing: the first row is one of each class, of
    the least class met. Raises BudgetError after ``limit`` checks.
    """
    if width < 1 or size < 1:
        raise UsageError(f"width and size of a puzzle must be >= 1, not {width} and {size}")
    rows = list(product((1, 2, 3), repeat=width))
    kind = [sorted((row.count(x) for x in (1, 2, 3)), reverse=True) for row in rows]
    pairs: dict[tuple[int, int], bool] = {}
    checks = 0

    def fit(x: int, y: int) -> bool:
        if (x, y) not in pairs:
            pairs[x, y] = is_usp((rows[x], rows[y]), strong)
        return pairs[x, y]

    def grow(chosen: tuple[int, ...], left: list[int]) -> tuple[tuple[int, ...], ...] | None:
        nonlocal checks
        if len(chosen) == size:
            return tuple(rows[x] for x in chosen)
        for at, x in enumerate(left[: len(left) - (size - len(chosen)) + 1]):
            checks += 1
            if checks > limit:
                raise BudgetError(f"more than {limit} puzzles of width {width} to look at")
            if len(chosen) < 2 or is_usp([rows[y] for y in (*chosen, x)], strong):
                found = grow((*chosen, x), [y for y in left[at + 1 :] if fit(x, y)])
                if found is not None:
                    return found
        return None

    for least in sorted({tuple(x) for x in kind}):
        first = kind.index(list(least))
        found = grow(
            (first,), [x for x in range(len(rows)) if tuple(kind[x]) >= least and x != first and fit(first, x)]
        )
        if found is not None:
            return found
    return None


# Approximate: maps with few collisions.


@dataclass(frozen=True, eq=False)
class FreeMaps:
    """a (m, k) and b (k, n): elements of ``group`` at which the entries of A and B are placed, without structure."""

    group: Group
    a: Ints
    b: Ints

    def __init__(self, group: Group, a: ArrayLike, b: ArrayLike) -> None:
        left, right = frozen(a), frozen(b)
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or not left.size or not right.size:
            raise GroupError(f"maps of the entries have shapes (m, k) and (k, n), not {left.shape} and {right.shape}")
        for x in (left, right):
            _checked(group, x.ravel().tolist())
        object.__setattr__(self, "group", group)
        object.__setattr__(self, "a", left)
        object.__setattr__(self, "b", right)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(m, k, n)."""
        return self.a.shape[0], self.a.shape[1], self.b.shape[1]


@dataclass(frozen=True, eq=False)
class Maps(FreeMaps):
    """s (m,), t (k,), u (n,) into ``group``: a_ij at s_i^-1 t_j, b_jl at t_j^-1 u_l, c_il read at s_i^-1 u_l.

    >>> from stl_search.groups.named import cyclic
    >>> Maps(cyclic(5), [0, 1], [0, 2], [0]).a.tolist()
    [[0, 2], [4, 1]]
    """

    s: Ints
    t: Ints
    u: Ints

    def __init__(self, group: Group, s: Iterable[int], t: Iterable[int], u: Iterable[int]) -> None:
        images = [_checked(group, x) for x in (s, t, u)]
        table, inverse = group.table, group.inverse
        super().__init__(
            group,
            table[np.ix_(inverse[images[0]], images[1])],
            table[np.ix_(inverse[images[1]], images[2])],
        )
        for name, value in zip("stu", images, strict=True):
            object.__setattr__(self, name, frozen(value))

    @property
    def c(self) -> Ints:
        """(m, n): s_i^-1 u_l."""
        return frozen(self.group.table[np.ix_(self.group.inverse[self.s], self.u)])


def collisions(maps: FreeMaps) -> Ints:
    """(order,): N(g), the number of quadruples (i, j, j', l) with a_ij b_j'l = g; they sum to m k^2 n."""
    products = maps.group.table[np.ix_(maps.a.ravel(), maps.b.ravel())]
    return frozen(np.bincount(products.ravel(), minlength=maps.group.order))


def collision_error(maps: FreeMaps) -> float:
    """E = 1 - (1/mkn) sum_(i,l) sum_g n_il(g)^2 / N(g), the expected error of the best decoder with unit weights.

    n_il(g) counts the j with a_ij b_jl = g; the decoder reads c_il as sum_g n_il(g) / N(g) times the coefficient of g
    in the product. For ``Maps`` this is 1 - (1/mkn) sum_(i,l) k^2 / N(s_i^-1 u_l), and 0 if and only if they are TPP.

    >>> from stl_search.groups.named import cyclic, symmetric
    >>> collision_error(Maps(symmetric(3), [0, 1], [0, 2], [0, 5])), collision_error(Maps(cyclic(1), [0], [0, 0], [0]))
    (0.0, 0.5)
    """
    m, k, n = maps.shape
    table, counts = maps.group.table, collisions(maps)
    landed = np.stack([table[maps.a[:, j][:, None], maps.b[j][None, :]] for j in range(k)])  # (k, m, n)
    same = (landed[:, None] == landed[None, :]).sum(axis=1)  # n_il at the place of j
    # k n_il/N summed over j counts n_il(g)^2/N(g) once for each g
    return max(0.0, 1.0 - float((same / counts[landed]).sum()) / (m * k * n))


def exhaustive_maps(group: Group, shape: Sequence[int]) -> Maps:
    """The maps (s, t, u) of least collision error, over all maps with s_0 = t_0 = u_0 = 1, proved by exhaustion.

    Translating s, t and u changes nothing; the order of the images matters not either, so they run ascending, and s
    is taken up to automorphisms. Raises BudgetError where more than 2 million maps would remain.
    """
    from stl_search.groups.tpp_kernels import kept

    m, k, n = shape
    order = group.order
    tails = [comb(order + size - 2, size - 1) for size in (m, k, n)]
    if tails[0] * tails[1] * tails[2] > _TUPLES:
        raise BudgetError(f"{tails[0] * tails[1] * tails[2]} maps into {group!r}: too many for an exhaustive search")
    automorphisms = automorphism_group(group)
    moves = automorphisms.elements() if automorphisms.order <= _AUTOMORPHISMS else np.arange(order)[None]
    scratch, table = np.zeros(order, dtype=np.int64), group.table.astype(np.int64)
    best: tuple[float, tuple[tuple[int, ...], ...]] = (-1.0, ((), (), ()))
    for s in ascending(range(order), m - 1):
        if s and tuple(s) > min(map(tuple, np.sort(moves[:, list(s)], axis=1).tolist())):
            continue
        for t in ascending(range(order), k - 1):
            for u in ascending(range(order), n - 1):
                a = table[group.inverse[[0, *s]][:, None], np.array([0, *t])]
                b = table[group.inverse[[0, *t]][:, None], np.array([0, *u])]
                value = float(kept(table, a.ravel(), b.ravel(), m, k, n, scratch))
                if value > best[0] + 1e-9:
                    best = (value, ((0, *s), (0, *t), (0, *u)))
    return Maps(group, *best[1])


def anneal_maps(group: Group, shape: Sequence[int], rng: np.random.Generator, steps: int = 4000) -> Maps:
    """Maps (s, t, u) of small collision error, by simulated annealing from random ones with s_0 = t_0 = u_0 = 1."""
    m, k, n = shape
    start = rng.integers(group.order, size=m + k + n)
    start[[0, m, m + k]] = 0
    movable = np.array([x for x in range(m + k + n) if x not in (0, m, m + k)], dtype=np.int64)
    found = _annealed(group, shape, True, start, movable, rng, steps).tolist()
    return Maps(group, found[:m], found[m : m + k], found[m + k :])


def anneal_free_maps(
    group: Group, shape: Sequence[int], rng: np.random.Generator, steps: int = 4000, start: FreeMaps | None = None
) -> FreeMaps:
    """Free maps of small collision error, by simulated annealing from random ones or from ``start``."""
    m, k, n = shape
    size = m * k + k * n
    state = (
        rng.integers(group.order, size=size) if start is None else np.concatenate([start.a.ravel(), start.b.ravel()])
    )
    found = _annealed(group, shape, False, state.astype(np.int64), np.arange(size), rng, steps)
    return FreeMaps(group, found[: m * k].reshape(m, k), found[m * k :].reshape(k, n))


def _annealed(
    group: Group,
    shape: Sequence[int],
    structured: bool,
    state: NDArray[np.int64],
    movable: NDArray[np.int64],
    rng: np.random.Generator,
    steps: int,
) -> NDArray[np.int64]:
    """``state`` after ``steps`` proposals, one a step, cooling from 0.5 to 0.01 entries of C kept."""
    if not len(movable) or steps < 1:
        return state
    from stl_search.groups.tpp_kernels import anneal

    m, k, n = shape
    anneal(
        group.table.astype(np.int64),
        group.inverse.astype(np.int64),
        structured,
        state,
        *(m, k, n),
        movable[rng.integers(len(movable), size=steps)],
        rng.integers(group.order, size=steps),
        rng.random(steps),
        np.geomspace(0.5, 0.01, steps),
        np.zeros(group.order, dtype=np.int64),
        np.zeros(m * k + k * n, dtype=np.int64),
        state.copy(),
    )
    return state
