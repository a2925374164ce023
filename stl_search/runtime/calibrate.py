"""What this machine does: speeds of dense products, of products of slices, and of encoding, measured once and kept.

``rates`` gives them for a device and a precision: the first call measures for some seconds and writes a small JSON
file among the user's caches; a file is used as long as processor, libraries and number of threads stay the same.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stl_search.kernels import cpu, dense, gpu, gpu_multiply, multiply, ops
from stl_search.kernels.plan import Plan, dtype_name, torch_dtype

__all__ = ["Curve", "Rates", "cache_dir", "kept", "machine", "measure", "rates", "side", "slice_way"]

Curve = tuple[tuple[float, float], ...]  # (size, operations a second), by size

SIZES = {"cpu": (128, 256, 512, 1024, 2048, 3072)}
LARGEST_SLICE = 1024  # on the processor
SMALLEST_SLICE = 256  # below, torch multiplies slices, and nothing is measured for them
SIZES_ELSEWHERE = (512, 1024, 2048, 4096, 8192)
NUMPY_FROM = 2048
REPEATS = 5
LONG = 0.1  # seconds; runs that take longer are repeated less
SLICES = 4
# Side of the matrix whose encoding is timed: beyond the caches, and on a GPU beyond what a call takes of the processor.
ENCODED = {"cpu": 4096, "cuda": 16384}
SETTLE = 0.2  # seconds after which the threads of a numeric library have stopped spinning and hinder no other
CURVES = ("dense", "slices", "packed")
FORMAT = 10  # of the file; what was written by another is measured anew


@dataclass(frozen=True)
class Rates:
    """Speeds on one device in one precision; sizes are sides of square products.

    ``dense`` (flops a second, the fastest way at each size, named in ``ways``), ``slices`` (the same for r products at
    once, in the precision itself, the ways named in ``slice_ways``), ``packed`` (with the right operand packed, as
    ``packed_ways`` say; empty where that is not to be had), ``bandwidth`` (bytes a second read and written by encode
    and decode), ``sums`` (multiply-adds a second in them), ``call`` (seconds that any step takes at least).
    """

    dense: Curve
    ways: tuple[str, ...]
    slices: Curve
    slice_ways: tuple[str, ...]
    packed: Curve
    packed_ways: tuple[str, ...]
    bandwidth: float
    sums: float
    call: float

    def way(self, size: float) -> str:
        """The fastest way to multiply at that size."""
        return _nearest(self.dense, self.ways, size)

    def slice_way(self, size: float) -> str:
        """The fastest way to multiply slices of that size."""
        return _nearest(self.slices, self.slice_ways, size)

    @property
    def packing(self) -> str | None:
        """How to pack a right operand that is kept: as large slices are multiplied fastest, by a twentieth at least.

        Panels, which take no more memory, also where they would be made at every product.
        """
        if not self.packed:
            return None
        gain = self.packed[-1][1] / self.slices[-1][1]
        same = self.packed_ways[-1] == self.slice_ways[-1]
        return self.packed_ways[-1] if gain > 1.05 or same else None


def _nearest(curve: Curve, names: tuple[str, ...], size: float) -> str:
    """The name that belongs to the size of the curve nearest to this one, as ratios go."""
    sides = [s for s, _ in curve]
    at = bisect.bisect_left(sides, size)
    if at and (at == len(sides) or size * size < sides[at - 1] * sides[at]):
        at -= 1
    return names[at]


def at(curve: Curve, size: float) -> float:
    """The curve at a size, linear between the logarithms of sizes, constant beyond the last, falling below the first.

    >>> at(((100.0, 10.0), (400.0, 30.0)), 200.0), at(((100.0, 10.0),), 50.0)
    (20.0, 5.0)
    """
    sizes = [s for s, _ in curve]
    if size <= sizes[0]:
        return curve[0][1] * size / sizes[0]
    if size >= sizes[-1]:
        return curve[-1][1]
    i = bisect.bisect_right(sizes, size)
    share = math.log(size / sizes[i - 1]) / math.log(sizes[i] / sizes[i - 1])
    return curve[i - 1][1] * (1 - share) + curve[i][1] * share


def cache_dir() -> Path:
    """Where measurements are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("stl-search", appauthor=False)) / "rates"


