"""Character tables: the published ones, exact orthogonality, and the defining algebra of class sums.

Published: S3, D4, Q8, A4, S4 in James and Liebeck, Representations and Characters of Groups (2nd edition, 2001),
chapters 16 to 18; A5 and PSL(2,7) = L3(2) in the ATLAS of Finite Groups (1985), pages 2 and 3, and in James and
Liebeck, chapters 20 and 27. GAP's degrees, indicators and conductors: test_groups_small_groups.py.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search.errors import BudgetError
from stl_search.groups import (
    CharacterTable,
    Cyclotomic,
    all_groups,
    alternating,
    character_table,
    class_constants,
    cyclic,
    dihedral,
    direct,
    elementary_abelian,
    get,
    normal_subgroups,
    quaternion,
    small_group,
    symmetric,
)
from stl_search.groups.characters import _prime, _primitive_root
from stl_search.groups.cyclotomic import power_basis

EVERY = [g for n in range(1, 64) for g in all_groups(n)]

z = Cyclotomic.root
w, w2 = z(3), z(3, 2)
plus, minus = -(z(5, 2) + z(5, 3)), -(z(5) + z(5, 4))  # (1 + sqrt 5)/2, (1 - sqrt 5)/2
b7, b7_bar = z(7) + z(7, 2) + z(7, 4), z(7, 3) + z(7, 5) + z(7, 6)  # (-1 +- i sqrt 7)/2

# name: (orders of the elements of the classes, sizes, rows, indicators)
PUBLISHED: dict[str, tuple[list[int], list[int], list[list[Cyclotomic | int]], list[int]]] = {
    "S3": ([1, 2, 3], [1, 3, 2], [[1, 1, 1], [1, -1, 1], [2, 0, -1]], [1, 1, 1]),
    "D4": (
        [1, 2, 2, 2, 4],
        [1, 1, 2, 2, 2],
        [[1, 1, 1, 1, 1], [1, 1, -1, -1, 1], [1, 1, 1, -1, -1], [1, 1, -1, 1, -1], [2, -2, 0, 0, 0]],
        [1, 1, 1, 1, 1],
    ),
    "Q8": (
        [1, 2, 4, 4, 4],
        [1, 1, 2, 2, 2],
        [[1, 1, 1, 1, 1], [1, 1, 1, -1, -1], [1, 1, -1, 1, -1], [1, 1, -1, -1, 1], [2, -2, 0, 0, 0]],
        [1, 1, 1, 1, -1],
    ),
    "A4": ([1, 2, 3, 3], [1, 3, 4, 4], [[1, 1, 1, 1], [1, 1, w, w2], [1, 1, w2, w], [3, -1, 0, 0]], [1, 0, 0, 1]),
    "S4": (
        [1, 2, 2, 3, 4],
        [1, 3, 6, 8, 6],
        [[1, 1, 1, 1, 1], [1, 1, -1, 1, -1], [2, 2, 0, -1, 0], [3, -1, 1, 0, -1], [3, -1, -1, 0, 1]],
        [1, 1, 1, 1, 1],
    ),
    "A5": (
        [1, 2, 3, 5, 5],
        [1, 15, 20, 12, 12],
        [[1, 1, 1, 1, 1], [3, -1, 0, minus, plus], [3, -1, 0, plus, minus], [4, 0, 1, -1, -1], [5, 1, -1, 0, 0]],
        [1, 1, 1, 1, 1],
    ),
    "PSL(2,7)": (
        [1, 2, 3, 4, 7, 7],
        [1, 21, 56, 42, 24, 24],
        [
            [1, 1, 1, 1, 1, 1],
            [3, -1, 0, 1, b7, b7_bar],
            [3, -1, 0, 1, b7_bar, b7],
            [6, 2, 0, 0, -1, -1],
            [7, -1, 1, -1, 0, 0],
            [8, 0, -1, 0, 1, 1],
        ],
        [1, 0, 0, 1, 1, 1],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables(name: str) -> None:
    orders, sizes, rows, indicators = PUBLISHED[name]
    group = get(name)
    table = character_table(group)
    mine = [(int(group.element_orders[c[0]]), len(c)) for c in group.classes]
    assert Counter(mine) == Counter(zip(orders, sizes, strict=True))
    ours = Counter((*table[i], int(table.indicators[i])) for i in range(len(table)))
    # Classes of one order and size may be swapped, as in every printed table.
    assert any(
        [(orders[j], sizes[j]) for j in columns] == mine
        and Counter((*(row[j] for j in columns), i) for row, i in zip(rows, indicators, strict=True)) == ours
        for columns in itertools.permutations(range(len(sizes)))
    )


def products(x: np.ndarray, y: np.ndarray, e: int) -> np.ndarray:
    """Products of cyclotomic integers, the last axis their coefficients; written without the library's own."""
    degree = x.shape[-1]
    long = np.zeros((*np.broadcast_shapes(x.shape[:-1], y.shape[:-1]), 2 * degree - 1), dtype=np.int64)
    for a, b in itertools.product(range(degree), repeat=2):
        long[..., a + b] += x[..., a] * y[..., b]
    return long @ power_basis(e)[np.arange(2 * degree - 1) % e]


