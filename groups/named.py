"""The groups that have names, and products that make new groups from old ones.

Names follow the geometry, not the order: ``dihedral(4)`` is D4, the symmetries of the square, of order 8. Cyclic
groups are written C4, products "C4 x C2". Every constructor returns a ``Group`` with telling element labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import gcd, prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stl_search.errors import BudgetError
from stl_search.groups.group import MAX_ORDER, Group, GroupError, Ints, from_permutations, frozen
from stl_search.groups.subgroups import primes_of, quotient

__all__ = [
    "abelian",
    "affine",
    "alternating",
    "central_product",
    "cyclic",
    "dicyclic",
    "dihedral",
    "direct",
    "elementary_abelian",
    "extraspecial",
    "general_linear",
    "heisenberg",
    "modular",
    "projective_special_linear",
    "quaternion",
    "semidihedral",
    "semidirect",
    "special_linear",
    "symmetric",
    "wreath",
]


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise GroupError(message)


def _bounded(order: int, name: str) -> None:
    if order > MAX_ORDER:
        raise BudgetError(f"{name} has order {order}; multiplication tables end at order {MAX_ORDER}")


def _power(letter: str, exponent: int) -> str:
    return "" if exponent == 0 else letter if exponent == 1 else f"{letter}^{exponent}"


def _words(letters: str, orders: Sequence[int]) -> list[str]:
    """Labels a^i b^j ... with the last exponent running fastest; "1" for the empty word."""
    words = itertools.product(*(range(n) for n in orders))
    return [" ".join(filter(None, map(_power, letters, w))) or "1" for w in words]


# Cyclic groups and their relatives.


def cyclic(n: int) -> Group:
    """C_n of order n: element i is a^i.

    >>> cyclic(4).labels
    ('1', 'a', 'a^2', 'a^3')
    """
    _need(n >= 1, f"C_n needs n >= 1, got {n}")
    _bounded(n, f"C{n}")
    i = np.arange(n)
    return Group((i[:, None] + i[None, :]) % n, _words("a", [n]), f"C{n}")


def abelian(orders: Sequence[int]) -> Group:
    """Direct product of cyclic groups; the element (i, j, ...) has index i n_2 n_3 ... + j n_3 ... + ...

    >>> abelian([4, 2]).name, abelian([2, 2, 2]).name, abelian([]).name
    ('C4 x C2', 'C2^3', 'C1')
    """
    sizes = [int(n) for n in orders if n != 1]
    _need(all(n >= 1 for n in sizes), f"orders of cyclic groups must be positive, got {list(orders)}")
    _bounded(prod(sizes), "the product")
    _need(len(sizes) <= 26, "at most 26 cyclic factors")
    n = prod(sizes)
    parts = np.array(np.unravel_index(np.arange(n), sizes)) if sizes else np.zeros((0, 1), dtype=np.intp)
    sums = [(p[:, None] + p[None, :]) % size for p, size in zip(parts, sizes, strict=True)]
    table = np.ravel_multi_index(tuple(sums), sizes) if sizes else np.zeros((1, 1), dtype=np.intp)
    runs = [(size, len(list(run))) for size, run in itertools.groupby(sizes)]
    name = " x ".join(f"C{size}^{length}" if length > 1 else f"C{size}" for size, length in runs)
    return Group(table, _words("abcdefghijklmnopqrstuvwxyz", sizes), name or "C1")


def elementary_abelian(p: int, k: int) -> Group:
    """C_p^k; the element with digits (d_1, ..., d_k) has index d_1 p^(k-1) + ... + d_k."""
    return abelian([p] * k)


def _two_generators(n: int, twist: int, square: int, name: str, r: str, s: str) -> Group:
    """Order 2n: r^n = 1, s^2 = r^square, s r s^-1 = r^twist; the element r^i s^j has index i + n j."""
    _bounded(2 * n, name)
    i, j = np.arange(2 * n) % n, np.arange(2 * n) // n
    turned = np.where(j[:, None] == 1, twist * i[None, :], i[None, :])
    wrapped = np.where(j[:, None] + j[None, :] == 2, square, 0)
    table = (i[:, None] + turned + wrapped) % n + n * ((j[:, None] + j[None, :]) % 2)
    labels = (" ".join(filter(None, (_power(r, a), _power(s, b)))) or "1" for b in range(2) for a in range(n))
    return Group(table, labels, name)


def dihedral(n: int) -> Group:
    """D_n of order 2n, the symmetries of the regular n-gon: r^n = s^2 = 1, s r s = r^-1; r^i s^j is i + n j.

    >>> dihedral(4).order, dihedral(3).labels
    (8, ('1', 'r', 'r^2', 's', 'r s', 'r^2 s'))
    """
    _need(n >= 1, f"D_n needs n >= 1, got {n}")
    return _two_generators(n, -1, 0, f"D{n}", "r", "s")


def dicyclic(n: int) -> Group:
    """Dic_n of order 4n: a^(2n) = 1, x^2 = a^n, x a x^-1 = a^-1. For n a power of 2 it is called Q_(4n).

    >>> dicyclic(3).name, dicyclic(2).name, dicyclic(2).labels
    ('Dic3', 'Q8', ('1', 'a', 'a^2', 'a^3', 'x', 'a x', 'a^2 x', 'a^3 x'))
    """
    _need(n >= 1, f"Dic_n needs n >= 1, got {n}")
    quaternionic = n >= 2 and n & (n - 1) == 0
    return _two_generators(2 * n, -1, n, f"Q{4 * n}" if quaternionic else f"Dic{n}", "a", "x")


def quaternion(order: int = 8) -> Group:
    """The generalised quaternion group Q_8, Q_16, Q_32, ... of that order; Q8 is labelled 1, i, -1, -i, j, k, -j, -k.

    >>> q8 = quaternion()
    >>> q8.labels[q8.multiply(q8.labels.index("i"), q8.labels.index("j"))]
    'k'
    """
    _need(order >= 8 and order & (order - 1) == 0, f"Q_n needs a power of two n >= 8, got {order}")
    group = dicyclic(order // 4)
    return group.renamed(labels=("1", "i", "-1", "-i", "j", "k", "-j", "-k")) if order == 8 else group


def semidihedral(order: int) -> Group:
    """SD_16, SD_32, ... : r^(n/2) = s^2 = 1, s r s = r^(n/4 - 1), n the order.

    >>> semidihedral(16).name
    'SD16'
    """
    _need(order >= 16 and order & (order - 1) == 0, f"SD_n needs a power of two n >= 16, got {order}")
    return _two_generators(order // 2, order // 4 - 1, 0, f"SD{order}", "r", "s")


def modular(order: int) -> Group:
    """M_16, M_32, ... : r^(n/2) = s^2 = 1, s r s = r^(n/4 + 1), n the order.

    >>> modular(16).name
    'M16'
    """
    _need(order >= 16 and order & (order - 1) == 0, f"M_n needs a power of two n >= 16, got {order}")
    return _two_generators(order // 2, order // 4 + 1, 0, f"M{order}", "r", "s")


# Permutations.


def symmetric(n: int) -> Group:
    """S_n on n points; ab means "first b, then a". Elements are sorted by images, labels are cycles from 1."""
    _need(n >= 0, f"S_n needs n >= 0, got {n}")
    _bounded(prod(range(1, n + 1)), f"S{n}")
    transpositions = [[*range(i), i + 1, i, *range(i + 2, n)] for i in range(n - 1)]
    return from_permutations(transpositions, f"S{n}")


def alternating(n: int) -> Group:
    """A_n, the even permutations of n points; conventions as in ``symmetric``.

    >>> alternating(4).order, alternating(3).labels
    (12, ('()', '(1,2,3)', '(1,3,2)'))
    """
    _need(n >= 0, f"A_n needs n >= 0, got {n}")
    _bounded(max(1, prod(range(1, n + 1)) // 2), f"A{n}")
    cycles = [[*range(i), i + 1, i + 2, i, *range(i + 3, n)] for i in range(n - 2)]
    return from_permutations(cycles, f"A{n}")


# Groups of matrices and of maps over finite fields.


@lru_cache(maxsize=32)
def _field(q: int) -> tuple[Ints, Ints]:
    """Addition and multiplication tables (q, q) of the field of q elements; 0 and 1 are its zero and one.

    Elements are numbered as in the galois package, which gives the tables for q = p^k, k > 1.
    """
    primes = primes_of(q)
    _need(len(primes) == 1, f"there is no field of {q} elements: q must be a prime power")
    if primes == [q]:
        elements = np.arange(q)
        return frozen((elements[:, None] + elements) % q), frozen(elements[:, None] * elements % q)
    import galois

    field = galois.GF(q).elements
    return frozen(field[:, None] + field[None, :]), frozen(field[:, None] * field[None, :])


def affine(q: int) -> Group:
    """AGL(1, q), the maps x -> ax + b of the field of q elements, a != 0, of order q(q-1); ab: first b, then a.

    The element x -> ax + b has index (a-1) q + b, with a and b numbered as galois numbers the field.

    >>> affine(3).labels
    ('x', 'x+1', 'x+2', '2x', '2x+1', '2x+2')
    """
    _need(q >= 2, f"AGL(1,q) needs a prime power q, got {q}")
    _bounded(q * (q - 1), f"AGL(1,{q})")
    add, multiply = _field(q)
    a, b = np.arange(q * (q - 1)) // q + 1, np.arange(q * (q - 1)) % q
    slope = multiply[a[:, None], a[None, :]]
    shift = add[multiply[a[:, None], b[None, :]], b[:, None]]
    labels = (("x" if i == 1 else f"{i}x") + (f"+{j}" if j else "") for i, j in zip(a, b, strict=True))
    return Group((slope - 1) * q + shift, labels, f"AGL(1,{q})")


def _matrix_group(q: int, keep: Callable[[Ints], NDArray[np.bool_]], name: str, modulo_sign: bool = False) -> Group:
    """2 x 2 matrices over the field of q elements whose determinants ``keep`` accepts, modulo +-1 if asked."""
    add, multiply = _field(q)
    minus = np.argmin(add, axis=1)  # x + minus[x] = 0
    entries = np.array(list(itertools.product(range(q), repeat=4)), dtype=np.intp)
    a, b, c, d = entries.T
    entries = entries[keep(add[multiply[a, d], minus[multiply[b, c]]])]
    code = np.array([q**3, q**2, q, 1])

    def number(matrices: Ints) -> Ints:
        plain = matrices @ code
        return np.asarray(np.minimum(plain, minus[matrices] @ code) if modulo_sign else plain)

    codes = np.unique(number(entries))
    codes = np.concatenate([number(np.array([[1, 0, 0, 1]])), codes[codes != number(np.array([[1, 0, 0, 1]]))]])
    entries = np.stack(np.unravel_index(codes, (q,) * 4), axis=1)
    order = np.argsort(codes)
    table = np.empty((len(codes), len(codes)), dtype=np.int32)
    for row, (a, b, c, d) in enumerate(entries):
        e, f, g, h = entries.T
        product = (
            add[multiply[a, e], multiply[b, g]],
            add[multiply[a, f], multiply[b, h]],
            add[multiply[c, e], multiply[d, g]],
            add[multiply[c, f], multiply[d, h]],
        )
        table[row] = order[np.searchsorted(codes[order], number(np.stack(product, axis=1)))]
    return Group(table, (f"[{a},{b};{c},{d}]" for a, b, c, d in entries), name)


def special_linear(q: int) -> Group:
    """SL(2, q), 2 x 2 matrices of determinant 1 over the field of q elements, of order q(q^2-1).

    >>> special_linear(3).order, special_linear(2).labels[:3]
    (24, ('[1,0;0,1]', '[0,1;1,0]', '[0,1;1,1]'))
    """
    _need(q >= 2, f"SL(2,q) needs a prime power q, got {q}")
    _bounded(q * (q * q - 1), f"SL(2,{q})")
    return _matrix_group(q, lambda det: det == 1, f"SL(2,{q})")


def general_linear(q: int) -> Group:
    """GL(2, q), the invertible 2 x 2 matrices over the field of q elements, of order (q^2-1)(q^2-q).

    >>> general_linear(3).order
    48
    """
    _need(q >= 2, f"GL(2,q) needs a prime power q, got {q}")
    _bounded((q * q - 1) * (q * q - q), f"GL(2,{q})")
    return _matrix_group(q, lambda det: det != 0, f"GL(2,{q})")


def projective_special_linear(q: int) -> Group:
    """PSL(2, q) = SL(2, q) modulo +-1, of order q(q^2-1)/gcd(2, q-1); labels show one matrix of each pair.

    >>> projective_special_linear(7).order, projective_special_linear(4).order
    (168, 60)
    """
    _need(q >= 2, f"PSL(2,q) needs a prime power q, got {q}")
    _bounded(q * (q * q - 1) // gcd(2, q - 1), f"PSL(2,{q})")
    return _matrix_group(q, lambda det: det == 1, f"PSL(2,{q})", modulo_sign=True)


# Heisenberg and extraspecial groups.


def heisenberg(n: int) -> Group:
    """Upper unitriangular 3 x 3 matrices over Z/n, of order n^3; [1,a,c; 0,1,b; 0,0,1] is labelled "(a,b,c)".

    >>> heisenberg(2).order, heisenberg(3).exponent
    (8, 3)
    """
    _need(n >= 2, f"Heis(n) needs n >= 2, got {n}")
    _bounded(n**3, f"Heis({n})")
    a, b, c = (x.ravel() for x in np.indices((n, n, n)))
    a_sum, b_sum = (a[:, None] + a) % n, (b[:, None] + b) % n
    c_sum = (c[:, None] + c + a[:, None] * b) % n
    labels = (f"({i},{j},{k})" for i, j, k in zip(a, b, c, strict=True))
    return Group((a_sum * n + b_sum) * n + c_sum, labels, f"Heis({n})")


def extraspecial(p: int, n: int, sign: str = "+") -> Group:
    """The extraspecial groups p^(1+2n) of order p^(1+2n), p prime: centre of order p, elementary abelian above it.

    "+": a central product of n copies of Heis(p) (D4 for p = 2). "-": one copy is replaced by the other group of
    order p^3: Q8 for p = 2, the one of exponent p^2 for odd p.

    >>> extraspecial(2, 1, "-").order, extraspecial(3, 1).exponent, extraspecial(3, 1, "-").exponent
    (8, 3, 9)
    """
    _need(p >= 2 and all(p % d for d in range(2, int(p**0.5) + 1)), f"extraspecial groups need a prime, got {p}")
    _need(n >= 1 and sign in ("+", "-"), f"extraspecial groups need n >= 1 and a sign + or -, got {n} and {sign!r}")
    _bounded(p ** (1 + 2 * n), f"{p}^(1+{2 * n}){sign}")
    if sign == "+":
        group = heisenberg(p)
    elif p == 2:
        group = quaternion(8)
    else:  # C_(p^2) : C_p, the second acting by x -> (1+p) x
        turns = [[pow(1 + p, h, p * p) * x % (p * p) for x in range(p * p)] for h in range(p)]
        group = semidirect(cyclic(p * p), cyclic(p), turns)
    for _ in range(n - 1):
        factor = heisenberg(p)
        group = central_product(group, factor, group.centre[1], factor.centre[1])
    return group.renamed(name=f"{p}^(1+{2 * n}){sign}", id="")


# Products.


def direct(*factors: Group) -> Group:
    """Direct product; (a, b) has index a |H| + b and label "(a, b)". No factors give the trivial group.

    >>> direct(cyclic(2), symmetric(3)).name
    'C2 x S3'
    """
    if not factors:
        return cyclic(1)
    if len(factors) == 1:
        return factors[0]
    order = prod(f.order for f in factors)
    name = " x ".join(f"({f.name})" if " : " in f.name or " . " in f.name else f.name for f in factors)
    _bounded(order, name)
    table = factors[0].table.astype(np.intp)
    for factor in factors[1:]:
        n, m = len(table), factor.order
        table = (table[:, None, :, None] * m + factor.table[None, :, None, :]).reshape(n * m, n * m)
    labels = (f"({', '.join(parts)})" for parts in itertools.product(*(f.labels for f in factors)))
    return Group(table, labels, name)


def semidirect(normal: Group, acting: Group, action: ArrayLike, name: str = "") -> Group:
    """N : H for ``action`` (|H|, |N|), row h the automorphism x -> h.x; (x, h)(y, k) = (x (h.y), hk).

    (x, h) has index x + |N| h. Raises GroupError where a row is no automorphism or rows do not multiply like H.

    >>> semidirect(cyclic(3), cyclic(2), [[0, 1, 2], [0, 2, 1]]).order
    6
    """
    rows = np.asarray(action)
    n, h = normal.order, acting.order
    _need(rows.shape == (h, n) and rows.dtype.kind in "iu", f"the action must be an integer array of shape {(h, n)}")
    _need(bool((np.sort(rows, axis=1) == np.arange(n)).all()), "the action must permute the normal factor")
    for g in normal.generators:
        products = normal.table[rows, rows[:, [g]]]
        wrong = np.flatnonzero((rows[:, normal.table[:, g]] != products).any(axis=1))
        _need(len(wrong) == 0, f"row {wrong[0] if len(wrong) else 0} of the action is no automorphism")
    _need(
        all(np.array_equal(rows[acting.table[k, g]], rows[k][rows[g]]) for k in range(h) for g in acting.generators),
        "the rows of the action must multiply as the acting group does",
    )
    name = name or f"({normal.name}) : ({acting.name})"
    _bounded(n * h, name)
    x, k = np.arange(n * h) % n, np.arange(n * h) // n
    table = normal.table[x[:, None], rows[k[:, None], x[None, :]]] + n * acting.table[k[:, None], k[None, :]].astype(
        int
    )
    labels = (f"({normal.labels[a]}; {acting.labels[b]})" for a, b in zip(x, k, strict=True))
    return Group(table, labels, name)


def wreath(base: Group, top: Group, permutations: ArrayLike | None = None) -> Group:
    """base wr top: ``top`` permutes d copies of ``base``; ``permutations`` (|top|, d), rows of images of points.

    Row h sends point i to permutations[h, i], and rows multiply as ``top`` does with ab = "first b, then a"; left
    out, ``top`` acts on itself from the left. The order is |base|^d |top|.

    >>> wreath(cyclic(2), cyclic(2)).order, wreath(cyclic(2), symmetric(3), [[0, 1, 2], [0, 2, 1], [1, 0, 2],
    ...     [1, 2, 0], [2, 0, 1], [2, 1, 0]]).order
    (8, 48)
    """
    points = np.asarray(top.table if permutations is None else permutations)
    _need(points.ndim == 2 and len(points) == top.order and points.dtype.kind in "iu", "one row of images an element")
    d = points.shape[1]
    _need(bool((np.sort(points, axis=1) == np.arange(d)).all()), "each row must permute the points")
    _bounded(base.order**d * top.order, f"{base.name} wr {top.name}")
    power = direct(*[base] * d) if d else cyclic(1)
    coordinates = np.array(np.unravel_index(np.arange(power.order), (base.order,) * d)).reshape(d, -1)
    action = np.zeros((top.order, power.order), dtype=np.intp)
    for h, row in enumerate(points):
        moved = np.empty_like(coordinates)
        moved[row] = coordinates  # what stood at point i comes to stand at point row[i]
        action[h] = np.ravel_multi_index(tuple(moved), (base.order,) * d) if d else 0
    return semidirect(power, top, action, f"{base.name} wr {top.name}")


def central_product(left: Group, right: Group, left_central: int, right_central: int, name: str = "") -> Group:
    """The direct product with two central elements of one order identified, hence also their powers.

    >>> central_product(dihedral(4), quaternion(), 2, 2).order
    32
    """
    for group, z in ((left, left_central), (right, right_central)):
        _need(z in group.centre, f"element {z} is not central in {group!r}")
    orders = int(left.element_orders[left_central]), int(right.element_orders[right_central])
    _need(orders[0] == orders[1], f"the identified elements must have one order, got {orders[0]} and {orders[1]}")
    both = direct(left, right)
    kernel = [
        int(left.power(i)[left_central]) * right.order + int(right.power(-i)[right_central]) for i in range(orders[0])
    ]
    return quotient(both, kernel)[0].renamed(name=name or f"{left.name} o {right.name}")
