"""Where symmetric walks in the flip graph begin: groups over Z2 by name, and invariant schemes made of orbits.

Over Z2 the sum over a group of the images of a term that an even number of elements leave as it is comes to nothing.
So the tensor is a sum of orbits only up to *fixed terms*, which a walk carries along: they are chosen here, few and at
random, such that the rest is a sum of orbits. Masks and the order of slots are those of ``flips``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stl_search.errors import UsageError
from stl_search.scheme import Shape
from stl_search.search.symmetry_gf2 import gf2_action

if TYPE_CHECKING:
    from stl_search.search.flips import Element, Group, Term

__all__ = ["check", "fixed_part", "group_of", "orbits_of", "start"]

Bits = npt.NDArray[np.uint64]

_TRIES = 200  # of random fixed parts
_OPTIONS = 4  # of which the one with fewest orbits is taken


def group_of(name: str, shape: Shape) -> Group:
    """The group over Z2 of that name (see ``gf2_action``; none: the trivial group) on <m,k,n>, as walks take it.

    ``cyclic+transpose`` is S3, ``cyclic+reverse`` C3 x C2. Raises UsageError for unknown names, for shapes that do not
    allow the group, and for groups that do not permute the products of the classical algorithm, where walks begin.
    """
    return _group(_sorted(name), shape)


def check(name: str, shape: Shape) -> None:
    """Raises as ``group_of`` does."""
    _elements(_sorted(name), shape)


def _sorted(name: str) -> str:
    return "+".join(sorted({part for part in name.split("+") if part}))


@cache
def _elements(name: str, shape: Shape) -> tuple[Element, ...]:
    elements = gf2_action(name or "permute:()", shape).elements
    if any((x.sum(axis=0) != 1).any() for _, maps in elements for x in maps):
        raise UsageError(f"no walk begins under {name!r}: it does not permute the products of the classical algorithm")
    return elements


@cache
def _group(name: str, shape: Shape) -> Group:
    from stl_search.search.flips import Group

    return Group.of(_elements(name, shape))


def orbits_of(terms: Bits, group: Group) -> tuple[Bits, Bits] | None:
    """(one term of each orbit, fixed terms) of the terms (r, 3) of an invariant scheme; None for other schemes."""
    left = Counter(map(tuple, terms.tolist()))
    distinct = _masks(sorted(left))
    of = dict(zip(map(tuple, distinct.tolist()), group.images(distinct).swapaxes(0, 1).tolist(), strict=True))
    orbits: list[Term] = []
    fixed: list[Term] = []
    for term in sorted(left):
        count = left[term]
        if not count:
            continue
        images = Counter(map(tuple, of[term]))
        if any(left[image] != count for image in images):
            return None
        if len(images) == group.order:
            orbits += [term] * count
        else:
            fixed += [image for image in sorted(images) for _ in range(count)]
        for image in images:
            left[image] = 0
    return _masks(orbits), _masks(fixed)


def start(name: str, shape: Shape, rank: int, rng: np.random.Generator) -> tuple[Bits, Bits]:
    """(one term of each orbit, fixed terms) of an invariant <m,k,n> scheme: the classical one with a new fixed part.

    The fixed part is chosen such that schemes of ``rank`` are in reach where that can be: orbits are joined and
    dropped, the fixed terms stay.
    """
    group = group_of(name, shape)
    made = []
    for _ in range(_OPTIONS):
        fixed = fixed_part(name, shape, rank, rng)
        made.append(_completed(fixed, shape, group))
    return min(made, key=lambda pair: len(pair[0]))


def fixed_part(name: str, shape: Shape, rank: int, rng: np.random.Generator) -> list[Term]:
    """Random fixed terms for the group of that name, such that the tensor without them is a sum of orbits."""
    group = group_of(name, shape)
    names = set(_sorted(name).split("+"))
    likely: list[Term] | None = None
    for _ in range(_TRIES):
        if names == {"transpose"}:
            fixed = _under_transposition(shape, rank, rng)
        elif names == {"cyclic", "transpose"}:
            fixed = _under_s3(shape[0], rng)
        elif names in ({"cyclic"}, {"cyclic", "reverse"}):
            fixed = _cubes(shape[0], "reverse" in names, rng)
        else:
            break
        if len(fixed) > rank:
            continue
        if (rank - len(fixed)) % group.order == 0:
            return fixed
        if likely is None and (rank - len(fixed)) % 2 == 0:
            likely = fixed  # an orbit of a term with a stabiliser of odd order may make up for the rest
    return _stable_terms(shape, group) if likely is None else likely


def _completed(fixed: list[Term], shape: Shape, group: Group) -> tuple[Bits, Bits]:
    """The fixed terms and orbits that make the tensor with them; raises ValueError where there are none."""
    classical = Counter(_classical(shape))
    extra: list[Term] = []  # orbits of terms with odd stabilisers: the fixed term, once more
    rest = Counter(classical)
    seen: set[Term] = set()
    for term in fixed:
        images = [group.image(e, term) for e in range(group.order)]
        if images.count(term) % 2:
            if term not in seen:
                extra.append(term)
            seen.update(images)
        else:
            rest.update(_monomials(term))
    orbits: list[Term] = []
    left = {t for t, count in rest.items() if count % 2}
    while left:
        term = min(left)
        images = [group.image(e, term) for e in range(group.order)]
        if images.count(term) % 2 == 0:
            raise ValueError("these fixed terms leave a monomial that is no sum of orbits")
        left -= set(images)
        orbits.append(term)
    return _masks(orbits + extra), _masks(fixed)


def _masks(terms: Sequence[Sequence[int]]) -> Bits:
    return np.array(terms, dtype=np.uint64).reshape(-1, 3)


def _classical(shape: Shape) -> list[Term]:
    m, k, n = shape
    return [
        (1 << (i * k + j), 1 << (j * n + h), 1 << (h * m + i))
        for i, j, h in itertools.product(range(m), range(k), range(n))
    ]


def _monomials(term: Term) -> list[Term]:
    """The products of single entries of a term."""
    a, b, c = ([1 << i for i in range(64) if x >> i & 1] for x in term)
    return list(itertools.product(a, b, c))


def _stable_terms(shape: Shape, group: Group) -> list[Term]:
    """The products of the classical algorithm that an even number of elements leave as they are."""
    return [t for t in _classical(shape) if sum(group.image(e, t) == t for e in range(group.order)) % 2 == 0]


def _cubes(n: int, reverse: bool, rng: np.random.Generator) -> list[Term]:
    """x (x) x (x) x for the identities x of the blocks of a random partition of 0 .. n-1, at times of none.

    With ``reverse`` the blocks are whole orbits of i -> n-1-i, or come in pairs that it exchanges. One block of 4 leads
    to <4,4,4> 49, blocks of 1 and 2 to <3,3,3> 23.
    """
    blocks: list[list[int]]
    if not reverse:
        blocks = _blocks(list(range(n)), rng) if rng.random() < 0.9 else []
    else:
        blocks = []
        for part in _blocks(list(range((n + 1) // 2)), rng):
            if n % 2 == 0 and rng.random() < 0.2:
                continue
            if (n // 2 in part and n % 2) or rng.random() < 0.5:
                blocks.append(sorted({*part, *(n - 1 - i for i in part)}))
            else:
                side = [i if rng.random() < 0.5 else n - 1 - i for i in part]
                blocks += [side, [n - 1 - i for i in side]]
    return [(x, x, x) for x in (sum(1 << (i * n + i) for i in block) for block in blocks)]


def _blocks(items: list[int], rng: np.random.Generator) -> list[list[int]]:
    """A partition into consecutive blocks, of every number of blocks alike."""
    count = int(rng.integers(1, len(items) + 1))
    cuts = sorted(int(c) for c in 1 + rng.permutation(len(items) - 1)[: count - 1])
    return [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]


def _under_transposition(shape: Shape, rank: int, rng: np.random.Generator) -> list[Term]:
    """x_f (x) x_f^T (x) z_f with sum_f x_f[i,j] z_f[p,p] = 1 where i = p, else 0, for all i, j, p; z_f symmetric.

    That is what the coefficients ask for that transposition leaves in place: a[i,j] b[j,i] c[p,p]. The diagonals of
    the z_f are the rows of a matrix Z of full rank m; then for each j the x_f[:, j] are the columns of a left inverse.
    """
    m, k, _ = shape
    count = m + (rank - m) % 2 + 2 * int(rng.random() < 0.2)
    inverse, z = _invertible(count, rng)  # (count, count): z[:, :m] has full rank
    x = np.zeros((count, m, k), dtype=np.int64)
    shift = rng.integers(0, 2, size=(m, count - m)) if rng.random() < 0.5 else np.zeros((m, count - m), dtype=np.int64)
    for j in range(k):
        x[:, :, j] = ((inverse[:m] + shift @ inverse[m:]) % 2).T
    terms = []
    for f in range(count):
        diagonal = z[f, :m]
        third = np.diag(diagonal) if rng.random() < 0.5 else np.outer(diagonal, diagonal)
        terms.append((_mask(x[f]), _mask(x[f].T), _mask(third)))
    return [t for t in terms if all(t)]


def _invertible(size: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """A random matrix of elementary ones over GF(2), and its inverse."""
    matrix, inverse = np.eye(size, dtype=np.int64), np.eye(size, dtype=np.int64)
    for _ in range(int(rng.integers(0, 2 * size)) if size > 1 else 0):
        i, j = rng.choice(size, 2, replace=False)
        matrix[i] ^= matrix[j]
        inverse[:, j] ^= inverse[:, i]
    return inverse, matrix


def _under_s3(n: int, rng: np.random.Generator) -> list[Term]:
    """Cubes of symmetric matrices, and orbits of x (x) x^T (x) z, with the condition of ``_under_transposition``.

    The other two terms of such an orbit cancel there. A cube x of the group adds x[i,j] x[p,p]; what is then missing,
    an n^2 x n matrix, is factored into as few products as its rank.
    """
    wanted = np.zeros((n, n, n), dtype=np.int64)
    for p in range(n):
        wanted[p, :, p] = 1
    fixed: list[Term] = []
    for _ in range(int(rng.integers(0, 4))):
        x = np.triu(rng.integers(0, 2, size=(n, n)))
        x = np.diag((rng.random(n) < 0.7).astype(np.int64)) if rng.random() < 0.5 else (x + np.triu(x, 1).T) % 2
        cube = (_mask(x),) * 3
        if not x.any() or cube in fixed:
            continue
        wanted = (wanted + x[:, :, None] * np.diag(x)) % 2
        fixed.append(cube)
    for x, diagonal in _factored(wanted.reshape(n * n, n)):
        one = x.reshape(n, n)
        a, b, c = _mask(one), _mask(one.T), _mask(np.diag(diagonal))
        fixed += [(a, b, c), (b, c, a), (c, a, b)]
    return [t for t, count in Counter(fixed).items() if count % 2]


def _factored(matrix: Any) -> Iterable[tuple[Any, Any]]:
    """Columns and rows whose products over GF(2) add up to the matrix, as many as its rank."""
    rest = matrix.copy()
    while rest.any():
        i, j = (int(x[0]) for x in np.nonzero(rest))
        column, row = rest[:, j].copy(), rest[i].copy()
        yield column, row
        rest = (rest + np.outer(column, row)) % 2


def _mask(matrix: Any) -> int:
    return sum(1 << int(i) for i in np.flatnonzero(matrix))
