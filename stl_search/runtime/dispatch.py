"""The choice of how to multiply: which scheme of the catalog and how many levels of it, or the dense product, and why.

The times rest on a cost model (multiplications at the speed of slices of that size, bytes and sums of encoding and
decoding, calls) whose constants are measured on this machine, once, by ``calibrate``; where they are too close to
call, on a timing of the two, see ``measured``.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stl_search import score
from stl_search.catalog import store
from stl_search.errors import NotFoundError, StlError, UsageError
from stl_search.kernels.plan import Plan, dtype_name, torch_dtype, wider, with_out
from stl_search.runtime import calibrate, measured
from stl_search.scheme import Scheme, Shape

__all__ = [
    "ASSUMPTION",
    "DEFAULT",
    "Cost",
    "Explanation",
    "Problem",
    "Request",
    "catalog_stamp",
    "choose",
    "dense_seconds",
    "dense_way",
    "explain",
    "forget",
    "out_name",
    "plan_for",
    "request_of",
    "scheme_seconds",
    "seen",
]

DEFAULT = "catalog:best"
ASSUMPTION = "independent zero-mean entries of equal variance within A and within B"

# An exact scheme may be taken unasked only while it loses at most five bits to rounding.
MAX_ROUNDINGS = 32.0
# A scheme must be a twentieth faster than dense by the model, which can be wrong by that much: unless the modelled
# ratio lies between these bounds and the product is large enough for a timing, whose ratio must then be below TAKEN.
MARGIN = 0.95
UNSURE = (0.85, 1.1)
TAKEN = 0.97
# Dense products of fewer flops than that many are called without a question: no machine measures anything for them.
SMALL = 2.0 * 160**3
REMEMBERED = 4096  # choices
LOOK = 1.0  # seconds
SHOWN = 8  # alternatives that an explanation lists, beside dense
# Passes inside a slice, at its odd sizes and strides, take that many times longer (measured: two levels of <3,4,4> at
# 8192 6.7 s, where passes at full speed would give 4.7; dense 5.9).
INNER = 4.0
LEVELS = 3  # at most; each multiplies the noise gain
# Slices whose rows do not begin at multiples of that many entries are read and multiplied slower (measured: 456 by 256
# by 456 at 145 GFLOP/s where 512 cubed runs at 185, decoding at half the speed).
ALIGNED, RAGGED = 16, 1.25
STEPS = 6  # encode, encode, multiply, decode and what stands between: calls that any scheme makes
# Complex numbers take the reference path: that many passes over memory for each of the kernels'.
REFERENCE_PASSES = 4.0
BYTES = {"fp8_e4m3": 1, "bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
# Products of one entry that BLAS libraries add up in a row, where nothing was measured: most begin anew after some 384.
ROW = 384.0


@dataclass(frozen=True)
class Problem:
    """A: (lhs_count, M, K) times B: (rhs_count, K, N), ``count`` products in all, and the precision of all three."""

    rows: int
    inner: int
    cols: int
    dtype: str = "fp32"
    out: str = "fp32"
    complex: bool = False
    device: str = "cpu"
    lhs_count: int = 1
    rhs_count: int = 1
    count: int = 1

    @property
    def flops(self) -> float:
        """Of the dense product."""
        return 2.0 * self.count * self.rows * self.inner * self.cols * (4 if self.complex else 1)

    @property
    def output_rounding(self) -> float:
        """d of an output narrower than the sums, else 0."""
        wide = wider("fp32", self.dtype)
        return 0.0 if wider(self.out, wide) == self.out else score.relative_rounding(self.out)

    @property
    def dense_error(self) -> float:
        """Expected relative error of the dense product: of its sums, and of an output that is narrower."""
        precision = wider("fp32", wider(self.out, self.dtype))
        return math.sqrt(summed(self.inner, self.row, precision) + self.output_rounding**2)

    @property
    def row(self) -> float:
        """How many terms are added up in a row at most, as far as is known without measuring."""
        return ROW if self.device.partition(":")[0] == "cpu" else math.inf


def summed(terms: float, row: float, precision: str) -> float:
    """Expected squared relative error of sums of so many products of independent numbers, ``row`` in a row.

    Each of L partial sums is rounded to ``precision``, and its square grows to the whole's: (L + 1)/2 times d^2.
    """
    return score.relative_rounding(precision) ** 2 * (max(1.0, min(terms, row)) + 1) / 2


@dataclass(frozen=True, repr=False)
class Explanation:
    """How a product is done and why: ``plan`` (None for the plain dense product) and what was weighed.

    ``predicted_error`` is the expected relative Frobenius error under ``assumption``, that of sums in the precision of
    the products with it (which ``Plan.predicted_error`` leaves out, as it hangs on K); ``cost`` the modelled time
    relative to the dense product (1 for dense itself), or the measured one where ``reason`` says so; ``considered``
    the number of catalog entries that met the request; ``levels`` how often the scheme is applied; ``way`` the routine
    of the dense product (see ``kernels.dense``); ``alternatives`` what was weighed, with modelled seconds, fastest
    first. ``str`` is one line, ``table`` shows the alternatives too.
    """

    plan: Plan | None
    predicted_error: float
    cost: float
    considered: int
    reason: str
    assumption: str = ASSUMPTION
    levels: int = 1
    way: str = "torch"
    alternatives: tuple[tuple[str, float], ...] = ()

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that is used; None for dense."""
        return None if self.plan is None else self.plan.scheme

    def __str__(self) -> str:
        what = "dense" if self.plan is None else f"{self.plan.scheme.name} {self.plan.scheme.id[:8]}"
        what += f" at {self.levels} levels" if self.levels > 1 else ""
        return (
            f"{what}: {self.reason}; predicted relative error {self.predicted_error:.3g} (for {self.assumption}); "
            f"modelled time {self.cost:.2f} of dense"
        )

    __repr__ = __str__

    @property
    def name(self) -> str:
        """What is used, as ``alternatives`` names it."""
        return "dense" if self.plan is None else _name(self.plan, self.levels)

    def table(self) -> str:
        """Some lines: the choice and why, the error to expect, and the alternatives with their modelled times."""
        lines = [
            f"{self.name}: {self.reason}",
            f"predicted relative error {self.predicted_error:.3g} (for {self.assumption})",
        ]
        if not self.alternatives:
            return "\n".join(lines)
        seconds = dict(self.alternatives)
        lines.append(f"{'modelled':>14}  of dense")
        for name, time_ in self.alternatives:
            mark = "->" if name == self.name else "  "
            shown = f"dense ({self.way})" if name == "dense" else name
            lines.append(f"{mark}{time_ * 1e3:9.3f} ms  {time_ / seconds['dense']:8.2f}  {shown}")
        return "\n".join(lines)


