"""Strategy ``batch``: thousands of starts refined in step on the device of the search; the best are finished in numpy.

All draws are made by numpy on the host and depend on problem, pool and generator alone: the same job on another device
has the same starts, and parts from this one by rounding only. It is the one strategy that loads torch, so a search
runs it only when asked: by ``--device cuda``, or by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from stl_search import decompose, transform
from stl_search.scheme import Scheme, Shape
from stl_search.search.compose import best_plan
from stl_search.search.numeric import variables
from stl_search.search.problem import Pool, Problem, ranks_near
from stl_search.search.strategy import Clock, register

if TYPE_CHECKING:
    import torch

    from stl_search.kernels.batch_fit import Batch as Fits

__all__ = ["Batch", "moved"]

_ENTRIES = 1 << 22  # unknowns of all starts together: 32 MB, of which a fit holds some twenty copies
_FUNNEL = ((4, 300), (16, 600))  # (one in so many of the starts, how many more steps it is worth)
_PLANS = 4  # ways to compose that a job tries
_PARTS = 256  # fits of a part of a composition
_KEPT = 8  # optima that a job hands over


class Batch:
    """Random starts, compositions, and schemes of the pool that are shaken, lose a term or gain one, all in one batch.

    Random ones are tamed as ``numeric`` does it. The better ones are refined further, the best that differ are scored
    from their residuals in one launch, and finished by the numpy solvers, so that what is found owes the device its
    basin and not its digits.
    """

    name = "batch"
    batched = True  # its jobs are the device's, and one process runs them all
    most = 2048  # starts of a job

    def weight(self, problem: Problem, pool: Pool) -> float:
        return 0.0 if problem.exact else 1.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        import torch

        from stl_search.kernels import batch_fit, batch_score

        shape, lam = problem.shape, problem.lam
        rank = problem.rank
        if pool.cell(shape, rank):  # a good neighbour leads to a better one here too
            near = ranks_near(problem)
            rank = min(max(rank + int(rng.choice([0, 0, 0, 0, 1, 2, -1])), near.start), near.stop - 1)
        size = max(16, min(self.most, _ENTRIES // variables(shape, rank)))
        changed = moved(problem, pool, rank, size // 2, rng)
        composed = [self._composed(problem, pool, rank, size // (4 * _PLANS), rng, clock) for _ in range(_PLANS)]
        others = _joined(changed, *composed)
        fresh = decompose.random_batch(shape, rank, size - len(others[0]), rng)
        if clock.expired():
            return
        on = _on(problem, fresh)
        on = batch_fit.als(shape, on, max(lam, 1e-3), sweeps=20, ridge=1e-2)
        on, _ = batch_fit.refine(shape, on, max(lam, 1e-3), 120, stop=clock.expired)
        on = tuple(torch.cat(f) for f in zip(on, _on(problem, others), strict=True))  # type: ignore[assignment]
        on, f = batch_fit.refine(shape, on, lam, 150, stop=clock.expired)
        for share, steps in _FUNNEL:
            if clock.expired():
                break
            on = batch_fit.taken(on, _ascending(f)[: max(_KEPT, size // share)])
            on, f = batch_fit.refine(shape, on, lam, steps, stop=clock.expired)
        errors, gains = batch_score.of_factors(shape, *on)
        costs = (errors + lam * gains).cpu().numpy()
        chosen = self._chosen(problem, pool, rank, costs)
        if not chosen:
            return
        best: decompose.Batch = tuple(x[chosen].cpu().numpy() for x in on)  # type: ignore[assignment]
        if not clock.expired():
            best, _ = decompose.refine(shape, best, lam, 600)
        for i in range(len(chosen)):
            yield decompose.scheme_of(shape, best, i)

    @staticmethod
    def _chosen(problem: Problem, pool: Pool, rank: int, costs: decompose.Floats) -> list[int]:
        """The best members that are of different basins, none of them one of the pool's; the first of equal ones."""
        found: list[int] = []
        for i in np.argsort(np.where(np.isfinite(costs), costs, np.inf), kind="stable").tolist():
            cost = float(costs[i])
            if len(found) == _KEPT or not pool.would_take(problem.shape, rank, cost):
                continue
            if np.isfinite(cost) and all(abs(cost - costs[j]) > 1e-6 * max(cost, 1e-12) for j in found):
                found.append(i)
        return found

    @staticmethod
    def _composed(
        problem: Problem, pool: Pool, rank: int, count: int, rng: np.random.Generator, clock: Clock
    ) -> decompose.Batch:
        """``count`` shaken Kronecker products or direct sums of parts from the pool, or fitted here; or none."""
        from stl_search.kernels import batch_fit

        plan = best_plan(problem, pool, rng, rank)
        if plan is None or count == 0 or clock.expired():
            return _empty(problem.shape, rank)
        operation, *halves = plan
        parts: list[list[Scheme]] = []
        for shape, part_rank in halves:
            cell = pool.cell(shape, part_rank)
            if cell and rng.random() < 0.5:
                parts.append([e.scheme for e in cell])
                continue
            fits = _on(problem, decompose.random_batch(shape, part_rank, min(_PARTS, count), rng))
            fits, f = batch_fit.refine(shape, fits, problem.lam, 200, stop=clock.expired)
            best = batch_fit.taken(fits, _ascending(f)[: Pool.capacity])
            there: decompose.Batch = tuple(x.cpu().numpy() for x in best)  # type: ignore[assignment]
            parts.append([decompose.scheme_of(shape, there, i) for i in range(len(there[0]))])
        join = getattr(transform, operation)
        wholes = decompose.batch_of([transform.to_ring(join(a, b), "R") for a in parts[0] for b in parts[1]])
        return _shaken(wholes, rng.integers(len(wholes[0]), size=count), [0.005, 0.03, 0.1, 0.2, 0.4], rng)


