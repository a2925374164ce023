"""The frontier search: slices, what is kept and replayed, journals; and what ships."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stl_search import decompose, score, transform
from stl_search.catalog import store
from stl_search.cli import main
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.border import Rotation
from stl_search.search.compositions import Mark, front, mark
from stl_search.search.frontier import STRATEGIES, Frontier, frontier
from stl_search.search.problem import Problem
from stl_search.search.rotation import Triangle, solved
from stl_search.search.strategy import Clock

LAM = 2 * score.relative_rounding("bf16") ** 2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user catalog beside an empty shipped one; the user's folder is returned."""
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr(store, "shipped_dir", lambda: tmp_path / "shipped")
    return tmp_path / "mine"


def worth(rank: int, factor: float, shape: Shape = (2, 2, 2)) -> Scheme:
    """The classical algorithm's first products, decoded a little wrong: E is 1 - r/mkn + r/mkn (1 - factor)^2."""
    whole = transform.classical(shape)
    u, v, w = (f[:rank].astype(float) for f in whole.factors)
    return Scheme(shape, "R", u, v, factor * w)


class Searches:
    """Stands in for ``discover``: notes every call; ``answers`` are taken in turn, the last one again and again."""

    def __init__(self, answers: list[float]) -> None:
        self.answers = answers
        self.calls: list[SimpleNamespace] = []

    def __call__(self, shape: Any, rank: int, **options: Any) -> SimpleNamespace:
        self.calls.append(SimpleNamespace(shape=shape, rank=rank, **options))
        found = worth(rank, self.answers[min(len(self.calls), len(self.answers)) - 1])
        path = None
        if options.get("wanted", lambda _: True)(found):
            path = store.add(found, {"command": "stand-in"}, options["out"], options["dtype"])
            found = store.load(path)
        problem = Problem(shape, rank, seed=options["seed"], dtype=options["dtype"])
        return SimpleNamespace(scheme=found, path=path, problem=problem, strategy="border")


def stand_in(monkeypatch: pytest.MonkeyPatch, answers: list[float], pace: float = 10.0) -> Searches:
    searches = Searches(answers)
    monkeypatch.setattr("stl_search.search.frontier.discover", searches)
    clock = iter(np.arange(10_000) * pace / 2)  # looked at before and after each slice
    monkeypatch.setattr("stl_search.search.frontier.monotonic", lambda: float(next(clock)))
    return searches


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.json"))


def test_each_rank_comes_once_from_high_to_low_and_finds_serve_their_neighbours(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = stand_in(monkeypatch, [0.9])
    seen: list[str] = []
    done = frontier((2, 2, 2), time=20.0, ranks=range(3, 6), workers=1, progress=lambda s: seen.append(s.now))
    assert [call.rank for call in searches.calls] == [5, 4, 3, *(call.rank for call in searches.calls[3:])]
    assert len(searches.calls) == 4  # of 5 seconds each
    assert [len(call.given) for call in searches.calls[:3]] == [0, 1, 1]
    assert searches.calls[1].given[0].rank == 5
    assert searches.calls[0].strategies != STRATEGIES
    assert searches.calls[3].strategies == STRATEGIES
    assert len({call.seed for call in searches.calls}) == 4
    assert [find["rank"] for find in done.finds] == [5, 4, 3]  # the fourth slice found what is held
    assert len(files(home)) == 3
    assert any(now.startswith("rank 4, 2 jobs from 2x2x2_r5") for now in seen)
    points = done.to_json()["points"]
    assert [p["rank"] for p in points] == [3, 4, 5]
    assert {"E", "kappa", "error", "id", "path", "truncation", "line"} <= set(points[0])
    assert points[0]["error"] == pytest.approx(score.error(worth(3, 0.9), "bf16"))


def test_what_does_not_improve_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [0.9, 0.8, 0.95, 0.9501])  # worse, better, better by less than counts
    done = frontier((2, 2, 2), time=20.0, ranks=[4], workers=1)
    assert [find["from"] for find in done.finds] == [None, pytest.approx(score.error(worth(4, 0.9), "bf16") ** 2)]
    assert len(files(home)) == 2  # the one that was improved upon stays: others may have begun from it
    assert done.rows[4].best == pytest.approx(score.error(worth(4, 0.95), "bf16") ** 2)
    assert done.rows[4].slices == 4


