"""From a float solution to an exact scheme: fix the gauge, snap coefficients to {0, +-1, ...} and re-solve the others.

An exact decomposition found in floating point lies on a manifold: rescaling of terms, basis changes GL x GL x GL, and
often more free parameters. Snapping one coefficient after another to an allowed value while Levenberg-Marquardt
re-solves the remaining ones walks along that manifold to a point with small integer or rational coefficients (the
practice of Smirnov, "The bilinear complexity and practical algorithms for matrix multiplication", 2013, section 4).
What comes out is proved in exact arithmetic before it is returned; a float never decides.
"""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import scipy.linalg

from stl_search import rings
from stl_search.decompose import Batch, Floats, levenberg_marquardt, normal_equations
from stl_search.errors import SchemeError
from stl_search.scheme import Scheme, Shape
from stl_search.verify import first_failure

__all__ = ["discretize"]

_SOLVED = 1e-20  # |T - S|^2 below which a float solution counts as one: (1e-10)^2, far above rounding, far below 1
_ALLOWED = {
    "ZT": (0.0, 1.0, -1.0),
    "Z": (0.0, 1.0, -1.0, 2.0, -2.0),
    "Q": (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0),
}


def discretize(
    scheme: Scheme, ring: str, rng: np.random.Generator, deadline: float | None = None, attempts: int = 3
) -> Scheme | None:
    """An exact scheme of the same shape and rank over ``ring`` (ZT, Z, Q or Z2) in the orbit of a float one, or None.

    ``deadline`` is a value of ``time.monotonic()``. Z2 takes the residues of a solution with odd denominators. The
    result carries the smallest ring that holds it. Raises SchemeError when the float scheme is not exact to 1e-10.
    """
    kind = "ZT" if ring == "Z2" else rings.get(ring).name
    if kind not in _ALLOWED:
        raise SchemeError(f"cannot round to {ring}: choose Z2, ZT, Z or Q")
    factors: Batch = tuple(f.reshape(scheme.rank, -1).astype(np.float64) for f in scheme.factors)  # type: ignore[assignment]
    factors, value = _solve(scheme.shape, factors, 60, None)
    if value > _SOLVED:
        raise SchemeError(
            f"not an exact scheme in floating point: squared residual {value:.1e}, must be <= {_SOLVED:.0e}"
        )
    for _ in range(attempts):
        start = _gauge(_frame(scheme.shape, factors, rng))
        snapped = _snap(scheme.shape, start, _ALLOWED[kind], rng, deadline)
        if snapped is not None:
            exact = _exact(scheme.shape, snapped, ring)
            if exact is not None:
                return exact
        if deadline is not None and time.monotonic() > deadline:
            return None
    return None


def _solve(
    shape: Shape, factors: Batch, iterations: int, free: npt.NDArray[np.bool_] | None, damping: float = 1e-3
) -> tuple[Batch, float]:
    batch: Batch = tuple(f[None] for f in factors)  # type: ignore[assignment]
    out, value = levenberg_marquardt(
        shape, batch, iterations=iterations, damping=damping, goal=_SOLVED * 1e-4, tolerance=1e-3, free=free
    )
    return tuple(f[0] for f in out), float(value[0])


def _gauge(factors: Batch) -> Batch:
    """Rescale every term so that the largest entries of u_q and v_q are exactly 1; w_q takes the rest."""
    u, v, w = (f.copy() for f in factors)
    for q in range(len(u)):
        for f in (u, v):
            peak = f[q, np.abs(f[q]).argmax()]
            if peak != 0:
                f[q] /= peak
                w[q] *= peak
    return u, v, w


