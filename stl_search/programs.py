"""Straight-line programs of linear maps: how few additions encode A and B and decode C, common sums computed once.

``linear_program`` eliminates common pairs greedily (Paar, "Optimized arithmetic for Reed-Solomon encoders", ISIT 1997),
with signs; ``transposed`` turns a program of a map into one of its transpose, which is how good decoders are found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from stl_search.errors import SchemeError
from stl_search.scheme import Array, Scheme

__all__ = [
    "Program",
    "SchemePrograms",
    "additions_shared",
    "linear_program",
    "scheme_programs",
    "tie_break",
    "tie_break_weight",
]

RESTARTS = 8  # orders of tie-breaking that are tried
_SLOW = 4  # the transpose of a matrix is left out where it asks for that many times the work
_EFFORT = 2_000_000  # pairs looked at in all restarts of a scheme, about: records are counted when they are read
_MAX_EFFORT = 50_000_000  # of one restart of a scheme whose shared additions are still counted

Number = int | Fraction
Step = tuple[int, int, int, int]
Rows = list[dict[int, int]]
Pair = tuple[int, int, int, int]

_WORD = (1 << 64) - 1
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Program:
    """A linear map (len(outputs), inputs): node t < inputs is input t, node inputs + t is made by step t.

    Step (p, i, q, j) makes p * node[i] + q * node[j], p and q integers; output (c, i) is c * node[i], (0, 0) is zero.
    Each step is one addition, subtractions included. Factors other than 1 and -1 are counted as ``scalings``, apart.

    >>> Program(2, ((1, 0, -1, 1),), ((1, 2), (-2, 2))).matrix().tolist()
    [[1, -1], [-2, 2]]
    """

    inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[tuple[Number, int], ...]

    @property
    def additions(self) -> int:
        """The number of steps."""
        return len(self.steps)

    @property
    def scalings(self) -> int:
        """The number of multiplications by constants other than 0, 1 and -1."""
        factors = [c for p, _, q, _ in self.steps for c in (p, q)] + [c for c, _ in self.outputs]
        return sum(c not in (0, 1, -1) for c in factors)

    def evaluate(self, x: npt.ArrayLike) -> Array:
        """(inputs, ...) -> (outputs, ...): the map applied, in the arithmetic of ``x``."""
        given = np.asarray(x)
        nodes = list(given)
        if len(nodes) != self.inputs:
            raise SchemeError(f"the program takes {self.inputs} inputs, not {len(nodes)}")
        for p, i, q, j in self.steps:
            nodes.append(p * nodes[i] + q * nodes[j])
        zero = np.zeros(given.shape[1:], dtype=given.dtype)
        out = np.array([c * nodes[i] if c else zero for c, i in self.outputs])
        return out.reshape(len(self.outputs), *given.shape[1:])

    def matrix(self) -> Array:
        """(outputs, inputs): the map itself, exactly, as Python integers and fractions."""
        unit: Array = np.zeros((self.inputs, self.inputs), dtype=object)
        np.fill_diagonal(unit, 1)
        return self.evaluate(unit)

    def transposed(self) -> Program:
        """The program of the transpose, every step run backwards.

        A map without zero rows and columns, all of whose steps are used, needs len(outputs) - inputs additions more.
        Bordewijk, "Inter-reciprocity applied to electrical networks", Appl. Sci. Res. 6 (1957); Tellegen.

        >>> Program(2, ((1, 0, 1, 1), (1, 2, 1, 0)), ((1, 2), (1, 3))).transposed().matrix().tolist()
        [[1, 2], [1, 1]]
        """
        uses: list[list[tuple[Number, int]]] = [[] for _ in range(self.inputs + len(self.steps))]
        steps: list[Step] = []
        for row, (c, node) in enumerate(self.outputs):
            if c:
                uses[node].append((c, row))
        for t in reversed(range(len(self.steps))):
            c, node = _sum(uses[self.inputs + t], steps, len(self.outputs))
            if c:
                p, i, q, j = self.steps[t]
                uses[i].append((p * c, node))
                uses[j].append((q * c, node))
        outputs = tuple(_sum(uses[i], steps, len(self.outputs)) for i in range(self.inputs))
        return Program(len(self.outputs), tuple(steps), outputs)


def _sum(terms: Iterable[tuple[Number, int]], steps: list[Step], inputs: int) -> tuple[Number, int]:
    """c * node = the sum of (coefficient, node) pairs, by steps appended to ``steps``."""
    total: tuple[Number, int] = (0, 0)
    for d, node in terms:
        c, last = total
        if c == 0 or node == last:
            total = (c + d, node)
            continue
        g, p, q = _ratio(c, d)
        steps.append((p, last, q, node))
        total = (g, inputs + len(steps) - 1)
    return total if total[0] else (0, 0)


def _ratio(c: Number, d: Number) -> tuple[Number, int, int]:
    """(g, p, q) with c = g p, d = g q, p and q coprime, p > 0."""
    if isinstance(c, int) and isinstance(d, int):
        whole = math.gcd(c, d) if c > 0 else -math.gcd(c, d)
        return whole, c // whole, d // whole
    c, d = Fraction(c), Fraction(d)
    common = math.lcm(c.denominator, d.denominator)
    g, p, q = _ratio(int(c * common), int(d * common))
    return Fraction(g) / common, p, q


def tie_break(order: int, pair: Pair) -> float:
    """A number in [0, 1) for a pair under an order of tie-breaking: splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    i, j, p, q = pair
    code = 2 * (65536 * i + j) + (q < 0) + ((p - 1) << 40) + ((abs(q) - 1) << 52)
    z = (order * _MIX1 + (code + 1) * _GOLDEN) & _WORD
    z = ((z ^ (z >> 30)) * _MIX1) & _WORD
    z = ((z ^ (z >> 27)) * _MIX2) & _WORD
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def tie_break_weight(order: int) -> float:
    """How much a tie-break weighs against one more occurrence: even orders choose among the most frequent pairs only,
    odd ones now and then a pair that is a little less frequent."""
    return 0.999 if order % 2 == 0 else 1.999


