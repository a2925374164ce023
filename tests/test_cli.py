"""The command line: exit codes, one JSON object or one line of error, and every option handed on as it was given."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stl_search import catalog, score, transform
from stl_search.catalog import store
from stl_search.cli import duration, main, sides
from stl_search.errors import CatalogError, NotFoundError, StlError
from stl_search.kernels.plan import Plan
from stl_search.runtime import calibrate
from stl_search.scheme import Scheme, dump_scheme_object
from stl_search.search.symmetry import action
from stl_search.search.symmetry_gf2 import gf2_action
from stl_search.testing import STRASSEN

MODULO_2 = Scheme((2, 2, 2), "Z2", *(f % 2 for f in STRASSEN.factors))
HALF = Scheme((2, 2, 2), "R", *(f[:4] * 0.9 for f in transform.classical((2, 2, 2)).as_float()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalog beside an empty shipped one; the user's folder is returned."""
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    return tmp_path / "mine"


@pytest.fixture
def quickly_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the machine does is measured on small matrices, and forgotten again: in full it takes seconds where nothing
    else runs, minutes beside other tests."""
    monkeypatch.setattr(calibrate, "cache_dir", lambda: tmp_path / "rates")
    monkeypatch.setattr(calibrate, "SIZES", {"cpu": (16, 32)})
    monkeypatch.setattr(calibrate, "SMALLEST", 16)
    monkeypatch.setattr(calibrate, "ENCODED", {"cpu": 64})
    monkeypatch.setattr(calibrate, "SETTLE", 0.0)
    calibrate._rates.cache_clear()
    yield
    calibrate._rates.cache_clear()


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The one object that a command prints on stdout with --json; nothing may be there beside it."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.stderr
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def one_line_error(result: Result, code: int = 2) -> str:
    """The error that a command ended with: one line on stderr, nothing on stdout."""
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# -- verify ------------------------------------------------------------------------------------------------------------


def record(scheme: Scheme = STRASSEN, **changes: Any) -> dict[str, Any]:
    return catalog.Record.prove(scheme, {"strategy": "test"}).to_json() | changes


def text(scheme: Scheme = STRASSEN, **changes: Any) -> str:
    return dump_scheme_object(record(scheme, **changes))


WRONG = [row[:] for row in record()["u"]]
WRONG[0][3] = 0
FIGURES = record(HALF)["figures"]
# name: (content, exit code, what the reason must say)
FILES: dict[str, tuple[str | bytes | None, int, str]] = {
    "exact": (text(), 0, ""),
    "approximate": (text(HALF), 0, ""),
    "modulo 2": (text(MODULO_2), 0, ""),
    "bare": (dump_scheme_object(STRASSEN.to_json()), 0, ""),
    "one coefficient": (text(u=WRONG), 1, "coefficient of A[1,1] B[0,0] in C[0,0] is -1, must be 0"),
    "outside its ring": (text(u=[[2, 0, 0, 1], *WRONG[1:]]), 1, "u[0][0] = 2 is not in ZT"),
    "claimed id": (text(id="0" * 64), 1, "id is 0000"),
    "claimed E": (text(HALF, figures=FIGURES | {"E": FIGURES["E"] * 0.99}), 1, "figures.E is"),
    "claimed kappa": (text(HALF, figures=FIGURES | {"kappa": 1.0}), 1, "figures.kappa is 1.0"),
    "truncated": (text()[:300], 2, "not JSON"),
    "NaN": (text().replace("[1,0,0,1]", "[1,0,0,NaN]", 1), 2, "NaN"),
    "huge": (b" " * ((16 << 20) + 1), 2, "larger than 16 MiB"),
    "wrong shape": (text(shape=[2, 3, 2]), 2, "u[0] has 4 entries, shape 2,3,2 asks for 6"),
    "unknown ring": (text(ring="GF4"), 2, "unknown ring 'GF4'; known: Z2, ZT, Z, Q, R, C"),
    "rank mismatch": (text(rank=8), 2, "u has 7 rows, rank says 8"),
    "a decimal that is the integer": (text().replace("[1,0,0,1]", "[1.0,0,0,1e0]", 1), 0, ""),
    "a decimal near the integer": (
        text().replace("[1,0,0,1]", "[1.00000000000000000001,0,0,1]", 1),
        1,
        "u[0][0] = 100000000000000000001/100000000000000000000 is not in ZT",
    ),
    "a decimal near zero": (text().replace("[1,0,0,1]", "[1,0,1e-400,1]", 1), 1, "is not in ZT"),
    "a decimal that would fill the memory": (
        text().replace("[1,0,0,1]", "[1,0,1e-999999999,1]", 1),
        2,
        "u[0][2]: 1e-999999999 has more than 1000 digits",
    ),
    "whole surrogate pair": (text(provenance={"strategy": "x"}).replace('"x"', r'"\ud83d\ude00"'), 0, ""),
    "half a surrogate pair": (
        text(provenance={"strategy": "x"}).replace('"x"', r'"\\ud83d \ud800"'),
        2,
        "half of a surrogate pair, \\ud800",
    ),
    "zero denominator": (text(ring="Q", u=[["1/0", 0, 0, 1], *WRONG[1:]]), 2, "zero denominator"),
    "not UTF-8": (text().encode("utf-16"), 2, "not UTF-8"),
    "pickled": (pickle.dumps(record()), 2, "not UTF-8"),
    "absent": (None, 2, "No such file"),
}


def put(folder: Path, name: str) -> Path:
    content = FILES[name][0]
    path = folder / f"{name}.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", FILES)
def test_verify_gives_the_code_and_one_line(name: str, tmp_path: Path) -> None:
    _, code, reason = FILES[name]
    path = put(tmp_path, name)
    result = run("verify", path)
    assert result.exit_code == code
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{path}: ")
    assert reason in line
    assert result.stderr == ""
    (found,) = run_json("verify", path, code=code)["files"]
    assert (found["path"], found["ok"], found["code"]) == (str(path), code == 0, code)
    assert {"path", "ok", "ring", "E", "reason"} <= set(found)
    assert (found["reason"] is None) == (code == 0)
    assert reason in (found["reason"] or "")
    assert run("catalog", "show", path).exit_code == code


def test_verify_checks_every_file_and_returns_the_largest_code(tmp_path: Path) -> None:
    paths = [put(tmp_path, name) for name in ("truncated", "exact", "one coefficient", "approximate")]
    found = run_json("verify", *paths, code=2)["files"]
    assert [f["code"] for f in found] == [2, 0, 1, 0]
    assert [f["ring"] for f in found] == [None, "ZT", "ZT", "R"]
    assert [f["E"] for f in found] == [None, 0.0, None, pytest.approx(score.expected_error(HALF))]
    assert run("verify", *paths[1:]).exit_code == 1
    assert run("verify", paths[1], paths[3]).exit_code == 0


def test_verify_names_a_file_with_an_odd_name_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b.json"
    path.write_text("{")
    assert len(run("verify", path).stdout.splitlines()) == 1


@pytest.mark.parametrize("name", ["exact", "one coefficient", "pickled", "absent"])
def test_verify_as_a_process(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stl_search", "verify", str(put(tmp_path, name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == FILES[name][1]
    assert FILES[name][2] in done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


# -- catalog -----------------------------------------------------------------------------------------------------------


def test_add_list_best_frontier_show_remove(home: Path, tmp_path: Path) -> None:
    for name in ("exact", "approximate", "modulo 2"):
        put(tmp_path, name)
    files = [tmp_path / f"{name}.json" for name in ("exact", "approximate", "modulo 2")]
    added = run_json("catalog", "add", *files, "--dtype", "bf16")["added"]
    assert [Path(p).name.rpartition("_")[0] for p in added] == ["2x2x2_r7_ZT", "2x2x2_r4_R_bf16", "2x2x2_r7_Z2"]
    assert all(Path(p).parent == home for p in added)
    half = catalog.load(added[1])

    entries = run_json("catalog", "list")["entries"]
    assert [(e["rank"], e["ring"]) for e in entries] == [(4, "R"), (7, "Z2"), (7, "ZT")]
    assert [e["strategy"] for e in entries] == ["test"] * 3
    assert [e["E"] for e in entries] == [pytest.approx(score.expected_error(half)), None, 0.0]
    assert len(run_json("catalog", "list", "--ring", "Z")["entries"]) == 1
    assert len(run_json("catalog", "list", "--max-rank", 4, "--tile", 2)["entries"]) == 1
    assert run_json("catalog", "list", "--tile", 3)["entries"] == []

    best = run_json("catalog", "best", "--tile", 2, "--rank", 4, "--dtype", "fp16")
    assert (best["path"], best["dtype"], best["rank"]) == (added[1], "fp16", 4)
    assert best["error"] == pytest.approx(score.error(half, "fp16"))

    found = run_json("catalog", "frontier", "--shape", "2x2x2", "--dtype", "fp8_e4m3")
    assert (found["shape"], found["dtype"]) == ([2, 2, 2], "fp8_e4m3")
    assert [(p["rank"], p["id"], p["path"]) for p in found["points"]] == [
        (4, half.id, added[1]),
        (7, STRASSEN.id, added[0]),
    ]
    for point, scheme in zip(found["points"], (half, STRASSEN), strict=True):
        assert point["E"] == pytest.approx(score.expected_error(scheme), rel=1e-9, abs=1e-30)
        assert point["kappa"] == pytest.approx(score.noise_gain(scheme))
        assert point["error"] == pytest.approx(score.error(scheme, "fp8_e4m3"))

    for name in (STRASSEN.id[:8], f"catalog:id/{STRASSEN.id}", "catalog:best?shape=2,2,2&rank=7", added[0]):
        shown = run_json("catalog", "show", name)
        assert Scheme.from_json(shown) == STRASSEN
        assert shown["provenance"]["strategy"] == "test"

    assert run_json("catalog", "remove", half.id[:8])["removed"] == added[1]
    assert not Path(added[1]).exists()
    assert "no entry with id" in one_line_error(run("catalog", "remove", half.id[:8]))
    assert run_json("catalog", "path")["path"] == str(home)
    assert run_json("catalog", "path", "--shipped")["path"] == str(store.shipped_dir())


def test_the_tables_for_people_hold_the_same_numbers(home: Path) -> None:
    path = catalog.add(STRASSEN, {"strategy": "by hand", "seed": 5})
    catalog.add(HALF, {})
    for arguments in (("list",), ("frontier", "--tile", 2)):
        lines = run("catalog", *arguments).stdout.splitlines()
        (row,) = [line for line in lines if STRASSEN.id[:8] in line]
        assert f" {score.error(STRASSEN, 'bf16'):.4g} " in row
        assert " 7 " in row
    assert f"{score.line((2, 2, 2), 4):.4g}" in run("catalog", "frontier", "--tile", 2).stdout
    best = run("catalog", "best", "--tile", 2, "--rank", 7).stdout.splitlines()
    assert best[1:] == ["additions 18, bytes for each entry of A, B, C 9 9 16", str(path)]
    shown = run("catalog", "show", STRASSEN.id[:6]).stdout
    for part in (STRASSEN.id, "exact over Z2, ZT, Z, Q", "by hand", "additions", "18"):
        assert part in shown


def test_what_files_say_cannot_steer_the_terminal(home: Path) -> None:
    catalog.add(STRASSEN, {"strategy": "\x1b[2Jgone", "command": "two\nlines"})
    for arguments in (("list",), ("show", STRASSEN.id[:8])):
        shown = run("catalog", *arguments).stdout
        assert "\x1b" not in shown
        assert "\\x1b[2Jgone" in shown
    assert "two\\nlines" in shown


def test_add_refuses_a_file_whose_claims_fail_and_keeps_what_went_before(home: Path, tmp_path: Path) -> None:
    result = run("catalog", "add", put(tmp_path, "exact"), put(tmp_path, "one coefficient"))
    assert result.exit_code == 1
    assert "one coefficient.json: " in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(list(home.iterdir())) == 1
    assert "no file" in one_line_error(run("catalog", "add", tmp_path / "absent.json"))
    assert "no file" in one_line_error(run("catalog", "add", "catalog:best?shape=2,2,2"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["catalog", "best", "--tile", 2], "no <2,2,2> scheme; none of this shape"),
        (["catalog", "best", "--tile", 2, "--ring", "Z2"], "over Z2 do not run"),
        (["catalog", "show", "catalog:best?rank=7"], "needs a shape"),
        (["catalog", "show", "catalog:best?size=7"], "unknown key 'size'; known: shape"),
        (["catalog", "show", "abcdef"], "no entry with id abcdef"),
        (["catalog", "show", "nothing.json"], "no file"),
        (["catalog", "remove", "xyz"], "hexadecimal"),
        (["export", "nothing.json", "out.txt"], "no file"),
        (["import", "nothing.txt"], "nothing.txt"),
    ],
)
def test_errors_are_one_line(arguments: list[object], part: str, home: Path) -> None:
    assert part in one_line_error(run(*arguments))
    assert part in one_line_error(run(*arguments, "--json"))


# -- foreign formats ---------------------------------------------------------------------------------------------------


def test_export_and_import_of_a_rectangular_scheme(home: Path, tmp_path: Path) -> None:
    scheme = transform.classical((2, 3, 1))
    catalog.add(scheme, {})
    file = tmp_path / "out.txt"
    found = run_json("export", scheme.id[:8], file, "--format", "products")
    assert found == {"id": scheme.id, "written": [str(file)]}
    out = tmp_path / "other"
    (imported,) = run_json("import", file, "--out", out)["imported"]
    assert (imported["shape"], imported["rank"]) == ([2, 3, 1], 6)
    assert catalog.load(imported["path"]) == scheme
    (entry,) = catalog.entries([out])
    assert entry.provenance["strategy"] == "import"
    assert entry.provenance["references"] == ["out.txt"]
    assert run("import", file, "--out", out).stdout.startswith("out.txt: <2,3,1> rank 6 over ZT: ")


def test_import_takes_a_border_rank_file_at_x_or_for_a_dtype(home: Path, tmp_path: Path) -> None:
    # ((a11 + x a12) (b21 + x b11) - a11 b21) / x = a11 b11 + a12 b21 + x a12 b11: one term too much, E = x^2 / 2
    file = tmp_path / "border"
    file.write_text("1 1\nx 0\n#\nx 0\n1 1\n#\nxi -xi\n")
    assert "x" in one_line_error(run("import", file, "--format", "arbenson"))
    errors = []
    for options in (("--x", "1/8"), ("--x", "0.03125"), ("--dtype", "bf16")):
        (imported,) = run_json("import", file, "--format", "arbenson", *options)["imported"]
        assert (imported["shape"], imported["rank"]) == ([1, 2, 1], 2)
        errors.append(score.error(catalog.load(imported["path"]), "bf16"))
        if options[0] == "--x":
            assert score.expected_error(catalog.load(imported["path"])) == pytest.approx(
                float(Fraction(options[1])) ** 2 / 2
            )
    assert errors[2] < min(errors[:2])
    assert "_bf16_" in imported["path"]
    assert "must be a number" in run("import", file, "--x", "tiny").stderr
    assert "not both" in run("import", file, "--x", "1", "--dtype", "bf16").stderr


# -- discover ----------------------------------------------------------------------------------------------------------

FOUND = {
    "found": True, "path": "/somewhere/2x2x2_r4.json", "id": "ab" * 32, "shape": [2, 2, 2], "rank": 4, "ring": "R",
    "dtype": "bf16", "E": 0.4486, "error": 0.67, "kappa": 67.1, "strategy": "numeric", "seconds": 3.96, "jobs": 8,
    "floor": 0.25, "line": 0.5, "truncation": False, "reason": "", "catalog_better": None, "coefficients": "any",
    "unrestricted": None, "device": "cpu", "measured": None,
}  # fmt: skip


class Search:
    """Stands in for the portfolio: records how it was called and answers with a fixed object."""

    def __init__(self, answer: dict[str, Any] | BaseException) -> None:
        self.answer = answer
        self.called: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **options: Any) -> Search:
        self.called, self.options = arguments, options
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self

    def to_json(self) -> dict[str, Any]:
        assert isinstance(self.answer, dict)
        return self.answer

    @property
    def exit_code(self) -> int:
        return 0 if self.to_json()["found"] else 3


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(answer: dict[str, Any] | BaseException) -> Search:
        stand_in = Search(answer)
        monkeypatch.setattr("stl_search.search.portfolio.discover", stand_in)
        return stand_in

    return install


def test_discover_hands_every_option_on(search: Any, tmp_path: Path) -> None:
    stand_in = search(FOUND)
    run_json(
        "discover", "--shape", "2,3,4", "--rank", 20, "--ring", "Q", "--dtype", "fp16", "--time", "30m", "--seed", 7,
        "--workers", 3, "--strategy", "numeric", "--strategy", "deflate", "--symmetry", "C2",
        "--coefficients", "sparse", "--starts", "catalog", "--device", "cpu",
        "--out", tmp_path, "--fresh",
    )  # fmt: skip
    assert stand_in.called == ((2, 3, 4), 20)
    assert stand_in.options == {
        "ring": "Q", "dtype": "fp16", "time": 1800.0, "steps": None, "seed": 7, "workers": 3,
        "strategies": ("numeric", "deflate"), "symmetry": "C2", "coefficients": "sparse", "starts": "catalog",
        "out": str(tmp_path), "fresh": True,
        "given": [], "progress": None, "device": "cpu",
    }  # fmt: skip


def test_discover_defaults(search: Any) -> None:
    stand_in = search(FOUND)
    run_json("discover", "--tile", 4, "--rank", 12)
    assert stand_in.called == ((4, 4, 4), 12)
    assert stand_in.options == {
        "ring": "R", "dtype": "bf16", "time": 60.0, "steps": None, "seed": 0, "workers": None,
        "strategies": (), "symmetry": None, "coefficients": "any", "starts": "none",
        "given": [], "out": None, "fresh": False,
        "progress": None, "device": "auto",
    }  # fmt: skip
    run_json("discover", "--tile", 4, "--rank", 12, "--steps", 5)
    assert (stand_in.options["time"], stand_in.options["steps"]) == (None, 5)


def test_discover_accepts_exactly_what_the_search_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    from stl_search.search import portfolio

    signature = inspect.signature(portfolio.discover)
    stand_in = Search(FOUND)
    monkeypatch.setattr(portfolio, "discover", stand_in)
    run_json("discover", "--tile", 2, "--rank", 7)
    bound = signature.bind(*stand_in.called, **stand_in.options)
    bound.apply_defaults()
    assert set(bound.arguments) == {"shape", "rank", "wanted", *stand_in.options}  # ``wanted`` is asked of callers only


def test_discover_prints_the_object_and_returns_the_code(search: Any) -> None:
    search(FOUND)
    assert run_json("discover", "--tile", 2, "--rank", 4) == FOUND
    search(FOUND | {"found": False})
    run_json("discover", "--tile", 2, "--rank", 4, code=3)


def test_discover_shows_the_floor_and_the_line_beside_the_find(search: Any) -> None:
    search(FOUND)
    lines = run("discover", "--tile", 2, "--rank", 4).stdout.splitlines()
    assert lines[0].startswith("<2,2,2> rank 4 over R, bf16")
    rows = {line.split()[0]: line for line in lines}
    assert {"0.4486", "0.67", "67.1"} <= set(rows["numeric"].split())
    assert {"0.5", "0.7071"} <= set(rows["line:"].split())
    assert {"0.25"} <= set(rows["floor:"].split())
    assert lines[-2:] == ["found", FOUND["path"]]
    better = {"id": "cd" * 32, "path": "/elsewhere.json", "error": 0.6}
    search(FOUND | {"found": False, "truncation": True, "reason": "no better", "catalog_better": better})
    lines = run("discover", "--tile", 2, "--rank", 4).stdout.splitlines()
    assert "not found: a truncation: it ties the line; no better" in lines
    assert lines[-1] == "the catalog already holds better: error 0.6: /elsewhere.json"
    none = dict.fromkeys(("E", "error", "kappa", "floor", "line"))
    search(FOUND | none | {"ring": "ZT", "rank": 7})
    lines = run("discover", "--tile", 2, "--rank", 7).stdout.splitlines()
    assert lines == ["<2,2,2> rank 7 over ZT, exact: numeric, 4.0 s", "found", FOUND["path"]]
    search(FOUND | none | {"found": False, "path": None, "strategy": None, "reason": "impossible: why"})
    assert run("discover", "--tile", 2, "--rank", 6).stdout.splitlines()[1:] == ["not found: impossible: why"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (NotFoundError("nothing\nthere"), 3, "error: nothing\\nthere"),
        (CatalogError("no room"), 2, "error: no room"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_search_is_one_line_and_a_code(error: BaseException, code: int, line: str, search: Any) -> None:
    search(error)
    result = run("discover", "--tile", 2, "--rank", 4, "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", line + "\n")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rank", 7], "give the shape: --shape M,K,N or --tile T"),
        (["--rank", 7, "--tile", 2, "--shape", "2,2,2"], "not both"),
        (["--tile", 2], "Missing option '--rank'"),
        (["--tile", 2, "--rank", 0], "--rank"),
        (["--tile", 65, "--rank", 1], "--tile"),
        (["--shape", "2,2", "--rank", 1], "write M,K,N"),
        (["--shape", "2,2,65", "--rank", 1], "1..64"),
        (["--tile", 2, "--rank", 7, "--time", "soon"], "write 90, 90s, 30m or 6h"),
        (["--tile", 2, "--rank", 7, "--time", "1m", "--steps", 2], "--time or --steps, not both"),
        (["--tile", 2, "--rank", 7, "--ring", "C"], "'Z2', 'ZT', 'Z', 'Q', 'R'"),
        (["--tile", 2, "--rank", 7, "--dtype", "fp7"], "'fp8_e4m3', 'bf16'"),
        (["--tile", 2, "--rank", 7, "--starts", "here"], "'none', 'shipped', 'catalog'"),
        (["--tile", 2, "--rank", 7, "--ring", "ZT", "--device", "cuda"], "exact and symmetric searches run on the CPU"),
        (["--tile", 2, "--rank", 7, "--strategy", "magic"], "known: "),
        (["--tile", 2, "--rank", 7, "--magic"], "--magic"),
    ],
)
def test_bad_usage_exits_2(arguments: list[object], part: str, home: Path) -> None:
    result = run("discover", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr
    assert not home.exists()


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("30m", 1800), ("6h", 21600), ("0.5", 0.5)]
)
def test_durations(given: str, seconds: float) -> None:
    assert duration(given) == seconds


@pytest.mark.parametrize("given", ["", "0", "0s", "-1", "1d", "m", "1e3", "inf", "nan", "1 m", "1m30s", "1" * 12])
def test_no_durations(given: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        duration(given)


def test_shapes_are_read_with_commas_or_crosses() -> None:
    assert sides("2,3,4") == sides("2x3x4") == (2, 3, 4)
    for given in ("2,3", "2;3;4", "2,3,4,5", "a,b,c", "2,3,-4", "2, 3, 4", "²,3,4"):
        with pytest.raises(click.BadParameter, match="write M,K,N"):
            sides(given)


def test_discover_for_real_and_verify_what_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stl_search"]
    options = ["--shape", "1,2,1", "--rank", "2", "--ring", "Z", "--steps", "1", "--workers", "1", "--json"]
    done = subprocess.run(
        [*command, "discover", *options, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["found"], found["shape"], found["rank"], found["E"]) == (True, [1, 2, 1], 2, None)
    assert Path(found["path"]).parent == tmp_path
    assert run("verify", found["path"]).exit_code == 0
    options[3] = "1"
    done = subprocess.run(
        [*command, "discover", *options, "--out", str(tmp_path / "none")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert (found["found"], found["path"], found["id"]) == (False, None, None)
    assert not list(tmp_path.glob("none/*.json"))


def test_ctrl_c_ends_a_search_with_one_line_and_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stl_search", "discover", "--tile", "4", "--rank", "47", "--ring", "Z"]
    done = subprocess.Popen(
        [*command, "--time", "60", "--workers", "2", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # as at a terminal, also where the tests were started in the background of a shell, which ignores it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".journal/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # workers are starting or at work
    os.killpg(done.pid, signal.SIGINT)  # what a terminal does: every process of the group is told
    stdout, stderr = done.communicate(timeout=30)  # returns only when no worker holds the pipes any more
    assert (done.returncode, stdout, stderr) == (130, "", "interrupted\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full is Linux's")
@pytest.mark.parametrize("command", [["--help"], ["catalog", "list"], ["verify", "--json", "exact.json"]])
def test_a_full_disk_is_one_line_and_2(command: list[str], tmp_path: Path) -> None:
    put(tmp_path, "exact")
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "stl_search", *command]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: the output: No space left on device\n")


def test_help_says_which_symmetries_serve_exact_rings_only() -> None:
    told = " ".join(run("discover", "--help").stdout.split())
    alone = re.search("over exact rings also ([^;.]*)", told)[1].split(", ")
    assert len(alone) == 3
    for name in alone:
        assert gf2_action(name, (2, 2, 2)).order > 1
        with pytest.raises(StlError):
            action(name, (2, 2, 2))


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def matrices(tmp_path: Path) -> tuple[Path, Path]:
    """A: (61, 47) and B: (47, 53), Gaussian, float64."""
    rng = np.random.default_rng(0)
    for name, shape in (("A", (61, 47)), ("B", (47, 53))):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal(shape))
    return tmp_path / "A.npy", tmp_path / "B.npy"


@pytest.mark.usefixtures("quickly_measured")
@pytest.mark.parametrize("dtype", [None, "fp64", "fp32", "fp16", "bf16", "fp8_e4m3"])
def test_amm_writes_the_product_and_both_errors(
    dtype: str | None, home: Path, matrices: tuple[Path, Path], tmp_path: Path
) -> None:
    catalog.add(HALF, {})
    half = catalog.load("catalog:2x2x2_r4")
    output = tmp_path / "C"
    options = [] if dtype is None else ["--dtype", dtype]
    found = run_json("amm", *matrices, "-o", output, "--encoder", "catalog:best?shape=2,2,2&rank=4", *options)
    a, b = (np.load(path) for path in matrices)
    c = np.load(output)
    assert (found["path"], found["id"], found["shape"]) == (str(output), half.id, [61, 47, 53])
    assert found["dtype"] == (dtype or "fp64")
    assert found["predicted_error"] == pytest.approx(Plan(half, dtype or "fp64").predicted_error)
    measured = np.linalg.norm(c - a @ b) / np.linalg.norm(a @ b)
    # beside the conversion of A and B, which the printed error leaves out
    assert found["measured_error"] == pytest.approx(measured, rel=3 * score.relative_rounding(dtype or "fp64"))
    # E dominates; of the mean over 61 x 53 entries a few percent remain
    assert found["measured_error"] == pytest.approx(found["predicted_error"], rel=0.1)
    lines = run("amm", *matrices, "-o", output, "--encoder", "catalog:2x2x2_r4", *options).stdout.splitlines()
    assert lines[0] == f"{half.name}: named, so used as asked"
    assert f"{found['predicted_error']:.4g}" in lines[1]
    assert f"{found['measured_error']:.4g}" in lines[2]


def test_amm_without_a_word_is_exact(home: Path, matrices: tuple[Path, Path], tmp_path: Path) -> None:
    catalog.add(HALF, {})
    found = run_json("amm", *matrices, "-o", tmp_path / "C.npy")
    assert (found["scheme"], found["id"]) == ("dense", None)
    assert found["measured_error"] < 1e-14


def claiming(shape: tuple[int, int]) -> bytes:
    """The header of a .npy file of float64, and nothing after it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "No such file"),
        (b"no array", "no .npy file of numbers"),
        (b"", "no .npy file of numbers"),
        (claiming((10**7, 10**7)), "needs more memory than there is"),
        (claiming((10**12, 10**12)), "no .npy file of numbers: array is too big"),
        (np.zeros((2, 2, 2)), "has 3 dimensions, must be a matrix"),
        (np.zeros((3, 2)), "inner sizes differ"),
        (np.array([[object()]]), "no .npy file of numbers: Object arrays cannot be loaded"),
        (np.array([["text"] * 47] * 2), "not numbers"),
    ],
)
def test_amm_refuses_what_is_no_matrix(
    content: Any, part: str, home: Path, matrices: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif content is not None:
        np.save(bad, content, allow_pickle=True)
    error = one_line_error(run("amm", bad, matrices[1], "-o", tmp_path / "C.npy", "--dtype", "fp32"))
    assert part in error
    assert not (tmp_path / "C.npy").exists()


@pytest.mark.parametrize(
    ("value", "dtype", "lost"),
    [(math.nan, None, True), (math.inf, "fp32", True), (1e39, "fp16", True), (1e39, "bf16", True), (1e39, None, False)],
)
def test_amm_prints_null_for_an_error_that_is_not_finite(
    value: float, dtype: str | None, lost: bool, home: Path, matrices: tuple[Path, Path], tmp_path: Path
) -> None:
    a = np.load(matrices[0])
    a[3, 5] = value
    np.save(matrices[0], a)
    options = [] if dtype is None else ["--dtype", dtype]
    found = run_json("amm", *matrices, "-o", tmp_path / "C.npy", *options)
    assert (found["measured_error"] is None) == lost
    assert math.isfinite(found["predicted_error"])


def test_amm_names_a_place_that_cannot_be_written(home: Path, matrices: tuple[Path, Path], tmp_path: Path) -> None:
    error = one_line_error(run("amm", *matrices, "-o", tmp_path / "no" / "C.npy"))
    assert "cannot be written: No such file" in error


# -- the command itself ------------------------------------------------------------------------------------------------


def commands(group: click.Group, *names: str) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*names, name))
        if isinstance(command, click.Group):
            found += commands(command, *names, name)
    return found


