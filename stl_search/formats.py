"""Scheme files of other projects, read and written in their own formats: the border where foreign conventions end.

Everywhere else u is (r, m, k), v (r, k, n), w (r, m, n), row-major, C not transposed. The files differ:

    name         files                what they hold                                                         C
    stl          .json                this program's own ``stl-scheme/1``                                    plain
    perminov     .json                keys n = [m, k, n], m = rank, z2, u, v, w; fractions as "1/2"          transposed
    mathematica  .m                   {{A, B, C}, ...}, nested lists                                         transposed
    maple        .mpl                 TriadSet([Triad([Matrix(..), Matrix(..), Matrix(..)]), ...])           transposed
    plinopt      _L _R _P .sms        three sparse matrices: L (r, mk), R (r, kn), P (mn, r)                 plain
    products     .exp .txt            (a11+a12)*(b11-b22)*(c11), one product a line, 1-based                 transposed
    arbenson     (none)               three blocks U, V, W set off by #, entries x products; border-rank
                                      files hold Laurent polynomials in a letter x: x, -x2, xi, (1+x2i)      plain
    khoruzhii    .npy                 int64 (numerator, denominator) pairs: all of U, then V, then W         plain
    npz          .npz                 numeric arrays U, V, W, entries x products                             plain
    alphatensor  .npz                 keys "m,k,n", object arrays (U, V, W), entries x products; read only   transposed

Nothing a file says is trusted: ``load`` counts the rank and returns only what it has proved in the convention of the
file's own format. Nothing is unpickled: of the pickles inside AlphaTensor's files a small interpreter of our own reads
numeric arrays and refuses everything else.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from stl_search import rings
from stl_search.errors import BudgetError, FormatError, SchemeError, UsageError, VerificationError
from stl_search.scheme import (
    MAX_RANK,
    MAX_SIDE,
    MAX_TENSOR,
    Array,
    Scheme,
    Shape,
    as_integers,
    dump_scheme_object,
    matmul_tensor,
    parse_shape,
    triple_sum,
)
from stl_search.verify import first_failure, residual, verify

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "Format",
    "LaurentScheme",
    "Source",
    "Table",
    "detect",
    "dumps",
    "encode",
    "load",
    "read",
    "register",
    "settle",
    "write",
]

MAX_BYTES = 16 << 20  # of a file, and of what an archive unpacks to
MAX_COEFFICIENTS = 1 << 22  # r (mk + kn + mn)
MAX_PARTS = 1 << 26  # entries of the tensor times combinations of powers of x in u, v and w

Number = Any  # int or Fraction


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing: the public functions
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One file to read: its path and its bytes; ``text`` is those bytes as UTF-8."""

    path: Path
    data: bytes = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Source:
        """The bytes of a regular file of at most MAX_BYTES; raises FormatError for anything else."""
        try:
            if not path.is_file():
                raise FormatError("is no regular file" if path.exists() else "no such file")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise FormatError(f"cannot be read: {error.strerror or error}") from None
        if len(data) > MAX_BYTES:
            raise FormatError(f"larger than the limit of {MAX_BYTES >> 20} MiB")
        if not data:
            raise FormatError("the file is empty")
        return cls(path, data)

    @cached_property
    def text(self) -> str:
        """The file as text; raises FormatError, naming the byte, when it is not UTF-8."""
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise FormatError(f"not UTF-8 text: byte {error.start} is 0x{self.data[error.start]:02x}") from None

    def matches(self, pattern: str) -> bool:
        """Whether the file is text in which the regular expression is found."""
        try:
            return re.search(pattern, self.text) is not None
        except FormatError:
            return False


@dataclass(frozen=True)
class Table:
    """What a file says, before proof: u (r, mk), v (r, kn), w (r, mn), arrays of int and Fraction in our convention.

    ``inexact``: the numbers were floating-point, so that they may be meant as approximations.
    """

    shape: Shape
    u: Array = field(repr=False)
    v: Array = field(repr=False)
    w: Array = field(repr=False)
    inexact: bool = False


@dataclass(frozen=True)
class Format:
    """One file format: how it is recognised, read and written.

    ``sniff`` says from a file's content whether it is in this format. ``reader`` takes the file and the shape asked for
    (or None) and returns a ``Table`` (to be proved), a ``LaurentScheme``, or, for our own format, a ``Scheme``.
    ``writer`` returns the files of a scheme, as {ending of the name: bytes}; None when the format is only read.
    ``rings`` are the rings that can be written.
    """

    name: str
    extensions: tuple[str, ...]
    description: str
    sniff: Callable[[Source], bool]
    reader: Callable[[Source, Shape | None], Table | LaurentScheme | Scheme]
    writer: Callable[[Scheme], dict[str, bytes]] | None = None
    rings: tuple[str, ...] = rings.EXACT


FORMATS: dict[str, Format] = {}


def register(new: Format) -> Format:
    """Adds a format to FORMATS and returns it; formats are tried in the order of their registration."""
    if new.name in FORMATS:
        raise UsageError(f"format {new.name!r} is registered already")
    FORMATS[new.name] = new
    return new


def detect(source: Source) -> Format:
    """The format of a file by its content (and, for plinopt, its ending); raises FormatError when none fits."""
    for candidate in FORMATS.values():
        if candidate.sniff(source):
            return candidate
    _ = source.text  # a binary file that is no known one: say so rather than that the text is unknown
    raise FormatError(f"in no format known by its content; name one of: {', '.join(FORMATS)}")


def load(
    path: str | os.PathLike[str], format: str | None = None, shape: Any = None, *, approximate: bool = False
) -> Scheme | LaurentScheme:
    """What a scheme file holds, proved: u (r, m, k), v (r, k, n), w (r, m, n).

    A ``Scheme`` over the smallest of ZT, Z, Q over which its coefficients compute C = A B, else over Z2 when they do so
    modulo 2 only; or a ``LaurentScheme`` whose order of approximation is proved, for files with polynomials in x
    (``settle`` makes a scheme of it). Our own files keep the ring that they state.
    ``shape`` (m, k, n) is needed by no format but khoruzhii's, and there only when several fit; when given, the file
    must have it. ``approximate`` admits floating-point numbers that are exact over no ring, as a scheme over R with
    E < 1 that claims no more than that.

    Raises FormatError (what, and where in the file) for a malformed file, VerificationError, naming the coefficient,
    for a well-formed one that is no such scheme, BudgetError above <16,16,16>.
    """
    shown = _printable(str(path))
    try:
        if shape is not None:
            shape = _asked(shape)
        chosen, source = _open(Path(path), format)
        found = chosen.reader(source, shape)
        if shape is not None and found.shape != shape:
            raise FormatError(f"the file is for <{_dims(found.shape)}>, not for <{_dims(shape)}>")
        if isinstance(found, Table):
            return _prove(found, approximate)
        if isinstance(found, LaurentScheme):
            _ = found.order
        elif found.ring.exact:
            _check_budget(found.shape, found.rank)
            verify(found)
        return found
    except (FormatError, SchemeError) as error:
        raise FormatError(f"{shown}: {error}") from None
    except (VerificationError, BudgetError) as error:
        raise type(error)(f"{shown}: {error}") from None


def settle(found: Scheme | LaurentScheme, *, x: Any = None, noise: float | None = None) -> Scheme:
    """The scheme (u (r, m, k), v (r, k, n), w (r, m, n)) of what ``load`` returned; a Scheme passes through.

    A LaurentScheme is taken at the rational or floating-point ``x``, or at ``best_x(noise)``, noise = d(dtype), the
    relative rounding of encoded operands; exactly one must be given, except that a LaurentScheme that is exact for
    every x is taken at x = 1 when neither is. Raises UsageError.
    """
    if isinstance(found, Scheme):
        return found
    if x is not None and noise is not None:
        raise UsageError("give a value of x or a dtype, not both")
    if x is not None:
        return found.at(x)
    if noise is not None:
        return found.at(found.best_x(noise))
    if found.order is None:
        return found.at(1)
    raise UsageError(
        f"the file holds polynomials in x that approach C = A B with an error of order x^{found.order}: "
        "give a value of x, or a dtype to take the best x for"
    )


def read(
    path: str | os.PathLike[str],
    format: str | None = None,
    shape: Any = None,
    x: Any = None,
    noise: float | None = None,
) -> Scheme:
    """The scheme in a file: ``load`` and ``settle`` in one; u (r, m, k), v (r, k, n), w (r, m, n).

    ``noise`` = d(dtype) asks for a scheme to be run at that precision: it chooses the best x of a border-rank file and
    admits floating-point numbers that are exact over no ring. Raises what ``load`` and ``settle`` raise.
    """
    return settle(load(path, format, shape, approximate=noise is not None), x=x, noise=noise)


