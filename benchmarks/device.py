"""The GPU kernels on the machine at hand: correct first, then fast against what this GPU can do.

    python benchmarks/device.py [--sizes 4096 8192 16384] [--ranks 12 16 24 32 49] [--dtype bf16] [--tune]
        [--only check|measure] [--methods unfused arrival registers]

Encode and decode against the measured copy bandwidth, products against torch.bmm, the whole product with B encoded in
advance against dense torch.matmul and against its roofline: dense time * r / t^3 + the time to copy what encoding A and
decoding move, all measured here. Times are the GPU's: before each, caches are swept by a long write, behind which the
call waits ready; ``host_us`` is what the call itself takes of the processor, below which no program that makes it again
and again can come without a CUDA graph. Each row, one JSON object a line, carries machine, versions, commit, dtype,
sizes, p20/p50/p80 in milliseconds and the baseline measured beside it; rows go to benchmarks/results/. Without a GPU it
says so and stops.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stl_search import __version__
from stl_search.catalog import store
from stl_search.kernels import gpu, reference, tuning
from stl_search.kernels.plan import Plan, torch_dtype
from stl_search.scheme import Scheme

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = RESULTS.parent.parent
Call = Callable[[], Any]
REPEATS, WARM = 20, 5
SWEPT = 1 << 30  # bytes
METHODS = ("auto", "unfused", "arrival", "registers")


def scheme_for(rank: int) -> Scheme:
    """The exact <4,4,4> scheme of that rank over Z in the catalog, else the best at bf16; <2,2,2> for rank 7."""
    shape = (2, 2, 2) if rank == 7 else (4, 4, 4)
    exact = store.candidates(shape, rank, None, "Z")
    return store.scheme_of(store.best(shape, rank, None, "bf16", "Z" if exact else None), shape)


def tolerance(plan: Plan, operands: str) -> float:
    """Bound of |found - oracle| / max|oracle| where both sum in fp32: each of at most 64 terms rounded, as stored."""
    unit = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}[operands]
    gain = max(float(abs(f).sum(axis=0).max()) for f in plan.factors)
    return 2 * unit + 64 * 2.0**-24 * max(1.0, gain)


def check(plan: Plan, device: str, size: tuple[int, int, int]) -> float:
    """Raises SystemExit unless every kernel agrees with its oracle on ragged operands; the largest deviation over its
    tolerance, below 1."""
    m, k, n = size
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator).to(device, torch_dtype(plan.dtype)) for s in ((m, k), (k, n)))
    factors = [torch.from_numpy(f.copy()).float() for f in plan.factors]
    worst = 0.0

    def compare(what: str, found: torch.Tensor, expected: torch.Tensor, stored: str, extra: float = 0.0) -> None:
        nonlocal worst
        scale = float(expected.abs().max()) or 1.0
        gap = float((found.float() - expected.float()).abs().max()) / scale
        limit = tolerance(plan, stored) + extra
        if not gap <= limit:
            raise SystemExit(f"{what} is wrong: deviates by {gap:.3g}, {limit:.3g} allowed ({plan.scheme.name})")
        worst = max(worst, gap / limit)

    for layout in ("block", "tile"):
        hats = []
        for x, u in ((a, factors[0]), (b, factors[1])):
            expected = reference.encode(x.float(), u.to(device), layout)
            for method in ("unrolled", "dot"):
                hats.append(gpu.encode(x, u, layout, plan.dtype, method=method).data)
                compare(f"encode by {method}", hats[-1], expected, plan.dtype)
        a_hat, b_hat = hats[0], hats[2]
        expected = reference.product(a_hat.float(), b_hat.float())
        long = a_hat.shape[-1] * 2.0**-24  # sums of that length in another order
        for method in ("triton", "bmm"):
            p = gpu.product(a_hat, b_hat, plan.dtype, method=method)
            compare(f"product by {method}", p, expected, plan.dtype, long)
        p = gpu.product(a_hat, b_hat, "fp32", method="triton")
        decoded = reference.decode(p, factors[2].to(device), m, n, layout)
        for method in ("unrolled", "dot"):
            compare(
                f"decode by {method}", gpu.decode(p, factors[2], m, n, layout, "fp32", method=method), decoded, "fp32"
            )
        fused = ["arrival"] + (["registers"] if plan.scheme.shape == (2, 2, 2) else [])
        for method in fused:
            found = [
                gpu.product_decode(a_hat, b_hat, factors[2], m, n, layout, "fp32", method=method) for _ in range(2)
            ]
            compare(f"product and decode by {method}", found[0], decoded, "fp32", long)
            if not torch.equal(found[0], found[1]):
                raise SystemExit(f"product and decode by {method} does not repeat bit by bit")
    return worst


def milliseconds(call: Call) -> float:
    """Time on the GPU, with cold caches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    sweep().zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@cache
def sweep() -> torch.Tensor:
    """What is written before each timed call: larger than any cache, and long enough for the processor to get ahead."""
    return torch.empty(SWEPT, dtype=torch.uint8, device="cuda")


def host_microseconds(call: Call) -> float:
    """Time of the processor alone, the GPU being busy with something else."""
    torch.cuda.synchronize()
    for _ in range(WARM):
        sweep().zero_()
    start = time.perf_counter()
    for _ in range(WARM):
        call()
    found = (time.perf_counter() - start) / WARM * 1e6
    torch.cuda.synchronize()
    return found


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = torch.tensor(times, dtype=torch.float64)
    return {f"p{q}": float(torch.quantile(ordered, q / 100)) for q in (20, 50, 80)}


