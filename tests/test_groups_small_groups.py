"""All groups of order <= 63: their number, their enumeration, their names, and GAP's word on each of them.

The golden file tests/golden/groups_gap.json is written by tests/golden/make_groups_gap.g.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stl_search.groups import (
    Group,
    GroupError,
    abelian_invariants,
    all_groups,
    automorphism_group,
    character_table,
    count,
    cyclic,
    describe,
    direct,
    from_permutations,
    get,
    identify,
    invariants,
    isomorphic,
    names,
    normal_subgroups,
    projective_special_linear,
    small_group,
    special_linear,
    subgroup_classes,
    symmetric,
    wreath,
)
from stl_search.groups.extension import Extension, enumerate_groups, extend, spread
from stl_search.groups.make_small_groups import main as make_small_groups
from stl_search.groups.subgroups import primes_of

GOLDEN = Path(__file__).parent / "golden" / "groups_gap.json"

# OEIS A000001, n = 1..63.
A000001 = [
    *(1, 1, 1, 2, 1, 2, 1, 5, 2, 2, 1, 5, 1, 2, 1, 14, 1, 5, 1, 5, 2, 2, 1, 15, 2, 2, 5, 4, 1, 4, 1, 51),
    *(1, 2, 1, 14, 1, 2, 2, 14, 1, 6, 1, 4, 2, 2, 1, 52, 2, 5, 1, 5, 1, 15, 2, 13, 2, 2, 1, 13, 1, 2, 4),
]


@cache
def golden() -> dict[str, dict[str, Any]]:
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert content["made_by"] == "tests/golden/make_groups_gap.g"
    assert (GOLDEN.parent / "make_groups_gap.g").exists()
    return {entry["id"]: entry for entry in content["groups"]}


def test_counts_are_oeis_a000001() -> None:
    assert [count(n) for n in range(1, 64)] == A000001
    assert [len(all_groups(n)) for n in range(1, 64)] == A000001
    for order in (0, -1, 64):
        with pytest.raises(GroupError, match=r"1\.\.63"):
            count(order)


@pytest.mark.parametrize("order", range(2, 17))
def test_enumeration_loses_nothing_against_all_extensions(order: int) -> None:
    """The oracle: every automorphism and every z, no orbits, each table tried for the group axioms."""
    kinds: set[str] = set()
    for prime in primes_of(order):
        for base in all_groups(order // prime):
            for images in automorphism_group(base).elements():
                for z in range(base.order):
                    try:
                        kinds.add(identify(extend(base, prime, images, z)))
                    except GroupError:
                        continue
    assert kinds == {g.id for g in all_groups(order)}


def test_enumeration_from_nothing_gives_the_shipped_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command enumerates all orders by cyclic extension, matches GAP's list one to one, and names each group."""
    made = tmp_path / "small_groups_table.py"
    make_small_groups(["--numbering", str(GOLDEN), str(made)])
    text = made.read_text(encoding="utf-8")
    orders = [int(line.partition(".")[0][6:]) for line in text.splitlines() if line.startswith('    ("')]
    assert [orders.count(n) for n in range(1, 64)] == A000001
    shipped = Path(__file__).parent.parent / "groups" / "small_groups_table.py"
    assert text == shipped.read_text(encoding="utf-8")
    assert f"{made}: {text.count(chr(10))} lines" in capsys.readouterr().err


def test_the_command_stops_where_lists_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"groups": [e for e in golden().values() if e["id"] != "4.2"]}
    (tmp_path / "short.json").write_text(json.dumps(short), encoding="utf-8")
    with pytest.raises(GroupError, match="a group of order 4 is none of"):
        make_small_groups(["--numbering", str(tmp_path / "short.json"), str(tmp_path / "out.py")])
    twice = {"groups": [*golden().values(), {"id": "2.2", "permutations": [[1, 0, 3, 2]]}]}
    (tmp_path / "twice.json").write_text(json.dumps(twice), encoding="utf-8")
    with pytest.raises(GroupError, match="order 2"):
        make_small_groups(["--numbering", str(tmp_path / "twice.json"), str(tmp_path / "out.py")])
    monkeypatch.setattr(
        "stl_search.groups.make_small_groups.enumerate_groups", lambda n, smaller: all_but_one(n, smaller)
    )
    with pytest.raises(GroupError, match=r"order 4: groups \[1\] found, 2 in"):
        make_small_groups(["--numbering", str(GOLDEN), str(tmp_path / "out.py")])
    assert not (tmp_path / "out.py").exists()


def all_but_one(order: int, smaller: Mapping[int, Sequence[Group]]) -> list[tuple[Group, Extension | None]]:
    """An enumeration that misses the last group of order 4."""
    return [entry for entry in enumerate_groups(order, smaller) if identify(entry[0]) != "4.2"]


def test_enumeration_ends_where_it_would_miss_groups() -> None:
    with pytest.raises(GroupError, match=r"1\.\.63, not 64"):
        enumerate_groups(64, {32: all_groups(32)})


@pytest.mark.parametrize("id", ["12.2", "8.4", "16.3", "27.3", "24.12"])
def test_spread_inverts_reading_off_images(id: str) -> None:
    group, primes = small_group(id), _chain_primes(id)
    steps = np.cumprod([1, *primes])[:-1]
    for images in automorphism_group(group).elements():
        assert np.array_equal(spread(group, primes, images[steps].tolist()), images)


