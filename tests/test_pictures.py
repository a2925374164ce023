"""Pictures of groups are drawn for real values, complex values and large groups, and bad endings are refused."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from stl_search import groups
from stl_search.bench.pictures import cayley_picture, character_picture
from stl_search.cli import main
from stl_search.errors import UsageError

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml"}


@pytest.mark.parametrize("ending", SIGNATURES)
@pytest.mark.parametrize("name", ["C1", "C3", "Q8", "A5", "48.30"])
def test_both_pictures_are_drawn(tmp_path: Path, name: str, ending: str) -> None:
    group = groups.get(name)
    for draw in (cayley_picture, character_picture):
        path = draw(group, tmp_path / f"{draw.__name__}{ending}")
        assert path.read_bytes().startswith(SIGNATURES[ending])


def test_svg_pictures_carry_no_date(tmp_path: Path) -> None:
    one, two = (character_picture(groups.get("A5"), tmp_path / name).read_text() for name in ("1.svg", "2.svg"))
    assert "<dc:date>" not in one
    assert len(one) == len(two)


def test_a_foreign_ending_and_a_missing_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"c\.txt: a picture ends in \.png"):
        cayley_picture(groups.get("C2"), tmp_path / "c.txt")
    with pytest.raises(UsageError, match="cannot be written"):
        cayley_picture(groups.get("C2"), tmp_path / "nowhere" / "c.png")


def test_groups_on_the_command_line(tmp_path: Path) -> None:
    import json

    listed = json.loads(CliRunner().invoke(main, ["groups", "list", "--order", "16", "--json"]).stdout)
    assert (listed["order"], listed["count"]) == (16, 14)
    assert {"name", "id", "abelian", "wedderburn"} <= set(listed["groups"][0])
    assert sum(g["abelian"] for g in listed["groups"]) == 5
    ranged = json.loads(CliRunner().invoke(main, ["groups", "list", "--order", "1-8", "--json"]).stdout)
    assert ranged["count"] == 1 + 1 + 1 + 2 + 1 + 2 + 1 + 5
    shown = CliRunner().invoke(main, ["groups", "show", "D4", "--cayley", str(tmp_path / "d4.png")])
    assert shown.exit_code == 0
    assert "4 R + M2(R)" in shown.stdout
    assert (tmp_path / "d4.png").exists()
    for bad, words in ((["list", "--order", "70"], "within 1..63"), (["show", "nope"], "no group is called")):
        result = CliRunner().invoke(main, ["groups", *bad])
        assert result.exit_code == 2
        assert words in result.stderr
