"""``discover``: the portfolio of strategies on worker processes, journalled and resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stl_search import __version__, score, transform, verify
from stl_search.catalog import store
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search import bounds, strategy
from stl_search.search.compose import splits
from stl_search.search.journal import Journal, decode, encode
from stl_search.search.problem import Entry, Pool, Problem, cost

__all__ = ["Progress", "Result", "discover"]

_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package: a checkout, or site-packages
_TIE = 1e-6  # a find must have E below the line 1 - r/(mkn) by more than this
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Progress:
    """Where a search stands: seconds or jobs used of the budget, and the best so far (error; rank if exact)."""

    elapsed: float
    jobs: int
    seconds: float | None
    steps: int | None
    best_error: float | None
    best_rank: int | None
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What ``discover`` found: the contract object of the command line, and the scheme itself.

    ``found`` is the answer to what was asked: below the line 1 - r/(mkn), or exact, with at most the asked rank. An
    approximate scheme that is only the best so far is written too (``path``), with ``found`` false.
    """

    found: bool
    problem: Problem
    scheme: Scheme | None
    path: Path | None
    E: float | None
    error: float | None
    kappa: float | None
    strategy: str | None
    seconds: float
    jobs: int
    reason: str = ""
    catalog_better: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 when found, 3 otherwise."""
        return 0 if self.found else 3

    @property
    def floor(self) -> float:
        """The rigorous lower bound of E at the asked rank."""
        return score.floor(self.problem.shape, self.problem.rank)

    @property
    def line(self) -> float:
        """E of keeping r of the mkn elementary products."""
        return score.line(self.problem.shape, self.problem.rank)

    @property
    def truncation(self) -> bool:
        """Whether the scheme only ties the line."""
        return self.E is not None and not self.problem.exact and abs(self.E - self.line) <= _TIE and self.line > 0

    def to_json(self) -> dict[str, Any]:
        """The JSON object that ``stl-search discover --json`` prints."""
        s = self.scheme
        return {
            "found": self.found,
            "path": None if self.path is None else str(self.path),
            "id": None if s is None else s.id,
            "shape": list(self.problem.shape),
            "rank": self.problem.rank if s is None else s.rank,
            "ring": self.problem.ring if s is None else s.ring.name,
            "dtype": self.problem.dtype,
            "E": self.E,
            "error": self.error,
            "kappa": self.kappa,
            "strategy": self.strategy,
            "seconds": round(self.seconds, 3),
            "jobs": self.jobs,
            "floor": None if self.problem.exact else self.floor,
            "line": None if self.problem.exact else self.line,
            "truncation": self.truncation,
            "reason": self.reason,
            "catalog_better": self.catalog_better,
        }


def discover(
    shape: Sequence[int],
    rank: int,
    *,
    ring: str = "R",
    dtype: str = "bf16",
    time: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    strategies: Iterable[str] = (),
    symmetry: str | None = None,
    starts: str = "none",
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Search for a scheme of ``shape`` (m, k, n) with at most ``rank`` products, prove the best one and keep it.

    ``ring`` R minimises error(dtype); an exact ring (Q, Z, ZT, Z2) asks for an exact scheme and ends with the first.
    The budget is ``time`` seconds of wall clock (60 unless ``steps`` is given) or ``steps`` jobs; with steps, the same
    seed and workers give the same file. The winner goes through ``catalog.add`` to ``out`` (default: the user's
    catalog), where the journal of the run is kept too, so that an interrupted search goes on when called again;
    ``fresh`` starts anew. ``starts`` none, shipped or catalog says which known schemes may be built upon. ``symmetry``
    (``cyclic``, ``transpose``, the name of a group, or several joined by ``+``) limits the search to schemes that the
    group leaves invariant (over exact rings: that a conjugate of it in GL x GL x GL does).

    Raises UsageError for what makes no sense; returns a Result, found or not.
    """
    chosen = tuple(sorted(set(strategies)))
    for name in chosen:
        strategy.get(name)
    problem = Problem(tuple(shape), rank, ring, dtype, seed, starts, chosen, symmetry or "")  # type: ignore[arg-type]
    if steps is not None and steps < 1:
        raise UsageError(f"steps is {steps}, must be >= 1")
    if time is not None and not (time > 0 and math.isfinite(time)):
        raise UsageError(f"time is {time}, must be a positive number of seconds")
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}, must be >= 1")
    if time is None and steps is None:
        time = 60.0
    workers = workers or _cores()
    folder = Path(out) if out is not None else store.user_dir()
    if problem.exact:
        bound = bounds.lower_bound(problem.shape, problem.ring)
        if rank < bound.rank:
            reason = f"impossible: every exact scheme over {problem.ring} has rank >= {bound.rank} ({bound.source})"
            return Result(False, problem, None, None, None, None, None, None, 0.0, 0, reason)
    strategy.suitable(problem, Pool(problem))
    header = {"search": problem.key(workers, __version__), "version": __version__}
    with Journal(folder / ".journal" / header["search"], header, fresh) as journal:
        run = _Run(problem, workers, time, steps, journal, progress)
        result = run.finish(run.search(), folder)
        journal.append({"finished": result.to_json()})
    return result


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """One call of ``discover``: hands jobs to workers, merges their answers in job order, keeps the journal.

    Job j sees the pool as it stood after job j - lag, whoever ran the jobs between: that makes the outcome a function
    of seed, workers and the number of jobs alone, and lets no worker wait for another.
    """

    def __init__(
        self,
        problem: Problem,
        workers: int,
        seconds: float | None,
        steps: int | None,
        journal: Journal,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.problem = problem
        self.workers = workers
        self.seconds = seconds
        self.steps = steps
        self.journal = journal
        self.progress = progress
        self.lag = 2 * workers
        self.pool = Pool(problem)
        self.start_ids: list[str] = []
        self.initial: list[dict[str, Any]] = []
        for scheme in self._starts():
            entry = Entry(cost(problem, scheme), scheme.id, scheme, "start")
            if self.pool.add(entry):
                self.initial.append(_message(entry))
                self.start_ids.append(scheme.id)
        if problem.volume <= problem.rank:
            self.pool.add(_entry(problem, transform.classical(problem.shape), "classical"))
        self.answers: dict[int, dict[str, Any]] = {}
        self.spent = 0.0
        for line in journal.lines:
            self.answers[line["job"]] = line
            self.spent = max(self.spent, float(line.get("elapsed", 0.0)))
        self.merged = 0
        self.began = time.monotonic()

    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self.began

    def search(self) -> int:
        """Run jobs until the budget is used or an exact target is met; returns the number of merged jobs."""
        self._merge()
        with contextlib.ExitStack() as stack:
            crew: list[_Worker] = []
            inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
            running: dict[_Worker, int] = {}
            next_job = 0
            reserve = 0.0 if self.seconds is None else min(3.0, 0.05 * self.seconds)
            while True:
                while next_job in self.answers:
                    next_job += 1
                over = self._met() or (self.seconds is not None and self.elapsed() >= self.seconds - reserve)
                while (
                    not over
                    and len(running) < self.workers
                    and (self.steps is None or next_job < self.steps)
                    and next_job - self.lag < self.merged
                ):
                    idle = next((w for w in crew if w not in running), None)
                    if idle is None:
                        idle = _Worker(self.problem, self.initial, inbox)
                        stack.callback(idle.end)
                        crew.append(idle)
                    left = None if self.seconds is None else self.seconds - reserve - self.elapsed()
                    idle.give(next_job, self._history(next_job - self.lag), left)
                    running[idle] = next_job
                    next_job += 1
                    while next_job in self.answers:
                        next_job += 1
                if not running or (over and self.steps is None and self._met()):
                    break
                if over and self.seconds is not None and self.elapsed() > self.seconds + 2.0:
                    break  # a job that does not look at its clock is not waited for
                try:
                    worker, answer = inbox.get(timeout=0.2)
                except queue.Empty:
                    self._report()
                    continue
                if answer is None:
                    raise StlError(
                        f"a worker process ended unexpectedly (job {running.get(worker)}); run again to resume"
                    )
                if "error" in answer:
                    last = answer["error"].strip().splitlines()[-1]
                    raise StlError(
                        f"job {answer['job']} failed: {last}\n{answer['error']}"
                        if _debug()
                        else f"job {answer['job']} failed: {last}"
                    )
                running.pop(worker)
                answer["elapsed"] = round(self.elapsed(), 3)
                self.journal.append(answer)
                self.answers[answer["job"]] = answer
                self._merge()
                self._report()
        return self.merged

    def _merge(self) -> None:
        """Take answers into the pool in job order, as far as they have come; stop where an exact goal is met."""
        while self.merged in self.answers and not self._met():
            if self.steps is not None and self.merged >= self.steps:
                return
            for message in self.answers[self.merged]["schemes"]:
                self.pool.add(Entry(message["cost"], message["id"], decode(message["add"]), message["strategy"]))
            self.merged += 1

    def _history(self, upto: int) -> list[list[dict[str, Any]]]:
        """The answers of jobs 0 .. upto, job by job, as a worker's pool must have seen them."""
        return [self.answers[j]["schemes"] for j in range(upto + 1)]

    def _met(self) -> bool:
        if not self.problem.exact:
            return False
        return self.pool.best(self.problem.shape, self.problem.rank) is not None

    def _report(self) -> None:
        if self.progress is None:
            return
        best = self.pool.best(self.problem.shape, self.problem.rank)
        exact = self.problem.exact
        ranks = self.pool.ranks(self.problem.shape)
        self.progress(
            Progress(
                self.elapsed(),
                self.merged,
                self.seconds,
                self.steps,
                None if best is None or exact else math.sqrt(best.cost),
                ranks[0] if exact and ranks else None,
                "" if best is None else best.strategy,
            )
        )

    def finish(self, jobs: int, folder: Path) -> Result:
        """Polish, prove and keep the best scheme."""
        problem = self.problem
        # what was found by jobs that were not merged in order counts too when time ran out
        if self.steps is None and not self._met():
            for job in sorted(j for j in self.answers if j >= self.merged):
                for message in self.answers[job]["schemes"]:
                    self.pool.add(Entry(message["cost"], message["id"], decode(message["add"]), message["strategy"]))
        best = self.pool.best(problem.shape, problem.rank)
        seconds = self.elapsed()
        if best is None:
            ranks = self.pool.ranks(problem.shape)
            seen = f"; smallest rank met: {ranks[0]}" if problem.exact and ranks else ""
            reason = f"not found after {jobs} jobs in {seconds:.1f} s{seen}"
            return Result(False, problem, None, None, None, None, None, None, seconds, jobs, reason)
        scheme = best.scheme if best.scheme.ring.exact else self._polished(best.scheme)
        if problem.ring == "Z2":
            scheme = transform.to_ring(scheme, "Z2")
        provenance = {
            "command": self._command(jobs),
            "strategy": best.strategy,
            "seed": problem.seed,
            "steps": jobs,
            "workers": self.workers,
            "version": __version__,
            "commit": _commit(),
            # a run bounded by steps writes the same file every time, so it records no clock
            "seconds": None if self.steps is not None else round(seconds, 1),
            "starts": self.start_ids,
            "references": [],
        }
        path = store.add(scheme, provenance, out=folder, dtype=None if problem.exact else problem.dtype)
        kept = store.load(path)
        if problem.exact:
            better = self._better(kept, None)
            return Result(True, problem, kept, path, None, None, None, best.strategy, seconds, jobs, "", better)
        e = verify(kept).E
        assert e is not None
        line = score.line(problem.shape, problem.rank)
        found = e < line - _TIE or e == 0.0 or (line == 0.0 and e <= _TIE)
        error = score.error(kept, problem.dtype)
        reason = "" if found else "no better than keeping r of the mkn elementary products"
        kappa = score.noise_gain(kept)
        better = self._better(kept, error)
        return Result(found, problem, kept, path, e, error, kappa, best.strategy, seconds, jobs, reason, better)

    def _polished(self, scheme: Scheme) -> Scheme:
        """The scheme refined to its last digits by a worker, whose arithmetic runs on one thread as in every job."""
        inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        worker = _Worker(self.problem, [{"polish": encode(scheme)}], inbox)
        try:
            answer = inbox.get(timeout=60.0)[1]
        except queue.Empty:
            return scheme
        finally:
            worker.end()
        return scheme if answer is None else decode(answer["polished"])

    def _better(self, kept: Scheme, error: float | None) -> dict[str, Any] | None:
        """What the catalogs already hold that is better than the find, if anything."""
        problem = self.problem
        if problem.exact:
            return None
        try:
            entry = store.best(problem.shape, max_rank=problem.rank, dtype=problem.dtype)
        except StlError:
            return None
        known = score.error(store.scheme_of(entry, problem.shape), problem.dtype)
        if entry.id == kept.id or error is None or known >= error * (1 - 1e-9):
            return None
        return {"id": entry.id, "path": str(entry.path), "error": known}

    def _starts(self) -> list[Scheme]:
        """Known schemes of the shape near the rank, and of the shapes that a composition needs."""
        if self.problem.starts == "none":
            return []
        dirs = [store.shipped_dir()] if self.problem.starts == "shipped" else None
        wanted: set[Shape] = {self.problem.shape}
        for _, first, second in splits(self.problem.shape):
            wanted |= {first, second}
        found = []
        for shape in sorted(wanted):
            for entry in store.candidates(shape, dirs=dirs):
                if shape == self.problem.shape and not -8 <= entry.rank - self.problem.rank <= 12:
                    continue
                with contextlib.suppress(StlError):  # a broken entry is no reason not to search
                    scheme = store.scheme_of(entry, shape)
                    if scheme.ring.name in ("Z2", "C") or (self.problem.exact and not scheme.ring.exact):
                        continue
                    found.append(scheme)
        return found

    def _command(self, jobs: int) -> str:
        """The command that repeats this find: by steps, which is deterministic."""
        p = self.problem
        words = [
            "stl-search",
            "discover",
            "--shape",
            ",".join(map(str, p.shape)),
            "--rank",
            str(p.rank),
            "--ring",
            p.ring,
        ]
        if not p.exact:
            words += ["--dtype", p.dtype]
        words += ["--steps", str(max(1, jobs)), "--seed", str(p.seed), "--workers", str(self.workers)]
        for name in p.strategies or strategy.names():  # by name, so that a later strategy changes no replay
            words += ["--strategy", name]
        if p.symmetry:
            words += ["--symmetry", p.symmetry]
        if p.starts != "none":
            words += ["--starts", p.starts]
        return " ".join(words)


class _Worker:
    """A worker process and the thread that reads its answers."""

    def __init__(self, problem: Problem, initial: list[dict[str, Any]], inbox: queue.Queue[Any]) -> None:
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
        # the same library as the parent's, also when it runs from a checkout that is not installed
        root = str(_ROOT)
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stl_search.search.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers quietly
        )
        self.fed = 0
        self._send({"problem": dataclasses.asdict(problem)})
        for message in initial:
            self._send(message)
        self._inbox = inbox
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            self._inbox.put((self, json.loads(raw)))
        self._inbox.put((self, None))

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is reported by _listen
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def give(self, job: int, history: list[list[dict[str, Any]]], seconds: float | None) -> None:
        """Bring its pool to the given history and start a job."""
        for schemes in history[self.fed :]:
            for message in schemes:
                self._send(message)
        self.fed = max(self.fed, len(history))
        self._send({"job": job, "seconds": seconds})

    def end(self) -> None:
        """Kill it and wait for it."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _entry(problem: Problem, scheme: Scheme, name: str) -> Entry:
    return Entry(cost(problem, scheme), scheme.id, scheme, name)


def _message(entry: Entry) -> dict[str, Any]:
    return {"add": encode(entry.scheme), "cost": entry.cost, "id": entry.id, "strategy": entry.strategy}


def _commit() -> str | None:
    """The commit of the checkout that runs, when it is one."""
    root = _ROOT
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5)
        return done.stdout.strip() or None
    return None


def _debug() -> bool:
    return bool(os.environ.get("STL_DEBUG"))
