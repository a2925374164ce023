"""The table of best known ranks, and what the catalogs hold against it."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from stl_search import known, transform
from stl_search.catalog import store
from stl_search.cli import main
from stl_search.errors import UsageError
from stl_search.scheme import Scheme
from stl_search.search import standing
from stl_search.search.bounds import lower_bound, reached_rank
from stl_search.search.constructions import simplex

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalog beside an empty shipped one; the user's folder is returned."""
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    return tmp_path / "mine"


def test_every_shape_that_is_compared_is_listed_over_every_ring() -> None:
    for shape in (*standing.sorted_shapes(1, 5), *standing.COMPARED):
        assert all(known.rank(shape, ring) is not None for ring in known.RINGS), shape
    assert known.rank((2, 2, 9), "Z") is None
    assert known.border((2, 2, 2)) is None


def test_what_holds_over_a_ring_holds_over_larger_ones_and_no_bound_is_broken() -> None:
    for shape in known.shapes():
        z2, zt, z, q = (known.rank(shape, ring).rank for ring in known.RINGS)
        assert max(z2, q) <= z <= zt <= math.prod(shape)
        assert all(lower_bound(shape, ring).rank <= known.rank(shape, ring).rank for ring in known.RINGS)
        edge = known.border(shape)
        assert edge is None or max(shape[0] * shape[1], shape[1] * shape[2]) <= edge.rank < q
        assert reached_rank(shape) == zt
        if shape[0] == 1:
            assert {z2, zt, z, q} == {shape[1] * shape[2]}
        if shape[0] == 2 and shape != (2, 4, 5):  # Hopcroft and Kerr 1971: ceil((3kn + max(k, n)) / 2)
            assert {z2, zt, z, q} == {-(-(3 * shape[1] * shape[2] + shape[2]) // 2)}


def test_every_rank_has_a_source_and_every_source_a_use() -> None:
    cited = {known.rank(shape, ring).source for shape in known.shapes() for ring in known.RINGS}
    cited |= {edge.source for edge in map(known.border, known.shapes()) if edge is not None}
    assert cited == set(known.sources())


def test_the_order_of_sides_does_not_matter_and_odd_rings_are_refused() -> None:
    assert known.rank((5, 2, 4), "Q") == known.rank((2, 4, 5), "Q") == known.rank([4, 5, 2], "Q")
    with pytest.raises(UsageError, match="no ranks are listed over R; known rings: Z2, ZT, Z, Q"):
        known.rank((2, 2, 2), "R")


def test_the_document_is_the_one_that_the_data_give() -> None:
    text = (ROOT / "docs" / "known_ranks.md").read_text(encoding="utf-8")
    assert text == standing.markdown(), "stale: stl-search catalog compare --markdown docs/known_ranks.md"


def test_an_entry_counts_where_its_coefficients_can_be_read(home: Path) -> None:
    strassen = simplex(2)
    u, v, w = (f.astype(object) for f in strassen.factors)
    third = Scheme((2, 2, 2), "Q", u * 3, v * Fraction(1, 3), w)
    laderman_like = simplex(3)  # rank 25, ternary
    modulo = transform.to_ring(transform.extend(strassen, (2, 3, 2)), "Z2")
    for scheme in (third, laderman_like, modulo):
        store.add(scheme, {}, home)
    table = standing.compare([(2, 2, 2), (2, 2, 3), (3, 3, 3), (4, 4, 4)])
    assert {ring: str(cell) for ring, cell in table[2, 2, 2].items()} == {
        "Z2": "7", "ZT": "- (7)", "Z": "- (7)", "Q": "7",
    }  # fmt: skip
    assert {ring: str(cell) for ring, cell in table[2, 2, 3].items()} == {  # held as <2,3,2>
        "Z2": "11", "ZT": "- (11)", "Z": "- (11)", "Q": "- (11)",
    }  # fmt: skip
    assert {str(cell) for cell in table[3, 3, 3].values()} == {"25 (23, +2)"}
    assert table[4, 4, 4]["Q"].gap is None


def test_an_even_denominator_does_not_count_modulo_2(home: Path) -> None:
    u, v, w = (f.astype(object) for f in simplex(2).factors)
    store.add(Scheme((2, 2, 2), "Q", u * 2, v * Fraction(1, 2), w), {}, home)
    row = standing.compare([(2, 2, 2)])[2, 2, 2]
    assert (row["Q"].ours, row["Z2"].ours) == (7, None)


def test_a_file_that_does_not_prove_does_not_count(home: Path) -> None:
    path = store.add(simplex(2), {}, home)
    text = json.loads(path.read_text())
    text["u"][0][0] = 1 - text["u"][0][0]
    path.write_text(json.dumps(text))
    assert standing.compare([(2, 2, 2)])[2, 2, 2]["ZT"].ours is None


def test_compare_marks_gaps_and_says_what_is_better(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(simplex(3), {}, home)
    result = CliRunner().invoke(main, ["catalog", "compare"])
    assert result.exit_code == 0
    assert "25 (23, +2)" in result.stdout
    assert "0 at the best known, 4 behind, 80 none" in result.stdout
    assert "BETTER" not in result.stdout
    monkeypatch.setattr(known, "rank", lambda shape, ring: known.Known(26, "laderman-1976"))
    result = CliRunner().invoke(main, ["catalog", "compare"])
    assert "25 (26, -1)" in result.stdout
    assert "BETTER THAN KNOWN: <3,3,3> over ZT in 25, best known 26: " in result.stdout
    found = json.loads(CliRunner().invoke(main, ["catalog", "compare", "--json"]).stdout)
    assert {(tuple(one["shape"]), one["ring"], one["gap"]) for one in found["improvements"]} == {
        ((3, 3, 3), ring, -1) for ring in known.RINGS
    }
    assert len(found["shapes"]) == 21
    assert set(found["shapes"][0]["rings"]) == set(known.RINGS)


def test_the_document_cannot_be_written_to_a_folder(home: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["catalog", "compare", "--markdown", str(tmp_path / "no" / "file")])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
