"""What this machine does: speeds of dense products, of products of slices, and of encoding, measured once and kept.

``rates`` gives them for a device and a precision: the first call measures for some seconds, up to half a minute on two
cores, and writes a small JSON file among the user's caches; a file is used as long as processor, libraries and number
of threads stay the same, and one product of known size shows that the machine was not busy when it was written.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from stl_search import score, transform
from stl_search.kernels import cpu, dense, gpu, gpu_multiply, multiply, ops
from stl_search.kernels.plan import Plan, dtype_name, torch_dtype

__all__ = [
    "Curve",
    "Rates",
    "cache_dir",
    "in_a_row",
    "kept",
    "machine",
    "measure",
    "processor",
    "rates",
    "side",
    "slice_way",
]

Curve = tuple[tuple[float, float], ...]  # (size, operations a second), by size

SIZES = {"cpu": (64, 128, 256, 512, 1024, 2048, 3072)}
LARGEST_SLICE = 1024  # on the processor
SMALLEST_SLICE = 64  # below, torch multiplies slices, and nothing is measured for them
SMALLEST = 128  # dense product that is measured on the processor
SIZES_ELSEWHERE = (512, 1024, 2048, 4096, 8192)
NUMPY_FROM = 2048
REPEATS = 5
LONG = 0.1  # seconds; runs that take longer are repeated less
# Where ways are compared: seconds of a run at least (shorter calls are made several times), rounds, runs of each way in
# one and the seconds after which there are fewer.
TURN = 0.005
ROUNDS = 3
TURNS = 3
PATIENCE = 0.15
# Slices that are multiplied: on the processor as many as a scheme has, since B encoded is beyond the caches there too.
OF_SLICES = (2, 4, 2)
SLICES = {"cpu": math.prod(OF_SLICES)}
SLICES_ELSEWHERE = 4
USUAL = 48  # slices of a scheme for which the ways are compared
RUN = 160  # rows of slices that are multiplied at a time: about as many as a chunk of ``multiply`` has of large ones
# Side of the matrix whose encoding is timed: beyond the caches, and on a GPU beyond what a call takes of the processor.
ENCODED = {"cpu": 4096, "cuda": 16384}
SETTLE = 0.2  # seconds after which the threads of a numeric library have stopped spinning and hinder no other
LONGEST = 2.0  # seconds of a call that is made once, and after which nothing larger is tried
HOPELESS = 2.5  # times the shortest time after which a way is not tried again
COMPILED = 512  # side of a slice up to which its width may ask for code of its own
LONG_ROW = 4096  # products of one entry, whose sum tells how many are added up in a row
PROBED = 512  # side of the product that tells whether a file still holds, on the processor
PROBING = 0.02  # seconds after which no more of them are made
OUTDATED = 1.5  # times faster than a file says: the machine was busy when it was written
WORTH = 1.05  # times faster that products are to be for an operand to be packed
SPINNING = 1.05  # how many times faster numpy is to be than others: its library is among them, in torch's threads
NAMES = {"dense": "ways", "slices": "slice_ways", "packed": "packed_ways"}  # of the curves and what was fastest
CURVES = tuple(NAMES)
FORMAT = 14  # of the file; what was written by another is measured anew


@dataclass(frozen=True)
class Rates:
    """Speeds on one device in one precision; sizes are sides of square products.

    ``dense`` (flops a second, the fastest way at each size, named in ``ways``), ``slices`` (the same for r products at
    once, in the precision itself, the ways named in ``slice_ways``), ``packed`` (with the right operand packed, as
    ``packed_ways`` say; empty where that is not to be had), ``bandwidth`` (bytes a second read and written by encode
    and decode), ``sums`` (multiply-adds a second in them), ``call`` (seconds that any step takes at least), ``row``
    (products of one entry of a slice that are added up in a row, by the way that begins anew least).
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
    row: float = math.inf

    def way(self, size: float) -> str:
        """The fastest way to multiply at that size."""
        return _nearest(self.dense, self.ways, size)

    def slice_way(self, size: float) -> str:
        """The fastest way to multiply slices of that size."""
        return _nearest(self.slices, self.slice_ways, size)

    def packing(self, size: float) -> str | None:
        """How to pack a right operand that is kept: as slices of that size are multiplied fastest, by a twentieth at
        least. Panels, which take little more memory, also where they would be made at every product."""
        if not self.packed:
            return None
        way = _nearest(self.packed, self.packed_ways, size)
        if at(self.packed, size) > WORTH * at(self.slices, size):
            return way
        return "panels" if self.slice_way(size) == "panels" else None


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
    place = torch.device(device)
    random = torch.random.fork_rng([place] if place.type == "cuda" else [])  # what callers draw hangs on no file
    with random, _disable_current_modes():  # nor on who looks on
        found = kept(path, FORMAT, lambda: asdict(measure(device, dtype)), partial(_hold, device=device, dtype=dtype))
    return _read(found)


