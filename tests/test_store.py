"""The catalog: one proving door in, sound under two writers, choices by coefficients, and no file that breaks it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stl_search import catalog, score, transform
from stl_search.catalog import store
from stl_search.catalog.record import check_file, read_file
from stl_search.errors import CatalogError, FormatError, StlError, UsageError, VerificationError
from stl_search.scheme import Scheme, dump_scheme_object
from stl_search.testing import STRASSEN

MODULO_2 = Scheme((2, 2, 2), "Z2", *(f % 2 for f in STRASSEN.factors))
COMPLEX = Scheme((2, 2, 2), "C", STRASSEN.u * 1j, STRASSEN.v * -1j, STRASSEN.w)
# Strassen in another basis: exact over Z like the first, noisier.
SKEWED = transform.change_basis(STRASSEN, [[1, 3], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]])


def approximate(rank: int, seed: int = 0, shape: tuple[int, int, int] = (2, 2, 2)) -> Scheme:
    """``rank`` elementary products, slightly off: E is near 1 - r/mkn."""
    rng = np.random.default_rng(seed)
    full = transform.classical(shape)
    return Scheme(shape, "R", *(f[:rank] + 0.01 * rng.standard_normal(f[:rank].shape) for f in full.as_float()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalog beside an empty shipped one; the user's folder is returned."""
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    return tmp_path / "mine"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- the door in -------------------------------------------------------------------------------------------------------


def test_add_proves_tags_and_names(home: Path) -> None:
    path = catalog.add(Scheme((2, 2, 2), "R", *STRASSEN.factors), {"strategy": "test", "seed": 1}, dtype="bf16")
    assert path == home / f"2x2x2_r7_ZT_{STRASSEN.id[:8]}.json"
    assert catalog.load(path) == STRASSEN
    assert read_file(path)["provenance"]["seed"] == 1
    path = catalog.add(approximate(4), {}, dtype="bf16")
    assert path.name.startswith("2x2x2_r4_R_bf16_")
    assert path.stem.endswith(catalog.load(path).id[:8])
    path = catalog.add(approximate(5), {})
    assert path.name == f"2x2x2_r5_R_{catalog.load(path).id[:8]}.json"
    assert catalog.add(MODULO_2, {}).name.startswith("2x2x2_r7_Z2_")
    assert catalog.add(transform.classical((2, 3, 1)), {}, out=home / "deep" / "er").parent == home / "deep" / "er"
    for path in [*home.glob("*.json"), *home.glob("deep/er/*.json")]:
        assert check_file(path).reason is None
    assert not [name for name in names(home) if name.startswith(".")]


def test_a_written_file_has_the_rights_of_any_other(home: Path) -> None:
    path = catalog.add(STRASSEN, {})
    other = home / "other"
    other.write_text("")
    assert path.stat().st_mode == other.stat().st_mode


def test_add_refuses_what_is_false_and_writes_nothing(home: Path) -> None:
    w = STRASSEN.w.copy()
    w[0, 0, 0] = 0
    with pytest.raises(VerificationError, match="coefficient of"):
        catalog.add(Scheme((2, 2, 2), "ZT", STRASSEN.u, STRASSEN.v, w), {})
    with pytest.raises(UsageError, match="unknown dtype 'fp7'; known: fp8_e4m3"):
        catalog.add(STRASSEN, {}, dtype="fp7")
    with pytest.raises(FormatError, match="provenance"):
        catalog.add(STRASSEN, {"seed": {1, 2}})
    assert not home.exists()