def encode(scheme: Scheme, format: str) -> dict[str, bytes]:
    """The files that hold the scheme in a format: {ending added to the name: bytes}; one file, "", but for plinopt.

    Raises UsageError for an unknown or read-only format and for coefficients that it cannot hold, VerificationError for
    a scheme over an exact ring that is not one.
    """
    chosen = _named(format)
    if chosen.writer is None:
        raise UsageError(f"format {chosen.name!r} is only read; written are: {', '.join(_writable())}")
    if scheme.ring.name not in chosen.rings:
        can = [name for name in _writable() if scheme.ring.name in FORMATS[name].rings]
        raise UsageError(f"{chosen.name} files hold no coefficients in {scheme.ring.name}; use {', '.join(can)}")
    if scheme.ring.exact:
        _check_budget(scheme.shape, scheme.rank)
        verify(scheme)
    return chosen.writer(scheme)


def dumps(scheme: Scheme, format: str) -> bytes:
    """The one file that holds the scheme in a format; raises what ``encode`` raises, UsageError for plinopt's three.

    >>> one = Scheme((1, 1, 1), "ZT", [[1]], [[-1]], [[-1]])
    >>> dumps(one, "products")
    b'(a11)*(-b11)*(-c11)\\n'
    """
    files = encode(scheme, format)
    if list(files) != [""]:
        raise UsageError(f"a scheme in format {format!r} is {len(files)} files: use write()")
    return files[""]


