"""`stl-search groups tpp | schemes | atlas`: one JSON object or one line of error, and files that verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stl_search import catalog, groups
from stl_search.catalog.record import check_file
from stl_search.cli import main


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert result.stderr == ""
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_triples_of_all_groups_of_some_orders() -> None:
    found = run_json("groups", "tpp", "--order", "5-8", "--shape", "2,2,2", "--steps", 200)
    assert found["shape"] == [2, 2, 2]
    assert found["count"] == 9 == len(found["groups"])
    answers = {g["name"]: g["tpp"] for g in found["groups"]}
    assert answers["S3"] == answers["Q8"] == "found"
    assert answers["C5"] == answers["C6"] == answers["C7"] == "none"
    for g in found["groups"]:
        group = groups.small_group(g["id"])
        assert (g["E"] == 0) == (g["tpp"] == "found")
        assert g["triple"] is None or groups.is_tpp(group, *g["triple"])
    assert found == run_json("groups", "tpp", "--order", "5-8", "--tile", 2, "--steps", 200)
    lines = run("groups", "tpp", "--order", 6, "--tile", 2, "--steps", 200).stdout.splitlines()
    assert lines[0].strip() == "<2,2,2> in 2 groups"
    assert "S3" in lines[2]
    assert "found" in lines[2]


def test_an_answer_does_not_depend_on_which_groups_are_asked_for() -> None:
    options = ("--shape", "2,3,2", "--steps", 100, "--seed", 4)
    wide = run_json("groups", "tpp", "--order", "7-8", *options)["groups"]
    assert wide[1:] == run_json("groups", "tpp", "--order", 8, *options)["groups"]
    assert wide != run_json("groups", "tpp", "--order", "7-8", *options[:-1], 5)["groups"]


def test_a_bound_on_the_search_is_kept() -> None:
    found = run_json("groups", "tpp", "--order", 16, "--tile", 3, "--limit", 1, "--steps", 10)["groups"]
    assert {g["tpp"] for g in found} == {"none", "undecided"}  # abelian groups are excluded by counting


def test_schemes_are_sorted_and_come_back_as_files_that_hold(tmp_path: Path) -> None:
    options = ("--tile", 2, "--max-rank", 7, "--order", "3-5", "--starts", "shipped", "--top", 4, "--seed", 1)
    found = run_json("groups", "schemes", *options, "--out", tmp_path)
    schemes = found["schemes"]
    assert found["dtype"] == "bf16"
    assert len(schemes) == 4
    assert [s["error"] for s in schemes] == sorted(s["error"] for s in schemes)
    for s in schemes:
        assert s["rank"] <= 7
        assert check_file(s["path"]).ok
        kept = catalog.load(s["path"])
        assert (kept.shape, kept.rank, kept.id) == ((2, 2, 2), s["rank"], s["id"])
        provenance = json.loads(Path(s["path"]).read_text())["provenance"]
        assert provenance["command"].startswith("stl-search groups schemes --shape 2,2,2 --max-rank 7 --order ")
        assert provenance["references"] == [f"{s['name']} ({s['group']})"]
    lines = run("groups", "schemes", *options).stdout.splitlines()
    assert lines[1].split() == ["rank", "E", "kappa", "error", "line", "group", "name", "weights", "blocks"]
    assert len(lines) == 2 + 4


def test_an_atlas_of_few_groups(tmp_path: Path) -> None:
    path = tmp_path / "atlas.md"
    assert run_json("groups", "atlas", "--order", "1-2", "--out", path) == {"path": str(path), "rows": 6}
    text = path.read_text()
    assert f"`stl-search groups atlas --order 1-2 --seed 0 --out {path}`" in text
    assert text.count("| 2.1 | C2 | 2 R | 2 | none |") == 3
    part = tmp_path / "part.md"
    again = run("groups", "atlas", "--order", "2", "--out", part)
    assert again.stdout == f"{part}\n"
    rows = [line for line in part.read_text().splitlines() if line.startswith("| 2.1 ")]
    assert len(rows) == 3
    assert rows == [line for line in text.splitlines() if line.startswith("| 2.1 ")]  # the same again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tpp", "--order", "64", "--tile", "2"), "'64' is not an order"),
        (("tpp", "--order", "3-2", "--tile", "2"), "'3-2' is not an order"),
        (("tpp", "--order", "3"), "give the shape"),
        (("tpp", "--order", "3", "--shape", "2,2"), "'2,2' is not a shape"),
        (("tpp", "--order", "3", "--tile", "40"), "too large for a search of maps"),
        (("schemes", "--tile", "2", "--max-rank", "0"), "0 is not in the range"),
        (("schemes", "--tile", "2"), "Missing option '--max-rank'"),
        (("schemes", "--tile", "40", "--max-rank", "3", "--order", "2"), "too large for a search of maps"),
        (("schemes", "--tile", "2", "--max-rank", "3", "--starts", "all"), "'all' is not one of"),
        (("atlas", "--order", "1", "--out", "no/such/folder/atlas.md"), "cannot be written: No such file"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    result = run("groups", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.lower().startswith("error: ")
    assert words in last