@pytest.mark.parametrize("laid_out", [False, True])
def test_no_entry_that_was_there_is_deleted(home: Path, monkeypatch: pytest.MonkeyPatch, laid_out: bool) -> None:
    """Neither one that a slice finds again, in whatever folder, nor one that somebody else adds meanwhile."""
    if laid_out:
        (home / "schemes").mkdir(parents=True)
    there = [store.add(worth(4, 0.9), {"command": "mine"}, home, "bf16")]
    searches = stand_in(monkeypatch, [0.9, 0.8])

    def meanwhile(shape: Shape, rank: int, **options: Any) -> SimpleNamespace:
        if len(searches.calls) == 1:
            there.append(store.add(worth(4, 0.8), {"command": "theirs"}, home, "bf16"))
        return searches(shape, rank, **options)

    monkeypatch.setattr("stl_search.search.frontier.discover", meanwhile)
    done = frontier((2, 2, 2), time=15.0, ranks=[4], workers=1)
    assert (done.slices, done.finds) == (3, [])
    assert sorted(home.rglob("*.json")) == sorted(there)


def test_a_cut_search_goes_on_and_a_finished_one_begins_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = stand_in(monkeypatch, [0.9])

    def cut(state: Frontier) -> None:
        if state.slices == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frontier((2, 2, 2), time=20.0, ranks=[3, 4, 5], workers=1, progress=cut)
    done = frontier((2, 2, 2), time=20.0, ranks=[3, 4, 5], workers=1)
    assert len(searches.calls) == 4
    assert [find["rank"] for find in done.finds] == [5, 4, 3]
    assert [row.began for row in done.rows.values()] == [None] * 3
    more = frontier((2, 2, 2), time=10.0, ranks=[3, 4, 5], workers=1)
    assert (len(searches.calls), more.slices) == (6, 6)
    assert len({call.seed for call in searches.calls}) == 6
    anew = frontier((2, 2, 2), time=10.0, ranks=[3, 4, 5], workers=1, fresh=True)
    assert anew.slices == 2
    assert anew.rows[5].began == done.rows[5].best


def test_what_finds_improved_upon_is_told_alike_by_a_search_that_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, [0.8, 0.9, 0.95])
    first = frontier((2, 2, 2), time=15.0, ranks=[4], workers=1)
    more = frontier((2, 2, 2), time=5.0, ranks=[4], workers=1)
    costs = [score.error(worth(4, factor), "bf16") ** 2 for factor in (0.8, 0.9)]
    assert [find["from"] for find in first.finds] == [None, *(pytest.approx(cost) for cost in costs)]
    assert more.finds == first.finds


def test_a_better_composition_is_where_a_slice_begins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, _ = decompose.refine((2, 2, 2), decompose.random_batch((2, 2, 2), 5, 4, np.random.default_rng(0)), LAM, 200)
    half = store.load(store.add(decompose.scheme_of((2, 2, 2), batch), {}, home))
    searches = stand_in(monkeypatch, [0.5])
    frontier((2, 2, 4), time=5.0, ranks=[10], workers=1)
    assert [s.id for s in searches.calls[0].given] == [half.id]


