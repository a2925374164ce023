"""Strategy ``rotation``: near-border schemes of <n,n,n> that rotation leaves invariant, by chains of cheap changes.

Rotation divides the unknowns by three; filled row by row, and only below the diagonal, the normal matrix costs little
beside its factorisation. What counts is how many terms rotation fixes, and it is not known beforehand: changes trade an
orbit of three terms for three fixed ones and back. Schemes are compared where coefficients are still nearly free, and
only the last of a chain is tightened to the precision asked for (large coefficients first, as Smirnov 2013 has it).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stl_search import decompose
from stl_search.decompose import Floats
from stl_search.scheme import Scheme
from stl_search.search.border import Rotation, fading, invariant_form, settled
from stl_search.search.deflate import shaken
from stl_search.search.numeric import variables
from stl_search.search.problem import Pool, Problem, drawn
from stl_search.search.strategy import Clock, register

__all__ = ["LARGEST", "Rotated", "Triangle", "changed", "known", "solved"]

LARGEST = 1300  # unknowns of a third of the scheme: a step takes some hundredths of a second
_WORK = 18000  # unknowns of the whole schemes of a job, which are starts or links of a chain: some seconds
_MANY = 12  # of them at most
_FREE = 1e-7  # weight of the noise gain at which schemes are compared, at most
_STEPS = 120  # of a start or a link, in float32, and of the same once it promises something
_TOLERANCE = 1e-4
_PROMISING = 1.6  # times the least F so far: what is above it is not solved to the end
_AGAIN = 0.75  # how often a job goes on from what is known
_FREED = 0.2  # how often the symmetry of the best is let go in the end
_SCALES = (0.4, 0.55, 0.7)  # of random entries
_REACH = 3  # ranks from which a scheme is brought to the asked one

_State = tuple[Rotation, Floats]  # the frame, and x: (r, n*n)


class Triangle(Rotation):
    """A ``Rotation`` whose normal matrix is filled on and below the diagonal alone, which is what is factorised."""

    def normal(self, x: Floats, lam: float, rho: float = 0.0) -> tuple[Floats, Floats]:
        """(J^T J, half the gradient of F + rho |x|^2), zeros in the blocks above the diagonal ones."""
        r, side = self.rank, self.n * self.n
        x = x.reshape(r, side)
        v, w = self.orders
        own, by_v, by_w = self._grams(x, lam)
        by_v, by_w = 3 * by_v, 3 * by_w
        at_v, at_w = np.argsort(v), np.argsort(w)
        before = np.stack([x[at_v], x[at_w]])
        after = np.stack([x[v], x[w]], axis=1)
        hessian = np.zeros((r, side, r, side))
        diagonal = np.arange(side)
        for q in range(r):
            with_w, with_v = by_w[q, : q + 1, None], by_v[q, : q + 1, None]
            towards = np.stack([(before[0, : q + 1] * with_w).T, (before[1, : q + 1] * with_v).T], axis=2)
            rows = (towards.reshape(-1, 2) @ after[q]).reshape(side, q + 1, side)
            rows[diagonal, :, diagonal] += 3 * own[q, : q + 1]
            hessian[q, :, : q + 1] = rows
        return hessian.reshape(r * side, r * side), self._gradient(x, own, rho)


class Rotated:
    """Chains from the best known schemes of about the asked rank; where none is invariant, random starts first."""

    name = "rotation"
    symmetric = True

    def weight(self, problem: Problem, pool: Pool) -> float:
        m, k, n = problem.shape
        fits = m == k == n > 1 and problem.rank > 2 and problem.symmetry in ("", "cyclic")
        if not fits or problem.exact or variables(problem.shape, problem.rank) > 3 * LARGEST:
            return 0.0
        return float(self.name in problem.strategies or 2 * problem.rank > problem.volume)  # few terms: only if named

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, lam = problem.shape, problem.lam
        free = min(lam, _FREE)
        count = max(3, min(_MANY, _WORK // variables(shape, problem.rank)))
        held = known(problem, pool, _REACH)
        if held and rng.random() < _AGAIN:
            frame, x = self._chain(held, problem.rank, free, count, rng, clock)
        else:
            frame, x = self._best_start(shape[0], problem.rank, free, count, rng, clock)
        stages = np.geomspace(free, lam, 1 + max(1, round(2 * np.log10(lam / free))))[1:]
        for weight in stages:
            x, _ = solved(frame, x, float(weight), 40, 0.0, 1e-3, clock, tolerance=1e-6)
        x, _ = solved(frame, x, lam, 200, 0.0, 1e-3, clock, tolerance=1e-8)
        u, v, w = frame.factors(x)
        yield decompose.scheme_of(shape, (u[None], v[None], w[None]))
        if problem.symmetry or rng.random() > _FREED or clock.expired():
            return
        u, v, w = shaken((u, v, w), float(rng.choice([0.02, 0.05, 0.1])), rng)
        first = lam * 10 ** float(rng.uniform(-2, 0))
        yield settled(shape, lam, (u[None], v[None], w[None]), first, 60, 0.0, 1e-1, clock)

    @staticmethod
    def _best_start(n: int, rank: int, free: float, count: int, rng: np.random.Generator, clock: Clock) -> _State:
        """The best of some random starts; the number of fixed terms is drawn for each."""
        best: tuple[float, Rotation, Floats] | None = None
        for _ in range(count):
            if best is not None and clock.expired():
                break
            fixed = rank % 3 + 3 * min(int(rng.geometric(0.5)) - 1, rank // 3)
            frame = Triangle(n, fixed, (rank - fixed) // 3)
            x = float(rng.choice(_SCALES)) * rng.standard_normal((rank, n * n))
            ridge = float(10 ** rng.uniform(-2.5, -1.5))
            x, value = _met(frame, x, free, ridge, 1.0, np.inf if best is None else best[0], clock)
            if best is None or value < best[0]:
                best = value, frame, x
        assert best is not None
        return best[1], best[2]

    @staticmethod
    def _chain(
        known: list[_State], rank: int, free: float, count: int, rng: np.random.Generator, clock: Clock
    ) -> _State:
        """Links of a chain, each a change of the best scheme so far, from one of those that are known."""
        frame, x = drawn(known, rng)
        value = np.inf
        if frame.rank == rank:
            x, value = solved(frame, x, free, _STEPS, 0.0, 1e-3, clock, tolerance=1e-5)
        for _ in range(count):
            if value < np.inf and clock.expired():
                break
            trial_frame, trial = changed(frame, x, rank, [y for f, y in known if f == frame], rng)
            ridge = float(rng.choice([0.0, 1e-3, 1e-2, 3e-2]))
            trial, new = _met(trial_frame, trial, free, ridge, float(rng.choice([1e-2, 1.0])), value, clock)
            if new < value:
                frame, x, value = trial_frame, trial, new
        return frame, x


def changed(
    frame: Rotation, x: Floats, rank: int, others: list[Floats], rng: np.random.Generator
) -> tuple[Triangle, Floats]:
    """Another scheme of that rank near (frame, x (r, n*n)): terms drawn anew, shaken, or taken from another one.

    Those are ``others``, of the same frame. Or an orbit of three terms is traded for three fixed ones, or back. One of
    another rank loses terms at random, or gains random ones.
    """
    x = x.reshape(frame.rank, -1).copy()
    kind = str(rng.choice(["orbits", "noise", "shrink", "swap", "trade", "trade"])) if frame.rank == rank else "rank"
    fixed, orbits = frame.fixed, frame.orbits
    if kind == "orbits" and orbits:
        for q in rng.choice(orbits, min(orbits, int(rng.integers(1, 4))), replace=False):
            x[frame.rows(fixed + q)] = float(rng.choice([0.1, 0.4, 0.7])) * rng.standard_normal((3, x.shape[1]))
    elif kind == "swap" and len(others) > 1 and orbits:
        other = others[int(rng.integers(len(others)))].reshape(x.shape)
        for q in rng.choice(orbits, min(orbits, int(rng.integers(1, 5))), replace=False):
            x[frame.rows(fixed + q)] = other[frame.rows(fixed + q)]
    elif kind == "shrink":
        x = float(rng.choice([0.6, 0.75, 0.85])) * x + 0.05 * rng.standard_normal(x.shape)
    elif kind in ("trade", "rank"):
        return _traded(frame, x, rank, rng)
    else:
        x += float(rng.choice([0.05, 0.1, 0.2, 0.3])) * rng.standard_normal(x.shape)
    return Triangle(frame.n, fixed, orbits), x


def _traded(frame: Rotation, x: Floats, rank: int, rng: np.random.Generator) -> tuple[Triangle, Floats]:
    """The scheme with an orbit, or three fixed terms, less and as many new terms of the other kind, at that rank."""
    fixed, orbits = frame.fixed, frame.orbits
    more = fixed + 3 <= rank and (fixed < 3 or rng.random() < 0.5)
    wanted = fixed + (3 if more else -3) if frame.rank == rank else fixed
    wanted = min(rank, max(rank % 3, wanted - (wanted - rank) % 3))  # so that whole orbits make up the rest
    kept_fixed = rng.permutation(fixed)[: min(fixed, wanted)]
    kept = rng.permutation(orbits)[: min(orbits, (rank - wanted) // 3)]
    rows = [fixed + 3 * int(q) + i for q in np.sort(kept) for i in range(3)]
    scale = float(rng.choice(_SCALES))
    new_fixed = scale * rng.standard_normal((wanted - len(kept_fixed), x.shape[1]))
    new = scale * rng.standard_normal((rank - wanted - len(rows), x.shape[1]))
    whole = np.concatenate([x[np.sort(kept_fixed)], new_fixed, x[rows], new])
    return Triangle(frame.n, wanted, (rank - wanted) // 3), whole


def known(problem: Problem, pool: Pool, reach: int) -> list[_State]:
    """The invariant schemes of the pool of ranks at most ``reach`` from the asked one; near ranks first, good ones."""
    ranks = sorted(
        (r for r in pool.ranks(problem.shape) if abs(r - problem.rank) <= reach), key=lambda r: abs(r - problem.rank)
    )
    entries = [entry for r in ranks for entry in sorted(pool.cell(problem.shape, r), key=lambda e: e.cost)]
    forms = (invariant_form(entry.scheme) for entry in entries)
    return [(Triangle(f.n, f.fixed, f.orbits), x) for f, x in (form for form in forms if form is not None)]


def _met(
    frame: Rotation, x: Floats, free: float, ridge: float, damping: float, best: float, clock: Clock
) -> tuple[Floats, float]:
    """(x, F) at the weight ``free``, solved to the end where that promises something beside ``best``."""
    x, value = solved(frame, x, free, _STEPS, ridge, damping, clock, single=True)
    if value < _PROMISING * best:
        x, value = solved(frame, x, free, 2 * _STEPS, 0.0, 1e-3, clock, tolerance=0.1 * _TOLERANCE)
    return x, value


def solved(
    frame: Rotation,
    x: Floats,
    weight: float,
    steps: int,
    ridge: float,
    damping: float,
    clock: Clock,
    tolerance: float = _TOLERANCE,
    single: bool = False,
) -> tuple[Floats, float]:
    """(x, F) after Levenberg-Marquardt at one weight of the noise gain; ``single``: steps are solved in float32."""
    flat, value = decompose.damped_gauss_newton(
        x.ravel(),
        lambda y: frame.measure(y, weight),
        lambda y, rho: frame.normal(y, weight, rho),
        iterations=steps,
        mu=damping,
        ridge=fading(ridge, steps) if ridge else None,
        tolerance=tolerance,
        stop=clock.expired,
        single=single,
    )
    return flat.reshape(frame.rank, -1), value


register(Rotated())
