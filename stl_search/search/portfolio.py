"""``discover``: the portfolio of strategies on worker processes, journalled and resumable."""

from __future__ import annotations

import contextlib
import ctypes
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stl_search import __version__, score, transform, verify
from stl_search.catalog import store
from stl_search.errors import CatalogError, StlError, UsageError
from stl_search.scheme import MAX_TENSOR, Scheme, Shape
from stl_search.search import bounds, compositions, neighbours, strategy
from stl_search.search.compose import splits
from stl_search.search.journal import Journal, decode, encode
from stl_search.search.problem import DEVICES, Entry, Pool, Problem, cost

__all__ = ["Progress", "Result", "discover", "placed"]

_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package: a checkout, or site-packages
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
    flips: int = 0  # made by strategies that count them
    measured: float | None = None  # the error on Gaussian matrices, by the device's own kernels
    unrestricted: dict[str, Any] | None = None  # beside cheap coefficients: the best that the search met without

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
        return self.E is not None and not self.problem.exact and abs(self.E - self.line) <= store.TIE and self.line > 0

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
            "device": self.problem.device,
            "measured": self.measured,
            "strategy": self.strategy,
            "seconds": round(self.seconds, 3),
            "jobs": self.jobs,
            "flips": self.flips,
            "floor": None if self.problem.exact else self.floor,
            "line": None if self.problem.exact else self.line,
            "truncation": self.truncation,
            "reason": self.reason,
            "catalog_better": self.catalog_better,
            "coefficients": self.problem.coefficients,
            "unrestricted": self.unrestricted,
            **({} if s is None else _expense(s)),
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
    coefficients: str = "any",
    starts: str = "none",
    given: Iterable[Scheme] = (),
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    wanted: Callable[[Scheme], bool] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Search for a scheme of ``shape`` (m, k, n) with at most ``rank`` products, prove the best one and keep it.

    ``ring`` R minimises error(dtype); an exact ring (Q, Z, ZT, Z2) asks for an exact scheme and ends with the first.
    The budget is ``time`` seconds of wall clock (60 unless ``steps`` is given) or ``steps`` jobs; with steps, the same
    seed and workers give the same file. The winner goes through ``catalog.add`` to ``out`` (default: the user's
    catalog), if ``wanted`` says so of it where that is given; the journal of the run is kept there too, so that an
    interrupted search goes on when called again; ``fresh`` starts anew. ``starts`` none, shipped or catalog says which
    known schemes may be built upon; those of ``given`` may be too (they should lie in a catalog, since the recorded
    command names them by id). A search also begins from what can be made of them: see ``neighbours`` for exact and
    ``compositions`` for approximate schemes.
    ``symmetry`` (``cyclic``, ``transpose``, the name of a group, or several joined by ``+``) limits the search to
    schemes that the group leaves invariant (over exact rings: that a conjugate of it in GL x GL x GL does; a lift of
    ``flipgraph``: that one modulo 2 does).

    On ``device`` "cuda" one of the workers does nothing but jobs of the strategy ``batch``, on the GPU, each beside two
    of every other worker; "auto" does so where there is a GPU, for approximate schemes, unless ``symmetry`` or the
    strategies named ask for something else. On "cpu" ``batch`` runs when it is named, with the same starts, slower.
    ``coefficients`` "sparse" looks for few non-zeros in u and v, "grid" for coefficients 0, +-1/4, +-1/2, +-1, +-2
    there, and "sparse+w" and "grid+w" for the same in w; the least error^2 * (1 + share of non-zeros / 4) wins.

    Raises UsageError for what makes no sense; returns a Result, found or not.
    """
    chosen = tuple(sorted({strategies} if isinstance(strategies, str) else set(strategies)))
    for name in chosen:
        strategy.get(name)
    sides: Any = tuple(shape)
    problem = Problem(sides, rank, ring, dtype, seed, starts, chosen, symmetry or "", coefficients=coefficients)
    problem = placed(problem, device)
    if steps is not None and steps < 1:
        raise UsageError(f"steps is {steps}, must be >= 1")
    if time is not None and not (time > 0 and math.isfinite(time)):
        raise UsageError(f"time is {time}, must be a positive number of seconds")
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}, must be >= 1")
    if time is None and steps is None:
        time = 60.0
    workers = workers or _cores()
    if chosen and all(strategy.batched(strategy.get(name)) for name in chosen):
        workers = 1  # one process owns the device, and has no others beside it
    folder = Path(out) if out is not None else store.user_dir()
    if problem.exact:
        bound = bounds.lower_bound(problem.shape, problem.ring)
        if rank < bound.rank:
            reason = f"impossible: every exact scheme over {problem.ring} has rank >= {bound.rank} ({bound.source})"
            return Result(False, problem, None, None, None, None, None, None, 0.0, 0, reason)
    m, k, n = problem.shape
    if (m * k) * (k * n) * (m * n) > MAX_TENSOR:
        raise UsageError(f"<{m},{k},{n}> is too large to be searched: (mk)(kn)(mn) is above {MAX_TENSOR}")
    if rank > problem.volume:  # more products than the classical algorithm has are never needed
        problem = dataclasses.replace(problem, rank=problem.volume)
    sources = sorted({s.id: s for s in given}.values(), key=lambda s: s.id)
    held, known = _starts(problem, sources)
    entries = [_entry(problem, scheme, "start") for scheme in known]
    begun = Pool(problem)
    for entry in entries:
        begun.add(entry)
    strategy.suitable(problem, begun)  # refuses before a journal is opened
    header: dict[str, Any] = {"search": problem.key(workers, __version__), "version": __version__}
    if known:  # other starts, another search: a journal that began from others is not gone on with
        header["starts"] = sorted(s.id for s in known)
    with Journal(folder / ".journal" / header["search"], header, fresh) as journal:
        run = _Run(problem, workers, time, steps, journal, entries, progress)
        run.start_ids = [*(s.id for s in sources), *held]
        run.named = [s.id for s in sources]
        result = run.finish(run.search(), folder, wanted)
        journal.append({"finished": result.to_json()})
    return result


def placed(problem: Problem, device: str) -> Problem:
    """The problem on the device that is meant; a search on a GPU that names no strategies names all."""
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r:.40}; known: {', '.join(DEVICES)}")
    if device == "cpu":
        return problem
    reason = None
    if problem.exact or problem.symmetry:
        reason = "exact and symmetric searches run on the CPU: give --device auto or cpu"
    elif problem.strategies and not any(strategy.batched(strategy.get(name)) for name in problem.strategies):
        reason = "none of the strategies named runs on a GPU: name batch too, or give --device auto or cpu"
    elif not _has_gpu():
        reason = "no CUDA GPU that torch can use was found: give --device auto or cpu"
    if reason is None:
        return dataclasses.replace(problem, device="cuda", strategies=problem.strategies or strategy.names())
    if device == "cuda":
        raise UsageError(reason)
    return problem


def _has_gpu() -> bool:
    """Whether torch sees a CUDA device. It takes seconds to load, and is not asked where there is no driver."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


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
        starts: list[Entry],
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
        self.start_ids: list[str] = []  # of what the search began from, and those of them that its command names
        self.named: list[str] = []
        self.initial: list[dict[str, Any]] = []
        for entry in starts:
            if self.pool.add(entry):
                self.initial.append(_message(entry))
        fitting = [strategy.batched(one) for one, _ in strategy.suitable(problem, self.pool)]
        # the jobs of the device: none, all, or one beside two of each other worker
        self.device_jobs = 0 if not any(fitting) else 1 if all(fitting) else 2 * workers - 1
        # known to this process alone, so that jobs are the same with and without
        if problem.volume <= problem.rank:
            self.pool.add(_entry(problem, transform.classical(problem.shape), "classical"))
        elif not problem.exact and not problem.symmetry:
            self.pool.add(_entry(problem, _truncated(problem), "truncation"))
        self.answers: dict[int, dict[str, Any]] = {}
        self.extras: list[dict[str, Any]] = []  # answers that the clock cut short: finds, but no part of the sequence
        self.origin: dict[str, int] = {}
        self.failures: list[str] = []
        self.flips = 0
        self.spent = 0.0
        try:
            for line in journal.lines:
                self._take(line)
                self.spent = max(self.spent, float(line["elapsed"]))
        except (KeyError, TypeError, ValueError):
            raise CatalogError(f"the journal {journal.path} is not one of this program; use --fresh") from None
        self.merged = 0
        self.began = time.monotonic()

    def _take(self, answer: dict[str, Any]) -> None:
        """File an answer: under its job, or among the extras where the clock cut the job short."""
        self.flips += int(answer.get("flips", 0))
        if answer.get("cut"):
            self.extras.append(answer)
        else:
            self.answers[int(answer["job"])] = answer

    def elapsed(self) -> float:
        """Seconds used so far, those of an interrupted run included."""
        return self.spent + time.monotonic() - self.began

    def search(self) -> int:
        """Run jobs until the budget is used or an exact target is met; returns the number of merged jobs."""
        self._merge()
        with contextlib.ExitStack() as stack:
            crew: list[_Worker] = []
            inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
            running: dict[_Worker, int] = {}
            lanes = self._lanes()
            following = dict.fromkeys(lanes, 0)
            reserve = 0.0 if self.seconds is None else min(3.0, 0.05 * self.seconds)
            while True:
                over = self._met() or (self.seconds is not None and self.elapsed() >= self.seconds - reserve)
                for lane, most in lanes.items():
                    while not over and sum(worker.lane is lane for worker in running) < most:
                        job = following[lane]
                        while job in self.answers or self._lane(job) is not lane:
                            job += 1
                        following[lane] = job
                        if (self.steps is not None and job >= self.steps) or job - self.lag >= self.merged:
                            break
                        idle = next((w for w in crew if w.lane is lane and w not in running), None)
                        if idle is None:
                            idle = _Worker(self.problem, self.initial, inbox, lane)
                            stack.callback(idle.end)
                            crew.append(idle)
                        left = None if self.seconds is None else self.seconds - reserve - self.elapsed()
                        history = [self.answers[j]["schemes"] for j in range(idle.fed, job - self.lag + 1)]
                        idle.give(job, history, None if left is None else time.time() + left)
                        running[idle] = job
                        following[lane] += 1
                        over = self.seconds is not None and self.elapsed() >= self.seconds - reserve
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
                running.pop(worker)
                self._count_failure(answer)
                answer["elapsed"] = round(self.elapsed(), 3)
                self.journal.append(answer)
                self._take(answer)
                self._merge()
                self._report()
        return self.merged

    def _lanes(self) -> dict[bool | None, int]:
        """How many workers do the jobs of the device, and how many the others; all alike where there is no device."""
        if not self.device_jobs:
            return {None: self.workers}
        return {True: 1} if self.device_jobs == 1 else {True: 1, False: self.workers - 1}

    def _lane(self, job: int) -> bool | None:
        """Whether a job is one of the device; None where there is no device."""
        return job % self.device_jobs == 0 if self.device_jobs else None

    def _count_failure(self, answer: dict[str, Any]) -> None:
        """A job that failed found nothing; a search whose every job fails has a cause that the user must see."""
        failed = answer.get("error")
        if failed:
            if os.environ.get("STL_DEBUG"):
                print(failed, file=sys.stderr)  # noqa: T201 - asked for
            self.failures.append(f"job {answer['job']} failed: {failed.strip().splitlines()[-1]}")
        if len(self.failures) == self.lag and len(self.answers) + 1 == self.lag:
            raise StlError(self.failures[0])

    def _merge(self) -> None:
        """Take answers into the pool in job order, as far as they have come; stop where an exact goal is met."""
        while self.merged in self.answers and not self._met():
            if self.steps is not None and self.merged >= self.steps:
                return
            for message in self.answers[self.merged]["schemes"]:
                if self.pool.add(_received(message)):
                    self.origin[message["id"]] = self.merged
            self.merged += 1

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
                None if best is None or exact else math.sqrt(cost(self.problem, best.scheme)),
                ranks[0] if exact and ranks else None,
                "" if best is None else best.strategy,
            )
        )

    def finish(self, jobs: int, folder: Path, wanted: Callable[[Scheme], bool] | None) -> Result:
        """Polish, prove and keep the best scheme, where it is ``wanted``."""
        problem = self.problem
        best = self.pool.best(problem.shape, problem.rank)
        if self.steps is None and not self._met():
            # jobs that the clock cut, or that came out of order at the end, count where they matter; what they found
            # cannot be found again by steps, so a find of the sequence is preferred to one that is barely better
            rest = [self.answers[j] for j in sorted(self.answers) if j >= self.merged] + self.extras
            for message in (m for answer in rest for m in answer["schemes"]):
                self.pool.add(_received(message))
            other = self.pool.best(problem.shape, problem.rank)
            if other is not None and (best is None or problem.exact or other.cost < best.cost * (1 - 1e-3)):
                best = other
        seconds = self.elapsed()
        if best is None:
            ranks = self.pool.ranks(problem.shape)
            seen = f"; smallest rank met: {ranks[0]}" if problem.exact and ranks else ""
            tried = f"{jobs} jobs" + (f" and {self.flips} flips" if self.flips else "")
            reason = f"not found after {tried} in {seconds:.1f} s{seen}"
            return Result(False, problem, None, None, None, None, None, None, seconds, jobs, reason, flips=self.flips)
        scheme, measured = (best.scheme, None) if best.scheme.ring.exact else self._polished(best.scheme)
        if problem.ring == "Z2":
            scheme = transform.to_ring(scheme, "Z2")
        # the jobs up to the one that found it find it again; None where only the clock decided what a job found
        steps = self.origin[best.id] + 1 if best.id in self.origin else None
        if steps is None and (self.steps is not None or best.strategy in ("start", "classical", "truncation")):
            steps = 1
        provenance = {
            "command": self._command(steps),
            "strategy": best.strategy,
            "seed": problem.seed,
            "steps": steps,
            "workers": self.workers,
            "version": __version__,
            "commit": commit(),
            # a run bounded by steps writes the same file every time, so it records no clock
            "seconds": None if self.steps is not None else round(seconds, 1),
            "starts": self.start_ids,
            "references": [],
        }
        path, kept = None, scheme
        if wanted is None or wanted(scheme):
            path = store.add(scheme, provenance, out=folder, dtype=None if problem.exact else problem.dtype)
            kept = store.load(path)
        if problem.exact:
            holds = problem.ring in verify(kept).rings
            if not holds:
                raise StlError(f"{kept.name}: found over {kept.ring.name}, asked for {problem.ring}; this is a bug")
            name, flips = best.strategy, self.flips
            return Result(True, problem, kept, path, None, None, None, name, seconds, jobs, flips=flips)
        e = verify(kept).E
        assert e is not None
        line = score.line(problem.shape, problem.rank)
        found = e < line - store.TIE or e == 0.0 or (line == 0.0 and e <= store.TIE)
        error = score.error(kept, problem.dtype)
        reason = "" if found else "no better than keeping r of the mkn elementary products"
        kappa = score.noise_gain(kept)
        if problem.thrifty:
            free = self._unrestricted()
            return Result(
                found, problem, kept, path, e, error, kappa, best.strategy, seconds, jobs, reason, unrestricted=free
            )
        better = self._better(kept, error)
        return Result(
            found, problem, kept, path, e, error, kappa, best.strategy, seconds, jobs, reason, better, measured=measured
        )

    def _unrestricted(self) -> dict[str, Any]:
        """The best scheme met whatever its coefficients, beside one with cheap ones."""
        shape, pool = self.problem.shape, self.pool
        best = min(pool.cell(shape, rank)[0] for rank in pool.ranks(shape) if rank <= self.problem.rank)
        scheme = best.scheme
        return {"id": scheme.id, "rank": scheme.rank, "error": math.sqrt(best.cost), **_expense(scheme)}

    def _polished(self, scheme: Scheme) -> tuple[Scheme, float | None]:
        """The scheme refined to its last digits by a worker, whose arithmetic runs on one thread as in every job; and
        the error that the device makes with it, where there is one."""
        measured = None
        inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        worker = _Worker(self.problem, [{"polish": encode(scheme)}], inbox)
        try:
            worker.hang_up()  # it ends after this, whatever it answers
            # a run by steps waits for the answer, however long; a run by time has seconds left for it
            answer = inbox.get(timeout=None if self.seconds is None else 10.0)[1]
            if answer is not None and "polished" in answer:
                scheme = decode(answer["polished"])
                if self.problem.device != "cpu":  # kernels are compiled first
                    answer = inbox.get(timeout=60.0)[1]
                    measured = None if answer is None else answer.get("measured")
        except queue.Empty:
            pass
        finally:
            worker.end()
        return scheme, measured

    def _better(self, kept: Scheme, error: float) -> dict[str, Any] | None:
        """What the catalogs already hold that is better than an approximate find, if anything."""
        problem = self.problem
        try:
            entry = store.best(problem.shape, max_rank=problem.rank, dtype=problem.dtype)
        except StlError:
            return None
        known = score.error(store.scheme_of(entry, problem.shape), problem.dtype)
        if entry.id == kept.id or known >= error * (1 - 1e-9):
            return None
        return {"id": entry.id, "path": str(entry.path), "error": known}

    def _command(self, steps: int | None) -> str:
        """The command that repeats this find: by steps, which is deterministic, or else by the time that was given."""
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
        words += ["--time", str(self.seconds)] if steps is None else ["--steps", str(steps)]
        words += ["--seed", str(p.seed), "--workers", str(self.workers)]
        for name in strategy.recorded(p, self.pool):
            words += ["--strategy", name]
        if any(strategy.batched(strategy.get(name)) for name in p.strategies):
            words += ["--device", p.device]
        if p.symmetry:
            words += ["--symmetry", p.symmetry]
        if p.thrifty:
            words += ["--coefficients", p.coefficients]
        if p.starts != "none":
            words += ["--starts", p.starts]
        for name in self.named:
            words += ["--start", name[:16]]
        return " ".join(words)


