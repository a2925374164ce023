"""The bilinear scheme (u, v, w) of rank r for <m,k,n>: the one value that every part of stl-search passes on.

C_hat = sum_q  w[q] * <u[q], A> * <v[q], B>      A: (m, k)   B: (k, n)   C: (m, n), never transposed
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search import rings
from stl_search.errors import BudgetError, FormatError, SchemeError, VerificationError
from stl_search.rings import Ring

__all__ = [
    "FORMAT",
    "MAX_RANK",
    "MAX_SIDE",
    "MAX_TENSOR",
    "Scheme",
    "Shape",
    "as_integers",
    "dump_scheme_object",
    "matmul_tensor",
    "parse_shape",
    "triple_sum",
]

FORMAT = "stl-scheme/1"
MAX_SIDE = 64  # largest m, k or n that is read: beyond, a dense tensor of (mk)(kn)(mn) entries has no use here
MAX_RANK = 1 << 16
MAX_TENSOR = 1 << 25  # entries of a dense tensor (mk)(kn)(mn) that is formed in full; <17,17,17> fits

Shape = tuple[int, int, int]
Array = npt.NDArray[Any]


def parse_shape(value: Any) -> Shape:
    """A shape (m, k, n) from a list of three integers in 1..64; raises SchemeError otherwise.

    >>> parse_shape([2, 3, 4])
    (2, 3, 4)
    """
    try:
        sides = tuple(value)
    except TypeError:
        sides = ()
    if len(sides) != 3 or not all(isinstance(s, int | np.integer) and not isinstance(s, bool) for s in sides):
        raise SchemeError(f"a shape is three integers m, k, n, not {value!r:.60}")
    if not all(1 <= s <= MAX_SIDE for s in sides):
        shown = ",".join(str(s) if abs(s) < 10**9 else "huge" for s in sides)
        raise SchemeError(f"shape {shown}: every side must be 1..{MAX_SIDE}")
    return (int(sides[0]), int(sides[1]), int(sides[2]))


def matmul_tensor(shape: Shape) -> npt.NDArray[np.int8]:
    """T: (m*k, k*n, m*n), int8. T[ak+b, bn+c, an+c] = 1: the tensor of C = A B for A (m, k) and B (k, n), row-major.

    >>> int(matmul_tensor((2, 3, 4)).sum())
    24
    """
    m, k, n = shape
    _check_tensor((m * k, k * n, m * n))
    t = np.zeros((m, k, k, n, m, n), dtype=np.int8)
    a, b, c = np.ogrid[:m, :k, :n]
    t[a, b, b, c, a, c] = 1
    return t.reshape(m * k, k * n, m * n)


def _check_tensor(sides: tuple[int, int, int]) -> None:
    if math.prod(sides) > MAX_TENSOR:
        raise BudgetError(f"a tensor of {' x '.join(map(str, sides))} entries is above the limit of {MAX_TENSOR}")


@dataclass(frozen=True, eq=False)
class Scheme:
    """u: (r, m, k), v: (r, k, n), w: (r, m, n) over ``ring``; frozen, arrays are not writeable.

    Z2 and ZT are held as int8, Z as int64 (Python integers where they do not fit), Q as integers and fractions,
    R as float64, C as complex128. Factors may be given flat, (r, m*k) and so on. A ``Scheme`` claims nothing: what
    it computes is for ``stl_search.verify`` to say.

    Raises SchemeError for wrong shapes, NaN, infinity, and coefficients outside the ring.

    >>> s = Scheme((1, 1, 1), "ZT", [[1]], [[1]], [[1]])
    >>> s.rank, s.name, s == Scheme.from_json(s.to_json())
    (1, '1x1x1_r1_ZT', True)
    """

    shape: Shape
    ring: Ring
    u: Array = field(repr=False)
    v: Array = field(repr=False)
    w: Array = field(repr=False)

    def __init__(self, shape: Any, ring: str | Ring, u: Any, v: Any, w: Any) -> None:
        m, k, n = shape = parse_shape(shape)
        ring = rings.get(ring)
        factors = []
        for name, value, rows, cols in (("u", u, m, k), ("v", v, k, n), ("w", w, m, n)):
            factors.append(_factor(name, value, rows, cols, ring))
        ranks = {len(f) for f in factors}
        if len(ranks) != 1:
            raise SchemeError("u, v and w have " + ", ".join(str(len(f)) for f in factors) + " terms; they must agree")
        if ranks.pop() > MAX_RANK:
            raise SchemeError(f"rank {len(factors[0])} is above the limit {MAX_RANK}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "ring", ring)
        for name, value in zip("uvw", factors, strict=True):
            object.__setattr__(self, name, value)

    @property
    def rank(self) -> int:
        """r, the number of products."""
        return len(self.u)

    @property
    def factors(self) -> tuple[Array, Array, Array]:
        """(u, v, w)."""
        return self.u, self.v, self.w

    @property
    def volume(self) -> int:
        """m*k*n, the number of products of the classical algorithm."""
        m, k, n = self.shape
        return m * k * n

    @property
    def name(self) -> str:
        """``{m}x{k}x{n}_r{rank}_{ring}``, the start of its file name."""
        return f"{'x'.join(map(str, self.shape))}_r{self.rank}_{self.ring.name}"

    def flat(self) -> tuple[Array, Array, Array]:
        """(u, v, w) as (r, m*k), (r, k*n), (r, m*n), row-major views."""
        return tuple(f.reshape(self.rank, f.shape[1] * f.shape[2]) for f in self.factors)  # type: ignore[return-value]

    def as_float(self) -> tuple[Array, Array, Array]:
        """(u, v, w) as float64 (complex128 for C), rounded to nearest; the form that is run.

        Raises VerificationError for integers and fractions beyond the range of a double.
        """
        kind = np.complex128 if self.ring.name == "C" else np.float64
        try:
            return tuple(f.astype(kind) for f in self.factors)  # type: ignore[return-value]
        except OverflowError:
            raise VerificationError("a coefficient is beyond the range of a double: the scheme cannot be run") from None

    def terms(self) -> Iterator[tuple[Array, Array, Array]]:
        """(u[q], v[q], w[q]) for q = 0 .. r-1."""
        return zip(self.u, self.v, self.w, strict=True)

    def coefficients(self) -> Iterator[Any]:
        """Every coefficient as a Python number, u first, then v, then w."""
        for f in self.factors:
            yield from f.ravel().tolist()

    @cached_property
    def id(self) -> str:
        """sha256 (64 hex digits) of shape, ring and sorted sign-normalised terms: names coefficients, not orbits.

        In each term the first non-zero entries of u[q] and v[q] are made positive (over C: positive real part, or
        zero real part and positive imaginary part) and w[q] takes the signs; over Z2 nothing is changed.
        """
        lines = []
        for term in zip(*self.flat(), strict=True):
            u, v, w = (row.tolist() for row in term)
            if self.ring.characteristic != 2:
                sign = 1
                for row in (u, v):
                    if _leads_negative(row):
                        row[:] = [-x for x in row]
                        sign = -sign
                if sign < 0:
                    w = [-x for x in w]
            lines.append("|".join(" ".join(self.ring.render(x) for x in row) for row in (u, v, w)))
        head = f"{FORMAT} {' '.join(map(str, self.shape))} {self.ring.name}\n"
        return hashlib.sha256((head + "\n".join(sorted(lines))).encode()).hexdigest()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for f in self.factors:  # copies and pickles come back writeable
            f.flags.writeable = False

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Scheme) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Scheme {self.name} {self.id[:8]}>"

    def to_json(self) -> dict[str, Any]:
        """The coefficient part of a ``stl-scheme/1`` object: format, shape, rank, ring, u, v, w, id."""
        rows = {
            name: [[self.ring.to_json(x) for x in row.tolist()] for row in f]
            for name, f in zip("uvw", self.flat(), strict=True)
        }
        return {
            "format": FORMAT,
            "shape": list(self.shape),
            "rank": self.rank,
            "ring": self.ring.name,
            **rows,
            "id": self.id,
        }

    @classmethod
    def from_json(cls, obj: Any) -> Scheme:
        """The scheme of a ``stl-scheme/1`` object; its other claims (id, certificate, figures) are not looked at.

        Raises FormatError for what is not such an object, VerificationError for a coefficient outside the ring,
        each naming the place.
        """
        if not isinstance(obj, dict):
            raise FormatError("not a scheme file: the top level is no JSON object")
        if obj.get("format") != FORMAT:
            raise FormatError(f"format is {obj.get('format')!r:.60}, must be {FORMAT!r}")
        for key in ("shape", "rank", "ring", "u", "v", "w"):
            if key not in obj:
                raise FormatError(f"{key!r} is missing")
        if obj["ring"] not in rings.NAMES:
            raise FormatError(f"unknown ring {obj['ring']!r:.60}; known: {', '.join(rings.NAMES)}")
        ring = rings.get(obj["ring"])
        try:
            m, k, n = shape = parse_shape(obj["shape"])
        except SchemeError as error:
            raise FormatError(str(error)) from None
        rank = obj["rank"]
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank <= MAX_RANK:
            raise FormatError(f"rank is {rank!r:.60}, must be an integer 0..{MAX_RANK}")
        parsed, outside = [], ""
        for name, width in (("u", m * k), ("v", k * n), ("w", m * n)):
            rows = obj[name]
            if not isinstance(rows, list) or len(rows) != rank:
                count = len(rows) if isinstance(rows, list) else type(rows).__name__
                raise FormatError(f"{name} has {count} rows, rank says {rank}")
            values = []
            for q, row in enumerate(rows):
                if not isinstance(row, list) or len(row) != width:
                    count = len(row) if isinstance(row, list) else type(row).__name__
                    raise FormatError(f"{name}[{q}] has {count} entries, shape {m},{k},{n} asks for {width}")
                for i, entry in enumerate(row):
                    try:
                        value = ring.parse(entry)
                    except FormatError as error:
                        raise FormatError(f"{name}[{q}][{i}]: {error}") from None
                    if not outside and not ring.contains(value):
                        outside = f"{name}[{q}][{i}] = {ring.render(value):.60} is not in {ring.name}"
                    values.append(value)
            parsed.append(values)
        if outside:
            raise VerificationError(outside)
        sides = ((m, k), (k, n), (m, n))
        return cls(shape, ring, *(_pack(p, ring).reshape(rank, *s) for p, s in zip(parsed, sides, strict=True)))


def dump_scheme_object(obj: dict[str, Any]) -> str:
    """The text of a scheme file: JSON, one key a line, one row of u, v, w a line; ends with a newline."""
    lines = []
    for key, value in obj.items():
        if key in ("u", "v", "w") and value:
            body = (
                "[\n"
                + ",\n".join("  " + json.dumps(row, separators=(",", ":"), allow_nan=False) for row in value)
                + "\n ]"
            )
        else:
            body = json.dumps(value, ensure_ascii=False, allow_nan=False)
        lines.append(f" {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _leads_negative(row: list[Any]) -> bool:
    for x in row:
        if x != 0:
            return bool((x.real, x.imag) < (0, 0)) if isinstance(x, complex) else bool(x < 0)
    return False


def _pack(values: list[Any], ring: Ring) -> Array:
    """A flat list of ring elements as the array that holds that ring."""
    if ring.name in ("Z2", "ZT"):
        return np.array(values, dtype=np.int8)
    if ring.name == "R":
        return np.array(values, dtype=np.float64)
    if ring.name == "C":
        return np.array(values, dtype=np.complex128)
    if ring.name == "Z" and all(-(2**62) < x < 2**62 for x in values):
        return np.array(values, dtype=np.int64)
    packed = np.empty(len(values), dtype=object)
    packed[:] = values
    return packed


def _factor(name: str, value: Any, rows: int, cols: int, ring: Ring) -> Array:
    """One factor as a fresh, checked, read-only array (r, rows, cols)."""
    try:
        array = np.asarray(value)
        if ring.exact and array.dtype.kind == "f" and not isinstance(value, np.ndarray):
            array = np.asarray(value, dtype=object)  # numpy made doubles of 2**63 and -1, or of 2**60 + 1 and 0.5
    except ValueError:
        raise SchemeError(f"{name} is ragged: every term needs {rows} x {cols} entries") from None
    if array.size == 0 and array.ndim >= 1 and len(array) == 0:
        array = np.zeros((0, rows, cols), dtype=np.int8)
    if array.shape[1:] not in ((rows, cols), (rows * cols,)):
        raise SchemeError(f"{name} has shape {array.shape}, must be (r, {rows}, {cols}) or (r, {rows * cols})")
    array = array.reshape(len(array), rows, cols)
    if ring.name in ("R", "C") and array.dtype.kind in "iuf" + ("c" if ring.name == "C" else ""):
        out = array.astype(np.float64 if ring.name == "R" else np.complex128) + 0.0
        if not np.isfinite(out).all():
            raise SchemeError(f"{name} holds NaN or infinity at {_first(~np.isfinite(out))}")
    elif ring.name in ("Z2", "ZT") and array.dtype.kind in "iub":
        allowed = np.isin(array, (0, 1) if ring.name == "Z2" else (-1, 0, 1))
        if not allowed.all():
            at = _first(~allowed)
            raise SchemeError(f"{name}{at} = {array[tuple(at)]} is not in {ring.name}")
        out = array.astype(np.int8)
    else:
        values = []
        for place, x in np.ndenumerate(array):
            try:
                values.append(ring.coerce(x))
            except SchemeError as error:
                raise SchemeError(f"{name}{list(place)}: {error}") from None
        out = _pack(values, ring).reshape(array.shape)
    out = np.ascontiguousarray(out)
    out.flags.writeable = False
    return out


def _first(mask: Array) -> list[int]:
    return [int(i) for i in np.argwhere(mask)[0]]


def as_integers(factor: Array) -> tuple[Array, Fraction]:
    """A factor as (integers, scale): factor = integers * scale exactly; int64 where it fits, else Python integers.

    Doubles are dyadic rationals, so R is covered too; complex factors are the caller's to split.
    """
    if factor.dtype.kind in "iu":
        return factor.astype(np.int64), Fraction(1)
    ratios = [x.as_integer_ratio() for x in factor.ravel().tolist()]
    denominator = math.lcm(*{below for _, below in ratios})
    whole = [above * (denominator // below) for above, below in ratios]
    out: Array = np.empty(len(whole), dtype=object)
    out[:] = whole
    if all(-(2**62) < x < 2**62 for x in whole):
        out = out.astype(np.int64)
    return out.reshape(factor.shape), Fraction(1, denominator)


def triple_sum(u: Array, v: Array, w: Array) -> Array:
    """sum_q u[q] (x) v[q] (x) w[q] for flat integer factors (r, I), (r, J), (r, K): (I, J, K), exactly.

    Runs in float64 while every partial sum is provably below 2**53, in int64 below 2**62, in Python integers beyond:
    it can be slow, it cannot overflow.
    """
    r = len(u)
    shape = (u.shape[1], v.shape[1], w.shape[1])
    bound = max(r, 1)  # at least as large as every single entry, too
    for f in (u, v, w):
        bound *= max(1, *(abs(int(x)) for x in (f.max(), f.min()))) if f.size else 1
    kind: Any = np.float64 if bound < 2**53 else np.int64 if bound < 2**62 else object
    u, v, w = (f.astype(object).astype(kind) if f.dtype == object else f.astype(kind) for f in (u, v, w))
    out: Array = np.zeros(shape, dtype=object if kind is object else np.int64)
    for i in range(shape[0] if r else 0):  # a slab at a time bounds the memory
        used = np.flatnonzero(u[:, i])
        if len(used):
            out[i] = ((u[used, i, None] * v[used]).T @ w[used]).astype(out.dtype)
    return out