def _name(plan: Plan, levels: int) -> str:
    entry = plan.scheme
    return _named(entry.shape, entry.rank, entry.id, levels, plan.product if plan.product == "bf16" else "")


def _named(shape: Shape, rank: int, id_: str, levels: int, product: str) -> str:
    deep = f", {levels} levels" if levels > 1 else ""
    narrow = f", products in {product}" if product else ""
    return f"<{','.join(map(str, shape))}> rank {rank} {id_[:8]}{deep}{narrow}"


@dataclass(frozen=True)
class Request:
    """An encoder as given: how to get the one scheme that it names, for operands of a dtype; or an open selector."""

    named: Callable[[str], Scheme | Plan] | None
    selector: store.Selector | None = None
    rtol: float | None = None
    speedup: float | None = None


def request_of(encoder: Any, rtol: float | None = None, speedup: float | None = None) -> Request:
    """What an ``encoder`` argument asks for: a selector, a path, a Scheme or a Plan.

    Raises UsageError when rtol or speedup come with an encoder that names one scheme, or are no positive numbers.
    """
    for name, value in (("rtol", rtol), ("speedup", speedup)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value <= sys.float_info.max):
            raise UsageError(f"{name} is {value!r:.40}, must be a positive number")
    selector = None
    if encoder is None:
        encoder = DEFAULT
    if isinstance(encoder, str) and encoder.startswith("catalog:"):
        selector = store.parse_selector(encoder)
        for name, given, own in (("rtol", rtol, selector.rtol), ("speedup", speedup, selector.speedup)):
            if given is not None and own is not None and given != own:
                raise UsageError(f"{name} is {given} in the call and {own} in the selector: give one")
        rtol = selector.rtol if rtol is None else rtol
        speedup = selector.speedup if speedup is None else speedup
        if selector.is_open:
            return Request(None, selector, rtol, speedup)
    if rtol is not None or speedup is not None:
        raise UsageError(
            "rtol and speedup choose among schemes, but encoder names one: drop them or write catalog:best"
        )
    if isinstance(encoder, Plan | Scheme):
        return Request(lambda dtype: encoder)
    return Request(lambda dtype: _load(encoder, selector, dtype))


