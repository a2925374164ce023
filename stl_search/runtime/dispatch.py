"""The choice of how to multiply: which scheme of the catalog, or the plain dense product, and why.

First form: the choice rests on a cost model with a few fixed, cautious constants, not on measurements of this machine.
It would rather call dense once too often: with the numbers below it takes a scheme only where the multiplications
saved outweigh every pass over memory that the reference path makes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from stl_search import score
from stl_search.catalog import store
from stl_search.errors import NotFoundError, StlError, UsageError
from stl_search.kernels.plan import Plan, dtype_name, wider
from stl_search.scheme import Scheme, Shape

__all__ = [
    "ASSUMPTION",
    "DEFAULT",
    "Explanation",
    "Problem",
    "Request",
    "choose",
    "explain",
    "plan_for",
    "request_of",
    "with_out",
]

DEFAULT = "catalog:best"
ASSUMPTION = "independent zero-mean entries of equal variance within A and within B"

# An exact scheme may be taken unasked only while it loses at most five bits to rounding.
MAX_ROUNDINGS = 32.0
# A scheme must be a tenth faster than dense by the model, whose constants can be wrong by that much.
MARGIN = 0.9
# Flops of the dense product that take as long as moving one byte, by device; and how many times longer a product
# takes in the reference path (which multiplies in fp32) than a dense one in 16 bits. Measured on 2 Zen 4 cores in
# fp32, n = 2048 and 4096: 28 to 45 flops a byte, most of the time being spent on first touching fresh memory; bf16
# dense runs at 4 to 5 times the speed of fp32; fp16 dense is done in fp32, see ``amm``.
BALANCE = {"cpu": 40.0}
BALANCE_ELSEWHERE = 100.0
NARROW_LOSS = {("cpu", "bf16"): 5.0, ("cpu", "fp16"): 1.0}
NARROW_LOSS_ELSEWHERE = 16.0
BYTES = {"fp8_e4m3": 1, "bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


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
        """Expected relative error of the dense product: the rounding of its output alone."""
        return score.relative_rounding(self.out)


@dataclass(frozen=True)
class Explanation:
    """How a product is done and why: ``plan`` (None for the plain dense product) and what was weighed.

    ``predicted_error`` is the expected relative Frobenius error under ``assumption``; ``cost`` the model's time
    relative to the dense product; ``considered`` the number of catalog entries that met the request.
    """

    plan: Plan | None
    predicted_error: float
    cost: float
    considered: int
    reason: str
    assumption: str = ASSUMPTION

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that is used; None for dense."""
        return None if self.plan is None else self.plan.scheme

    def __str__(self) -> str:
        what = "dense" if self.plan is None else f"{self.plan.scheme.name} {self.plan.scheme.id[:8]}"
        return (
            f"{what}: {self.reason}; predicted relative error {self.predicted_error:.3g} (for {self.assumption}); "
            f"modelled time {self.cost:.2f} of dense"
        )


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
        if value is not None and not (number and math.isfinite(value) and value > 0):
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


def _load(encoder: Any, selector: store.Selector | None, dtype: str) -> Scheme:
    """The scheme that a path or a selector with a rank names; the best is the one at the operands' own dtype."""
    if selector is not None and selector.kind == "best" and selector.shape is not None:
        at = selector.dtype or dtype
        entry = store.best(selector.shape, selector.rank, selector.max_rank, at, selector.ring)
        return store.scheme_of(entry, selector.shape)
    return store.load(encoder)


@lru_cache(maxsize=256)
def plan_for(scheme: Scheme, dtype: str, out: str, is_complex: bool, device: str) -> Plan:
    """The plan that runs a scheme on operands of that dtype; made once."""
    return Plan(scheme, dtype, out=out, complex=is_complex, device=device)


@lru_cache(maxsize=256)
def with_out(plan: Plan, out: str) -> Plan:
    """The same plan with another output precision; made once."""
    return replace(plan, out=out)


