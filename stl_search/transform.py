"""New schemes from old: the symmetries of the matmul tensor, Kronecker products, direct sums, extension, projection,
changes of ring, and Hensel lifting of schemes over Z2 to the integers or rationals.

Every function takes and returns frozen schemes and says nothing of their truth: a transform of an exact scheme is
exact, a transform of an approximate one is as good or bad as the original, and ``stl_search.verify`` proves either.
Exact coefficients are computed in integers and fractions without overflow. The result of combining rings lies in the
largest of ZT < Z < Q < R < C, except that exact results are tagged with the smallest of ZT, Z, Q that holds them;
Z2 combines with Z2, and with exact schemes of odd denominators, which are reduced modulo 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search import rings
from stl_search.errors import SchemeError, VerificationError
from stl_search.rings import Ring
from stl_search.scheme import MAX_RANK, Array, Scheme, Shape, as_integers, matmul_tensor, parse_shape, triple_sum

__all__ = [
    "LiftResult",
    "change_basis",
    "classical",
    "cyclic",
    "extend",
    "hensel_lift",
    "inverse",
    "kron",
    "lift",
    "permute_to",
    "project",
    "rational_reconstruct",
    "simplify",
    "smallest_ring",
    "sparsify",
    "sum_k",
    "sum_m",
    "sum_n",
    "to_ring",
    "transpose",
]

_ORDER = ("ZT", "Z", "Q", "R", "C")  # each contains the ones before it; Z2 stands apart
_SIGN_TURNS = 50  # turns of the search for signs: 0 or 1 in all cases that we have met
_SAFE = 2**62  # integers below this in absolute value are kept in int64

# ---------------------------------------------------------------------------------------------------------------------
# Classical algorithm and the symmetry group of the matmul tensor


def classical(shape: Any, ring: str | Ring = "ZT") -> Scheme:
    """The standard algorithm of <m,k,n>, rank m*k*n: C[a,c] += A[a,b] B[b,c], terms in the order a, b, c.

    >>> classical((2, 3, 4)).rank
    24
    """
    m, k, n = shape = parse_shape(shape)
    if m * k * n > MAX_RANK:
        raise SchemeError(f"the standard algorithm of <{m},{k},{n}> has rank {m * k * n}, above the limit {MAX_RANK}")
    a, b, c = (x.ravel() for x in np.mgrid[:m, :k, :n])
    q = np.arange(m * k * n)
    factors = []
    for row, col, rows, cols in ((a, b, m, k), (b, c, k, n), (a, c, m, n)):
        f = np.zeros((m * k * n, rows, cols), dtype=np.int8)
        f[q, row, col] = 1
        factors.append(f)
    return Scheme(shape, ring, *factors)


def change_basis(scheme: Scheme, x: npt.ArrayLike, y: npt.ArrayLike, z: npt.ArrayLike) -> Scheme:
    """<m,k,n> by X (m, m), Y (k, k), Z (n, n), all invertible: the scheme run on other bases of the three spaces.

    It computes A' = X A Y^-1 and B' = Y B Z^-1, applies the old scheme, C' = A' B', and returns C = X^-1 C' Z. So, in
    coefficients (^T transposes, ^-T transposes the inverse):

        u[q] -> X^T u[q] Y^-T        v[q] -> Y^T v[q] Z^-T        w[q] -> X^-1 w[q] Z

    Integer and fraction matrices keep an exact scheme exact (over Z2 they are reduced modulo 2, odd denominators
    asked); float or complex ones carry it to R or C. E and kappa are unchanged when X, Y, Z are orthogonal (unitary).
    ``change_basis(change_basis(s, X1, Y1, Z1), X2, Y2, Z2)`` is ``change_basis(s, X1 X2, Y1 Y2, Z1 Z2)``.

    Raises SchemeError for a matrix of the wrong size or a singular one.

    de Groote, "On varieties of optimal algorithms for the computation of bilinear mappings I", Theor. Comput. Sci. 7
    (1978): these maps, with ``cyclic`` and ``transpose``, are all the symmetries of the matmul tensor.

    >>> s = change_basis(classical((1, 2, 1)), [[1]], [[1, 1], [0, 1]], [[1]])
    >>> s.u.tolist(), s.v.tolist()
    ([[[1, 0]], [[-1, 1]]], [[[1], [1]], [[0], [1]]])
    """
    given = [_matrix(name, value, side) for name, value, side in zip("XYZ", (x, y, z), scheme.shape, strict=True)]
    ring = _joint([scheme.ring, *(g_ring for _, g_ring in given)])
    if not ring.exact:
        kind = np.complex128 if ring.name == "C" else np.float64
        fx, fy, fz = (g.astype(kind) for g, _ in given)
        ix, iy, iz = (_float_inverse(name, g) for name, g in zip("XYZ", (fx, fy, fz), strict=True))
        u, v, w = scheme.as_float()
        return Scheme(scheme.shape, ring, fx.T @ u @ iy.T, fy.T @ v @ iz.T, ix @ w @ fz)
    if ring.characteristic:
        given = [(_mod2(name, g), g_ring) for name, (g, g_ring) in zip("XYZ", given, strict=True)]
    inverses = [_exact_inverse(name, g, ring.characteristic) for name, (g, _) in zip("XYZ", given, strict=True)]
    mx, my, mz = (as_integers(g) for g, _ in given)
    jx, jy, jz = (as_integers(g) for g in inverses)
    u0, v0, w0 = (as_integers(f) for f in scheme.factors)
    new_u = _dot(_dot(_turn(mx), u0), _turn(jy))
    new_v = _dot(_dot(_turn(my), v0), _turn(jz))
    new_w = _dot(_dot(jx, w0), mz)
    return _build(scheme.shape, ring, [_scaled(pair) for pair in (new_u, new_v, new_w)])


def cyclic(scheme: Scheme) -> Scheme:
    """<m,k,n> -> <k,n,m>, rotating trace(A B D) = trace(B D A) with D = C^T: (u, v, w) -> (v, w^T, u^T). Order 3.

    >>> cyclic(classical((2, 3, 4))).shape
    (3, 4, 2)
    """
    m, k, n = scheme.shape
    return _build((k, n, m), scheme.ring, [scheme.v, scheme.w.swapaxes(1, 2), scheme.u.swapaxes(1, 2)])


def transpose(scheme: Scheme) -> Scheme:
    """<m,k,n> -> <n,k,m>, from C^T = B^T A^T: (u, v, w) -> (v^T, u^T, w^T). Order 2.

    >>> transpose(classical((2, 3, 4))).shape
    (4, 3, 2)
    """
    m, k, n = scheme.shape
    return _build((n, k, m), scheme.ring, [f.swapaxes(1, 2) for f in (scheme.v, scheme.u, scheme.w)])


def permute_to(scheme: Scheme, shape: Any) -> Scheme:
    """<m,k,n> -> any of its six permutations, by ``cyclic`` and ``transpose``; the same scheme for the same arguments.

    Where several symmetries lead to the shape, the first of 1, cyclic, cyclic^2, transpose, then cyclic and cyclic^2
    after transpose, is taken. Raises SchemeError when ``shape`` is no permutation of the scheme's.

    >>> permute_to(classical((2, 3, 4)), (4, 2, 3)).shape
    (4, 2, 3)
    """
    target = parse_shape(shape)
    for start in (lambda s: s, transpose):
        candidate: Scheme = start(scheme)
        for _ in range(3):
            if candidate.shape == target:
                return smallest_ring(candidate)
            candidate = cyclic(candidate)
    raise SchemeError(f"{_show(target)} is no permutation of {_show(scheme.shape)}")


# ---------------------------------------------------------------------------------------------------------------------
# Products, sums, extension, projection


def kron(a: Scheme, b: Scheme) -> Scheme:
    """<m1,k1,n1> and <m2,k2,n2> -> <m1*m2, k1*k2, n1*n2>, rank r1*r2: b applied to each block product of a.

    Row i of the product is (i1, i2) with i = i1*m2 + i2: a acts on the blocks, b inside them; term (q1, q2) is
    q1*r2 + q2.

    >>> kron(classical((1, 2, 3)), classical((2, 1, 1))).shape
    (2, 2, 3)
    """
    shape = parse_shape([p * q for p, q in zip(a.shape, b.shape, strict=True)])
    _check_rank(a.rank * b.rank)
    ring, (fa, fb) = _common(a, b)
    factors = []
    for f, g in zip(fa, fb, strict=True):
        if f.dtype.kind == "i" and g.dtype.kind == "i":
            small = _peak(f) * _peak(g) < _SAFE
            f, g = (x.astype(np.int64 if small else object) for x in (f, g))
        (r1, p1, q1), (r2, p2, q2) = f.shape, g.shape
        product = f[:, None, :, None, :, None] * g[None, :, None, :, None, :]
        factors.append(product.reshape(r1 * r2, p1 * p2, q1 * q2))
    return _build(shape, ring, factors)


def sum_m(a: Scheme, b: Scheme) -> Scheme:
    """<m1,k,n> and <m2,k,n> -> <m1+m2, k, n>, rank r1+r2: A and C stacked by rows, [A1; A2] B = [A1 B; A2 B].

    >>> sum_m(classical((1, 2, 3)), classical((2, 2, 3))).shape
    (3, 2, 3)
    """
    return _direct_sum(a, b, 0)


def sum_k(a: Scheme, b: Scheme) -> Scheme:
    """<m,k1,n> and <m,k2,n> -> <m, k1+k2, n>, rank r1+r2: [A1 A2] [B1; B2] = A1 B1 + A2 B2.

    >>> sum_k(classical((1, 2, 3)), classical((1, 1, 3))).shape
    (1, 3, 3)
    """
    return _direct_sum(a, b, 1)


def sum_n(a: Scheme, b: Scheme) -> Scheme:
    """<m,k,n1> and <m,k,n2> -> <m, k, n1+n2>, rank r1+r2: B and C joined by columns, A [B1 B2] = [A B1, A B2].

    >>> sum_n(classical((1, 2, 3)), classical((1, 2, 1))).shape
    (1, 2, 4)
    """
    return _direct_sum(a, b, 2)


def _direct_sum(a: Scheme, b: Scheme, side: int) -> Scheme:
    for i, name in enumerate("mkn"):
        if i != side and a.shape[i] != b.shape[i]:
            raise SchemeError(f"sum_{'mkn'[side]} of {_show(a.shape)} and {_show(b.shape)}: {name} must be the same")
    sides = [p + q if i == side else p for i, (p, q) in enumerate(zip(a.shape, b.shape, strict=True))]
    m, k, n = shape = parse_shape(sides)
    _check_rank(a.rank + b.rank)
    ring, both = _common(a, b)
    factors = []
    for (rows, cols), f, g in zip(((m, k), (k, n), (m, n)), *both, strict=True):
        kind = f.dtype if f.dtype == g.dtype else np.result_type(f, g)
        out = np.zeros((a.rank + b.rank, rows, cols), dtype=kind)
        out[: a.rank, : f.shape[1], : f.shape[2]] = f
        out[a.rank :, rows - g.shape[1] :, cols - g.shape[2] :] = g
        factors.append(out)
    return _build(shape, ring, factors)


def extend(scheme: Scheme, shape: Any) -> Scheme:
    """<m,k,n> -> <M,K,N> with M >= m, K >= k, N >= n, rank r + MKN - mkn: standard products for what is added.

    Raises SchemeError when a side would shrink (see ``project``).

    >>> extend(classical((1, 1, 1)), (2, 2, 2)).rank
    8
    """
    target = parse_shape(shape)
    if any(new < old for new, old in zip(target, scheme.shape, strict=True)):
        raise SchemeError(
            f"{_show(scheme.shape)} cannot be extended to {_show(target)}: a side would shrink; use project"
        )
    out = smallest_ring(scheme)
    for side, join in enumerate((sum_m, sum_k, sum_n)):
        missing = [new - old if i == side else old for i, (new, old) in enumerate(zip(target, out.shape, strict=True))]
        if missing[side]:
            out = join(out, classical(missing))
    return out


def project(
    scheme: Scheme,
    rows: Sequence[int] | None = None,
    inner: Sequence[int] | None = None,
    cols: Sequence[int] | None = None,
) -> Scheme:
    """<m,k,n> -> <len(rows), len(inner), len(cols)>: keep these rows of A and C, inner indices, columns of B and C.

    The rest of A and B is set to zero and the rest of C not computed; terms that vanish are dropped. None keeps a side
    as it is; the order of the indices is the order of the result, so that a permutation permutes. Raises SchemeError
    for an empty list, a repeated index or one out of range.

    >>> project(classical((2, 3, 4)), rows=[1], cols=[0, 2]).shape
    (1, 3, 2)
    """
    kept = []
    for name, chosen, side in zip(("rows", "inner", "cols"), (rows, inner, cols), scheme.shape, strict=True):
        indices = list(range(side)) if chosen is None else [int(i) for i in chosen]
        if not indices or len(set(indices)) != len(indices) or not all(0 <= i < side for i in indices):
            raise SchemeError(f"{name} = {indices!s:.60} must be distinct indices in 0..{side - 1}, at least one")
        kept.append(np.array(indices))
    a, b, c = kept
    factors = [f[:, p[:, None], q] for f, p, q in zip(scheme.factors, (a, b, a), (b, c, c), strict=True)]
    alive = reduce(np.logical_and, [(f != 0).any(axis=(1, 2)) for f in factors])
    return _build((len(a), len(b), len(c)), scheme.ring, [f[alive] for f in factors])


def simplify(scheme: Scheme) -> Scheme:
    """<m,k,n>, rank r' <= r: zero terms dropped, terms that share two factors up to scale merged, until none is left.

    The value of the scheme does not change: exact rings find parallel factors exactly; over R and C only factors equal
    up to sign are merged, and the sum of the third factors is rounded once an addition.

    >>> simplify(sum_k(classical((1, 1, 1)), classical((1, 1, 1)))).rank  # nothing to merge
    2
    >>> simplify(Scheme((1, 1, 1), "Z", [[3], [1], [0]], [[1], [-2], [1]], [[1], [1], [1]])).u.tolist()  # 3 - 2 = 1
    [[[1]]]
    """
    terms = [[tuple(f[q].tolist()) for f in scheme.flat()] for q in range(scheme.rank)]
    while True:
        terms = [term for term in terms if all(any(row) for row in term)]
        before = len(terms)
        for left, right, rest in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
            terms = _merge(terms, left, right, rest, scheme.ring)
        if len(terms) == before and all(any(row) for term in terms for row in term):
            break
    m, k, n = scheme.shape
    columns = [[term[i] for term in terms] for i in range(3)]
    sides = ((m, k), (k, n), (m, n))
    return _build(scheme.shape, scheme.ring, [_array(c, scheme.ring, s) for c, s in zip(columns, sides, strict=True)])


def _merge(
    terms: list[list[tuple[Any, ...]]], left: int, right: int, rest: int, ring: Ring
) -> list[list[tuple[Any, ...]]]:
    """Terms with parallel factors ``left`` and ``right`` added up in factor ``rest``; order of first appearance."""
    groups: dict[tuple[Any, ...], list[tuple[Any, list[tuple[Any, ...]]]]] = {}
    for term in terms:
        (s, x), (t, y) = _direction(term[left], ring), _direction(term[right], ring)
        groups.setdefault((x, y), []).append((s * t, term))
    out = []
    for (x, y), members in groups.items():
        if len(members) == 1:
            out.append(members[0][1])
            continue
        total = [sum(scale * term[rest][i] for scale, term in members) for i in range(len(members[0][1][rest]))]
        if ring.characteristic:
            total = [value % 2 for value in total]
        merged: list[tuple[Any, ...]] = [(), (), ()]
        merged[left], merged[right], merged[rest] = x, y, tuple(total)
        out.append(merged)
    return out


def _direction(row: tuple[Any, ...], ring: Ring) -> tuple[Any, tuple[Any, ...]]:
    """(scale, representative) with row = scale * representative, the same representative for parallel rows.

    Exact rings: the primitive integer vector with a positive first entry. R and C: the row with its sign fixed.
    """
    if ring.characteristic:
        return 1, row
    lead = next((x for x in row if x != 0), 0)
    sign = -1 if ((lead.real, lead.imag) < (0, 0) if isinstance(lead, complex) else lead < 0) else 1
    if not ring.exact or lead == 0:
        return sign, tuple(sign * x for x in row)
    fractions = [Fraction(x) for x in row]
    common = math.lcm(*(x.denominator for x in fractions))
    whole = [int(x * common) for x in fractions]
    divisor = math.gcd(*whole) * sign
    return Fraction(divisor, common), tuple(x // divisor for x in whole)


# ---------------------------------------------------------------------------------------------------------------------
# Rings


def to_ring(scheme: Scheme, ring: str | Ring) -> Scheme:
    """<m,k,n> over another ring: coefficients kept as they are, reduced modulo 2 for Z2, rounded to nearest for R, C.

    ZT, Z and Q go to Z2 where denominators are odd. Going down (Q to Z, R to Q, C to R) works when every coefficient
    already lies in the smaller ring, doubles being read as the dyadic fractions they are. Raises SchemeError, naming
    the coefficient, otherwise; and for Z2, which must be lifted (``lift``).

    >>> half = Scheme((1, 1, 1), "Q", [[0.5]], [[2]], [[1]])
    >>> to_ring(half, "R").u.tolist()
    [[[0.5]]]
    >>> to_ring(half, "Z2")
    Traceback (most recent call last):
    stl_search.errors.SchemeError: u[0, 0, 0] = 1/2 has an even denominator: no residue modulo 2
    """
    ring = rings.get(ring)
    if ring.name == scheme.ring.name:
        return scheme
    if scheme.ring.characteristic:
        raise SchemeError(f"a scheme over Z2 is none over {ring.name}: lift it (transform.lift)")
    factors: list[Array] = list(scheme.factors)
    if scheme.ring.name == "C" and ring.name != "C":
        for name, f in zip("uvw", factors, strict=True):
            if (f.imag != 0).any():
                place = [int(i) for i in np.argwhere(f.imag != 0)[0]]
                raise SchemeError(f"{name}{place} = {f[tuple(place)]} is not in {ring.name}")
        factors = [f.real for f in factors]
    if ring.characteristic:
        exact = [np.vectorize(Fraction, otypes=[object])(f) if f.dtype.kind == "f" and f.size else f for f in factors]
        return Scheme(scheme.shape, ring, *(_mod2(name, f) for name, f in zip("uvw", exact, strict=True)))
    if not ring.exact:
        try:
            factors = [f.astype(np.complex128 if ring.name == "C" else np.float64) for f in factors]
        except OverflowError:
            raise SchemeError(f"a coefficient is beyond the range of a double, not in {ring.name}") from None
    return Scheme(scheme.shape, ring, *factors)


def smallest_ring(scheme: Scheme) -> Scheme:
    """The same scheme, tagged with the smallest of ZT, Z, Q that holds its coefficients; Z2, R and C stay.

    >>> smallest_ring(Scheme((1, 1, 1), "Q", [[1]], [[-1]], [[-1]])).ring.name
    'ZT'
    """
    return _build(scheme.shape, scheme.ring, list(scheme.factors))


def _joint(members: Iterable[Ring]) -> Ring:
    """The ring in which results live; Z2 as soon as one member is Z2, and then the others must be exact."""
    names = {ring.name for ring in members}
    if "Z2" in names:
        bad = names & {"R", "C"}
        if bad:
            raise SchemeError(f"Z2 and {min(bad)} do not mix: lift the scheme over Z2 first (transform.lift)")
        return rings.get("Z2")
    return rings.get(max(names, key=_ORDER.index))


def _common(a: Scheme, b: Scheme) -> tuple[Ring, tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]]:
    """The joint ring of two schemes and their factors there (exact ones as they are, doubles for R and C)."""
    ring = _joint([a.ring, b.ring])
    if ring.exact and not ring.characteristic:
        return ring, (a.factors, b.factors)
    return ring, (to_ring(a, ring).factors, to_ring(b, ring).factors)


def _build(shape: Shape, ring: Ring, factors: list[Array]) -> Scheme:
    """A scheme from computed factors: reduced modulo 2 over Z2, tagged with the smallest ring when exact."""
    if ring.characteristic:
        return Scheme(shape, ring, *((f % 2).astype(np.int8) for f in factors))
    if not ring.exact:
        return Scheme(shape, ring, *factors)
    if all(f.dtype.kind == "i" for f in factors):
        return Scheme(shape, "ZT" if max(_peak(f) for f in factors) <= 1 else "Z", *factors)
    values = itertools.chain.from_iterable(f.ravel().tolist() for f in factors)
    found = rings.smallest_exact(values)
    if found.name == "ZT":
        factors = [f.astype(np.int8) for f in factors]
    return Scheme(shape, found, *factors)


def _array(rows: list[tuple[Any, ...]], ring: Ring, sides: tuple[int, int]) -> Array:
    """Rows of coefficients as an array (r, *sides) that keeps integers and fractions as they are."""
    kind: Any = np.complex128 if ring.name == "C" else np.float64 if ring.name == "R" else object
    out: Array = np.zeros((len(rows), sides[0] * sides[1]), dtype=kind)
    for q, row in enumerate(rows):
        out[q] = row
    return out.reshape(len(rows), *sides)


def _mod2(name: str, factor: Array) -> Array:
    """Integers and fractions of odd denominator modulo 2, as int8; raises SchemeError naming an even denominator."""
    if factor.dtype.kind in "iu":
        return (factor % 2).astype(np.int8)
    out = np.zeros(factor.shape, dtype=np.int8)
    for place, value in np.ndenumerate(factor):
        fraction = Fraction(value)
        if fraction.denominator % 2 == 0:
            raise SchemeError(f"{name}{list(place)} = {value!s:.60} has an even denominator: no residue modulo 2")
        out[place] = fraction.numerator % 2
    return out


def _peak(factor: Array) -> int:
    """The largest absolute value of an integer factor, as a Python integer."""
    return max(abs(int(factor.max())), abs(int(factor.min()))) if factor.size else 0


def _check_rank(rank: int) -> None:
    if rank > MAX_RANK:
        raise SchemeError(f"rank {rank} is above the limit {MAX_RANK}")


def _show(shape: Shape) -> str:
    return f"<{','.join(map(str, shape))}>"


# ---------------------------------------------------------------------------------------------------------------------
# Matrices


def _matrix(name: str, value: npt.ArrayLike, side: int) -> tuple[Array, Ring]:
    """A square matrix and the ring of its entries (Q for any exact ones); exact entries come back as objects."""
    array = np.asarray(value)
    if array.shape != (side, side):
        raise SchemeError(f"{name} has shape {array.shape}, must be ({side}, {side})")
    kinds = {type(v.item() if hasattr(v, "item") else v) for v in array.ravel().tolist()}
    if kinds <= {int, bool, Fraction}:
        out = np.empty(array.shape, dtype=object)
        for place, entry in np.ndenumerate(array):
            out[place] = entry if isinstance(entry, Fraction) else int(entry)
        return out, rings.get("Q")
    if not kinds <= {int, bool, Fraction, float, complex}:
        raise SchemeError(f"{name} has entries that are no numbers")
    floats = array.astype(np.complex128 if complex in kinds else np.float64)
    if not np.isfinite(floats).all():
        raise SchemeError(f"{name} holds NaN or infinity")
    return floats, rings.get("C" if complex in kinds else "R")


def inverse(matrix: npt.ArrayLike, characteristic: int = 0) -> Array:
    """The exact inverse (s, s) of an integer or fraction matrix, as objects; over GF(2) with ``characteristic=2``.

    Raises SchemeError for a singular matrix or one with floats.

    >>> inverse([[2, 1], [1, 1]]).tolist()
    [[1, -1], [-1, 2]]
    """
    array = np.asarray(matrix)
    checked, ring = _matrix("the matrix", array, len(array) if array.ndim else 0)
    if not ring.exact:
        raise SchemeError("the matrix holds floats: no exact inverse")
    return _exact_inverse("the matrix", _mod2("the matrix", checked) if characteristic else checked, characteristic)


def _exact_inverse(name: str, matrix: Array, characteristic: int) -> Array:
    """Gauss-Jordan in fractions, or modulo 2."""
    size = len(matrix)
    field: Any = (lambda x: int(x) % 2) if characteristic else Fraction
    rows = [[field(x) for x in row] + [field(i == j) for j in range(size)] for i, row in enumerate(matrix.tolist())]
    for col in range(size):
        pivot = next((i for i in range(col, size) if rows[i][col] != 0), None)
        if pivot is None:
            raise SchemeError(f"{name} is singular{' modulo 2' if characteristic else ''}")
        rows[col], rows[pivot] = rows[pivot], rows[col]
        if not characteristic:
            lead = rows[col][col]
            rows[col] = [x / lead for x in rows[col]]
        for i in range(size):
            factor = rows[i][col]
            if i != col and factor != 0:
                rows[i] = [field(x - factor * y) for x, y in zip(rows[i], rows[col], strict=True)]
    out = np.empty((size, size), dtype=object)
    for i, j in np.ndindex(size, size):
        value = rows[i][size + j]
        out[i, j] = value.numerator if value.denominator == 1 else value
    return out


def _float_inverse(name: str, matrix: Array) -> Array:
    """The inverse of a well-conditioned float matrix; singular to working precision is refused."""
    singular = np.linalg.svd(matrix, compute_uv=False)
    if singular[-1] <= len(matrix) * np.finfo(np.float64).eps * singular[0]:
        raise SchemeError(f"{name} is singular to working precision")
    return np.linalg.inv(matrix)


def _dot(x: tuple[Array, Fraction], y: tuple[Array, Fraction]) -> tuple[Array, Fraction]:
    """The product of (integers, scale) pairs, in int64 where no sum can pass 2**62, else in Python integers."""
    (a, s), (b, t) = x, y
    small = a.shape[-1] * _peak(a) * _peak(b) < _SAFE
    a, b = (f.astype(np.int64 if small else object) for f in (a, b))
    return a @ b, s * t


def _turn(x: tuple[Array, Fraction]) -> tuple[Array, Fraction]:
    return x[0].T, x[1]


def _scaled(pair: tuple[Array, Fraction]) -> Array:
    """integers * scale as an array of integers and fractions."""
    whole, scale = pair
    if scale == 1:
        return whole
    out = np.empty(whole.shape, dtype=object)
    for place, value in np.ndenumerate(whole):
        product = int(value) * scale
        out[place] = product.numerator if product.denominator == 1 else product
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Hensel lifting


@dataclass(frozen=True)
class LiftResult:
    """What became of a lift. ``scheme`` is the lifted scheme or None; ``modulus_bits`` the s up to which a solution
    modulo 2**s was reached; ``reason`` is empty on success and says why not otherwise."""

    scheme: Scheme | None
    modulus_bits: int
    reason: str


def hensel_lift(scheme: Scheme, steps: int) -> LiftResult:
    """<m,k,n> over Z2 -> Z/2^(steps+1): integers in (-2^steps, 2^steps] that solve the Brent equations modulo that.

    The returned scheme is tagged ZT or Z and holds modulo 2^modulus_bits only. When a step's system over GF(2) has no
    solution, the last scheme that was reached comes back with the reason: at the first step (modulo 4) that proves
    that no lift exists, later on only that the path chosen here ends. Raises as ``lift`` does.
    """
    if steps < 0:
        raise SchemeError(f"steps is {steps}, must be 0 or more")
    path = itertools.islice(_hensel_path(scheme.flat(), _checked_target(scheme)), steps + 1)
    bits, factors, _, reason = list(path)[-1]
    return LiftResult(_from_flat(scheme.shape, factors), bits, reason)


def lift(scheme: Scheme, max_steps: int = 20) -> LiftResult:
    """<m,k,n> over Z2 -> an exact scheme over ZT, Z or Q with the same residues modulo 2, or None and the reason.

    Hensel lifting: from a solution x modulo 2^s, x + 2^s d solves modulo 2^(s+1) where J d = (T - f(x)) / 2^s over
    GF(2), with the same Jacobian J at every step. Which of the many solutions d is taken decides the rest:

    1. Only variables that are 1 modulo 2 may change, so that zeros remain zeros and ones become +-1 modulo 4; among
       these signs a short local search looks for some that are exact over Z, and a ternary scheme ends the search.
    2. The same after a change of basis over GF(2) that leaves few ones, undone over Z by matrices of determinant 1
       (schemes are singular points of the Brent equations more often than not, where most solutions modulo 4 have no
       continuation; sparse ones have fewer to choose from).
    3. All variables may change, ones preferred, for ``max_steps`` steps. After every step the symmetric residues, and
       rational reconstructions that stay the same twice, are tried; again with the sparse basis.

    A scheme is returned only when exact multiplication proves it. A failure at the step to 2^2 proves that no lift
    exists; any other failure proves nothing.

    Raises SchemeError when the ring is not Z2, VerificationError when the scheme does not hold modulo 2.

    Kauers, Moosbauer, "Flip graphs for matrix multiplication", ISSAC 2023, section 5.

    >>> s = Scheme((1, 1, 1), "Z2", [[1], [1], [1]], [[1], [1], [1]], [[1], [1], [1]])
    >>> lift(s).scheme.ring.name
    'ZT'
    """
    target = _checked_target(scheme)
    sparse, moves = _sparsify(scheme)
    starts: list[tuple[Scheme, list[tuple[int, int, int]]]] = [(scheme, []), (sparse, moves)]
    starts = starts[: 2 if moves else 1]
    for start, undo in starts:
        factors = _signs(start.flat(), target)
        if factors is not None:
            return LiftResult(_undo(_from_flat(scheme.shape, factors), undo), 2, "")
    failure: LiftResult | None = None
    for start, undo in starts:
        result = _climb(start, target, max_steps)
        if result.scheme is not None:
            return LiftResult(_undo(result.scheme, undo), result.modulus_bits, "")
        if failure is None or result.modulus_bits > failure.modulus_bits:
            failure = result
        if result.modulus_bits == 1:
            break  # no lift exists in any basis
    assert failure is not None
    return failure


def _climb(scheme: Scheme, target: Array, max_steps: int) -> LiftResult:
    """Step after step along one path, until integers or fractions are recognised and proved."""
    bits = 1
    previous: list[list[Fraction | None]] | None = None
    for bits, factors, gap, reason in itertools.islice(_hensel_path(scheme.flat(), target), max_steps + 1):
        if reason:
            return LiftResult(None, bits, reason)
        if not gap.any():
            return LiftResult(_from_flat(scheme.shape, factors), bits, "")
        if bits < 5:  # no denominator but 1 can be told apart yet
            continue
        modulus = 2**bits
        table = {x: rational_reconstruct(x, modulus) for f in factors for x in set(f.ravel().tolist())}
        guess = [[table[x] for x in f.ravel().tolist()] for f in factors]
        if guess == previous and all(x is not None for f in guess for x in f):
            candidate = _from_flat(scheme.shape, [_objects(g, f.shape) for g, f in zip(guess, factors, strict=True)])
            if _is_exact(candidate):
                return LiftResult(candidate, bits, "")
        previous = guess
    return LiftResult(None, bits, f"solved modulo 2^{bits}, but no integers or small fractions were recognised there")


def _signs(flat: tuple[Array, Array, Array], target: Array) -> list[Array] | None:
    """Signs for the ones of a Z2 scheme that make it exact over Z, or None when none were found.

    Signs that hold modulo 4 come from linear algebra. From there on, a short tabu search over the changes of sign that
    keep that (the kernel of the Jacobian), for the fewest wrong coefficients over Z.
    """
    factors: list[Array] = [f.astype(np.int64) for f in flat]
    gap = triple_sum(*factors) - target
    if not gap.any():
        return factors
    system = _Gf2System(flat, _variables(flat, 1), keep=True)
    step = system.solve(((gap >> 1) & 1).astype(np.uint8).ravel())
    if step is None:
        return None
    factors = [f * (1 - 2 * d) for f, d in zip(factors, step, strict=True)]
    gap = triple_sum(*factors) - target
    if not gap.any():
        return factors
    flips = []
    for vector in system.kernel():
        terms = np.flatnonzero(np.any([d.any(axis=1) for d in vector], axis=0))
        signs = [1 - 2 * d[terms].astype(np.int64) for d in vector]
        if _flip_gap(factors, terms, signs).any():  # the others are changes of sign within single terms
            flips.append((terms, signs))
    resting: dict[int, int] = {}
    for turn in range(_SIGN_TURNS):
        best = (gap.size + 1, -1)
        for i, (terms, signs) in enumerate(flips):
            if resting.get(i, 0) <= turn:
                best = min(best, (int(np.count_nonzero(gap + _flip_gap(factors, terms, signs))), i))
        if best[1] < 0:
            return None
        terms, signs = flips[best[1]]
        gap = gap + _flip_gap(factors, terms, signs)
        for f, sign in zip(factors, signs, strict=True):
            f[terms] *= sign
        if best[0] == 0:
            return factors
        resting[best[1]] = turn + 6
    return None


def _flip_gap(factors: list[Array], terms: npt.NDArray[np.int64], signs: list[Array]) -> Array:
    """By how much the sum of all terms changes when these terms change their signs."""
    old = [f[terms] for f in factors]
    return triple_sum(*(f * sign for f, sign in zip(old, signs, strict=True))) - triple_sum(*old)


def sparsify(scheme: Scheme) -> Scheme:
    """<m,k,n> over Z2 in a basis with fewer ones, by steepest descent over elementary changes of basis.

    As good a scheme as the old one, and far more likely to have a ternary lift. Raises SchemeError for other rings.

    >>> one = change_basis(classical((2, 2, 2), "Z2"), [[1, 1], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    >>> sparsify(one) == classical((2, 2, 2), "Z2")
    True
    """
    if not scheme.ring.characteristic:
        raise SchemeError(f"only schemes over Z2 are made sparse, not {scheme.ring.name}")
    return _sparsify(scheme)[0]


def _sparsify(scheme: Scheme) -> tuple[Scheme, list[tuple[int, int, int]]]:
    """A Z2 scheme in a basis with fewer ones, by steepest descent over elementary changes (side, i, j), and these."""
    current = list(scheme.factors)
    moves: list[tuple[int, int, int]] = []
    options = [(side, i, j) for side in range(3) for i, j in itertools.permutations(range(scheme.shape[side]), 2)]
    ones = sum(int(f.sum()) for f in current)
    while options:
        tried = [[f % 2 for f in _elementary(current, move, 1)] for move in options]
        counts = [sum(int(f.sum()) for f in factors) for factors in tried]
        best = int(np.argmin(counts))
        if counts[best] >= ones:
            break
        ones, current = counts[best], tried[best]
        moves.append(options[best])
    return Scheme(scheme.shape, "Z2", *current), moves


def _undo(scheme: Scheme, moves: list[tuple[int, int, int]]) -> Scheme:
    """The exact scheme with the moves of ``_sparsify`` undone, each by the sign that keeps coefficients smaller."""
    current = [f.astype(object) for f in scheme.factors]
    for move in reversed(moves):
        both = [_elementary(current, move, sign) for sign in (-1, 1)]
        current = min(both, key=lambda factors: sum(abs(x) for f in factors for x in f.ravel().tolist()))
    return _build(scheme.shape, rings.get("Q"), current)


def _elementary(factors: list[Array], move: tuple[int, int, int], sign: int) -> list[Array]:
    """``change_basis`` of side 0, 1 or 2 (X, Y or Z) by I + sign * e_i e_j^T, as additions of rows and columns."""
    side, i, j = move
    u, v, w = (f.copy() for f in factors)
    if side == 0:
        u[:, j] += sign * u[:, i]
        w[:, i] -= sign * w[:, j]
    elif side == 1:
        v[:, j] += sign * v[:, i]
        u[:, :, i] -= sign * u[:, :, j]
    else:
        w[:, :, j] += sign * w[:, :, i]
        v[:, :, i] -= sign * v[:, :, j]
    return [u, v, w]


def rational_reconstruct(a: int, modulus: int) -> Fraction | None:
    """The fraction p/q = a modulo ``modulus`` with |p|, q <= sqrt(modulus/2), gcd(q, modulus) = 1, or None.

    There is at most one. Wang, "A p-adic algorithm for univariate partial fractions", SYMSAC 1981.

    >>> rational_reconstruct(2 * pow(3, -1, 1024) % 1024, 1024)
    Fraction(2, 3)
    """
    bound = math.isqrt(modulus // 2)
    (p0, q0), (p1, q1) = (modulus, 0), (a % modulus, 1)
    while p1 > bound:
        step = p0 // p1
        (p0, q0), (p1, q1) = (p1, q1), (p0 - step * p1, q0 - step * q1)
    if q1 == 0 or abs(q1) > bound or math.gcd(p1, q1) != 1 or math.gcd(q1, modulus) != 1:
        return None
    return Fraction(p1, q1)


def _checked_target(scheme: Scheme) -> Array:
    """The matmul tensor, once the scheme is known to compute it modulo 2."""
    if not scheme.ring.characteristic:
        raise SchemeError(f"only schemes over Z2 are lifted, not {scheme.ring.name}")
    target = matmul_tensor(scheme.shape).astype(np.int64)
    wrong = int(np.count_nonzero((triple_sum(*scheme.flat()) - target) % 2))
    if wrong:
        raise VerificationError(f"not a {_show(scheme.shape)} scheme over Z2: {wrong} coefficients are wrong modulo 2")
    return target


def _hensel_path(flat: tuple[Array, Array, Array], target: Array) -> Iterator[tuple[int, list[Array], Array, str]]:
    """Yields (s, flat factors as symmetric residues modulo 2^s, f(x) - T, reason), for s = 1, 2, ...

    The last tuple is the only one whose reason is not empty: the system for the next step has no solution.
    """
    factors: list[Array] = [f.astype(np.int64) for f in flat]
    gap = triple_sum(*factors) - target
    ones, zeros = (_variables(flat, value) for value in (1, 0))
    systems = [ones, np.concatenate([ones, zeros])]  # the cheap one first; the full one, too, prefers the ones
    system: _Gf2System | None = None
    for bits in itertools.count(1):
        yield bits, factors, gap, ""
        wanted = ((gap >> bits) & 1).astype(np.uint8).ravel() if gap.dtype != object else _bit(gap, bits)
        step = None
        while step is None:
            if system is not None:
                step = system.solve(wanted)
            if step is None:
                if not systems:
                    proof = "no lift exists" if bits == 1 else "the path taken here ends"
                    yield (
                        bits,
                        factors,
                        gap,
                        f"the linear system modulo 2 of the step to 2^{bits + 1} has no solution: {proof}",
                    )
                    return
                system = _Gf2System(flat, systems.pop(0))
        half, full = 2**bits, 2 ** (bits + 1)
        moved = []
        for f, d in zip(factors, step, strict=True):
            x = f + half * d.astype(np.int64)
            moved.append(np.where(x > half, x - full, x))
        factors = moved
        total = triple_sum(*factors)
        gap = total - target


def _bit(values: Array, bit: int) -> npt.NDArray[np.uint8]:
    return np.array([(int(x) >> bit) & 1 for x in values.ravel()], dtype=np.uint8)


def _variables(flat: tuple[Array, Array, Array], value: int) -> npt.NDArray[np.int64]:
    """(count, 3): (factor, q, entry) of every variable with this value, in the order of u, v, w."""
    found = []
    for which, f in enumerate(flat):
        q, entry = np.nonzero(f == value)
        found.append(np.stack([np.full(len(q), which), q, entry], axis=1))
    return np.concatenate(found).astype(np.int64)


class _Gf2System:
    """J d = e over GF(2), J the Jacobian of the Brent equations in chosen variables; factored once, solved often.

    Rows are the mk * kn * mn equations, columns the variables in order of preference, 64 to a word. Gauss-Jordan
    elimination, eight columns at a time (the method of four Russians: Arlazarov, Dinic, Kronrod, Faradzev, 1970): the
    combination of pivot rows that is added to each row is looked up in a table of at most 256, and kept, so that later
    right-hand sides go through the same steps. Free variables are set to zero. ``keep`` keeps what ``kernel`` needs.
    """

    def __init__(self, flat: tuple[Array, Array, Array], variables: npt.NDArray[np.int64], keep: bool = False) -> None:
        self._flat_shapes = [f.shape for f in flat]
        self._variables = variables
        words = self._jacobian(flat, variables)
        self._rows = np.flatnonzero(words.any(axis=1))  # equations that no variable touches are checked apart
        words = np.ascontiguousarray(words[self._rows])
        self._steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]] = []
        self._pivot_rows: list[int] = []
        self._pivot_cols: list[int] = []
        free = np.ones(len(words), dtype=bool)
        octets = words.view(np.uint8)
        for strip in range(-(-len(variables) // 8) if len(words) else 0):
            self._eliminate(words, octets, strip, free, keep)
        self._free = free
        self._reduced = octets[self._pivot_rows].copy() if keep else None

    @staticmethod
    def _jacobian(flat: tuple[Array, Array, Array], variables: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """(equations, words): bit c of a row is the derivative of its equation by variable c (little-endian bits)."""
        u, v, w = (f.astype(np.uint8) for f in flat)
        sizes = u.shape[1], v.shape[1], w.shape[1]
        words = np.zeros((math.prod(sizes), -(-len(variables) // 64)), dtype="<u8")
        for word in range(words.shape[1]):
            block = np.zeros((64, *sizes), dtype=np.uint8)
            for c, (which, q, entry) in enumerate(variables[64 * word : 64 * word + 64].tolist()):
                if which == 0:
                    block[c, entry, :, :] = v[q][:, None] & w[q]
                elif which == 1:
                    block[c, :, entry, :] = u[q][:, None] & w[q]
                else:
                    block[c, :, :, entry] = u[q][:, None] & v[q]
            bits = np.packbits(block.reshape(64, -1).T, axis=1, bitorder="little")
            words[:, word] = np.ascontiguousarray(bits).view("<u8")[:, 0]
        return words

    def _eliminate(self, words: Array, octets: Array, strip: int, free: npt.NDArray[np.bool_], keep: bool) -> None:
        """Columns 8*strip .. 8*strip+7: find their pivots on the one byte of each row, then update whole rows."""
        local = octets[:, strip].copy()
        recipe = np.zeros(len(words), dtype=np.uint8)  # bit t: add the t-th pivot row, as it was before this strip
        pivots: list[int] = []
        for bit in range(8):
            mask = np.uint8(1 << bit)
            hit = (local & mask) != 0
            candidates = hit & free
            row = int(candidates.argmax())
            if not candidates[row]:
                continue
            free[row] = False
            hit[row] = False
            change = np.uint8(recipe[row] ^ np.uint8(1 << len(pivots)))
            local[hit] ^= local[row]
            recipe[hit] ^= change
            pivots.append(row)
            self._pivot_rows.append(row)
            self._pivot_cols.append(8 * strip + bit)
        if not pivots:
            return
        start = (
            0 if keep else strip // 8
        )  # to the left are finished pivot columns and free ones, which solve never reads
        table = _combinations(words[pivots, start:])
        for low in range(0, len(words), 1024):  # a slab at a time stays in cache
            words[low : low + 1024, start:] ^= table[recipe[low : low + 1024]]
        self._steps.append((np.array(pivots), recipe))

    def solve(self, e: npt.NDArray[np.uint8]) -> list[Array] | None:
        """d as three flat factors of 0 and 1, or None when there is no solution."""
        if np.delete(e, self._rows).any():
            return None
        right = e[self._rows].copy()
        for pivots, recipe in self._steps:
            right ^= _combinations(right[pivots])[recipe]
        if right[self._free].any():
            return None
        return self._factors(np.array(self._pivot_cols, dtype=np.int64)[right[self._pivot_rows] != 0])

    def kernel(self) -> Iterator[list[Array]]:
        """A basis of the solutions of J d = 0, one for each free variable, as ``solve`` returns them."""
        assert self._reduced is not None
        pivots = np.array(self._pivot_cols, dtype=np.int64)
        for column in sorted(set(range(len(self._variables))) - set(self._pivot_cols)):
            bound = (self._reduced[:, column // 8] >> np.uint8(column % 8)) & 1
            yield self._factors(np.append(pivots[bound != 0], column))

    def _factors(self, columns: npt.NDArray[np.int64]) -> list[Array]:
        """Three flat factors that are 1 at these variables."""
        out = [np.zeros(shape, dtype=np.int8) for shape in self._flat_shapes]
        for which, q, entry in self._variables[columns].tolist():
            out[which][q, entry] = 1
        return out


def _combinations(rows: Array) -> Array:
    """(2^t, ...): entry i is the sum modulo 2 of the rows whose bits are set in i, for t rows of packed bits."""
    table = np.zeros((1 << len(rows), *rows.shape[1:]), dtype=rows.dtype)
    for t, row in enumerate(rows):
        table[1 << t : 2 << t] = table[: 1 << t] ^ row
    return table


def _objects(values: list[Any], shape: tuple[int, ...]) -> Array:
    out: Array = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def _from_flat(shape: Shape, factors: Sequence[Array]) -> Scheme:
    m, k, n = shape
    sides = ((m, k), (k, n), (m, n))
    return _build(shape, rings.get("Q"), [f.reshape(len(f), *s) for f, s in zip(factors, sides, strict=True)])


def _is_exact(scheme: Scheme) -> bool:
    """Whether the scheme computes A B over Q: exact products against the matmul tensor."""
    (u, su), (v, sv), (w, sw) = (as_integers(f) for f in scheme.flat())
    goal = (su * sv * sw).denominator  # the scales are 1/denominator each
    total = triple_sum(u, v, w)
    target = matmul_tensor(scheme.shape).astype(object)
    return bool((total.astype(object) == target * goal).all())