def _hold(found: dict[str, Any], device: str, dtype: str) -> None:
    """Raises ValueError, or what ``_read`` does, unless the file can be read and a product is about as fast as it says.

    Much faster it is where the machine was busy with something else all the while that it was measured, as a machine
    just started is: what was chosen then would be held for good. Much slower it is where the machine is busy now.
    """
    known = _read(found)
    place = torch.device(device)
    if place.type != "cpu":
        return
    size, speed = min(known.dense, key=lambda point: abs(math.log(point[0] / PROBED)))
    with torch.no_grad(), torch.inference_mode(False):
        a, b = (torch.randn(int(size), int(size), device=place).to(torch_dtype(dtype)) for _ in range(2))
        run = partial(dense.matmul, a, b, known.way(size))
        start, shortest = time.perf_counter(), _once(run, place)
        while time.perf_counter() - start < PROBING:
            shortest = min(shortest, _once(run, place))
    if 2 * size**3 / shortest > OUTDATED * speed:
        raise ValueError("measured while the machine was busy")


def _read(found: dict[str, Any]) -> Rates:
    parts: dict[str, Any] = {k: tuple((float(s), float(f)) for s, f in found[k]) for k in CURVES}
    parts |= {k: tuple(str(way) for way in found[k]) for k in NAMES.values()}
    parts |= {k: float(found[k]) for k in ("bandwidth", "sums", "call", "row")}
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


