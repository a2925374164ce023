"""Levenberg-Marquardt on the representatives of orbits alone: the normal equations of invariant schemes, not projected.

With a group of order g there are g times fewer unknowns and g^2 times smaller normal matrices than for the whole
scheme. By invariance the rows of J^T J that belong to a representative tell those of its whole orbit, so that only they
are formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stl_search import decompose
from stl_search.decompose import Batch, Floats
from stl_search.scheme import Shape, matmul_tensor
from stl_search.search.invariant import Orbits
from stl_search.search.symmetry import OrbitType

__all__ = ["Representatives"]


class Representatives:
    """Invariant schemes of <m,k,n> with given orbit types, one flat vector x: the coordinates of one term an orbit.

    ``F(x) = |T - S|^2 + lam sum_q |u_q|^2 |v_q|^2 |w_q|^2`` over the terms of all orbits, T the matmul tensor.
    """

    def __init__(self, shape: Shape, kinds: Sequence[OrbitType]) -> None:
        self.shape = shape
        self.kinds = tuple(sorted(kinds, key=lambda kind: kind.key))
        m, k, n = shape
        self._sides = (m * k, k * n, m * n)
        self._tensor = matmul_tensor(shape).astype(float)
        self._blocks: list[_Block] = []
        x = term = 0
        for kind in dict.fromkeys(self.kinds):
            count = self.kinds.count(kind)
            self._blocks.append(_Block(kind, count, x, term))
            x += count * kind.basis.shape[1]
            term += count * kind.size
        self.size = x  # unknowns
        self.rank = term
        self._first = np.concatenate(
            [b.term + b.kind.size * np.arange(b.count) for b in self._blocks] or [np.zeros(0, dtype=int)]
        )

    def orbits(self, x: Floats) -> Orbits:
        """The same scheme as a list of orbits, in the order of ``kinds``."""
        return Orbits(self.kinds, tuple(point for b in self._blocks for point in b.points(x)))

    def factors(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """(u (r, mk), v (r, kn), w (r, mn)): all terms, orbit by orbit."""
        whole = []
        for i in range(3):
            parts = [
                np.tensordot(b.points(x), b.kind.images[i], (1, 2)).reshape(b.count * b.kind.size, -1)
                for b in self._blocks
            ]
            whole.append(np.concatenate(parts))
        return whole[0], whole[1], whole[2]

    def batch(self, x: Floats) -> Batch:
        """The factors as a batch of one."""
        u, v, w = self.factors(x)
        return u[None], v[None], w[None]

    def measure(self, x: Floats, lam: float) -> float:
        """F, from the residual itself: relative accuracy also near zero."""
        u, v, w = self.factors(x)
        pairs = (v[:, :, None] * w[:, None, :]).reshape(self.rank, -1)
        gap = self._tensor.reshape(self._sides[0], -1) - u.T @ pairs
        norms = [(f * f).sum(axis=1) for f in (u, v, w)]
        return float(np.vdot(gap, gap)) + lam * float((norms[0] * norms[1] * norms[2]).sum())

    def normal(self, x: Floats, lam: float, rho: float = 0.0) -> tuple[Floats, Floats]:
        """(J^T J (P, P), half the gradient of F + rho |x|^2 (P,)), P = ``size``."""
        whole = self.factors(x)
        first = self._first
        heads = [f[first] for f in whole]
        grams = [h @ f.T for h, f in zip(heads, whole, strict=True)]
        weight = np.ones((len(first), self.rank))
        weight[np.arange(len(first)), first] += lam
        pairs = [grams[1] * grams[2] * weight, grams[0] * grams[2] * weight, grams[0] * grams[1] * weight]
        singles = [g * weight for g in grams]
        hessian = np.empty((self.size, self.size))
        ends = np.cumsum([0, *self._sides])
        for b in self._blocks:
            images = b.kind.images
            shape = (len(first), b.count, b.kind.size)
            columns = slice(b.term, b.term + b.count * b.kind.size)
            # along[i][p, g]: factor i of representative p against the image g of a coordinate
            along = [np.tensordot(h, image, (1, 1)) for h, image in zip(heads, images, strict=True)]
            rows = np.empty((len(first), b.count, ends[-1], b.width))
            for i, (j, h) in enumerate(((1, 2), (0, 2), (0, 1))):
                block = rows[:, :, ends[i] : ends[i + 1]]
                np.copyto(block, np.tensordot(pairs[i][:, columns].reshape(shape), images[i], (2, 0)))
                # d/dx_p d/dy_q: the third factor's Gram entry, x_q and y_p
                cross = singles[h][:, columns].reshape(shape)[..., None] * along[j][:, None]
                cross += singles[j][:, columns].reshape(shape)[..., None] * along[h][:, None]
                terms = whole[i][columns].reshape(b.count, b.kind.size, -1).transpose(0, 2, 1)
                block += np.matmul(terms[None], cross)
            at = 0
            for own in self._blocks:
                part = rows[at : at + own.count]
                if not own.plain:
                    part = np.matmul(own.kind.basis.T, part)
                place = hessian[own.x : own.x + own.count * own.width, b.x : b.x + b.count * b.width]
                view = place.reshape(own.count, own.width, b.count, b.width)
                np.multiply(part.transpose(0, 2, 1, 3), own.kind.size, out=view)
                at += own.count
        m, k, n = self.shape
        a, c, e = heads[0].reshape(-1, m, k), heads[1].reshape(-1, k, n), heads[2].reshape(-1, m, n)
        towards = [e @ c.transpose(0, 2, 1), a.transpose(0, 2, 1) @ e, a @ c]
        flat = np.concatenate(
            [p @ f - t.reshape(len(first), -1) for p, f, t in zip(pairs, whole, towards, strict=True)], axis=1
        )
        gradient = np.empty(self.size)
        at = 0
        for own in self._blocks:
            mine = flat[at : at + own.count] @ own.kind.basis
            gradient[own.x : own.x + own.count * own.width] = own.kind.size * mine.ravel()
            at += own.count
        return hessian, gradient + rho * x

    def solved(
        self,
        x: Floats,
        lam: float,
        iterations: int,
        damping: float = 1.0,
        ridge: Callable[[int], float] | None = None,
        goal: float = 0.0,
        tolerance: float = 1e-12,
        stop: Callable[[], bool] | None = None,
    ) -> tuple[Floats, float]:
        """(x, F) after Levenberg-Marquardt; the options are those of ``decompose.levenberg_marquardt``."""
        return decompose.damped_gauss_newton(
            x,
            lambda y: self.measure(y, lam),
            lambda y, rho: self.normal(y, lam, rho),
            iterations=iterations,
            mu=damping,
            ridge=ridge,
            goal=goal,
            tolerance=tolerance,
            stop=stop,
        )


class _Block:
    """The orbits of one type: ``count`` of them, from unknown ``x`` and term ``term`` on."""

    def __init__(self, kind: OrbitType, count: int, x: int, term: int) -> None:
        self.kind, self.count, self.x, self.term = kind, count, x, term
        self.width = kind.basis.shape[1]
        self.plain = kind.basis.shape[0] == self.width and bool((kind.basis == np.eye(self.width)).all())

    def points(self, x: Floats) -> Floats:
        """(count, width): the coordinates of the representatives."""
        return x[self.x : self.x + self.count * self.width].reshape(self.count, self.width)
