"""Approximate schemes that a group leaves invariant, as lists of orbits: recognised, refined, and taken apart.

An invariant scheme is a list of orbit types and the coordinates of a representative of each one; ``symmetry.span``
carries the coordinates to the factors of all terms, orbit by orbit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from stl_search import decompose
from stl_search.decompose import Batch, Floats
from stl_search.scheme import Scheme, matmul_tensor
from stl_search.search.symmetry import Action, OrbitType, orbit_types, span

__all__ = ["Orbits", "added", "drop_costs", "expanded", "frame", "recognised", "shaken"]

_SAME = 1e-6  # relative distance below which two terms count as equal


@dataclass(frozen=True)
class Orbits:
    """An invariant scheme: orbit types, and the coordinates of each representative in the basis of its type."""

    kinds: tuple[OrbitType, ...]
    points: tuple[Floats, ...]

    @property
    def rank(self) -> int:
        """The number of terms."""
        return sum(kind.size for kind in self.kinds)

    def without(self, orbit: int) -> Orbits:
        """The scheme without one orbit."""
        keep = [i for i in range(len(self.kinds)) if i != orbit]
        return Orbits(tuple(self.kinds[i] for i in keep), tuple(self.points[i] for i in keep))


def expanded(schemes: Sequence[Orbits]) -> Batch:
    """(u (b, r, mk), v (b, r, kn), w (b, r, mn)): schemes of the same orbit types in full."""
    factors = []
    for i in range(3):
        parts = [
            np.einsum("qid,bd->bqi", kind.images[i], np.stack([s.points[o] for s in schemes]))
            for o, kind in enumerate(schemes[0].kinds)
        ]
        factors.append(np.concatenate(parts, axis=1))
    return factors[0], factors[1], factors[2]


def frame(group: Action, kinds: Sequence[OrbitType]) -> Any:
    """The ``span`` for ``decompose.refine``: orthonormal columns, of (u, v) alone where every element keeps w apart."""
    m, k, n = group.shape
    whole = span(group, list(kinds))
    if all(element.slots[2] == 2 for element in group.elements):
        whole = whole[: sum(kind.size for kind in kinds) * (m * k + k * n)]
    lengths = np.sqrt(np.asarray(whole.multiply(whole).sum(axis=0)).ravel())
    used = np.flatnonzero(lengths > 0.5)  # columns are no shorter than 1, or 0 where they belong to w
    return (whole[:, used] @ scipy.sparse.diags(1 / lengths[used])).tocsr()


def shaken(scheme: Orbits, noise: float, rng: np.random.Generator) -> Orbits:
    """Independent normal noise on the coordinates, ``noise`` times their root mean square."""
    size = noise * np.sqrt(np.mean(np.concatenate(scheme.points) ** 2))
    return Orbits(scheme.kinds, tuple(x + size * rng.standard_normal(x.shape) for x in scheme.points))


def recognised(group: Action, scheme: Scheme) -> Orbits | None:
    """The orbits of a real scheme, or None where the group does not permute its terms."""
    r = scheme.rank
    factors = decompose.balance(decompose.batch_of([scheme]))
    u, v, w = (f[0] for f in factors)
    norms = (u * u).sum(axis=1) * (v * v).sum(axis=1) * (w * w).sum(axis=1)
    if not norms.all():
        return None
    label = np.arange(r)
    for element in group.elements[1:]:
        inner = np.ones((r, r))
        for x, s, matrix in zip((u, v, w), element.slots, element.maps, strict=True):
            inner *= x @ ((u, v, w)[s] @ matrix.T).T
        inner /= np.sqrt(np.outer(norms, norms))
        image = inner.argmax(axis=0)  # term q goes to term image[q]
        if len(set(image.tolist())) < r or (inner[image, np.arange(r)] < 1 - _SAME).any():
            return None
        label = np.minimum(label, image)
    kinds: list[OrbitType] = []
    points: list[Floats] = []
    for first in sorted(set(label.tolist())):
        members = np.flatnonzero(label == first)
        found = _placed(group, [np.concatenate([x[q] for x in (u, v, w)]) for q in members])
        if found is None:
            return None
        kinds.append(found[0])
        points.append(found[1])
    order = sorted(range(len(kinds)), key=lambda i: kinds[i].key)
    return Orbits(tuple(kinds[i] for i in order), tuple(points[i] for i in order))


def _placed(group: Action, terms: list[Floats]) -> tuple[OrbitType, Floats] | None:
    """The type of an orbit of balanced terms (flat u, v, w), and the coordinates of a representative among them."""
    m, k, n = group.shape
    lengths = (m * k, k * n, m * n)
    for kind in orbit_types(group):
        if kind.size != len(terms):
            continue
        for term, signs in itertools.product(terms, ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))):
            turned = term * np.repeat(signs, lengths)
            point = kind.basis.T @ turned
            if np.linalg.norm(kind.basis @ point - turned) < _SAME * np.linalg.norm(turned):
                return kind, point
    return None


def drop_costs(scheme: Orbits, lam: float) -> Floats:
    """(orbits,): about how much F rises when an orbit is left out and the rest refitted: the sum over its terms."""
    costs = decompose.drop_costs(expanded([scheme]), lam)[0]
    starts = np.cumsum([0, *(kind.size for kind in scheme.kinds)])[:-1]
    sums: Floats = np.add.reduceat(costs, starts)
    return sums


def added(group: Action, scheme: Orbits, kinds: Sequence[OrbitType], rng: np.random.Generator) -> Orbits:
    """The scheme with one more orbit of each of these types, made from rank-one terms of what it leaves over."""
    for kind in kinds:
        gap = decompose.residual_tensor(group.shape, expanded([scheme]))[0] if scheme.kinds else None
        gap = matmul_tensor(group.shape) if gap is None else gap
        term = decompose.best_residual_term(gap, rng, starts=1, sweeps=6)
        point = kind.basis.T @ np.concatenate([f[0] for f in term])
        orbit = Orbits((kind,), (point,))
        u, v, w = (f[0] for f in expanded([orbit]))
        images = np.einsum("qi,qj,qk->ijk", u, v, w)
        best = float((images * gap).sum()) / (float((images * images).sum()) + 1e-300)
        place = next((i for i, other in enumerate(scheme.kinds) if other.key > kind.key), len(scheme.kinds))
        scheme = Orbits(
            (*scheme.kinds[:place], kind, *scheme.kinds[place:]),
            (*scheme.points[:place], np.cbrt(best) * point, *scheme.points[place:]),
        )
    return scheme
