"""Products by schemes against the fastest dense product of this machine, sizes and schemes in a table.

Each row carries ratios of runs made in turn (dense, scheme, dense, scheme, ...), so that what else the machine does
hits both; a row whose error is not the predicted one is marked, and its times mean nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from stl_search import __version__, score
from stl_search.catalog import store
from stl_search.errors import UsageError
from stl_search.kernels import dense
from stl_search.kernels.plan import Plan, torch_dtype
from stl_search.runtime import calibrate
from stl_search.runtime.amm import amm, encode_rhs
from stl_search.runtime.dispatch import explain
from stl_search.search.portfolio import commit

__all__ = ["ENCODED", "OPEN", "chosen", "environment", "key", "rows", "winners"]

OPEN = "catalog:best"
ENCODED = ("none", "rhs")
KEY = ("machine", "threads", "torch", "version", "commit", "dtype", "repeats", "size", "id", "encoded")
STEPS = 16  # shares of the multiplications for which a winner is named
SAMPLED = 16  # rows of the result whose error is measured
ENOUGH = 0.05  # seconds that a run takes at least: shorter ones time how threads wake up after a pause
LONG = 10.0  # seconds of a call from which on it is made once, though the memory that it takes is cold then
PATIENCE = 20.0  # seconds for the turns of one scheme

_Run = tuple[dict[str, Any], Callable[[], torch.Tensor], float]  # a row, its product, the error to expect


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the times hang on: processor and threads or GPU, versions, commit."""
    versions = {"torch": str(torch.__version__), "version": __version__, "commit": commit()}
    if device == "cuda":
        return {"machine": torch.cuda.get_device_name(), "threads": 0, **versions}
    return {"machine": calibrate.processor(), "threads": torch.get_num_threads(), **versions}


def winners(entries: Sequence[store.Entry], dtype: str) -> list[store.Entry]:
    """Every exact entry, and for each sixteenth of the multiplications kept the most accurate within it at ``dtype``.

    Over all shapes together: each of the latter is on the Pareto front of (multiplications kept, error).
    """
    found = [e for e in entries if e.exact]
    for step in range(1, STEPS):
        within = [e for e in entries if STEPS * e.rank <= step * math.prod(e.shape)]
        best = min(within, key=lambda e: (e.error(dtype), e.rank / math.prod(e.shape), e.id), default=None)
        found += [best] if best is not None and best not in found else []
    return found


