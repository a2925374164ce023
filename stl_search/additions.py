"""Ternary schemes with fewer additions: annealing over changes of basis and flips, compiled.

Elementary integer changes of basis (with permutations and signs, which change no count, they generate GL over Z) and,
unless a symmetry is to be kept, flips of terms with a common factor: rank, exactness and ternary coefficients stay.
Imported only where a scheme is improved, since numba is heavy; the counting for records is in ``programs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search import score
from stl_search.errors import SchemeError
from stl_search.jit import compiled
from stl_search.programs import SchemePrograms, scheme_programs, tie_break_weight
from stl_search.scheme import Scheme, matmul_tensor, triple_sum

__all__ = ["Fewest", "fewest_additions", "improved", "shared"]

_U = np.uint64
_GOLDEN, _MIX1, _MIX2 = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_ONE, _TWO, _S27, _S30, _S31, _S11, _ROW = _U(1), _U(2), _U(27), _U(30), _U(31), _U(11), _U(65536)
_UNIT = 2.0**-53
_NEVER = 1 << 20  # more than any change in non-zeros: the move is not allowed


@compiled
def _mix(z: Any) -> Any:
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


@compiled
def _tie(order: Any, i: int, j: int, negative: int) -> Any:
    """``programs.tie_break`` of (i, j, 1, +-1)."""
    code = _TWO * (_ROW * _U(i) + _U(j)) + _U(negative)
    return np.float64(_mix(_U(order) * _MIX1 + (code + _ONE) * _GOLDEN) >> _S11) * _UNIT


@compiled
def _shared(matrix: Any, order: int, weight: float, work: Any, counts: Any) -> int:
    """Additions of the greedy program of a ternary matrix (rows, columns); ``work`` (rows, cap) and ``counts`` (2, cap,
    cap) are room for cap = columns + rows * columns / 2 nodes: each step takes two entries out of the rows."""
    rows, width = matrix.shape
    for i in range(width):
        for j in range(i + 1, width):
            counts[0, i, j] = 0
            counts[1, i, j] = 0
    for q in range(rows):
        for i in range(width):
            work[q, i] = matrix[q, i]
            if matrix[q, i] != 0:
                for j in range(i + 1, width):
                    if matrix[q, j] != 0:
                        counts[int(matrix[q, i] != matrix[q, j]), i, j] += 1
    steps = 0
    while True:
        best, a, b, sign = 0.0, -1, -1, 0
        for i in range(width):
            for j in range(i + 1, width):
                for s in range(2):
                    count = counts[s, i, j]
                    if count >= 2 and count + weight > best:
                        value = count + weight * _tie(order, i, j, s)
                        if value > best:
                            best, a, b, sign = value, i, j, s
        if a < 0:
            break
        for i in range(width):
            counts[0, i, width] = 0
            counts[1, i, width] = 0
        for q in range(rows):
            x, y = work[q, a], work[q, b]
            work[q, width] = 0
            if x == 0 or y == 0 or int(x != y) != sign:
                continue
            work[q, a] = 0
            work[q, b] = 0
            counts[sign, a, b] -= 1
            for k in range(width):
                z = work[q, k]
                if z != 0:
                    counts[int(x != z), min(a, k), max(a, k)] -= 1
                    counts[int(y != z), min(b, k), max(b, k)] -= 1
                    counts[int(x != z), k, width] += 1
            work[q, width] = x
        width += 1
        steps += 1
    for q in range(rows):
        left = 0
        for k in range(width):
            left += int(work[q, k] != 0)
        steps += max(0, left - 1)
    return steps


@compiled
def _lines(f: Any, axis: int, i: int, j: int, sign: int, apply: bool) -> int:
    """f[line j] += sign * f[line i] along an axis (1 rows, 2 columns) of (r, a, b): the change in non-zeros, or _NEVER
    where an entry would leave {-1, 0, 1}; done only if ``apply``."""
    change = 0
    for q in range(f.shape[0]):
        for k in range(f.shape[3 - axis]):
            x = f[q, i, k] if axis == 1 else f[q, k, i]
            if x == 0:
                continue
            y = f[q, j, k] if axis == 1 else f[q, k, j]
            z = y + sign * x
            if z > 1 or z < -1:
                return _NEVER
            change += int(z != 0) - int(y != 0)
            if apply:
                if axis == 1:
                    f[q, j, k] = z
                else:
                    f[q, k, j] = z
    return change


@compiled
def _term(f: Any, q: int, p: int, sign: int, apply: bool) -> int:
    """f[q] += sign * f[p]: the change in non-zeros, or _NEVER where an entry would leave {-1, 0, 1} or all vanish."""
    change, left = 0, 0
    for i in range(f.shape[1]):
        for j in range(f.shape[2]):
            y = f[q, i, j]
            z = y + sign * f[p, i, j]
            if z > 1 or z < -1:
                return _NEVER
            left += int(z != 0)
            change += int(z != 0) - int(y != 0)
            if apply:
                f[q, i, j] = z
    return change if left else _NEVER


@compiled
def _parallel(f: Any, q: int, p: int) -> int:
    """1 where f[q] = f[p], -1 where f[q] = -f[p], else 0."""
    sign = 0
    for i in range(f.shape[1]):
        for j in range(f.shape[2]):
            x, y = f[q, i, j], f[p, i, j]
            if (x != 0) != (y != 0):
                return 0
            if x != 0:
                if sign == 0:
                    sign = 1 if x == y else -1
                elif x != sign * y:
                    return 0
    return sign


@compiled
def _below(state: Any, n: int) -> Any:
    state[0] += _GOLDEN
    return np.int64(((_mix(state[0]) >> _U(32)) * _U(n)) >> _U(32))


@compiled
def _change(factors: Any, move: Any, apply: bool, back: bool) -> Any:
    """A change of basis (kind 0, 1, 2: X, Y, Z by I + sign e_i e_j^T, as in ``transform.change_basis``) or a flip
    (kind 3, 4, 5: terms i and j share factor kind - 3): the change in non-zeros, or _NEVER where not allowed."""
    kind, i, j, sign, other = move[0], move[1], move[2], move[3], move[4]
    if back:
        sign, other = -sign, -other
    if kind < 3:  # X: rows of u and w, Y: rows of v and columns of u, Z: columns of w and v
        near, far, along, across = factors[kind], factors[(kind + 2) % 3], (1, 1, 2)[kind], (1, 2, 2)[kind]
        first, second = _lines(near, along, i, j, sign, apply), _lines(far, across, j, i, other, apply)
    else:
        first = _term(factors[(kind + 1) % 3], i, j, sign, apply)
        second = _term(factors[(kind + 2) % 3], j, i, other, apply)
    return _NEVER if first == _NEVER or second == _NEVER else first + second


@compiled
def _propose(u: Any, v: Any, w: Any, flips: bool, state: Any, move: Any) -> Any:
    """A random ``move``, not yet done: the change in non-zeros, or _NEVER where it is not allowed."""
    kind = _below(state, 6 if flips else 3)
    n = len(u)
    if kind == 0:
        n = u.shape[1]
    elif kind == 1:
        n = u.shape[2]
    elif kind == 2:
        n = w.shape[2]
    if n < 2:
        return _NEVER
    i, j = _below(state, n), _below(state, n - 1)
    j += int(j >= i)
    sign = 2 * _below(state, 2) - 1
    other = -sign
    if kind >= 3:
        same = _parallel((u, v, w)[kind - 3], i, j)
        if same == 0:
            return _NEVER
        other = -same * sign
    move[0], move[1], move[2], move[3], move[4] = kind, i, j, sign, other
    return _change((u, v, w), move, False, False)


@compiled
def _accepted(change: int, heat: float, state: Any) -> Any:
    """Metropolis' rule."""
    return change <= 0 or np.float64(_below(state, 1 << 30)) / (1 << 30) < np.exp(-change / heat)


