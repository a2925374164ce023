"""Strategy ``border``: schemes near the border rank; large coefficients first, the regulariser tightened slowly.

Below the exact rank the best schemes are often those that a border-rank scheme becomes when rounding is charged for:
terms that nearly cancel, with coefficients as large as the precision allows. Optimisers of the full objective hardly
ever meet them, since on the way the coefficients are larger than they end. Levenberg-Marquardt on nearly the plain
residual meets them often; the weight of the noise gain is then raised in stages to the asked one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stl_search import decompose
from stl_search.decompose import Batch, Floats
from stl_search.scheme import Scheme, Shape, matmul_tensor
from stl_search.search.deflate import shaken
from stl_search.search.invariant import expanded, recognised
from stl_search.search.numeric import variables
from stl_search.search.problem import Entry, Pool, Problem, cost, drawn
from stl_search.search.strategy import Clock, register
from stl_search.search.symmetry import action

__all__ = ["Border", "Factors", "Plunge", "Rotation", "fading", "settled", "tightened"]

Factors = tuple[Floats, Floats, Floats]
_DENSE = 1300  # unknowns up to which a Levenberg-Marquardt step on all of them takes some .05 s at most
_WORK = 600  # unknowns that make a job of about a second
_TOLERANCE = 1e-4  # relative gain below which a stage ends: the next one moves on
_FRESH = 1e-9  # weight of the noise gain in the first stage of a random start: next to nothing
_HOPELESS = 1.5  # times the best error^2: a start that is above it when the coefficients are still free is left
_SCALE = 0.7  # of random entries
_SAME = 2e-3  # a find that is worse by so little than one of the pool is taken for the same basin, not quite reached


def stages(lam: float, first: float) -> list[float]:
    """Weights from ``first`` up to ``lam``, a factor of at most 10 between two.

    >>> [f"{x:.0e}" for x in stages(5e-6, 1e-8)]
    ['1e-08', '1e-07', '1e-06', '5e-06']
    """
    found = []
    while first < 0.999 * lam:
        found.append(first)
        first *= 10
    return [*found, lam]


def tightened(
    lam: float,
    first: float,
    solve: Callable[[float, int, float, float], None],
    steps: int,
    ridge: float,
    damping: float,
    clock: Clock,
) -> None:
    """Calls ``solve(weight, iterations, ridge, damping)`` for each stage from ``first`` to ``lam``; the first is long.

    Only the first stage has a ridge on the coefficients, which fades, and strong damping.
    """
    for i, weight in enumerate(stages(lam, first)):
        if i and clock.expired():
            return
        if i:
            solve(weight, 40, 0.0, 1e-3)
        else:
            solve(weight, steps, ridge, damping)


def fading(ridge: float, steps: int) -> Callable[[int], float]:
    return lambda i: ridge * max(0.0, 1 - i / (0.6 * steps))


def settled(
    shape: Shape, lam: float, batch: Batch, first: float, steps: int, ridge: float, damping: float, clock: Clock
) -> Scheme:
    """The scheme that a start (batch of one) becomes; L-BFGS takes the place of Newton where steps are dear."""
    state = [batch]
    large = sum(f.size for f in batch) > _DENSE

    def solve(weight: float, iterations: int, ridge: float, damping: float) -> None:
        if large:
            state[0], _ = decompose.refine(shape, state[0], weight, 3 * iterations, tolerance=1e-6)
            return
        state[0], _ = decompose.levenberg_marquardt(
            shape, state[0], weight, iterations, damping, fading(ridge, iterations) if ridge else None,
            tolerance=_TOLERANCE, stop=clock.expired,
        )  # fmt: skip

    tightened(lam, first, solve, steps, ridge, damping, clock)
    if large and not clock.expired():
        state[0], _ = decompose.refine(shape, state[0], lam, 600)
    return decompose.scheme_of(shape, state[0])


@dataclass(frozen=True)
class Rotation:
    """Schemes of <n,n,n> that the rotation (u, v, w^T) -> (v, w^T, u) leaves invariant: x (r, n*n) holds every u.

    ``fixed`` terms x (x) x (x) x come first, then ``orbits`` of three terms each; v and w^T are the rows of x in other
    orders, so that the unknowns, and the normal matrix, are a third of the whole scheme's.
    """

    n: int
    fixed: int
    orbits: int

    @property
    def rank(self) -> int:
        """fixed + 3 orbits."""
        return self.fixed + 3 * self.orbits

    @cached_property
    def orders(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The rows of x that are v, and those that are w^T."""
        first = np.arange(self.rank)
        block = first[self.fixed :].reshape(self.orbits, 3)
        turned = np.concatenate([first[: self.fixed], block[:, [1, 2, 0]].ravel()])
        return turned, turned[turned]

    @cached_property
    def _flipped(self) -> npt.NDArray[np.intp]:
        return np.arange(self.n * self.n).reshape(self.n, self.n).T.ravel()

    @cached_property
    def _target(self) -> Floats:
        """T(u; v, w^T) as a matrix: (n*n, n^4)."""
        side = self.n * self.n
        target: Floats = matmul_tensor((self.n, self.n, self.n))[:, :, self._flipped].reshape(side, side * side)
        return target

    def factors(self, x: Floats) -> Factors:
        """(u, v, w), each (r, n*n)."""
        v, w = self.orders
        x = x.reshape(self.rank, -1)
        return x, x[v], x[w][:, self._flipped]

    def measure(self, x: Floats, lam: float) -> float:
        """F: |T - S|^2 + lam sum |u|^2 |v|^2 |w|^2."""
        x = x.reshape(self.rank, -1)
        v, w = self.orders
        pairs = (x[v][:, :, None] * x[w][:, None, :]).reshape(self.rank, -1)
        gap = self._target - x.T @ pairs
        norms = (x * x).sum(axis=1)
        return float(np.vdot(gap, gap)) + lam * float((norms * norms[v] * norms[w]).sum())

    def normal(self, x: Floats, lam: float, rho: float = 0.0) -> tuple[Floats, Floats]:
        """(J^T J, half the gradient of F + rho |x|^2) in x: three times what the rows of u alone give, by invariance.

        With D the weight 1 + lam of the diagonal: <w_q, w_p> D_qp u_p[i] v_q[j] is the block of u_q[i] and v_p[j], and
        v_p is the row ``orders[0][p]`` of x; likewise for w.
        """
        r, side = self.rank, self.n * self.n
        x = x.reshape(r, side)
        v, w = self.orders
        own, by_v, by_w = self._grams(x, lam)
        at_v, at_w = np.argsort(v), np.argsort(w)
        hessian = by_w[:, None, :, None] * x[at_v].T[None, :, :, None] * x[v][:, None, None, :]
        hessian += by_v[:, None, :, None] * x[at_w].T[None, :, :, None] * x[w][:, None, None, :]
        i = np.arange(side)
        hessian[:, i, :, i] += own[None]
        return 3 * hessian.reshape(r * side, r * side), self._gradient(x, own, rho)

    def _grams(self, x: Floats, lam: float) -> tuple[Floats, Floats, Floats]:
        """(own, by_v, by_w), each (r, r): factors of the blocks of the normal matrix of x (r, n*n).

        ``own[q, p]`` is the inner product of the other two factors of terms q and p, times D, and belongs to the
        identity; ``by_w[q, p]`` to the outer product of x[p'] and v_q, where p' is the row whose v is p, and ``by_v``
        likewise with v and w exchanged.
        """
        v, w = self.orders
        gram = x @ x.T
        weight = np.ones(gram.shape)
        weight[np.arange(self.rank), np.arange(self.rank)] += lam
        gram_v, gram_w = gram[np.ix_(v, v)], gram[np.ix_(w, w)]
        own = gram_v * gram_w * weight
        return own, (gram_v * weight)[:, np.argsort(w)], (gram_w * weight)[:, np.argsort(v)]

    def _gradient(self, x: Floats, own: Floats, rho: float) -> Floats:
        """Half the gradient of F + rho |x|^2, flat."""
        v, w = self.orders
        vs, ws = (x[order].reshape(self.rank, self.n, self.n) for order in (v, w))
        gradient = own @ x - np.matmul(vs, ws).transpose(0, 2, 1).reshape(x.shape)
        flat: Floats = 3 * gradient.ravel() + rho * x.ravel()
        return flat

    def solved(
        self, x: Floats, lam: float, first: float, steps: int, ridge: float, damping: float, clock: Clock
    ) -> tuple[Floats, float]:
        """(x, F) after Levenberg-Marquardt, tightened from the weight ``first`` to ``lam``."""
        state: list[Floats] = [x.ravel()]
        value = [np.inf]

        def solve(weight: float, iterations: int, ridge: float, damping: float) -> None:
            state[0], value[0] = decompose.damped_gauss_newton(
                state[0],
                lambda x: self.measure(x, weight),
                lambda x, rho: self.normal(x, weight, rho),
                iterations=iterations,
                mu=damping,
                ridge=fading(ridge, iterations) if ridge else None,
                tolerance=_TOLERANCE,
                stop=clock.expired,
            )

        tightened(lam, first, solve, steps, ridge, damping, clock)
        return state[0].reshape(self.rank, -1), self.measure(state[0], lam)

    def without(self, x: Floats, orbit: int) -> tuple[Rotation, Floats]:
        """The scheme with one orbit left out, fixed terms counted first."""
        rows = self.rows(orbit)
        gone = len(rows) == 1
        return Rotation(self.n, self.fixed - gone, self.orbits - (not gone)), np.delete(x, rows, axis=0)

    def rows(self, orbit: int) -> list[int]:
        """The rows of x that belong to one orbit."""
        start = self.fixed + 3 * (orbit - self.fixed)
        return [orbit] if orbit < self.fixed else [start, start + 1, start + 2]