def out_name(out_dtype: Any, is_complex: bool) -> str:
    """The precision that ``out_dtype`` names for operands that are complex or not; UsageError where it names none."""
    name, asks_complex = dtype_name(out_dtype)
    if name == "fp8_e4m3":
        raise UsageError("the output cannot be fp8_e4m3: ask for bf16 or fp16 and convert it with a scale of your own")
    if asks_complex != is_complex and not (isinstance(out_dtype, str) and out_dtype == name):
        raise UsageError(f"out_dtype is {out_dtype}, the operands are {'complex' if is_complex else 'real'}")
    torch_dtype(name, is_complex)
    return name


def _load(encoder: Any, selector: store.Selector | None, dtype: str) -> Scheme:
    """The scheme that a path or a selector with a rank names; the best is the one at the operands' own dtype."""
    if selector is not None and selector.kind == "best" and selector.shape is not None:
        at = selector.dtype or dtype
        entry = store.best(selector.shape, selector.rank, selector.max_rank, at, selector.ring)
        return store.scheme_of(entry, selector.shape)
    return store.load(encoder)


@lru_cache(maxsize=256)
def plan_for(scheme: Scheme, dtype: str, out: str, is_complex: bool, device: str, product: str = "") -> Plan:
    """The plan that runs a scheme on operands of that dtype; made once."""
    return Plan(scheme, dtype, product, out, complex=is_complex, device=device)


def choose(request: Request, problem: Problem, out: str | None = None) -> Explanation:
    """How to do a product; ``out`` is the output's precision where the caller fixed it (else a Plan's own holds).

    What was chosen for an open selector is remembered until the catalog changes, see ``catalog_stamp``.

    Raises UsageError for a plan or scheme that does not fit the operands, NotFoundError when a speedup is asked that
    no entry reaches.
    """
    if request.named is not None:
        found = request.named(problem.dtype)
        if isinstance(found, Plan):
            plan = found if out is None else with_out(found, out)
            _check_fit(plan, problem)
        else:
            plan = plan_for(found, problem.dtype, problem.out, problem.complex, problem.device)
        return Explanation(plan, _predicted(plan, problem, problem.row), math.nan, 1, "named, so used as asked")
    assert request.selector is not None
    key = (catalog_stamp(), request.selector, request.rtol, request.speedup, problem)
    if key not in _chosen:
        if len(_chosen) >= REMEMBERED:
            _chosen.clear()
        _chosen[key] = _choose_open(request, request.selector, problem)
    return _chosen[key]


_chosen: dict[Any, Explanation] = {}


class _Seen:
    """What the catalog's folders were like when last looked at, and what ``DEFAULT`` came to then, see ``recall``."""

    __slots__ = ("chosen", "latest", "stamp", "until")

    def __init__(self) -> None:
        self.until = -math.inf  # of the monotonic clock: nobody need look before
        self.chosen: str | None = None  # STL_CATALOG
        self.stamp: Any = None  # one object while nothing changes
        # tests of two operands, and how to multiply those that pass
        self.latest: tuple[tuple[Callable[[Any, Any], bool], Callable[[Any, Any], Any]], ...] = ()


seen = _Seen()


