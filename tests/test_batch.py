"""Strategy ``batch`` and the device of a search: what starts are made of, what is handed over, whose jobs are whose."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stl_search import decompose, score
from stl_search.catalog import store
from stl_search.cli import main
from stl_search.errors import UsageError
from stl_search.kernels import batch_score, gpu
from stl_search.search import batch, portfolio, strategy, worker
from stl_search.search.batch import Batch, moved
from stl_search.search.frontier import frontier
from stl_search.search.portfolio import discover, placed
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock
from stl_search.testing import STRASSEN, StrategyContract

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
NAMED = ("batch",)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Batch:
    """The strategy with few starts in a job: a CPU refines thousands, but not in a test."""
    chosen = strategy.get("batch")
    assert isinstance(chosen, Batch)
    monkeypatch.setattr(chosen, "most", 24)
    monkeypatch.setattr(batch, "_FUNNEL", ((3, 60),))
    monkeypatch.setattr(batch, "_PLANS", 1)
    return chosen


@pytest.mark.usefixtures("few")
class TestBatch(StrategyContract):
    strategy = "batch"
    problem = Problem((2, 2, 2), 6, strategies=NAMED)


def filled(problem: Problem, ranks: tuple[int, ...]) -> Pool:
    """A pool with three schemes of each rank."""
    pool = Pool(problem)
    for rank in ranks:
        found = decompose.random_batch(problem.shape, rank, 3, np.random.default_rng(rank))
        found, _ = decompose.refine(problem.shape, found, problem.lam, 30)
        for i in range(3):
            scheme = decompose.scheme_of(problem.shape, found, i)
            pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
    return pool


@pytest.mark.parametrize(("held", "moves"), [((8,), 2), ((7,), 1), ((9,), 1), ((7, 8, 9), 4), ((), 0)])
def test_starts_from_the_pool_have_the_rank_and_come_near_what_they_are_made_of(
    held: tuple[int, ...], moves: int
) -> None:
    problem = Problem((2, 3, 2), 8)
    pool = filled(problem, held)
    starts = moved(problem, pool, 8, 40, np.random.default_rng(0))
    assert [f.shape for f in starts] == [(40 // moves * moves if moves else 0, 8, size) for size in (6, 6, 4)]
    if moves:
        worst = max(e.cost for e in pool) * problem.volume
        values = decompose.objective(problem.shape, starts, problem.lam)
        assert len(np.unique(values)) == len(values)
        assert np.median(values) < 3 * worst  # random ones are at some 100


def test_a_term_that_is_added_fits_what_is_left() -> None:
    """From a scheme that lacks a term of Strassen's, nearly all starts get it back."""
    problem = Problem((2, 2, 2), 7)
    u, v, w = (f[:6].reshape(6, 4).astype(float) for f in STRASSEN.factors)
    pool = Pool(problem)
    lacking = decompose.scheme_of((2, 2, 2), (u[None], v[None], w[None]))
    pool.add(Entry(cost(problem, lacking), lacking.id, lacking))
    starts = moved(problem, pool, 7, 16, np.random.default_rng(1))
    assert np.median(decompose.objective((2, 2, 2), starts)) < 0.3  # the lacking one is at 2


def test_a_term_that_is_exchanged_fits_what_its_loss_leaves() -> None:
    """Of an exact scheme nothing else is left: most starts get the lost term back, which weighs 4 or 8."""
    problem = Problem((2, 2, 2), 7)
    pool = Pool(problem)
    pool.add(Entry(cost(problem, STRASSEN), STRASSEN.id, STRASSEN))
    starts = moved(problem, pool, 7, 32, np.random.default_rng(2))
    shaken, exchanged = np.split(decompose.objective((2, 2, 2), starts), 2)
    assert np.median(exchanged) < 0.3 < shaken.max()


def test_optima_handed_over_are_of_different_basins_and_new(few: Batch) -> None:
    problem = Problem((2, 2, 2), 4, strategies=NAMED)
    pool = filled(problem, (4,))
    known = pool.cell((2, 2, 2), 4)[0].cost
    costs = np.array([np.nan, 0.5, 0.4, 0.4 + 1e-9, known, 0.6, np.inf, 0.3, 0.7])
    assert few._chosen(problem, pool, 4, costs) == [7, 2, 1, 5, 8]
    assert few._chosen(problem, pool, 4, np.linspace(2, 1, 20)) == list(range(19, 11, -1))  # eight at most


