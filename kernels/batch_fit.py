"""Thousands of least-squares fits in step on one device: the batched solvers of ``stl_search.decompose``, in torch.

Objective, shapes and steps are those of that module, whose numpy forms are the oracles: u (b, r, m*k), v (b, r, k*n),
w (b, r, m*n) in float64, F = |T - sum_q u_q (x) v_q (x) w_q|^2 + lam * sum_q |u_q|^2 |v_q|^2 |w_q|^2. Nothing is drawn
here, and all is done in one order: the same batch gives the same result on the same device. Sums run in another order
than numpy's, so that a fit may part from its oracle in the last digits, and after many steps by more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from stl_search.scheme import Shape

__all__ = ["Batch", "als", "refine", "taken"]

Tensor = torch.Tensor
Batch = tuple[Tensor, Tensor, Tensor]

_JITTER = 1e-13  # as in decompose: keeps normal matrices of parallel terms solvable


def taken(batch: Batch, index: Tensor) -> Batch:
    """The members of those numbers."""
    return batch[0][index], batch[1][index], batch[2][index]


def als(shape: Shape, batch: Batch, lam: float = 0.0, sweeps: int = 100, ridge: float = 0.0) -> Batch:
    """``sweeps`` rounds of exact least squares in u, then v, then w; as ``decompose.als``."""
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
    stop: Callable[[], bool] | None = None,
) -> tuple[Batch, Tensor]:
    """(refined batch, F): L-BFGS on (u, v) with w eliminated, each member with its own line search; F never rises.

    As ``decompose.refine``; ``stop`` is asked at every tenth step whether to end early.
    """
    b, r, i = batch[0].shape
    cut = r * i
    x = torch.cat([f.reshape(b, -1) for f in batch[:2]], dim=1)
    f, grad, w = _projected(shape, x, r, lam)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y and 1/<s, y>, or 0 where that is not positive
    active = torch.arange(b, device=x.device)
    x_all, f_all, w_all, mark = x.clone(), f.clone(), w.clone(), f.clone()
    for iteration in range(iterations):
        direction = _two_loop(grad, pairs)
        slope = (grad * direction).sum(1)
        uphill = slope >= 0
        direction = torch.where(uphill[:, None], -grad, direction)
        slope = torch.where(uphill, -(grad * grad).sum(1), slope)
        step = torch.ones_like(f)
        if not pairs:
            step = 0.1 * x.norm(dim=1) / (direction.norm(dim=1) + 1e-300)
        new_x, new_f, new_grad, new_w = x.clone(), f.clone(), grad.clone(), w.clone()
        todo = torch.arange(len(x), device=x.device)
        for _ in range(12):
            trial = x[todo] + step[todo, None] * direction[todo]
            tf, tg, tw = _projected(shape, trial, r, lam)
            good = tf <= f[todo] + 1e-4 * step[todo] * slope[todo]
            done = todo[good]
            new_x[done], new_f[done], new_grad[done], new_w[done] = trial[good], tf[good], tg[good], tw[good]
            todo = todo[~good]
            if not len(todo):
                break
            # quadratic interpolation, kept within [0.1, 0.5]
            rise = tf[~good] - f[todo] - step[todo] * slope[todo]
            factor = -slope[todo] * step[todo] / (2 * torch.where(rise > 0, rise, 1.0))
            step[todo] *= torch.nan_to_num(factor.clamp(0.1, 0.5), nan=0.1)
        s, y = new_x - x, new_grad - grad
        sy = (s * y).sum(1)
        usable = sy > 1e-12 * s.norm(dim=1) * y.norm(dim=1)
        pairs.append((s, y, torch.where(usable, 1 / torch.where(usable, sy, 1.0), 0.0)))
        del pairs[:-memory]
        x, f, grad, w = new_x, new_f, new_grad, new_w
        x_all[active], f_all[active], w_all[active] = x, f, w
        if iteration % 10 == 9:
            alive = mark[active] - f > tolerance * f.abs() + 1e-15
            mark[active] = f
            active = active[alive]
            if not len(active) or (stop is not None and stop()):
                break
            x, f, grad, w = x[alive], f[alive], grad[alive], w[alive]
            pairs = [(s[alive], y[alive], rho[alive]) for s, y, rho in pairs]
    return (x_all[:, :cut].reshape(b, r, i), x_all[:, cut:].reshape(b, r, -1), w_all), f_all


def _projected(shape: Shape, x: Tensor, r: int, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """(F, gradient, w) at x = (u, v) flat, w eliminated."""
    m, k, n = shape
    b, cut = len(x), r * m * k
    u, v = x[:, :cut].reshape(b, r, m * k), x[:, cut:].reshape(b, r, k * n)
    gu, gv = _gram(u), _gram(v)
    products = _contract_w(shape, u, v)
    w = _solve(_damped(gu * gv, lam), products)
    gw = _damped(_gram(w), lam)
    f = m * k * n - (products * w).sum((1, 2))
    du = (gv * gw) @ u - _contract_u(shape, v, w)
    dv = (gu * gw) @ v - _contract_v(shape, u, w)
    return f, 2 * torch.cat([du.reshape(b, -1), dv.reshape(b, -1)], dim=1), w


def _two_loop(grad: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """-H grad of every member (Nocedal and Wright, algorithm 7.4); pairs with rho = 0 are skipped."""
    q, alphas = grad.clone(), []
    for s, y, rho in reversed(pairs):
        alphas.append(rho * (s * q).sum(1))
        q -= alphas[-1][:, None] * y
    if pairs:
        _, y, rho = pairs[-1]
        curvature = (rho * (y * y).sum(1)).clamp(min=1e-300)
        q *= torch.where(rho > 0, 1 / curvature, 1.0)[:, None]
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - rho * (y * q).sum(1))[:, None] * s
    return -q


def _solve(g: Tensor, rhs: Tensor, ridge: float = 0.0) -> Tensor:
    """g^-1 rhs of every member by Cholesky; by elimination where rounding has made g indefinite."""
    d = g.diagonal(dim1=-2, dim2=-1)
    d += _JITTER * d.sum(-1, keepdim=True) / max(1, d.shape[-1]) + (ridge + 1e-300)
    root, info = torch.linalg.cholesky_ex(g)
    # two triangular solves are batched on every GPU; torch.cholesky_solve may go through the batch one by one there
    half = torch.linalg.solve_triangular(root, rhs, upper=False)
    found: Tensor = torch.linalg.solve_triangular(root.mT, half, upper=True)
    bad = info.nonzero()[:, 0]
    if len(bad):
        found[bad] = torch.linalg.solve_ex(g[bad], rhs[bad])[0]
    return found


def _damped(g: Tensor, lam: float) -> Tensor:
    """g with its diagonal multiplied by 1 + lam, in place."""
    g.diagonal(dim1=-2, dim2=-1).mul_(1 + lam)
    return g


def _gram(f: Tensor) -> Tensor:
    return f @ f.mT


def _cells(f: Tensor, rows: int, cols: int) -> Tensor:
    return f.reshape(*f.shape[:-1], rows, cols)


def _contract_w(shape: Shape, u: Tensor, v: Tensor) -> Tensor:
    """T(u, v, .): (b, r, m*n) = the matrix products u_q v_q."""
    m, k, n = shape
    return (_cells(u, m, k) @ _cells(v, k, n)).flatten(-2)


def _contract_u(shape: Shape, v: Tensor, w: Tensor) -> Tensor:
    """T(., v, w): (b, r, m*k) = w_q v_q^T."""
    m, k, n = shape
    return (_cells(w, m, n) @ _cells(v, k, n).mT).flatten(-2)


def _contract_v(shape: Shape, u: Tensor, w: Tensor) -> Tensor:
    """T(u, ., w): (b, r, k*n) = u_q^T w_q."""
    m, k, n = shape
    return (_cells(u, m, k).mT @ _cells(w, m, n)).flatten(-2)