@lru_cache(maxsize=64)
def _rates(device: str, dtype: str, threads: int) -> Rates:
    path = cache_dir() / f"{machine(device, threads)}-{dtype}.json"
    found = kept(path, FORMAT, lambda: asdict(measure(device, dtype)), _read)
    return _read(found)


def _read(found: dict[str, Any]) -> Rates:
    parts: dict[str, Any] = {k: tuple((float(s), float(f)) for s, f in found[k]) for k in CURVES}
    parts |= {k: tuple(str(way) for way in found[k]) for k in ("ways", "slice_ways", "packed_ways")}
    parts |= {k: float(found[k]) for k in ("bandwidth", "sums", "call")}
    return Rates(**parts)


def kept(
    path: Path, version: int, measured: Callable[[], dict[str, Any]], check: Callable[[dict[str, Any]], Any] = bool
) -> dict[str, Any]:
    """What the file holds, where it is of that version and ``check`` raises nothing; else what is measured now.

    That is written there, where it passes ``check`` itself. Nowhere to keep it is no error: it is measured again in the
    next process.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if found.pop("format") == version:
            check(found)
            return found
    found = measured()
    with contextlib.suppress(OSError, ValueError):
        check(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"format": version, **found}, file)
        os.replace(name, path)
    return found


def rates(device: str, dtype: str) -> Rates:
    """The speeds of a device ("cpu", "cuda:0") for real numbers in fp16, bf16, fp32 or fp64; measured where need be."""
    if dtype == "fp16" and device.startswith("cpu"):
        dtype = "fp32"  # in which both dense products and sums are made, see ``amm``
    return _rates(device, dtype, torch.get_num_threads())


def side(rows: float, inner: float, cols: float) -> float:
    """The side of the square product that runs at about the same speed: thin products run slower than their flops."""
    return float(min((rows * inner * cols) ** (1 / 3), 4 * min(rows, inner, cols)))


def slice_way(plan: Plan, sizes: tuple[int, int, int], levels: int = 1) -> str:
    """The fastest way of ``dense.batched`` for the slices of A: (M, K) times B: (K, N) by a plan on the processor."""
    size = side(*(-(-length // part**levels) for length, part in zip(sizes, plan.scheme.shape, strict=True)))
    made = multiply.made_in(plan)
    if size < SMALLEST_SLICE or len(dense.slice_ways(made)) == 1:
        return "torch"
    return rates("cpu", dtype_name(made)[0]).slice_way(size)


def machine(device: str, threads: int | None = None) -> str:
    """A name for what measurements depend on: processor, libraries, threads (by default those that torch uses)."""
    threads = torch.get_num_threads() if threads is None else threads
    what = [platform.machine(), torch.__version__, np.__version__, str(threads)]
    if device.startswith("cuda"):
        what.append(torch.cuda.get_device_name(device))
    else:
        with contextlib.suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            what += [line for line in lines if line.startswith("model name")][:1]
        what += [platform.processor(), str(os.cpu_count())]
    return f"{device.replace(':', '')}-{hashlib.sha256(chr(0).join(what).encode()).hexdigest()[:12]}"


def measure(device: str, dtype: str) -> Rates:
    """The speeds, measured now; some seconds of work."""
    kind = torch_dtype(dtype)
    place = torch.device(device)
    with torch.no_grad(), torch.inference_mode(False):
        call = _seconds(lambda: torch.empty(1, device=place), place)
        if gpu_multiply.there(place) and dtype in gpu.DTYPES:  # what a launch takes of the processor
            little, one = torch.ones(64, 64, device=place).to(kind), np.ones((1, 1, 1), np.float32)
            call = max(call, _seconds(partial(gpu.encode, little, one, "block", dtype), place))
        dense_curve: list[tuple[float, float]] = []
        slice_curve: list[tuple[float, float]] = []
        packed_curve: list[tuple[float, float]] = []
        packed: list[str] = []
        chosen: list[str] = []
        sliced: list[str] = []
        sizes = SIZES.get(place.type, SIZES_ELSEWHERE)
        for size in sizes:
            a, b = (torch.randn(size, size, device=place).to(kind) for _ in range(2))
            flops = 2.0 * size**3
            multiply = dense.matmul if place.type == "cpu" else _elsewhere
            ways = _ways(kind, place, size)
            speeds = {way: flops / _seconds(partial(multiply, a, b, way), place) for way in ways}
            if "numpy" in ways:
                time.sleep(SETTLE)
            chosen.append(max(speeds, key=lambda way: speeds[way]))
            dense_curve.append((float(size), speeds[chosen[-1]]))
            if size == sizes[-1] or (place.type == "cpu" and size > LARGEST_SLICE):
                continue  # slices are smaller than the whole
            x, y = (z.expand(SLICES, size, size).contiguous() for z in (a, b))
            flops *= SLICES
            if place.type == "cpu":
                times = {w: _seconds(partial(dense.batched, x, y, way=w), place) for w in dense.slice_ways(kind)}
                sliced.append(min(times, key=lambda way: times[way]))
                slice_curve.append((float(size), flops / times[sliced[-1]]))
                if dense.packings(y):
                    times = {w: _seconds(partial(dense.pack(y, w).products, x), place) for w in dense.packings(y)}
                    packed.append(min(times, key=lambda way: times[way]))
                    packed_curve.append((float(size), flops / times[packed[-1]]))
            else:
                sliced.append("torch")
                slice_curve.append((float(size), flops / _seconds(partial(ops.product, x, y, kind), place)))
        bandwidth, sums = _encoding(kind, place)
    slices, kept_packed = (tuple(slice_curve), tuple(sliced)), (tuple(packed_curve), tuple(packed))
    return Rates(tuple(dense_curve), tuple(chosen), *slices, *kept_packed, bandwidth, sums, call)


def _ways(kind: torch.dtype, place: torch.device, size: int) -> list[str]:
    """What is compared. numpy's threads spin for a tenth of a second and slow down what torch does next: they count
    for products that take long themselves."""
    if place.type != "cpu":
        return ["torch"]
    found = sorted(dense.ways(kind), key=lambda way: way == "numpy")  # last
    return [way for way in found if way != "numpy" or size >= NUMPY_FROM]


def _elsewhere(a: torch.Tensor, b: torch.Tensor, way: str) -> torch.Tensor:
    return torch.matmul(a, b)


def _encoding(kind: torch.dtype, place: torch.device) -> tuple[float, float]:
    """(bytes a second, multiply-adds a second) of encoding, from a sparse and a dense encoder of one size."""
    size = ENCODED.get(place.type, 8192)
    wide = torch.float64 if kind == torch.float64 else torch.float32
    x = torch.randn(size, size, device=place).to(kind)
    light = torch.zeros(4, 2, 2, dtype=wide)
    light[range(4), [0, 0, 1, 1], [0, 1, 0, 1]] = 1.0
    heavy = torch.linspace(0.1, 1.0, 16 * 16, dtype=wide).reshape(16, 4, 4)
    name = dtype_name(kind)[0]

    def seconds(factor: torch.Tensor) -> float:
        if place.type == "cpu":
            return _seconds(partial(cpu.encode, x, factor, dtype=kind), place)
        if gpu_multiply.there(place) and name in gpu.DTYPES:  # coefficients on the host, as a scheme has them
            return _seconds(partial(gpu.encode, x, factor, "block", name), place)
        return _seconds(partial(ops.encode, x, factor.to(place), "block", kind), place)

    moved = 2.0 * x.numel() * x.itemsize  # both read x once and write as much
    slow, quick = seconds(heavy), seconds(light)
    return moved / quick, 15.0 * x.numel() / max(slow - quick, 0.05 * slow)


def _seconds(run: Callable[[], Any], place: torch.device) -> float:
    """The shortest time of a run, after one that is not counted: what else the machine does only adds to it."""

    def once(times: int) -> float:
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        start = time.perf_counter()
        for _ in range(times):
            run()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return (time.perf_counter() - start) / times

    once(1)
    first = once(1)
    times = max(1, min(100, int(2e-4 / max(first, 1e-7))))
    return min(first, *(once(times) for _ in range(REPEATS if first < LONG else 1)))
