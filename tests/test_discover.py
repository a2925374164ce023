"""The portfolio and its journal: finds, refuses, repeats, resumes after kill -9, and leaves no worker behind."""

import json
import math
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stl_search import score
from stl_search.catalog import store
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme
from stl_search.search.bounds import lower_bound, reached_rank
from stl_search.search.journal import Journal, decode, encode
from stl_search.search.portfolio import Progress, discover
from stl_search.search.problem import Problem
from stl_search.transform import classical, permute_to
from stl_search.verify import residual, verify

QUICK = ("mirror", "numeric", "plunge")  # whose jobs take least, where what the jobs find is beside the point


def test_strassens_rank_is_found_and_proved(tmp_path: Path) -> None:
    result = discover((2, 2, 2), 7, ring="Z", time=60, workers=2, out=tmp_path)
    assert result.found
    assert result.exit_code == 0
    assert result.path is not None
    kept = store.load(result.path)
    assert (kept.shape, kept.rank) == ((2, 2, 2), 7)
    assert "Z" in verify(kept).rings
    assert {
        "found",
        "path",
        "id",
        "shape",
        "rank",
        "ring",
        "dtype",
        "E",
        "error",
        "kappa",
        "strategy",
        "seconds",
    } <= set(result.to_json())
    assert result.to_json()["E"] is None


def test_a_rank_below_a_proved_bound_is_refused_at_once(tmp_path: Path) -> None:
    result = discover((2, 2, 2), 6, ring="Z", time=30, out=tmp_path)
    assert (result.found, result.exit_code, result.path) == (False, 3, None)
    assert "rank >= 7" in result.reason
    assert not list(tmp_path.rglob("*.json"))


def test_an_exact_search_that_fails_writes_nothing_and_says_how_far_it_came(tmp_path: Path) -> None:
    # rank 14 over Q for <2,3,3> is neither known nor excluded by a bound of this program
    result = discover((2, 3, 3), 14, ring="Q", steps=2, workers=2, out=tmp_path, strategies=["numeric"])
    assert (result.found, result.exit_code, result.path) == (False, 3, None)
    assert "not found after 2 jobs" in result.reason
    assert not list(tmp_path.glob("*.json"))


