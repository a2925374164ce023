"""One catalog file: a scheme with what is proved of it, its figures and where it came from; reading, proving, checking.

Whatever a file claims of itself is compared with a fresh proof. Nothing is unpickled, sizes are bounded, and every
complaint is one line that says what is wrong and where.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stl_search import __version__, rings
from stl_search.errors import (
    BudgetError,
    CatalogError,
    FormatError,
    SchemeError,
    StlError,
    UsageError,
    VerificationError,
)
from stl_search.programs import additions_shared
from stl_search.scheme import FORMAT, MAX_RANK, MAX_TENSOR, Scheme, Shape, dump_scheme_object, parse_shape
from stl_search.score import (
    DTYPES,
    Figures,
    additions,
    balanced,
    bytes_moved,
    expected_error,
    max_coefficient,
    noise_gain,
    on_grid,
    relative_rounding,
)
from stl_search.score import figures as figures_of
from stl_search.transform import classical, kron, permute_to, project, smallest_ring, sum_k, sum_m, sum_n, to_ring
from stl_search.verify import Certificate, first_failure, residual, verify

__all__ = [
    "COMPOSITION",
    "ERROR_RTOL",
    "FIGURE_RTOL",
    "MAX_BYTES",
    "OPERATIONS",
    "Checked",
    "Claims",
    "Parts",
    "Record",
    "check_file",
    "check_size",
    "claims_of",
    "combine",
    "compose",
    "one_line",
    "part_of",
    "read_file",
    "read_record",
    "retag",
    "shorten",
]

COMPOSITION = "stl-composition/1"
MAX_BYTES = 16 << 20  # of a file: a rank-2401 ternary scheme of <16,16,16> takes 4 MB
MAX_DIGITS = 1000  # of one integer
MAX_PARTS = 64  # of one composition
MAX_GRAM = 2048  # rank up to which the exact residual of a float scheme is worked out: Gram matrices of r^2 integers

# Claims are compared with figures worked out afresh. kappa and max_coeff are sums of at most a few thousand products
# of doubles, so 1e-9 is far above their rounding; E must not be below the exact rational either. error(dtype) also
# rests on d(dtype), which is good to 1e-6 (score.relative_rounding).
FIGURE_RTOL = 1e-9
ERROR_RTOL = 1e-6
SHORTEN_RTOL = 1e-6  # by how much dropping digits may change error(dtype)
BALANCE_SLACK = 1.01  # norms of one term within this ratio count as balanced: rounding must not set off a new balancing

_PROVENANCE = (
    "command",
    "strategy",
    "seed",
    "steps",
    "workers",
    "version",
    "commit",
    "seconds",
    "starts",
    "references",
)
_NUMBERS = ("E", "kappa", "additions", "additions_shared", "max_coeff")
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_ID = re.compile(r"[0-9a-f]{64}")
_EXACT_E = re.compile(r"[0-9]{1,4000}(/[0-9]{1,4000})?")

Parts = Callable[[str], Scheme]
"""How a composition finds a part: full id -> scheme, or CatalogError."""


@dataclass(frozen=True)
class Record:
    """One entry: u (r, m, k), v (r, k, n), w (r, m, n) with certificate, figures and provenance.

    ``figures`` is the JSON object of the file: E, kappa, error {dtype: number}, additions, max_coeff, bytes (see
    ``score.bytes_moved``; older files do without), and additions_shared for exact schemes that are not huge; the first
    three are None over Z2, where they have no meaning.
    """

    scheme: Scheme
    certificate: Certificate
    figures: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @classmethod
    def prove(cls, scheme: Scheme, provenance: Mapping[str, Any]) -> Record:
        """The record of a scheme, proved afresh.

        Raises VerificationError when the scheme is not what its ring says or has figures beyond a double, FormatError
        for a provenance that is no JSON, BudgetError for a proof beyond the stated size.

        >>> from stl_search.transform import classical
        >>> Record.prove(classical((1, 2, 1)), {"strategy": "classical"}).figures["kappa"]
        1.0
        """
        check_size(scheme.shape, scheme.rank, scheme.ring.name)
        certificate = verify(scheme)
        figures = _figures(scheme, certificate)
        numbers = [*(figures["error"] or {}).values(), figures["kappa"] or 0, figures["max_coeff"]]
        if not all(math.isfinite(x) for x in numbers):
            raise VerificationError("the figures of this scheme are beyond the range of a double: scale its terms")
        return cls(scheme, certificate, figures, _clean(provenance))

    def to_json(self) -> dict[str, Any]:
        """The ``stl-scheme/1`` object."""
        return {
            **self.scheme.to_json(),
            "certificate": self.certificate.to_json(),
            "figures": dict(self.figures),
            "provenance": dict(self.provenance),
        }

    def dumps(self) -> str:
        """The text of the file: UTF-8 JSON, one row of coefficients a line, ends with a newline."""
        return dump_scheme_object(self.to_json())


@dataclass(frozen=True)
class Checked:
    """What ``check_file`` found: ``code`` 0 all holds, 1 a claim fails, 2 not a scheme file; ``reason`` is one line."""

    path: str
    ok: bool
    code: int
    ring: str | None
    E: float | None
    reason: str | None
    shape: Shape | None = None
    rank: int | None = None
    rings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One element of the ``files`` list that ``stl-search verify --json`` prints."""
        return {
            "path": self.path,
            "ok": self.ok,
            "code": self.code,
            "ring": self.ring,
            "E": self.E,
            "reason": self.reason,
            "shape": None if self.shape is None else list(self.shape),
            "rank": self.rank,
            "rings": list(self.rings),
        }


