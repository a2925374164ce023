"""Campaigns: finds kept at once and re-found by their commands, neighbours served, journals gone on with."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from stl_search import transform
from stl_search.catalog import store
from stl_search.cli import main, shape_list
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme
from stl_search.search import neighbours
from stl_search.search.campaign import Campaign, Row, campaign
from stl_search.search.constructions import simplex
from stl_search.search.portfolio import discover
from stl_search.search.problem import Problem
from stl_search.verify import verify

STRASSEN = simplex(2)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalog beside an empty shipped one; the user's folder is returned."""
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    return tmp_path / "mine"


class Searches:
    """Stands in for ``discover``: notes every call; ``answer`` makes the scheme that it finds, or None."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls: list[SimpleNamespace] = []

    def __call__(self, shape: Any, rank: int, **options: Any) -> SimpleNamespace:
        call = SimpleNamespace(shape=shape, rank=rank, **options)
        self.calls.append(call)
        found = self.answer(call)
        path = None if found is None else store.add(found, {}, call.out)
        problem = Problem(shape, rank, call.ring, seed=call.seed)
        return SimpleNamespace(seconds=call.time, scheme=found, path=path, problem=problem)


def stand_in(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Searches:
    searches = Searches(answer)
    monkeypatch.setattr("stl_search.search.campaign.discover", searches)
    return searches


# -- neighbours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "shape", "rank"),
    [
        (STRASSEN, (2, 2, 3), 11),
        (STRASSEN, (3, 2, 2), 11),
        (transform.kron(STRASSEN, STRASSEN), (3, 4, 4), 44),
        (simplex(3), (2, 3, 4), 23),
        (transform.sum_n(STRASSEN, STRASSEN), (4, 2, 2), 14),
        (transform.extend(STRASSEN, (2, 2, 3)), (2, 2, 2), 7),
        (transform.extend(STRASSEN, (3, 2, 2)), (2, 2, 2), 7),
    ],
)
@pytest.mark.parametrize("ring", ["ZT", "Z2"])
def test_a_scheme_is_brought_to_any_shape(held: Scheme, shape: tuple, rank: int, ring: str) -> None:
    made = neighbours.to_shape(transform.to_ring(held, ring), shape)
    assert made.shape == shape
    assert made.rank <= rank
    assert ring in verify(made).rings


@pytest.mark.parametrize("ring", ["ZT", "Z2"])
def test_sums_and_products_of_what_is_held(ring: str) -> None:
    held = [transform.to_ring(s, ring) for s in (STRASSEN, transform.classical((2, 2, 2)), simplex(3))]
    made = neighbours.derived((4, 4, 4), held)
    assert made[0].scheme.rank == 49
    assert [s.id for s in made[0].sources] == [held[0].id] * 2
    assert all(ring in verify(one.scheme).rings and one.scheme.shape == (4, 4, 4) for one in made)
    assert [one.scheme.rank for one in made] == sorted(one.scheme.rank for one in made)
    assert neighbours.derived((4, 4, 4), []) == []


# -- discover from given schemes, and what it says when it fails -------------------------------------------------------


def test_a_search_begins_from_what_can_be_made_of_given_schemes(home: Path, tmp_path: Path) -> None:
    store.add(STRASSEN, {}, home)
    result = discover((3, 2, 2), 11, ring="Z2", steps=1, workers=1, given=[STRASSEN], out=tmp_path / "out")
    assert result.found
    provenance = json.loads(result.path.read_text())["provenance"]
    assert provenance["starts"] == [STRASSEN.id]
    assert provenance["strategy"] == "start"
    words = shlex.split(provenance["command"])
    assert words[words.index("--start") + 1] == STRASSEN.id[:16]
    again = CliRunner().invoke(main, [*words[1:], "--json", "--out", str(tmp_path / "again")])
    assert json.loads(again.stdout)["id"] == result.scheme.id


def test_a_start_may_lie_in_the_folder_of_the_finds(home: Path, tmp_path: Path) -> None:
    store.add(STRASSEN, {}, tmp_path / "out")
    words = ["discover", "--shape", "2,2,3", "--rank", "11", "--ring", "ZT", "--steps", "1", "--json"]
    words += ["--start", STRASSEN.id[:16]]
    assert CliRunner().invoke(main, words).exit_code == 2
    assert CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")]).exit_code == 0


def test_a_search_that_fails_says_how_many_flips_it_made(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, json\n"
        "for line in sys.stdin:\n"
        "    job = json.loads(line).get('job')\n"
        "    if job is not None:\n"
        "        answer = {'job': job, 'strategy': 'x', 'seconds': 0, 'schemes': [], 'flips': 1000 + job}\n"
        "        print(json.dumps(answer), flush=True)\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(
        "stl_search.search.portfolio.subprocess.Popen",
        lambda command, **options: real([sys.executable, "-c", code], **options),
    )
    result = discover((2, 2, 3), 11, ring="Z2", steps=3, workers=1, strategies=["compose"], out=tmp_path)
    assert "not found after 3 jobs and 3003 flips" in result.reason
    assert result.to_json()["flips"] == 3003


# -- campaigns ---------------------------------------------------------------------------------------------------------


def test_a_campaign_finds_keeps_and_ends_where_nothing_smaller_exists(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["campaign", "--shapes", "2,2,2;3,2,2", "--ring", "Z2", "--time", "600", "--workers", "1", "--json"]
    result = CliRunner().invoke(main, [*words, "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [(row["shape"], row["began"], row["rank"], row["gap"]) for row in found["shapes"]] == [
        ([2, 2, 2], None, 7, 0),
        ([2, 2, 3], None, 11, 0),
    ]
    assert found["seconds"] < 600  # it ended for want of work
    assert "<2,2,2> rank 7 over Z2" in result.stderr
    for find in found["improvements"]:
        kept = store.load(find["path"])
        assert (kept.id, kept.rank) == (find["id"], find["rank"])
        command = shlex.split(json.loads(Path(find["path"]).read_text())["provenance"]["command"])
        assert command[:2] == ["stl-search", "discover"]
        assert "--steps" in command
    assert [path.name.split("-")[0] for path in (out / ".journal").iterdir()] == ["campaign"]
    again = campaign([(2, 2, 2), (2, 2, 3)], ring="Z2", time=600, workers=1, out=out)
    assert again.slices == found["slices"]  # nothing was left to do


def test_shapes_behind_the_best_known_come_first_and_aim_at_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(transform.kron(STRASSEN, STRASSEN), {}, home)
    store.add(simplex(3), {}, home)
    searches = stand_in(monkeypatch, lambda call: None)
    campaign([(4, 4, 4), (2, 2, 3), (3, 3, 3)], ring="Z2", time=200, workers=1)
    assert [(c.shape, c.rank) for c in searches.calls[:3]] == [((2, 2, 3), 11), ((3, 3, 3), 23), ((4, 4, 4), 47)]
    assert all(list(c.given) == [] for c in searches.calls[:3])
    assert [c.time for c in searches.calls if c.shape == (4, 4, 4)][:2] == [10.0, 20.0]
    second = next(c for c in searches.calls[3:] if c.shape == (4, 4, 4))
    assert second.rank == 48  # half the way
    assert transform.kron(STRASSEN, STRASSEN).id in {s.id for s in second.given}
    assert len({c.seed for c in searches.calls}) == len(searches.calls)
    assert sum(c.time for c in searches.calls) == pytest.approx(200, abs=1)


def test_a_find_serves_its_neighbours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = transform.to_ring(STRASSEN, "Z2")
    late = iter([None, None, found])
    searches = stand_in(monkeypatch, lambda call: next(late, None) if call.shape == (2, 2, 2) else None)
    state = campaign([(2, 2, 2), (2, 2, 3)], ring="Z2", time=400, workers=1)
    after = [c for c in searches.calls if c.shape == (2, 2, 3) and c.given]
    assert [s.id for s in after[0].given] == [found.id]
    assert after[0].rank == 11  # 7 and 4 more products: to be had without a search
    assert after[0].time == 20.0  # what was in vain before is forgotten
    assert state.finds[0]["rank"] == 7
    assert state.finds[0]["from"] is None


def test_residues_are_walked_from_where_another_ring_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    residue = transform.to_ring(transform.kron(STRASSEN, STRASSEN), "Z2")
    store.add(residue, {}, home)
    searches = stand_in(monkeypatch, lambda call: None)
    state = campaign([(4, 4, 4)], ring="ZT", time=40, workers=1)
    assert [[s.id for s in c.given] for c in searches.calls] == [[], [residue.id], [residue.id]]
    assert state.rows[4, 4, 4].best is None


def test_walks_are_ternary_at_every_second_time_where_residues_do_not_lift(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(transform.to_ring(transform.kron(STRASSEN, STRASSEN), "Z2"), {}, home)
    store.add(transform.classical((4, 4, 4)), {}, home)
    searches = stand_in(monkeypatch, lambda call: None)
    campaign([(4, 4, 4)], ring="ZT", time=100, workers=1)
    assert [c.strategies for c in searches.calls] == [(), ("ternary",), (), ("ternary",)]
    campaign([(4, 4, 4)], ring="Z2", time=100, workers=1)
    assert {c.strategies for c in searches.calls[4:]} == {()}


def test_the_same_command_goes_on_where_it_was_cut(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(answer: Any, **options: Any) -> tuple[Campaign | None, list[SimpleNamespace]]:
        searches = stand_in(monkeypatch, answer)
        try:
            return campaign([(3, 3, 3), (2, 3, 3)], ring="Z2", time=100, workers=1, **options), searches.calls
        except KeyboardInterrupt:
            return None, searches.calls

    def cut(call: SimpleNamespace) -> Scheme | None:
        if call.seed == 2:
            raise KeyboardInterrupt
        return transform.to_ring(simplex(3), "Z2") if call.shape == (3, 3, 3) else None

    done, first = run(cut)
    assert done is None
    done, rest = run(lambda call: None)
    assert [c.seed for c in first + rest] == [0, 1, 2, *range(2, 2 + len(rest))]
    assert (first[-1].shape, first[-1].rank) == (rest[0].shape, rest[0].rank)
    assert done.seconds == pytest.approx(100, abs=1)
    assert [(find["rank"], find["from"]) for find in done.finds] == [(25, None)]
    assert done.rows[3, 3, 3].began is None
    # after its end it goes on for as long again, with other seeds; --fresh begins anew
    longer, more = run(lambda call: None)
    assert longer.seconds == pytest.approx(200, abs=1)
    assert more[0].seed == rest[-1].seed + 1
    anew, calls = run(lambda call: None, fresh=True)
    assert (calls[0].seed, anew.finds, anew.rows[3, 3, 3].began) == (0, [], 25)


def test_failing_slices_are_survived_three_times(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: SimpleNamespace) -> None:
        raise StlError("a worker process ended unexpectedly")

    searches = stand_in(monkeypatch, broken)
    with pytest.raises(StlError, match="ended unexpectedly"):
        campaign([(3, 3, 3)], ring="Z2", time=100, workers=1)
    assert len(searches.calls) == 3
    lines = (home / ".journal").glob("campaign-*")
    assert "ended unexpectedly" in next(lines).read_text()


def test_the_target_comes_nearer_after_each_slice_in_vain() -> None:
    row = Row((5, 5, 5), 50, 93, best=109)
    targets = []
    for row.failed in range(6):
        targets.append(row.target)
    assert targets == [93, 101, 105, 107, 108, 108]
    assert Row((5, 5, 5), 50, 93, best=93).target == 92
    assert Row((2, 2, 2), 7, 7).target == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ring": "R"}, "ring R is none of Z2, ZT, Z, Q"),
        ({"time": 0.0}, "time is 0"),
        ({"time": 0.5}, "time is 0.5, must be a number of seconds, 1 at least"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"shapes": []}, "at least one shape"),
    ],
)
def test_senseless_arguments_are_refused(home: Path, change: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        campaign(**{"shapes": [(2, 2, 2)], "ring": "Z2", "time": 1.0, **change})


def test_lists_of_shapes() -> None:
    assert shape_list("2-3") == [(2, 2, 2), (2, 2, 3), (2, 3, 3), (3, 3, 3)]
    assert shape_list("2,3,4;3x3x3") == [(2, 3, 4), (3, 3, 3)]
    assert len(shape_list("all")) == 20
    for wrong in ("4-2", "2,3", "", "every"):
        with pytest.raises(click.BadParameter):
            shape_list(wrong)


def test_ctrl_c_says_how_to_go_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(call: SimpleNamespace) -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, cut)
    result = CliRunner().invoke(main, ["campaign", "--shapes", "3,3,3", "--ring", "Z2", "--time", "9"])
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert "Traceback" not in result.stderr