def linear_program(matrix: npt.ArrayLike, restarts: int = RESTARTS) -> Program:
    """(rows, columns) of integers or fractions -> a program with as few additions as greedy elimination finds.

    While two columns, up to sign and scale, stand together in two rows or more, such a pair becomes a new node: the
    most frequent one, ties broken in ``restarts`` ways. The transpose is programmed too, unless that takes far longer,
    and the shorter program taken. Deterministic; the result is proved to be the matrix. Raises SchemeError for floats.

    >>> linear_program([[1, 1, 0], [1, 1, 1], [-1, -1, 1]]).additions
    3
    """
    table = np.asarray(matrix)
    if table.ndim != 2 or table.dtype.kind not in "iuO":
        raise SchemeError(f"a program is made of a matrix of integers or fractions, not of {table.dtype} {table.shape}")
    best: Program | None = None
    for turned in _ways(table):
        rows, scale = _rows(table.T if turned else table)
        for order in range(max(1, restarts)):
            found = _eliminate(rows, table.shape[1 - turned], order, scale)
            if turned:
                found = found.transposed()
            if best is None or found.additions < best.additions:
                best = found
    if best is None or not np.array_equal(best.matrix(), table.astype(object)):
        raise AssertionError("a program differs from its matrix; this is a bug")
    return best


def _ways(table: Array) -> list[bool]:
    """Which of the matrix (False) and its transpose (True) are worth eliminating."""
    plain, turned = _work(table), _work(table.T)
    return [way for way, work in ((False, plain), (True, turned)) if work <= _SLOW * min(plain, turned)]


def _work(table: Array) -> int:
    """Pairs looked at by one elimination, about: those of all rows, once for every non-zero."""
    filled = np.count_nonzero(table, axis=1).astype(object)
    return int((filled * filled).sum() * filled.sum())