def _frame(shape: Shape, factors: Batch, rng: np.random.Generator) -> Batch:
    """The same solution after a basis change that carries s + 1 lines of each space (dimension s) to a standard frame.

    The lines are those of the rank-one factor matrices, the more often one occurs the likelier: e_1 .. e_s and
    e_1 + .. + e_s fix PGL_s, and in a rational point of the orbit all other vectors become small. With A' = X A Y^-1,
    B' = Y B Z^-1, C' = X C Z^-1 the factors become X^-T u Y^T, Y^-T v Z^T and X w Z^-1.
    """
    m, k, n = shape
    r = len(factors[0])
    u, v, w = (f.reshape(r, *s) for f, s in zip(factors, ((m, k), (k, n), (m, n)), strict=True))
    # left vectors of u and w live in dual spaces, so a frame for X is taken from one of them, and likewise for Y and Z
    x = (
        _frame_map(_lines(u, 0), m, rng, dual=True)
        if rng.random() < 0.5
        else _frame_map(_lines(w, 0), m, rng, dual=False)
    )
    y = (
        _frame_map(_lines(v, 0), k, rng, dual=True)
        if rng.random() < 0.5
        else _frame_map(_lines(u, 1), k, rng, dual=False)
    )
    z = (
        _frame_map(_lines(w, 1), n, rng, dual=True)
        if rng.random() < 0.5
        else _frame_map(_lines(v, 1), n, rng, dual=False)
    )
    xi, yi, zi = (np.linalg.inv(a) for a in (x, y, z))
    return (xi.T @ u @ y.T).reshape(r, -1), (yi.T @ v @ z.T).reshape(r, -1), (x @ w @ zi).reshape(r, -1)


def _lines(f: Floats, side: int) -> Floats:
    """Unit left (side 0) or right (side 1) vectors (count, s) of the rank-one matrices among f (r, a, b)."""
    left, sigma, right = np.linalg.svd(f, full_matrices=False)
    lone = sigma[:, 1] < 1e-6 * sigma[:, 0] if sigma.shape[1] > 1 else np.ones(len(f), dtype=bool)
    found: Floats = left[lone, :, 0] if side == 0 else right[lone, 0, :]
    return found


def _frame_map(lines: Floats, s: int, rng: np.random.Generator, dual: bool) -> Floats:
    """g (s, s) with g x_i ~ e_i for s chosen lines and g x_0 ~ (1, .., 1); for ``dual`` the lines move by g^-T."""
    best: tuple[float, Floats] = (np.inf, np.linalg.qr(rng.standard_normal((s, s)))[0])
    if len(lines) > s:
        for _ in range(20):
            pick = lines[rng.choice(len(lines), s + 1, replace=False)]  # a line met twice is picked twice as often
            basis = pick[:s].T
            if np.linalg.cond(basis) > 1e3:
                continue
            weights = np.linalg.solve(basis, pick[s])
            # a generic last line fixes the scales; one inside a coordinate plane leaves the missing scales at 1
            scale = np.where(np.abs(weights) > 1e-6, weights, 1.0)
            g = np.linalg.inv(basis * scale)
            spread = np.linalg.cond(g) * rng.uniform(1.0, 3.0)
            if spread < best[0]:
                best = (float(spread), g)
    g = best[1]
    return np.linalg.inv(g).T if dual else g