@pytest.mark.parametrize("names", commands(main), ids=" ".join)
def test_every_command_explains_itself(names: tuple[str, ...]) -> None:
    result = run(*names, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    leaf: Any = main
    for name in names:
        leaf = leaf.commands[name]
    assert leaf.help
    assert leaf.commands if isinstance(leaf, click.Group) else "--json" in result.stdout


def test_an_unknown_command_and_no_command() -> None:
    assert run("magic").exit_code == 2
    assert "discover" in run().output
    assert run("--version").stdout.startswith("stl-search, version ")


@pytest.mark.usefixtures("quickly_measured")
def test_bench_amm_measures_the_selector_and_every_shipped_scheme_of_a_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("stl_search.bench.amm.ENOUGH", 1e-3)
    result = run("bench", "amm", "--sizes", "48,70", "--schemes", "7", "--repeats", "2", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert {"machine", "threads", "torch", "version", "rows"} <= found.keys()
    count = sum(entry.rank == 7 and entry.ring != "Z2" for entry in store.entries([store.shipped_dir()]))
    assert count
    assert [row["size"] for row in found["rows"]] == [48] * (1 + 2 * count) + [70] * (1 + 2 * count)
    for row in found["rows"]:
        assert row["ok"], row
        assert 0 < row["ratio"]["p20"] <= row["ratio"]["p50"] <= row["ratio"]["p80"]
        assert row["choice"]
    ids = sorted({row["id"] for row in found["rows"] if "id" in row})[:2]
    rows = tmp_path / "rows.jsonl"
    again = ("bench", "amm", "--schemes", ids[0], "--repeats", "1", "--json", "--out", str(rows))
    first = run(*again, "--sizes", "48")
    kept = [json.loads(line) for line in rows.read_text().splitlines()]
    assert json.loads(first.stdout)["rows"] == kept
    assert [(row["size"], row["encoded"], "id" in row) for row in kept] == [
        (48, "none", False),
        (48, "none", True),
        (48, "rhs", True),
    ]
    assert {"bench", "machine", "commit", "torch", "pairs", "choice", "dense"} <= kept[0].keys()
    rows.write_text("".join(json.dumps(row) + "\n" for row in kept[:2]))  # interrupted before the third
    second = run(*again, "--sizes", "40,48")
    after = [json.loads(line) for line in rows.read_text().splitlines()]
    assert after[:2] == kept[:2]
    assert [(row["size"], row["encoded"]) for row in after[2:]] == [
        *((40, "none"), (40, "none"), (40, "rhs")),
        *((48, "none"), (48, "rhs")),  # both of a scheme, since they are measured in turn
    ]
    assert "/6]" in second.stderr
    assert json.loads(second.stdout)["rows"][-1]["ratio"] == after[-1]["ratio"]
    third = run(*again, "--sizes", "40,48")
    assert rows.read_text().splitlines() == [json.dumps(row) for row in after]
    assert [row["size"] for row in json.loads(third.stdout)["rows"]] == [40] * 3 + [48] * 3
    rows.write_text("no rows\n")
    assert run(*again).exit_code == 2
    named = run("bench", "amm", "--sizes", "48", "--schemes", ",".join(i[:8] for i in ids), "--repeats", "1", "--json")
    assert {row["id"] for row in json.loads(named.stdout)["rows"] if "id" in row} == set(ids)
    for bad in (["--sizes", "12,x"], ["--schemes", "some"], ["--schemes", ids[0][:7]], ["--dtype", "fp16"]):
        assert run("bench", "amm", *bad).exit_code == 2