def is_class_algebra_table(table: CharacterTable) -> bool:
    """omega(C_r) omega(C_s) = sum_t a_rst omega(C_t), omega(C) = |C| chi(C) / chi(1), exactly.

    With orthogonality this proves the rows to be the irreducible characters, not just some orthogonal functions.
    """
    constants = class_constants(table.group)
    weighted = table.values * table.group.class_sizes[None, :, None]
    left = products(weighted[:, :, None, :], weighted[:, None, :, :], table.conductor)
    right = table.degrees[:, None, None, None] * np.einsum("rst,itc->irsc", constants, weighted)
    return bool(np.array_equal(left, right))


@pytest.mark.parametrize("order", range(1, 32))
def test_rows_are_characters_of_the_class_algebra(order: int) -> None:
    for group in all_groups(order):
        assert is_class_algebra_table(character_table(group)), group


@pytest.mark.parametrize("name", ["A5", "S5", "PSL(2,7)", "PSL(2,8)", "SL(2,5)"])
def test_rows_are_characters_for_larger_groups(name: str) -> None:
    assert is_class_algebra_table(character_table(get(name)))


def test_class_constants_count_pairs() -> None:
    for name in ("S3", "Q8", "A4"):
        g = get(name)
        naive = np.zeros((len(g.classes),) * 3, dtype=int)
        for t, members in enumerate(g.classes):
            for x, y in itertools.product(range(g.order), repeat=2):
                if g.table[x, y] == members[-1]:
                    naive[g.class_of[x], g.class_of[y], t] += 1
        assert np.array_equal(class_constants(g), naive)


def test_all_tables_up_to_order_63() -> None:
    for group in EVERY:
        table = character_table(group)
        k = len(table)
        assert k == len(group.classes)
        assert table.is_orthogonal(), group
        assert (table.degrees**2).sum() == group.order
        assert not (group.order % table.degrees).any()
        assert (table.values[0, :, 0] == 1).all()
        assert not table.values[0, :, 1:].any()
        assert (np.diff(table.degrees) >= 0).all()
        # Frobenius and Schur: sum of indicator times degree counts the solutions of g^2 = 1.
        assert (table.indicators * table.degrees).sum() == (group.power(2) == 0).sum()
        # Real characters are as many as classes closed under inversion; indicator 0 means not real.
        real = [i for i in range(k) if table.conjugates[i] == i]
        assert len(real) == (group.class_power(-1) == np.arange(k)).sum()
        assert [i for i in range(k) if table.indicators[i] != 0] == real
        assert np.array_equal(table.conjugates[table.conjugates], np.arange(k))
        assert np.abs(table.complex_values[table.conjugates] - table.complex_values.conj()).max() < 1e-12
        gram = (table.complex_values * group.class_sizes) @ table.complex_values.conj().T
        assert np.abs(gram - group.order * np.eye(k)).max() < 1e-9