def _expense(scheme: Scheme) -> dict[str, Any]:
    """What encoding and decoding take: non-zeros of u, v and w, additions, bytes (see ``score.bytes_moved``)."""
    return {
        "nonzeros": [int((f != 0).sum()) for f in scheme.factors],
        "additions": score.additions(scheme),
        "bytes": score.bytes_moved(scheme.shape, scheme.rank),
    }


class _Worker:
    """A worker process and the thread that reads its answers."""

    def __init__(
        self, problem: Problem, initial: list[dict[str, Any]], inbox: queue.Queue[Any], lane: bool | None = None
    ) -> None:
        self.lane = lane  # whether it does the jobs of the device; None: there is no device
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
        # the same library as the parent's, also when it runs from a checkout that is not installed
        root = str(_ROOT)
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stl_search.search.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        except OSError as error:
            raise StlError(f"cannot start a worker process: {error.strerror}; try fewer --workers") from None
        self.fed = 0
        self._send({"problem": dataclasses.asdict(problem)})
        for message in initial:
            self._send(message)
        self._inbox = inbox
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        try:
            for raw in self.process.stdout:
                self._inbox.put((self, json.loads(raw)))
        except (ValueError, OSError):
            pass  # killed in the middle of a line
        finally:
            self._inbox.put((self, None))

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is reported by _listen
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def give(self, job: int, history: list[list[dict[str, Any]]], deadline: float | None) -> None:
        """Feed its pool with the next jobs' schemes and start a job; ``deadline`` is in seconds of the wall clock."""
        for schemes in history:
            for message in schemes:
                self._send(message)
        self.fed += len(history)
        self._send({"job": job, "deadline": deadline} | ({} if self.lane is None else {"device": self.lane}))

    def hang_up(self) -> None:
        """Say that nothing more will come."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def end(self) -> None:
        """Kill it and wait for it."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _starts(problem: Problem, given: list[Scheme]) -> tuple[list[str], list[Scheme]]:
    """(ids of catalog entries, schemes to begin from): known ones of the shape near the rank and of shapes that a
    composition needs; where an exact scheme is asked for, also neighbours, what can be made of all these, and their
    residues modulo 2, from which flip graphs set out; else the best that can be composed of them.
    """
    held: dict[tuple[str, Shape], Scheme] = {}
    if problem.starts != "none":
        dirs = [store.shipped_dir()] if problem.starts == "shipped" else None
        wanted: set[Shape] = {problem.shape}
        for _, first, second in splits(problem.shape):
            wanted |= {first, second}
        if problem.exact:
            wanted |= {_moved(problem.shape, side, step) for side in range(3) for step in (-1, 1)}
        for shape in sorted(wanted):
            for entry in store.candidates(shape, dirs=dirs):
                if shape == problem.shape and not -8 <= entry.rank - problem.rank <= 12:
                    continue
                with contextlib.suppress(StlError):  # a broken entry is no reason not to search
                    held[entry.id, shape] = store.scheme_of(entry, shape)
    sources = [*given, *held.values()]
    found = _over(problem.ring, sources)
    if problem.exact:
        found += [made.scheme for made in neighbours.derived(problem.shape, found)]
        if problem.ring != "Z2":
            residues = _over("Z2", sources)
            found += residues + [made.scheme for made in neighbours.derived(problem.shape, residues)]
    elif found and not problem.symmetry:
        whole = compositions.joined(problem.shape, problem.rank, problem.lam, found)
        found += [] if whole is None else [whole]
    return sorted({name for name, _ in held}), found


