"""Tables, classes, subgroups and quotients of groups, against definitions spelled out naively."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search.errors import BudgetError, StlError
from stl_search.groups import (
    Group,
    GroupError,
    abelian_invariants,
    as_group,
    centralizer,
    cyclic,
    derived_series,
    dicyclic,
    dihedral,
    from_permutations,
    generated,
    invariant_factors,
    is_normal,
    is_simple,
    is_solvable,
    lower_central_series,
    nilpotency_class,
    normal_subgroups,
    normalizer,
    projective_special_linear,
    quotient,
    small_group,
    subgroup_classes,
    subgroups,
    symmetric,
)
from stl_search.groups.subgroups import complement, primes_of

SMALL = ["1.1", "2.1", "6.1", "8.3", "8.4", "12.3", "16.3", "16.13", "18.4", "20.3", "21.1", "24.3", "24.12"]


@pytest.mark.parametrize("id", SMALL)
def test_axioms_and_derived_arrays(id: str) -> None:
    g = small_group(id)
    n, t = g.order, g.table
    for a, b, c in itertools.product(range(n), repeat=3):
        assert t[t[a, b], c] == t[a, t[b, c]]
    assert all(t[a, g.inverse[a]] == 0 == t[g.inverse[a], a] for a in range(n))
    for a in range(n):
        powers = [0]
        while (following := g.multiply(powers[-1], a)) != 0:
            powers.append(following)
        assert g.element_orders[a] == len(powers)
        assert [int(g.power(i)[a]) for i in range(len(powers))] == powers
        assert g.power(-1)[a] == g.inverse[a]
    classes = {tuple(sorted({g.multiply(x, a, int(g.inverse[x])) for x in range(n)})) for a in range(n)}
    assert set(g.classes) == classes
    assert g.classes[0] == (0,)
    assert all(a in g.classes[g.class_of[a]] for a in range(n))
    assert [g.class_of[g.power(3)[c[0]]] for c in g.classes] == g.class_power(3).tolist()
    assert set(g.centre) == {a for a in range(n) if all(t[a, b] == t[b, a] for b in range(n))}
    assert g.closure(g.generators).all()
    assert g.is_abelian == (len(g.classes) == n)
    assert all(g.power(g.exponent) == 0)


def test_a_table_is_frozen_and_survives_pickling() -> None:
    g = small_group("10.1")
    with pytest.raises(ValueError, match="read-only"):
        g.table[0, 0] = 1
    with pytest.raises(AttributeError):
        g.name = "other"  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(g))  # noqa: S301 - its own pickle
    assert again == g
    assert hash(again) == hash(g)
    assert not again.table.flags.writeable
    source = np.array(g.table)
    copy = Group(source)
    source[0, 0] = 3
    assert copy.table[0, 0] == 0


def test_every_array_that_is_handed_out_is_read_only() -> None:
    g = dihedral(4)
    arrays = [g.table, g.inverse, g.power(3), g.element_orders, g.class_of, g.class_sizes, g.class_power(2)]
    assert not any(a.flags.writeable for a in arrays)


def test_equality_sees_names_and_labels() -> None:
    g = cyclic(3)
    assert g == cyclic(3)
    assert g != g.renamed(name="other")
    assert g != g.renamed(labels=("1", "x", "y"))
    assert g != "C3"
    assert len({g, cyclic(3), g.renamed(id="3.1")}) == 2


BAD_TABLES = {
    "square": ([[0, 1, 2], [1, 2, 0]], "square of integers"),
    "empty": (np.zeros((0, 0), dtype=int), "square of integers"),
    "floats": ([[0.0, 1.0], [1.0, 0.0]], "square of integers"),
    "range": ([[0, 1], [1, 2]], r"must hold elements 0\.\.1"),
    "identity": ([[1, 0], [0, 1]], "element 0 must be the identity"),
    "row": ([[0, 1, 2], [1, 1, 0], [2, 0, 1]], "row 1 of the table holds an element twice"),
    "column": ([[0, 1, 2], [1, 2, 0], [2, 1, 0]], "column 1 of the table holds an element twice"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused_with_a_reason(case: str) -> None:
    table, reason = BAD_TABLES[case]
    with pytest.raises(GroupError, match=reason):
        Group(table)


LOOPS = [  # with identity 0, every row and column a permutation; the smallest that do not associate have order 5
    [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]],
    [
        *([0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4], [2, 3, 4, 5, 0, 1]),
        *([3, 4, 5, 0, 1, 2], [4, 5, 0, 1, 2, 3], [5, 2, 1, 4, 3, 0]),
    ],
]


@pytest.mark.parametrize("table", LOOPS)
def test_a_loop_that_is_no_group_is_refused(table: list[list[int]]) -> None:
    loop = np.array(table)
    with pytest.raises(GroupError, match="differs from") as caught:
        Group(loop)
    left, right = str(caught.value).removeprefix("not a group: ").split(" differs from ")
    a, g, b = (int(s) for s in left.replace("(", "").replace(")", "").split("*"))
    assert right == f"{a}*({g}*{b})"
    assert loop[loop[a, g], b] != loop[a, loop[g, b]]
    assert issubclass(GroupError, StlError)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SMALL[2:]), st.data())
def test_swapping_two_entries_of_a_row_never_passes(id: str, data: st.DataObject) -> None:
    table = np.array(small_group(id).table)
    n = len(table)
    row = data.draw(st.integers(1, n - 1))
    i, j = data.draw(st.lists(st.integers(1, n - 1), min_size=2, max_size=2, unique=True))
    table[row, [i, j]] = table[row, [j, i]]
    with pytest.raises(GroupError):
        Group(table)


def test_labels_must_be_as_many_as_elements_and_different() -> None:
    with pytest.raises(GroupError, match="3 different labels, got 2"):
        Group(cyclic(3).table, ["1", "a", "a"])


def test_too_large_is_said() -> None:
    with pytest.raises(BudgetError, match="order 5041"):
        Group(np.zeros((5041, 5041), dtype=np.int8))
    with pytest.raises(BudgetError, match="more than 5040"):
        from_permutations([[1, 2, 3, 4, 5, 6, 7, 0], [1, 0, 2, 3, 4, 5, 6, 7]])


def test_permutations_multiply_from_the_right() -> None:
    g = symmetric(3)
    swap, turn = g.labels.index("(1,2)"), g.labels.index("(1,2,3)")
    assert g.labels[g.multiply(swap, turn)] == "(2,3)"  # first 1 -> 2 -> 3 -> 1, then 1 <-> 2: 1 -> 1, 2 -> 3
    assert g.labels[g.multiply(turn, swap)] == "(1,3)"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.permutations(range(5)), min_size=1, max_size=3))
def test_from_permutations_is_the_closure_under_composition(generators: list[list[int]]) -> None:
    g = from_permutations(generators)
    naive = {tuple(range(5))}
    while True:
        more = naive | {tuple(p[i] for i in q) for p in naive for q in map(tuple, generators)}
        if more == naive:
            break
        naive = more
    elements = sorted(naive)
    assert g.order == len(elements)
    for a, p in enumerate(elements):
        for b, q in enumerate(elements):
            assert elements[g.table[a, b]] == tuple(p[i] for i in q)


def test_from_permutations_refuses_other_sequences() -> None:
    for bad in ([[0, 0]], [[1, 2]], [[1, 0], [0, 1, 2]]):
        with pytest.raises(GroupError, match="must be permutations"):
            from_permutations(bad)
    assert from_permutations([]).order == 1


def test_the_folder_loads_nothing_heavy() -> None:
    program = (
        "import sys, stl_search.groups as g; g.real_irreps(g.get('AGL(1,5) x C2'));"
        "print(*(m for m in ('sympy', 'galois', 'numba', 'torch', 'scipy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


# Subgroups.


@pytest.mark.parametrize("id", ["1.1", "6.1", "8.3", "8.4", "8.5", "12.3", "12.1"])
def test_subgroups_are_all_closed_subsets(id: str) -> None:
    g = small_group(id)
    naive = set()
    for rest in itertools.chain.from_iterable(
        itertools.combinations(range(1, g.order), r) for r in range(g.order) if g.order % (r + 1) == 0
    ):
        chosen = {0, *rest}
        if all(int(g.table[a, b]) in chosen for a in chosen for b in chosen):
            naive.add(tuple(sorted(chosen)))
    assert set(subgroups(g)) == naive
    normal = {
        s for s in naive if all({g.multiply(x, a, int(g.inverse[x])) for a in s} == set(s) for x in range(g.order))
    }
    assert set(normal_subgroups(g)) == normal
    assert normal == {s for s in naive if is_normal(g, s)}
    for orbit in subgroup_classes(g):
        for s in orbit:
            conjugates = {tuple(sorted(g.multiply(x, a, int(g.inverse[x])) for a in s)) for x in range(g.order)}
            assert conjugates == set(orbit)
            assert len(normalizer(g, s)) == g.order // len(orbit)
    assert sorted(itertools.chain.from_iterable(subgroup_classes(g))) == sorted(naive)


def test_known_numbers_of_subgroups() -> None:
    # S3, S4, S5: OEIS A005432; classes of subgroups: OEIS A000638. PSL(2,7): GAP, ConjugacyClassesSubgroups.
    assert [len(subgroups(symmetric(n))) for n in (3, 4, 5)] == [6, 30, 156]
    assert [len(subgroup_classes(symmetric(n))) for n in (3, 4, 5)] == [4, 11, 19]
    assert (len(subgroups(projective_special_linear(7))), len(subgroup_classes(projective_special_linear(7)))) == (
        179,
        15,
    )


def test_series_of_s4_and_others() -> None:
    s4 = symmetric(4)
    assert [len(s) for s in derived_series(s4)] == [24, 12, 4, 1]
    assert [len(s) for s in lower_central_series(s4)] == [24, 12]
    assert is_solvable(s4)
    assert nilpotency_class(s4) is None
    assert nilpotency_class(cyclic(1)) == 0
    assert [nilpotency_class(dihedral(2**k)) for k in (1, 2, 3, 4)] == [1, 2, 3, 4]
    a5 = small_group("60.5")
    assert not is_solvable(a5)
    assert is_simple(a5)
    assert [n for n in range(1, 64) if is_simple(cyclic(n))] == [n for n in range(1, 64) if primes_of(n) == [n]]


def test_quotients_and_projections() -> None:
    s4 = symmetric(4)
    four = next(s for s in normal_subgroups(s4) if len(s) == 4)
    q, projection = quotient(s4, four)
    assert q.order == 6
    assert not q.is_abelian
    assert np.array_equal(projection[s4.table], q.table[projection[:, None], projection[None, :]])
    assert tuple(np.flatnonzero(projection == 0)) == four
    with pytest.raises(GroupError, match="not normal"):
        quotient(s4, generated(s4, [1]))
    with pytest.raises(GroupError, match="no subgroup"):
        quotient(s4, [0, 1, 2])


def test_subgroup_as_group_keeps_products_and_labels() -> None:
    g = dicyclic(5)
    members = generated(g, [2])
    h = as_group(g, members, "C5")
    for i, a in enumerate(members):
        assert h.labels[i] == g.labels[a]
        for j, b in enumerate(members):
            assert members[h.table[i, j]] == g.table[a, b]
    with pytest.raises(GroupError, match="no subgroup"):
        as_group(g, [1, 2])


def test_centralizer_complement_and_invariants() -> None:
    s4 = symmetric(4)
    for a in range(24):
        assert len(centralizer(s4, [a])) == 24 // len(s4.classes[s4.class_of[a]])
    assert centralizer(s4, s4.generators) == s4.centre == (0,)
    four = next(s for s in normal_subgroups(s4) if len(s) == 4)
    assert centralizer(s4, four) == four
    acting = complement(s4, four)
    assert acting is not None
    assert len(acting) == 6
    assert set(acting).isdisjoint(four[1:])
    assert complement(small_group("8.4"), small_group("8.4").centre) is None  # Q8 does not split
    assert abelian_invariants(small_group("16.10")) == (2, 2, 4)
    assert abelian_invariants(small_group("60.5")) == ()
    assert invariant_factors((2, 4, 3, 9, 5)) == (180, 6)
    assert invariant_factors(()) == ()