def test_an_approximate_find_is_below_the_line_and_above_the_floor(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = discover((2, 2, 2), 5, dtype="bf16", steps=6, workers=2, out=tmp_path, progress=seen.append)
    assert result.found
    assert result.floor <= result.E < result.line - 1e-6
    assert result.E <= 0.2530  # the border value is .25; every run of this program ends there
    assert result.error == pytest.approx(score.error(store.load(result.path), "bf16"), rel=1e-12)
    assert float(residual(store.load(result.path))) <= result.E
    assert seen
    assert seen[-1].best_error == pytest.approx(result.error, rel=1e-3)


def test_a_winner_that_is_not_wanted_is_not_written(tmp_path: Path) -> None:
    asked = []
    result = discover(
        (2, 2, 2), 4, steps=1, workers=1, strategies=QUICK, out=tmp_path, wanted=lambda s: bool(asked.append(s))
    )
    assert result.path is None
    assert [s.id for s in asked] == [result.scheme.id]
    assert not list(tmp_path.glob("*.json"))


def test_a_rank_that_can_only_tie_is_marked_as_truncation(tmp_path: Path) -> None:
    result = discover((2, 2, 2), 1, dtype="fp32", steps=4, workers=2, out=tmp_path)
    assert not result.found
    assert result.exit_code == 3
    assert result.truncation
    assert result.path is not None  # the best is written all the same
    assert result.path.exists()


@pytest.mark.parametrize(("shape", "rank"), [((1, 1, 1), 1), ((2, 2, 2), 20)])
def test_a_rank_that_the_classical_algorithm_reaches_is_found(tmp_path: Path, shape: tuple, rank: int) -> None:
    result = discover(shape, rank, steps=4, workers=1, out=tmp_path)
    assert result.found
    assert result.E <= 1e-6


def test_equal_seed_workers_and_steps_write_equal_files(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        result = discover((2, 2, 2), 5, steps=3, seed=3, workers=2, strategies=QUICK, out=tmp_path / name)
        texts.append((result.path.name, result.path.read_bytes()))
    assert texts[0] == texts[1]
    other = discover((2, 2, 2), 5, steps=1, seed=4, workers=1, strategies=QUICK, out=tmp_path / "c")
    assert other.scheme != result.scheme


def test_a_finished_run_is_not_reused_and_an_unfinished_one_is(tmp_path: Path) -> None:
    whole = discover((2, 2, 2), 5, steps=2, seed=1, workers=1, strategies=QUICK, out=tmp_path / "whole")
    part = tmp_path / "part"
    first = discover((2, 2, 2), 5, steps=2, seed=1, workers=1, strategies=QUICK, out=part)
    journal = next((part / ".journal").iterdir())
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b"finished" in lines[-1]
    # as if killed in the middle of writing the second job
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    first.path.unlink()
    again = discover((2, 2, 2), 5, steps=2, seed=1, workers=1, strategies=QUICK, out=part)
    assert again.path.read_bytes() == whole.path.read_bytes()
    text = journal.read_bytes()
    assert text.startswith(b"".join(lines[:2]))  # what was there was built upon
    discover((2, 2, 2), 5, steps=1, seed=1, workers=1, strategies=QUICK, out=part)
    assert len(journal.read_bytes().splitlines()) == 3  # header, job, finished: begun anew


def _fake_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Every worker process runs this code instead of the real one."""
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", code] if "stl_search.search.worker" in command else command, **options)

    monkeypatch.setattr("stl_search.search.portfolio.subprocess.Popen", popen)


@pytest.mark.parametrize("budget", [{"steps": 2}, {"time": 20.0}])
def test_a_worker_that_dies_in_the_middle_of_a_line_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict
) -> None:
    code = "import sys\nfor _ in range(2): sys.stdin.readline()\nprint('{\"job\":0,\"str', end='', flush=True)"
    _fake_worker(monkeypatch, code)
    with pytest.raises(StlError, match="a worker process ended unexpectedly"):
        discover((2, 2, 2), 5, workers=1, out=tmp_path, **budget)


def test_jobs_that_fail_find_nothing_and_a_search_of_failures_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, json\n"
        "for line in sys.stdin:\n"
        "    job = json.loads(line).get('job')\n"
        "    if job is not None:\n"
        "        bad = {'job': job, 'strategy': '', 'seconds': 0, 'schemes': []}\n"
        "        print(json.dumps({**bad, 'error': 'Traceback\\nValueError: no'}), flush=True)\n"
    )
    _fake_worker(monkeypatch, code)
    with pytest.raises(StlError, match="job 0 failed: ValueError: no"):
        discover((2, 2, 2), 5, steps=9, workers=1, out=tmp_path / "all")
    result = discover((2, 2, 2), 5, steps=1, workers=1, out=tmp_path / "one")  # a single failure is survived
    assert not result.found
    assert result.truncation


def test_what_the_clock_cut_is_no_part_of_a_run_by_steps(tmp_path: Path) -> None:
    kinds = {"seed": 2, "workers": 1, "strategies": QUICK}
    whole = discover((3, 3, 3), 12, steps=1, **kinds, out=tmp_path / "whole")
    part = tmp_path / "part"
    discover((3, 3, 3), 12, time=0.7, **kinds, out=part)
    journal = next((part / ".journal").iterdir())
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b"finished" not in line))  # as if killed at the end
    again = discover((3, 3, 3), 12, steps=1, **kinds, out=part)
    assert again.scheme == whole.scheme


def test_starts_outside_the_ring_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    strassen = discover((2, 2, 2), 7, ring="ZT", time=60, workers=1, out=tmp_path / "first").scheme
    u, v, w = (f.astype(object) for f in strassen.factors)
    u[0], v[0] = u[0] * 3, np.array([[Fraction(x, 3) for x in row] for row in v[0]], dtype=object)
    store.add(Scheme((2, 2, 2), "Q", u, v, w), {}, out=tmp_path / "mine")
    result = discover((2, 2, 2), 7, ring="ZT", steps=3, workers=1, starts="catalog", out=tmp_path / "out")
    assert result.found
    assert "ZT" in verify(result.scheme).rings


def test_two_runs_cannot_share_a_journal(tmp_path: Path) -> None:
    header = {"search": "x", "version": "0"}
    with Journal(tmp_path / "j", header), pytest.raises(UsageError, match="running already"):
        Journal(tmp_path / "j", header)


def test_kill_minus_nine_loses_nothing_and_leaves_no_worker(tmp_path: Path) -> None:
    code = (
        "from stl_search.search.portfolio import discover\n"
        f"discover((3, 3, 3), 12, time=60, seed=5, workers=2, strategies={QUICK}, out={str(tmp_path)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    journal = None
    workers: set[int] = set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        journal = next((tmp_path / ".journal").glob("*"), None) if (tmp_path / ".journal").exists() else None
        if journal is not None and len(journal.read_bytes().splitlines()) >= 5:
            break
        time.sleep(0.1)
    assert journal is not None
    if Path("/proc").exists():
        workers = {
            int(p.name)
            for p in Path("/proc").glob("[0-9]*")
            if f"PPid:\t{process.pid}\n" in (p / "status").read_text(errors="replace")
        }
        assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal.read_bytes()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in workers)
    jobs = [json.loads(line.partition(b" ")[2]) for line in before.splitlines()[1:]]
    best = min(
        (
            s["cost"]
            for j in jobs
            for s in j.get("schemes", [])
            if s["add"]["shape"] == [3, 3, 3] and s["add"]["rank"] <= 12
        ),
        default=math.inf,
    )
    more = max(j["elapsed"] for j in jobs) + 2
    result = discover((3, 3, 3), 12, time=more, seed=5, workers=2, strategies=QUICK, out=tmp_path)
    assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    # a pool ignores gains below 1e-6, and dropping digits may cost 1e-6 of the error, 2e-6 of its square
    assert result.error**2 <= best * (1 + 3e-6)


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_torn_or_corrupt_line_ends_what_is_believed(tmp_path: Path) -> None:
    header = {"search": "x", "version": "0"}
    path = tmp_path / "j"
    with Journal(path, header) as journal:
        for i in range(5):
            journal.append({"job": i})
    data = bytearray(path.read_bytes())
    data[data.rfind(b'"job":3') + 6] ^= 1
    path.write_bytes(data)
    with Journal(path, header) as journal:
        assert [x["job"] for x in journal.lines] == [0, 1, 2]
    with Journal(path, header, fresh=True) as journal:
        assert journal.lines == []
    with Journal(path, {"search": "y", "version": "0"}) as journal:
        assert journal.lines == []


def test_the_journal_keeps_every_bit() -> None:
    rng = np.random.default_rng(0)
    s = Scheme((2, 3, 4), "R", rng.standard_normal((5, 6)), rng.standard_normal((5, 12)), rng.standard_normal((5, 8)))
    assert all(
        (a == b).all() for a, b in zip(s.factors, decode(json.loads(json.dumps(encode(s)))).factors, strict=True)
    )
    exact = classical((2, 1, 3))
    assert decode(json.loads(json.dumps(encode(exact)))) == exact


def test_known_schemes_may_be_built_upon_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    strassen = discover((2, 2, 2), 7, ring="ZT", time=60, workers=1, out=tmp_path / "mine")
    result = discover((4, 4, 4), 49, ring="ZT", steps=1, workers=1, starts="catalog", out=tmp_path / "out")
    assert result.found
    record = json.loads(result.path.read_text())
    assert strassen.scheme.id in record["provenance"]["starts"]
    assert "--starts catalog" in record["provenance"]["command"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"time": -1.0}, "time is -1"),
        ({"time": math.inf}, "time is inf"),
        ({"workers": 0}, "workers is 0"),
        ({"strategies": ["magic"]}, "unknown strategy"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_senseless_arguments_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        discover(**{"shape": (2, 2, 2), "rank": 5, "out": tmp_path, **change})


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="cannot write the journal"):
        discover((2, 2, 2), 5, steps=1, out=tmp_path / "file")


def test_the_problem_not_the_budget_names_a_journal() -> None:
    one = Problem((2, 2, 2), 5)
    assert one.key(2, "1") == Problem((2, 2, 2), 5).key(2, "1")
    others = [Problem((2, 2, 2), 6), Problem((2, 2, 2), 5, seed=1), Problem((2, 2, 2), 5, dtype="fp16")]
    assert len({p.key(2, "1") for p in [one, *others]} | {one.key(3, "1"), one.key(2, "2")}) == 6


@pytest.mark.parametrize("ring", ["Z2", "ZT", "Z", "Q"])
@pytest.mark.parametrize(
    "shape", [(2, 2, 2), (2, 2, 5), (3, 2, 3), (3, 3, 3), (4, 4, 4), (1, 3, 4), (4, 3, 3), (3, 4, 4)]
)
def test_lower_bounds_never_exclude_what_is_reached(shape: tuple[int, int, int], ring: str) -> None:
    bound = lower_bound(shape, ring)
    assert bound.rank <= reached_rank(shape)
    assert bound.rank >= max(shape[0] * shape[1], shape[1] * shape[2], shape[0] * shape[2])
    assert all(
        lower_bound(permute_to(classical(shape), p).shape, ring) == bound for p in ((shape[1], shape[2], shape[0]),)
    )
    assert bound.source