def _over(ring: str, schemes: Iterable[Scheme]) -> list[Scheme]:
    """Those of the schemes that hold over the ring that is searched, as schemes over it."""
    found = []
    for scheme in schemes:
        with contextlib.suppress(StlError):
            usable = _usable(scheme, ring)
            if usable is not None:
                found.append(usable)
    return found


def _moved(shape: Shape, side: int, step: int) -> Shape:
    """The shape with one side longer or shorter by one, never shorter than 1."""
    m, k, n = (max(1, s + step) if i == side else s for i, s in enumerate(shape))
    return m, k, n


def _usable(scheme: Scheme, ring: str) -> Scheme | None:
    """A known scheme as one over the ring that is searched, or None where it does not hold there."""
    if ring == "Z2":
        return transform.to_ring(scheme, "Z2")  # raises for even denominators, which the caller passes over
    if scheme.ring.name in ("Z2", "C"):
        return None
    order = ("ZT", "Z", "Q", "R")
    return scheme if order.index(scheme.ring.name) <= order.index(ring) else None


def _truncated(problem: Problem) -> Scheme:
    """The classical algorithm with its last products left out: what every search can fall back on."""
    whole = transform.classical(problem.shape)
    return Scheme(problem.shape, "R", *(f[: problem.rank] for f in whole.factors))


def _entry(problem: Problem, scheme: Scheme, name: str) -> Entry:
    return Entry(cost(problem, scheme), scheme.id, scheme, name)


def _received(message: dict[str, Any]) -> Entry:
    """A scheme as a worker sent it."""
    return Entry(message["cost"], message["id"], decode(message["add"]), message["strategy"])


def _message(entry: Entry) -> dict[str, Any]:
    return {"add": encode(entry.scheme), "cost": entry.cost, "id": entry.id, "strategy": entry.strategy}


def commit() -> str | None:
    """The commit of the checkout that runs, when it is one."""
    root = _ROOT
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5)
        return done.stdout.strip() or None
    return None
