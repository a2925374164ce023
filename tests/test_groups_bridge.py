"""Products survive the way to sympy and back."""

from __future__ import annotations

import numpy as np
import pytest
from sympy.combinatorics import Permutation, PermutationGroup
from sympy.combinatorics.named_groups import AlternatingGroup, CyclicGroup, DihedralGroup, SymmetricGroup

from stl_search.errors import BudgetError
from stl_search.groups import (
    Group,
    alternating,
    cyclic,
    derived_series,
    dicyclic,
    dihedral,
    element_permutations,
    from_sympy,
    invariants,
    isomorphic,
    small_group,
    symmetric,
    to_sympy,
)

THERE_AND_BACK = ["1.1", "2.1", "6.1", "8.4", "12.3", "16.3", "21.1", "24.3", "27.4", "60.5"]


@pytest.mark.parametrize("id", THERE_AND_BACK)
def test_products_are_kept_both_ways(id: str) -> None:
    g = small_group(id)
    permutations = element_permutations(g)
    for a, b in np.random.default_rng(1).integers(g.order, size=(100, 2)):
        assert permutations[a] * permutations[b] == permutations[g.table[a, b]]
    there = to_sympy(g)
    assert there.order() == g.order
    assert isomorphic(from_sympy(there), g)


def test_from_sympy_multiplies_as_sympy_does() -> None:
    theirs = PermutationGroup([Permutation([1, 2, 3, 0]), Permutation([1, 0, 2, 3])])
    ours = from_sympy(theirs, "S4")
    by_label = {_label(p): p for p in theirs.elements}
    for a in range(24):
        for b in range(24):
            product = by_label[ours.labels[a]] * by_label[ours.labels[b]]
            assert ours.labels[ours.table[a, b]] == _label(product)


def _label(p: Permutation) -> str:
    return "".join("(" + ",".join(str(i + 1) for i in c) + ")" for c in p.cyclic_form) or "()"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (CyclicGroup(6), cyclic(6)),
        (DihedralGroup(5), dihedral(5)),
        (SymmetricGroup(4), symmetric(4)),
        (AlternatingGroup(5), alternating(5)),
    ],
)
def test_named_groups_agree(theirs: PermutationGroup, ours: Group) -> None:
    assert isomorphic(from_sympy(theirs), ours)


@pytest.mark.parametrize("id", ["12.1", "16.3", "20.3", "24.12", "32.49", "48.3", "60.5"])
def test_sympy_computes_the_same_invariants(id: str) -> None:
    """A second outside system beside GAP: centre, derived series, exponent of orders, classes."""
    g = small_group(id)
    theirs = to_sympy(g)
    ours = invariants(g)
    assert theirs.center().order() == ours.centre_order
    assert [h.order() for h in theirs.derived_series()] == [len(s) for s in derived_series(g)]
    assert theirs.is_abelian == ours.abelian
    assert theirs.is_solvable == ours.solvable
    assert theirs.is_nilpotent == (ours.nilpotency_class is not None)
    assert sorted(len(c) for c in theirs.conjugacy_classes()) == list(ours.class_sizes)


def test_too_large_groups_are_refused() -> None:
    with pytest.raises(BudgetError, match="40320"):
        from_sympy(SymmetricGroup(8))
    assert not isomorphic(dicyclic(5), dihedral(10))