def test_a_rank_that_does_not_improve_is_climbed_to_from_below(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the best that rotation leaves invariant of one and two products fewer, and by ``rotation`` alone."""
    rng = np.random.default_rng(0)
    below = {}
    for rank, frame in ((6, Rotation(2, 0, 2)), (5, Rotation(2, 2, 1))):
        scales = (0.1, 0.3)  # the smaller ones err less: they are noise
        made = [Scheme((2, 2, 2), "R", *frame.factors(s * rng.standard_normal(4 * rank))) for s in scales]
        below[rank] = min((store.load(store.add(s, {}, home)) for s in made), key=lambda s: score.error(s, "bf16"))
        store.add(worth(rank, 0.9), {}, home)  # better, and not invariant
    searches = stand_in(monkeypatch, [0.9])
    frontier((2, 2, 2), time=30.0, ranks=[7], workers=1)
    climbs = [call for call in searches.calls if call.strategies == ("rotation",)]
    assert [searches.calls.index(call) for call in climbs] == [3]  # one slice found something, two were in vain
    assert [s.id for s in climbs[0].given] == [below[6].id, below[5].id]
    assert climbs[0].steps >= 4
    frontier((2, 2, 2), time=30.0, ranks=[4], workers=1)  # half of the products: rotation does not serve
    assert [call for call in searches.calls if call.strategies == ("rotation",)] == climbs


def noisy(rank: int, factor: float, gain: float) -> Scheme:
    """``worth(rank - 2, factor)`` and two terms that cancel: no more error, and much more noise."""
    core = worth(rank - 2, factor)
    u, v, w = (np.concatenate([f, f[:1], f[:1]]) for f in core.as_float())
    w[-2:] = np.array([gain, -gain])[:, None, None] * w[:1]
    return Scheme((2, 2, 2), "R", u, v, w)


def test_a_rank_that_does_not_improve_is_hopped_to_from_what_is_best_elsewhere(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one scheme after another that is best at another precision, there or beside it, by ``hopping`` alone."""
    for scheme in (worth(5, 0.2), worth(6, 0.2), worth(8, 0.2)):
        store.add(scheme, {}, home)
    here, beside = (store.load(store.add(noisy(rank, 0.9, 3000.0), {}, home, "fp32")) for rank in (5, 6))
    store.add(noisy(8, 0.9, 3000.0), {}, home, "fp32")  # three ranks away
    assert all(score.error(s, "fp32") < score.error(worth(s.rank, 0.2), "fp32") for s in (here, beside))
    assert all(score.error(s, "bf16") > score.error(worth(s.rank, 0.2), "bf16") for s in (here, beside))
    searches = stand_in(monkeypatch, [0.1])
    monkeypatch.setattr("stl_search.search.frontier._RELAXED", 0)
    frontier((2, 2, 2), time=50.0, ranks=[5], workers=1)
    walks = [call for call in searches.calls if call.strategies == ("hopping",)]
    # between them the usual strategies, from what is held and from nothing
    assert [searches.calls.index(call) for call in walks] == [2, 6]
    assert [[s.id for s in call.given] for call in walks] == [[here.id], [beside.id]]
    assert all(call.steps >= 4 for call in walks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 0.0}, "time is 0"),
        ({"time": 0.5}, "time is 0.5, must be a number of seconds, 1 at least"),
        ({"ranks": []}, "ranks go from 1 to 8"),
        ({"ranks": [9]}, "ranks go from 1 to 8"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"dtype": "int3"}, "unknown dtype"),
    ],
)
def test_nonsense_is_refused(home: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        frontier((2, 2, 2), **{"time": 1.0, **options})


def test_a_rank_begins_with_what_schemes_for_other_precisions_become(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, also in a search that goes on, and not where no approximate scheme is held."""
    monkeypatch.setenv("STL_CATALOG", str(home))
    for scheme, dtype in ((worth(5, 0.9), "fp32"), (transform.classical((2, 2, 2)), None)):
        store.add(scheme, {"command": "mine"}, home, dtype)
    searches = stand_in(monkeypatch, [0.9])
    frontier((2, 2, 2), time=15.0, ranks=[5, 8], workers=1)
    relaxed = [call for call in searches.calls if call.strategies == ("relax",)]
    assert [(call.rank, call.steps, [s.id for s in call.given]) for call in relaxed] == [(5, 1, [worth(5, 0.9).id])]
    assert [call.rank for call in searches.calls] == [8, 5, 5]
    more = frontier((2, 2, 2), time=10.0, ranks=[5, 8], workers=1)
    assert [call.strategies for call in searches.calls[3:]].count(("relax",)) == 0
    assert more.slices == 5


def test_large_shapes_begin_with_what_invariant_schemes_become(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where following a whole scheme would take minutes, and of schemes without that symmetry nothing."""
    monkeypatch.setenv("STL_CATALOG", str(home))
    monkeypatch.setattr(sys.modules[Frontier.__module__], "_RELAXED", 50)
    lopsided = transform.change_basis(worth(5, 0.9), np.diag([1.0, 2.0]), np.eye(2), np.eye(2))
    store.add(lopsided, {"command": "mine"}, home, "fp32")
    searches = stand_in(monkeypatch, [0.9])
    frontier((2, 2, 2), time=5.0, ranks=[5], workers=1)
    assert ("relax",) not in [call.strategies for call in searches.calls]
    assert ("loosen",) not in [call.strategies for call in searches.calls]
    frame = Triangle(2, 2, 1)
    x, _ = solved(frame, np.random.default_rng(0).standard_normal((5, 4)), LAM, 200, 0.0, 1.0, Clock(None))
    turning = store.load(store.add(Scheme((2, 2, 2), "R", *frame.factors(x)), {"command": "mine"}, home, "fp16"))
    searches = stand_in(monkeypatch, [0.9])
    frontier((2, 2, 2), time=5.0, ranks=[5], workers=1, fresh=True)
    first = searches.calls[0]
    assert (first.strategies, first.steps, [s.id for s in first.given]) == (("loosen",), 1, [turning.id])


def test_frontier_keeps_what_relaxing_finds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, rank = (2, 2, 3), 10
    starts = decompose.random_batch(shape, rank, 4, np.random.default_rng(0))
    found, f = decompose.levenberg_marquardt(shape, starts, LAM, 300, ridge=lambda i: 0.01 * (i < 60))
    start = store.load(store.add(decompose.scheme_of(shape, found, int(np.argmin(f))), {}, home, "bf16"))
    done = frontier(shape, dtype="fp32", time=1.0, ranks=[rank], workers=1, out=home)
    assert [find["strategy"] for find in done.finds] == ["relax"]
    kept = json.loads(Path(done.finds[0]["path"]).read_text())
    assert f"--strategy relax --start {start.id[:16]}" in kept["provenance"]["command"]
    assert kept["figures"]["error"]["fp32"] < 0.03 * score.error(start, "fp32")


def test_a_shape_too_large_for_its_compositions_is_refused_before_anything_is_written(home: Path) -> None:
    with pytest.raises(UsageError, match="<17,17,17> is too large to be composed"):
        frontier((17, 17, 17), time=1.0)
    assert not home.exists()


def test_a_find_is_made_again_by_its_command(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["frontier", "--tile", "2", "--ranks", "4-5", "--time", "2s", "--workers", "1", "--out", str(out), "--json"]
    found = json.loads(CliRunner().invoke(main, words).stdout)
    assert (found["shape"], found["dtype"]) == ([2, 2, 2], "bf16")
    point = found["points"][0]
    provenance = json.loads(Path(point["path"]).read_text())["provenance"]
    command = shlex.split(provenance["command"])
    assert command[:2] == ["stl-search", "discover"]
    assert "--steps" in command
    again = CliRunner().invoke(main, [*command[1:], "--json", "--out", str(out)])
    assert json.loads(again.stdout)["id"] == point["id"]
    assert CliRunner().invoke(main, ["frontier", "--tile", "2", "--ranks", "4-2", "--time", "2s"]).exit_code == 2


# -- what ships --------------------------------------------------------------------------------------------------------

SHAPES: dict[Shape, int] = {
    (2, 2, 2): 7, (2, 2, 3): 11, (2, 2, 4): 14, (2, 2, 5): 18, (2, 3, 3): 15, (2, 4, 4): 26, (3, 3, 3): 23,
    (3, 3, 4): 29, (4, 4, 4): 49,
}  # fmt: skip
SLACK = 1 + 1e-5  # coefficients are shortened to what changes the error by 1e-6, parts and wholes alike


@pytest.fixture(scope="module")
def shipped() -> dict[Shape, list[store.Point]]:
    return {shape: store.frontier(shape, "bf16", [store.shipped_dir()]) for shape in SHAPES}


@pytest.fixture(scope="module")
def marks() -> list[Mark]:
    small = (
        e for e in store.candidates(ring="R", dirs=[store.shipped_dir()]) if any(_within(e.shape, s) for s in SHAPES)
    )
    return [mark(store.scheme_of(e)) for e in small]


def _within(part: Shape, whole: Shape) -> bool:
    return all(a <= b for a, b in zip(sorted(part), sorted(whole), strict=True))


@pytest.mark.parametrize(("shape", "last"), SHAPES.items())
def test_every_rank_ships_and_more_products_are_better(
    shipped: dict[Shape, list[store.Point]], shape: Shape, last: int
) -> None:
    points = [p for p in shipped[shape] if p.rank <= last]
    assert [p.rank for p in points] == list(range(1, last + 1))
    errors = [p.error for p in points]
    assert errors == sorted(errors, reverse=True)
    assert all(score.line(shape, p.rank) + store.TIE >= p.E for p in points)


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_composition_of_smaller_entries_is_better(marks: list[Mark], shape: Shape, dtype: str) -> None:
    lam = 2 * score.relative_rounding(dtype) ** 2
    parts = [m for m in marks if _within(m.shape, shape)]
    composed = front(shape, parts, lam, own=False)
    held = math.inf
    for point in store.frontier(shape, dtype, [store.shipped_dir()]):
        held = min(held, point.error**2)
        assert held <= composed[min(point.rank, math.prod(shape))].cost(lam) * SLACK, point.rank


def test_shipped_errors_are_measured_on_fresh_gaussian_matrices(shipped: dict[Shape, list[store.Point]]) -> None:
    """The prediction within 3% where E dominates, and within [.8, 1.15] elsewhere (docs: the error model)."""
    rng = np.random.default_rng(20261124)
    for shape, points in shipped.items():
        for point in points[:: max(1, len(points) // 4)]:
            scheme = store.scheme_of(point.entry)
            # sides of 240, where one trial deviates by .5% to 1%
            measured, _ = score.monte_carlo(scheme, "bf16", rng, blocks=-(-240 // max(shape)), trials=4)
            wide = 100 * LAM * point.kappa > point.E
            low, high = (0.8, 1.15) if wide else (0.97, 1.03)
            assert low <= measured / point.error <= high, point


def test_no_shipped_find_hangs_on_a_clock() -> None:
    """A search that its time cut off finds something else on another machine, or on a busy one."""
    commands = [str(entry.provenance.get("command", "")) for entry in store.entries([store.shipped_dir()])]
    assert len([c for c in commands if "--steps" in c]) > 100
    assert [c for c in commands if "--time" in c] == []


def test_the_catalog_that_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in store.shipped_dir().rglob("*.json")) < 8 << 20


def test_precisions_want_different_schemes_below_the_exact_rank() -> None:
    """<2,2,3> of rank 10 has border rank 10: the finer the precision, the larger the coefficients, without limit."""
    dirs = [store.shipped_dir()]
    best = {dtype: store.best((2, 2, 3), rank=10, dtype=dtype, dirs=dirs) for dtype in ("bf16", "fp16", "fp32")}
    assert len({entry.id for entry in best.values()}) == 3
    largest = [score.max_coefficient(store.scheme_of(entry)) for entry in best.values()]
    assert largest == sorted(largest)
    errors = [entry.error(dtype) ** 2 for dtype, entry in best.items()]
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 50
