"""Least squares behind every float search: fit u, v, w to the matmul tensor, in batches of independent problems.

The objective is the precision-aware one (see score.py), which has a closed form:

    F(u, v, w) = |T - sum_q u_q (x) v_q (x) w_q|^2  +  lam * sum_q |u_q|^2 |v_q|^2 |w_q|^2

with ``lam = 2 d(dtype)^2``, so that F / (mkn) = error(dtype)^2. Arrays are float64 and flat, with a leading batch axis
b: u (b, r, m*k), v (b, r, k*n), w (b, r, m*n). T is never formed: its contraction with two factors is a product of
small matrices. Three solvers: ``als`` (alternating least squares), ``refine`` (L-BFGS after eliminating w in closed
form, the work-horse), ``levenberg_marquardt`` (with a fading ridge, for exact ranks and last digits).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from stl_search.scheme import Scheme, Shape, matmul_tensor

__all__ = [
    "Batch",
    "als",
    "balance",
    "batch_of",
    "best_residual_term",
    "damped_gauss_newton",
    "drop_costs",
    "eliminated",
    "levenberg_marquardt",
    "normal_equations",
    "objective",
    "random_batch",
    "refine",
    "residual_tensor",
    "scheme_of",
]

Floats = npt.NDArray[Any]  # float64 throughout
Batch = tuple[Floats, Floats, Floats]

_JITTER = 1e-13  # relative ridge that keeps normal matrices of parallel terms solvable; far below every target accuracy


def batch_of(schemes: list[Scheme]) -> Batch:
    """Real schemes of one shape and rank as a batch (b, r, ..)."""
    return tuple(  # type: ignore[return-value]
        np.stack([f.reshape(s.rank, -1).astype(np.float64) for s in schemes for f in (s.factors[i],)]) for i in range(3)
    )


def scheme_of(shape: Shape, batch: Batch, index: int = 0) -> Scheme:
    """One member of a batch as a balanced scheme over R."""
    return Scheme(shape, "R", *(f[index] for f in balance(batch)))


def random_batch(shape: Shape, rank: int, size: int, rng: np.random.Generator, scale: float = 0.7) -> Batch:
    """``size`` starts with independent N(0, scale^2) entries."""
    m, k, n = shape
    return tuple(scale * rng.standard_normal((size, rank, i)) for i in (m * k, k * n, m * n))  # type: ignore[return-value]


def balance(batch: Batch) -> Batch:
    """The same products with |u_q| = |v_q| = |w_q|; terms with a zero factor become zero."""
    norms = [np.linalg.norm(f, axis=2) for f in batch]
    size = np.cbrt(norms[0]) * np.cbrt(norms[1]) * np.cbrt(norms[2])
    return tuple(f * (size / np.where(x > 0, x, 1.0))[:, :, None] for f, x in zip(batch, norms, strict=True))


def residual_tensor(shape: Shape, batch: Batch) -> Floats:
    """T - sum_q u_q (x) v_q (x) w_q: (b, m*k, k*n, m*n), formed in full."""
    u, v, w = batch
    b, r, i = u.shape
    j = v.shape[2]
    pairs = (u[:, :, :, None] * v[:, :, None, :]).reshape(b, r, i * j)
    total: Floats = np.matmul(pairs.transpose(0, 2, 1), w).reshape(b, i, j, -1)
    return matmul_tensor(shape) - total


def objective(shape: Shape, batch: Batch, lam: float = 0.0) -> Floats:
    """F: (b,), by Gram matrices; absolute accuracy about 1e-14 * (mkn + |S|^2): use the residual itself near zero."""
    u, v, w = batch
    m, k, n = shape
    g = _gram(u) * _gram(v) * _gram(w)
    cross = (_contract_w(shape, u, v) * w).sum(axis=(1, 2))
    result: Floats = m * k * n - 2 * cross + g.sum(axis=(1, 2)) + lam * np.trace(g, axis1=1, axis2=2)
    return result


def als(shape: Shape, batch: Batch, lam: float = 0.0, sweeps: int = 100, ridge: float = 0.0) -> Batch:
    """``sweeps`` rounds of exact least squares in u, then v, then w; ``ridge`` adds ridge * |factor|^2 to each solve.

    F never rises when ridge is 0. With G_u = (v v^T) * (w w^T), u solves (G_u + lam diag G_u) u = T(v, w).
    """
    u, v, w = batch
    for _ in range(sweeps):
        u = _solve(_damped(_gram(v) * _gram(w), lam), _contract_u(shape, v, w), ridge)
        v = _solve(_damped(_gram(u) * _gram(w), lam), _contract_v(shape, u, w), ridge)
        w = _solve(_damped(_gram(u) * _gram(v), lam), _contract_w(shape, u, v), ridge)
    return u, v, w


def refine(
    shape: Shape,
    batch: Batch,
    lam: float = 0.0,
    iterations: int = 300,
    tolerance: float = 1e-9,
    memory: int = 5,
    span: Any = None,
) -> tuple[Batch, Floats]:
    """(refined batch, F): L-BFGS on F(u, v) = min_w F(u, v, w), all members in step, each with its own line search.

    Eliminating w is variable projection (Golub and Pereyra, 1973): one positive definite solve of size r gives w, and
    the gradient in (u, v) is the partial one at that w. A member stops when ten steps gained less than ``tolerance``
    relative; F never rises.

    ``span`` (sparse, orthonormal columns) keeps a batch that lies in its column space there. With r(mk + kn) rows it
    limits (u, v), and w is eliminated as before; with r(mk + kn + mn) rows it limits (u, v, w), and none is.
    """
    b, r, i = batch[0].shape
    cut, len_v = r * i, batch[1].shape[2]
    x = np.concatenate([f.reshape(b, -1) for f in batch], axis=1)
    whole = span is not None and span.shape[0] == x.shape[1]
    x = x if whole else x[:, : cut + r * len_v]
    back = None if span is None else span.T.tocsr()

    def full(x: Floats) -> Floats:
        return x if span is None else np.ascontiguousarray((span @ x.T).T)

    def evaluate(x: Floats) -> tuple[Floats, Floats, Floats]:
        z = full(x)
        f, grad, w = (_unprojected if whole else _projected)(shape, z, r, lam)
        return f, grad if back is None else np.ascontiguousarray((back @ grad.T).T), w

    x = x if back is None else np.ascontiguousarray((back @ x.T).T)
    f, grad, w = evaluate(x)
    s_hist: list[Floats] = []
    y_hist: list[Floats] = []
    rho_hist: list[Floats] = []
    active = np.arange(b)
    x_all, f_all, w_all = x.copy(), f.copy(), w.copy()
    mark = f.copy()
    for iteration in range(iterations):
        direction = _two_loop(grad, s_hist, y_hist, rho_hist)
        slope = (grad * direction).sum(axis=1)
        bad = slope >= 0
        if bad.any():
            direction[bad] = -grad[bad]
            slope[bad] = -(grad[bad] ** 2).sum(axis=1)
        step = np.ones(len(x))
        if not s_hist:
            step = 0.1 * np.linalg.norm(x, axis=1) / (np.linalg.norm(direction, axis=1) + 1e-300)
        new_x, new_f, new_grad, new_w = x.copy(), f.copy(), grad.copy(), w.copy()
        todo = np.arange(len(x))
        for _ in range(12):
            trial = x[todo] + step[todo, None] * direction[todo]
            tf, tg, tw = evaluate(trial)
            good = tf <= f[todo] + 1e-4 * step[todo] * slope[todo]
            done = todo[good]
            new_x[done], new_f[done], new_grad[done], new_w[done] = trial[good], tf[good], tg[good], tw[good]
            todo = todo[~good]
            if not len(todo):
                break
            # quadratic interpolation, kept within [0.1, 0.5]
            rise = tf[~good] - f[todo] - step[todo] * slope[todo]
            factor = np.clip(-slope[todo] * step[todo] / (2 * np.where(rise > 0, rise, 1.0)), 0.1, 0.5)
            step[todo] *= np.where(np.isfinite(factor), factor, 0.1)
        s, y = new_x - x, new_grad - grad
        sy = (s * y).sum(axis=1)
        usable = sy > 1e-12 * np.sqrt((s * s).sum(axis=1) * (y * y).sum(axis=1))
        s_hist.append(s)
        y_hist.append(y)
        rho_hist.append(np.where(usable, 1 / np.where(usable, sy, 1.0), 0.0))  # rho = 0 leaves the pair out
        if len(s_hist) > memory:
            del s_hist[0], y_hist[0], rho_hist[0]
        x, f, grad, w = new_x, new_f, new_grad, new_w
        x_all[active], f_all[active], w_all[active] = x, f, w
        if iteration % 10 == 9:
            alive = mark[active] - f > tolerance * np.abs(f) + 1e-15
            mark[active] = f
            if not alive.any():
                break
            if not alive.all():
                active = active[alive]
                x, f, grad, w = x[alive], f[alive], grad[alive], w[alive]
                s_hist = [h[alive] for h in s_hist]
                y_hist = [h[alive] for h in y_hist]
                rho_hist = [h[alive] for h in rho_hist]
    z = full(x_all)
    return (z[:, :cut].reshape(b, r, i), z[:, cut : cut + r * len_v].reshape(b, r, len_v), w_all), f_all


def eliminated(shape: Shape, u: Floats, v: Floats, lam: float = 0.0, w: Floats | None = None) -> tuple[Floats, Floats]:
    """(w, F) of a batch: the w (b, r, mn) that is best for u and v; with ``w`` given, its rows scaled for the best."""
    m, k, n = shape
    g, products = _gram(u) * _gram(v), _contract_w(shape, u, v)
    if w is None:
        best = _solve(_damped(g, lam), products)
        return best, m * k * n - (products * best).sum(axis=(1, 2))
    right = (products * w).sum(axis=2)
    scales = _solve(_damped(g * _gram(w), lam), right[:, :, None])[:, :, 0]
    return scales[:, :, None] * w, m * k * n - (right * scales).sum(axis=1)


def levenberg_marquardt(
    shape: Shape,
    batch: Batch,
    lam: float = 0.0,
    iterations: int = 250,
    damping: float = 1.0,
    ridge: Callable[[int], float] | None = None,
    goal: float = 0.0,
    tolerance: float = 1e-12,
    free: npt.NDArray[np.bool_] | None = None,
    span: Any = None,
    stop: Callable[[], bool] | None = None,
    single: bool = False,
) -> tuple[Batch, Floats]:
    """(batch, F) after damped Gauss-Newton on all of (u, v, w), with ``ridge(i) * |(u, v, w)|^2`` added at step i.

    J^T J comes from Gram blocks, and lam multiplies its diagonal (q = q) blocks by 1 + lam, since the penalty is the
    squared norm of the terms themselves. A member ends when F <= goal or when a step without ridge gains less than
    ``tolerance`` relative. ``free`` (flat, over u then v then w) limits the step to some of the variables,
    ``span`` (a sparse (N, P) matrix) to its column space, in which the start must lie;
    ``stop`` is asked before each step whether to end early. ``single`` solves for steps in float32, at half the time;
    F and what the gradient is summed in stay float64, so that it slows near-singular problems and moves no optimum.
    """
    members: list[Batch] = [(batch[0][i], batch[1][i], batch[2][i]) for i in range(len(batch[0]))]
    out = [
        _lm_single(shape, member, lam, iterations, damping, ridge, goal, tolerance, free, span, stop, single)
        for member in members
    ]
    stacked: Batch = tuple(np.stack([x[0][j] for x in out]) for j in range(3))  # type: ignore[assignment]
    return stacked, np.array([x[1] for x in out])


def _lm_single(
    shape: Shape,
    factors: Batch,
    lam: float,
    iterations: int,
    mu: float,
    ridge: Callable[[int], float] | None,
    goal: float,
    tolerance: float,
    free: npt.NDArray[np.bool_] | None,
    span: Any,
    stop: Callable[[], bool] | None,
    single: bool,
) -> tuple[Batch, float]:
    r = len(factors[0])
    sizes = [f.shape[1] for f in factors]
    cuts = np.cumsum([r * s for s in sizes])[:-1]
    index = np.flatnonzero(free) if free is not None else None

    def split(x: Floats) -> Batch:
        return tuple(p.reshape(r, s) for p, s in zip(np.split(x, cuts), sizes, strict=True))  # type: ignore[return-value]

    def normal(x: Floats, rho: float) -> tuple[Floats, Floats]:
        hessian, gradient = normal_equations(shape, split(x), lam)
        gradient += rho * x
        if index is not None:
            return hessian[np.ix_(index, index)], gradient[index]
        if span is not None:
            return (span.T @ (span.T @ hessian).T), span.T @ gradient
        return hessian, gradient

    def moved(x: Floats, step: Floats) -> Floats:
        y = x.copy()
        if index is not None:
            y[index] -= step
        else:
            y -= step if span is None else span @ step
        return y

    start = np.concatenate([f.ravel() for f in factors])
    x, value = damped_gauss_newton(
        start,
        lambda x: _accurate(shape, split(x), lam),
        normal,
        moved,
        iterations,
        mu,
        ridge,
        goal,
        tolerance,
        stop,
        single,
    )
    return split(x), value


def damped_gauss_newton(
    x: Floats,
    measure: Callable[[Floats], float],
    normal: Callable[[Floats, float], tuple[Floats, Floats]],
    moved: Callable[[Floats, Floats], Floats] | None = None,
    iterations: int = 250,
    mu: float = 1.0,
    ridge: Callable[[int], float] | None = None,
    goal: float = 0.0,
    tolerance: float = 1e-12,
    stop: Callable[[], bool] | None = None,
    single: bool = False,
) -> tuple[Floats, float]:
    """(x, F): Levenberg-Marquardt on any parametrisation x of schemes, flat; see ``levenberg_marquardt``.

    ``measure(x)`` is F, ``normal(x, rho)`` are J^T J of F and half the gradient of F + rho |x|^2, and
    ``moved(x, step)`` is x after a step, x - step by default.
    """
    value = measure(x)
    step_number = 0
    while step_number < iterations and value > goal and not (stop and stop()):
        rho = ridge(step_number) if ridge else 0.0
        hessian, gradient = normal(x, rho)
        if single:
            hessian, gradient = hessian.astype(np.float32), gradient.astype(np.float32)
        diagonal = np.arange(len(gradient))
        before = value + rho * float(x @ x)
        accepted = False
        while step_number < iterations:
            step_number += 1
            damped = hessian.copy()
            damped[diagonal, diagonal] += mu + rho
            try:
                c = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
                step = scipy.linalg.cho_solve(c, gradient, check_finite=False)
            except scipy.linalg.LinAlgError:
                mu = max(3 * mu, 1e-6 if single else 1e-12)
                continue
            y = x - step if moved is None else moved(x, step)
            new = measure(y)
            if new + rho * float(y @ y) < before:
                accepted = True
                mu = max(mu / 3, 1e-15)
                break
            mu *= 3
            if mu > 1e12:
                break
        if not accepted:
            break
        gain = value - new
        x, value = y, new
        if rho == 0 and gain < tolerance * abs(value):
            break
    return x, value


def drop_costs(batch: Batch, lam: float = 0.0) -> Floats:
    """(b, r): by how much F rises when term q is dropped and w refitted: |w_q|^2 / (G^-1)_qq.

    G = (u u^T) * (v v^T) with its diagonal times 1 + lam.
    Exact when w is the least-squares decoder of (u, v).
    """
    u, v, w = batch
    g = _damped(_gram(u) * _gram(v), lam)
    inverse = np.linalg.inv(_jittered(g, 0.0))
    result: Floats = (w * w).sum(axis=2) / np.diagonal(inverse, axis1=1, axis2=2)
    return result


def best_residual_term(residual: Floats, rng: np.random.Generator, starts: int = 4, sweeps: int = 15) -> Batch:
    """The best rank-one term found by power iteration on one residual tensor (I, J, K): (1, I), (1, J), (1, K)."""
    i, j, k = residual.shape
    best: tuple[float, Any] = (-1.0, None)
    for _ in range(starts):
        b: Floats = rng.standard_normal((j,))
        c: Floats = rng.standard_normal((k,))
        size = 0.0
        for _ in range(sweeps):
            slab = (residual.reshape(i * j, k) @ c).reshape(i, j)
            a = slab @ b
            a /= np.linalg.norm(a) + 1e-300
            b = a @ slab
            b /= np.linalg.norm(b) + 1e-300
            c = np.kron(a, b) @ residual.reshape(i * j, k)
            size = float(np.linalg.norm(c))
            c /= size + 1e-300
        if size > best[0]:
            best = (size, (a, b, c))
    root = np.cbrt(best[0])
    return tuple(root * x[None] for x in best[1])


def _gram(f: Floats) -> Floats:
    gram: Floats = np.matmul(f, f.swapaxes(-1, -2))
    return gram


def _contract_w(shape: Shape, u: Floats, v: Floats) -> Floats:
    """T(u, v, .): (.., r, m*n) = the matrix products u_q v_q."""
    m, k, n = shape
    lead = u.shape[:-1]
    products: Floats = np.matmul(u.reshape(*lead, m, k), v.reshape(*lead, k, n))
    return products.reshape(*lead, m * n)


def _contract_u(shape: Shape, v: Floats, w: Floats) -> Floats:
    """T(., v, w): (.., r, m*k) = w_q v_q^T."""
    m, k, n = shape
    lead = v.shape[:-1]
    products: Floats = np.matmul(w.reshape(*lead, m, n), v.reshape(*lead, k, n).swapaxes(-1, -2))
    return products.reshape(*lead, m * k)


def _contract_v(shape: Shape, u: Floats, w: Floats) -> Floats:
    """T(u, ., w): (.., r, k*n) = u_q^T w_q."""
    m, k, n = shape
    lead = u.shape[:-1]
    products: Floats = np.matmul(u.reshape(*lead, m, k).swapaxes(-1, -2), w.reshape(*lead, m, n))
    return products.reshape(*lead, k * n)


def _damped(g: Floats, lam: float) -> Floats:
    """g with its diagonal multiplied by 1 + lam, in place."""
    d = np.arange(g.shape[-1])
    g[..., d, d] *= 1 + lam
    return g


def _jittered(g: Floats, ridge: float) -> Floats:
    d = np.arange(g.shape[-1])
    diagonal = g[..., d, d]
    g[..., d, d] = diagonal + (_JITTER * diagonal.sum(axis=-1, keepdims=True) / max(1, len(d)) + (ridge + 1e-300))
    return g


def _solve(g: Floats, rhs: Floats, ridge: float = 0.0) -> Floats:
    result: Floats = np.linalg.solve(_jittered(g, ridge), rhs)
    return result


def _projected(shape: Shape, x: Floats, r: int, lam: float) -> tuple[Floats, Floats, Floats]:
    """(F, gradient, w) at x = (u, v) flat, w eliminated."""
    m, k, n = shape
    b = len(x)
    cut = r * m * k
    u, v = x[:, :cut].reshape(b, r, m * k), x[:, cut:].reshape(b, r, k * n)
    gu, gv = _gram(u), _gram(v)
    products = _contract_w(shape, u, v)
    w = _solve(_damped(gu * gv, lam), products)
    gw = _damped(_gram(w), lam)
    f: Floats = m * k * n - (products * w).sum(axis=(1, 2))
    du = np.matmul(gv * gw, u) - _contract_u(shape, v, w)
    dv = np.matmul(gu * gw, v) - _contract_v(shape, u, w)
    return f, 2 * np.concatenate([du.reshape(b, -1), dv.reshape(b, -1)], axis=1), w


def _unprojected(shape: Shape, x: Floats, r: int, lam: float) -> tuple[Floats, Floats, Floats]:
    """(F, gradient, w) at x = (u, v, w) flat."""
    m, k, n = shape
    b = len(x)
    u, v, w = (p.reshape(b, r, -1) for p in np.split(x, [r * m * k, r * (m * k + k * n)], axis=1))
    gu, gv, gw = _gram(u), _gram(v), _damped(_gram(w), lam)
    products = _contract_w(shape, u, v)
    f: Floats = m * k * n - 2 * (products * w).sum(axis=(1, 2)) + (gu * gv * gw).sum(axis=(1, 2))
    du = np.matmul(gv * gw, u) - _contract_u(shape, v, w)
    dv = np.matmul(gu * gw, v) - _contract_v(shape, u, w)
    dw = np.matmul(_damped(gu * gv, lam), w) - products
    return f, 2 * np.concatenate([d.reshape(b, -1) for d in (du, dv, dw)], axis=1), w


def _two_loop(grad: Floats, s: list[Floats], y: list[Floats], rho: list[Floats]) -> Floats:
    """-H grad for every member (Nocedal and Wright, algorithm 7.4); pairs with rho = 0 are skipped."""
    q = grad.copy()
    alphas = []
    for si, yi, ri in zip(reversed(s), reversed(y), reversed(rho), strict=True):
        alpha = ri * np.einsum("bi,bi->b", si, q)
        q -= alpha[:, None] * yi
        alphas.append(alpha)
    if s:
        yy = np.einsum("bi,bi->b", y[-1], y[-1])
        q *= np.where(rho[-1] > 0, 1 / np.maximum(rho[-1] * yy, 1e-300), 1.0)[:, None]
    for si, yi, ri, alpha in zip(s, y, rho, reversed(alphas), strict=True):
        beta = ri * np.einsum("bi,bi->b", yi, q)
        q += (alpha - beta)[:, None] * si
    return -q


def _accurate(shape: Shape, factors: Batch, lam: float) -> float:
    """F of one member from the residual itself: relative accuracy also near zero."""
    gap = residual_tensor(shape, tuple(f[None] for f in factors))  # type: ignore[arg-type]
    norms = [(f * f).sum(axis=1) for f in factors]
    return float((gap * gap).sum()) + lam * float((norms[0] * norms[1] * norms[2]).sum())


def normal_equations(shape: Shape, factors: Batch, lam: float) -> tuple[Floats, Floats]:
    """J^T J (N, N) and J^T residual (N,) of one member, N = r(mk + kn + mn), variables u, v, w flat in turn."""
    u, v, w = factors
    r = len(u)
    gu, gv, gw = _gram(u), _gram(v), _gram(w)
    weight = _damped(np.ones((r, r)), lam)
    sizes = [f.shape[1] for f in factors]
    ends = np.cumsum([0] + [r * s for s in sizes])
    hessian = np.zeros((ends[-1], ends[-1]))
    diagonal = (gv * gw * weight, gu * gw * weight, gu * gv * weight)
    for block, (start, size) in zip(diagonal, zip(ends[:-1], sizes, strict=True), strict=True):
        view = hessian[start : start + r * size, start : start + r * size].reshape(r, size, r, size)
        i = np.arange(size)
        view[:, i, :, i] = block[None]
    # d/du_q[i] d/dv_p[j]: <w_q, w_p> u_p[i] v_q[j], and likewise for the other pairs
    for x, y, gram in ((0, 1, gw), (0, 2, gv), (1, 2, gu)):
        fx, fy = factors[x], factors[y]
        block = (gram * weight)[:, None, :, None] * fx.T[None, :, :, None] * fy[:, None, None, :]
        block = block.reshape(r * sizes[x], r * sizes[y])
        hessian[ends[x] : ends[x + 1], ends[y] : ends[y + 1]] = block
        hessian[ends[y] : ends[y + 1], ends[x] : ends[x + 1]] = block.T
    gradient = np.concatenate(
        [
            (diagonal[0] @ u - _contract_u(shape, v, w)).ravel(),
            (diagonal[1] @ v - _contract_v(shape, u, w)).ravel(),
            (diagonal[2] @ w - _contract_w(shape, u, v)).ravel(),
        ]
    )
    return hessian, gradient