def chosen(schemes: str, dtype: str) -> list[store.Entry]:
    """Shipped entries that can be run: "winners", "all", "none", or those of ranks and ids with commas between.

    Raises UsageError where nothing shipped has such a rank or id (its first 8 digits or more).
    """
    entries = [e for e in store.entries([store.shipped_dir()]) if e.ring not in ("Z2", "C")]
    if schemes == "winners":
        entries = winners(entries, dtype)
    elif schemes == "none":
        entries = []
    elif schemes != "all":
        wanted = schemes.split(",")
        entries = [e for e in entries if any(x == str(e.rank) or (len(x) >= 8 and e.id.startswith(x)) for x in wanted)]
        if not entries:
            raise UsageError(f"no shipped scheme that can be run has a rank or an id of {schemes!r:.60}")
    return sorted(entries, key=lambda e: (math.prod(e.shape), e.shape, -e.rank))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row measures, where and by which code: one of the same key need not be measured again."""
    return tuple(row.get(name) for name in KEY)


def rows(
    sizes: Sequence[int],
    dtype: str = "fp32",
    repeats: int = 5,
    schemes: str = "winners",
    known: Container[tuple[Any, ...]] = frozenset(),
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """For each size n: the open exact selector on n x n x n, then ``chosen`` schemes, without and with B pre-encoded.

    ``ratio`` is dense time over the row's, above 1 where the row is faster: quantiles over ``pairs`` of runs, which are
    ``repeats`` for the selector, about half as many for schemes, and fewer where a run takes seconds. Each row carries
    ``environment`` and what the selector chooses at its size; what ``known`` has by its ``key`` is left out. ``device``
    is "cpu" or "cuda".
    """
    about = {"bench": "amm", **environment(device), "dtype": dtype, "repeats": repeats}
    entries = chosen(schemes, dtype)
    for n in sizes:
        here = {**about, "size": n}
        selector = {**here, "scheme": OPEN, "encoded": "none"}
        named = {e.id: [{**here, "rank": e.rank, "id": e.id, "encoded": x} for x in ENCODED] for e in entries}
        missing = [e for e in entries if any(key(row) not in known for row in named[e.id])]
        if key(selector) in known and not missing:
            continue
        found = explain((n, n, n), dtype, device=device, show=False)
        case = _Case(n, dtype, device)
        if key(selector) not in known:
            run = partial(amm, case.a, case.b)
            # numpy's library has threads of its own, all other plain products are made by torch's
            alike = found.plan is None and (found.way == "numpy") == (case.way == "numpy")
            yield from case.measured([(selector, run, found.predicted_error)], found.name, repeats, alike)
        for entry in missing:
            product = "bf16" if dtype == "bf16" else ""  # as speed is asked for
            plan = Plan(store.scheme_of(entry), dtype, product, device=device)
            runs = (partial(amm, case.a, case.b, plan), partial(amm, case.a, encode_rhs(case.b, plan)))
            predicted = explain((n, n, n), dtype, plan, device=device, show=False).predicted_error
            pair = [
                ({**row, "scheme": plan.scheme.name}, run, predicted)
                for row, run in zip(named[entry.id], runs, strict=True)
            ]
            yield from case.measured(pair, found.name, (repeats + 1) // 2)


class _Case:
    """Two Gaussian n x n matrices, the fastest dense product of them, and a part of what is to come out."""

    def __init__(self, n: int, dtype: str, device: str = "cpu") -> None:
        self.device = device
        generator = torch.Generator(device).manual_seed(n)
        self.a, self.b = (
            torch.randn(n, n, generator=generator, device=device).to(torch_dtype(dtype)) for _ in range(2)
        )
        # of every block: schemes err differently in each
        self.sample = torch.linspace(0, n - 1, SAMPLED, device=device).long()
        self.exact = self.a[self.sample].double() @ self.b.double()
        self.way, self.plain = _fastest(self.a, self.b)
        # Each of n additions rounds, with errors that are independent: they grow as the root of n. Predictions for the
        # dense product take it that most libraries begin anew after some hundred.
        self.sums = score.relative_rounding("fp64" if dtype == "fp64" else "fp32") * math.sqrt(n)

    def measured(
        self, runs: Sequence[_Run], choice: str, repeats: int, alike: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Rows with their errors, then their times: dense and each of the runs in turn, ``repeats`` times at most.

        ``alike`` says that all are made by the same threads, which then need no pause between one and the other.
        """
        errors = [
            float((run()[self.sample].double() - self.exact).norm() / self.exact.norm()) for _, run, _ in runs
        ]  # which also touches the memory that each of them takes
        products = [self.plain, *(run for _, run, _ in runs)]
        first = [_time(product, 1, self.device) for product in products]
        calls = _calls(first[0])
        turns = max(1, min(repeats, int(PATIENCE / max(sum(first), 1e-6))))
        times = [first]
        if turns > 1:
            times = []
            for turn in range(turns):  # there and back, so that neither comes first
                order = list(range(len(products)))[:: -1 if turn % 2 else 1]
                taken = {i: _time(products[i], calls, self.device, not alike) for i in order}
                times.append([taken[i] for i in range(len(products))])
        for i, (row, _, predicted) in enumerate(runs):
            ratios = [turn[0] / turn[i + 1] for turn in times]
            yield {
                **row, "dense": self.way, "choice": choice, "pairs": turns,
                "ratio": {f"p{q}": float(np.quantile(ratios, q / 100)) for q in (20, 50, 80)},
                "seconds": {"dense": statistics.median(turn[0] for turn in times),
                            "scheme": statistics.median(turn[i + 1] for turn in times)},
                "error": errors[i], "predicted_error": predicted, "ok": errors[i] <= 1.25 * predicted + self.sums,
            }  # fmt: skip


def _fastest(a: torch.Tensor, b: torch.Tensor) -> tuple[str, Callable[[], torch.Tensor]]:
    """The fastest dense product of these operands, by three runs of each way, by one where they take seconds; torch's
    own on a GPU. A run is as many products as the turns of a row make."""
    if a.is_cuda:
        return "torch", partial(torch.matmul, a, b)
    runs = {way: partial(dense.matmul, a, b, way) for way in dense.ways(a.dtype)}
    runs["torch"] = partial(torch.matmul, a, b)  # as one writes it, with nothing around
    first = {way: _time(run) for way, run in runs.items()}
    times = {way: [seconds] for way, seconds in first.items()}
    if sum(first.values()) <= PATIENCE:
        rounds = [{way: _time(run, _calls(first[way])) for way, run in runs.items()} for _ in range(3)]
        times = {way: [one[way] for one in rounds] for way in runs}
    best = min(runs, key=lambda way: statistics.median(times[way]))
    return best, runs[best]


def _calls(seconds: float) -> int:
    """How many products of that length make a run."""
    return max(1, min(5000, int(ENOUGH / max(seconds, 1e-6))))


def _time(run: Callable[[], torch.Tensor], calls: int = 1, device: str = "cpu", pause: bool = True) -> float:
    """Seconds of a call, after one that is not counted and a ``pause``: threads of other libraries spin for a while.

    A call so long that its threads' waking up does not count is made once. On a GPU calls are made one upon another, as
    a program makes them, and waited for together.
    """
    if device == "cuda":
        run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls
    if pause:
        time.sleep(calibrate.SETTLE)
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if first > LONG:
        return first
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