@compiled
def _keep(factors: Any, best: Any) -> None:
    """Copies three factors, entry by entry: assignments of whole arrays take seconds to compile."""
    for p in range(3):
        for q in range(factors[p].shape[0]):
            for i in range(factors[p].shape[1]):
                for j in range(factors[p].shape[2]):
                    best[p][q, i, j] = factors[p][q, i, j]


@compiled
def _fewer_nonzeros(
    u: Any, v: Any, w: Any, best: Any, steps: int, hot: float, cold: float, flips: bool, state: Any
) -> None:
    """Annealing of (u, v, w) in place, temperature from hot to cold, for few non-zeros; ``best`` takes the best met."""
    now = low = 0
    move = np.zeros(5, np.int64)
    _keep((u, v, w), best)
    for t in range(steps):
        change = _propose(u, v, w, flips, state, move)
        if change != _NEVER and _accepted(change, hot + (cold - hot) * t / steps, state):
            _change((u, v, w), move, True, False)
            now += change
            if now < low:
                low = now
                _keep((u, v, w), best)


@compiled
def _fewer_shared(
    u: Any, v: Any, w: Any, best: Any, steps: int, hot: float, cold: float, flips: bool, state: Any, order: int,
    weight: float,
) -> None:  # fmt: skip
    """The same for the additions of greedy programs of u, v and w: that of w stands for the decoder, its transpose,
    since the counts of the two differ by a constant."""
    factors = (u, v, w)
    r = len(u)
    widest = max(u[0].size, v[0].size, w[0].size)
    cap = widest + (r * widest) // 2 + 1
    work, counts = np.empty((r, cap), np.int8), np.empty((2, cap, cap), np.int16)
    cost = np.zeros(3, np.int64)
    for p in range(3):
        cost[p] = _shared(factors[p].reshape(r, -1), order, weight, work, counts)
    trial = cost.copy()
    low = cost.sum()
    move = np.zeros(5, np.int64)
    _keep((u, v, w), best)
    for t in range(steps):
        if _propose(u, v, w, flips, state, move) == _NEVER:
            continue
        _change((u, v, w), move, True, False)
        idle = (1, 2, 0, 0, 1, 2)[move[0]]  # X touches u and w, Y v and u, Z w and v; a flip leaves what is common
        for p in range(3):
            trial[p] = cost[p] if p == idle else _shared(factors[p].reshape(r, -1), order, weight, work, counts)
        if not _accepted(trial.sum() - cost.sum(), hot + (cold - hot) * t / steps, state):
            _change((u, v, w), move, True, True)
            continue
        for p in range(3):
            cost[p] = trial[p]
        if cost.sum() < low:
            low = cost.sum()
            _keep((u, v, w), best)


