"""Compositions of approximate schemes: figures without forming them, best ones by brute force, in discover."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stl_search import decompose, score, transform
from stl_search.catalog import store
from stl_search.catalog.record import check_file
from stl_search.cli import main
from stl_search.runtime.amm import amm
from stl_search.scheme import Scheme, Shape
from stl_search.search.compositions import Mark, built, check_work, front, joined, mark, pareto
from stl_search.search.portfolio import discover
from stl_search.testing import STRASSEN

LAM = 2 * score.relative_rounding("bf16") ** 2


def fitted(shape: Shape, rank: int, seed: int = 0) -> Scheme:
    """A reasonable approximate scheme."""
    batch, _ = decompose.refine(shape, decompose.random_batch(shape, rank, 2, np.random.default_rng(seed)), LAM, 60)
    return decompose.scheme_of(shape, batch)


PARTS = [STRASSEN, fitted((2, 2, 2), 5), fitted((2, 2, 2), 3), fitted((2, 3, 2), 8), fitted((3, 2, 3), 11)]


@pytest.mark.parametrize("scheme", PARTS, ids=lambda s: s.name)
def test_a_mark_has_the_error_of_its_scheme(scheme: Scheme) -> None:
    assert mark(scheme).cost(LAM) == pytest.approx(score.error(scheme, "bf16") ** 2, rel=1e-9)


@pytest.mark.parametrize("shape", [(4, 4, 2), (2, 3, 4), (4, 2, 3), (5, 2, 2)])
def test_a_front_is_what_its_compositions_are(shape: Shape) -> None:
    found = front(shape, [mark(s) for s in PARTS], LAM)
    costs = [m.cost(LAM) for m in found]
    assert costs == sorted(costs, reverse=True)
    assert all(m.rank <= r for r, m in enumerate(found))
    assert costs[0] == 1
    assert costs[-1] == pytest.approx(0, abs=1e-3)
    composed = [m for m in found if m.leaves()]
    assert composed
    for m in composed[::3]:
        scheme = built(m, shape)
        assert (scheme.shape, scheme.rank) == (shape, m.rank)
        assert score.error(scheme, "bf16") ** 2 == pytest.approx(m.cost(LAM), rel=1e-9, abs=1e-12)


def test_no_product_or_sum_of_two_parts_is_better_than_the_front() -> None:
    found = front((4, 4, 4), [mark(s) for s in PARTS], LAM, own=False)
    twos = [s for s in PARTS if s.shape == (2, 2, 2)]
    for a, b in itertools.product(twos, repeat=2):
        whole = transform.kron(transform.to_ring(a, "R"), transform.to_ring(b, "R"))
        assert found[whole.rank].cost(LAM) <= score.error(whole, "bf16") ** 2 + 1e-12
    flat = front((2, 2, 4), [mark(s) for s in PARTS], LAM, own=False)
    for a, b in itertools.product(twos, repeat=2):
        whole = transform.sum_n(transform.to_ring(a, "R"), transform.to_ring(b, "R"))
        assert flat[whole.rank].cost(LAM) <= score.error(whole, "bf16") ** 2 + 1e-12


def test_a_part_with_more_error_and_less_noise_counts() -> None:
    """Multiplied by an exact scheme with noise, the part that is best at the precision is not the best one."""
    exact, near = Mark((2, 2, 2), 7, 1.0, 1.0, 5.0), Mark((2, 2, 2), 6, 1.0, 1.0, 0.02 / LAM)
    calm = Mark((2, 2, 2), 6, 0.97, 0.97, 2.0)
    assert near.cost(LAM) < calm.cost(LAM)
    found = front((4, 4, 4), [exact, near, calm], LAM)
    best = min(1 - 2 * a.c * exact.c + a.s * exact.s + LAM * a.kappa * exact.kappa for a in (near, calm))
    assert found[42].cost(LAM) == pytest.approx(best, rel=1e-9)
    assert found[42].cost(LAM) < 0.5 * (near.cost(LAM) * exact.kappa)


def test_own_schemes_count_only_where_asked() -> None:
    marks = [mark(PARTS[1])]
    assert front((2, 2, 2), marks, LAM)[5].source is PARTS[1]
    assert front((2, 2, 2), marks, LAM, own=False)[5].source is None
    assert joined((2, 2, 2), 5, LAM, [PARTS[1]]) is None


def test_discover_begins_from_the_composition_of_given_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    path = store.add(PARTS[1], {}, tmp_path / "out", "bf16")
    part = store.load(path)
    result = discover((2, 2, 4), 10, steps=1, workers=1, given=[part], strategies=["numeric"], out=tmp_path / "out")
    assert result.error is not None
    assert result.error**2 <= score.error(part, "bf16") ** 2 * (1 + 1e-6)  # of two halves of that error


def test_the_best_compositions_are_written_with_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    for part in PARTS:
        store.add(part, {}, tmp_path / "mine", "bf16")
    words = ["catalog", "compose", "--shape", "4,4,2", "--count", "6", "--json"]
    found = json.loads(CliRunner().invoke(main, words).stdout)
    assert 1 < len(found["points"]) <= 6
    errors = [point["error"] for point in found["points"]]
    assert errors == sorted(errors, reverse=True)
    for point in found["points"]:
        entry = store.by_id(point["id"])
        assert check_file(entry.path).ok
        scheme = store.scheme_of(entry, (4, 4, 2))
        assert scheme.rank == point["rank"]
        assert score.error(scheme, "bf16") == pytest.approx(point["error"], rel=1e-6)
        assert json.loads(entry.path.read_text())["format"] == "stl-composition/1"
    assert [m.rank for m in pareto((4, 4, 2), "bf16", 6)] == [point["rank"] for point in found["points"]]
    assert len(list((tmp_path / "mine").glob("2x4x4_*.json"))) == len(found["points"])  # and nothing beside them
    assert len(list((tmp_path / "mine").glob("*.json"))) == len(PARTS) + len(found["points"])
    few = json.loads(CliRunner().invoke(main, [*words[:-2], "3", "--replace", "--json"]).stdout)
    left = {store.load(path).id for path in (tmp_path / "mine").glob("2x4x4_*.json")}
    assert left == {point["id"] for point in few["points"]} < {point["id"] for point in found["points"]}
    assert len(list((tmp_path / "mine").glob("*.json"))) == len(PARTS) + 3
    inside = tmp_path / "laid" / "compositions"  # as in the shipped catalog
    inside.mkdir(parents=True)
    CliRunner().invoke(main, [*words, "--out", str(inside.parent)], catch_exceptions=False)
    assert {path.name for path in inside.iterdir()} >= {path.name for path in (tmp_path / "mine").glob("2x4x4_*.json")}
    assert list(inside.parent.iterdir()) == [inside]
    (inside.parent / "schemes").mkdir()
    assert store.add(PARTS[0], {}, inside.parent).parent == inside.parent / "schemes"


@pytest.mark.parametrize("shape", [(8, 8, 8), (10, 10, 10), (1, 64, 64), (2, 8, 16)])
def test_what_is_composed_within_seconds_is_not_refused(shape: Shape) -> None:
    check_work(shape)


@pytest.mark.parametrize("shape", ["16,16,16", "64,64,64", "2,64,64"])
def test_what_would_be_composed_for_long_is_refused_in_one_line(shape: str, tmp_path: Path) -> None:
    words = ["catalog", "compose", "--shape", shape, "--count", "2", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(main, words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: <{shape}> is too large to be composed")
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_an_entry_of_the_shape_is_better_than_is_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    for part in PARTS:
        store.add(part, {}, tmp_path / "mine", "bf16")
    free = pareto((2, 2, 4), "bf16", 40, [tmp_path / "mine"])
    assert [m.rank for m in free if m.exact(LAM)] == [14]
    assert free[-1].rank == 14
    better = transform.sum_n(STRASSEN, STRASSEN)
    store.add(better, {}, tmp_path / "mine", "bf16")
    found = pareto((2, 2, 4), "bf16", 40, [tmp_path / "mine"])
    assert 0 < len(found) < len(free)
    assert [m.rank for m in found] == [m.rank for m in free][:-1]
    worse = fitted((2, 2, 4), 10)  # of one rank, and above the compositions there
    store.add(worse, {}, tmp_path / "mine", "bf16")
    assert pareto((2, 2, 4), "bf16", 40, [tmp_path / "mine"]) == found
    store.add(built(found[3], (2, 2, 4)), {}, tmp_path / "mine", "bf16")
    assert pareto((2, 2, 4), "bf16", 40, [tmp_path / "mine"]) == [*found[:3], *found[4:]]


# -- what is shipped ---------------------------------------------------------------------------------------------------

SHIPPED = [e for e in store.entries([store.shipped_dir()]) if e.path.parent.name == "compositions"]


def test_where_there_are_more_than_asked_for_those_that_lower_the_error_most_are_kept() -> None:
    from stl_search.search.compositions import _saved

    steps = [(1, 0.9), (2, 0.89), (4, 0.5), (5, 0.4), (8, 0.1)]
    assert _saved(steps, {0, 4}, 2) == pytest.approx(np.log(0.9 / 0.5) * 4)  # it serves ranks 4 to 7
    assert _saved(steps, {2}, 1) == pytest.approx(-np.log(0.89) * 2)  # nothing below: the error is 1
    everything = pareto((3, 3, 5), "bf16", 1000)
    few = pareto((3, 3, 5), "bf16", 12)
    assert len(few) == 12 < len(everything)
    lam = 2 * score.relative_rounding("bf16") ** 2

    def at_hand(points: list[Mark]) -> float:
        logs = [min((math.log(p.cost(lam)) for p in points if p.rank <= rank), default=0.0) for rank in range(1, 46)]
        return sum(logs)

    even = [everything[i] for i in np.linspace(0, len(everything) - 1, 12).round().astype(int)]
    assert at_hand(few) < at_hand(even)


@pytest.mark.parametrize("side", [5, 8])
def test_shipped_compositions_are_pareto_optimal_and_at_most_40_a_shape(side: int) -> None:
    found = sorted((e for e in SHIPPED if e.shape == (side,) * 3), key=lambda e: e.rank)
    assert 20 <= len(found) <= 40
    own = [e for e in store.candidates((side,) * 3, ring="R", dirs=[store.shipped_dir()]) if e not in found]
    exact = min(e.rank for e in [*found, *own] if e.E is not None and e.E < 1e-6)
    assert all(e.rank <= exact for e in found)
    for one in found:
        below = [e for e in [*found, *own] if e is not one and e.rank <= one.rank]
        assert all(e.error("bf16") > one.error("bf16") for e in below)


def test_nothing_else_is_shipped_as_a_composition_and_all_parts_are_shipped_schemes() -> None:
    assert {e.shape for e in SHIPPED} == {(5, 5, 5), (8, 8, 8)}
    known = {e.id for e in store.entries([store.shipped_dir()])} - {e.id for e in SHIPPED}

    def ids(part: str | dict[str, Any]) -> set[str]:
        return {part} if isinstance(part, str) else set().union(*map(ids, part.get("parts", [])))

    for entry in SHIPPED:
        found = ids(json.loads(entry.path.read_text()))
        assert found
        assert found <= known


def expected(part: str | dict[str, Any], by_id: dict[str, store.Entry]) -> tuple[float, float, float]:
    """(c, s, kappa) by the rules of composition, from what the parts claim: c = <T, S>/mkn, s = |S|^2/mkn."""
    if isinstance(part, str):
        m = mark(store.scheme_of(by_id[part]))
        return m.c, m.s, m.kappa
    if part["op"] == "classical":
        share = part["rank"] / np.prod(part["shape"])
        return share, share, share
    values = np.array([expected(p, by_id) for p in part["parts"]])
    if part["op"] == "kron":
        return tuple(values.prod(axis=0))
    volumes = np.array([np.prod(shape) for shape in part["shapes"]], dtype=float)
    return tuple(volumes @ values / volumes.sum())


def test_figures_of_shipped_compositions_follow_from_their_parts() -> None:
    by_id = {e.id: e for e in store.entries([store.shipped_dir()])}
    for entry in SHIPPED:
        c, s, kappa = expected(json.loads(entry.path.read_text()), by_id)
        assert (entry.E, entry.kappa) == pytest.approx((1 - 2 * c + s, kappa), rel=1e-7, abs=1e-11)


@pytest.mark.parametrize("side", [5, 8])
def test_shipped_compositions_verify_and_multiply(side: int) -> None:
    found = sorted((e for e in SHIPPED if e.shape == (side,) * 3), key=lambda e: e.rank)
    for entry in found[:: len(found) // 2]:
        checked = check_file(entry.path)
        assert checked.ok, checked.reason
    entry = found[len(found) // 2]
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((24 * side, 20 * side)), rng.standard_normal((20 * side, 24 * side))
    c = amm(a, b, encoder=str(entry.path))
    error = np.linalg.norm(c - a @ b) / np.linalg.norm(a @ b)
    assert error == pytest.approx(entry.error("fp64"), rel=0.1)