def _snap(
    shape: Shape,
    factors: Batch,
    allowed: tuple[float, ...],
    rng: np.random.Generator,
    deadline: float | None,
) -> Batch | None:
    """Fix coefficients to allowed values, those that ask for the least movement first, until nothing can move.

    The null space of the Jacobian on the free coefficients says how far the whole solution must move (to first order)
    for one coefficient to reach its target; coefficients that cannot move are left to what they are.
    """
    sizes = [f.shape for f in factors]
    cuts = np.cumsum([f.size for f in factors])[:-1]

    def split(x: Floats) -> Batch:
        return tuple(p.reshape(s) for p, s in zip(np.split(x, cuts), sizes, strict=True))  # type: ignore[return-value]

    values = np.array(allowed)
    x = np.concatenate([f.ravel() for f in factors])
    free = np.ones(len(x), dtype=bool)
    banned: set[tuple[int, float]] = set()
    chunk = 4
    failures = 0
    while deadline is None or time.monotonic() < deadline:
        near = values[np.abs(x[:, None] - values).argmin(axis=1)]
        sure = free & (np.abs(x - near) < 1e-9)
        x[sure], free[sure] = near[sure], False
        index = np.flatnonzero(free)
        if not len(index):
            return split(x)
        hessian, _ = normal_equations(shape, split(x), 0.0)
        eigenvalues, vectors = scipy.linalg.eigh(hessian[np.ix_(index, index)], check_finite=False)
        null = vectors[:, eigenvalues < 1e-9 * eigenvalues[-1]]
        if null.shape[1] == 0:
            return split(x)
        reach = np.linalg.norm(null, axis=1)
        movable = reach > 1e-5
        if np.abs(x[index[~movable]] - near[index[~movable]]).max(initial=0.0) > 1e-6 and set(allowed) <= {0, 1, -1}:
            return None  # a coefficient that can no longer move is outside the ring
        # (movement, coefficient, target): the two nearest values of each movable coefficient are candidates
        options = []
        for i in np.flatnonzero(movable):
            for t in values[np.argsort(np.abs(x[index[i]] - values))[:2]]:
                if (int(index[i]), float(t)) not in banned:
                    gap = abs(x[index[i]] - t) / reach[i] + (0.0 if t == 0 else 0.1 if abs(t) == 1 else 0.4)
                    options.append((gap * rng.uniform(1.0, 1.3), i, float(t)))
        if not options:
            return None
        options.sort()
        chosen: list[tuple[int, float]] = []
        basis = np.zeros((0, null.shape[1]))
        for _, i, t in options:  # greedily independent directions
            row = null[i] - (null[i] @ basis.T) @ basis
            if np.linalg.norm(row) > 0.3 * reach[i] and i not in [c[0] for c in chosen]:
                chosen.append((int(i), t))
                basis = np.vstack([basis, row / np.linalg.norm(row)])
                if len(chosen) >= min(chunk, null.shape[1]):
                    break
        rows = [i for i, _ in chosen]
        goals = np.array([t for _, t in chosen])
        trial = x.copy()
        move, *_ = np.linalg.lstsq(null[rows], goals - x[index[rows]], rcond=None)
        step = null @ move
        trial[index] += step * min(1.0, 1.0 / (np.abs(step).max() + 1e-300))
        trial[index[rows]] = goals
        still = free.copy()
        still[index[rows]] = False
        solved, value = _solve(shape, split(trial), 15, still)
        if _SOLVED < value < 1e-2:
            solved, value = _solve(shape, solved, 40, still)
        if value <= _SOLVED and max(np.abs(f).max() for f in solved) < 6:
            x = np.concatenate([f.ravel() for f in solved])
            free = still
            chunk = min(chunk + 1, 8)
        elif len(chosen) > 1:
            chunk = 1
        else:
            banned.add((int(index[rows[0]]), float(goals[0])))
            failures += 1
            if failures > 30:
                return None
    return None


def _exact(shape: Shape, factors: Batch, ring: str) -> Scheme | None:
    """The proved exact scheme whose coefficients are the small fractions next to the floats, or None."""
    rows = []
    for f in factors:
        values = [Fraction(float(x)).limit_denominator(64) for x in f.ravel()]
        if max(abs(float(a) - float(b)) for a, b in zip(values, f.ravel(), strict=True)) > 1e-6:
            return None
        rows.append(np.array(values, dtype=object).reshape(f.shape))
    smallest = rings.smallest_exact(x for f in rows for x in f.ravel())
    if ring == "Z2":
        if any(x.denominator % 2 == 0 for f in rows for x in f.ravel()):
            return None
        rows = [np.array([x.numerator % 2 for x in f.ravel()], dtype=np.int8).reshape(f.shape) for f in rows]
        smallest = rings.get("Z2")
    elif ("ZT", "Z", "Q").index(smallest.name) > ("ZT", "Z", "Q").index(ring):
        return None
    exact = Scheme(shape, smallest, *rows)
    return exact if first_failure(exact) is None else None
