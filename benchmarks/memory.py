"""Encode and decode on the processor against ``torch.clone`` of as many bytes read and written.

    python benchmarks/memory.py [--size 4096] [--ranks 7 12 16 24 32 49] [--dtypes fp32 bf16] [--repeats 15] [--keep]

Both sides find memory in one state. ``fresh``: each run allocates, and the allocator is told to ask the system for
every large block, so that both first touch their pages; left alone it hands ``clone`` blocks below 32 MB that were
written before. ``used``: both write into a buffer that they have written before (``encode_into`` and ``copy_``). Caches
are emptied before each run, and runs are made in turn. Nothing is timed before results agree with the oracle. A line is
the quotient of medians, above 1 where clone is faster, with the quantiles of the pairs; ``--keep`` adds the rows, one
JSON object a line, to benchmarks/results/memory_cpu.jsonl.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from device import quantiles, scheme_for

from stl_search.bench.amm import environment
from stl_search.kernels import cpu, reference
from stl_search.kernels.plan import LAYOUTS, Plan, torch_dtype

RESULTS = Path(__file__).resolve().parent / "results"
WARM = 3
CACHE = 128 << 20  # bytes that are written before each run, more than the caches hold
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
Call = Callable[[], Any]


def always_fresh() -> bool:
    """Have every large block mapped and returned when freed; whether the C library can be told so."""
    try:
        library = ctypes.CDLL(None)
        return bool(library.mallopt(M_MMAP_THRESHOLD, 1 << 20) and library.mallopt(M_TRIM_THRESHOLD, 1 << 20))
    except (OSError, AttributeError):
        return False


def seconds(call: Call, sweep: torch.Tensor) -> float:
    sweep.add_(1)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def pairs(call: Call, clone: Call, repeats: int) -> list[tuple[float, float]]:
    """(seconds of the call, of the clone), taken in turn."""
    sweep = torch.zeros(CACHE, dtype=torch.uint8)
    for _ in range(WARM):
        call()
        clone()
    return [(seconds(call, sweep), seconds(clone, sweep)) for _ in range(repeats)]


def agree(found: torch.Tensor, oracle: torch.Tensor, terms: int, what: str) -> None:
    """Raises SystemExit where a result is off by more than its own rounding and that of sums of so many terms."""
    allowed = 2 * torch.finfo(found.dtype).eps + terms * torch.finfo(torch.float32).eps
    gap = float((found.double() - oracle.double()).abs().max()) / float(oracle.abs().max())
    if not gap <= allowed:
        raise SystemExit(f"{what} is wrong: deviates by {gap:.3g}, {allowed:.3g} allowed")


def cases(plan: Plan, n: int) -> list[tuple[str, str, int, Call, Call]]:
    """(what, state of memory, bytes read and written, the call, a clone of as many bytes)."""
    kind, layout = torch_dtype(plan.dtype), plan.layout
    u, w = (plan.coefficients(side, "fp32", "cpu") for side in ("lhs", "out"))
    x = torch.randn(n, n).to(kind)
    hat = cpu.encode(x, u, layout, kind)
    back = cpu.decode(hat, w, n, n, layout, kind)
    agree(hat, reference.encode(x.float(), u, layout), u[0].numel(), f"encode by {plan.scheme.name}")
    agree(back, reference.decode(hat.float(), w, n, n, layout), len(w), f"decode by {plan.scheme.name}")
    moved = x.nbytes + hat.nbytes
    source = torch.randint(0, 255, (moved // 2,), dtype=torch.uint8)
    target = source.clone()
    clones = {"fresh": source.clone, "used": lambda: target.copy_(source)}
    calls: dict[tuple[str, str], Call] = {
        ("encode", "fresh"): lambda: cpu.encode(x, u, layout, kind),
        ("encode", "used"): lambda: cpu.encode_into(x, u, layout, hat),
        ("decode", "fresh"): lambda: cpu.decode(hat, w, n, n, layout, kind),
        ("decode", "used"): lambda: cpu.decode_into(hat, w, layout, back),
    }
    return [(what, state, moved, call, clones[state]) for (what, state), call in calls.items()]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--ranks", type=int, nargs="+", default=[7, 12, 16, 24, 32, 49])
    parser.add_argument("--dtypes", choices=["fp32", "bf16", "fp16"], nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--keep", action="store_true", help="add the rows to benchmarks/results/")
    options = parser.parse_args(arguments)
    if not always_fresh():
        print("this C library has no mallopt: clone may find used memory where fresh is meant", file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    where = {"date": datetime.date.today().isoformat(), "commit": commit, **environment()}
    rows = []
    print(
        f"{'dtype':5} {'layout':6} {'rank':>4} {'MB':>5}  over clone: encode fresh, used; decode fresh, used (p20..p80)"
    )
    for dtype in options.dtypes:
        for layout in LAYOUTS:
            for rank in options.ranks:
                plan = Plan(scheme_for(rank), dtype, layout=layout)
                shown = []
                for what, state, moved, call, clone in cases(plan, options.size):
                    measured = pairs(call, clone, options.repeats)
                    own, other = (quantiles([1e3 * pair[i] for pair in measured]) for i in (0, 1))
                    spread = quantiles([a / b for a, b in measured])
                    ratio = own["p50"] / other["p50"]
                    shown.append(f"{ratio:5.2f} ({spread['p20']:.2f}..{spread['p80']:.2f})")
                    row = {"what": what, "memory": state, "dtype": dtype, "layout": layout, "rank": rank}
                    row |= {"id": plan.scheme.id[:8], "shape": plan.scheme.shape, "size": options.size, "bytes": moved}
                    rows.append({**where, **row, **own, "baseline": {"name": "torch.clone", **other}, "ratio": ratio})
                print(f"{dtype:5} {layout:6} {rank:4} {moved / 1e6:5.0f}  {'  '.join(shown)}", flush=True)
    worst = max(rows, key=lambda row: row["ratio"])
    print("largest: " + ", ".join(f"{key} {worst[key]}" for key in ("what", "memory", "dtype", "layout", "rank"))
          + f": {worst['ratio']:.2f}")  # fmt: skip
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "memory_cpu.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
