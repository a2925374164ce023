"""Compositions of approximate schemes: figures without forming them, best ones by brute force, in discover."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stl_search import decompose, score, transform
from stl_search.catalog import store
from stl_search.catalog.record import check_file
from stl_search.cli import main
from stl_search.scheme import Scheme, Shape
from stl_search.search.compositions import built, front, joined, mark, pareto
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
    assert [m.rank for m in pareto((4, 4, 2), "bf16", 6)] == [point["rank"] for point in found["points"]]
