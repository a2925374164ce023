"""Strategy ``cheap``: schemes whose encoders have few non-zeros, or coefficients 0, +-1/4, +-1/2, +-1, +-2 alone.

Orthogonal changes of basis keep E and kappa, so a scheme is first turned to where most of its coefficients are small
(a general change of basis keeps E of exact schemes only). Then the least important ones are dropped, a few at a time,
and the rest is refitted; for ``grid`` what is left goes to the grid in the same way, the nearest first, until single
coefficients are exchanged for their neighbours on the grid while that gains. Each row counts up to a scale of its own,
which goes to w.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from stl_search import decompose, score
from stl_search.decompose import Batch, Floats
from stl_search.scheme import Scheme, Shape
from stl_search.search.numeric import solve_approximate
from stl_search.search.problem import THRIFT, Pool, Problem, density
from stl_search.search.strategy import Clock, register

__all__ = ["Cheap", "Partial", "gridded", "improved", "pruned", "rotated"]

Marks = npt.NDArray[np.bool_]

_GRID = np.array([-x for x in reversed(score.GRID)] + [0.0, *score.GRID])
_SCALES = 16  # of a row that are tried, within an octave
_ANGLES = np.linspace(0, np.pi / 2, 33)[:-1]  # a quarter turn only exchanges two lines
_SWEEPS = 12  # over all planes; after five or six nothing moves
_DROPPED = 0.06  # share of the coefficients left that are dropped between two fits
_SETTLED = 0.15  # share of them that is settled on the grid between two fits
_SMALL = 1300  # unknowns up to which a step of Levenberg-Marquardt takes tens of milliseconds
_PATIENCE = 6  # rounds without gain after which dropping ends
_DESCENTS = 6  # passes over all rows on the grid
_SWAPPED = 3  # terms of a scheme on the grid that are exchanged for others, at most
_FREED = (0.02, 0.05, 0.1)  # shares of its coefficients that are set free to be settled again


def rotated(shape: Shape, factors: Sequence[Floats], parts: Sequence[int], rng: np.random.Generator) -> list[Floats]:
    """The factors in an orthogonal basis where those of ``parts`` have small 1-norms, each row counted by its length.

    Jacobi's method from a random basis: one plane after the other is turned by the best angle.
    """
    m, k, n = shape
    u, v, w = (f.reshape(len(f), *s).copy() for f, s in zip(factors, ((m, k), (k, n), (m, n)), strict=True))
    lengths = [np.maximum(np.sqrt((f * f).sum(axis=(1, 2), keepdims=True)), 1e-300) for f in (u, v, w)]
    x, y, z = (np.linalg.qr(rng.standard_normal((side, side)))[0] for side in shape)
    u, v, w = x.T @ u @ y, y.T @ v @ z, x.T @ w @ z
    whole = [u, v, w]
    # for each space the factors that it acts on and the axis
    acts = (((0, 1), (2, 1)), ((0, 2), (1, 1)), ((1, 2), (2, 2)))
    for _ in range(_SWEEPS):
        moved = False
        for space, side in enumerate(shape):
            for i in range(side):
                for j in range(i + 1, side):
                    moved |= _turned(whole, lengths, acts[space], i, j, parts)
        if not moved:
            break
    return [f.reshape(len(f), -1) for f in whole]


def _turned(
    whole: list[Floats], lengths: list[Floats], acts: Sequence[tuple[int, int]], i: int, j: int, parts: Sequence[int]
) -> bool:
    """Turns the plane of lines i and j to the angle of least 1-norm, in place; whether it moved."""
    lines = []
    for which, axis in acts:
        if which in parts:
            scaled = whole[which] / lengths[which]
            lines.append([np.take(scaled, line, axis=axis).ravel() for line in (i, j)])
    if not lines:
        return False
    a, b = (np.concatenate([pair[side] for pair in lines]) for side in (0, 1))

    def size(angles: Floats) -> Floats:
        c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
        total: Floats = np.abs(c * a + s * b).sum(axis=1) + np.abs(c * b - s * a).sum(axis=1)
        return total

    # between the angles where some coefficient vanishes the 1-norm is concave, so that its minimum is at one of them
    middle = float(_ANGLES[int(np.argmin(size(_ANGLES)))])
    zeros = np.arctan2(b, a)
    near = (zeros - middle + np.pi / 4) % (np.pi / 2) - np.pi / 4
    angles = middle + near[np.abs(near) <= _ANGLES[1]]
    if not len(angles):
        return False
    sizes = size(angles)
    best = float(angles[int(np.argmin(sizes))])
    if float(sizes.min()) > float(size(np.zeros(1))[0]) * (1 - 1e-9):
        return False
    c, s = np.cos(best), np.sin(best)
    for which, axis in acts:
        f = whole[which]
        first, second = (np.take(f, line, axis=axis).copy() for line in (i, j))
        at = [slice(None)] * 3
        for line, value in ((i, c * first + s * second), (j, c * second - s * first)):
            at[axis] = line  # type: ignore[call-overload]
            f[tuple(at)] = value
    return True


@dataclass
class Partial:
    """A scheme on the way: flat factors, and which coefficients of ``parts`` are settled, each row up to its scale."""

    shape: Shape
    lam: float
    parts: tuple[int, ...]
    factors: list[Floats]
    settled: list[Marks]
    exactly: bool = False

    @classmethod
    def of(cls, problem: Problem, factors: Sequence[Floats]) -> Partial:
        """With nothing settled."""
        free = [np.zeros(f.shape, bool) for f in factors]
        exactly = problem.coefficients.startswith("sparse")
        return cls(problem.shape, problem.lam, problem.thrifty, [f.copy() for f in factors], free, exactly)

    def copy(self) -> Partial:
        """One that can be changed apart from this."""
        held = [s.copy() for s in self.settled]
        return dataclasses.replace(self, factors=[f.copy() for f in self.factors], settled=held)

    def span(self, count: int) -> scipy.sparse.csc_matrix:
        """Orthonormal columns for the first factors: one for what is settled in a row, one for each other one."""
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        offset = column = 0
        for f, fixed in zip(self.factors[:count], self.settled, strict=False):
            for row, known in zip(f, fixed, strict=True):
                held = np.flatnonzero(known & (row != 0))
                if len(held):
                    rows += (offset + held).tolist()
                    columns += [column] * len(held)
                    values += (row[held] / np.linalg.norm(row[held])).tolist()
                    column += 1
                free = np.flatnonzero(~known)
                rows += (offset + free).tolist()
                columns += range(column, column + len(free))
                values += [1.0] * len(free)
                column += len(free)
                offset += len(row)
        return scipy.sparse.csc_matrix((values, (rows, columns)), shape=(offset, column))

    def fit(self, last: bool = False) -> float:
        """Refit all that is not settled, and the scales; F.

        By Levenberg-Marquardt, which keeps terms that nearly cancel, where that is quick, else by L-BFGS.
        """
        batch: Batch = (self.factors[0][None], self.factors[1][None], self.factors[2][None])
        if self.exactly and sum(f.size for f in self.factors) <= _SMALL:
            steps = 100 if last else 8
            found, value = decompose.levenberg_marquardt(
                self.shape, batch, self.lam, steps, 1e-3, tolerance=1e-9 if last else 1e-3, span=self.span(3)
            )
        else:
            steps = 1000 if last else 40
            found, value = decompose.refine(self.shape, batch, self.lam, steps, span=self.span(len(self.parts)))
        self.factors = [f[0].copy() for f in found]
        return float(value[0])

    def price(self, value: float) -> float:
        """F with what non-zeros cost."""
        return value * (1 + THRIFT * density([self.factors[p] for p in self.parts]))

    def costs(self, gaps: Sequence[Floats]) -> list[Floats]:
        """For each factor of ``parts``: about what changes by ``gaps`` add to F, infinite where all is settled."""
        a, b, c = ((f * f).sum(axis=1)[:, None] for f in self.factors)
        weights = (b * c, a * c, a * b)
        return [np.where(self.settled[p], np.inf, gaps[p] ** 2 * weights[p]) for p in self.parts]


def pruned(state: Partial, clock: Clock) -> Partial:
    """The best of dropping the coefficients that matter least, a few at a time, and refitting the rest."""
    best, late = state.copy(), 0
    low = best.price(best.fit())
    state = best.copy()
    while not clock.expired() and late < _PATIENCE:
        costs = state.costs(state.factors)
        for part, drop in zip(state.parts, _least(costs, _DROPPED, 1), strict=True):
            state.factors[part][drop] = 0.0
            state.settled[part] |= drop
        if not all(f.any(axis=1).all() for f in state.factors):
            break  # a term is lost
        price = state.price(state.fit())
        late = late + 1
        if price < low:
            best, low, late = state.copy(), price, 0
    return best


def _least(costs: Sequence[Floats], share: float, fewest: int) -> list[Marks]:
    """Marks of that share of the finite costs, the least ones, and of at least so many."""
    flat = np.sort(np.concatenate([c[np.isfinite(c)] for c in costs]))
    if not len(flat):
        return [np.zeros(c.shape, bool) for c in costs]
    limit = flat[min(len(flat) - 1, max(fewest, int(share * len(flat))) - 1)]
    return [c <= limit for c in costs]


def gridded(state: Partial, patterns: Sequence[Floats], clock: Clock) -> list[Floats]:
    """Rows on the grid for each factor of ``parts``, taken there a few coefficients at a time, the nearest first.

    ``patterns`` holds what is settled already. A deadline hurries it: all that is left then goes at once.
    """
    state, patterns = state.copy(), [p.copy() for p in patterns]
    while not all(state.settled[p].all() for p in state.parts):
        aims, gaps = [], [np.zeros(f.shape) for f in state.factors]
        for part, pattern in zip(state.parts, patterns, strict=True):
            scales = _scales(state.factors[part], pattern)
            aims.append(_nearest(state.factors[part] / scales))
            gaps[part] = state.factors[part] - scales * aims[-1]
        share = 1.0 if clock.expired() else _SETTLED
        chosen = _least(state.costs(gaps), share, len(state.factors[0]))
        for part, pattern, aim, now in zip(state.parts, patterns, aims, chosen, strict=True):
            pattern[now] = aim[now]
            state.factors[part][now] -= gaps[part][now]
            state.settled[part] |= now
            for q in np.flatnonzero(state.settled[part].all(axis=1) & ~pattern.any(axis=1)).tolist():
                pattern[q, 0] = state.factors[part][q, 0] = 1.0  # every term keeps its place, for exchanges to use
        state.fit()
    return patterns


def _scales(f: Floats, pattern: Floats) -> Floats:
    """(r, 1): the scale of each row: that of what lies on the grid already, else the one that brings most near it."""
    size = (pattern * pattern).sum(axis=1)
    held = (f * pattern).sum(axis=1) / np.where(size > 0, size, 1.0)
    peak = np.abs(f).max(axis=1)
    peak = np.where(peak > 0, peak, 1.0)
    trials = peak[:, None] * np.exp2(-np.arange(_SCALES) / _SCALES)
    scaled = f[:, None, :] / trials[:, :, None]
    misses = ((scaled - _nearest(scaled)) ** 2).sum(axis=2) * trials**2
    free = trials[np.arange(len(f)), np.argmin(misses, axis=1)]
    result: Floats = np.where((size > 0) & (held != 0), held, free)[:, None]
    return result


def _nearest(x: Floats) -> Floats:
    """The nearest numbers of the grid."""
    return _GRID[np.searchsorted((_GRID[1:] + _GRID[:-1]) / 2, x)]


def improved(problem: Problem, patterns: Sequence[Floats], rng: np.random.Generator, clock: Clock) -> list[Floats]:
    """Patterns, one coefficient after the other exchanged for another of the grid while F and non-zeros gain.

    Candidates: the neighbours on the grid, 0 and the other sign. All else is solved in closed form: w, or with w on the
    grid a scale for each term.
    """
    patterns = [p.copy() for p in patterns]
    best = float(_solved(problem, [p[None] for p in patterns])[1][0])
    places = [(part, q) for part in range(len(patterns)) for q in range(len(patterns[0]))]
    for _ in range(_DESCENTS):
        before = best * (1 + THRIFT * density(patterns))
        for index in rng.permutation(len(places)).tolist():
            if clock.expired():
                return patterns
            part, q = places[index]
            best = _exchanged(problem, patterns, part, q, best)
        if best * (1 + THRIFT * density(patterns)) > before * (1 - 1e-4):
            break
    return patterns


def _exchanged(problem: Problem, patterns: list[Floats], part: int, q: int, value: float) -> float:
    """The best exchange in one row, made in place while there is one; F."""
    while True:
        row = patterns[part][q]
        rows = [row]
        for i, x in enumerate(row.tolist()):
            at = int(np.searchsorted(_GRID, x))
            near = {float(_GRID[j]) for j in (at - 1, at + 1) if 0 <= j < len(_GRID)} | {0.0, -x}
            for other in sorted(near - {x}):
                trial = row.copy()
                trial[i] = other
                if trial.any():
                    rows.append(trial)
        batch = [np.repeat(p[None], len(rows), axis=0) for p in patterns]
        batch[part][:, q] = np.array(rows)
        _, values = _solved(problem, batch)
        more = np.array([np.count_nonzero(x) for x in rows]) - np.count_nonzero(row)
        prices = values * (1 + THRIFT * (density(patterns) + more / sum(p.size for p in patterns)))
        best = int(np.argmin(prices))
        if not prices[best] < value * (1 + THRIFT * density(patterns)) * (1 - 1e-9):
            return value
        patterns[part][q] = rows[best]
        value = float(values[best])


def _solved(problem: Problem, patterns: Sequence[Floats]) -> tuple[Floats, Floats]:
    """(w, F) of a batch, the best of what is left free: w, or the scales of its terms."""
    u, v, *rest = patterns
    return decompose.eliminated(problem.shape, u, v, problem.lam, rest[0] if rest else None)


class Cheap:
    """Turn, drop, refit, and for ``grid`` settle and exchange; see the head of this file.

    A job begins from a scheme of the pool, or one that it solves itself; or from a find on the grid, of which a few
    coefficients are set free again.
    """

    name = "cheap"

    def weight(self, problem: Problem, pool: Pool) -> float:
        if not problem.thrifty:
            return 0.0
        return 3.0 if pool.cell(problem.shape, problem.rank) else 1.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, rank = problem.shape, problem.rank
        if problem.coefficients.startswith("grid"):
            known = _known(problem, pool, rng)
            if known is not None and rng.random() < 0.5:
                yield from self._changed(problem, known, rng, clock)
                return
        cell = [e.scheme for e in pool.cell(shape, rank)]
        if cell:
            factors = _flat(_drawn(cell, rng))
        else:
            batch, f = solve_approximate(shape, rank, problem.lam, rng, clock=clock)
            factors = [x[int(np.argmin(f))] for x in batch]
            yield decompose.scheme_of(shape, batch, int(np.argmin(f)))
        factors = rotated(shape, factors, problem.thrifty, rng)
        state = pruned(Partial.of(problem, factors), clock)
        if problem.coefficients.startswith("sparse"):
            if not clock.expired():
                state.fit(last=True)
            yield decompose.scheme_of(shape, (state.factors[0][None], state.factors[1][None], state.factors[2][None]))
            return
        nothing = [np.zeros(state.factors[p].shape) for p in state.parts]
        yield _settled(problem, gridded(state, nothing, clock), rng, clock)

    def _changed(self, problem: Problem, scheme: Scheme, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        """A scheme on the grid, changed: terms beyond the rank dropped, some exchanged, or coefficients set free."""
        factors = _flat(scheme)
        swaps = int(rng.integers(0, 1 + _SWAPPED)) if scheme.rank == problem.rank else 0
        for _ in range(scheme.rank - problem.rank + swaps):
            factors = dropped(problem, factors, rng)
        for _ in range(problem.rank - len(factors[0])):
            gap = decompose.residual_tensor(problem.shape, (factors[0][None], factors[1][None], factors[2][None]))[0]
            term = decompose.best_residual_term(gap, rng, starts=1, sweeps=6)
            rounded = [_nearest(t / _scales(t, np.zeros(t.shape))) for t in term]
            parts = [r if p in problem.thrifty else t for p, (r, t) in enumerate(zip(rounded, term, strict=True))]
            factors = [np.vstack([f, t]) for f, t in zip(factors, parts, strict=True)]
            factors[2] = _solved(problem, [factors[p][None] for p in problem.thrifty])[0][0]
        if swaps or scheme.rank > problem.rank:
            yield _settled(problem, [_normal(factors[p]) for p in problem.thrifty], rng, clock)
            return
        state = Partial.of(problem, factors)
        share = float(rng.choice(_FREED))
        patterns = []
        for part in state.parts:
            state.settled[part] = rng.random(state.factors[part].shape) >= share
            patterns.append(np.where(state.settled[part], _normal(state.factors[part]), 0.0))
        state.fit()
        yield _settled(problem, gridded(state, patterns, clock), rng, clock)


def dropped(problem: Problem, factors: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    """The factors without one term, one of those that matter least, and the best w for the rest."""
    u, v, w = factors
    costs = decompose.drop_costs((u[None], v[None], w[None]), problem.lam)[0]
    q = int(np.argmin(costs * rng.lognormal(0.0, 0.6, len(costs))))
    u, v = np.delete(u, q, 0), np.delete(v, q, 0)
    return [u, v, decompose.eliminated(problem.shape, u[None], v[None], problem.lam)[0][0]]


def _known(problem: Problem, pool: Pool, rng: np.random.Generator) -> Scheme | None:
    """A scheme on the grid of the asked rank, or of one above it from which terms can be dropped."""
    shape, rank = problem.shape, problem.rank
    same = [e.scheme for e in pool.thrifty_cell(shape, rank)]
    above = [e.scheme for r in pool.ranks(shape) if r > rank for e in pool.thrifty_cell(shape, r)]
    if above and (not same or rng.random() < 0.3):
        return _drawn(above, rng)
    return _drawn(same, rng) if same else None


def _settled(problem: Problem, patterns: list[Floats], rng: np.random.Generator, clock: Clock) -> Scheme:
    """The scheme of improved patterns."""
    patterns = [_normal(p) for p in improved(problem, patterns, rng, clock)]
    w, _ = _solved(problem, [p[None] for p in patterns])
    return Scheme(problem.shape, "R", patterns[0], patterns[1], w[0])


def _normal(rows: Floats) -> Floats:
    """Rows on the grid up to a scale with the largest coefficient 1, or 2 where the smallest would be 1/8."""
    size = np.abs(rows)
    peak = size.max(axis=1, keepdims=True)
    least = np.where(size > 0, size, np.inf).min(axis=1, keepdims=True)
    scaled = _nearest(rows / peak * np.where(least < 0.2 * peak, 2.0, 1.0))
    result: Floats = scaled
    return result


def _flat(scheme: Scheme) -> list[Floats]:
    return [f.reshape(scheme.rank, -1).astype(np.float64) for f in scheme.as_float()]


def _drawn(known: Sequence[Scheme], rng: np.random.Generator) -> Scheme:
    """One of the schemes, the first ones oftenest."""
    return known[min(len(known), int(rng.geometric(0.4))) - 1]


register(Cheap())