def write(scheme: Scheme, path: str | os.PathLike[str], format: str | None = None) -> list[Path]:
    """Writes the scheme and returns the paths written; without ``format``, the first one with the path's extension.

    For plinopt ``path`` is the common start of the three names (``_L.sms``, ``_R.sms``, ``_P.sms`` are added), or any
    of the three. Each file is complete or absent: it is written beside its place and moved there.
    Raises what ``encode`` raises, and UsageError when the place cannot be written.
    """
    path = Path(path)
    if format is None:
        fitting = [name for name in _writable() if path.suffix and path.suffix in FORMATS[name].extensions]
        if not fitting:
            raise UsageError(
                f"the extension of {_printable(path.name)} names no format; name one of: {', '.join(_writable())}"
            )
        format = fitting[0]
    files = encode(scheme, format)
    start = str(path)
    if len(files) > 1:
        start = next((start[: -len(ending)] for ending in files if start.endswith(ending)), start)
    targets = [Path(start + ending) for ending in files]
    for target, data in zip(targets, files.values(), strict=True):
        draft = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            try:
                with draft.open("xb") as file:
                    file.write(data)
                os.replace(draft, target)
            finally:
                draft.unlink(missing_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{_printable(str(target))}: cannot be written: {reason}") from None
    return targets


def _writable() -> list[str]:
    return [name for name, candidate in FORMATS.items() if candidate.writer]


def _named(format: str) -> Format:
    try:
        return FORMATS[format]
    except (KeyError, TypeError):
        raise UsageError(f"unknown format {format!r:.40}; known: {', '.join(FORMATS)}") from None


def _open(path: Path, format: str | None) -> tuple[Format, Source]:
    chosen = None if format is None else _named(format)
    if not os.path.lexists(path) and chosen in (None, FORMATS["plinopt"]) and Path(f"{path}_L.sms").is_file():
        path = Path(f"{path}_L.sms")
    source = Source.open(path)
    return chosen or detect(source), source


def _asked(shape: Any) -> Shape:
    try:
        return parse_shape(shape)
    except SchemeError as error:
        raise UsageError(str(error)) from None


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _dims(shape: Iterable[int]) -> str:
    return ",".join(map(str, shape))


# ---------------------------------------------------------------------------------------------------------------------
# From numbers to proved schemes
# ---------------------------------------------------------------------------------------------------------------------


def _check_budget(shape: Shape, rank: int) -> None:
    """Raises before anything of the size of the tensor or of dense factors is allocated."""
    m, k, n = shape
    if (m * k) * (k * n) * (m * n) > MAX_TENSOR:
        raise BudgetError(f"<{_dims(shape)}> is too large to be proved: (mk)(kn)(mn) is above {MAX_TENSOR}")
    if rank * (m * k + k * n + m * n) > MAX_COEFFICIENTS:
        raise BudgetError(f"{rank} products of <{_dims(shape)}> are more than {MAX_COEFFICIENTS} coefficients")


def _prove(table: Table, approximate: bool) -> Scheme:
    """The scheme over the smallest ring over which it is proved; raises VerificationError, naming the coefficient."""
    shape, factors = table.shape, (table.u, table.v, table.w)
    rank = len(table.u)
    _check_budget(shape, rank)
    if not 1 <= rank <= MAX_RANK:
        raise FormatError(f"{rank} products, must be 1..{MAX_RANK}")
    values = {x for f in factors for x in f.ravel().tolist()}
    ring = rings.smallest_exact(values)
    scheme = Scheme(shape, ring, *(f.astype(np.int8) if ring.name == "ZT" else f for f in factors))
    failure = first_failure(scheme)
    if failure is None:
        return scheme
    modulo = ""
    if all(not isinstance(x, Fraction) or x.denominator % 2 for x in values):
        bits = Scheme(shape, "Z2", *(_modulo_2(f) for f in factors))
        if first_failure(bits) is None:
            return bits
        modulo = ", nor is it one modulo 2"
    if table.inexact and approximate:
        floats = Scheme(shape, "R", *(f.astype(np.float64) for f in factors))
        e = residual(floats)
        if e < 1:
            return floats
        raise VerificationError(
            f"no approximation of <{_dims(shape)}>: E = {float(e):.4g}, where answering 0 has E = 1"
        )
    hint = ""
    if any(_holds(shape, ring.name, table.u, table.v, w) for w in _other_conventions(table.w, shape)):
        hint = "; it is one with C in the other convention, transposed or not: this is another format"
    elif table.inexact:
        hint = "; name a dtype if its floating-point numbers are meant as an approximate scheme"
    raise VerificationError(f"not a <{_dims(shape)}> scheme: {failure}{modulo}{hint}")


def _other_conventions(w: Array, shape: Shape) -> list[Array]:
    """w (r, mn) had its file's C been transposed where the format's is not, and the other way round."""
    m, _, n = shape
    return [w.reshape(len(w), *sides).swapaxes(1, 2).reshape(w.shape) for sides in ((n, m), (m, n))]


def _holds(shape: Shape, ring: str, u: Array, v: Array, w: Array) -> bool:
    scheme = Scheme(shape, ring, u, v, w)
    odd = all(not isinstance(x, Fraction) or x.denominator % 2 for x in scheme.coefficients())
    return first_failure(scheme, 2 if odd else None) is None


def _modulo_2(factor: Array) -> Array:
    """Integers and fractions of odd denominator modulo 2, int8."""
    bits = [(x.numerator & 1) for x in factor.ravel().tolist()]
    return np.array(bits, dtype=np.int8).reshape(factor.shape)


def _shape_of_sizes(sizes: tuple[int, int, int], what: str) -> Shape:
    """(m, k, n) from the sizes of A, B and C; raises FormatError when there is none."""
    mk, kn, mn = sizes
    if mk > 0 and kn > 0 and mn > 0:
        m, k, n = (math.isqrt(p * q // s) for p, q, s in ((mk, mn, kn), (mk, kn, mn), (kn, mn, mk)))
        if (m * k, k * n, m * n) == (mk, kn, mn):
            return parse_shape((m, k, n))
    raise FormatError(f"{what}: {mk}, {kn} and {mn} are mk, kn and mn of no <m,k,n>")


def _table_of_columns(columns: list[Array], shape: Shape, transposed: bool, inexact: bool) -> Table:
    """From arrays of entries x products: U (mk, r), V (kn, r), W (mn, r)."""
    u, v, w = columns
    m, _, n = shape
    rank = u.shape[1]
    if transposed:
        w = w.reshape(n, m, rank).swapaxes(0, 1).reshape(m * n, rank)
    return Table(shape, u.T, v.T, w.T, inexact)


def _objects(values: list[Number], *shape: int) -> Array:
    out: Array = np.empty(len(values), dtype=object)
    out[:] = values
    return out.reshape(shape)


def _exact(array: Array, what: str) -> tuple[Array, bool]:
    """A numeric array as exact numbers (floats are dyadic rationals), and whether it was one of floats."""
    if array.dtype.kind in "iub":
        return array.astype(np.int64 if array.dtype.kind == "b" else array.dtype).astype(object), False
    if not np.isfinite(array).all():
        place = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise FormatError(f"{what}{place} is NaN or infinite")
    values, where = np.unique(array.astype(np.float64), return_inverse=True)
    exact = [int(x) if x.is_integer() else Fraction(x) for x in values.tolist()]
    return _objects(exact, len(exact))[where.reshape(array.shape)], True


def _whole(value: Fraction) -> Number:
    return value.numerator if value.denominator == 1 else value


def _text(value: Number) -> str:
    return f"{value.numerator}/{value.denominator}" if isinstance(value, Fraction) else str(value)


def _rows(factor: Array) -> list[list[Number]]:
    """(r, rows, cols) as r flat lists of Python numbers."""
    return [row.ravel().tolist() for row in factor]


def _turned(scheme: Scheme) -> Array:
    """w with C transposed: (r, n, m)."""
    return scheme.w.swapaxes(1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Border rank: schemes with Laurent polynomials in x
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LaurentScheme:
    """u, v, w: {exponent: (r, m, k)}, {exponent: (r, k, n)}, {exponent: (r, m, n)}, exact coefficients of powers of x.

    An approximate (APA) algorithm when sum_q u[q] (x) v[q] (x) w[q] = T + O(x^d) with d >= 1: its error falls like x^d
    while its coefficients grow, so that every precision has a best x. ``order`` proves it. D. Bini, M. Capovani,
    G. Lotti, F. Romani, O(n^2.7799) complexity for n x n approximate matrix multiplication (1979).

    Raises SchemeError for wrong shapes.

    >>> apa = LaurentScheme((1, 1, 1), {0: [[1]], 1: [[3]]}, {1: [[1]]}, {-1: [[1]]})  # (1 + 3x) * x * 1/x
    >>> apa.order, apa.at(0.25).u.item(), apa.expected_error(0.25)
    (1, 1.75, 0.5625)
    """

    shape: Shape
    u: Mapping[int, Array] = field(repr=False)
    v: Mapping[int, Array] = field(repr=False)
    w: Mapping[int, Array] = field(repr=False)

    def __init__(self, shape: Any, u: Mapping[int, Any], v: Mapping[int, Any], w: Mapping[int, Any]) -> None:
        m, k, n = shape = parse_shape(shape)
        object.__setattr__(self, "shape", shape)
        ranks = set()
        for name, value, rows, cols in (("u", u, m, k), ("v", v, k, n), ("w", w, m, n)):
            parts = {}
            for power in sorted(value) or [0]:
                part = np.array(value.get(power, []), dtype=object)
                if part.size == 0 or part.shape[1:] not in ((rows, cols), (rows * cols,)):
                    raise SchemeError(f"{name}[x^{power}] has shape {part.shape}, must be (r, {rows}, {cols})")
                part = part.reshape(len(part), rows, cols)
                ranks.add(len(part))
                if (part != 0).any():
                    part.flags.writeable = False
                    parts[power] = part
            object.__setattr__(self, name, MappingProxyType(parts))
        if len(ranks) != 1:
            raise SchemeError(f"parts have {', '.join(map(str, sorted(ranks)))} terms; they must agree")
        object.__setattr__(self, "_rank", ranks.pop())

    @property
    def rank(self) -> int:
        """r, the number of products."""
        return int(self._rank)  # type: ignore[attr-defined]

    @property
    def volume(self) -> int:
        """m*k*n."""
        m, k, n = self.shape
        return m * k * n

    def __repr__(self) -> str:
        return f"<LaurentScheme {'x'.join(map(str, self.shape))}_r{self.rank}>"

    @cached_property
    def residual(self) -> Mapping[int, Array]:
        """{exponent: (mk, kn, mn)}: sum_q u[q] (x) v[q] (x) w[q] - T, exactly, its zero coefficients left out.

        Raises BudgetError when it would be too large to be written down.
        """
        _check_budget(self.shape, self.rank)
        m, k, n = self.shape
        if len(self.u) * len(self.v) * len(self.w) * (m * k) * (k * n) * (m * n) > MAX_PARTS:
            counts = f"{len(self.u)}, {len(self.v)} and {len(self.w)}"
            raise BudgetError(f"u, v and w have {counts} powers of x: too many for <{_dims(self.shape)}>")
        integers, scale = [], Fraction(1)
        for parts in (self.u, self.v, self.w):
            stack = (
                np.stack([p.reshape(self.rank, -1) for p in parts.values()]) if parts else np.zeros((0, self.rank, 1))
            )
            whole, unit = as_integers(stack)
            integers.append(dict(zip(parts, whole, strict=True)))
            scale *= unit
        total: dict[int, Array] = {0: matmul_tensor(self.shape).astype(object) * -scale.denominator}
        for i, u in integers[0].items():
            for j, v in integers[1].items():
                for h, w in integers[2].items():
                    product = triple_sum(u, v, w).astype(object) * scale.numerator
                    total[i + j + h] = total[i + j + h] + product if i + j + h in total else product
        unit = Fraction(1, scale.denominator)
        return MappingProxyType(
            {e: total[e] * unit if unit != 1 else total[e] for e in sorted(total) if total[e].any()}
        )

    @cached_property
    def order(self) -> int | None:
        """The proved d >= 1 with sum_q u[q] (x) v[q] (x) w[q] = T + O(x^d); None when it is T for every x.

        Raises VerificationError, naming the coefficient, when no such d exists.
        """
        lowest = min(self.residual, default=None)
        if lowest is None or lowest >= 1:
            return lowest
        _, k, n = self.shape
        gap = self.residual[lowest]
        i, j, h = (int(z) for z in np.argwhere(gap != 0)[0])
        want = int(matmul_tensor(self.shape)[i, j, h]) if lowest == 0 else 0
        is_ = _whole(Fraction(gap[i, j, h])) + want
        raise VerificationError(
            f"no approximate <{_dims(self.shape)}> scheme: the coefficient of A[{i // k},{i % k}] B[{j // n},{j % n}] "
            f"in C[{h // n},{h % n}] has {is_} x^{lowest}, must have {want} x^{lowest}"
        )

    def at(self, x: Any) -> Scheme:
        """The scheme (u (r, m, k), v (r, k, n), w (r, m, n)) at one x: over R, each coefficient correctly rounded.

        When ``order`` is None it is exact instead, over the smallest ring that holds its coefficients at this (exactly
        taken) x. Raises UsageError for an x that is zero, not finite, or so small that coefficients overflow.
        """
        point = _point(x)
        exact = []
        for parts, (rows, cols) in zip((self.u, self.v, self.w), self._sides, strict=True):
            total = _objects([0] * (self.rank * rows * cols), self.rank, rows, cols)
            for power, part in parts.items():
                total = total + part * point**power
            exact.append(total)
        if self.order is None:
            u, v, w = (f.reshape(self.rank, -1) for f in exact)
            return _prove(Table(self.shape, u, v, w), False)
        try:
            return Scheme(self.shape, "R", *(f.astype(np.float64) for f in exact))
        except OverflowError:
            raise UsageError(f"coefficients overflow at x = {float(point):.3g}; take a larger x") from None

    @property
    def _sides(self) -> tuple[tuple[int, int], ...]:
        m, k, n = self.shape
        return (m, k), (k, n), (m, n)

    @cached_property
    def _floats(self) -> tuple[tuple[Array, Array], ...]:
        """(exponents, float64 coefficients with the exponents first) of u, v, w and of the residual."""
        out = []
        for parts in (self.u, self.v, self.w, self.residual):
            powers = np.array(list(parts), dtype=np.float64)
            values = [p.astype(np.float64).ravel() for p in parts.values()]
            out.append((powers, np.array(values) if values else np.zeros((0, self.rank))))
        return tuple(out)

    def expected_error(self, x: float) -> float:
        """E(x) = |sum_d R_d x^d|_F^2 / (mkn), R_d the residual's coefficients: no cancellation for small x."""
        powers, values = self._floats[3]
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(np.square(_powers(x, powers) @ values).sum()) / self.volume
        return math.inf if math.isnan(total) else total

    def noise_gain(self, x: float) -> float:
        """kappa(x) = sum_q |u_q(x)|^2 |v_q(x)|^2 |w_q(x)|^2 / (mkn)."""
        product: Array = np.ones(self.rank)
        with np.errstate(over="ignore", invalid="ignore"):
            for powers, values in self._floats[:3]:
                at = (_powers(x, powers) @ values).reshape(self.rank, -1)
                product = product * np.square(at).sum(axis=1)
            total = float(product.sum()) / self.volume
        return math.inf if math.isnan(total) else total

    def best_x(self, noise: float) -> float:
        """The x of smallest E(x) + 2 noise^2 kappa(x), noise = d(dtype): the best in that precision.

        Four points an octave over 2^-60 <= |x| <= 2^8, both signs, then a bounded golden-section and parabolic search
        (in log|x|) between the neighbours of the best of them. Raises UsageError unless noise is positive.
        """
        from scipy.optimize import minimize_scalar

        if not 0 < noise < math.inf:
            raise UsageError(f"noise is {noise!r:.40}, must be positive: the relative rounding d(dtype)")

        def cost(sign: float, t: float) -> float:
            x = sign * 2.0**t
            return self.expected_error(x) + 2 * noise**2 * self.noise_gain(x)

        sign, t = min(((s, q / 4) for q in range(-240, 33) for s in (1.0, -1.0)), key=lambda p: cost(*p))
        near = minimize_scalar(
            lambda z: cost(sign, z), bounds=(t - 0.25, t + 0.25), method="bounded", options={"xatol": 1e-9}
        )
        refined = float(near.x)
        return float(sign * 2.0 ** (refined if cost(sign, refined) < cost(sign, t) else t))


def _powers(x: float, exponents: Array) -> Array:
    signs = np.where(exponents % 2 == 1, math.copysign(1.0, x), 1.0)
    return np.asarray(signs * np.abs(x) ** exponents)


def _point(x: Any) -> Fraction:
    """A value of x as an exact number: integers, fractions, floats, and text such as 0.01, 1e-3 or 1/100."""
    x = x.item() if isinstance(x, np.generic) else x
    try:
        if isinstance(x, str) and "/" in x:
            value = Fraction(rings.get("Q").parse(x.strip()))  # type: ignore[arg-type]
        else:
            close = float(x)  # bounds the exponent of a text before Fraction writes its digits out
            value = Fraction(0) if close == 0 or not math.isfinite(close) else Fraction(x)
    except (FormatError, OverflowError, TypeError, ValueError):
        value = Fraction(0)
    if value == 0:
        raise UsageError(f"x is {x!r:.40}, must be a number other than 0")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# stl: our own files, and perminov: JSON of the FastMatrixMultiplication project
# ---------------------------------------------------------------------------------------------------------------------


def _json(source: Source) -> Any:
    def constant(name: str) -> Any:
        raise FormatError(f"{name} is not a coefficient")

    try:
        return json.loads(source.text, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise FormatError(f"bad JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except FormatError:
        raise
    except ValueError as error:  # integers of thousands of digits
        raise FormatError(f"bad JSON: {error!s:.80}") from None
    except RecursionError:
        raise FormatError("bad JSON: nested too deeply") from None


def _read_stl(source: Source, shape: Shape | None) -> Scheme:
    return Scheme.from_json(_json(source))


def _write_stl(scheme: Scheme) -> dict[str, bytes]:
    _check_budget(scheme.shape, scheme.rank)
    return {"": dump_scheme_object({**scheme.to_json(), "certificate": verify(scheme).to_json()}).encode()}


def _read_perminov(source: Source, shape: Shape | None) -> Table:
    obj = _json(source)
    if not isinstance(obj, dict):
        raise FormatError("the top level is no JSON object")
    for key in ("n", "m", "u", "v", "w"):
        if key not in obj:
            raise FormatError(f"{key!r} is missing")
    m, k, n = found = parse_shape(obj["n"])
    rank = obj["m"]
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise FormatError(f"'m' is {rank!r:.40}, must be the number of products")
    parse = rings.get("Q").parse
    factors, inexact = [], False
    for name, width in (("u", m * k), ("v", k * n), ("w", n * m)):
        rows = obj[name]
        if not isinstance(rows, list) or len(rows) != rank:
            count = len(rows) if isinstance(rows, list) else type(rows).__name__
            raise FormatError(f"{name} has {count} rows, 'm' says {rank}")
        values: list[Number] = []
        for q, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != width:
                count = len(row) if isinstance(row, list) else type(row).__name__
                raise FormatError(f"{name}[{q}] has {count} entries, <{_dims(found)}> asks for {width}")
            for i, entry in enumerate(row):
                try:
                    values.append(parse(entry))
                except FormatError as error:
                    raise FormatError(f"{name}[{q}][{i}]: {error}") from None
                inexact |= isinstance(entry, float)
        factors.append(_objects(values, rank, width))
    u, v, w = factors
    return Table(found, u, v, w.reshape(rank, n, m).swapaxes(1, 2).reshape(rank, m * n), inexact)


def _write_perminov(scheme: Scheme) -> dict[str, bytes]:
    head = {"n": list(scheme.shape), "m": scheme.rank, "z2": scheme.ring.name == "Z2"}
    factors = {"u": scheme.u, "v": scheme.v, "w": _turned(scheme)}
    rows = {name: [[_jsonable(x) for x in row] for row in _rows(f)] for name, f in factors.items()}
    return {"": dump_scheme_object({**head, **rows}).encode()}


def _jsonable(value: Number) -> Any:
    return _text(value) if isinstance(value, Fraction) else value


# ---------------------------------------------------------------------------------------------------------------------
# Texts with a grammar: mathematica, maple, products
# ---------------------------------------------------------------------------------------------------------------------

_DIGITS = r"[0-9]{1,400}"
_TOKEN = re.compile(rf"(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})|[A-Za-z][A-Za-z0-9_]*|\S")
_BLANK = re.compile(r"\s*")


class _Tokens:
    """A text token by token, with one token of lookahead and a place for every error."""

    def __init__(self, text: str, start: int = 0, first_line: int = 1) -> None:
        self.text = text
        self.first_line = first_line
        self.end = start
        self.inexact = False
        self.token = ""
        self.advance()

    def advance(self) -> None:
        self.start = _BLANK.match(self.text, self.end).end()  # type: ignore[union-attr]
        match = _TOKEN.match(self.text, self.start)
        self.token = match.group() if match else ""
        self.end = match.end() if match else self.start

    def take(self, *expected: str) -> str:
        token = self.token
        if token not in expected:
            raise self.error(f"{' or '.join(map(repr, expected))} expected")
        self.advance()
        return token

    def skip(self, *optional: str) -> str:
        return self.take(self.token) if self.token and self.token in optional else ""

    def error(self, what: str) -> FormatError:
        line = self.text.count("\n", 0, self.start)
        column = self.start - (self.text.rfind("\n", 0, self.start) + 1)
        found = f"{self.token[:20]!r} found" if self.token else "the text ends"
        return FormatError(f"line {line + self.first_line}, column {column + 1}: {what}, {found}")

    def integer(self) -> int:
        if not self.token.isdecimal() or not self.token.isascii():
            raise self.error("an integer expected")
        value = int(self.token)
        self.advance()
        return value

    def at_number(self) -> bool:
        return re.match(r"\.?[0-9]", self.token) is not None

    def unsigned(self) -> Number:
        """An integer, a decimal, or a fraction of integers."""
        if not self.at_number():
            raise self.error("a number expected")
        if "." in self.token:
            value = Fraction(self.token)
            self.inexact = True
            self.advance()
            return _whole(value)
        top = self.integer()
        if not self.skip("/"):
            return top
        if self.token.strip("0") == "" and self.at_number():
            raise self.error("a denominator other than 0 expected")
        return _whole(Fraction(top, self.integer()))

    def number(self) -> Number:
        sign = self.skip("-", "+")
        value = self.unsigned()
        return -value if sign == "-" else value


def _matrix(tokens: _Tokens, brackets: str) -> list[list[Number]]:
    """A list of rows of numbers, between the brackets; rows of one length."""
    rows: list[list[Number]] = []
    tokens.take(brackets[0])
    while True:
        row = []
        tokens.take(brackets[0])
        while True:
            row.append(tokens.number())
            if tokens.take(",", brackets[1]) == brackets[1]:
                break
        if rows and len(row) != len(rows[0]):
            raise tokens.error(f"a row of {len(rows[0])} numbers expected before this, not of {len(row)}")
        rows.append(row)
        if tokens.take(",", brackets[1]) == brackets[1]:
            return rows


def _table_of_matrices(terms: list[list[list[list[Number]]]], inexact: bool) -> Table:
    """From products given as matrices A (m, k), B (k, n) and C transposed (n, m)."""
    sizes = [(len(x), len(x[0])) for x in terms[0]]
    m, k, n = shape = parse_shape((sizes[0][0], sizes[0][1], sizes[1][1]))
    for q, term in enumerate(terms):
        for name, x, want in zip("ABC", term, ((m, k), (k, n), (n, m)), strict=True):
            if (len(x), len(x[0])) != want:
                note = ", C being transposed here" if name == "C" else ""
                raise FormatError(
                    f"{name} of product {q + 1} is {len(x)} x {len(x[0])}, must be {want[0]} x {want[1]}{note}"
                )
    rank = len(terms)
    u, v, w = (_objects([z for term in terms for row in term[i] for z in row], rank, -1) for i in range(3))
    return Table(shape, u, v, w.reshape(rank, n, m).swapaxes(1, 2).reshape(rank, m * n), inexact)


def _read_mathematica(source: Source, shape: Shape | None) -> Table:
    tokens = _Tokens(source.text)
    terms = []
    tokens.take("{")
    while True:
        tokens.take("{")
        term = []
        for last in (",", ",", "}"):
            term.append(_matrix(tokens, "{}"))
            tokens.take(last)
        terms.append(term)
        if tokens.take(",", "}") == "}":
            break
    tokens.skip(";")
    if tokens.token:
        raise tokens.error("the end expected")
    return _table_of_matrices(terms, tokens.inexact)


def _write_mathematica(scheme: Scheme) -> dict[str, bytes]:
    factors = (scheme.u, scheme.v, _turned(scheme))
    terms = ["{" + ", ".join(_braced(f[q], "{}") for f in factors) + "}" for q in range(scheme.rank)]
    return {"": ("{\n  " + ",\n  ".join(terms) + "\n}\n").encode()}


def _braced(matrix: Array, brackets: str, comma: str = ", ") -> str:
    opening, closing = brackets[0], brackets[1]
    rows = (opening + comma.join(_text(x) for x in row) + closing for row in matrix.tolist())
    return opening + comma.join(rows) + closing


def _read_maple(source: Source, shape: Shape | None) -> Table:
    start = source.text.find("TriadSet")
    if start < 0:
        raise FormatError("no TriadSet(...) in the file")
    tokens = _Tokens(source.text, start)
    terms = []
    for token in ("TriadSet", "(", "["):
        tokens.take(token)
    while True:
        for token in ("Triad", "(", "["):
            tokens.take(token)
        term = []
        for last in (",", ",", "]"):
            term.append(_maple_matrix(tokens))
            tokens.take(last)
        terms.append(term)
        tokens.take(")")
        if tokens.take(",", "]") == "]":
            break
    tokens.take(")")
    return _table_of_matrices(terms, tokens.inexact)


def _maple_matrix(tokens: _Tokens) -> list[list[Number]]:
    tokens.take("Matrix")
    tokens.take("(")
    rows = tokens.integer()
    tokens.take(",")
    cols = tokens.integer()
    tokens.take(",")
    matrix = _matrix(tokens, "[]")
    if (len(matrix), len(matrix[0])) != (rows, cols):
        raise tokens.error(f"a {rows} x {cols} matrix expected before this, not {len(matrix)} x {len(matrix[0])}")
    tokens.take(")")
    return matrix


def _write_maple(scheme: Scheme) -> dict[str, bytes]:
    m, k, n = scheme.shape
    lines = []
    for name, rows, cols in (("A", m, k), ("B", k, n), ("C", m, n)):
        names = ",".join("[" + ",".join(f"{name}_{i + 1}_{j + 1}" for j in range(cols)) + "]" for i in range(rows))
        lines.append(f"{name}:=Matrix({rows}, {cols}, [{names}]):")
    triads = []
    for q in range(scheme.rank):
        parts = [f[q] for f in (scheme.u, scheme.v, _turned(scheme))]
        matrices = (f"Matrix({x.shape[0]}, {x.shape[1]}, {_braced(x, '[]', ',')})" for x in parts)
        triads.append(f"Triad([{', '.join(matrices)}])")
    lines.append(f"Tensor:=TriadSet([{', '.join(triads)}]):")
    return {"": ("\n".join(lines) + "\n").encode()}


# (a11+a12)*(b11-b22)*(c11): the two indices are single digits, or set apart by an underscore or a comma
_VARIABLE = re.compile(
    r"([a-cA-C])(?:([0-9])([0-9])|_?([0-9]{1,3})_([0-9]{1,3})|\[([0-9]{1,3}),([0-9]{1,3})\])(?![A-Za-z0-9_])"
)


def _read_products(source: Source, shape: Shape | None) -> Table:
    terms = []
    inexact = False
    for number, line in enumerate(source.text.splitlines(), 1):
        bare = line.split("#")[0]
        if not bare.strip():
            continue
        tokens = _Tokens(bare, first_line=number)
        terms.append((number, _product(tokens)))
        inexact |= tokens.inexact
    if not terms:
        raise FormatError("no product in the file")
    top: dict[str, tuple[int, int]] = {}
    for _, term in terms:
        for name, entries in term.items():
            rows, cols = top.get(name, (1, 1))
            top[name] = (max(rows, *(i for i, _ in entries)), max(cols, *(j for _, j in entries)))
    a, b, c = top["a"], top["b"], top["c"]
    m, k, n = shape or parse_shape((max(a[0], c[1]), max(a[1], b[0]), max(b[1], c[0])))
    rank = len(terms)
    _check_budget((m, k, n), rank)
    factors: list[Array] = []
    for name, rows, cols in (("a", m, k), ("b", k, n), ("c", n, m)):
        factor = _objects([0] * (rank * rows * cols), rank, rows, cols)
        for q, (number, term) in enumerate(terms):
            for (i, j), value in term[name].items():
                if i > rows or j > cols:
                    raise FormatError(f"line {number}: {name}{i}{j} lies outside the {rows} x {cols} of <{m},{k},{n}>")
                factor[q, i - 1, j - 1] = value
        factors.append(factor)
    u, v, w = factors[0], factors[1], factors[2].swapaxes(1, 2)
    return Table((m, k, n), u.reshape(rank, -1), v.reshape(rank, -1), w.reshape(rank, -1), inexact)


def _product(tokens: _Tokens) -> dict[str, dict[tuple[int, int], Number]]:
    """One line: an optional sign and scalars, and three sums, one each of a, b and c; the scalars go to c."""
    scalar: Number = -1 if tokens.skip("-", "+") == "-" else 1
    term: dict[str, dict[tuple[int, int], Number]] = {}
    while True:
        if tokens.at_number():
            scalar *= tokens.unsigned()
        else:
            where = (tokens.start, tokens.token, tokens.end)
            if tokens.skip("("):
                name, entries = _sum(tokens)
                tokens.take(")")
            else:
                name, i, j = _variable(tokens)
                entries = {(i, j): 1}
            if name in term:
                tokens.start, tokens.token, tokens.end = where
                raise tokens.error(f"a second factor in {name}; a product has one each in a, b and c")
            term[name] = entries
        if not tokens.token:
            break
        tokens.skip("*")  # optional: 2a11, (a11)(b11)
    if len(term) != 3:
        raise tokens.error(f"a factor in {' and '.join(sorted(set('abc') - set(term)))} expected")
    term["c"] = {place: value * scalar for place, value in term["c"].items()}
    return term


def _sum(tokens: _Tokens) -> tuple[str, dict[tuple[int, int], Number]]:
    entries: dict[tuple[int, int], Number] = {}
    letter = ""
    sign = tokens.skip("-", "+")
    while True:
        value: Number = -1 if sign == "-" else 1
        if tokens.at_number():
            value *= tokens.unsigned()
            tokens.skip("*")
        start = tokens.start
        name, i, j = _variable(tokens)
        if letter and name != letter:
            tokens.start, tokens.token = start, tokens.text[start : start + 3]
            raise tokens.error(f"only entries of {letter} expected in this sum")
        letter = name
        entries[i, j] = entries.get((i, j), 0) + value
        sign = tokens.skip("-", "+")
        if not sign:
            return letter, entries


def _variable(tokens: _Tokens) -> tuple[str, int, int]:
    match = _VARIABLE.match(tokens.text, tokens.start)
    if not match:
        raise tokens.error("an entry such as a12, a_1_2 or a[1,2] expected")
    row, col = (int(x) for x in match.groups()[1:] if x is not None)
    if not (1 <= row <= MAX_SIDE and 1 <= col <= MAX_SIDE):
        raise tokens.error(f"indices 1..{MAX_SIDE} expected")
    tokens.end = match.end()
    tokens.advance()
    return match.group(1).lower(), row, col


def _write_products(scheme: Scheme) -> dict[str, bytes]:
    join = "_{}_{}" if max(scheme.shape) > 9 else "{}{}"
    lines = []
    for q in range(scheme.rank):
        factors = []
        for name, factor in (("a", scheme.u), ("b", scheme.v), ("c", _turned(scheme))):
            entries = [(i, j, x) for i, row in enumerate(factor[q].tolist()) for j, x in enumerate(row) if x != 0]
            text = ""
            for i, j, x in entries or [(0, 0, 0)]:
                scalar = "" if abs(x) == 1 else f"{_text(abs(x))}*"
                text += ("-" if x < 0 else "+" if text else "") + scalar + name + join.format(i + 1, j + 1)
            factors.append(f"({text})")
        lines.append("*".join(factors) + "\n")
    return {"": "".join(lines).encode()}


# ---------------------------------------------------------------------------------------------------------------------
# arbenson: blocks of numbers or Laurent polynomials, rows are entries, columns are products
# ---------------------------------------------------------------------------------------------------------------------

# A letter with a power and an i for "inverse" (x2i = 1/x^2), after an optional factor. Decimals may have a signed
# exponent (1e-05); without a sign e is the letter of the polynomial (2e3 = 2 e^3 in files that write e for x).
_FACTOR = rf"{_DIGITS}/{_DIGITS}|(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-][0-9]{{1,3}})?"
_TERM = re.compile(rf"([+-]{{0,2}})(?:({_FACTOR})\*?)?(?:([a-hj-zA-HJ-Z])([0-9]{{1,2}})?(i)?)?")
_SUM = re.compile(rf"([+-]?)(?:({_FACTOR})\*?)?\((.+)\)")

_Polynomial = dict[int, Number]


def _read_arbenson(source: Source, shape: Shape | None) -> Table | LaurentScheme:
    blocks: list[list[list[_Polynomial]]] = [[]]
    known: dict[str, _Polynomial] = {}
    letters: set[str] = set()
    inexact = False
    for number, line in enumerate(source.text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            if blocks[-1]:
                blocks.append([])
            continue
        row = []
        for match in re.finditer(r"\S+", line):
            token = match.group()
            if token not in known:
                polynomial, used = _polynomial(token, f"line {number}, column {match.start() + 1}")
                known[token] = polynomial
                letters |= used
                inexact |= not used and "/" not in token and not token.lstrip("+-").isdecimal()
                if len(letters) > 1:
                    both = " and ".join(sorted(letters))
                    raise FormatError(f"line {number}, column {match.start() + 1}: two letters, {both}; one expected")
            row.append(known[token])
        if row:
            first = next((r for block in blocks for r in block), row)
            if len(row) != len(first):
                raise FormatError(
                    f"line {number} has {len(row)} numbers, the first row {len(first)}: one for each product"
                )
            blocks[-1].append(row)
    if not blocks[-1]:
        blocks.pop()
    if len(blocks) != 3:
        raise FormatError(f"{len(blocks)} blocks of numbers between lines with #, must be 3: U, V and W")
    sizes = (len(blocks[0]), len(blocks[1]), len(blocks[2]))
    found = _shape_of_sizes(sizes, "the rows of U, V and W")
    rank = len(blocks[0][0])
    _check_budget(found, rank)
    powers = [sorted({e for row in block for p in row for e in p}) for block in blocks]
    if not letters:
        factors = [_objects([p.get(0, 0) for row in block for p in row], len(block), rank) for block in blocks]
        return _table_of_columns(factors, found, transposed=False, inexact=inexact)
    dense = sum(len(exponents) * len(block) for exponents, block in zip(powers, blocks, strict=True))
    if dense * rank > MAX_COEFFICIENTS:
        raise BudgetError(f"polynomials with more than {MAX_COEFFICIENTS} coefficients")
    m, k, n = found
    parts = []
    for block, exponents, (rows, cols) in zip(blocks, powers, ((m, k), (k, n), (m, n)), strict=True):
        part = {}
        for e in exponents or [0]:
            part[e] = _objects([p.get(e, 0) for row in block for p in row], len(block), rank).T.reshape(
                rank, rows, cols
            )
        parts.append(part)
    return LaurentScheme(found, *parts)


def _polynomial(token: str, place: str) -> tuple[_Polynomial, set[str]]:
    """One entry as {exponent: coefficient}, and the letters that it uses; no coefficient is zero."""
    scale: Number = 1
    body = token
    group = _SUM.fullmatch(token)
    if group:
        scale = _factor(group[2], place) * (-1 if group[1] == "-" else 1)
        body = group[3]
    out: _Polynomial = {}
    letters = set()
    at = 0
    while at < len(body):
        match = _TERM.match(body, at)
        if not match or match.end() == at or not (match[2] or match[3]) or (at > 0 and not (group and match[1])):
            raise FormatError(
                f"{place}: {token[:40]!r} is no number and no polynomial such as -x2, xi, 0.5x2i or (1+x)"
            )
        power = 0
        if match[3]:
            letters.add(match[3])
            power = int(match[4] or 1) * (-1 if match[5] else 1)
        sign = -1 if match[1].count("-") % 2 else 1
        out[power] = out.get(power, 0) + scale * sign * _factor(match[2], place)
        at = match.end()
    return {e: x for e, x in out.items() if x != 0}, letters


def _factor(text: str | None, place: str) -> Number:
    if text is None:
        return 1
    try:
        return _whole(Fraction(text))
    except ZeroDivisionError:
        raise FormatError(f"{place}: {text[:40]!r} has a zero denominator") from None


def _write_arbenson(scheme: Scheme) -> dict[str, bytes]:
    out = [f"# <{_dims(scheme.shape)}> of rank {scheme.rank} over {scheme.ring.name}: U, V, W; rows are entries\n"]
    for block, factor in enumerate(scheme.flat()):
        if block:
            out.append("#\n")
        for row in factor.T.tolist():
            out.append(" ".join(_decimal(x) for x in row) + "\n")
    return {"": "".join(out).encode()}


def _decimal(value: Any) -> str:
    """A number as this format's own reader has them: a finite decimal where there is one, else p/q."""
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if not isinstance(value, Fraction):
        return str(value)
    twos = (value.denominator & -value.denominator).bit_length() - 1
    odd, fives = value.denominator >> twos, 0
    while odd % 5 == 0:
        odd, fives = odd // 5, fives + 1
    places = max(twos, fives)
    if odd != 1 or places > 50:
        return _text(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


# ---------------------------------------------------------------------------------------------------------------------
# plinopt: three sparse matrices in SMS
# ---------------------------------------------------------------------------------------------------------------------

_PARTS = ("_L.sms", "_R.sms", "_P.sms")


def _read_plinopt(source: Source, shape: Shape | None) -> Table:
    name = str(source.path)
    ending = next((e for e in _PARTS if name.endswith(e)), None)
    if ending is None:
        raise FormatError(f"a plinopt scheme is three files that end in {', '.join(_PARTS)}; this is none of them")
    matrices = []
    for e in _PARTS:
        path = Path(name[: -len(ending)] + e)
        try:
            matrices.append(_sms(source if e == ending else Source.open(path)))
        except FormatError as error:
            raise FormatError(f"{_printable(path.name)}: {error}") from None
    u, v, w = matrices
    if not len(u) == len(v) == w.shape[1]:
        raise FormatError(
            f"L and R have {len(u)} and {len(v)} rows, P has {w.shape[1]} columns: the rank must be the same"
        )
    found = _shape_of_sizes((u.shape[1], v.shape[1], len(w)), "the columns of L and R and the rows of P")
    return Table(found, u, v, w.T)


def _sms(source: Source) -> Array:
    """One sparse matrix, dense: header ``rows cols letter``, entries ``i j value`` from 1, end ``0 0 0``."""
    lines = ((i, words) for i, line in enumerate(source.text.splitlines(), 1) if (words := line.split("#")[0].split()))
    number, head = next(lines, (1, []))
    if len(head) != 3 or not (head[0].isdecimal() and head[1].isdecimal() and head[2].isalpha()):
        raise FormatError(f"line {number}: a header such as '7 4 R' expected")
    rows, cols = (min(_count(x), MAX_COEFFICIENTS + 1) for x in head[:2])
    if rows * cols > MAX_COEFFICIENTS or not rows or not cols:
        raise FormatError(
            f"line {number}: a matrix of {head[0][:12]} x {head[1][:12]}, limit {MAX_COEFFICIENTS} entries"
        )
    out = _objects([0] * (rows * cols), rows, cols)
    seen = set()
    for number, words in lines:
        if words == ["0", "0", "0"]:
            number, rest = next(lines, (0, []))
            if rest:
                raise FormatError(f"line {number}: {rest[0][:20]!r} after the end mark 0 0 0")
            return out
        if len(words) != 3 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise FormatError(f"line {number}: an entry 'i j value' or the end mark 0 0 0 expected")
        i, j = _count(words[0]), _count(words[1])
        if not (1 <= i <= rows and 1 <= j <= cols):
            raise FormatError(f"line {number}: entry {words[0][:12]}, {words[1][:12]} lies outside {rows} x {cols}")
        if (i, j) in seen:
            raise FormatError(f"line {number}: entry {i}, {j} is given twice")
        seen.add((i, j))
        try:
            out[i - 1, j - 1] = rings.get("Q").parse(words[2])
        except FormatError as error:
            raise FormatError(f"line {number}: {error}") from None
    raise FormatError("cut short: the end mark 0 0 0 is missing")


def _count(digits: str) -> int:
    return int(digits) if len(digits) <= 12 else 10**12


def _write_plinopt(scheme: Scheme) -> dict[str, bytes]:
    u, v, w = scheme.flat()
    out = {}
    for ending, matrix in zip(_PARTS, (u, v, w.T), strict=True):
        lines = [f"{matrix.shape[0]} {matrix.shape[1]} R"]
        for i, row in enumerate(matrix.tolist(), 1):
            lines += [f"{i} {j} {_text(x)}" for j, x in enumerate(row, 1) if x != 0]
        out[ending] = ("\n".join(lines) + "\n0 0 0\n").encode()
    return out


# ---------------------------------------------------------------------------------------------------------------------
# khoruzhii, npz, alphatensor: numpy files, parsed here so that nothing is unpickled and every size is bounded
# ---------------------------------------------------------------------------------------------------------------------

_NUMERIC = re.compile(r"[<>|=]?([iu][1248]|f[248]|b1)")
_MAGIC = b"\x93NUMPY"


def _npy(data: bytes, what: str) -> Array | tuple[tuple[int, ...], bytes]:
    """A .npy file as a numeric array, or, for an object array, its shape and its pickle (NEP 1)."""
    if not data.startswith(_MAGIC) or len(data) < 12:
        raise FormatError(f"{what} is no .npy file")
    wide = data[6] > 1
    length = int(struct.unpack_from("<I" if wide else "<H", data, 8)[0])
    start = (12 if wide else 10) + length
    if length > 4096 or start > len(data):
        raise FormatError(f"{what}: the .npy header is cut short or longer than 4096 bytes")
    header = data[start - length : start].decode("latin-1")
    match = re.fullmatch(r"\s*\{\s*(.*?)\s*,?\s*\}\s*", header, re.DOTALL)
    parts = [
        re.search(pattern, match[1] if match else "")
        for pattern in (
            r"['\"]descr['\"]\s*:\s*['\"]([<>|=]?[A-Za-z][0-9]{0,2})['\"]",
            r"['\"]fortran_order['\"]\s*:\s*(True|False)",
            r"['\"]shape['\"]\s*:\s*\(([0-9, ]*)\)",
        )
    ]
    if None in parts:
        raise FormatError(f"{what}: no plain .npy header: {_printable(header)[:60]!r}")
    kind, order, sides = (str(part[1]) for part in parts if part)
    shape = tuple(_count(side) for side in sides.replace(" ", "").split(",") if side)
    if kind.lstrip("|") == "O":
        return shape, data[start:]
    if not _NUMERIC.fullmatch(kind) or len(shape) > 3:
        raise FormatError(
            f"{what}: an array of {len(shape)} dimensions of {kind!r}; at most 3, of integers or real numbers, expected"
        )
    dtype = np.dtype(kind)
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise FormatError(f"{what}: {len(data) - start} bytes of numbers, the header says {shape} of {dtype}")
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if order == "True" else "C")


def _save_npy(array: Array) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _read_khoruzhii(source: Source, shape: Shape | None) -> Table:
    array = _npy(source.data, "the file")
    if isinstance(array, tuple):
        raise FormatError("an array of Python objects; nothing is unpickled")
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or (array.ndim == 2 and len(array) != 1):
        raise FormatError(f"an array {array.shape} of {array.dtype}; (1, 2N) integers expected: pairs of one scheme")
    flat = array.ravel()
    if not flat.size or flat.size % 2:
        raise FormatError(f"{flat.size} integers; pairs of numerator and denominator expected")
    tops, bottoms = flat[::2].tolist(), flat[1::2].tolist()
    if 0 in bottoms:
        raise FormatError(f"pair {bottoms.index(0)} has the denominator 0")
    values = [p if q == 1 else _whole(Fraction(p, q)) for p, q in zip(tops, bottoms, strict=True)]
    shapes = _shapes(len(values), shape)
    if shape is not None:
        if not shapes:
            m, k, n = shape
            each = m * k + k * n + m * n
            raise FormatError(
                f"{len(values)} coefficients are no multiple of the {each} in a product of <{_dims(shape)}>"
            )
        return _split(values, shape)
    likely = _likely(values, shapes)
    if len(likely) == 1:
        return _split(values, likely[0])
    if likely:
        raise FormatError(f"may be of shape {' or '.join(f'<{_dims(s)}>' for s in likely[:5])}: give the shape")
    if not shapes:
        raise FormatError(f"{len(values)} coefficients fit no shape up to <16,16,16> and rank up to mkn")
    closest = _split(values, shapes[0])
    failure = first_failure(Scheme(closest.shape, "Q", closest.u, closest.v, closest.w))
    raise VerificationError(
        f"a matrix product in none of the {len(shapes)} shapes that {len(values)} coefficients fit: "
        f"as <{_dims(closest.shape)}> of rank {len(closest.u)}, {failure}"
    )


def _shapes(count: int, shape: Shape | None) -> list[Shape]:
    """The shapes of which ``count`` coefficients can be a scheme, the most balanced first; of ``shape`` alone if given.

    The rank is at least the largest of mk, kn, mn (the tensor's flattenings have these ranks) and at most the mkn of
    the classical algorithm; with a given shape it may be anything.
    """
    if shape is not None:
        m, k, n = shape
        return [] if count % (m * k + k * n + m * n) or not count else [shape]
    found = []
    most = math.isqrt(count)  # of mk, kn and mn: none is above the rank, and their sum times the rank is the count
    for m in range(1, min(MAX_SIDE, most) + 1):
        for k in range(1, min(MAX_SIDE, most // m) + 1):
            for n in range(1, min(MAX_SIDE, most // max(m, k)) + 1):
                rank, rest = divmod(count, m * k + k * n + m * n)
                fits = max(m * k, k * n, m * n) <= rank <= m * k * n and (m * k) * (k * n) * (m * n) <= MAX_TENSOR
                if fits and not rest:
                    found.append((m, k, n))
    return sorted(found, key=lambda s: (max(s) / min(s), s))


def _split(values: list[Number], shape: Shape) -> Table:
    m, k, n = shape
    rank = len(values) // (m * k + k * n + m * n)
    u, v, w = _parts(_objects(values, len(values)), shape, rank)
    return Table(shape, u, v, w)


def _parts(flat: Array, shape: Shape, rank: int) -> tuple[Array, Array, Array]:
    m, k, n = shape
    u, v, w = np.split(flat, [rank * m * k, rank * (m * k + k * n)])
    return u.reshape(rank, m * k), v.reshape(rank, k * n), w.reshape(rank, m * n)


def _likely(values: list[Number], shapes: list[Shape]) -> list[Shape]:
    """The shapes that stand a quick test at random points modulo 8191 or modulo 2; wrong ones hardly ever do."""
    likely = []
    for modulus, trials in ((8191, 3), (2, 40)):
        if any(isinstance(x, Fraction) and x.denominator % modulus == 0 for x in values):
            continue
        residues = [x.numerator * pow(x.denominator, -1, modulus) % modulus for x in values]
        flat = np.array(residues, dtype=np.int64)
        rng = np.random.default_rng(0)
        for m, k, n in shapes:
            u, v, w = _parts(flat, (m, k, n), len(values) // (m * k + k * n + m * n))
            a, b = rng.integers(0, modulus, (m * k, trials)), rng.integers(0, modulus, (k * n, trials))
            products = (u @ a % modulus) * (v @ b % modulus) % modulus
            gap = (w.T @ products).T.reshape(trials, m, n) - a.T.reshape(trials, m, k) @ b.T.reshape(trials, k, n)
            if not (gap % modulus).any() and (m, k, n) not in likely:
                likely.append((m, k, n))
    return likely


def _write_khoruzhii(scheme: Scheme) -> dict[str, bytes]:
    pairs = []
    for x in scheme.coefficients():
        pairs += [x.numerator, x.denominator]
    if any(not -(2**63) <= x < 2**63 for x in pairs):
        raise UsageError("khoruzhii files hold 64-bit numerators and denominators; these coefficients are larger")
    return {"": _save_npy(np.array([pairs], dtype="<i8"))}


def _members(source: Source) -> dict[str, bytes]:
    """The .npy members of a .npz archive by name; bounded in number and in size before anything is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(source.data)) as archive:
            infos = archive.infolist()
            if len(infos) > 4096 or sum(info.file_size for info in infos) > MAX_BYTES:
                raise FormatError(f"the archive unpacks to more than {MAX_BYTES >> 20} MiB")
            return {info.filename.removesuffix(".npy"): archive.read(info) for info in infos}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        struct.error,
        LookupError,
    ) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"a broken .npz archive: {_printable(str(error)):.80}") from None


def _names(source: Source) -> set[str]:
    """The names in an archive, or none when it is not one."""
    try:
        with zipfile.ZipFile(io.BytesIO(source.data)) as archive:
            return {info.filename.removesuffix(".npy") for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error, LookupError):
        return set()


_KEY = re.compile(r"([0-9]{1,2}),([0-9]{1,2}),([0-9]{1,2})")


def _columns(factors: list[Array], shape: Shape, transposed: bool) -> Table:
    """From numeric arrays of entries x products: (mk, r), (kn, r), (mn, r)."""
    m, k, n = shape
    rank = factors[0].shape[-1] if factors[0].ndim == 2 else -1
    for name, array, size in zip("UVW", factors, (m * k, k * n, m * n), strict=True):
        if array.shape != (size, rank):
            raise FormatError(
                f"{name} is an array {array.shape}, must be ({size}, r) for <{_dims(shape)}>, r the same for all"
            )
    _check_budget(shape, rank)
    exact = [_exact(array, name) for name, array in zip("UVW", factors, strict=True)]
    return _table_of_columns([x for x, _ in exact], shape, transposed, any(inexact for _, inexact in exact))


def _read_npz(source: Source, shape: Shape | None) -> Table:
    members = {name.upper(): data for name, data in _members(source).items()}
    arrays = []
    for name in "UVW":
        if name not in members:
            raise FormatError(f"no array {name} in the archive, which holds {_listed(members)}")
        array = _npy(members[name], name)
        if isinstance(array, tuple):
            raise FormatError(f"{name} is an array of Python objects; nothing is unpickled")
        if array.ndim != 2:
            raise FormatError(f"{name} is an array {array.shape}, must have two dimensions: entries x products")
        arrays.append(array)
    u, v, w = arrays
    return _columns(arrays, _shape_of_sizes((len(u), len(v), len(w)), "the rows of U, V and W"), transposed=False)


def _listed(names: Iterable[str]) -> str:
    names = [_printable(name)[:20] for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "nothing"


def _write_npz(scheme: Scheme) -> dict[str, bytes]:
    arrays = {}
    for name, factor in zip("UVW", scheme.flat(), strict=True):
        array = factor.T
        if array.dtype == object:
            values = array.ravel().tolist()
            kind = np.float64 if any(isinstance(x, Fraction) for x in values) else np.int64
            try:
                numbers = array.astype(kind)
            except OverflowError:
                numbers = None
            if numbers is None or any(a != b for a, b in zip(values, numbers.ravel().tolist(), strict=True)):
                raise UsageError(f"npz files hold 64-bit numbers; the coefficients of {name} are not such")
            array = numbers
        arrays[name] = np.ascontiguousarray(array)
    out = io.BytesIO()
    np.savez(out, U=arrays["U"], V=arrays["V"], W=arrays["W"])
    return {"": out.getvalue()}


def _read_alphatensor(source: Source, shape: Shape | None) -> Table:
    members = _members(source)
    keys = [key for key in members if _KEY.fullmatch(key)]
    if not keys:
        raise FormatError(f"no array named as a shape, such as 2,3,4, in the archive, which holds {_listed(members)}")
    key = _dims(shape) if shape else keys[0]
    if shape is None and len(keys) > 1:
        raise FormatError(f"schemes of several shapes, {_listed(keys)}: give the shape")
    if key not in members:
        raise FormatError(f"no scheme for <{key}>; there are {_listed(keys)}")
    found = parse_shape([int(x) for x in key.split(",")])
    content = _npy(members[key], key)
    if isinstance(content, tuple):
        factors = _unpickled_arrays(content[1], key)
        if content[0] != (len(factors),):
            raise FormatError(f"{key}: the header says {content[0]} objects, there are {len(factors)}")
    else:
        factors = list(content) if content.ndim == 3 else []
    if len(factors) != 3:
        raise FormatError(f"{key} holds {len(factors)} arrays, must be 3: U, V and W")
    return _columns(factors, found, transposed=True)


# What numpy's pickles of arrays call, under its old and its new module names, and the opcodes that such pickles use.
_GLOBALS = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "type",
    "numpy dtype": "dtype",
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"}


@dataclass
class _Made:
    """What a pickle names or calls, with its arguments and state: a record, nothing has been called in fact."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


def _unpickled_arrays(data: bytes, what: str) -> list[Array]:
    """The numeric arrays in the pickle of an object array, read without unpickling.

    Two dozen opcodes are interpreted, the only names known are those of an array's own reconstruction, and calls of
    these are recorded, not made; everything else raises FormatError.
    """
    try:
        outer = _array_state(_interpret(data))
        if outer is None or not isinstance(outer[2], list):
            raise FormatError("no pickled array of arrays")
        return [_pickled_array(item) for item in outer[2]]
    except (FormatError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise FormatError(f"{what}: {_printable(str(error)):.100}; only arrays of numbers are read") from None


def _interpret(data: bytes) -> Any:
    """The object that a pickle describes, out of literals, tuples, lists and ``_Made`` records."""
    import pickletools  # describes opcodes; runs nothing

    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def pop(count: int) -> list[Any]:
        if not 0 <= count <= len(stack):
            raise FormatError("a broken pickle")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    for opcode, arg, _ in pickletools.genops(data):
        match opcode.name:
            case name if name in _LITERALS:
                stack.append(arg)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS" as name:
                items = pop(1 if name == "APPEND" else len(stack) - marks.pop())
                if not isinstance(stack[-1], list):
                    raise FormatError("a pickle that appends to something")
                stack[-1].extend(items)
            case "TUPLE":
                stack.append(tuple(pop(len(stack) - marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(pop(int(name[-1]))))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL" | "STACK_GLOBAL" as name:
                words = [arg] if name == "GLOBAL" else pop(2)
                named = " ".join(word if isinstance(word, str) else "?" for word in words)
                if named not in _GLOBALS:
                    raise FormatError(f"a pickle that names {named[:40]!r}")
                stack.append(_Made(_GLOBALS[named]))
            case "REDUCE":
                called, args = pop(2)
                if not isinstance(called, _Made) or not isinstance(args, tuple):
                    raise FormatError("a pickle that calls something")
                stack.append(_Made(called.name, args))
            case "BUILD":
                (state,) = pop(1)
                if not isinstance(stack[-1], _Made):
                    raise FormatError("a pickle that changes something")
                stack[-1].state = state
            case "STOP":
                return stack[-1]
            case name:
                raise FormatError(f"a pickle that uses {name}")
    raise FormatError("a pickle that is cut short")


def _array_state(made: Any) -> tuple[Any, Any, Any, bool] | None:
    """(shape, dtype, data, fortran order) of a recorded array, or None: ndarray.__reduce__'s (version, ...) state."""
    if not isinstance(made, _Made) or made.name != "array" or not isinstance(made.state, tuple) or len(made.state) != 5:
        return None
    _, shape, dtype, fortran, content = made.state
    return shape, dtype, content, bool(fortran)


def _pickled_array(made: Any) -> Array:
    """A recorded array of numbers as a real one."""
    found = _array_state(made)
    if found is None:
        raise FormatError("a pickled object that is no array")
    shape, made_dtype, content, fortran = found
    kind, order = "", "|"
    if isinstance(made_dtype, _Made) and made_dtype.name == "dtype" and made_dtype.args:
        kind = made_dtype.args[0]
        if isinstance(made_dtype.state, tuple) and len(made_dtype.state) > 1:
            order = made_dtype.state[1]
    if not isinstance(kind, str) or order not in ("<", ">", "|", "=") or not _NUMERIC.fullmatch(order + kind):
        raise FormatError("a pickled array that is not of integers or real floating-point numbers")
    if not isinstance(shape, tuple) or len(shape) > 3 or not all(type(s) is int and s >= 0 for s in shape):
        raise FormatError("a pickled array of no shape")
    dtype = np.dtype(order + kind)
    if not isinstance(content, bytes) or math.prod(shape) * dtype.itemsize != len(content):
        raise FormatError("a pickled array whose data do not fill its shape")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")


# ---------------------------------------------------------------------------------------------------------------------
# The registry. Order matters twice: a file is the first format whose sniff says so, and a bare extension means the
# first format that has it.
# ---------------------------------------------------------------------------------------------------------------------


def _is_zip_with(source: Source, wanted: Callable[[set[str]], bool]) -> bool:
    return source.data.startswith(b"PK\x03\x04") and wanted(_names(source))


def _is_json(source: Source) -> bool:
    return source.matches(r"\A\s*\{\s*[^\s{]")


def _is_perminov(source: Source) -> bool:
    return _is_json(source) and source.matches(r'"n"\s*:\s*\[') and not source.matches(r'"format"\s*:')


def _first_line_matches(source: Source, pattern: str | re.Pattern[str]) -> bool:
    """Whether the pattern is found in the first line that is neither blank nor a comment."""
    try:
        lines = source.text.splitlines()
    except FormatError:
        return False
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    return re.search(pattern, first) is not None


for _new in (
    Format(
        "stl",
        (".json",),
        "this program's own stl-scheme/1",
        lambda source: _is_json(source) and not _is_perminov(source),
        _read_stl,
        _write_stl,
        rings.NAMES,
    ),
    Format(
        "perminov",
        (".json",),
        "JSON with keys n, m, u, v, w; C transposed (dronperminov/FastMatrixMultiplication)",
        _is_perminov,
        _read_perminov,
        _write_perminov,
    ),
    Format(
        "khoruzhii",
        (".npy",),
        "numpy array of integer pairs numerator, denominator (khoruzhii/flip-cpd)",
        lambda source: source.data.startswith(_MAGIC),
        _read_khoruzhii,
        _write_khoruzhii,
    ),
    Format(
        "npz",
        (".npz",),
        "numpy archive of numeric arrays U, V, W, entries x products",
        lambda source: _is_zip_with(source, lambda names: {"U", "V", "W"} <= {name.upper() for name in names}),
        _read_npz,
        _write_npz,
        (*rings.EXACT, "R"),
    ),
    Format(
        "alphatensor",
        (".npz",),
        'numpy archive with keys such as "2,3,4"; C transposed (google-deepmind/alphatensor)',
        lambda source: _is_zip_with(source, lambda names: any(_KEY.fullmatch(name) for name in names)),
        _read_alphatensor,
    ),
    Format(
        "maple",
        (".mpl",),
        "Maple TriadSet of matrices; C transposed",
        lambda source: source.matches(r"\bTriadSet\b"),
        _read_maple,
        _write_maple,
    ),
    Format(
        "mathematica",
        (".m",),
        "Mathematica nested lists {{A, B, C}, ...}; C transposed",
        lambda source: source.matches(r"\A\s*\{\s*\{"),
        _read_mathematica,
        _write_mathematica,
    ),
    Format(
        "plinopt",
        (".sms",),
        "three sparse matrices _L.sms, _R.sms, _P.sms (jgdumas/plinopt)",
        lambda source: (
            source.path.suffix == ".sms" or _first_line_matches(source, r"^\s*[0-9]+\s+[0-9]+\s+[A-Za-z]\s*$")
        ),
        _read_plinopt,
        _write_plinopt,
    ),
    Format(
        "products",
        (".exp", ".txt"),
        "text, one product a line: (a11+a12)*(b11-b22)*(c11), from 1; C transposed (jakobmoosbauer/flips)",
        lambda source: _first_line_matches(source, _VARIABLE),
        _read_products,
        _write_products,
    ),
    Format(
        "arbenson",
        (),
        "text, blocks U, V, W between #, entries x products, also with polynomials in x (arbenson/fast-matmul)",
        lambda source: (
            source.matches(r"(?m)^\s*#")
            and _first_line_matches(source, r"^\s*[-+.()/*A-Za-z0-9]+(\s+[-+.()/*A-Za-z0-9]+)*\s*$")
        ),
        _read_arbenson,
        _write_arbenson,
        (*rings.EXACT, "R"),
    ),
):
    register(_new)