def test_both_exact_checks_agree_and_see_a_changed_value() -> None:
    for group in (cyclic(12), quaternion(), alternating(5), small_group("27.3"), direct(symmetric(3), cyclic(5))):
        table = character_table(group)
        expected = np.zeros_like(table.values)
        expected[np.arange(len(table)), np.arange(len(table)), 0] = group.order
        assert np.array_equal(table.gram(), expected)
        for row, column in [(0, 0), (len(table) - 1, len(table) - 1), (1, 0)]:
            for change in (1, -2, group.order):
                values = table.values.copy()
                values[row, column, -1] += change
                wrong = replace(table, values=values)
                assert not np.array_equal(wrong.gram(), expected)
                assert not wrong.is_orthogonal()


def test_a_change_that_one_embedding_does_not_see_is_seen() -> None:
    """The proof of orthogonality needs all phi(e) maps to the prime field: a deviation can vanish under a few."""
    table = character_table(cyclic(31))
    bound = int(np.abs(table.values).sum(axis=2).max())
    prime = _prime(31, 31 * (bound**2 + 1))
    root = _primitive_root(31, prime)
    powers = np.array([[pow(root, sign * i, prime) for sign in (1, -1)] for i in range(30)])
    vectors = np.random.default_rng(0).integers(2, size=(200_000, 30))
    residues = vectors @ powers % prime
    keys = residues[:, 0] * prime + residues[:, 1]
    order = np.argsort(keys)
    twins = np.flatnonzero(np.diff(keys[order]) == 0)
    changes = vectors[order[twins]] - vectors[order[twins + 1]]  # vanish at the root and at its inverse
    changes = changes[(changes != 0).any(axis=1)]
    assert len(changes) > 10
    for change in changes[:10]:
        values = table.values.copy()
        values[3, 0] += change
        wrong = replace(table, values=values)
        assert int(np.abs(values).sum(axis=2).max()) == bound  # so that the same prime is used
        assert not wrong.is_orthogonal()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([g.id for g in EVERY]), st.data())
def test_characters_are_class_functions_that_multiply_to_characters(id: str, data: st.DataObject) -> None:
    """Products of characters have non-negative integer multiplicities."""
    table = character_table(small_group(id))
    i, j = data.draw(st.integers(0, len(table) - 1)), data.draw(st.integers(0, len(table) - 1))
    values = table.complex_values
    multiplicities = (values[i] * values[j] * table.group.class_sizes) @ values.conj().T / table.group.order
    assert np.abs(multiplicities - np.rint(multiplicities.real)).max() < 1e-9
    assert np.rint(multiplicities.real).min() >= 0
    kernel = table.kernel(i)
    assert kernel in normal_subgroups(table.group)
    assert np.abs(values[i][table.group.class_of[list(kernel)]] - table.degrees[i]).max() < 1e-9


def test_cyclic_and_elementary_abelian_tables_come_in_natural_order() -> None:
    for n in (5, 8, 12):
        table = character_table(cyclic(n))
        on_generator = [table.value(i, int(table.group.class_of[1])) for i in range(n)]
        half = [n // 2] if n % 2 == 0 else []
        pairs = itertools.chain(*((j, n - j) for j in range(1, (n + 1) // 2)))
        assert on_generator == [z(n, j) for j in (0, *half, *pairs)]
    sylvester = np.array([[1]])
    for _ in range(4):
        sylvester = np.kron(sylvester, [[1, 1], [1, -1]])
    table = character_table(elementary_abelian(2, 4))
    assert np.array_equal(table.values[:, table.group.class_of, 0], sylvester)


def test_names_of_classes_and_text() -> None:
    assert character_table(dihedral(4)).class_names() == ("1A", "2A", "2B", "2C", "4A")
    names = character_table(cyclic(59)).class_names()
    assert len(set(names)) == 59
    assert character_table(quaternion()).format().splitlines() == [
        "    1A  2A  4A  4B  4C",
        "     1   1   2   2   2",
        "X1   1   1   1   1   1  +",
        "X2   1   1  -1   1  -1  +",
        "X3   1   1   1  -1  -1  +",
        "X4   1   1  -1  -1   1  +",
        "X5   2  -2   0   0   0  -",
    ]


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(BudgetError, match="257 classes"):
        character_table(cyclic(257))