def shared(matrix: npt.ArrayLike, order: int = 0) -> int:
    """(rows, columns), ternary: additions of one greedy elimination, as ``programs.linear_program`` makes them."""
    table = np.ascontiguousarray(matrix, dtype=np.int8)
    rows, columns = table.shape
    cap = columns + rows * columns // 2 + 1
    work, counts = np.empty((rows, cap), np.int8), np.empty((2, cap, cap), np.int16)
    return int(_shared(table, order, tie_break_weight(order), work, counts))


@dataclass(frozen=True)
class Fewest:
    """A scheme with few additions and its programs, beside those of the scheme that it was made of."""

    scheme: Scheme
    before: SchemePrograms
    after: SchemePrograms


def fewest_additions(
    scheme: Scheme, rng: np.random.Generator, *, rounds: int = 4, steps: int = 200_000, flips: bool = True
) -> Fewest:
    """<m,k,n>, rank r, ring ZT, exact: the same rank with as few additions as annealing finds, common sums shared.

    Every other round starts from a form with few non-zeros, the others from the scheme itself. A round of 200000
    proposals takes about 1 s for <3,3,3> of rank 23, 3 to 7 s for <4,4,4> of rank 49. Without ``flips`` the result
    is the scheme in another integer basis. Changing the bases of operands and result for good (Karstadt and Schwartz,
    "Matrix multiplication, a little faster", SPAA 2017: 12 additions for <2,2,2>) saves more and is not done here.

    Raises SchemeError for schemes that are not ternary or not exact.
    """
    before = scheme_programs(scheme)
    best = (before.additions, score.additions(scheme), scheme.id)
    found, after = scheme, before
    for turn in range(rounds):
        start = improved(scheme, rng, steps, flips=flips) if turn % 2 else scheme
        trial = improved(start, rng, steps, flips=flips, share=True)
        programs = scheme_programs(trial)
        value = (programs.additions, score.additions(trial), trial.id)
        if value < best:
            best, found, after = value, trial, programs
    return Fewest(found, before, after)


def improved(
    scheme: Scheme,
    rng: np.random.Generator,
    steps: int,
    *,
    heat: tuple[float, float] = (1.0, 0.1),
    flips: bool = True,
    share: bool = False,
) -> Scheme:
    """<m,k,n>, rank r, ring ZT: the best scheme of one annealing of that many proposals, exact and ternary as before.

    ``heat`` is the first and the last temperature, in additions. What is made small are the non-zeros, or with
    ``share`` the additions of greedy programs, which takes far longer. Raises SchemeError for schemes that are not
    ternary or do not compute A B.
    """
    if scheme.ring.name != "ZT":
        raise SchemeError(f"only ternary schemes (ZT) are given fewer additions, not {scheme.ring.name}")
    if not _is_exact(scheme):
        raise SchemeError(f"{scheme!r} is not exact: only exact schemes keep their value under a change of basis")
    now = tuple(np.array(f, dtype=np.int8) for f in scheme.factors)
    best = tuple(f.copy() for f in now)
    order = int(rng.integers(1 << 30))
    state = rng.integers(1 << 63, size=1, dtype=np.uint64)
    if share:
        _fewer_shared(*now, best, steps, *heat, flips, state, order, tie_break_weight(order))
    else:
        _fewer_nonzeros(*now, best, steps, *heat, flips, state)
    found = Scheme(scheme.shape, "ZT", *best)
    if not _is_exact(found):
        raise AssertionError("a move changed the value of a scheme; this is a bug")
    return found


def _is_exact(scheme: Scheme) -> bool:
    return np.array_equal(triple_sum(*scheme.flat()), matmul_tensor(scheme.shape))