def catalog_stamp() -> Any:
    """What changes when a catalog's folders do; looked at once in LOOK seconds at most, since it costs some calls.

    Who has no time to ask may take ``seen.stamp`` for it up to ``seen.until``, whatever STL_CATALOG says.
    """
    chosen = os.environ.get("STL_CATALOG")
    now = time.monotonic()
    if now >= seen.until or seen.chosen != chosen:
        folders = [
            top / sub for top in (store.shipped_dir(), store.user_dir()) for sub in ("", "schemes", "compositions")
        ]
        stamp = tuple((str(f), _changed(f)) for f in folders)
        if stamp != seen.stamp:
            seen.stamp, seen.latest = stamp, ()
        seen.until, seen.chosen = now + LOOK, chosen
    return seen.stamp


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1


def forget() -> None:
    """Choose afresh from now on."""
    _chosen.clear()
    seen.until, seen.stamp, seen.latest = -math.inf, None, ()


def _check_fit(plan: Plan, problem: Problem) -> None:
    if plan.complex != problem.complex:
        raise UsageError(
            f"the plan is for {'complex' if plan.complex else 'real'} operands, these are "
            f"{'complex' if problem.complex else 'real'}: make it with complex={problem.complex}"
        )
    kind, _, index = problem.device.partition(":")
    wanted, _, wanted_index = plan.device.partition(":")
    if kind != wanted or (wanted_index and index and wanted_index != index):
        raise UsageError(f"the plan is for {plan.device}, the operands are on {problem.device}")


def dense_seconds(problem: Problem) -> float:
    """Modelled time of the plain product."""
    found = calibrate.rates(problem.device, problem.dtype)
    speed = calibrate.at(found.dense, max(1.0, calibrate.side(problem.rows, problem.inner, problem.cols)))
    return problem.flops / speed + (0.0 if problem.device == "cpu" else found.call)  # there speeds have it in them


def dense_way(problem: Problem) -> str:
    """The fastest routine at hand for the plain product; torch's for small ones, for which nothing is measured."""
    if problem.flops <= SMALL or problem.device.partition(":")[0] not in ("cpu", "cuda"):
        return "torch"
    return calibrate.rates(problem.device, problem.dtype).way(calibrate.side(problem.rows, problem.inner, problem.cols))


@dataclass(frozen=True)
class Cost:
    """What the model needs to know of a scheme: shape, rank, multiply-adds of u, v and w for an entry of a slice."""

    shape: Shape
    rank: int
    sums: tuple[float, float, float]
    product: str = ""

    @staticmethod
    def of_entry(entry: store.Entry, shape: Shape, product: str = "") -> Cost:
        """From the figures of a catalog entry: additions where they are counted, else all coefficients."""
        grids = (shape[0] * shape[1], shape[1] * shape[2], shape[0] * shape[2])
        full = [float(entry.rank * g) for g in grids]
        share = 1.0
        if entry.additions is not None:
            share = min(1.0, (entry.additions + 2 * entry.rank + grids[2]) / sum(full))
        return Cost(shape, entry.rank, (full[0] * share, full[1] * share, full[2] * share), product)

    @staticmethod
    @lru_cache(maxsize=256)
    def of_plan(plan: Plan) -> Cost:
        """From the coefficients of a plan's scheme."""
        u, v, w = (float(np.count_nonzero(f)) for f in plan.factors)
        return Cost(plan.scheme.shape, plan.scheme.rank, (u, v, w), plan.product)


