"""Isomorphisms, automorphisms and invariants, against exhaustive search and against random renaming."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search.errors import BudgetError
from stl_search.groups import (
    Group,
    abelian,
    all_groups,
    alternating,
    automorphism_group,
    dihedral,
    elementary_abelian,
    inner_automorphisms,
    invariants,
    isomorphic,
    isomorphism,
    projective_special_linear,
    small_group,
    symmetric,
)
from stl_search.groups.isomorphism import colours, fingerprint

ALL_IDS = [f"{n}.{i}" for n in range(1, 64) for i in range(1, len(all_groups(n)) + 1)]


def naive_homomorphisms(source: Group, target: Group) -> list[tuple[int, ...]]:
    """All bijective homomorphisms: every choice of images of the generators, spread over words, checked in full."""
    words: dict[int, tuple[int, ...]] = {0: ()}
    queue = [0]
    while queue:
        a = queue.pop(0)
        for i, g in enumerate(source.generators):
            b = int(source.table[a, g])
            if b not in words:
                words[b] = (*words[a], i)
                queue.append(b)
    found = []
    for images in itertools.product(range(target.order), repeat=len(source.generators)):
        f = np.array([target.multiply(*(images[i] for i in words[a])) for a in range(source.order)])
        if len(set(f.tolist())) == source.order and np.array_equal(
            f[source.table], target.table[f[:, None], f[None, :]]
        ):
            found.append(tuple(f.tolist()))
    return found


def renamed_at_random(group: Group, rng: np.random.Generator) -> Group:
    order = np.concatenate([[0], 1 + rng.permutation(group.order - 1)])  # new name of each element
    table = np.empty_like(group.table)
    table[order[:, None], order[None, :]] = order[group.table]
    return Group(table)


@pytest.mark.parametrize("order", range(1, 14))
def test_isomorphism_agrees_with_exhaustive_search(order: int) -> None:
    for g, h in itertools.product(all_groups(order), repeat=2):
        naive = naive_homomorphisms(g, h)
        assert bool(naive) == (g is h) == isomorphic(g, h)
        if g is h:
            automorphisms = automorphism_group(g)
            assert automorphisms.order == len(naive)
            assert {tuple(row) for row in automorphisms.elements().tolist()} == set(naive)
            orbits = {tuple(sorted({f[a] for f in naive})) for a in range(order)}
            assert set(automorphisms.orbits()) == orbits
            conjugations = {tuple(g.multiply(x, a, int(g.inverse[x])) for a in range(order)) for x in range(order)}
            inner = [tuple(row) for row in inner_automorphisms(g).tolist()]
            assert len(inner) == len(conjugations)
            assert set(inner) == conjugations
            assert inner[0] == tuple(range(order))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ALL_IDS), st.integers(0, 2**32 - 1))
def test_renamed_groups_are_isomorphic(id: str, seed: int) -> None:
    g = small_group(id)
    h = renamed_at_random(g, np.random.default_rng(seed))
    f = isomorphism(g, h)
    assert f is not None
    assert sorted(f.tolist()) == list(range(g.order))
    assert np.array_equal(f[g.table], h.table[f[:, None], f[None, :]])
    assert fingerprint(g) == fingerprint(h)
    assert invariants(g) == invariants(h)
    assert np.array_equal(colours(g), colours(h)[f])
    assert automorphism_group(h).order == automorphism_group(g).order


@pytest.mark.parametrize("order", [16, 18, 20, 24, 27, 32, 36, 40, 48, 54, 60])
def test_different_library_groups_are_not_isomorphic(order: int) -> None:
    for g, h in itertools.combinations(all_groups(order), 2):
        assert isomorphism(g, h) is None


def test_the_search_decides_where_fingerprints_do_not() -> None:
    # Non-isomorphic groups with equal fingerprints exist from order 16 on: the tables must tell them apart.
    twins = [(g, h) for g, h in itertools.combinations(all_groups(16), 2) if fingerprint(g) == fingerprint(h)]
    assert twins
    for g, h in twins:
        assert isomorphism(g, h) is None


def test_known_automorphism_groups() -> None:
    # |GL(5,2)|, |GL(2,5)|; Aut(S6) is twice S6; Aut(A5) = S5; Aut(PSL(2,7)) = PGL(2,7); Aut(D_n) = AGL(1, Z/n).
    assert automorphism_group(elementary_abelian(2, 5)).order == 31 * 30 * 28 * 24 * 16
    assert automorphism_group(abelian([5, 5])).order == 24 * 20
    assert automorphism_group(symmetric(6)).order == 1440
    assert automorphism_group(alternating(5)).order == 120
    assert automorphism_group(projective_special_linear(7)).order == 336
    assert automorphism_group(dihedral(12)).order == 12 * 4
    with pytest.raises(BudgetError, match="9999360"):
        automorphism_group(elementary_abelian(2, 5)).elements()


def test_invariants_as_json_survive_a_round_trip() -> None:
    for id in ("1.1", "24.12", "60.5"):
        content = invariants(small_group(id)).as_json()
        assert json.loads(json.dumps(content)) == content
    assert invariants(small_group("24.12")).as_json()["element_orders"] == [[1, 1], [2, 9], [3, 8], [4, 6]]


def test_generators_and_transversals_are_automorphisms() -> None:
    for id in ("16.3", "24.3", "32.49", "27.3", "48.50"):
        g = small_group(id)
        automorphisms = automorphism_group(g)
        for f in [*automorphisms.generators, *itertools.chain.from_iterable(automorphisms.transversals)]:
            assert sorted(f.tolist()) == list(range(g.order))
            assert np.array_equal(f[g.table], g.table[f[:, None], f[None, :]])
        if automorphisms.order <= 2000:
            elements = automorphisms.elements()
            assert len(np.unique(elements, axis=0)) == automorphisms.order
            assert elements[0].tolist() == list(range(g.order))