def slice_way(plan: multiply.Bilinear, sizes: tuple[int, int, int], levels: int = 1) -> str:
    """The fastest way of ``dense.batched`` for the slices of A: (M, K) times B: (K, N) by a plan on the processor."""
    size = side(*(-(-length // part**levels) for length, part in zip(sizes, plan.shape, strict=True)))
    made = multiply.made_in(plan)
    if size < SMALLEST_SLICE or len(dense.slice_ways(made)) == 1:
        return "torch"
    return rates("cpu", dtype_name(made)[0]).slice_way(size)


def processor() -> str:
    """Its name, with family and model where the system tells them: hosts name processors of several kinds alike."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            told.setdefault(key.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    kind = [f"{key} {told[of]}" for key, of in (("family", "cpu family"), ("model", "model")) if of in told]
    return f"{name} ({', '.join(kind)})" if kind else name


def machine(device: str, threads: int | None = None) -> str:
    """A name for what measurements depend on: processor, libraries, threads (by default those that torch uses)."""
    threads = torch.get_num_threads() if threads is None else threads
    what = [platform.machine(), torch.__version__, np.__version__, str(threads)]
    if device.startswith("cuda"):
        what.append(torch.cuda.get_device_name(device))
    else:
        what += [processor(), str(os.cpu_count())]
    return f"{device.replace(':', '')}-{hashlib.sha256(chr(0).join(what).encode()).hexdigest()[:12]}"


def measure(device: str, dtype: str) -> Rates:
    """The speeds, measured now; some seconds of work."""
    kind = torch_dtype(dtype)
    place = torch.device(device)
    with torch.no_grad(), torch.inference_mode(False):
        if place.type != "cpu":
            call = _seconds(lambda: torch.empty(1, device=place), place)
        else:  # what encoding takes beside its work
            wide = torch.float64 if kind == torch.float64 else torch.float32
            x, u = torch.ones(4, 4, device=place).to(kind), torch.ones(1, 2, 2, dtype=wide, device=place)
            encoded = partial(cpu.encode, x, u)
            encoded()  # compiled once
            call = _seconds(encoded, place)
        if gpu_multiply.there(place) and dtype in gpu.DTYPES:  # what a launch takes of the processor
            little, one = torch.ones(64, 64, device=place).to(kind), np.ones((1, 1, 1), np.float32)
            call = max(call, _seconds(partial(gpu.encode, little, one, "block", dtype), place))
        compared = _comparisons(kind, place)
        for _ in range(ROUNDS):  # a machine that does something else for a second does so in one of them
            for comparison in compared:
                comparison.go_on()
        bandwidth, sums = _encoding(kind, place)
    found: dict[str, Any] = {key: [] for names in NAMES.items() for key in names}
    for comparison in compared:
        way, seconds = comparison.fastest()
        found[comparison.name].append((float(comparison.size), comparison.flops / seconds))
        found[NAMES[comparison.name]].append(way)
    made = {"torch", *found["slice_ways"], *found["packed_ways"]}  # torch makes small slices
    row = max(in_a_row(kind, way) for way in made) if place.type == "cpu" else math.inf
    return Rates(**{key: tuple(x) for key, x in found.items()}, bandwidth=bandwidth, sums=sums, call=call, row=row)


def in_a_row(kind: torch.dtype, way: str) -> float:
    """How many products of one entry a way to multiply slices adds up before it begins anew; infinite if it does not.

    From the rounding of sums of ``LONG_ROW`` products: a row of L adds (L + 1)/2 squared roundings to it. Operands are
    integers that float32, or float64, holds exactly, and so does int64 their sum. What has 16 bits is added up in
    float32, and taken for that.
    """
    wide = torch.float64 if kind == torch.float64 else torch.float32
    bits = (1 - round(math.log2(torch.finfo(wide).eps))) // 2  # of an entry: products fill what numbers hold
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(-(1 << bits), 1 << bits, sides, generator=generator, device="cpu")
        for sides in ((128, LONG_ROW), (LONG_ROW, 128))
    )
    exact = a @ b
    x, y = a.to(wide)[None], b.to(wide)[None]
    c = dense.batched(x, y, way=way) if way in dense.slice_ways(wide) else dense.pack(y, way).products(x)
    gap = c[0].to(torch.int64) - exact
    rounding = score.relative_rounding(dtype_name(wide)[0])
    row = 2 * float(gap.double().norm() / exact.double().norm() / rounding) ** 2 - 1
    return max(1.0, row) if row < 0.8 * LONG_ROW else math.inf


_Runs = dict[str, Callable[[], Any]]  # by the names of their ways


class _Comparison:
    """The ways to do one thing, run in turn: what else the machine does changes within seconds."""

    def __init__(
        self, name: str, size: int, flops: float, runs: _Runs, place: torch.device, alone: _Runs | None = None
    ) -> None:
        """``runs`` are called once or twice; those that come nowhere near the fastest are ``hopeless`` and left out.

        Where more than products is run, ``alone`` are the products by themselves.
        """
        self.name, self.size, self.flops, self._place = name, size, flops, place
        self._runs, self._alone = runs, alone
        first = {way: self._once(way) for way in runs}
        first = {way: seconds if seconds > LONG else self._once(way) for way, seconds in first.items()}
        shortest = min(first.values())
        self.hopeless = set(runs) if shortest > LONGEST else {w for w in runs if first[w] > HOPELESS * shortest}
        left = [way for way in runs if first[way] <= HOPELESS * shortest]
        self._times = {way: max(1, int(TURN / max(first[way], 1e-7))) for way in left}
        self._taken = {way: [first[way]] if self._times[way] == 1 else [] for way in left}
        self._turns = min(TURNS, int(PATIENCE / sum(self._times[way] * first[way] for way in left)))
        if shortest <= LONGEST:
            self._turns = max(1, self._turns)

    def _once(self, way: str, times: int = 1) -> float:
        seconds = _once(self._runs[way], self._place, times)
        if way == "numpy":
            time.sleep(SETTLE)
        return seconds

    def go_on(self) -> None:
        """Some turns more; none where a call takes very long."""
        for _ in range(self._turns):
            for way, times in self._times.items():
                if self._alone is not None and len(self._times) > 1:
                    self._once(way)  # whole products work in buffers that another way, or size, has left otherwise
                self._taken[way].append(self._once(way, times))

    def fastest(self) -> tuple[str, float]:
        """The way of the least median, or of the shortest time for whole products, and its shortest time.

        New memory is slow at first, and more so for who takes more of it: whole products have several ways to that.
        numpy's, whose threads spin for a while and slow down what comes next, is to gain a little by itself.
        """
        usual = statistics.median if self._alone is None else min
        best = min(self._taken, key=lambda way: usual(self._taken[way]) * (SPINNING if way == "numpy" else 1))
        if self._alone not in (None, self._runs):
            return best, _seconds(self._alone[best], self._place)
        return best, min(self._taken[best])


def _comparisons(kind: torch.dtype, place: torch.device) -> list[_Comparison]:
    """Dense products, products of slices and with the right operand packed, by size."""
    found: list[_Comparison] = []
    slow: dict[str, set[str]] = {name: set() for name in CURVES}  # ways that need not be tried at larger sizes

    def compare(name: str, size: int, count: int, runs: _Runs, alone: _Runs | None = None) -> None:
        runs = {way: run for way, run in runs.items() if way not in slow[name]}
        if name not in {c.name for c in found} or size <= COMPILED:
            for run in runs.values():
                run()  # what is compiled or loaded once, for each width of rows
        if runs:
            found.append(_Comparison(name, size, 2.0 * count * size**3, runs, place, alone))
            if large:
                slow[name] |= found[-1].hopeless

    sizes = SIZES.get(place.type, SIZES_ELSEWHERE)
    for size in sizes:
        large = place.type != "cpu" or size >= SMALLEST  # smaller ones tell what calls cost
        a, b = (torch.randn(size, size, device=place).to(kind) for _ in range(2))
        whole = dense.matmul if place.type == "cpu" else _elsewhere
        if large:
            compare("dense", size, 1, {way: partial(whole, a, b, way) for way in _ways(kind, place, size)})
        if size == sizes[-1] or (place.type == "cpu" and size > LARGEST_SLICE):
            continue  # slices are smaller than the whole
        count = SLICES.get(place.type, SLICES_ELSEWHERE)
        x, y = (z.expand(count, size, size).contiguous() for z in (a, b))
        if place.type == "cpu":
            alone: _Runs = {way: partial(_in_runs, x, y, way) for way in dense.slice_ways(kind)}
            compare("slices", size, count, _of_slices(kind, size, list(alone)) if len(alone) > 1 else alone, alone)
            compare("packed", size, count, {w: partial(_in_runs, x, dense.pack(y, w), w) for w in dense.packings(y)})
        else:
            compare("slices", size, count, {"torch": partial(ops.product, x, y, kind)})
    return found


def _of_slices(kind: torch.dtype, size: int, ways: list[str]) -> _Runs:
    """Whole products by a scheme of sixteen slices of that size, which is the classical one of <2,4,2>.

    How fast a way is hangs on where encoding leaves the slices, on what it takes to leave them as that way likes, and
    on how many rows meet a slice of B at a time: as few as if there were ``USUAL`` slices.
    """
    plan = Plan(transform.classical(OF_SLICES), dtype_name(kind)[0])
    (m, k), n = (size * side for side in OF_SLICES[:2]), size * OF_SLICES[2]
    a, b = (torch.randn(*sides, device="cpu").to(kind) for sides in ((m, k), (k, n)))
    chunk = multiply.CHUNK * plan.scheme.rank // USUAL
    return {way: partial(multiply.multiply, a, b, plan, m, n, way=way, chunk=chunk) for way in ways}


def _in_runs(x: torch.Tensor, y: multiply.Operand, way: str) -> None:
    """x: (r, M, K) times y: (r, K, N), some rows after others, as ``multiply`` makes them; panels are arranged once."""
    if way == "panels" and isinstance(y, torch.Tensor):
        y = dense.pack(y, way)
    for top in range(0, x.shape[1], RUN):
        rows = x[:, top : top + RUN]
        if isinstance(y, torch.Tensor):
            dense.batched(rows, y, way=way)
        else:
            y.products(rows)


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
    light = torch.zeros(4, 2, 2, dtype=wide, device="cpu")
    light[range(4), [0, 0, 1, 1], [0, 1, 0, 1]] = 1.0
    heavy = torch.linspace(0.1, 1.0, 16 * 16, dtype=wide, device="cpu").reshape(16, 4, 4)
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
    """The shortest time of a run, but for the first of several: what else the machine does only adds to it."""
    first = _once(run, place)
    if first > LONGEST:
        return first
    first = _once(run, place)
    times = max(1, min(100, int(2e-4 / max(first, 1e-7))))
    return min(first, *(_once(run, place, times) for _ in range(REPEATS if first < LONG else 1)))


def _once(run: Callable[[], Any], place: torch.device, times: int = 1) -> float:
    """Seconds of a run, of so many one after another."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    start = time.perf_counter()
    for _ in range(times):
        run()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return (time.perf_counter() - start) / times