def scheme_seconds(cost: Cost, problem: Problem, levels: int = 1, slow: float = 1.0) -> float:
    """Modelled time of ``levels`` levels of a scheme, nothing encoded in advance; operands padded to whole tiles.

    ``slow`` is how many times longer than calibrated the passes over memory take.
    """
    m, k, n = cost.shape
    rows, inner, cols = (
        -(-side // s) for side, s in zip((problem.rows, problem.inner, problem.cols), (m, k, n), strict=True)
    )
    compute = wider("fp32", problem.dtype)
    work = problem.dtype if cost.product == problem.dtype == "bf16" else compute
    parts = 2 if problem.complex else 1
    found = calibrate.rates(problem.device, problem.dtype)
    given, stored, made, out = (BYTES[name] * parts for name in (problem.dtype, problem.dtype, work, problem.out))
    seconds = STEPS * found.call
    passes = slow * (REFERENCE_PASSES if problem.complex else 1.0)
    for count, grid, piece, sums, wide in (
        (problem.lhs_count, m * k, rows * inner, cost.sums[0], given),
        (problem.rhs_count, k * n, inner * cols, cost.sums[1], given),
        (problem.count, m * n, rows * cols, cost.sums[2], out),
    ):
        per_slice = made if grid == m * n and wide == out else stored + (stored + made if made != stored else 0)
        moved = count * piece * (grid * wide + cost.rank * per_slice)
        seconds += passes * (moved / found.bandwidth + parts * count * piece * sums / found.sums)
    flops = 2.0 * problem.count * cost.rank * rows * inner * cols * parts**2
    if levels > 1:
        inside = replace(
            problem, rows=rows, inner=inner, cols=cols, dtype=compute, out=compute, lhs_count=1, rhs_count=1, count=1
        )
        return seconds + problem.count * cost.rank * scheme_seconds(cost, inside, levels - 1, INNER)
    speed = calibrate.at(calibrate.rates(problem.device, work).slices, max(1.0, calibrate.side(rows, inner, cols)))
    if problem.device == "cpu" and cost.rank and (inner % ALIGNED or cols % ALIGNED):
        seconds, flops = seconds * RAGGED, flops * RAGGED
    return seconds + flops / speed


def _choose_open(request: Request, selector: store.Selector, problem: Problem) -> Explanation:
    if problem.flops <= SMALL or problem.device.partition(":")[0] not in ("cpu", "cuda"):
        reason = "so small a product costs less than moving its operands"
        return Explanation(None, problem.dense_error, 1.0, 0, reason)
    dense_time = dense_seconds(problem)
    way = dense_way(problem)
    # A scheme that costs no multiplication at all still moves its operands: the catalog need not be opened.
    if scheme_seconds(Cost((1, 1, 1), 0, (0.0, 0.0, 0.0)), problem) >= MARGIN * dense_time:
        reason = "so small a product costs less than moving its operands"
        return Explanation(None, problem.dense_error, 1.0, 0, reason, way=way)
    found = store.candidates(selector.shape, selector.rank, selector.max_rank, selector.ring or "R")
    found = [e for e in found if e.E is not None and (problem.complex or e.ring != "C")]  # Z2 has no E and never runs
    if request.speedup is not None:
        fast = [e for e in found if e.rank * request.speedup <= math.prod(e.shape)]
        if not fast:
            most = max((math.prod(e.shape) / e.rank for e in found if e.rank), default=0.0)
            raise NotFoundError(
                f"no entry of the catalog cuts multiplications {request.speedup:g} times; at most {most:.3g} times"
            )
        found = fast
    row = _row(problem, wider("fp32", problem.dtype))
    options = [option for e in found for option in _options(e, request, selector, problem, row)]
    considered = len({option.entry.id for option in options})
    at = selector.dtype or problem.dtype
    by_time = sorted(options, key=lambda o: (o.seconds, o.entry.error(at), o.entry.id, o.cost.shape))
    if request.speedup is not None:
        options.sort(key=lambda o: (o.entry.error(at) ** 2 + o.sums, o.levels, o.seconds, o.entry.id, o.cost.shape))
    else:
        options = by_time
    shown = by_time[:SHOWN]
    how = "by the cost model"
    # What ``measured`` may time: one matrix product in memory, of some size.
    one = problem.lhs_count == problem.rhs_count == problem.count == 1
    one = one and not problem.complex and dense_time >= measured.shortest(problem.device)
    for option in options:
        share = option.seconds / dense_time
        if share >= (UNSURE[1] if one else MARGIN):
            break
        try:
            scheme = store.scheme_of(option.entry, option.cost.shape)
        except StlError:  # its file does not hold what it claims
            continue
        plan = plan_for(scheme, problem.dtype, problem.out, problem.complex, problem.device, option.cost.product)
        unsure = one and share >= UNSURE[0] and measured.timeable(plan, dense_time)
        if share >= MARGIN and not unsure:
            break
        if unsure:
            sizes = (problem.rows, problem.inner, problem.cols)
            share, how = measured.slowdown(plan, option.levels, sizes, dense_time, way), "as measured beside it"
            if share >= TAKEN:
                break
        reason = f"{_aim(request)}, of {considered} that qualify" + (f", {how}" if unsure else "")
        shown = [*(o for o in shown if o is not option), option]
        weighed = _weighed(shown, dense_time, (option, scheme.id))
        return Explanation(plan, option.error, share, considered, reason, ASSUMPTION, option.levels, way, weighed)
    reason = _why_dense(request, considered, problem, how)
    weighed = _weighed(shown, dense_time)
    return Explanation(None, problem.dense_error, 1.0, considered, reason, ASSUMPTION, 1, way, weighed)


def _weighed(
    options: list[_Option], dense_time: float, taken: tuple[_Option, str] | None = None
) -> tuple[tuple[str, float], ...]:
    """Names and modelled seconds, fastest first, the dense product among them; what is taken under its own id."""
    found = [("dense", dense_time)]
    for o in options:
        id_ = taken[1] if taken is not None and o is taken[0] else o.entry.id
        found.append((_named(o.cost.shape, o.cost.rank, id_, o.levels, o.cost.product), o.seconds))
    return tuple(sorted(found, key=lambda x: x[1]))


@dataclass(frozen=True)
class _Option:
    """An entry, the shape to bring it to, how it is run, the time and error to expect, and its sums' squared share."""

    entry: store.Entry
    cost: Cost
    levels: int
    seconds: float
    error: float
    sums: float


def _options(
    entry: store.Entry, request: Request, selector: store.Selector, problem: Problem, row: float
) -> list[_Option]:
    """The ways to run an entry that the request allows: permuted shapes, levels, products kept in bf16."""
    shapes: list[Shape] = [selector.shape] if selector.shape else sorted(set(itertools.permutations(entry.shape)))  # type: ignore[arg-type]
    deep = entry.E == 0 and not problem.complex and problem.device.startswith("cpu")
    narrow = ["bf16"] if problem.dtype == "bf16" and (request.rtol or request.speedup) else []
    compute = wider("fp32", problem.dtype)
    found = []
    for product in ["", *narrow]:
        for levels in range(1, LEVELS + 1 if deep and not product else 2):
            rounding = _rounding(entry, problem, product, levels)
            if request.rtol is None and request.speedup is None and not _exact(entry, rounding, problem):
                continue
            for shape in shapes:
                cost = Cost.of_entry(entry, shape, product)
                sums = _accumulated(cost, entry.kappa or 0.0, problem.inner, levels, row, compute)
                error = math.hypot(rounding, math.sqrt(sums))
                if request.rtol is None or error <= request.rtol:
                    seconds = scheme_seconds(cost, problem, levels)
                    found.append(_Option(entry, cost, levels, seconds, error, sums))
    return found


def _aim(request: Request) -> str:
    if request.speedup is not None:
        within = f" within rtol {request.rtol:g}" if request.rtol is not None else ""
        return f"most accurate with {request.speedup:g} times fewer multiplications{within}"
    if request.rtol is not None:
        return f"fastest with predicted error within {request.rtol:g}"
    return "fastest that is exact up to rounding"


def _why_dense(request: Request, qualified: int, problem: Problem, how: str) -> str:
    if qualified:
        return f"what meets the request is not faster, {how}"
    if request.rtol is not None:
        beside = "" if problem.dense_error <= request.rtol else ", nor has dense"
        return f"no scheme has a predicted error within {request.rtol:g}{beside}"
    return "the catalog has no exact scheme of that kind, and no error was allowed (rtol or speedup)"


def _rounding(entry: store.Entry, problem: Problem, product: str, levels: int) -> float:
    """Predicted without sums: sqrt(E + (2 d^2 + d_P^2) kappa + d_C^2), kappa of all levels together."""
    assert entry.E is not None
    assert entry.kappa is not None
    d, d_out = score.relative_rounding(problem.dtype), problem.output_rounding
    d_product = score.relative_rounding(product) if product else 0.0
    return math.sqrt(entry.E + (2 * d**2 + d_product**2) * entry.kappa**levels + d_out**2)


def _accumulated(cost: Cost, kappa: float, inner: int, levels: int, row: float, precision: str) -> float:
    """What sums add to the squared error: of K'/k products each, and of the linear combinations before and after."""
    slices = (cost.rank, cost.rank, cost.shape[0] * cost.shape[2])
    combined = sum(max(0.0, count / of - 1) / 2 for count, of in zip(cost.sums, slices, strict=True) if of)
    products = summed(-(-inner // cost.shape[1] ** levels), row, precision)
    return kappa**levels * (products + score.relative_rounding(precision) ** 2 * levels * combined)


def _predicted(plan: Plan, problem: Problem, row: float) -> float:
    """The error to expect of a plan on operands of these sizes, sums included."""
    sums = _accumulated(Cost.of_plan(plan), plan.noise_gain, problem.inner, 1, row, plan.compute)
    return math.sqrt(plan.predicted_error**2 + sums)


def _row(problem: Problem, precision: str) -> float:
    """How many terms are added up in a row at most; looks at what was measured."""
    return calibrate.rates("cpu", precision).row if math.isfinite(problem.row) else problem.row


def _exact(entry: store.Entry, rounding: float, problem: Problem) -> bool:
    """Whether the error is that of rounding operands alone, and not too many times."""
    assert entry.E is not None
    d = score.relative_rounding(problem.dtype)
    return math.sqrt(entry.E) <= d and rounding <= MAX_ROUNDINGS * max(d, problem.output_rounding)


def explain(
    shape: Sequence[int],
    dtype: Any = "fp32",
    encoder: Any = DEFAULT,
    *,
    rtol: float | None = None,
    speedup: float | None = None,
    out_dtype: Any = None,
    device: Any = "cpu",
    show: bool = True,
) -> Explanation:
    """How ``amm`` would multiply A: (M, K) by B: (K, N), given shape = (M, K, N), and the error to expect.

    The same choice as ``amm`` makes, from the same arguments; printed, with the alternatives and their modelled times,
    unless ``show`` is False, and returned. The first call for a precision measures this machine for a few seconds, as
    does the first for a size at which the best scheme and the plain product are too close to call. Raises what ``amm``
    raises for that encoder.

    >>> found = explain((8, 8, 8))
    8 x 8 times 8 x 8 in fp32 on cpu
    dense: so small a product costs less than moving its operands
    predicted relative error 5.38e-08 (for independent zero-mean entries of equal variance within A and within B)
    >>> found.plan is None
    True
    """
    try:
        sizes = tuple(operator.index(s) for s in shape)
    except TypeError:
        sizes = ()
    if len(sizes) != 3 or min(sizes) < 0:
        raise UsageError(f"a product has three sizes M, K, N, not {shape!r:.60}")
    try:
        device = str(torch.device(device))
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device is {device!r:.40}: {str(error).splitlines()[0]:.100}") from None
    name, is_complex = dtype_name(dtype)
    out = None if out_dtype is None else out_name(out_dtype, is_complex)
    problem = Problem(*sizes, dtype=name, out=out or name, complex=is_complex, device=device)
    forget()
    found = choose(request_of(encoder, rtol, speedup), problem, out)
    if found.plan is not None and math.isnan(found.cost) and problem.flops and device.partition(":")[0] != "meta":
        cost = Cost.of_plan(found.plan)
        times = [(found.name, scheme_seconds(cost, problem)), ("dense", dense_seconds(problem))]
        if problem.dtype == "bf16" != cost.product:  # what a Plan can ask for
            narrow = replace(cost, product="bf16")
            times.append((_name(replace(found.plan, product="bf16"), found.levels), scheme_seconds(narrow, problem)))
        weighed = tuple(sorted(times, key=lambda x: x[1]))
        way = dense_way(problem)
        predicted = _predicted(found.plan, problem, _row(problem, found.plan.compute))
        ratio = times[0][1] / times[1][1]
        found = replace(found, predicted_error=predicted, cost=ratio, alternatives=weighed, way=way)
    if show:
        m, k, n = sizes
        kind = f"complex {name}" if is_complex else name
        print(f"{m} x {k} times {k} x {n} in {kind} on {device}\n{found.table()}")  # noqa: T201
    return found
