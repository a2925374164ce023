"""Entries of A and B placed in R[G] with real weights: fitted ones, and those that simultaneous triples give.

A placement sends a_ij to sum_g alpha[ij, g] g and b_jl to sum_g beta[jl, g] g; the product in R[G] is computed by a
``BilinearAlgorithm`` of rank r and C decoded from its r products. Maps into G are the placements with one weight 1 an
entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stl_search import groups
from stl_search.decompose import Floats
from stl_search.errors import UsageError
from stl_search.groups.group import GroupError
from stl_search.groups.tpp import FreeMaps, Triple, is_stpp
from stl_search.scheme import Scheme, Shape
from stl_search.search.group_algebra import BilinearAlgorithm, least_squares_decoder

__all__ = ["Placement", "fit_weights", "independent_products", "placed_scheme", "placement_of"]

_NOISE = 1e-9  # products smaller than this, relative to the largest, are rounding
_JITTER = 1e-12  # relative ridge: weights that nothing depends on stay finite


@dataclass(frozen=True, eq=False)
class Placement:
    """alpha (m*k, order) and beta (k*n, order): the elements of R[G] at which the entries of A and B stand."""

    group: groups.Group
    shape: Shape
    alpha: Floats
    beta: Floats

    def __post_init__(self) -> None:
        m, k, n = self.shape
        for name, value, rows in (("alpha", self.alpha, m * k), ("beta", self.beta, k * n)):
            if value.shape != (rows, self.group.order):
                raise GroupError(f"{name} has shape {value.shape}, must be ({rows}, {self.group.order})")


def placement_of(maps: FreeMaps) -> Placement:
    """alpha (m*k, order), beta (k*n, order): the maps with weight 1 for each entry."""
    eye = np.eye(maps.group.order)
    return Placement(maps.group, maps.shape, eye[maps.a.ravel()], eye[maps.b.ravel()])


def placed_scheme(algorithm: BilinearAlgorithm, placement: Placement, lam: float = 0.0) -> Scheme:
    """<m,k,n> over R: u = U alpha^T (r, m*k), v = V beta^T (r, k*n) without products that vanish, decoded by ``lam``.

    The decoder is the one of least E + lam kappa.
    """
    u, v, w = _products(algorithm, placement, lam)
    kept = w.any(axis=1)
    return Scheme(placement.shape, "R", u[kept], v[kept], w[kept])


def _products(algorithm: BilinearAlgorithm, placement: Placement, lam: float) -> tuple[Floats, Floats, Floats]:
    """u (r, m*k), v (r, k*n), w (r, m*n): a product that vanishes but for rounding gets no weight.

    The decoder would take its rounding noise for one more product.
    """
    u, v = algorithm.u @ placement.alpha.T, algorithm.v @ placement.beta.T
    sizes = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    kept = sizes > _NOISE * sizes.max(initial=0.0)
    w = np.zeros((len(u), placement.shape[0] * placement.shape[2]))
    w[kept] = least_squares_decoder(placement.shape, u[kept], v[kept], lam)
    return u, v, w


def fit_weights(
    algorithm: BilinearAlgorithm, placement: Placement, lam: float = 0.0, sweeps: int = 60, single: bool = False
) -> Placement:
    """A placement of less E + lam kappa under the best decoder, by alternating exact minimisation from ``placement``.

    With v and w fixed the entries of A decouple: a_ij wants the row x = alpha[ij] of least x G x^T - 2 x h_ij, where
    G = U^T ((v v^T) * (w w^T)) U and h = U^T (w_q v_q^T)_q, so that x = G^-1 h_ij; likewise B, and w is
    ``least_squares_decoder``. With ``single`` each entry keeps one element: the g of greatest h_g^2 / G_gg with the
    weight h_g / G_gg, again exact, which moves elements as well. The error never rises, but for rounding.

    Every result is a scheme of rank r whose encoders lie in the row spaces of U and V; for C2^k (r = 2^k, U a Hadamard
    matrix) that is no restriction at all, and for all other groups it is one: full weights cannot beat the best
    unconstrained scheme of rank r. Unit vectors alpha[ij] up to rotation are the spherical codes, and their Gram
    matrices the low-rank semidefinite form, of the problem that arXiv 2510.22193 starts (approximate triple
    products); the alternation was derived here and is not taken from there.
    """
    m, k, n = placement.shape
    for _ in range(sweeps):
        u, v, w = _products(algorithm, placement, lam)
        target = (w.reshape(-1, m, n) @ v.reshape(-1, k, n).transpose(0, 2, 1)).reshape(-1, m * k)
        placement = replace(placement, alpha=_weights(algorithm.u, v, w, target, lam, single))
        u, v, w = _products(algorithm, placement, lam)
        target = (u.reshape(-1, m, k).transpose(0, 2, 1) @ w.reshape(-1, m, n)).reshape(-1, k * n)
        placement = replace(placement, beta=_weights(algorithm.v, u, w, target, lam, single))
    return placement


def _weights(basis: Floats, other: Floats, w: Floats, target: Floats, lam: float, single: bool) -> Floats:
    """(entries, order): the rows x of least x G x^T - 2 x h, for G from ``basis`` (r, order), h from ``target``."""
    gram = (other @ other.T) * (w @ w.T)
    products = np.arange(len(gram))
    gram[products, products] *= 1 + lam
    inner = basis.T @ gram @ basis
    elements = np.arange(len(inner))
    inner[elements, elements] += _JITTER * np.trace(inner) / len(inner) + 1e-300
    h = basis.T @ target
    if not single:
        result: Floats = np.linalg.solve(inner, h).T
        return result
    diagonal = np.diagonal(inner)
    # rounded, so that equally good elements are not chosen among by the last bits
    at = np.argmax(np.round(h * h / diagonal[:, None], 9), axis=0)
    entries = np.arange(h.shape[1])
    result = np.zeros((h.shape[1], len(inner)))
    result[entries, at] = h[at, entries] / diagonal[at]
    return result


def independent_products(
    algorithm: BilinearAlgorithm, group: groups.Group, triples: Sequence[Triple], grid: Sequence[int]
) -> Scheme:
    """One matrix product out of simultaneous triples: <sum m_I, sum k_J, sum n_L> over R, exact, of the rank of R[G].

    R[G] computes the p products <|S_i|, |T_i|, |U_i|> independently of each other, and a block matrix product with
    ``grid`` = (M, K, N), MKN = p, blocks is made of p products C_IL += A_IJ B_JL: the triple at place (I, J, L), last
    index fastest, does that one. A block of A that is used N times stands at N places, and a block of C is the sum of
    what K triples give. Raises UsageError for triples that are not simultaneous or whose sizes do not fit the grid.

    >>> from stl_search.search.group_algebra import group_algorithm
    >>> group, triples = groups.puzzle_triples([(3, 1, 2), (1, 2, 3)], 3)
    >>> independent_products(group_algorithm(group), group, triples, (1, 2, 1)).name
    '2x4x2_r40_R'
    """
    if len(grid) != 3 or min(grid) < 1 or int(np.prod(grid)) != len(triples):
        raise UsageError(f"a grid of {tuple(grid)} blocks does not have one product for each of {len(triples)} triples")
    if not is_stpp(group, triples):
        raise UsageError(f"the triples do not have the simultaneous triple product property in {group!r}")
    sides: list[dict[int, int]] = [{}, {}, {}]
    for place, triple in zip(np.ndindex(*grid), triples, strict=True):
        for side, at, members in zip(sides, place, triple, strict=True):
            if side.setdefault(at, len(members)) != len(members):
                raise UsageError(f"sizes of the triples do not fit a grid of {tuple(grid)} blocks: {place} differs")
    cuts = [np.concatenate([[0], np.cumsum([side[x] for x in range(len(side))])]) for side in sides]
    m, k, n = (int(cut[-1]) for cut in cuts)
    order = group.order
    alpha, beta, gamma = (np.zeros((*x, order)) for x in ((m, k), (k, n), (m, n)))
    table, inverse = group.table, group.inverse
    for place, (s, t, u) in zip(np.ndindex(*grid), triples, strict=True):
        i, j, c = (cut[at] + np.arange(len(x)) for cut, at, x in zip(cuts, place, (s, t, u), strict=True))
        for out, rows, columns, left, right in ((alpha, i, j, s, t), (beta, j, c, t, u), (gamma, i, c, s, u)):
            where = table[np.ix_(inverse[np.array(left)], np.array(right))]
            out[rows[:, None], columns[None, :], where] = 1.0
    placement = Placement(group, (m, k, n), alpha.reshape(m * k, order), beta.reshape(k * n, order))
    u_, v_ = algorithm.u @ placement.alpha.T, algorithm.v @ placement.beta.T
    return Scheme((m, k, n), "R", u_, v_, algorithm.w @ gamma.reshape(m * n, order).T)