def test_a_job_scores_its_best_by_the_kernel(few: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, here in Triton's interpreter: the same schemes come of it."""
    pytest.importorskip("triton")
    problem = Problem((2, 2, 2), 5, strategies=NAMED)
    few.most = 16

    def play() -> list[str]:
        return [s.id for s in few.run(problem, Pool(problem), np.random.default_rng(3), Clock(None))]

    plain, launches = play(), []

    def by_kernel(shape: tuple[int, int, int], *factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        m, k, n = shape
        launches.append(len(factors[0]))
        on = (f.to("cuda" if torch.cuda.is_available() else "cpu") for f in factors)
        found = gpu.residuals(*(f.unflatten(-1, s) for f, s in zip(on, ((m, k), (k, n), (m, n)), strict=True)))
        return found[0].cpu(), found[1].cpu()

    monkeypatch.setattr(batch_score, "of_factors", by_kernel)
    assert play() == plain
    assert launches == [8]


def test_the_find_is_measured_by_the_kernels_that_would_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    problem = Problem((2, 2, 2), 7, dtype="fp16", strategies=NAMED)
    assert worker.measured(problem, STRASSEN) is None  # on the CPU nothing is
    real = batch_score.monte_carlo
    monkeypatch.setattr(worker, "_MEASURED_SIDE", 48)
    if not torch.cuda.is_available():
        monkeypatch.setattr(gpu, "available", lambda: True)
        monkeypatch.setattr(batch_score, "monte_carlo", lambda *x, device: real(*x, device="cpu"))
    asked = Problem((2, 2, 2), 7, dtype="fp16", strategies=NAMED, device="cuda")
    found = worker.measured(asked, STRASSEN)
    assert found == pytest.approx(score.error(STRASSEN, "fp16"), rel=0.2)
    monkeypatch.setattr(gpu, "available", lambda: False)
    assert worker.measured(asked, STRASSEN) is None


# -- where a search runs -----------------------------------------------------------------------------------------------


def gpu_there(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(portfolio, "_has_gpu", lambda: there)


def test_auto_is_the_gpu_where_there_is_one_and_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_there(monkeypatch, True)
    found = placed(Problem((2, 2, 2), 5), "auto")
    assert found.device == "cuda"
    assert found.strategies == strategy.names()
    assert placed(Problem((2, 2, 2), 5, strategies=("batch", "deflate")), "auto").device == "cuda"
    for problem in (
        Problem((2, 2, 2), 7, ring="ZT"),
        Problem((3, 3, 3), 9, symmetry="cyclic"),
        Problem((2, 2, 2), 5, strategies=("deflate", "numeric")),  # a command recorded on a CPU names what it ran
    ):
        assert placed(problem, "auto") == problem
        with pytest.raises(UsageError, match="--device auto or cpu"):
            placed(problem, "cuda")
    gpu_there(monkeypatch, False)
    assert placed(Problem((2, 2, 2), 5), "auto") == Problem((2, 2, 2), 5)
    with pytest.raises(UsageError, match="no CUDA GPU"):
        placed(Problem((2, 2, 2), 5), "cuda")
    with pytest.raises(UsageError, match="unknown device 'tpu'; known: auto, cpu, cuda"):
        placed(Problem((2, 2, 2), 5), "tpu")


@pytest.mark.parametrize(
    "words", [["discover", "--rank", "5"], ["frontier", "--time", "2s"]], ids=["discover", "frontier"]
)
def test_no_gpu_is_bad_usage_in_one_line(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_there(monkeypatch, False)
    done = CliRunner().invoke(main, [*words, "--tile", "2", "--device", "cuda", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "no CUDA GPU that torch can use was found: give --device auto or cpu" in done.stderr
    assert not list(tmp_path.iterdir())


def test_where_no_driver_is_torch_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(portfolio.ctypes, "CDLL", absent)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would raise
    monkeypatch.setattr(portfolio.sys, "platform", "linux")
    assert portfolio._has_gpu() is False


def test_the_device_is_no_part_of_what_searches_on_the_cpu_are_called() -> None:
    problem = Problem((2, 2, 2), 5)
    # as before there were devices: an unfinished search goes on
    assert problem.key(2, "1") == "c8373584cdbc69dc"
    assert problem.key(2, "1") != Problem((2, 2, 2), 5, device="cuda").key(2, "1")


def test_strategies_that_nobody_names_leave_torch_alone(tmp_path: Path) -> None:
    assert "batch" in strategy.names()
    assert "batch" not in strategy.usual()
    pool = Pool(Problem((2, 2, 2), 5))
    assert not any(strategy.batched(one) for one, _ in strategy.suitable(pool.problem, pool))
    result = discover((2, 2, 2), 5, steps=1, workers=1, device="cpu", out=tmp_path)
    command = json.loads(result.path.read_text())["provenance"]["command"]
    assert "batch" not in command
    assert "--device" not in command


class Crew:
    """Stands in for worker processes: answers at once, with nothing found, and notes who got which job."""

    made: list[Crew]

    def __init__(self, problem: Problem, initial: list, inbox: object, lane: bool | None = None) -> None:
        self.lane, self.inbox, self.fed, self.jobs = lane, inbox, 0, []
        self.made.append(self)

    def give(self, job: int, history: list, deadline: float | None) -> None:
        assert job >= self.fed
        self.fed += len(history)
        self.jobs.append(job)
        self.inbox.put((self, {"job": job, "strategy": "", "seconds": 0.0, "schemes": []}))

    def hang_up(self) -> None:
        self.inbox.put((self, None))

    def end(self) -> None:
        pass


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> list[Crew]:
    Crew.made = []
    monkeypatch.setattr(portfolio, "_Worker", Crew)
    return Crew.made


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_one_worker_does_all_jobs_of_the_device_and_no_others(crew: list[Crew], tmp_path: Path, workers: int) -> None:
    discover((2, 2, 2), 5, steps=20, workers=workers, strategies=["batch", "deflate"], device="cpu", out=tmp_path)
    done = {job: one.lane for one in crew for job in one.jobs}
    assert sorted(done) == list(range(20))
    assert {job for job, lane in done.items() if lane} == set(range(0, 20, 2 * workers - 1))
    assert len([one for one in crew if one.lane]) == 1
    assert len([one for one in crew if one.lane is False]) == workers - 1


def test_without_a_device_all_workers_do_all_jobs(crew: list[Crew], tmp_path: Path) -> None:
    discover((2, 2, 2), 5, steps=9, workers=2, device="cpu", out=tmp_path)
    assert {one.lane for one in crew} == {None}
    assert sorted(job for one in crew for job in one.jobs) == list(range(9))


def test_batch_alone_is_one_process(crew: list[Crew], tmp_path: Path) -> None:
    result = discover((2, 2, 2), 5, steps=6, workers=4, strategies=["batch"], device="cpu", out=tmp_path)
    assert [(one.lane, one.jobs) for one in crew if one.jobs] == [(True, list(range(6)))]
    assert "--workers 1" in json.loads(result.path.read_text())["provenance"]["command"]


def test_a_job_of_the_device_runs_batch_and_the_others_anything_else(few: Batch) -> None:
    problem = Problem((2, 2, 2), 5, strategies=("batch", "compose", "numeric"))
    pool = Pool(problem)
    chosen = {lane: {worker.run_job(problem, pool, j, Clock(0.0), lane)[0] for j in range(8)} for lane in (True, False)}
    assert chosen[True] == {"batch"}
    assert chosen[False] <= {"compose", "numeric"}


def test_a_frontier_on_the_gpu_names_batch_in_every_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    monkeypatch.setattr("stl_search.catalog.store.shipped_dir", lambda: tmp_path / "shipped")  # nothing to begin with
    gpu_there(monkeypatch, True)
    calls: list[dict] = []

    def stand_in(*_: object, **options: object) -> None:
        calls.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("stl_search.search.frontier.discover", stand_in)
    for device in ("cuda", "auto", "cpu"):
        with pytest.raises(KeyboardInterrupt):
            frontier((2, 2, 2), time=9.0, workers=2, device=device, out=tmp_path / "out")
    assert [call["device"] for call in calls] == ["cuda", "cuda", "cpu"]
    assert ["batch" in call["strategies"] for call in calls] == [True, True, False]
    assert len(list((tmp_path / "out" / ".journal").iterdir())) == 2  # a journal of its own


def test_a_find_of_batch_is_made_again_by_its_command(tmp_path: Path) -> None:
    """The whole way through a worker process, with thousands of starts."""
    result = discover((2, 2, 2), 3, steps=1, strategies=["batch"], device="cpu", out=tmp_path / "one")
    assert result.found
    assert result.strategy == "batch"
    assert result.E <= 0.6243  # 5/8 is the line
    assert result.measured is None
    command = shlex.split(json.loads(result.path.read_text())["provenance"]["command"])
    assert command[-2:] == ["--device", "cpu"]
    again = CliRunner().invoke(main, [*command[1:], "--json", "--out", str(tmp_path / "two")])
    assert json.loads(again.stdout)["id"] == result.scheme.id
    assert (tmp_path / "two" / result.path.name).read_bytes() == result.path.read_bytes()


@needs_gpu
def test_a_search_on_the_gpu(tmp_path: Path) -> None:
    """Runs repeat on one device, the CPU ends in the same basin, and the error is what the kernels make."""
    found = [
        discover((2, 2, 2), 5, steps=1, strategies=["batch"], device=device, out=tmp_path / name)
        for device, name in (("cuda", "a"), ("cuda", "b"), ("cpu", "c"))
    ]
    assert found[0].path.read_bytes() == found[1].path.read_bytes()
    assert found[0].error == pytest.approx(found[2].error, rel=1e-6)
    assert found[0].measured == pytest.approx(found[0].error, rel=0.03)
    assert "--device cuda" in json.loads(found[0].path.read_text())["provenance"]["command"]
    assert store.load(found[0].path).rank == 5