def one_line(text: object) -> str:
    """Text without line breaks and control characters, for messages that quote paths and file contents."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


# -- reading -----------------------------------------------------------------------------------------------------------


def read_file(path: str | os.PathLike[str], as_written: bool = True) -> Any:
    """The JSON value in a file of at most 16 MiB; nothing in it is believed.

    ``as_written``: numbers with a point keep their text, which exact rings go by; without, six times as fast, they are
    plain floats, and one beyond a double is an infinity.

    Raises FormatError, with the place, for a file that is absent, too large, no UTF-8, no JSON, or JSON with
    duplicate keys, NaN, infinities, numbers beyond a double, integers of over 1000 digits, halves of surrogate pairs or
    deep nesting.
    """
    text = _read_text(Path(path))
    real = _float if as_written else None
    try:
        obj = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=real, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise FormatError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except _RefusedTokenError as error:
        place = _place_of(text, error.token, error.is_key)
        raise FormatError(f"{error} at {place}") from None
    except RecursionError:
        raise FormatError("not a scheme file: nested too deeply") from None
    _check_text(text)
    return obj


class _RefusedTokenError(Exception):
    """A token that JSON or its Python reader allows and a scheme file does not."""

    def __init__(self, what: str, token: str, is_key: bool = False) -> None:
        super().__init__(what)
        self.token, self.is_key = token, is_key


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb", opener=_open_no_wait) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FormatError("not a regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise FormatError(f"larger than {MAX_BYTES >> 20} MiB, the limit for a scheme file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None


def _open_no_wait(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe must not make us wait for a writer


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedTokenError(f"key {key!r:.60} appears twice", key, is_key=True)
            seen.add(key)
    return found


def _refuse_constant(token: str) -> Any:
    raise _RefusedTokenError(f"{token} is not a number of a scheme file", token)


def _float(token: str) -> float:
    value = rings.Written(token)
    if not math.isfinite(value):
        raise _RefusedTokenError(f"{token:.40} is beyond the range of a double", token)
    return value


def _integer(token: str) -> int:
    if len(token.lstrip("-")) > MAX_DIGITS:
        raise _RefusedTokenError(f"an integer of {len(token.lstrip('-'))} digits (limit {MAX_DIGITS})", token)
    return int(token)


def _place_of(text: str, token: str, is_key: bool) -> str:
    """Line and column of a token outside strings; of a key, its last appearance as one."""
    pattern = f"{_STRING}(?=\\s*:)" if is_key else f"{_STRING}|(?<![\\w.+-]){re.escape(token)}"
    position = 0
    for match in re.finditer(pattern, text):
        if is_key:
            if json.loads(match[0]) == token:
                position = match.start()
        elif match[0] == token:
            position = match.start()
            break
    return _line_and_column(text, position)


def _line_and_column(text: str, position: int) -> str:
    return f"line {text.count(chr(10), 0, position) + 1}, column {position - text.rfind(chr(10), 0, position)}"


def _check_text(text: str) -> None:
    """FormatError for a string of JSON that holds half a surrogate pair, which could not be written as UTF-8 again."""
    if not re.search(r"\\u[dD][89a-fA-F]", text):
        return
    for match in re.finditer(_STRING, text):
        half = re.search("[\ud800-\udfff]", json.loads(match[0]))
        if half:
            place = _line_and_column(text, match.start())
            raise FormatError(f"half of a surrogate pair, \\u{ord(half[0]):04x}, in the text at {place}")


def read_record(path: str | os.PathLike[str], parts: Parts | None = None) -> Record:
    """The record of one scheme or composition file, proved afresh, with every claim of the file compared.

    ``parts`` finds the parts of a composition by id. Raises FormatError for what is no such file, VerificationError
    for a claim that does not hold, BudgetError for a proof beyond the stated sizes.
    """
    obj = read_file(path)
    try:
        return _record(obj, parts)[0]
    except RecursionError:
        raise FormatError("not a scheme file: nested too deeply") from None


def check_file(path: str | os.PathLike[str], parts: Parts | None = None) -> Checked:
    """What ``stl-search verify`` says of one file; never raises for what the file holds.

    Proves the scheme afresh and compares every claim that is present: id, certificate (kind, rings, E_exact), figures
    (E: not below the exact value and within FIGURE_RTOL of it; kappa, max_coeff: FIGURE_RTOL; error: ERROR_RTOL;
    additions: equal; additions_shared: not below what ``programs.additions_shared`` counts; bytes: FIGURE_RTOL). The
    parts of a composition come from ``parts``, by default from the folder of the file and the catalog.
    """
    name = os.fspath(path)
    try:
        obj = read_file(path)
        if parts is None and isinstance(obj, dict) and obj.get("format") == COMPOSITION:
            from stl_search.catalog.store import part_finder

            parts = part_finder(Path(path).parent)
        try:
            record, failures = _record(obj, parts, strict=False)
        except VerificationError as error:
            ring = obj.get("ring")
            return Checked(name, False, 1, ring if isinstance(ring, str) else None, None, one_line(error))
    except RecursionError:
        return Checked(name, False, 2, None, None, "not a scheme file: nested too deeply")
    except MemoryError:
        return Checked(name, False, 2, None, None, "needs more memory than there is")
    except StlError as error:
        return Checked(name, False, 2, None, None, one_line(error))
    scheme, certificate = record.scheme, record.certificate
    reason = one_line("; ".join(failures)) if failures else None
    return Checked(
        name,
        not failures,
        1 if failures else 0,
        scheme.ring.name,
        certificate.E,
        reason,
        scheme.shape,
        scheme.rank,
        certificate.rings,
    )


def _record(obj: Any, parts: Parts | None, strict: bool = True) -> tuple[Record, list[str]]:
    """(record, claims of the object that fail); with ``strict`` a failing claim raises VerificationError."""
    if not isinstance(obj, dict) or obj.get("format") not in (FORMAT, COMPOSITION):
        Scheme.from_json(obj if not isinstance(obj, dict) else {"format": obj.get("format")})  # says what is wrong
    claims = claims_of(obj)
    if obj["format"] == COMPOSITION:
        scheme = compose(obj, parts)
    else:
        _check_header(obj)
        scheme = Scheme.from_json(obj)
        check_size(scheme.shape, scheme.rank, scheme.ring.name)
    certificate = verify(scheme)
    figures = _figures(scheme, certificate)
    failures = _failures(claims, scheme, certificate, figures)
    if failures and strict:
        raise VerificationError("; ".join(failures))
    provenance = obj.get("provenance")
    return Record(scheme, certificate, figures, provenance if isinstance(provenance, dict) else {}), failures


def _check_header(obj: dict[str, Any]) -> None:
    """BudgetError for a proof that would be too large, before the coefficients are unpacked."""
    rank, ring = obj.get("rank"), obj.get("ring")
    if isinstance(rank, int) and isinstance(ring, str) and ring in rings.NAMES:
        try:
            check_size(parse_shape(obj.get("shape")), rank, ring)
        except SchemeError:
            return  # Scheme.from_json says it better


def check_size(shape: Shape, rank: int, ring: str) -> None:
    """Raises BudgetError when a proof for <m,k,n> of this rank would need more room than is sensible.

    >>> check_size((64, 64, 64), 1, "ZT")
    Traceback (most recent call last):
    stl_search.errors.BudgetError: a proof of <64,64,64> needs 68719476736 coefficients; the limit is 33554432
    """
    m, k, n = shape
    name = f"<{m},{k},{n}>"
    size = (m * k) * (k * n) * (m * n)
    if size > MAX_TENSOR:
        raise BudgetError(f"a proof of {name} needs {size} coefficients; the limit is {MAX_TENSOR}")
    if ring in ("R", "C") and rank > MAX_GRAM:
        raise BudgetError(f"the exact residual of rank {rank} over {ring} is too large; the limit is rank {MAX_GRAM}")


# -- claims ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claims:
    """What a file says of itself, well-formed but not believed; None where it says nothing."""

    id: str | None
    kind: str | None
    rings: tuple[str, ...]
    e_exact: Fraction | None
    numbers: Mapping[str, int | float]  # E, kappa, additions, additions_shared, max_coeff
    error: Mapping[str, int | float]
    bytes: Mapping[str, int | float]  # moved for each entry of A, B and C


def claims_of(obj: dict[str, Any]) -> Claims:
    """The claims of an object; raises FormatError where one is malformed."""
    claimed_id = obj.get("id")
    if claimed_id is not None and not isinstance(claimed_id, str):
        raise FormatError(f"id is {claimed_id!r:.60}, must be text")
    certificate = _mapping(obj, "certificate", "")
    kind = certificate.get("kind")
    if kind is not None and kind not in ("exact", "residual"):
        raise FormatError(f"certificate.kind is {kind!r:.60}, must be 'exact' or 'residual'")
    claimed_rings = certificate.get("rings")
    if claimed_rings is None:
        claimed_rings = []
    if not isinstance(claimed_rings, list):
        raise FormatError(f"certificate.rings is {claimed_rings!r:.60}, must be a list of ring names")
    for name in claimed_rings:
        if name not in rings.NAMES:
            raise FormatError(f"certificate.rings: unknown ring {name!r:.60}; known: {', '.join(rings.NAMES)}")
    exact = certificate.get("E_exact")
    if exact is not None:
        if not isinstance(exact, str) or not _EXACT_E.fullmatch(exact):
            raise FormatError(f"certificate.E_exact is {exact!r:.60}, must be a fraction 'p/q'")
        top, _, bottom = exact.partition("/")
        if bottom and int(bottom) == 0:
            raise FormatError("certificate.E_exact has a zero denominator")
        exact = Fraction(int(top), int(bottom or 1))
    figures = _mapping(obj, "figures", "")
    numbers = {k: figures[k] for k in _NUMBERS if figures.get(k) is not None}
    error = _mapping(figures, "error", "figures.")
    for dtype in error:
        if dtype not in DTYPES:
            raise FormatError(f"figures.error: unknown dtype {dtype!r:.60}; known: {', '.join(DTYPES)}")
    moved = _mapping(figures, "bytes", "figures.")
    for side in moved:
        if side not in ("A", "B", "C"):
            raise FormatError(f"figures.bytes: unknown matrix {side!r:.60}; known: A, B, C")
    named = [(f"error.{d}", x) for d, x in error.items()] + [(f"bytes.{s}", x) for s, x in moved.items()]
    for key, value in [*numbers.items(), *named]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(f"figures.{key} is {value!r:.60}, must be a number")
        if abs(value) > sys.float_info.max:
            raise FormatError(f"figures.{key} is beyond the range of a double")
    _mapping(obj, "provenance", "")
    return Claims(claimed_id, kind, tuple(claimed_rings), exact, numbers, error, moved)


def _mapping(obj: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = obj.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(f"{where}{key} is {value!r:.60}, must be a JSON object")
    return value


def _failures(claims: Claims, scheme: Scheme, proved: Certificate, figures: Mapping[str, Any]) -> list[str]:
    """Every claim that the fresh proof does not bear out, in words."""
    found = []
    if claims.id is not None and claims.id != scheme.id:
        found.append(f"id is {claims.id:.16}..., these coefficients have {scheme.id:.16}...")
    if claims.kind is not None and claims.kind != proved.kind:
        found.append(f"certificate.kind is {claims.kind!r}, proved is {proved.kind!r}")
    beyond = [name for name in claims.rings if name not in proved.rings]
    if beyond:
        found.append(f"certificate.rings names {', '.join(beyond)}, proved: {', '.join(proved.rings) or 'none'}")
    if claims.e_exact is not None and claims.e_exact != proved.E_exact:
        found.append(f"certificate.E_exact is {_short(claims.e_exact)}, proved is {_short(proved.E_exact)}")
    for key, claim in claims.numbers.items():
        true = figures.get(key)
        if true is None:
            found.append(f"figures.{key} has no meaning over {scheme.ring.name}")
        elif key == "E":
            exact = proved.E_exact
            assert exact is not None  # figures["E"] would be None too
            if Fraction(claim) < exact:
                found.append(f"figures.E is {float(claim)!r}, below the proved {true!r}")
            elif Fraction(claim) > exact * (1 + Fraction(FIGURE_RTOL)) and claim != true:
                found.append(f"figures.E is {float(claim)!r}, proved is {true!r}")
        elif key == "additions":
            if claim != true:
                found.append(f"figures.additions is {claim}, counted are {true}")
        elif key == "additions_shared":
            if not true <= claim <= figures["additions"]:  # more is true too, and left by a version that found less
                found.append(f"figures.additions_shared is {claim}, the program found has {true}")
        elif not _close(claim, true, FIGURE_RTOL):
            found.append(f"figures.{key} is {claim!r}, computed is {true!r}")
    for dtype, claim in claims.error.items():
        if figures["error"] is None:
            found.append(f"figures.error has no meaning over {scheme.ring.name}")
            break
        if not _close(claim, figures["error"][dtype], ERROR_RTOL):
            found.append(f"figures.error.{dtype} is {claim!r}, computed is {figures['error'][dtype]!r}")
    for side, claim in claims.bytes.items():
        if not _close(claim, figures["bytes"][side], FIGURE_RTOL):
            found.append(f"figures.bytes.{side} is {claim!r}, computed is {figures['bytes'][side]!r}")
    return found


def _close(claim: float, true: float, rtol: float) -> bool:
    return abs(claim - true) <= rtol * abs(true)


def _short(x: Fraction | None) -> str:
    return "none" if x is None else str(x) if len(str(x)) <= 40 else f"{str(x)[:18]}... = {float(x):.6g}"


def _figures(scheme: Scheme, certificate: Certificate) -> dict[str, Any]:
    """The ``figures`` object of a proved scheme; infinite where they leave the range of a double."""
    moved = bytes_moved(scheme.shape, scheme.rank)
    try:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if certificate.E is None:
                found = Figures(0.0, 0.0, {}, additions(scheme), max_coefficient(scheme), moved).to_json()
                found |= {"E": None, "kappa": None, "error": None}
            else:
                found = figures_of(scheme, certificate.E).to_json()
    except OverflowError:  # an exact coefficient beyond 1.8e308
        errors = dict.fromkeys(DTYPES, math.inf)
        found = Figures(certificate.E or 0.0, math.inf, errors, additions(scheme), math.inf, moved).to_json()
    shared = additions_shared(scheme)
    return found if shared is None else found | {"additions_shared": shared}


def _clean(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance with its known keys first and the version added; raises FormatError when it is no JSON."""
    known = {key: provenance[key] for key in _PROVENANCE if provenance.get(key) is not None}
    rest = {key: value for key, value in provenance.items() if key not in _PROVENANCE}
    out = {**known, "version": provenance.get("version") or __version__, **rest}
    try:
        json.dumps(out, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise FormatError(f"provenance is not JSON: {one_line(error)}") from None
    return out


# -- compositions ------------------------------------------------------------------------------------------------------


_FOLDS: dict[str, Callable[[Scheme, Scheme], Scheme]] = {"kron": kron, "sum_m": sum_m, "sum_k": sum_k, "sum_n": sum_n}
OPERATIONS = (*_FOLDS, "project")
_KEPT = ("rows", "inner", "cols")  # the indices that project keeps of m, k and n


def combine(op: str, parts: Sequence[Scheme], **kept: Sequence[int]) -> Scheme:
    """kron, sum_m, sum_k or sum_n of two schemes or more, from the left; or project of one, keeping some indices.

    ``kept`` holds ``rows``, ``inner`` and ``cols`` for project. Raises UsageError for an unknown ``op`` or a wrong
    number of parts, SchemeError for shapes that do not fit.

    >>> from stl_search.transform import classical
    >>> combine("sum_k", [classical((1, 2, 1))] * 3).shape
    (1, 6, 1)
    """
    if op not in OPERATIONS:
        raise UsageError(f"unknown op {op!r:.60}; known: {', '.join(OPERATIONS)}")
    if op == "project":
        if len(parts) != 1:
            raise UsageError(f"project needs one part, not {len(parts)}")
        return project(parts[0], *(kept.get(key) for key in _KEPT))
    if len(parts) < 2:
        raise UsageError(f"{op} needs two parts or more, not {len(parts)}")
    return functools.reduce(_FOLDS[op], parts)


def compose(obj: dict[str, Any], parts: Parts | None) -> Scheme:
    """The scheme of a ``stl-composition/1`` object, <m,k,n> of the rank that it states, from parts found by id.

    Parts are combined from the left: kron, sum_m, sum_k, sum_n, or project (one part; "rows", "inner", "cols" say which
    indices to keep, by default the first ones). A part is an id, or an object with "op" and "parts" of its own, or
    {"op": "classical", "shape": [m, k, n], "rank": r}, the first r products of the classical algorithm. Parts are taken
    in the shape they have, or brought to the permuted ones that "shapes" lists. Raises FormatError for a malformed
    object, VerificationError when shape, rank or ring are not what the parts give, CatalogError for a part that is not
    there.
    """
    for key in ("shape", "rank", "op", "parts"):
        if key not in obj:
            raise FormatError(f"{key!r} is missing")
    if obj["op"] not in OPERATIONS:
        raise FormatError(f"unknown op {obj['op']!r:.60}; known: {', '.join(OPERATIONS)}")
    shape, rank = _sides(obj["shape"]), obj["rank"]
    ring = obj.get("ring")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank <= MAX_RANK:
        raise FormatError(f"rank is {rank!r:.60}, must be an integer 0..{MAX_RANK}")
    if ring is not None and ring not in rings.NAMES:
        raise FormatError(f"unknown ring {ring!r:.60}; known: {', '.join(rings.NAMES)}")
    if _leaves(obj) > MAX_PARTS:
        raise FormatError(f"{_leaves(obj)} parts; the limit is {MAX_PARTS}")
    check_size(shape, rank, "Q")
    if parts is None:
        raise CatalogError("a composition is read together with a catalog that holds its parts")
    scheme = _combined(obj, parts, shape)
    if scheme.shape != shape:
        raise VerificationError(f"shape is {list(shape)}, the parts give {list(scheme.shape)}")
    if scheme.rank != rank:
        raise VerificationError(f"rank is {rank}, the parts give {scheme.rank}")
    if ring is not None and scheme.ring.name != ring:
        raise VerificationError(f"ring is {ring}, the parts give {scheme.ring.name}")
    check_size(shape, rank, scheme.ring.name)
    return scheme


def _sides(value: Any) -> Shape:
    try:
        return parse_shape(value)
    except SchemeError as error:
        raise FormatError(str(error)) from None


def _leaves(obj: dict[str, Any]) -> int:
    """The number of ids and classical parts in a composition, each of which is well-formed."""
    parts = obj.get("parts")
    if obj.get("op") == "classical":
        shape, rank = _sides(obj.get("shape")), obj.get("rank")
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank <= math.prod(shape):
            raise FormatError(f"rank of a classical part is {rank!r:.60}, must be an integer 0..{math.prod(shape)}")
        check_size(shape, rank, "ZT")
        return 1
    if obj.get("op") not in OPERATIONS:
        raise FormatError(f"unknown op {obj.get('op')!r:.60}; known: {', '.join(OPERATIONS)}, and classical for parts")
    if not isinstance(parts, list) or not all(
        isinstance(i, dict) or (isinstance(i, str) and _ID.fullmatch(i)) for i in parts
    ):
        raise FormatError("parts must be a list of ids of 64 hexadecimal digits or of compositions")
    turned = obj.get("shapes")
    if turned is not None and (not isinstance(turned, list) or len(turned) != len(parts)):
        raise FormatError("shapes must be a list with one shape for each part")
    return sum(_leaves(part) if isinstance(part, dict) else 1 for part in parts)


def part_of(part: str | dict[str, Any], parts: Parts) -> Scheme:
    """The scheme of one part of a composition: an id, a composition, or the first products of a classical algorithm."""
    if isinstance(part, str):
        return parts(part)
    if part["op"] == "classical":
        whole = classical(part["shape"])
        if part["rank"] < whole.rank:  # an approximation, which only R has
            whole = to_ring(whole, "R")
        return Scheme(whole.shape, whole.ring, *(f[: part["rank"]] for f in whole.factors))
    return _combined(part, parts)


def _combined(obj: dict[str, Any], parts: Parts, shape: Shape | None = None) -> Scheme:
    """The parts of a composition, combined; project keeps the first indices that ``shape`` asks for, or all."""
    schemes = [part_of(part, parts) for part in obj["parts"]]
    kept = {}
    if obj["op"] == "project":
        for key, side in zip(_KEPT, shape or (schemes[0].shape if schemes else ()), strict=False):
            kept[key] = obj.get(key, list(range(side)))
            if not isinstance(kept[key], list) or not all(type(i) is int for i in kept[key]):
                raise FormatError(f"{key} is {kept[key]!r:.60}, must be a list of indices")
    try:
        if obj.get("shapes") is not None:
            schemes = [permute_to(one, parse_shape(sides)) for one, sides in zip(schemes, obj["shapes"], strict=True)]
        return combine(obj["op"], schemes, **kept)
    except UsageError as error:
        raise FormatError(str(error)) from None
    except SchemeError as error:
        raise VerificationError(f"{obj['op']}: {error}") from None


# -- the shape in which coefficients are kept --------------------------------------------------------------------------


def retag(scheme: Scheme) -> Scheme:
    """u (r, m, k), v, w in the smallest ring over which they are proved: ZT in Z in Q in R in C.

    A scheme over R or C goes down only where its residual is exactly zero; one over Z2 only when the same zeros and
    ones compute A B over the integers. Raises BudgetError for a proof beyond the stated size.

    >>> retag(Scheme((1, 1, 1), "R", [[2.0]], [[1.0]], [[0.5]])).ring.name
    'Q'
    """
    check_size(scheme.shape, scheme.rank, scheme.ring.name)
    if scheme.ring.characteristic:
        lifted = Scheme(scheme.shape, "ZT", *scheme.factors)
        return scheme if first_failure(lifted) else lifted
    if not scheme.ring.exact:
        if residual(scheme) != 0 or any(f.imag.any() for f in scheme.factors):
            return scheme
        scheme = to_ring(to_ring(scheme, "R"), "Q")
    return smallest_ring(scheme)


def shorten(scheme: Scheme) -> Scheme:
    """The same u (r, m, k), v, w over R or C, terms balanced, with the fewest significant decimal digits.

    ``error(dtype)`` stays within SHORTEN_RTOL of what it was for every dtype of ``score.DTYPES``. Exact schemes, over
    whatever ring, come back as they are. Encoders on the grid of ``score.GRID`` stay there instead of being balanced,
    since their norms differ little anyway; so does a decoder that is on it up to a scale for each term.

    >>> shorten(Scheme((1, 1, 2), "R", [[0.5]], [[0.5, 1.2345e-9]], [[0.5, 9.8765e-10]])).v.tolist()
    [[[0.5, 1e-09]]]
    """
    if scheme.ring.exact or residual(scheme) == 0:
        return scheme
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        *encoders, decoder = scheme.flat()
        grid = all(on_grid(f) for f in encoders)
        whole = grid and on_grid(decoder, scaled=True)
        even = scheme if grid or _is_balanced(scheme) else balanced(scheme)
        wanted = _errors(even)
        for digits in range(1, 17):  # 17 change nothing
            short = _rounded(even, digits, whole)
            if short is not None and all(
                _close(e, w, SHORTEN_RTOL) for e, w in zip(_errors(short), wanted, strict=True)
            ):
                return short
    return even


def _errors(scheme: Scheme) -> list[float]:
    e, kappa = expected_error(scheme), noise_gain(scheme)
    return [math.sqrt(e + 2 * relative_rounding(dtype) ** 2 * kappa) for dtype in DTYPES]


def _is_balanced(scheme: Scheme) -> bool:
    norms = np.array([np.sqrt((np.abs(f) ** 2).sum(axis=(1, 2))) for f in scheme.factors])
    return bool((norms.max(axis=0) <= BALANCE_SLACK * norms.min(axis=0)).all())


def _rounded(scheme: Scheme, digits: int, scales: bool = False) -> Scheme | None:
    """The scheme with that many significant decimal digits; None when one leaves the range of a double.

    With ``scales`` only the largest coefficient of each row is rounded, and the others keep their ratio to it.
    """
    if scales:
        factors = []
        for f in scheme.factors:
            peak = np.abs(f).max(axis=(1, 2), keepdims=True)
            scale = np.array([float(f"{x:.{digits - 1}e}") for x in peak.ravel().tolist()]).reshape(peak.shape)
            factors.append(f / np.where(peak > 0, peak, 1.0) * scale)
        return Scheme(scheme.shape, scheme.ring, *factors) if all(np.isfinite(f).all() for f in factors) else None
    factors = []
    for f in scheme.factors:
        parts = f.view(np.float64)
        short = [float(f"{x:.{digits - 1}e}") for x in parts.ravel().tolist()]
        factors.append(np.array(short).reshape(parts.shape).view(f.dtype))
    if not all(np.isfinite(f).all() for f in factors):
        return None
    return Scheme(scheme.shape, scheme.ring, *factors)