def invariant_form(scheme: Scheme) -> tuple[Rotation, Floats] | None:
    """The rotation-invariant form of a real scheme of <n,n,n>, or None where it has none."""
    found = recognised(action("cyclic", scheme.shape), scheme)
    if found is None:
        return None
    u, v, _ = (f[0] for f in expanded([found]))
    fixed: list[Floats] = []
    moved: list[Floats] = []
    row = 0
    for kind in found.kinds:
        if kind.size == 1:
            fixed.append(u[row])
        else:
            order = [0, 1, 2] if np.allclose(v[row], u[row + 1]) else [0, 2, 1]
            moved += [u[row + i] for i in order]
        row += kind.size
    frame = Rotation(scheme.shape[0], len(fixed), len(moved) // 3)
    x = np.array([*fixed, *moved])
    # a fixed term s x (x) x (x) x^T with a sign is one of -x
    gap = decompose.balance(decompose.batch_of([scheme]))
    want = decompose.objective(scheme.shape, gap)[0]
    return (frame, x) if abs(frame.measure(x, 0.0) - want) <= 1e-6 * (1 + abs(want)) else None


class Border:
    """Levenberg-Marquardt from almost no charge for rounding to the asked one (after Smirnov 2013, who bounds instead).

    Starts are random, or made from schemes of the pool: terms exchanged, dropped, added, or noise. For square shapes
    half of the jobs look for rotation-invariant schemes first, a third of the unknowns, in a chain of such steps, and
    then let the symmetry go.
    """

    name = "border"

    def weight(self, problem: Problem, pool: Pool) -> float:
        if problem.exact or problem.rank < 2 or min(problem.shape) == 1:
            return 0.0
        if variables(problem.shape, problem.rank) <= _DENSE:
            return 1.5
        return 1.0 if self._square(problem.shape) else 0.3

    @staticmethod
    def _square(shape: Shape) -> bool:
        return shape[0] == shape[1] == shape[2]

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        for scheme in self._found(problem, pool, rng, clock):
            value = cost(problem, scheme)
            held = (e.cost for e in pool.cell(scheme.shape, scheme.rank))
            if not any(known <= value < known * (1 + _SAME) for known in held):  # a pool of one basin is no pool
                yield scheme

    def _found(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        large = variables(problem.shape, problem.rank) > _DENSE
        if self._square(problem.shape) and rng.random() < (0.7 if large else 0.4):
            yield from self._rotated(problem, pool, rng, clock)
            return
        for _ in range(max(1, _WORK // variables(problem.shape, problem.rank))):
            yield self._free(problem, pool, rng, clock)
            if clock.expired():
                return

    # -- without symmetry ----------------------------------------------------------------------------------------------

    def _free(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Scheme:
        shape, rank, lam = problem.shape, problem.rank, problem.lam
        held = [r for r in (rank - 1, rank, rank + 1) if pool.cell(shape, r)]
        many = len(pool.cell(shape, rank)) >= 4
        if not held or rng.random() < (0.15 if many else 0.5):
            batch = decompose.random_batch(shape, rank, 1, rng, _SCALE)
            return settled(shape, lam, batch, _FRESH, 150, float(10 ** rng.uniform(-3.5, -2)), 1.0, clock)
        factors = self._moved(problem, pool, held, rng)
        first = lam * 10 ** float(rng.uniform(-3.5, 0))
        ridge = float(rng.choice([0.0, 0.0, 1e-3, 1e-2]))
        start: Batch = (factors[0][None], factors[1][None], factors[2][None])
        return settled(shape, lam, start, first, 80, ridge, float(rng.choice([1e-2, 1.0])), clock)

    def _moved(self, problem: Problem, pool: Pool, held: list[int], rng: np.random.Generator) -> Factors:
        """A scheme of the pool brought to the asked rank and changed a little."""
        shape, rank = problem.shape, problem.rank
        weights = np.array([3.0 if r == rank else 1.0 for r in held])
        source = held[int(rng.choice(len(held), p=weights / weights.sum()))]
        cell = pool.cell(shape, source)
        entry = drawn(cell, rng)
        u, v, w = (f.reshape(source, -1) for f in entry.scheme.as_float())
        balanced = decompose.balance((u[None], v[None], w[None]))
        factors: Factors = (balanced[0][0], balanced[1][0], balanced[2][0])
        exchanged = 0
        if source == rank:
            exchanged = int(rng.choice([0, 1, 1, 2, 3]))
            if not exchanged:
                return shaken(factors, float(rng.choice([0.05, 0.1, 0.2, 0.4])), rng)
        for _ in range(exchanged + max(0, source - rank)):
            factors = _dropped(factors, problem.lam, rng)
        while len(factors[0]) < rank:
            factors = _grown(shape, factors, rng)
        return shaken(factors, float(rng.choice([0.01, 0.05])), rng)

    # -- with rotation -------------------------------------------------------------------------------------------------

    def _rotated(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        """A chain of invariant solutions, each from a change of the best one so far; the last without its symmetry."""
        shape, rank, lam = problem.shape, problem.rank, problem.lam
        frame, x, value = self._first(problem, pool, rng, clock)
        size = frame.rank * frame.n**2
        for _ in range(max(3, min(12, 1200 // size))):
            if clock.expired():
                break
            trial_frame, trial = self._changed(frame, x, rank, rng)
            ridge = float(rng.choice([0.0, 1e-3, 1e-2]))
            first = lam * 10 ** float(rng.uniform(-3, 0))
            trial, new = trial_frame.solved(trial, lam, first, 100, ridge, float(rng.choice([1e-2, 1.0])), clock)
            if new < value:
                frame, x, value = trial_frame, trial, new
        yield decompose.scheme_of(shape, tuple(f[None] for f in frame.factors(x)))  # type: ignore[arg-type]
        if clock.expired():
            return
        factors = shaken(frame.factors(x), float(rng.choice([0.02, 0.05, 0.1, 0.2])), rng)
        start: Batch = (factors[0][None], factors[1][None], factors[2][None])
        yield settled(shape, lam, start, lam * 10 ** float(rng.uniform(-2, 0)), 60, 0.0, 1e-1, clock)

    def _first(
        self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock
    ) -> tuple[Rotation, Floats, float]:
        """Where a chain begins: an invariant scheme of the pool of the same rank or three away, or a random one."""
        shape, rank = problem.shape, problem.rank
        known: list[Entry] = sorted(e for r in (rank - 3, rank, rank + 3) if r > 0 for e in pool.cell(shape, r))
        if rng.random() < 0.6:
            forms = [form for e in known if (form := invariant_form(e.scheme)) is not None and form[0].fixed < rank]
            if forms:
                frame, x = drawn(forms, rng)
                if frame.rank != rank:
                    frame, x = self._changed(frame, x, rank, rng)
                return frame, x, frame.measure(x, problem.lam) if frame.rank == rank else np.inf
        fixed = rank % 3 + 3 * min(int(rng.geometric(0.5)) - 1, rank // 3)
        frame = Rotation(shape[0], fixed, (rank - fixed) // 3)
        x = _SCALE * rng.standard_normal((rank, shape[0] ** 2))
        return frame, *frame.solved(x, problem.lam, _FRESH, 150, float(10 ** rng.uniform(-3, -2)), 1.0, clock)

    @staticmethod
    def _changed(frame: Rotation, x: Floats, rank: int, rng: np.random.Generator) -> tuple[Rotation, Floats]:
        """The same with noise, or with one or two orbits exchanged for random ones, at the asked rank."""
        if frame.rank == rank and rng.random() < 0.35:
            noise = float(rng.choice([0.05, 0.1, 0.2, 0.4]))
            return frame, x + noise * np.sqrt((x * x).mean()) * rng.standard_normal(x.shape)
        gone = int(rng.choice([1, 2])) if frame.rank <= rank else 1
        while (gone > 0 and frame.rank > 3) or frame.rank > rank:
            frame, x = frame.without(x, int(rng.integers(frame.fixed + frame.orbits)))
            gone -= 1
        left = rank - frame.rank
        fixed, orbits = left % 3, left // 3
        fresh = _SCALE * rng.standard_normal((left, x.shape[1]))
        x = np.concatenate([x[: frame.fixed], fresh[:fixed], x[frame.fixed :], fresh[fixed:]])
        return Rotation(frame.n, frame.fixed + fixed, frame.orbits + orbits), x


class Plunge(Border):
    """Random starts of ``border`` alone, many a job: a start far above the best known is not followed to its end.

    Where one start in a hundred meets the right basin, walks from the others are in its way.
    """

    name = "plunge"

    def weight(self, problem: Problem, pool: Pool) -> float:
        fits = variables(problem.shape, problem.rank) <= _DENSE or self._square(problem.shape)
        return 0.5 if fits and super().weight(problem, pool) else 0.0

    def _found(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, rank, lam = problem.shape, problem.rank, problem.lam
        size = variables(shape, rank)
        for _ in range(max(1, min(8, 3 * _WORK // size))):
            cell = pool.cell(shape, rank)
            bound = _HOPELESS * cell[0].cost * problem.volume if cell else np.inf
            ridge = float(10 ** rng.uniform(-3.5, -2))
            if size > _DENSE:
                fixed = rank % 3 + 3 * min(int(rng.geometric(0.5)) - 1, rank // 3)
                frame = Rotation(shape[0], fixed, (rank - fixed) // 3)
                x = _SCALE * rng.standard_normal((rank, shape[0] ** 2))
                x, value = frame.solved(x, _FRESH, _FRESH, 150, ridge, 1.0, clock)
                if value <= bound:
                    x, value = frame.solved(x, lam, 10 * _FRESH, 40, 0.0, 1e-3, clock)
                    yield decompose.scheme_of(shape, tuple(f[None] for f in frame.factors(x)))  # type: ignore[arg-type]
            else:
                start = decompose.random_batch(shape, rank, 1, rng, _SCALE)
                start, f = decompose.levenberg_marquardt(
                    shape, start, _FRESH, 150, 1.0, fading(ridge, 150), tolerance=_TOLERANCE, stop=clock.expired
                )
                if f[0] <= bound:
                    yield settled(shape, lam, start, 10 * _FRESH, 40, 0.0, 1e-3, clock)
            if clock.expired():
                return


def _dropped(factors: Factors, lam: float, rng: np.random.Generator) -> Factors:
    """Without one term: a random choice, likelier among those that cost little."""
    u, v, w = factors
    costs = decompose.drop_costs((u[None], v[None], w[None]), lam)[0]
    q = int(np.argmin(np.abs(costs) * rng.lognormal(0.0, 1.0, len(costs))))
    return np.delete(u, q, 0), np.delete(v, q, 0), np.delete(w, q, 0)


def _grown(shape: Shape, factors: Factors, rng: np.random.Generator) -> Factors:
    """With one term more: a random one, or one that fits the residual."""
    u, v, w = factors
    if rng.random() < 0.5:
        gap = decompose.residual_tensor(shape, (u[None], v[None], w[None]))[0]
        a, b, c = decompose.best_residual_term(gap, rng, starts=1, sweeps=4)
    else:
        a, b, c = (_SCALE * rng.standard_normal((1, f.shape[1])) for f in factors)
    return np.vstack([u, a]), np.vstack([v, b]), np.vstack([w, c])


register(Border())
register(Plunge())
