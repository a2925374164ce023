"""Which is faster, a scheme or the plain product, where the cost model cannot tell: timed once, in turn, and kept.

A timing stands for all products of its size class on this machine: sides within a tenth, in the same precision, by the
same scheme, aligned alike. Products that take longer than ``LONGEST`` are answered by one of their proportions that
does not, since schemes gain with size.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from stl_search.kernels import dense, gpu_multiply, multiply
from stl_search.kernels.plan import Plan, torch_dtype
from stl_search.runtime import calibrate

__all__ = ["LONGEST", "SHORTEST", "shortest", "size_class", "slowdown", "timeable"]

# Seconds of the plain product from which a timing, a dozen products, may be made; and what a run takes at least, in
# which short products are made again and again.
SHORTEST = {"cpu": 0.04, "cuda": 5e-4}
RUN = {"cpu": 0.0, "cuda": 0.01}
LONGEST = 1.0
PAIRS = 5
STEPS = 4  # size classes in each doubling of a side
FORMAT = 2
_lock = threading.Lock()
_known: dict[str, float] = {}

Sizes = tuple[int, int, int]


def size_class(sizes: Sizes, seconds: float, parts: Sizes) -> Sizes:
    """The sizes that are timed for products of these, whose plain product takes ``seconds``, cut into ``parts``.

    Rounded to powers of 2^(1/4), and to whole multiples of ``parts`` times 16 where the sizes themselves are.

    >>> size_class((4160, 4096, 3904), 0.7, (4, 4, 4)), size_class((8192, 8192, 8192), 8.0, (4, 4, 4))
    ((4096, 4096, 4096), (4096, 4096, 4096))
    """
    shrink = min(1.0, (LONGEST / seconds) ** (1 / 3)) if seconds > 0 else 1.0
    found = []
    for size, part in zip(sizes, parts, strict=True):
        side = 2 ** (round(STEPS * math.log2(max(1.0, size * shrink))) / STEPS)
        unit = 16 * part
        whole = max(1, round(side / unit)) * unit
        found.append(whole if size % unit == 0 else max(1, whole - whole % unit + size % unit))
    return found[0], found[1], found[2]


def shortest(device: str) -> float:
    """Seconds of a plain product on that device from which a timing may be made; infinite where none is."""
    return SHORTEST.get(torch.device(device).type, math.inf)


def timeable(plan: Plan, seconds: float) -> bool:
    """Whether ``slowdown`` takes a plan for a plain product that takes ``seconds``."""
    place = torch.device(plan.device)
    if plan.complex or seconds < shortest(plan.device):
        return False
    return place.type == "cpu" or gpu_multiply.applies(plan, place, plan.dtype)


def slowdown(plan: Plan, levels: int, sizes: Sizes, seconds: float, way: str) -> float:
    """Time of A: (M, K) times B: (K, N) by a plan, on its device, over that of the plain product by ``way``.

    What four of five pairs of runs do not exceed. The first call for a size class takes a dozen products; the answer is
    kept among the user's caches, but where not four pairs of five agree on which is faster: then it is 1, until the
    process ends.
    """
    timed = size_class(sizes, seconds, plan.scheme.shape)
    what = [plan.scheme.id, plan.dtype, plan.product, plan.out, plan.layout, levels, *timed, way]
    sliced = calibrate.slice_way(plan, timed, levels) if torch.device(plan.device).type == "cpu" else "torch"
    what += [sliced] if sliced != "torch" else []
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    path = calibrate.cache_dir() / f"{calibrate.machine(plan.device)}-{plan.dtype}-{key}.json"
    with _lock:
        if str(path) not in _known:
            timing = partial(_timed, plan, levels, timed, way, seconds, sliced)
            found = calibrate.kept(path, FORMAT, lambda: {"slowdown": timing(), "what": what}, _decided)
            _known[str(path)] = float(found["slowdown"])
        return _known[str(path)]


def _decided(found: dict[str, Any]) -> None:
    if float(found["slowdown"]) == 1.0:
        raise ValueError("undecided")


def _timed(plan: Plan, levels: int, sizes: Sizes, way: str, seconds: float, sliced: str = "torch") -> float:
    m, k, n = sizes
    kind, place = torch_dtype(plan.dtype), torch.device(plan.device)
    times = max(1, math.ceil(RUN[place.type] / seconds))
    with torch.inference_mode(False), torch.no_grad(), _no_autocast(place):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(s, generator=generator, device="cpu").to(place, kind) for s in ((m, k), (k, n)))

        def scheme() -> None:
            if place.type == "cpu":
                multiply.multiply(a, b, plan, m, n, levels=levels, way=sliced)
                return
            hats = (gpu_multiply.encode(x, plan, side) for x, side in ((a, "lhs"), (b, "rhs")))
            gpu_multiply.multiply(next(hats), next(hats), plan, m, n)

        def plain() -> None:
            if place.type == "cpu":
                dense.matmul(a, b, way)
            else:
                torch.matmul(a, b)

        def turn() -> tuple[float, float]:
            return _seconds(scheme, way, place, times), _seconds(plain, way, place, times)

        return _verdict([turn() for _ in range(PAIRS + 1)][1:])


def _verdict(pairs: list[tuple[float, float]]) -> float:
    """What four fifths of the ratios do not exceed, where less than 1; their median, where four fifths are not; else 1.

    >>> _verdict([(0.8, 1.0)] * 3 + [(0.9, 1.0), (2.0, 1.0)]), _verdict([(0.9, 1.0)] * 3 + [(2.0, 1.0)] * 2)
    (0.9, 1.0)
    """
    ratios = sorted(scheme / plain for scheme, plain in pairs)
    most = math.ceil(0.8 * len(ratios))
    if ratios[most - 1] < 1:
        return ratios[most - 1]
    return statistics.median(ratios) if ratios[-most] >= 1 else 1.0


def _seconds(run: Callable[[], None], way: str, place: torch.device, times: int) -> float:
    if way == "numpy":  # its threads spin for a while and slow down what comes next
        time.sleep(calibrate.SETTLE)

    def wait() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    wait()
    start = time.perf_counter()
    for _ in range(times):
        run()
    wait()
    return (time.perf_counter() - start) / times


def _no_autocast(place: torch.device) -> contextlib.AbstractContextManager[None]:
    kind = place.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