def _rows(table: Array) -> tuple[Rows, int]:
    """The non-zeros of each row as integers, times ``scale``."""
    values = [[(j, x) for j, x in enumerate(row) if x] for row in table.tolist()]
    scale = math.lcm(*(Fraction(x).denominator for row in values for _, x in row))
    return [{j: int(x * scale) for j, x in row} for row in values], scale


def _pair(row: dict[int, int], i: int, j: int) -> tuple[int, Pair]:
    """(g, (i, j, p, q)), i < j, for the entries g p and g q of a row."""
    if i > j:
        i, j = j, i
    g, p, q = _ratio(row[i], row[j])
    assert isinstance(g, int)
    return g, (i, j, p, q)


def _eliminate(start: Rows, inputs: int, order: int, scale: int) -> Program:
    """One greedy elimination; ``additions._shared`` is its compiled form for ternary matrices and counts the same."""
    rows = [dict(row) for row in start]
    counts: dict[Pair, int] = {}
    for row in rows:
        for i in row:
            for j in row:
                if i < j:
                    pair = _pair(row, i, j)[1]
                    counts[pair] = counts.get(pair, 0) + 1
    steps: list[Step] = []
    weight = tie_break_weight(order)
    ties: dict[Pair, float] = {}
    while True:
        best, chosen = 0.0, None
        most = max(counts.values(), default=0)
        for pair, count in counts.items():
            if count >= 2 and count + weight > most:
                if pair not in ties:
                    ties[pair] = weight * tie_break(order, pair)
                if count + ties[pair] > best:
                    best, chosen = count + ties[pair], pair
        if chosen is None:
            break
        i, j, p, q = chosen
        node = inputs + len(steps)
        steps.append((p, i, q, j))
        for row in rows:
            if i not in row or j not in row or _pair(row, i, j)[1] != chosen:
                continue
            g = _pair(row, i, j)[0]
            for old in (i, j):
                for k in row:
                    if k != old and not (old == j and k == i):
                        counts[_pair(row, old, k)[1]] -= 1
            del row[i], row[j]
            row[node] = g
            for k in row:
                if k != node:
                    pair = _pair(row, k, node)[1]
                    counts[pair] = counts.get(pair, 0) + 1
        counts = {pair: count for pair, count in counts.items() if count}
    outputs = [_sum(((c, i) for i, c in row.items()), steps, inputs) for row in rows]
    if scale != 1:
        outputs = [(Fraction(c) / scale, i) for c, i in outputs]
    return Program(inputs, tuple(steps), tuple(outputs))


@dataclass(frozen=True)
class SchemePrograms:
    """A scheme as it is run with shared sums: u (r, mk) and v (r, kn) encode, w (mn, r) decodes."""

    u: Program
    v: Program
    w: Program

    @property
    def additions(self) -> int:
        """Additions of the three programs together."""
        return self.u.additions + self.v.additions + self.w.additions


def scheme_programs(scheme: Scheme, restarts: int | None = None) -> SchemePrograms:
    """Programs of u (r, mk), v (r, kn) and w (mn, r) of an exact scheme; deterministic.

    Over Z2 the coefficients are taken as the integers 0 and 1. Fewer restarts are made for big schemes, unless told.
    Raises SchemeError for R and C.

    >>> from stl_search.transform import classical
    >>> scheme_programs(classical((2, 2, 2))).additions
    4
    """
    if not scheme.ring.exact:
        raise SchemeError(f"additions are shared among exact coefficients, not over {scheme.ring.name}")
    if restarts is None:
        restarts = min(RESTARTS, _EFFORT // (1 + _effort(scheme)))
    u, v, w = scheme.flat()
    return SchemePrograms(*(linear_program(f, restarts) for f in (u, v, w.T)))


def additions_shared(scheme: Scheme) -> int | None:
    """Additions when common sums are computed once: the figure of a record; None over R and C and for huge schemes."""
    if not scheme.ring.exact or _effort(scheme) > _MAX_EFFORT:
        return None
    return scheme_programs(scheme).additions


def _effort(scheme: Scheme) -> int:
    return sum(min(_work(f), _work(f.T)) for f in scheme.flat())