def measure(call: Call, baseline: Call) -> tuple[dict[str, float], dict[str, float]]:
    """Times of both in milliseconds, taken in turn."""
    for _ in range(WARM):
        call()
        baseline()
    pairs = [(milliseconds(call), milliseconds(baseline)) for _ in range(REPEATS)]
    return quantiles([p[0] for p in pairs]), quantiles([p[1] for p in pairs])


def machine() -> dict[str, Any]:
    """What every row says of where it was measured."""
    import triton

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {
            "stl-search": __version__,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "commit": commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else ""),
    }


def rows_for(plan: Plan, n: int, methods: Sequence[str], say: Callable[[dict[str, Any]], None]) -> None:
    """Measures one scheme on square operands of side n, products and decoding fused by each of the methods."""
    t, rank, kind = plan.scheme.shape[0], plan.scheme.rank, torch_dtype(plan.dtype)
    a, b = (torch.randn(n, n, device="cuda").to(kind) for _ in range(2))
    u, v, w = (torch.from_numpy(f.copy()).float() for f in plan.factors)
    a_hat, b_hat = (gpu.encode(x, f, plan.layout, plan.dtype).data for x, f in ((a, u), (b, v)))
    about = {
        "shape": plan.scheme.shape,
        "rank": rank,
        "id": plan.scheme.id[:8],
        "dtype": plan.dtype,
        "sizes": [n, n, n],
    }

    def row(what: str, call: Call, baseline: Call, name: str, **more: Any) -> dict[str, Any]:
        own, other = measure(call, baseline)
        ratio, host = other["p50"] / own["p50"], host_microseconds(call)
        say(
            {"what": what, **about, **own, "host_us": host, "baseline": {"name": name, **other}, "ratio": ratio, **more}
        )
        return other

    def copier(moved: int) -> Call:
        """A copy that reads and writes ``moved`` bytes in all."""
        source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    size = a.element_size()
    moved = n * n * size + a_hat.numel() * size
    row("encode", lambda: gpu.encode(a, u, plan.layout, plan.dtype), copier(moved), "copy of the bytes moved")
    for stored in (plan.dtype, "fp32"):
        p = gpu.product(a_hat, b_hat, stored)
        moved_c = p.numel() * p.element_size() + n * n * size
        call = lambda p=p: gpu.decode(p, w, n, n, plan.layout, plan.dtype)  # noqa: E731
        row("decode", call, copier(moved_c), "copy of the bytes moved", products=stored)
        plain = lambda stored=stored: gpu.product(a_hat, b_hat, stored, method="bmm")  # noqa: E731
        for method in ("auto", "triton"):
            call = lambda s=stored, m=method: gpu.product(a_hat, b_hat, s, method=m)  # noqa: E731
            row("product", call, plain, "torch.bmm", products=stored, method=method)

        def whole(method: str, stored: str = stored) -> torch.Tensor:
            hat = gpu.encode(a, u, plan.layout, plan.dtype).data
            return gpu.product_decode(hat, b_hat, w, n, n, plan.layout, plan.dtype, product_dtype=stored, method=method)

        copied = sum(quantiles([milliseconds(copier(x)) for _ in range(REPEATS)])["p50"] for x in (moved, moved_c))
        for method in methods:
            if method == "registers" and t != 2:
                continue
            call = lambda m=method: whole(m)  # noqa: E731
            own, dense = measure(call, lambda: torch.matmul(a, b))
            roofline = dense["p50"] * rank / t**3 + copied
            say(
                {"what": "amm, B encoded in advance", **about, **own, "host_us": host_microseconds(call)}
                | {"baseline": {"name": "torch.matmul", **dense}}
                | {"ratio": dense["p50"] / own["p50"], "products": stored, "method": method}
                | {"roofline_ms": roofline, "of_roofline": roofline / own["p50"]}
            )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--ranks", type=int, nargs="+", default=[7, 12, 16, 24, 32, 49])
    parser.add_argument("--dtype", choices=["bf16", "fp16"], default="bf16")
    parser.add_argument("--tune", action="store_true", help="measure configurations first and keep them for this GPU")
    parser.add_argument("--only", choices=["check", "measure"], help="check the kernels, or measure them, alone")
    parser.add_argument(
        "--methods", choices=METHODS, nargs="+", default=METHODS, help="how to fuse, see product_decode"
    )
    options = parser.parse_args(arguments)
    if not gpu.available():
        print("nothing measured: this needs a CUDA GPU and triton", file=sys.stderr)
        return 2
    where = machine()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"device-{re.sub('[^A-Za-z0-9]+', '-', where['machine'])}.jsonl"
    plans = [Plan(scheme_for(rank), options.dtype, device="cuda") for rank in options.ranks]
    for plan in plans if options.only != "measure" else ():
        worst = check(plan, "cuda", (777, 1290, 530))
        print(f"correct: {plan.scheme.name}, largest deviation {worst:.2f} of what is allowed", flush=True)
    if options.only == "check":
        return 0
    with path.open("a", encoding="utf-8") as file:

        def say(row: dict[str, Any]) -> None:
            print(json.dumps(row), flush=True)
            file.write(json.dumps({**where, **row}) + "\n")

        for n in options.sizes:
            for plan in plans:
                if options.tune:
                    with tuning.measuring():
                        rows_for(plan, n, options.methods, lambda row: None)
                rows_for(plan, n, options.methods, say)
    print(f"rows added to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