def test_add_into_a_place_that_cannot_be_written_is_one_line(home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(CatalogError, match=r"cannot write to .*mine: (File exists|Not a directory)"):
        catalog.add(STRASSEN, {})


def test_what_is_there_is_not_written_again(home: Path) -> None:
    first = catalog.add(STRASSEN, {"strategy": "first"})
    before = first.stat()
    signs = Scheme((2, 2, 2), "Q", -STRASSEN.u[::-1], STRASSEN.v[::-1], -STRASSEN.w[::-1])  # another order and signs
    assert catalog.add(signs, {"strategy": "second"}) == first
    after = first.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert names(home) == [first.name]


def test_a_float_scheme_of_the_catalog_keeps_its_id_wherever_it_is_added(home: Path, tmp_path: Path) -> None:
    for seed in range(12):
        path = catalog.add(approximate(3, seed), {})
        scheme = catalog.load(path)
        assert catalog.add(scheme, {}) == path
        copy = catalog.add(scheme, {}, out=tmp_path / "copy")
        assert copy.name == path.name
        assert catalog.load(copy) == scheme


def test_a_taken_name_is_never_overwritten(home: Path) -> None:
    home.mkdir()
    short = home / f"2x2x2_r7_ZT_{STRASSEN.id[:8]}.json"
    other = transform.classical((1, 1, 2)).to_json()
    short.write_text(dump_scheme_object(other))
    path = catalog.add(STRASSEN, {})
    assert path.name == f"2x2x2_r7_ZT_{STRASSEN.id[:12]}.json"
    assert read_file(short) == other
    assert catalog.add(STRASSEN, {}) == path


def test_a_file_that_only_claims_the_id_does_not_count_as_there(home: Path) -> None:
    home.mkdir()
    forged = STRASSEN.to_json()
    forged["w"][0][0] = 0
    (home / f"2x2x2_r7_ZT_{STRASSEN.id[:8]}.json").write_text(dump_scheme_object(forged))
    path = catalog.add(STRASSEN, {})
    assert catalog.load(path) == STRASSEN
    assert len(names(home)) == 2


WRITER = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from stl_search import catalog, transform
    from stl_search.scheme import Scheme

    out, seed, tag = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    full = transform.classical((2, 2, 2))
    rng = np.random.default_rng(0)
    schemes = [
        Scheme((2, 2, 2), "R", *(f[:r] + 0.1 * rng.standard_normal(f[:r].shape) for f in full.factors))
        for r in range(1, 7)
    ] + [transform.classical((1, 1, n)) for n in range(1, 10)]
    (out.parent / f"ready {tag}").touch()
    while not (out.parent / "go").exists():
        time.sleep(0.001)
    for i in np.random.default_rng(seed).permutation(len(schemes)):
        print(catalog.add(schemes[i], {"strategy": tag * 20000}, out=out).name)
"""


def test_two_writers_at_once_leave_one_whole_file_for_each_scheme(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "catalog"
    code = textwrap.dedent(WRITER)
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(out), seed, tag], stdout=subprocess.PIPE, text=True)
        for seed, tag in (("1", "a"), ("1", "b"))  # the same order: they meet at every file
    ]
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready {tag}").exists() for tag in "ab") and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    seen = 0
    with caplog.at_level(logging.WARNING):
        while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
            seen = max(seen, len(catalog.entries([out])))  # a reader meets no half-written file
    outputs = [set(writer.communicate(timeout=60)[0].split()) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert caplog.records == []
    assert 0 < seen <= 15
    assert outputs[0] == outputs[1] == set(names(out))  # and no drafts are left
    assert len({catalog.load(out / name).id for name in names(out)}) == len(names(out)) == 15
    for name in names(out):
        assert check_file(out / name).reason is None


# -- the index ---------------------------------------------------------------------------------------------------------


def test_a_broken_file_is_skipped_with_one_warning(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = catalog.add(STRASSEN, {})
    for name, content in {"a.json": b"{", "b.json": b"\xff", "c.json": b"[]", "d.json": b'{"format": "other"}'}.items():
        (home / name).write_bytes(content)
    (home / "e.json").mkdir()
    (home / "ignored.txt").write_text("no entry")
    (home / ".hidden.json").write_text("no entry")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [entry.path for entry in catalog.entries()] == [path]
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 5
    for name, message in zip("abcde", messages, strict=True):
        assert f"{name}.json" in message
        assert "\n" not in message
    (home / "a.json").write_text(dump_scheme_object(transform.classical((1, 1, 1)).to_json()))
    assert len(catalog.entries()) == 2  # a mended file is read again


def test_without_logging_the_warning_is_a_line_on_stderr(home: Path) -> None:
    home.mkdir()
    (home / "bad.json").write_text("{")
    code = "from stl_search import catalog; catalog.entries(); catalog.entries()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if "bad.json" in line]
    assert "not JSON" in line


def test_an_entry_works_out_what_its_file_does_not_say(home: Path) -> None:
    home.mkdir()
    obj = approximate(4).to_json()
    del obj["id"]
    (home / "bare.json").write_text(dump_scheme_object(obj))
    (entry,) = catalog.entries()
    assert entry.id == approximate(4).id
    assert score.expected_error(approximate(4)) == pytest.approx(entry.E, rel=1e-12)
    for dtype in score.DTYPES:
        assert entry.error(dtype) == pytest.approx(score.error(approximate(4), dtype), rel=1e-12)


def test_the_same_id_in_two_folders_is_listed_once(home: Path) -> None:
    mine = catalog.add(STRASSEN, {})
    shipped = catalog.add(STRASSEN, {}, out=store.shipped_dir() / "schemes")
    assert mine != shipped
    assert [entry.path for entry in catalog.entries()] == [shipped]
    assert [entry.path for entry in catalog.entries([home])] == [mine]


@pytest.mark.parametrize("name", ["1", "z"])
def test_a_forged_copy_hides_no_sound_one(name: str, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever file comes first, and whatever the forged one claims beside the id."""
    sound = catalog.add(STRASSEN, {})
    obj = read_file(sound)
    for change in ({"u": [[0, 0, 0, 0], *obj["u"][1:]]}, {"shape": [2, 3, 2]}, {"figures": {"E": 0.5, "kappa": 1.0}}):
        forged = home / f"{name}_{len(list(home.iterdir()))}.json"
        forged.write_text(dump_scheme_object(obj | change))
    with caplog.at_level(logging.WARNING):
        assert [entry.path for entry in catalog.entries()] == [sound]
        assert catalog.load(f"catalog:id/{STRASSEN.id}") == STRASSEN
        assert catalog.best((2, 2, 2), rank=7).path == sound
    assert len(caplog.records) == {"1": 3, "z": 0}[name]


def test_copies_that_differ_in_provenance_alone_are_not_proved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may hold hundreds of them, and the proof of a large composition takes seconds."""
    catalog.add(STRASSEN, {"seed": 1}, out=store.shipped_dir())
    catalog.add(STRASSEN, {"seed": 2})
    monkeypatch.setattr(store, "_prove", lambda path: pytest.fail("proved"))
    assert len(catalog.entries()) == 1


def test_the_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (store.shipped_dir() / "store.py").is_file()
    monkeypatch.setenv("STL_CATALOG", "~/somewhere")
    assert store.user_dir() == Path("~/somewhere").expanduser()
    monkeypatch.delenv("STL_CATALOG")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store.user_dir().parts[-2:] == ("stl-search", "catalog")


# -- choosing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(home: Path) -> dict[str, Scheme]:
    """Entries of <2,2,2> in every ring, of ranks 4, 6, 7 and 8, and one of <4,2,3>."""
    schemes = {
        "r4": approximate(4),
        "r4 worse": approximate(4, seed=5),
        "r6": approximate(6),
        "strassen": STRASSEN,
        "skewed": SKEWED,
        "modulo 2": MODULO_2,
        "complex": COMPLEX,
        "r8": transform.classical((2, 2, 2)),
        "4x2x3": transform.classical((4, 2, 3)),
    }
    return {name: catalog.load(catalog.add(scheme, {})) for name, scheme in schemes.items()}


def test_best_and_frontier_go_by_the_error_at_the_dtype(filled: dict[str, Scheme]) -> None:
    for dtype in score.DTYPES:
        points = catalog.frontier((2, 2, 2), dtype)
        assert [p.rank for p in points] == [4, 6, 7, 8]
        for point in points:
            rivals = [s for s in filled.values() if s.rank == point.rank and s.ring.name in ("ZT", "Z", "Q", "R")]
            winner = min(rivals, key=lambda s: score.error(s, dtype))
            assert point.entry.id == winner.id
            assert point.error == pytest.approx(score.error(winner, dtype), rel=1e-9)
            assert (point.E, point.kappa) == (point.entry.E, point.entry.kappa)
            assert catalog.best((2, 2, 2), rank=point.rank, dtype=dtype).id == winner.id
        assert catalog.best((2, 2, 2), dtype=dtype).id == filled["r8"].id  # exact, and the quietest of all
    assert catalog.best((2, 2, 2), max_rank=7).id == filled["strassen"].id
    assert catalog.best((2, 2, 2), max_rank=6).id == filled["r6"].id


def test_an_approximate_scheme_can_beat_an_exact_one_where_rounding_is_coarse(home: Path) -> None:
    noisy = transform.change_basis(STRASSEN, [[1, 30], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    calm = transform.to_ring(STRASSEN, "R")
    u = calm.u.copy()
    u[0, 0, 0] += 1e-3
    catalog.add(noisy, {})
    catalog.add(Scheme((2, 2, 2), "R", u, calm.v, calm.w), {})
    assert catalog.best((2, 2, 2), 7, dtype="bf16").ring == "R"
    assert catalog.best((2, 2, 2), 7, dtype="fp64").ring == "Z"


@pytest.mark.parametrize(
    ("ring", "expected"),
    [("ZT", "strassen"), ("Z", "strassen"), ("Q", "strassen"), ("R", "strassen"), ("C", "strassen")],
)
def test_a_ring_is_served_by_the_rings_inside_it(ring: str, expected: str, filled: dict[str, Scheme]) -> None:
    assert catalog.best((2, 2, 2), rank=7, ring=ring).id == filled[expected].id
    found = {e.id for e in catalog.candidates((2, 2, 2), rank=7, ring=ring)}
    inside = {"ZT": {"ZT"}, "Z": {"ZT", "Z"}, "Q": {"ZT", "Z"}, "R": {"ZT", "Z"}, "C": {"ZT", "Z", "C"}}[ring]
    assert found == {s.id for s in filled.values() if s.rank == 7 and s.ring.name in inside}


def test_z2_never_runs_and_c_only_when_asked_for(home: Path) -> None:
    catalog.add(MODULO_2, {})
    catalog.add(COMPLEX, {})
    assert catalog.frontier((2, 2, 2), "bf16") == []
    with pytest.raises(CatalogError, match="no <2,2,2> scheme of rank 7; none of this shape"):
        catalog.best((2, 2, 2), 7)
    with pytest.raises(UsageError, match="over Z2 do not run"):
        catalog.best((2, 2, 2), 7, ring="Z2")
    assert catalog.best((2, 2, 2), 7, ring="C").ring == "C"
    assert [e.ring for e in catalog.candidates(ring="Z2")] == ["Z2"]
    assert catalog.load("catalog:2x2x2_r7_Z2") == MODULO_2  # asked for by name it can be looked at


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 4, 3), (3, 2, 4), (3, 4, 2), (4, 2, 3), (4, 3, 2)])
def test_permuted_shapes_are_served(shape: tuple[int, int, int], filled: dict[str, Scheme]) -> None:
    text = ",".join(map(str, shape))
    scheme = catalog.load(f"catalog:best?shape={text}")
    assert scheme.shape == shape
    assert catalog.Record.prove(scheme, {}).certificate.kind == "exact"
    assert catalog.frontier(shape, "bf16")[0].rank == 24
    name = f"catalog:id/{filled['4x2x3'].id[:10]}?shape={text}"
    assert catalog.load(name) == scheme


def test_an_entry_that_lies_is_dropped_and_the_next_best_served(
    filled: dict[str, Scheme], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = catalog.add(approximate(6, seed=9), {})
    obj = read_file(path)
    obj["figures"] = {"E": 0.0, "kappa": 0.0, "error": dict.fromkeys(score.DTYPES, 0.0)}
    path.write_text(dump_scheme_object(obj))
    with caplog.at_level(logging.WARNING):
        assert catalog.best((2, 2, 2), rank=6).id == filled["r6"].id
        assert catalog.frontier((2, 2, 2), "fp32")[1].entry.id == filled["r6"].id
    assert len(caplog.records) == 1
    assert "figures.E is 0.0, below the proved" in caplog.records[0].getMessage()
    with pytest.raises(VerificationError, match=r"r6_R_.*: figures.E is 0.0, below the proved"):
        catalog.load(path)


def test_what_is_not_there_says_what_is(filled: dict[str, Scheme]) -> None:
    with pytest.raises(CatalogError, match="no <2,2,2> scheme of rank 5; ranks there: 4, 6, 7, 8"):
        catalog.load("catalog:best?shape=2,2,2&rank=5")
    with pytest.raises(CatalogError, match="of rank at most 6 over Z; ranks there: 7, 8"):
        catalog.best((2, 2, 2), max_rank=6, ring="Z")
    with pytest.raises(CatalogError, match="no <5,5,5> scheme; none of this shape"):
        catalog.best((5, 5, 5))
    with pytest.raises(CatalogError, match=f"no entry named 2x2x2_r9_ZT; near it: .*{STRASSEN.id[:8]}"):
        catalog.load("catalog:2x2x2_r9_ZT")
    with pytest.raises(CatalogError, match="no entry with id"):
        catalog.load("catalog:id/" + "0" * 64)
    with pytest.raises(UsageError, match="4 to 64 hexadecimal digits"):
        catalog.load("catalog:id/xyz")
    with pytest.raises(FormatError, match=r"no file 'nowhere.json'; to choose from the catalog write 'catalog:...'"):
        catalog.load("nowhere.json")
    with pytest.raises(UsageError, match="not int"):
        catalog.load(7)  # type: ignore[arg-type]


def test_load_by_name_id_path_and_scheme(filled: dict[str, Scheme], home: Path) -> None:
    strassen = filled["strassen"]
    stem = f"2x2x2_r7_ZT_{strassen.id[:8]}"
    for spec in (
        f"catalog:id/{strassen.id[:6]}",
        f"catalog:{stem}",
        "catalog:2x2x2_r7_ZT",
        strassen,
        home / f"{stem}.json",
    ):
        assert catalog.load(spec) == strassen
    assert catalog.load(str(home / f"{stem}.json")) == strassen
    assert catalog.load("catalog:2x2x2_r4?dtype=bf16").id == catalog.best((2, 2, 2), 4, dtype="bf16").id
    with pytest.raises(CatalogError, match="not what the rest of the selector asks for"):
        catalog.load(f"catalog:id/{strassen.id}?rank=8")


def test_selectors_are_taken_apart() -> None:
    selector = catalog.parse_selector("catalog:best?shape=2x3x4&max_rank=20&ring=Q&dtype=fp16&rtol=1e-2&speedup=1.5")
    assert selector == catalog.Selector("best", "", (2, 3, 4), None, 20, "Q", "fp16", 0.01, 1.5)
    assert selector.is_open
    assert not catalog.parse_selector("catalog:best?shape=2,3,4&rank=20").is_open
    assert not catalog.parse_selector("catalog:2x2x2_r7").is_open
    assert catalog.parse_selector("catalog:best?shape=2%2C3%2C4").shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("best", "starts with 'catalog:'"),
        ("catalog:", "after 'catalog:' comes best, id/HEX or the name"),
        ("catalog:../secret", "after 'catalog:' comes"),
        ("catalog:best?size=4", "unknown key 'size'; known: shape, rank, max_rank, ring, dtype, rtol, speedup"),
        ("catalog:best?", "unknown key ''"),
        ("catalog:best?rank", "rank needs a value"),
        ("catalog:best?rank=", "rank needs a value"),
        ("catalog:best?rank=7&rank=8", "rank is given twice"),
        ("catalog:best?rank=7&max_rank=8", "rank or max_rank, not both"),
        ("catalog:best?rank=seven", "rank=seven in a selector: must be an integer"),
        ("catalog:best?rank=-1", "must be an integer"),
        ("catalog:best?shape=4", "three integers"),
        ("catalog:best?shape=a,b,c", "must be M,K,N"),
        ("catalog:best?shape=0,1,1", "1..64"),
        ("catalog:best?ring=N", "unknown ring 'N'; known: Z2"),
        ("catalog:best?dtype=fp7", "unknown dtype 'fp7'; known"),
        ("catalog:best?rtol=0", "must be a positive number"),
        ("catalog:best?speedup=nan", "must be a positive number"),
    ],
)
def test_a_wrong_selector_is_one_line(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        catalog.parse_selector(text)


@pytest.mark.parametrize("text", ["catalog:best", "catalog:best?rank=7", "catalog:best?shape=2,2,2&speedup=1.5"])
def test_a_selector_for_a_product_does_not_load_a_scheme(text: str, filled: dict[str, Scheme]) -> None:
    with pytest.raises(UsageError, match=r"needs a shape|choose for a product"):
        catalog.load(text)


# -- compositions ------------------------------------------------------------------------------------------------------


def test_a_composition_is_listed_chosen_proved_and_part_of_others(home: Path) -> None:
    catalog.add(STRASSEN, {})
    squared = transform.kron(STRASSEN, STRASSEN)
    path = catalog.add_composition("kron", [STRASSEN.id, STRASSEN.id], {"strategy": "test"})
    assert path.name == f"4x4x4_r49_ZT_{squared.id[:8]}.json"
    assert set(read_file(path)) & {"u", "v", "w"} == set()
    assert check_file(path).reason is None
    assert catalog.load("catalog:best?shape=4,4,4&rank=49") == squared
    assert catalog.add_composition("kron", [STRASSEN.id, STRASSEN.id], {}) == path
    part = catalog.add_composition("project", [squared.id], {}, rows=[0, 1], cols=[3])
    assert catalog.load(part) == transform.project(squared, rows=[0, 1], cols=[3])
    assert check_file(part).code == 0
    assert catalog.add(squared, {}) == path  # coefficients of what is there as a composition


def test_parts_come_from_the_folders_beside_and_from_the_catalog(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    catalog.add(STRASSEN, {}, out=root / "schemes")
    (root / "compositions").mkdir()
    catalog.add(transform.classical((1, 2, 1)), {})
    ids = [STRASSEN.id, transform.classical((1, 2, 1)).id]
    path = catalog.add_composition("kron", ids, {}, out=root / "compositions")
    assert check_file(path).reason is None
    assert [e.shape for e in catalog.entries([root])] == [(2, 2, 2), (2, 4, 2)]
    obj = read_file(path)
    for key in ("id", "ring", "figures", "certificate"):
        del obj[key]
    bare = root / "compositions" / "bare.json"
    bare.write_text(dump_scheme_object(obj))
    path.unlink()
    (entry,) = [e for e in catalog.entries([root]) if e.path == bare]
    assert entry.id == transform.kron(STRASSEN, transform.classical((1, 2, 1))).id
    assert (entry.ring, entry.rank, entry.E) == ("ZT", 14, 0.0)


def test_missing_parts_and_cycles_are_refused(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CatalogError, match="is in none of the catalog folders"):
        catalog.add_composition("kron", [STRASSEN.id, STRASSEN.id], {})
    home.mkdir()
    claimed = "ab" * 32
    head = {"format": "stl-composition/1", "shape": [2, 4, 2], "rank": 14, "op": "sum_k"}
    path = home / f"2x4x2_r14_ZT_{claimed[:8]}.json"
    path.write_text(json.dumps(head | {"parts": [claimed, claimed], "id": claimed}))
    checked = check_file(path)
    assert checked.code == 2
    assert "the composition contains itself" in (checked.reason or "")
    with caplog.at_level(logging.WARNING):
        assert catalog.entries() == []
    assert len(caplog.records) == 1
    # a chain that never ends: each the sum of the next two, fourteen deep
    catalog.add(STRASSEN, {})
    for i in range(14):
        obj = head | {"parts": [f"{i + 1:02x}" * 32] * 2, "id": f"{i:02x}" * 32}
        (home / f"x_{obj['id'][:8]}.json").write_text(json.dumps(obj))
    checked = check_file(home / f"x_{'00' * 4}.json")
    assert checked.code == 2
    assert "nested deeper than 8" in (checked.reason or "")


def test_a_sound_copy_of_a_part_is_found_behind_a_forged_one(home: Path) -> None:
    catalog.add(STRASSEN, {}, out=store.shipped_dir() / "schemes")
    home.mkdir()
    forged = STRASSEN.to_json()
    forged["w"][0][0] = 0
    (home / f"forged_{STRASSEN.id[:8]}.json").write_text(dump_scheme_object(forged))
    path = catalog.add_composition("sum_k", [STRASSEN.id, STRASSEN.id], {})
    assert catalog.load(path) == transform.sum_k(STRASSEN, STRASSEN)


# -- removing ----------------------------------------------------------------------------------------------------------


def test_remove_takes_only_the_users_own_and_only_one(filled: dict[str, Scheme], home: Path) -> None:
    before = len(names(home))
    gone = catalog.remove(filled["r6"].id[:12])
    assert not gone.exists()
    assert len(names(home)) == before - 1
    with pytest.raises(CatalogError, match="no entry with id"):
        catalog.remove(filled["r6"].id[:12])
    for short in ("", "12", "not hex", "*"):
        with pytest.raises(UsageError, match="hexadecimal"):
            catalog.remove(short)
    shipped = catalog.add(transform.classical((1, 1, 1)), {}, out=store.shipped_dir() / "schemes")
    with pytest.raises(CatalogError, match="comes with the package"):
        catalog.remove(transform.classical((1, 1, 1)).id)
    assert shipped.exists()


def test_an_ambiguous_id_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    for i in range(2):  # claims alone are listed: ids that share their first digits are easily made up
        obj: dict[str, Any] = approximate(4, seed=i).to_json() | {"id": "abcd" + f"{i}" * 60}
        obj["figures"] = {"E": 0.5, "kappa": 1.0}
        (home / f"{i}.json").write_text(dump_scheme_object(obj))
    with pytest.raises(CatalogError, match=r"id abcd is ambiguous: abcd0000.*, abcd1111"):
        catalog.remove("abcd")
    with pytest.raises(VerificationError, match="id is abcd0000"):
        catalog.load("catalog:id/abcd0")
    assert catalog.remove("abcd0").name == "0.json"


# -- what ships --------------------------------------------------------------------------------------------------------

SHIPPED = sorted(p for folder in ("schemes", "compositions") for p in (store.shipped_dir() / folder).glob("*.json"))


def test_something_ships() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_file_holds_and_says_where_it_came_from(path: Path) -> None:
    checked = check_file(path)
    assert checked.reason is None
    assert checked.code == 0
    obj = read_file(path)
    assert obj["id"][:8] == path.stem.rpartition("_")[2][:8]
    assert path.stem.startswith(f"{'x'.join(map(str, obj['shape']))}_r{obj['rank']}_{obj['ring']}_")
    assert set(obj["figures"]) >= {"E", "kappa", "error", "additions", "max_coeff"}
    assert obj["certificate"]["kind"] in ("exact", "residual")
    assert {"command", "strategy", "version"} <= set(obj["provenance"])


def test_fractions_survive_the_file(home: Path) -> None:
    scheme = transform.change_basis(STRASSEN, [[Fraction(2, 3), 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    path = catalog.add(scheme, {})
    assert scheme.ring.name == "Q"
    assert catalog.load(path) == scheme


def test_every_error_is_a_library_error(home: Path) -> None:
    """Files that pass as JSON and mean nothing give StlErrors, never another exception."""
    home.mkdir()
    for obj in ({"format": "stl-scheme/1"}, {"format": "stl-composition/1", "parts": {}}, {"format": ["stl-scheme/1"]}):
        path = home / "odd.json"
        path.write_text(json.dumps(obj))
        with pytest.raises(StlError):
            catalog.load(path)
        assert catalog.entries() == []