def moved(problem: Problem, pool: Pool, rank: int, count: int, rng: np.random.Generator) -> decompose.Batch:
    """At most ``count`` starts of that rank from schemes of the pool: shaken, one term less, one more, or exchanged.

    The moves of strategy ``deflate``, made for many starts at once.
    """
    moves = [
        (move, source)
        for move, source in (("perturb", rank), ("exchange", rank), ("drop", rank + 1), ("add", rank - 1))
        if pool.cell(problem.shape, source)
    ]
    found = [_empty(problem.shape, rank)]
    for move, source in moves:
        cell = pool.cell(problem.shape, source)
        held = decompose.batch_of([e.scheme for e in cell])
        pick = np.minimum(rng.geometric(0.35, size=count // len(moves)), len(cell)) - 1
        if move == "perturb":
            found.append(_shaken(held, pick, [0.05, 0.15, 0.4], rng))
            continue
        starts: decompose.Batch = (held[0][pick], held[1][pick], held[2][pick])
        lost = None
        if move in ("drop", "exchange"):
            costs = decompose.drop_costs(held, problem.lam)[pick] * rng.lognormal(0.0, 0.6, (len(pick), source))
            out = np.arange(source) == costs.argmin(axis=1)[:, None]
            lost = [f[out] for f in starts]
            starts = tuple(f[~out].reshape(len(pick), source - 1, f.shape[2]) for f in starts)
        if move in ("add", "exchange"):
            terms = _residual_terms(decompose.residual_tensor(problem.shape, held), pick, lost, rng)
            starts = tuple(np.concatenate([f, t[:, None]], axis=1) for f, t in zip(starts, terms, strict=True))  # type: ignore[assignment]
        found.append(_shaken(starts, np.arange(len(pick)), [0.02], rng))
    return _joined(*found)


def _residual_terms(
    gaps: decompose.Floats, pick: decompose.Floats, lost: list[decompose.Floats] | None, rng: np.random.Generator
) -> list[decompose.Floats]:
    """A large rank-one term (S, I), (S, J), (S, K) of each start's residual: of scheme ``pick``, and of the lost term.

    A few rounds of power iteration from random directions, which end in different terms.
    """
    sizes, sides = gaps.shape[1:], ("ijk,sj,sk->si", "ijk,si,sk->sj", "ijk,si,sj->sk")
    terms: list[decompose.Floats] = [rng.standard_normal((len(pick), size)) for size in sizes]
    length = np.ones((len(pick), 1))
    for _ in range(6):
        for side, rule in enumerate(sides):
            rest = [terms[other] for other in range(3) if other != side]
            for scheme in np.unique(pick):
                own = pick == scheme
                terms[side][own] = np.einsum(rule, gaps[scheme], *(x[own] for x in rest), optimize=True)
            if lost is not None:
                others = [(lost[o] * terms[o]).sum(axis=1, keepdims=True) for o in range(3) if o != side]
                terms[side] += lost[side] * others[0] * others[1]
            length = np.linalg.norm(terms[side], axis=1, keepdims=True)
            terms[side] /= length + 1e-300
    return [np.cbrt(length) * x for x in terms]


def _shaken(
    batch: decompose.Batch, pick: decompose.Floats, noises: list[float], rng: np.random.Generator
) -> decompose.Batch:
    """The members of those numbers with normal noise, one of ``noises`` times the root mean square of each factor."""
    noise = rng.choice(noises, size=(len(pick), 1, 1))
    chosen = [f[pick] for f in batch]
    return tuple(
        f + noise * np.sqrt((f * f).mean(axis=(1, 2), keepdims=True)) * rng.standard_normal(f.shape) for f in chosen
    )


def _empty(shape: Shape, rank: int) -> decompose.Batch:
    m, k, n = shape
    return np.zeros((0, rank, m * k)), np.zeros((0, rank, k * n)), np.zeros((0, rank, m * n))


def _on(problem: Problem, batch: decompose.Batch) -> Fits:
    """A batch on the problem's device."""
    import torch

    return tuple(torch.from_numpy(f).to(problem.device) for f in batch)  # type: ignore[return-value]


def _joined(*batches: decompose.Batch) -> decompose.Batch:
    return tuple(np.concatenate(f) for f in zip(*batches, strict=True))  # type: ignore[return-value]


def _ascending(f: torch.Tensor) -> torch.Tensor:
    """The members, best first; those whose numbers overflowed last."""
    import torch

    return torch.argsort(torch.nan_to_num(f, nan=torch.inf), stable=True)


register(Batch())
