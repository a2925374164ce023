"""Strategy ``group-algebra``: products in a real group algebra as schemes, by the Fourier transform of the group.

Entries of A and B are placed on group elements (``stl_search.groups.tpp``), the product in R[G] is computed block by
block after the Fourier transform (R[G] = sum of M_d(K), K = R, C or H), and C is read off, exactly or by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stl_search import decompose, groups, score
from stl_search.decompose import Floats
from stl_search.errors import SchemeError
from stl_search.groups.tpp import FreeMaps, anneal_free_maps, anneal_maps
from stl_search.scheme import Scheme, Shape
from stl_search.search.bounds import lower_bound
from stl_search.search.numeric import solve_exact
from stl_search.search.problem import Pool, Problem
from stl_search.search.strategy import Clock, register
from stl_search.transform import classical

__all__ = [
    "BilinearAlgorithm",
    "GroupAlgebra",
    "chosen_blocks",
    "collision_scheme",
    "direct_algorithm",
    "division_algorithm",
    "group_algorithm",
    "least_squares_decoder",
    "least_squares_scheme",
    "matrix_product",
    "real_rank",
    "reduced",
]

_EXACT = 1e-24  # E of a scheme in doubles that counts as exact: |T - S| near 1e-12 |T|, a few thousand roundings
_NULL = 1e-11  # eigenvalues of a Gram matrix below this, relative to the largest, are directions without products
_SAME = 1e-9  # terms whose normalised factors differ by less share a product
_ORDERS = 32  # groups of up to this order take part in the search
_BASES = 8  # tries of ``solve_exact`` for the product of small matrix blocks


@dataclass(frozen=True, eq=False)
class BilinearAlgorithm:
    """x * y = sum_q w[q] <u[q], x> <v[q], y> for an algebra of dimension n: u, v, w (r, n).

    ``blocks`` (r,) says which part of the algebra a product belongs to.
    """

    u: Floats
    v: Floats
    w: Floats
    blocks: groups.group.Ints

    @property
    def rank(self) -> int:
        """r, the number of products."""
        return len(self.u)

    def tensor(self) -> Floats:
        """(n, n, n): the structure constants that it computes."""
        result: Floats = np.einsum("qi,qj,qk->ijk", self.u, self.v, self.w)
        return result


@lru_cache(maxsize=8)
def division_algorithm(algebra: str) -> BilinearAlgorithm:
    """The product of R (rank 1), C (3) or H (8), derived from the structure constants; integer encoders.

    Each is a twisted group algebra of C_2^e: units e_a e_b = sigma(a, b) e_(a xor b) with sigma = +-1. The untwisted
    one takes 2^e products by the Walsh-Hadamard transform; every c_t is that times a sign, and one product 2 a_a b_b
    for each (a, b) whose sign differs. With the better sign for each t, one correction a unit is left for H and one in
    all for C. 3 and 8 are the least possible over R (de Groote, On the complexity of quaternion multiplication, 1975).

    >>> [division_algorithm(name).rank for name in "RCH"]
    [1, 3, 8]
    """
    constants = np.asarray(groups.division_algebra(algebra), dtype=np.float64)
    size = len(constants)
    units = np.arange(size)
    target = units[:, None] ^ units[None, :]
    sigma = np.take_along_axis(constants, target[:, :, None], axis=2)[:, :, 0]
    hadamard = np.array([[(-1.0) ** int(a & b).bit_count() for b in units] for a in units])
    u, v = [*hadamard], [*hadamard]
    w = [*(hadamard / size)]
    for t in units:
        signs = np.array([sigma[a, a ^ t] for a in units])
        main = 1.0 if (signs > 0).sum() * 2 >= size else -1.0
        for q in range(size):
            w[q] = np.where(units == t, main * w[q], w[q])
        for a in units[signs != main]:
            u.append(np.eye(size)[a])
            v.append(np.eye(size)[a ^ t])
            w.append(-2 * main * np.eye(size)[t])
    result = BilinearAlgorithm(np.array(u), np.array(v), np.array(w), groups.group.frozen(np.zeros(len(u))))
    if not np.array_equal(result.tensor(), constants):  # another basis of units than one of signs
        raise SchemeError(f"the units of {algebra} are not multiplied by signs alone")
    return result


@lru_cache(maxsize=8)
def _solved(size: int) -> Scheme:
    """<size,size,size> by ``solve_exact``, rank after rank down to the proved bound; size 2 only is quick enough."""
    best = classical((size, size, size))
    rng = np.random.default_rng(size)
    while best.rank > lower_bound((size, size, size), "ZT").rank:
        tries = (solve_exact(best.shape, best.rank - 1, "ZT", rng, Clock(None)) for _ in range(_BASES))
        better = next((found for found in tries if found is not None), None)
        if better is None:
            break
        best = better
    return best


def matrix_product(size: int, pool: Pool | None = None) -> Scheme:
    """The exact scheme of least rank for <d,d,d>: the pool's, for d = 2 one solved for here, else the classical one.

    >>> matrix_product(2).rank, matrix_product(3).rank
    (7, 27)
    """
    shape = (size, size, size)
    best = _solved(size) if size == 2 else classical(shape)
    for rank in pool.ranks(shape) if pool is not None else []:
        if rank >= best.rank:
            break
        for entry in pool.cell(shape, rank) if pool is not None else []:
            scheme = entry.scheme
            if not scheme.ring.characteristic and scheme.ring.name != "C" and score.expected_error(scheme) < _EXACT:
                return scheme
    return best


def group_algorithm(
    group: groups.Group, product_of: Callable[[int], Scheme] | None = None, blocks: Sequence[int] | None = None
) -> BilinearAlgorithm:
    """The product of R[G], G of order n, in its Wedderburn blocks: u, v, w (r, n); the convolution on coefficients.

    ``product_of(d)`` is the scheme for <d,d,d> (default ``matrix_product``); M_d(C) and M_d(H) are its Kronecker
    products with the 3 and 8 products of C and H. ``blocks`` keeps some of the blocks only: then the result is the
    part of the product that lies in them.

    >>> group_algorithm(groups.symmetric(3)).rank  # R + R + M2(R)
    9
    """
    product_of = product_of or matrix_product
    fourier = groups.fourier_transform(group)
    rows: list[list[Floats]] = [[], [], []]
    owner: list[int] = []
    for index, (irrep, where) in enumerate(zip(fourier.irreps, fourier.slices, strict=True)):
        if blocks is not None and index not in blocks:
            continue
        matrices = product_of(irrep.block.size).as_float()
        scalars = division_algorithm(irrep.block.algebra)
        bases = (fourier.matrix[where], fourier.matrix[where], fourier.inverse[:, where].T)
        rank = 0
        for out, f, g, base in zip(rows, matrices, (scalars.u, scalars.v, scalars.w), bases, strict=True):
            kron = np.einsum("pij,qa->pqija", f, g).reshape(len(f) * len(g), -1)  # coordinates: row, column, unit
            out.append(kron @ base)
            rank = len(kron)
        owner += [index] * rank
    u, v, w = (np.concatenate(x) if x else np.zeros((0, group.order)) for x in rows)
    return BilinearAlgorithm(u, v, w, groups.group.frozen(owner))


def chosen_blocks(
    group: groups.Group, rank: int, rng: np.random.Generator, product_of: Callable[[int], Scheme] | None = None
) -> list[int]:
    """Some of the Wedderburn blocks, in random order as long as their products stay within ``rank``; never none.

    A block alone above ``rank`` is taken only when no other fits.
    """
    product_of = product_of or matrix_product
    blocks = groups.wedderburn(group)
    costs = [product_of(b.size).rank * division_algorithm(b.algebra).rank for b in blocks]
    chosen: list[int] = []
    left = rank
    for index in rng.permutation(len(blocks)).tolist():
        if costs[index] <= left:
            chosen.append(index)
            left -= costs[index]
    return sorted(chosen) or [int(np.argmin(costs))]


def direct_algorithm(group: groups.Group) -> BilinearAlgorithm:
    """The product of R[G] by its definition, n^2 products e_g e_h: the oracle for ``group_algorithm``."""
    n = group.order
    g, h = np.divmod(np.arange(n * n), n)
    eye = np.eye(n)
    return BilinearAlgorithm(eye[g], eye[h], eye[group.table[g, h]], groups.group.frozen(np.zeros(n * n)))


def real_rank(group: groups.Group, rank_of: Callable[[int], int] | None = None) -> int:
    """An upper bound of the rank of R[G]: sum over its blocks M_d(K) of rank <d,d,d> times 1, 3 or 8.

    >>> real_rank(groups.symmetric(3)), real_rank(groups.quaternion()), real_rank(groups.elementary_abelian(2, 4))
    (9, 12, 16)
    """
    rank_of = rank_of or (lambda size: matrix_product(size).rank)
    return sum(rank_of(b.size) * division_algorithm(b.algebra).rank for b in groups.wedderburn(group))


def _encoders(algorithm: BilinearAlgorithm, maps: FreeMaps) -> tuple[Floats, Floats]:
    """u (r, m*k), v (r, k*n): the functionals of the algorithm on the entries of A and B."""
    return algorithm.u[:, maps.a.ravel()], algorithm.v[:, maps.b.ravel()]


def collision_scheme(algorithm: BilinearAlgorithm, maps: FreeMaps) -> Scheme:
    """<m,k,n> over R: C read from the coefficients of the product in R[G], with the least-squares weights n_il(g)/N(g).

    Its E is ``groups.collision_error(maps)``, whatever the algorithm; exact for maps with the triple product property,
    where every weight is 1.
    """
    m, k, n = maps.shape
    table = maps.group.table
    counts = np.maximum(groups.collisions(maps), 1)
    reader = np.zeros((maps.group.order, m * n))
    row, column = np.divmod(np.arange(m * n), n)
    for j in range(k):
        np.add.at(reader, (table[maps.a[row, j], maps.b[j, column]], np.arange(m * n)), 1.0)
    reader /= counts[:, None]
    u, v = _encoders(algorithm, maps)
    return Scheme(maps.shape, "R", u, v, algorithm.w @ reader)


def least_squares_decoder(shape: Shape, u: Floats, v: Floats, lam: float = 0.0) -> Floats:
    """w (r, m*n) of least E + lam kappa for encoders u (r, m*k), v (r, k*n): ((u u^T) o (v v^T)) w = (u_q v_q)_q.

    Of minimal norm where products depend on each other; ``lam`` = 2 d(dtype)^2 makes it the best at a precision.
    """
    m, k, n = shape
    r = len(u)
    scale = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    scale = np.where(scale > 0, scale, 1.0)
    gram = (u @ u.T) * (v @ v.T) / np.outer(scale, scale)
    gram[np.arange(r), np.arange(r)] *= 1 + lam
    products = (u.reshape(r, m, k) @ v.reshape(r, k, n)).reshape(r, m * n) / scale[:, None]
    values, vectors = np.linalg.eigh(gram)
    good = values > _NULL * values.max(initial=0.0)
    inverse = np.where(good, 1 / np.where(good, values, 1.0), 0.0)
    w: Floats = vectors @ (inverse[:, None] * (vectors.T @ products)) / scale[:, None]
    return w


def least_squares_scheme(algorithm: BilinearAlgorithm, maps: FreeMaps, lam: float = 0.0) -> Scheme:
    """<m,k,n> over R: the best decoder for the products of the algorithm; E is at most ``collision_error(maps)``.

    Products of one block are decoded separately here, so that E may be strictly less.
    """
    u, v = _encoders(algorithm, maps)
    u, v, _ = _distinct(u, v)
    return Scheme(maps.shape, "R", u, v, least_squares_decoder(maps.shape, u, v, lam))


def _distinct(u: Floats, v: Floats) -> tuple[Floats, Floats, list[int]]:
    """u, v without products that vanish or that repeat an earlier one up to scale, and which were kept."""
    keys: list[Floats] = []
    kept: list[int] = []
    for q in range(len(u)):
        size = float(np.linalg.norm(u[q]) * np.linalg.norm(v[q]))
        if size <= _SAME:
            continue
        key = np.outer(u[q], v[q]).ravel() / size
        if all(1 - abs(float(key @ other)) > _SAME for other in keys):
            keys.append(key)
            kept.append(q)
    return u[kept], v[kept], kept


def reduced(scheme: Scheme, rank: int | None = None, lam: float = 0.0) -> Scheme:
    """The same shape with fewer terms: zero terms dropped, parallel ones merged; to ``rank`` by the cheapest drops.

    Merging keeps what is computed. Terms beyond ``rank`` are dropped one by one, each time the one whose loss costs
    least after a least-squares fit of the decoder. Raises SchemeError over Z2 and C.
    """
    if scheme.ring.characteristic or scheme.ring.name == "C":
        raise SchemeError(f"reduction by least squares is for real schemes, not over {scheme.ring.name}")
    factors: list[Floats] = [f.reshape(scheme.rank, f.shape[1] * f.shape[2]) for f in scheme.as_float()]
    before = -1
    while before != len(factors[0]):
        before = len(factors[0])
        for left, right, rest in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
            factors = _merged(factors, left, right, rest)
    u, v, w = factors
    if rank is not None:
        while len(u) > max(rank, 1):
            w = least_squares_decoder(scheme.shape, u, v, lam)
            cost = decompose.drop_costs((u[None], v[None], w[None]), lam)[0]
            keep = np.arange(len(u)) != int(np.argmin(cost))
            u, v = u[keep], v[keep]
            w = least_squares_decoder(scheme.shape, u, v, lam)
    return Scheme(scheme.shape, "R", u, v, w)


def _merged(factors: list[Floats], left: int, right: int, rest: int) -> list[Floats]:
    """Terms with parallel ``left`` and ``right`` factors become one; zero terms go."""
    lines: list[tuple[Floats, Floats]] = []
    terms: list[list[Floats]] = []
    for q in range(len(factors[0])):
        a, b, c = factors[left][q], factors[right][q], factors[rest][q]
        na, nb = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        if min(na, nb, float(np.linalg.norm(c))) == 0.0 or na * nb * float(np.linalg.norm(c)) <= _SAME**2:
            continue
        for (x, y), term in zip(lines, terms, strict=True):
            p, s = float(x @ a) / na, float(y @ b) / nb
            if 1 - abs(p) < _SAME and 1 - abs(s) < _SAME:
                old = float(np.linalg.norm(term[left]) * np.linalg.norm(term[right]))
                term[rest] = term[rest] + c * (na * nb / old) * np.sign(p * s)
                break
        else:
            term = [a, a, a]
            term[left], term[right], term[rest] = a, b, c
            lines.append((a / na, b / nb))
            terms.append(term)
    if not terms:
        return [f[:0] for f in factors]
    return [np.array([term[i] for term in terms]) for i in range(3)]


@lru_cache(maxsize=1)
def _hosts() -> tuple[groups.Group, ...]:
    """The groups that the search places entries on: all of order 2 to 32."""
    return tuple(g for order in range(2, _ORDERS + 1) for g in groups.all_groups(order))


class GroupAlgebra:
    """Maps of the entries into a random group, annealed against collisions; then least squares, drops, refinement.

    Yields the scheme of the group algebra itself, at the rank that its products leave or at the asked one, and what
    ``decompose.refine`` makes of it. Host groups alone do not beat the frontier at small tiles (Cohn and Umans's
    method is exact from order 6 on, at a higher rank); what they give are starts in basins of their own.
    """

    name = "group-algebra"

    def weight(self, problem: Problem, pool: Pool) -> float:
        return 0.1 if not problem.exact and 1 < problem.volume <= 256 else 0.0

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        shape, lam = problem.shape, problem.lam
        hosts = [g for g in _hosts() if problem.rank // 2 <= g.order <= 2 * problem.rank + 2]
        starts: list[Scheme] = []

        def product_of(size: int) -> Scheme:
            return matrix_product(size, pool)

        for _ in range(4):
            if not hosts:
                return
            group = hosts[int(rng.integers(len(hosts)))]
            maps: FreeMaps = anneal_maps(group, shape, rng, 1500)
            if rng.random() < 0.5:
                maps = anneal_free_maps(group, shape, rng, 1500, maps if rng.random() < 0.5 else None)
            some = chosen_blocks(group, problem.rank, rng, product_of) if rng.random() < 0.3 else None
            algorithm = group_algorithm(group, product_of, some)
            scheme = reduced(least_squares_scheme(algorithm, maps, lam), problem.rank, lam)
            if scheme.rank:
                starts.append(scheme)
            if clock.expired():
                break
        for scheme in starts:
            yield score.balanced(scheme)
        batch = _filled(shape, starts, problem.rank, rng)
        if batch is None or clock.expired():
            return
        batch, f = decompose.refine(shape, batch, lam, 400)
        for index in np.argsort(f, kind="stable")[:2]:
            yield decompose.scheme_of(shape, batch, int(index))


def _filled(shape: Shape, starts: Sequence[Scheme], rank: int, rng: np.random.Generator) -> decompose.Batch | None:
    """A batch at ``rank``: terms fitted to the residual are added where products were lost, and all slightly shaken.

    None without starts. Shaking leaves the saddles that symmetric schemes are.
    """
    members = []
    for scheme in starts:
        u, v, w = (f.reshape(scheme.rank, -1) for f in scheme.as_float())
        while len(u) < rank:
            gap = decompose.residual_tensor(shape, (u[None], v[None], w[None]))[0]
            term = decompose.best_residual_term(gap, rng, starts=1, sweeps=6)
            u, v, w = np.vstack([u, term[0]]), np.vstack([v, term[1]]), np.vstack([w, term[2]])
        members.append([f + 0.02 * np.sqrt((f * f).mean()) * rng.standard_normal(f.shape) for f in (u, v, w)])
    if not members:
        return None
    return tuple(np.stack([x[i] for x in members]) for i in range(3))  # type: ignore[return-value]


register(GroupAlgebra())
