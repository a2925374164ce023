"""Named groups and products: orders, defining relations, exceptional isomorphisms, conventions, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from stl_search.errors import BudgetError
from stl_search.groups import (
    GroupError,
    abelian,
    affine,
    alternating,
    central_product,
    cyclic,
    dicyclic,
    dihedral,
    direct,
    elementary_abelian,
    extraspecial,
    general_linear,
    heisenberg,
    identify,
    is_simple,
    isomorphic,
    modular,
    projective_special_linear,
    quaternion,
    semidihedral,
    semidirect,
    special_linear,
    symmetric,
    wreath,
)
from stl_search.groups.group import Group

# (group, number in the small groups library); numbers as in GAP and on the LMFDB.
NUMBERED = [
    (lambda: cyclic(1), "1.1"),
    (lambda: cyclic(6), "6.2"),
    (lambda: dihedral(1), "2.1"),
    (lambda: dihedral(2), "4.2"),
    (lambda: dihedral(3), "6.1"),
    (lambda: symmetric(3), "6.1"),
    (lambda: dihedral(4), "8.3"),
    (lambda: quaternion(), "8.4"),
    (lambda: heisenberg(2), "8.3"),
    (lambda: extraspecial(2, 1, "+"), "8.3"),
    (lambda: extraspecial(2, 1, "-"), "8.4"),
    (lambda: elementary_abelian(2, 3), "8.5"),
    (lambda: dicyclic(1), "4.1"),
    (lambda: dicyclic(3), "12.1"),
    (lambda: alternating(4), "12.3"),
    (lambda: affine(4), "12.3"),
    (lambda: abelian([2, 6]), "12.5"),
    (lambda: modular(16), "16.6"),
    (lambda: dihedral(8), "16.7"),
    (lambda: semidihedral(16), "16.8"),
    (lambda: quaternion(16), "16.9"),
    (lambda: affine(5), "20.3"),
    (lambda: special_linear(3), "24.3"),
    (lambda: symmetric(4), "24.12"),
    (lambda: heisenberg(3), "27.3"),
    (lambda: extraspecial(3, 1, "-"), "27.4"),
    (lambda: wreath(cyclic(2), cyclic(2)), "8.3"),
    (lambda: wreath(cyclic(4), cyclic(2)), "32.11"),
    (lambda: extraspecial(2, 2, "+"), "32.49"),
    (lambda: extraspecial(2, 2, "-"), "32.50"),
    (lambda: wreath(cyclic(2), cyclic(4), [[0, 1], [1, 0], [0, 1], [1, 0]]), "16.3"),
    (lambda: affine(7), "42.1"),
    (lambda: general_linear(3), "48.29"),
    (lambda: affine(8), "56.11"),
    (lambda: alternating(5), "60.5"),
    (lambda: projective_special_linear(4), "60.5"),
    (lambda: projective_special_linear(5), "60.5"),
    (lambda: special_linear(4), "60.5"),
    (lambda: projective_special_linear(2), "6.1"),
    (lambda: projective_special_linear(3), "12.3"),
    (lambda: special_linear(2), "6.1"),
]


@pytest.mark.parametrize(("build", "number"), NUMBERED)
def test_named_groups_have_their_numbers(build: Callable[[], Group], number: str) -> None:
    assert identify(build()) == number


def test_orders_and_names() -> None:
    cases = [
        (dihedral(7), 14, "D7"),
        (dicyclic(6), 24, "Dic6"),
        (quaternion(32), 32, "Q32"),
        (symmetric(5), 120, "S5"),
        (alternating(6), 360, "A6"),
        (affine(9), 72, "AGL(1,9)"),
        (projective_special_linear(7), 168, "PSL(2,7)"),
        (projective_special_linear(8), 504, "PSL(2,8)"),
        (general_linear(4), 180, "GL(2,4)"),
        (heisenberg(4), 64, "Heis(4)"),
        (extraspecial(3, 2), 243, "3^(1+4)+"),
        (extraspecial(5, 1, "-"), 125, "5^(1+2)-"),
        (direct(cyclic(3), dihedral(4), cyclic(2)), 48, "C3 x D4 x C2"),
        (abelian([2, 3, 2]), 12, "C2 x C3 x C2"),
        (symmetric(0), 1, "S0"),
        (symmetric(1), 1, "S1"),
        (alternating(2), 1, "A2"),
        (direct(), 1, "C1"),
    ]
    assert [(g.order, g.name) for g, _, _ in cases] == [(order, name) for _, order, name in cases]


def test_defining_relations() -> None:
    for n in (1, 2, 3, 5, 8):
        d, r, s = dihedral(n), 1 % n, n
        assert d.power(n)[r] == 0
        assert d.power(2)[s] == 0
        assert d.multiply(s, r, s) == d.inverse[r]
        q, a, x = dicyclic(n), 1, 2 * n
        assert q.power(2)[x] == q.power(n)[a] != 0
        assert q.multiply(x, a, int(q.inverse[x])) == q.inverse[a]
    for n in (16, 32):
        r, s = 1, n // 2
        for group, twist in ((semidihedral(n), n // 4 - 1), (modular(n), n // 4 + 1)):
            assert group.multiply(s, r, s) == group.power(twist)[r]
            assert group.power(2)[s] == 0
    q8 = quaternion()
    at = q8.labels.index
    assert q8.labels[q8.multiply(at("i"), at("j"), at("k"))] == "-1"
    assert [q8.labels[q8.multiply(at(a), at(b))] for a, b in ("ij", "jk", "ki", "ji")] == ["k", "i", "j", "-k"]


def test_matrices_multiply_as_matrices() -> None:
    for q in (3, 5):  # prime fields: plain arithmetic modulo q
        g = general_linear(q)
        rows = [np.array([list(map(int, r.split(","))) for r in text.strip("[]").split(";")]) for text in g.labels]
        rng = np.random.default_rng(q)
        for a, b in rng.integers(g.order, size=(200, 2)):
            assert np.array_equal(rows[a] @ rows[b] % q, rows[g.table[a, b]])
    p = projective_special_linear(7)
    rows = [np.array([list(map(int, r.split(","))) for r in text.strip("[]").split(";")]) for text in p.labels]
    for a, b in np.random.default_rng(7).integers(p.order, size=(200, 2)):
        product = rows[a] @ rows[b] % 7
        assert any(np.array_equal(sign * product % 7, rows[p.table[a, b]]) for sign in (1, -1))


def test_affine_maps_compose() -> None:
    g = affine(7)

    def value(label: str, x: int) -> int:
        slope, _, shift = label.partition("x")
        return (int(slope or 1) * x + int(shift or 0)) % 7

    for a, b in itertools.product(range(g.order), repeat=2):
        assert all(value(g.labels[g.table[a, b]], x) == value(g.labels[a], value(g.labels[b], x)) for x in range(2))


def test_heisenberg_is_unitriangular_matrices() -> None:
    n = 3
    g = heisenberg(n)

    def matrix(label: str) -> np.ndarray:
        a, b, c = map(int, label.strip("()").split(","))
        return np.array([[1, a, c], [0, 1, b], [0, 0, 1]])

    for x, y in itertools.product(range(27), repeat=2):
        assert np.array_equal(matrix(g.labels[x]) @ matrix(g.labels[y]) % n, matrix(g.labels[g.table[x, y]]) % n)


@pytest.mark.parametrize(
    ("p", "n", "sign"), [(2, 1, "+"), (2, 1, "-"), (2, 2, "+"), (2, 2, "-"), (3, 1, "-"), (3, 2, "+")]
)
def test_extraspecial_groups_are_extraspecial(p: int, n: int, sign: str) -> None:
    g = extraspecial(p, n, sign)
    assert g.order == p ** (1 + 2 * n)
    assert len(g.centre) == p
    assert set(np.unique(g.commutators()).tolist()) == set(g.centre)
    assert set(g.power(p).tolist()) <= set(g.centre)
    if p == 2:  # involutions and identity: 2^(2n) + 2^n or 2^(2n) - 2^n
        assert int((g.power(2) == 0).sum()) == 4**n + (1 if sign == "+" else -1) * 2**n
    else:
        assert g.exponent == (p if sign == "+" else p * p)


def test_products_multiply_by_coordinates() -> None:
    a, b = symmetric(3), cyclic(4)
    g = direct(a, b)
    for (x, y), (z, w) in itertools.product(itertools.product(range(6), range(4)), repeat=2):
        assert g.table[4 * x + y, 4 * z + w] == 4 * a.table[x, z] + b.table[y, w]
    action = [[0, 1, 2, 3, 4], [0, 2, 4, 1, 3], [0, 4, 3, 2, 1], [0, 3, 1, 4, 2]]
    frobenius = semidirect(cyclic(5), cyclic(4), action)
    for (x, h), (y, k) in itertools.product(itertools.product(range(5), range(4)), repeat=2):
        assert frobenius.table[x + 5 * h, y + 5 * k] == (x + 2**h * y) % 5 + 5 * ((h + k) % 4)
    assert identify(frobenius) == "20.3"


def test_wreath_product_acts_on_coordinates() -> None:
    # C3 wr C3 (acting on itself) and an action that is not symmetric in left and right: C2 wr A4 on 4 points.
    a4 = alternating(4)
    images = [_images(label, 4) for label in a4.labels]
    g = wreath(cyclic(2), a4, images)
    assert g.order == 16 * 12
    shift = 16
    for h, row in enumerate(images):
        top = int(shift * h)
        for i in range(4):
            unit = 2 ** (3 - i)  # the element of C2^4 with a single entry, at point i
            assert g.multiply(top, unit, int(g.inverse[top])) == 2 ** (3 - row[i])
    assert wreath(cyclic(3), cyclic(3)).order == 81


def _images(label: str, n: int) -> list[int]:
    images = list(range(n))
    for cycle in label.strip("()").split(")("):
        points = [int(c) - 1 for c in cycle.split(",") if c]
        for a, b in itertools.pairwise([*points, *points[:1]]):
            images[a] = b
    return images


def test_central_products_and_exceptional_isomorphisms() -> None:
    d4, q8 = dihedral(4), quaternion()
    assert isomorphic(central_product(d4, d4, 2, 2), central_product(q8, q8, 2, 2))  # D4 o D4 = Q8 o Q8
    assert not isomorphic(central_product(d4, q8, 2, 2), central_product(d4, d4, 2, 2))
    assert isomorphic(central_product(cyclic(4), d4, 2, 2), central_product(cyclic(4), q8, 2, 2))
    cosets = central_product(cyclic(8), cyclic(4), 2, 1)  # a^2 here is a there, not its inverse
    root = cosets.labels.index("[(a, 1)]")
    assert cosets.labels[cosets.multiply(root, root)] == "[(1, a)]"
    assert isomorphic(projective_special_linear(9), alternating(6))
    assert is_simple(projective_special_linear(8))
    assert isomorphic(dihedral(6), direct(symmetric(3), cyclic(2)))


REFUSED = [
    (lambda: cyclic(0), "n >= 1"),
    (lambda: dihedral(0), "n >= 1"),
    (lambda: quaternion(12), "power of two"),
    (lambda: semidihedral(8), "power of two n >= 16"),
    (lambda: modular(24), "power of two n >= 16"),
    (lambda: abelian([2, -1]), "must be positive"),
    (lambda: affine(6), "no field of 6 elements"),
    (lambda: projective_special_linear(1), "prime power"),
    (lambda: extraspecial(4, 1), "need a prime"),
    (lambda: extraspecial(2, 1, "?"), "sign"),
    (lambda: semidirect(cyclic(3), cyclic(2), [[0, 1, 2], [0, 1, 1]]), "permute the normal factor"),
    (lambda: semidirect(cyclic(4), cyclic(2), [[0, 1, 2, 3], [0, 2, 1, 3]]), "row 1 of the action is no automorphism"),
    (lambda: semidirect(cyclic(3), cyclic(3), [[0, 1, 2], [0, 2, 1], [0, 1, 2]]), "multiply as the acting group"),
    (lambda: semidirect(cyclic(3), cyclic(2), [[0, 1, 2]]), r"shape \(2, 3\)"),
    (lambda: wreath(cyclic(2), cyclic(2), [[0, 1], [0, 0]]), "permute the points"),
    (lambda: wreath(cyclic(2), cyclic(2), [[0, 1]]), "one row of images"),
    (lambda: central_product(dihedral(3), cyclic(2), 1, 1), "not central"),
    (lambda: central_product(cyclic(4), cyclic(4), 1, 2), "one order, got 4 and 2"),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED)
def test_what_does_not_exist_is_refused(build: Callable[[], Group], reason: str) -> None:
    with pytest.raises(GroupError, match=reason):
        build()


def test_what_is_too_large_is_refused_at_once() -> None:
    for build in (
        lambda: symmetric(8),
        lambda: projective_special_linear(23),
        lambda: wreath(cyclic(10), symmetric(4), np.tile(np.arange(4), (24, 1))),
        lambda: elementary_abelian(2, 13),
        lambda: direct(symmetric(6), symmetric(6)),
    ):
        with pytest.raises(BudgetError, match="5040"):
            build()