def choose(request: Request, problem: Problem, out: str | None = None) -> Explanation:
    """How to do a product; ``out`` is the output's precision where the caller fixed it (else a Plan's own holds).

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
        cost = _model(plan.scheme.shape, plan.scheme.rank, problem) / max(problem.flops, 1.0)
        return Explanation(plan, plan.predicted_error, cost, 1, "named, so used as asked")
    assert request.selector is not None
    return _choose_open(request, request.selector, problem)


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


def _model(shape: Shape, rank: int, problem: Problem) -> float:
    """Modelled time of one level of a scheme in the reference path, in flops of the dense product.

    Passes over memory: gather (read, write), combine (read, write r/(mk) as much), round where storage is narrower
    (four times), read by the product; decode likewise. Operands are padded to whole tiles.
    """
    m, k, n = shape
    rows, inner, cols = -(-problem.rows // m) * m, -(-problem.inner // k) * k, -(-problem.cols // n) * n
    parts = 2 if problem.complex else 1
    given, compute, out = (BYTES[name] * parts for name in (problem.dtype, wider("fp32", problem.dtype), problem.out))
    narrow = given < compute
    moved = 0.0
    for elements, grid in ((problem.lhs_count * rows * inner, m * k), (problem.rhs_count * inner * cols, k * n)):
        per_share = 2 * compute + (2 * (given + compute) if narrow else 0)
        moved += elements * (given + 2 * compute + rank / grid * per_share)
    moved += problem.count * rows * cols * (rank / (m * n) * 2 * compute + 2 * compute + out)
    kind = problem.device.partition(":")[0]
    flops = 2.0 * problem.count * rows * inner * cols * parts**2 * rank / (m * k * n)
    if narrow:
        flops *= NARROW_LOSS.get((kind, problem.dtype), NARROW_LOSS_ELSEWHERE)
    return flops + BALANCE.get(kind, BALANCE_ELSEWHERE) * moved


def _choose_open(request: Request, selector: store.Selector, problem: Problem) -> Explanation:
    dense_time = max(problem.flops, 1.0)
    # A scheme that costs no multiplication at all still moves its operands: the catalog need not be opened.
    if _model((1, 1, 1), 0, problem) >= MARGIN * dense_time:
        reason = "so small a product costs less than moving its operands"
        return Explanation(None, problem.dense_error, 1.0, 0, reason)
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
    found = [e for e in found if _qualifies(e, request, problem)]
    # (entry, the shape to bring it to, modelled time): an entry serves every permutation of its shape.
    options: list[tuple[store.Entry, Shape, float]] = []
    for e in found:
        shapes: Iterable[Any] = [selector.shape] if selector.shape else sorted(set(itertools.permutations(e.shape)))
        options += [(e, shape, _model(shape, e.rank, problem)) for shape in shapes]
    at = selector.dtype or problem.dtype
    if request.speedup is not None:
        options.sort(key=lambda o: (o[0].error(at), o[2], o[0].id, o[1]))
    else:
        options.sort(key=lambda o: (o[2], o[0].error(at), o[0].id, o[1]))
    for entry, shape, time in options:
        if time >= MARGIN * dense_time:
            break
        try:
            scheme = store.scheme_of(entry, shape)
        except StlError:  # its file does not hold what it claims
            continue
        plan = plan_for(scheme, problem.dtype, problem.out, problem.complex, problem.device)
        reason = f"{_aim(request)}, of {len(found)} that qualify"
        return Explanation(plan, plan.predicted_error, time / dense_time, len(found), reason)
    return Explanation(None, problem.dense_error, 1.0, len(found), _why_dense(request, len(found), problem))


def _aim(request: Request) -> str:
    if request.speedup is not None:
        within = f" within rtol {request.rtol:g}" if request.rtol is not None else ""
        return f"most accurate with {request.speedup:g} times fewer multiplications{within}"
    if request.rtol is not None:
        return f"fastest with predicted error within {request.rtol:g}"
    return "fastest that is exact up to rounding"


def _why_dense(request: Request, qualified: int, problem: Problem) -> str:
    if qualified:
        return "what meets the request is not faster, by the cost model"
    if request.rtol is not None:
        beside = "" if problem.dense_error <= request.rtol else ", nor has dense"
        return f"no scheme has a predicted error within {request.rtol:g}{beside}"
    return "the catalog has no exact scheme of that kind, and no error was allowed (rtol or speedup)"


def _qualifies(entry: store.Entry, request: Request, problem: Problem) -> bool:
    """Whether the predicted error is within rtol; without rtol and speedup, whether it is rounding alone."""
    assert entry.E is not None
    assert entry.kappa is not None
    d, d_out = score.relative_rounding(problem.dtype), problem.output_rounding
    predicted = math.sqrt(entry.E + 2 * d**2 * entry.kappa + d_out**2)
    if request.rtol is not None:
        return predicted <= request.rtol
    if request.speedup is not None:
        return True
    return math.sqrt(entry.E) <= d and predicted <= MAX_ROUNDINGS * max(d, d_out)


def explain(
    shape: Sequence[int],
    dtype: Any = "fp32",
    encoder: Any = DEFAULT,
    *,
    rtol: float | None = None,
    speedup: float | None = None,
    out_dtype: Any = None,
    device: str = "cpu",
) -> Explanation:
    """How ``amm`` would multiply A: (M, K) by B: (K, N), given shape = (M, K, N), and the error to expect.

    The same choice as ``amm`` makes, from the same arguments; ``str`` of the result is one line. Raises what ``amm``
    raises for that encoder.

    >>> print(explain((8, 8, 8)).reason)
    so small a product costs less than moving its operands
    """
    sizes = tuple(int(s) for s in shape)
    if len(sizes) != 3 or min(sizes) < 0:
        raise UsageError(f"a product has three sizes M, K, N, not {shape!r:.60}")
    name, is_complex = dtype_name(dtype)
    out = None if out_dtype is None else dtype_name(out_dtype)[0]
    problem = Problem(*sizes, dtype=name, out=out or name, complex=is_complex, device=device)
    return choose(request_of(encoder, rtol, speedup), problem, out)
