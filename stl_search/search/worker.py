"""A worker process of ``discover``: reads jobs as JSON lines from standard input, answers on standard output.

It holds its own copy of the pool, which the parent feeds in job order, and ends when the parent is gone. The numeric
libraries run on one thread: the environment that says so is set by the parent before this process starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO

import numpy as np

from stl_search import decompose, transform
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme
from stl_search.search import strategy
from stl_search.search.journal import decode, encode
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock

__all__ = ["main", "measured", "polished", "run_job"]

_MEASURED_SIDE = 960  # of the matrices that a find is measured on
_SPARSER = 200_000  # proposals to make an exact find sparse: .02 s for <3,3,3>, .05 s for <4,4,4>


def run_job(
    problem: Problem, pool: Pool, index: int, clock: Clock, device: bool | None = None
) -> tuple[str, list[Entry]]:
    """(strategy name, the schemes that would enter the pool): job ``index`` is a pure function of problem and pool.

    ``device`` says, where some jobs are the device's, whether this one is.

    All randomness comes from ``default_rng([seed, index])``, and [seed, index, 1] for making answers sparse.
    """
    rng = np.random.default_rng([problem.seed, index])
    choices = strategy.suitable(problem, pool, device)
    weights = np.array([w for _, w in choices])
    chosen = choices[int(rng.choice(len(choices), p=weights / weights.sum()))][0]
    found: list[Entry] = []
    for scheme in chosen.run(problem, pool, rng, clock):
        answer = problem.exact and scheme.shape == problem.shape and scheme.rank <= problem.rank
        if answer and (problem.ring == "Z2" or not scheme.ring.characteristic):  # material keeps its symmetry
            scheme = _sparser(problem, scheme, np.random.default_rng([problem.seed, index, 1]))
        value = cost(problem, scheme)
        if np.isfinite(value) and pool.wants(scheme, value):
            found.append(Entry(value, scheme.id, scheme, chosen.name))
    return chosen.name, found


def _sparser(problem: Problem, scheme: Scheme, rng: np.random.Generator) -> Scheme:
    """An exact find with fewer non-zeros: fewer additions, and less rounding too; in its orbit if that is symmetric."""
    if scheme.ring.name == "Z2":
        return transform.sparsify(scheme)
    if scheme.ring.name != "ZT":
        return scheme
    from stl_search.additions import improved

    return improved(scheme, rng, _SPARSER, flips=not problem.symmetry)


def polished(problem: Problem, scheme: Scheme) -> Scheme:
    """The same local optimum to its last digits; cheap coefficients stay as they are."""
    if problem.thrifty:
        return scheme
    if problem.symmetry:
        from stl_search.search import orbit

        return orbit.polished(problem, scheme)
    start = decompose.batch_of([scheme])
    steps = min(2000, 10_000_000 // sum(f.size for f in start))
    refined, _ = decompose.refine(problem.shape, start, problem.lam, steps, tolerance=1e-12)
    if sum(f.size for f in refined) <= 1200:
        refined, _ = decompose.levenberg_marquardt(problem.shape, refined, problem.lam, iterations=20, damping=1e-6)
    better = decompose.scheme_of(problem.shape, refined)
    return better if cost(problem, better) < cost(problem, scheme) else scheme


def measured(problem: Problem, scheme: Scheme) -> float | None:
    """The error that the device's own kernels make with the scheme on Gaussian matrices; None where there are none."""
    if problem.device == "cpu":
        return None
    from stl_search.kernels import batch_score, gpu

    if not gpu.available() or problem.dtype not in (*gpu.DTYPES, "fp8_e4m3"):
        return None
    blocks = -(-_MEASURED_SIDE // max(problem.shape))
    try:
        rng = np.random.default_rng([problem.seed, 2])
        mean, _ = batch_score.monte_carlo([scheme], problem.dtype, rng, blocks, device=problem.device)
    except UsageError:  # fp8_e4m3 on a GPU that has none
        return None
    return float(mean[0])


def main() -> None:
    """Serve jobs until standard input ends."""
    # strategies may print; only answers may reach the real standard output
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    parent = os.getppid()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    problem: Problem | None = None
    pool: Pool | None = None
    for raw in sys.stdin.buffer:
        message = json.loads(raw)
        if "problem" in message:
            fields = message["problem"]
            problem = Problem(**{**fields, "shape": tuple(fields["shape"]), "strategies": tuple(fields["strategies"])})
            pool = Pool(problem)
            continue
        if problem is None or pool is None:
            raise StlError("a worker got a job before its problem")
        if "add" in message:
            pool.add(Entry(message["cost"], message["id"], decode(message["add"]), message["strategy"]))
            continue
        if "polish" in message:
            scheme = decode(message["polish"])
            try:
                scheme = polished(problem, scheme)
                _send(out, {"polished": encode(scheme)})
                _send(out, {"measured": measured(problem, scheme)})
            except Exception:
                _send(out, {"error": traceback.format_exc()})
            continue
        started = time.monotonic()
        deadline = message["deadline"]
        clock = Clock(None if deadline is None else max(0.0, deadline - time.time()))
        try:
            name, found = run_job(problem, pool, message["job"], clock, message.get("device"))
        except Exception:
            failure = {"strategy": "", "seconds": 0.0, "schemes": [], "error": traceback.format_exc()}
            _send(out, {"job": message["job"], **failure})
            continue
        schemes = [{"add": encode(e.scheme), "cost": e.cost, "id": e.id, "strategy": e.strategy} for e in found]
        seconds = time.monotonic() - started
        answer = {"job": message["job"], "strategy": name, "seconds": round(seconds, 3), "schemes": schemes}
        if clock.flips:
            answer["flips"] = clock.flips
        _send(out, {**answer, "cut": True} if clock.cut else answer)


def _send(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    out.flush()


def _watch(parent: int) -> None:
    """End this process when it has been orphaned, even in the middle of a job."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)


def _die_with_parent() -> None:
    """On Linux the kernel ends us with the parent; elsewhere ``_watch`` does alone."""
    if sys.platform == "linux":
        import ctypes
        import signal

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()