def _chain_primes(id: str) -> list[int]:
    from stl_search.groups.small_groups_table import ROWS

    base = {row[0]: row[2] for row in ROWS}[id]
    return [*_chain_primes(base), int(id.split(".")[0]) // int(base.split(".")[0])] if base else []


def test_every_group_is_gaps_group_of_that_number() -> None:
    assert list(golden()) == [id for id, _ in names()]
    for id, entry in golden().items():
        theirs = from_permutations(entry["permutations"], degree=None if entry["permutations"] else 1)
        ours = small_group(id)
        assert ours.id == id
        assert isomorphic(ours, theirs), id


def test_invariants_agree_with_gap() -> None:
    for id, entry in golden().items():
        ours = invariants(small_group(id))
        assert ours.class_number == entry["class_number"], id
        assert list(ours.class_sizes) == entry["class_sizes"], id
        assert [list(pair) for pair in ours.element_orders] == entry["element_orders"], id
        assert list(ours.abelianization) == entry["abelian_invariants"], id
        assert ours.centre_order == entry["centre_order"], id
        assert list(ours.derived_orders) == entry["derived_orders"], id
        assert ours.nilpotency_class == entry["nilpotency_class"], id
        assert ours.solvable == (id != "60.5")
        assert ours.abelian == (len(entry["derived_orders"]) < 3 and entry["derived_orders"][-1:] == [1])
        assert ours.exponent == math.lcm(*(o for o, _ in entry["element_orders"]))
        assert automorphism_group(small_group(id)).order == entry["automorphisms"], id
        assert len(normal_subgroups(small_group(id))) == entry["normal_subgroup_number"], id


@pytest.mark.parametrize("order", [*range(1, 32), 36, 54, 60])
def test_subgroups_agree_with_gap(order: int) -> None:
    for group in all_groups(order):
        classes = subgroup_classes(group)
        assert len(classes) == golden()[group.id]["subgroup_class_number"], group
        assert sum(map(len, classes)) == golden()[group.id]["subgroup_number"], group


def test_characters_agree_with_gap() -> None:
    """Degrees, Frobenius-Schur indicators and conductors of all irreducible characters of all groups."""
    for id, entry in golden().items():
        table = character_table(small_group(id))
        e = table.conductor
        powers = {j: table.group.class_power(j) for j in range(1, e + 1) if math.gcd(j, e) == 1}
        fixing = {j: (table.values[:, columns] == table.values).all(axis=(1, 2)) for j, columns in powers.items()}
        ours = []
        for i in range(len(table)):  # z -> z^j maps chi(g) to chi(g^j); the conductor is the least f as here
            conductor = next(
                f for f in range(1, e + 1) if e % f == 0 and all(fixing[j][i] for j in powers if j % f == 1 % f)
            )
            ours.append([int(table.degrees[i]), int(table.indicators[i]), conductor])
        assert sorted(ours) == entry["characters"], id


# Names.


def test_get_reads_numbers_families_products_and_library_names() -> None:
    cases = {
        "16.3": "16.3",
        "D4": "8.3",
        "Q8": "8.4",
        "Z2^3": "8.5",
        "C_6": "6.2",
        "C2 x C2 x C2": "8.5",
        "D4xC2": "16.11",
        "D4 × C2": "16.11",
        "S3^2": "36.10",
        "PSL(2,5)": "60.5",
        "AGL(1,5) x C2": "40.12",
        "SL(2,3)^1": "24.3",
        "2^(1+4)-": "32.50",
        "C4 o D4": "16.13",
        "C2 . S4": "48.28",
        " C7 : C3 ": "21.1",
        "Heis(3)": "27.3",
    }
    assert {text: get(text).id for text in cases} == cases
    assert get("PSL(2,7)").order == 168
    assert get("PSL(2,7)").id == ""
    assert get("D4").labels[1] == "r"


def test_every_unambiguous_name_leads_back_to_its_group() -> None:
    known: dict[str, list[str]] = {}
    for id, name in names():
        known.setdefault(name, []).append(id)
    for name, ids in known.items():
        if len(ids) == 1:
            assert get(name).id == ids[0], name
        else:
            with pytest.raises(GroupError, match=f"names several groups: {ids[0]}, .*choose one by number"):
                get(name)


def test_unknown_names_say_what_is_known() -> None:
    for name in ("Foo", "X4", "SL(1,3)", "", "C4 x", "Heis(2,3)"):
        with pytest.raises(GroupError, match=r"no group is called .*; known are C12 or Z12"):
            get(name)
    with pytest.raises(GroupError, match=r"no group 16\.15: the groups of order 16 are 16\.1 to 16\.14"):
        get("16.15")
    with pytest.raises(GroupError, match=r"numbers run from 1\.1 to 63\.4"):
        get("64.1")
    with pytest.raises(GroupError, match="order 168"):
        identify(projective_special_linear(7))
    with pytest.raises(GroupError, match=r"p\^\(1\+2n\)"):
        get("2^(1+3)+")


def test_descriptions_outside_the_library() -> None:
    assert describe(projective_special_linear(7)) == "PSL(2,7)"
    assert describe(symmetric(5)) == "S5"
    assert describe(special_linear(5)) == "SL(2,5)"
    assert describe(wreath(cyclic(3), cyclic(3))) == "C3^3 : C3"
    assert describe(direct(symmetric(4), symmetric(3))) == "S3 x S4"


def test_abelian_names_are_invariant_factors() -> None:
    for id, name in names():
        group = small_group(id)
        if group.is_abelian and group.order > 1:
            parts = [f.partition("^") for f in name.split(" x ")]
            factors = [int(size[1:]) for size, _, power in parts for _ in range(int(power or 1))]
            assert math.prod(factors) == group.order
            assert all(a % b == 0 for a, b in itertools.pairwise(factors))
            assert math.lcm(*abelian_invariants(group)) == factors[0]
