"""Products by schemes against the fastest dense product of this machine, sizes and schemes in a table.

Each row carries ratios of runs made in turn (dense, scheme, dense, scheme, ...), so that what else the machine does
hits both; a row whose error is not the predicted one is marked, and its times mean nothing.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from stl_search import __version__, score
from stl_search.catalog import store
from stl_search.errors import UsageError
from stl_search.kernels import dense
from stl_search.kernels.plan import Plan, torch_dtype
from stl_search.runtime import calibrate
from stl_search.runtime.amm import amm, encode_rhs
from stl_search.runtime.dispatch import explain

__all__ = ["OPEN", "environment", "rows"]

OPEN = "catalog:best"
SAMPLED = 16  # rows of the result whose error is measured
ENOUGH = 0.05  # seconds that a run takes at least: shorter ones time how threads wake up after a pause


def environment() -> dict[str, Any]:
    """What the times hang on: processor, threads, versions."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    threads = torch.get_num_threads()
    return {"machine": name, "threads": threads, "torch": str(torch.__version__), "version": __version__}


def rows(sizes: Sequence[int], dtype: str = "fp32", repeats: int = 5, schemes: str = "all") -> Iterator[dict[str, Any]]:
    """For each size n: the open exact selector on n x n x n, then the shipped schemes, without and with B pre-encoded.

    ``schemes`` is "all" (of the shipped catalog), "none", or ranks and first 8 or more digits of ids, with commas
    between. ``ratio`` is dense time over the row's, above 1 where the row is faster: quantiles over the pairs of runs.
    Raises UsageError where nothing shipped has such a rank or id.
    """
    entries = [e for e in store.entries([store.shipped_dir()]) if e.ring not in ("Z2", "C")]
    if schemes == "none":
        entries = []
    elif schemes != "all":
        wanted = schemes.split(",")
        entries = [e for e in entries if any(x == str(e.rank) or (len(x) >= 8 and e.id.startswith(x)) for x in wanted)]
        if not entries:
            raise UsageError(f"no shipped scheme that can be run has a rank or an id of {schemes!r:.60}")
    entries.sort(key=lambda e: (math.prod(e.shape), e.shape, -e.rank))
    for n in sizes:
        case = _Case(n, dtype, repeats)
        found = explain((n, n, n), dtype, show=False)
        choice = found.name
        yield case.row(OPEN, partial(amm, case.a, case.b), found.predicted_error, choice, "none")
        for entry in entries:
            plan = Plan(store.scheme_of(entry), dtype, "bf16" if dtype == "bf16" else "")  # as speed is asked for
            more = {"rank": entry.rank, "id": entry.id}
            for encoded, right in (("none", case.b), ("rhs", encode_rhs(case.b, plan))):
                run = partial(amm, case.a, right, None if encoded == "rhs" else plan)
                yield case.row(plan.scheme.name, run, plan.predicted_error, choice, encoded, **more)


class _Case:
    """Two Gaussian n x n matrices, the fastest dense product of them, and a part of what is to come out."""

    def __init__(self, n: int, dtype: str, repeats: int) -> None:
        generator = torch.Generator().manual_seed(n)
        self.a, self.b = (torch.randn(n, n, generator=generator).to(torch_dtype(dtype)) for _ in range(2))
        self.sample = torch.linspace(0, n - 1, SAMPLED).long()  # of every block: schemes err differently in each
        self.exact = self.a[self.sample].double() @ self.b.double()
        self.way, self.plain = _fastest(self.a, self.b)
        self.about = {"size": n, "dtype": dtype, "dense": self.way}
        self.repeats = repeats
        # Each of n additions rounds, with errors that are independent: they grow as the root of n.
        self.sums = score.relative_rounding("fp64" if dtype == "fp64" else "fp32") * math.sqrt(n)

    def row(
        self, scheme: str, run: Callable[[], torch.Tensor], predicted: float, choice: str, encoded: str, **more: Any
    ) -> dict[str, Any]:
        """Its error, then its times."""
        error = float((run()[self.sample].double() - self.exact).norm() / self.exact.norm())
        ratio, seconds = _ratios(self.plain, run, self.repeats)
        good = error <= 1.25 * predicted + 8 * self.sums
        return {
            **self.about, "scheme": scheme, **more, "encoded": encoded, "choice": choice, "ratio": ratio,
            "seconds": seconds, "error": error, "predicted_error": predicted, "ok": good,
        }  # fmt: skip


def _fastest(a: torch.Tensor, b: torch.Tensor) -> tuple[str, Callable[[], torch.Tensor]]:
    """The fastest dense product of these operands, by three runs of each way."""
    runs = {way: partial(dense.matmul, a, b, way) for way in dense.ways(a.dtype)}
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(3):
        for way, run in runs.items():
            times[way].append(_time(run))
    best = min(runs, key=lambda way: statistics.median(times[way]))
    return best, runs[best]


def _ratios(
    plain: Callable[[], torch.Tensor], run: Callable[[], torch.Tensor], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Quantiles of plain / run over pairs of runs, and the median seconds of both."""
    calls = max(1, min(5000, int(ENOUGH / max(_time(plain), 1e-6))))
    pairs = [(_time(plain, calls), _time(run, calls)) for _ in range(repeats)]
    ratios = sorted(d / s for d, s in pairs)
    at = {f"p{q}": ratios[round(q / 100 * (repeats - 1))] for q in (20, 50, 80)}
    return at, {"dense": statistics.median(d for d, _ in pairs), "scheme": statistics.median(s for _, s in pairs)}


def _time(run: Callable[[], torch.Tensor], calls: int = 1) -> float:
    """Seconds of a call, after one that is not counted and a pause: threads of other libraries spin for a while."""
    time.sleep(calibrate.SETTLE)
    run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls
