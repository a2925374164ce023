"""The catalog: finding, choosing, loading and adding schemes in the shipped folder and in the user's own.

A listing reads what files say of themselves; a scheme is handed out only after a fresh proof of its file, which is
kept for as long as the file does not change. A broken file is skipped with one warning, and breaks nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.resources
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from stl_search import rings
from stl_search.catalog.record import (
    COMPOSITION,
    Parts,
    Record,
    claims_of,
    combine,
    one_line,
    part_of,
    read_file,
    read_record,
    retag,
    shorten,
)
from stl_search.errors import CatalogError, FormatError, SchemeError, StlError, UsageError
from stl_search.scheme import FORMAT, MAX_RANK, Scheme, Shape, dump_scheme_object, parse_shape
from stl_search.score import DTYPES, bytes_moved, check_dtype, line, relative_rounding
from stl_search.transform import permute_to

__all__ = [
    "KEYS",
    "Entry",
    "Point",
    "Selector",
    "add",
    "add_composition",
    "best",
    "by_id",
    "candidates",
    "entries",
    "frontier",
    "load",
    "parse_selector",
    "part_finder",
    "remove",
    "scheme_of",
    "shipped_dir",
    "user_dir",
]

KEYS = ("shape", "rank", "max_rank", "ring", "dtype", "rtol", "speedup")  # of a selector's query
TIE = 1e-6  # an E this near to the line 1 - r/(mkn) ties it
MAX_DEPTH = 8  # of compositions made of compositions

# What holds over the key's ring: the rings of entries that a request for it may be served with.
_SERVES = {
    "Z2": ("Z2",),
    "ZT": ("ZT",),
    "Z": ("ZT", "Z"),
    "Q": ("ZT", "Z", "Q"),
    "R": ("ZT", "Z", "Q", "R"),
    "C": ("ZT", "Z", "Q", "R", "C"),
}
_LOG = logging.getLogger("stl_search.catalog")  # with no logging set up, a warning is one line on stderr


@dataclass(frozen=True)
class Entry:
    """One file of the catalog, <m,k,n> of rank r over a ring, as it describes itself: listed, not yet proved.

    ``errors``, ``E`` and ``kappa`` are the file's claims where it makes them, else worked out; they are empty and None
    over Z2. ``scheme_of`` proves the file, and every claim in it, and gives the scheme.
    """

    path: Path
    shape: Shape
    rank: int
    ring: str
    id: str
    E: float | None
    kappa: float | None
    errors: Mapping[str, float]
    additions: int | None
    provenance: Mapping[str, Any]

    @property
    def exact(self) -> bool:
        """Whether the entry computes A B exactly, over its ring."""
        return rings.get(self.ring).exact or self.E == 0

    def error(self, dtype: str) -> float:
        """sqrt(E + 2 d^2 kappa) at that dtype; infinite over Z2, where it has no meaning."""
        return self.errors.get(check_dtype(dtype), math.inf)

    @property
    def bytes(self) -> dict[str, float]:
        """What is moved for each entry of A, B and C: see ``score.bytes_moved``."""
        return bytes_moved(self.shape, self.rank)

    def to_json(self) -> dict[str, Any]:
        """The entry as the command line prints it."""
        return {
            "path": str(self.path),
            "id": self.id,
            "shape": list(self.shape),
            "rank": self.rank,
            "ring": self.ring,
            "E": self.E,
            "kappa": self.kappa,
            "error": dict(self.errors) or None,
            "additions": self.additions,
            "bytes": self.bytes,
            "strategy": self.provenance.get("strategy"),
        }


@dataclass(frozen=True)
class Point:
    """The best of one rank at one dtype."""

    rank: int
    E: float
    kappa: float
    error: float
    entry: Entry

    @property
    def truncation(self) -> bool:
        """Whether it only ties the line 1 - r/(mkn), as keeping r of the elementary products does."""
        target = line(self.entry.shape, self.rank)
        return target > 0 and abs(self.E - target) <= TIE

    def to_json(self) -> dict[str, Any]:
        """One element of ``points`` in ``stl-search catalog frontier --json``."""
        return {
            "rank": self.rank,
            "E": self.E,
            "kappa": self.kappa,
            "error": self.error,
            "id": self.entry.id,
            "path": str(self.entry.path),
            "ring": self.entry.ring,
            "line": line(self.entry.shape, self.rank),
            "truncation": self.truncation,
        }


# -- folders -----------------------------------------------------------------------------------------------------------


def shipped_dir() -> Path:
    """The folder that comes with the package: ``schemes/`` and ``compositions/`` lie in it."""
    return Path(str(importlib.resources.files("stl_search.catalog")))


def user_dir() -> Path:
    """The user's own catalog: ``$STL_CATALOG`` where it is set, else a folder among the user's application data."""
    chosen = os.environ.get("STL_CATALOG")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("stl-search", appauthor=False)) / "catalog"


def _folders(root: Path) -> tuple[Path, ...]:
    """Where files lie under a catalog folder."""
    return root, root / "schemes", root / "compositions"


def _files(root: Path, part: str = "") -> list[Path]:
    """The .json files of a catalog folder with ``part`` in their names; no folder, no files."""
    found = []
    for folder in _folders(root):
        try:
            names = [n for n in os.listdir(folder) if n.endswith(".json") and part in n and not n.startswith(".")]
        except OSError:
            continue
        found += [folder / name for name in sorted(names)]
    return found


# -- the index ---------------------------------------------------------------------------------------------------------

_Stamp = tuple[str, int, int]  # real path, mtime in ns, size: a changed file is read again
_index: dict[_Stamp, Entry | None] = {}  # None: broken, and the user has been told
_proofs: dict[_Stamp, Record] = {}


def _stamp(path: Path) -> _Stamp:
    info = path.stat()
    return os.path.abspath(path), info.st_mtime_ns, info.st_size


def entries(dirs: Iterable[str | os.PathLike[str]] | None = None) -> list[Entry]:
    """Every readable entry of the shipped and the user's catalog, or of the folders given, one for each id.

    Claims are listed as they stand in the files; proved are only files that claim one id and differ. A file that cannot
    be read, or fails there, is skipped with a warning, once.
    """
    copies: dict[str, list[Entry]] = {}
    for root in _roots(dirs):
        for path in _files(root):
            entry = _entry(path)
            if entry is not None:
                copies.setdefault(entry.id, []).append(entry)
    found = [entry for same in copies.values() if (entry := _sound(same)) is not None]
    return sorted(found, key=lambda e: (e.shape, e.rank, rings.NAMES.index(e.ring), e.id))


def _sound(copies: list[Entry]) -> Entry | None:
    """The first of the entries of one id: the first that proves, where they differ, so that none hides a sound one."""
    first, *others = copies
    if all(other is first or _alike(first.path, other.path) for other in others):
        return first
    return _first_that_proves(copies)


def _alike(one: Path, other: Path) -> bool:
    """Whether two files say the same, but for their provenance."""
    try:
        return _alike_as_of(_stamp(one), _stamp(other))
    except (OSError, ValueError, RecursionError):  # changed while we were looking
        return False


@functools.lru_cache(maxsize=4096)
def _alike_as_of(one: _Stamp, other: _Stamp) -> bool:
    """``_alike`` of files as of these stamps; numbers are compared as they are written."""
    said = []
    for path in (one[0], other[0]):
        obj = json.loads(Path(path).read_bytes(), parse_int=lambda text: (text,), parse_float=lambda text: (text,))
        said.append({key: value for key, value in obj.items() if key != "provenance"})
    return bool(said[0] == said[1])


def _roots(dirs: Iterable[str | os.PathLike[str]] | None) -> list[Path]:
    return [shipped_dir(), user_dir()] if dirs is None else [Path(d) for d in dirs]


def _entry(path: Path) -> Entry | None:
    try:
        stamp = _stamp(path)
    except OSError:
        return None  # removed while we were looking
    if stamp not in _index:
        try:
            _index[stamp] = _describe(path)
        except (StlError, RecursionError) as error:
            _index[stamp] = None
            _warn(path, error)
    return _index[stamp]


def _warn(path: Path, error: BaseException) -> None:
    _LOG.warning("catalog: skipped %s: %s", one_line(path), one_line(error))


def _drop(entry: Entry, error: BaseException) -> None:
    """Forgets an entry whose proof failed, and says so once."""
    with contextlib.suppress(OSError):
        stamp = _stamp(entry.path)
        if _index.get(stamp) is not None:
            _index[stamp] = None
            _warn(entry.path, error)


def _describe(path: Path) -> Entry:
    """The entry of one file from its own claims; what it does not say is worked out from a proof."""
    obj = read_file(path, as_written=False)
    if not isinstance(obj, dict) or obj.get("format") not in (FORMAT, COMPOSITION):
        raise FormatError(f"not a catalog file: format must be {FORMAT!r} or {COMPOSITION!r}")
    claims = claims_of(obj)
    try:
        shape = parse_shape(obj.get("shape"))
    except SchemeError as error:
        raise FormatError(str(error)) from None
    rank, ring = obj.get("rank"), obj.get("ring")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank <= MAX_RANK:
        raise FormatError(f"rank is {rank!r:.60}, must be an integer 0..{MAX_RANK}")
    if ring is not None and ring not in rings.NAMES:
        raise FormatError(f"unknown ring {ring!r:.60}; known: {', '.join(rings.NAMES)}")
    e, kappa, name = claims.numbers.get("E"), claims.numbers.get("kappa"), claims.id
    errors = dict(claims.error)
    additions: int | float | None = claims.numbers.get("additions")
    if ring is None or name is None or (ring != "Z2" and (e is None or kappa is None)):
        record = _prove(path)
        ring, name = record.scheme.ring.name, record.scheme.id
        e, kappa, errors = record.figures["E"], record.figures["kappa"], dict(record.figures["error"] or {})
        additions = record.figures["additions"]
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise FormatError(f"id is {name!r:.60}, must be 64 hexadecimal digits")
    if ring == "Z2":
        e, kappa, errors = None, None, {}
    elif e is not None and kappa is not None:
        if e < 0 or kappa < 0:
            raise FormatError("figures.E and figures.kappa cannot be negative")
        for dtype in DTYPES:
            errors.setdefault(dtype, math.sqrt(e + 2 * relative_rounding(dtype) ** 2 * kappa))
    return Entry(
        path,
        shape,
        rank,
        ring,
        name,
        None if e is None else float(e),
        None if kappa is None else float(kappa),
        {dtype: float(errors[dtype]) for dtype in DTYPES if dtype in errors},
        None if additions is None else int(additions),
        obj.get("provenance") or {},
    )


# -- proved schemes ----------------------------------------------------------------------------------------------------


def _prove(path: Path, parts: Parts | None = None) -> Record:
    """The proved record of a file, from memory while the file stays as it is; complaints name the file."""
    try:
        stamp = _stamp(path)
    except OSError as error:
        raise FormatError(f"{one_line(path)}: cannot be read: {error.strerror or error}") from None
    if stamp not in _proofs:
        try:
            _proofs[stamp] = read_record(path, parts or part_finder(path.parent))
        except StlError as error:
            raise type(error)(f"{one_line(path)}: {one_line(error)}") from None
    return _proofs[stamp]


def scheme_of(entry: Entry, shape: Sequence[int] | None = None) -> Scheme:
    """The scheme of an entry, u (r, m, k), v (r, k, n), w (r, m, n), proved; brought to a permuted shape where asked.

    Raises VerificationError or FormatError, naming the file, when one of its claims does not hold.
    """
    scheme = _prove(entry.path).scheme
    return scheme if shape is None or tuple(shape) == scheme.shape else permute_to(scheme, shape)


def part_finder(folder: str | os.PathLike[str]) -> Parts:
    """How compositions in a folder find their parts: there, in the folders beside it, and in the catalog.

    A part that is a composition is resolved in its turn, to a depth of 8; a cycle is refused.
    """
    near = Path(folder)
    roots = [near, *([near.parent] if near.name in ("schemes", "compositions") else []), *_roots(None)]
    active: list[str] = []

    def find(wanted: str) -> Scheme:
        if wanted in active:
            raise FormatError(f"the composition contains itself: part {wanted[:16]}...")
        if len(active) >= MAX_DEPTH:
            raise FormatError(f"compositions nested deeper than {MAX_DEPTH}")
        active.append(wanted)
        try:
            failure: StlError = CatalogError(f"part {wanted[:16]}... is in none of the catalog folders")
            for path in _files_with(roots, wanted):
                try:
                    return _prove(path, find).scheme
                except StlError as error:  # another folder may hold a sound copy
                    failure = error
            raise failure
        finally:
            active.pop()

    return find


def _files_with(roots: Iterable[Path], wanted: str) -> Iterator[Path]:
    """The files that claim an id; their claim is checked by whoever reads them."""
    for root in roots:
        for path in _files(root, wanted[:8]):
            try:
                obj = read_file(path)
            except FormatError:
                continue
            if isinstance(obj, dict) and obj.get("id") == wanted:
                yield path


# -- choosing ----------------------------------------------------------------------------------------------------------


def candidates(
    shape: Sequence[int] | None = None,
    rank: int | None = None,
    max_rank: int | None = None,
    ring: str | None = None,
    dirs: Iterable[str | os.PathLike[str]] | None = None,
) -> list[Entry]:
    """Entries for <m,k,n> or a permutation of it, with that rank or up to ``max_rank``, that hold over ``ring``.

    ZT serves Z, Z serves Q, Q serves R and R serves C. Nothing is proved here; see ``scheme_of``.
    """
    sides = None if shape is None else sorted(parse_shape(shape))
    serving = None if ring is None else _SERVES[rings.get(ring).name]
    return [
        e
        for e in entries(dirs)
        if (sides is None or sorted(e.shape) == sides)
        and (rank is None or e.rank == rank)
        and (max_rank is None or e.rank <= max_rank)
        and (serving is None or e.ring in serving)
    ]


def best(
    shape: Sequence[int],
    rank: int | None = None,
    max_rank: int | None = None,
    dtype: str = "fp32",
    ring: str | None = None,
    dirs: Iterable[str | os.PathLike[str]] | None = None,
) -> Entry:
    """The entry for <m,k,n>, or a permutation of it, with the smallest error at ``dtype``, proved afresh.

    ``rank`` is equality, ``max_rank`` a bound. Entries over C count only when ring="C" is asked for, entries over Z2
    never: they do not run. Raises CatalogError when there is none, saying which ranks there are.
    """
    check_dtype(dtype)
    _no_z2(ring)
    found = candidates(shape, rank, max_rank, ring or "R", dirs)
    winner = _first_proved(found, dtype)
    if winner is None:
        raise CatalogError(_nothing(shape, rank, max_rank, ring, dirs))
    return winner


def frontier(
    shape: Sequence[int], dtype: str = "fp32", dirs: Iterable[str | os.PathLike[str]] | None = None
) -> list[Point]:
    """For <m,k,n>: the smallest error at ``dtype`` for every rank present, exact entries included, each one proved."""
    check_dtype(dtype)
    by_rank: dict[int, list[Entry]] = {}
    for entry in candidates(shape, ring="R", dirs=dirs):
        by_rank.setdefault(entry.rank, []).append(entry)
    points = []
    for rank in sorted(by_rank):
        winner = _first_proved(by_rank[rank], dtype)
        if winner is not None:
            figures = _prove(winner.path).figures
            points.append(Point(rank, figures["E"], figures["kappa"], figures["error"][dtype], winner))
    return points


def _first_proved(found: Iterable[Entry], dtype: str) -> Entry | None:
    """The entry of smallest error whose proof holds; ties go to the smaller rank, then the smaller id."""
    return _first_that_proves(sorted(found, key=lambda e: (e.error(dtype), e.rank, e.id)))


def _first_that_proves(found: Iterable[Entry]) -> Entry | None:
    """The first entry whose proof holds; those before it are dropped."""
    for entry in found:
        try:
            _prove(entry.path)
        except StlError as error:
            _drop(entry, error)
        else:
            return entry
    return None


def _no_z2(ring: str | None) -> None:
    if ring is not None and rings.get(ring).characteristic:
        raise UsageError(f"schemes over {ring} do not run and have no error at a dtype: list them by ring instead")


def _nothing(
    shape: Sequence[int],
    rank: int | None,
    max_rank: int | None,
    ring: str | None,
    dirs: Iterable[str | os.PathLike[str]] | None,
) -> str:
    there = sorted({e.rank for e in candidates(shape, ring=ring or "R", dirs=dirs)})
    wish = "" if rank is None else f" of rank {rank}"
    wish += "" if max_rank is None else f" of rank at most {max_rank}"
    wish += "" if ring is None else f" over {ring}"
    name = ",".join(map(str, shape))
    have = (
        f"ranks there: {', '.join(map(str, there))}" if there else "none of this shape; see `stl-search catalog list`"
    )
    return f"the catalog has no <{name}> scheme{wish}; {have}"


def by_id(prefix: str, dirs: Iterable[str | os.PathLike[str]] | None = None) -> Entry:
    """The one entry whose id starts with these hexadecimal digits (four or more); raises CatalogError otherwise."""
    prefix = prefix.lower()
    if not re.fullmatch(r"[0-9a-f]{4,64}", prefix):
        raise UsageError(f"an id is 4 to 64 hexadecimal digits, not {prefix!r:.80}")
    found = [e for e in entries(dirs) if e.id.startswith(prefix)]
    if not found:
        raise CatalogError(f"the catalog has no entry with id {prefix}...; see `stl-search catalog list`")
    if len(found) > 1:
        raise CatalogError(f"id {prefix} is ambiguous: {', '.join(e.id[:16] for e in found[:8])}; give more digits")
    return found[0]


# -- selectors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selector:
    """``catalog:best|id/HEX|NAME?shape=M,K,N&rank=R&...``, taken apart; ``kind`` is "best", "id" or "name"."""

    kind: str
    value: str = ""
    shape: Shape | None = None
    rank: int | None = None
    max_rank: int | None = None
    ring: str | None = None
    dtype: str | None = None
    rtol: float | None = None
    speedup: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether it leaves the choice of a scheme to the product that it is used for."""
        return self.kind == "best" and (self.rank is None or self.shape is None)


def parse_selector(text: str) -> Selector:
    """A selector from its text; raises UsageError that lists the known keys for an unknown one.

    >>> parse_selector("catalog:best?shape=4,4,4&rank=24&dtype=bf16").rank
    24
    >>> parse_selector("catalog:id/12ab").value
    '12ab'
    """
    if not text.startswith("catalog:"):
        raise UsageError(f"a selector starts with 'catalog:', not {text!r:.60}")
    what, mark, query = text.removeprefix("catalog:").partition("?")
    values: dict[str, Any] = {}
    for piece in query.split("&") if mark else []:
        key, equals, value = piece.partition("=")
        if key not in KEYS:
            raise UsageError(f"selector {text!r:.80}: unknown key {key!r:.40}; known: {', '.join(KEYS)}")
        if not equals or not value:
            raise UsageError(f"selector {text!r:.80}: {key} needs a value")
        if key in values:
            raise UsageError(f"selector {text!r:.80}: {key} is given twice")
        values[key] = _selector_value(key, unquote(value))
    if "rank" in values and "max_rank" in values:
        raise UsageError(f"selector {text!r:.80}: give rank or max_rank, not both")
    if what == "best":
        return Selector("best", **values)
    if what.startswith("id/"):
        return Selector("id", what.removeprefix("id/"), **values)
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", what):
        raise UsageError(f"selector {text!r:.80}: after 'catalog:' comes best, id/HEX or the name of an entry")
    return Selector("name", what, **values)


def _selector_value(key: str, value: str) -> Any:
    try:
        match key:
            case "shape":
                return parse_shape([int(side) for side in re.split("[,x]", value)])
            case "rank" | "max_rank":
                if not 0 <= int(value) <= MAX_RANK:
                    raise ValueError
                return int(value)
            case "ring":
                return rings.get(value).name
            case "dtype":
                return check_dtype(value)
            case _:
                number = float(value)
                if not (math.isfinite(number) and number > 0):
                    raise ValueError
                return number
    except SchemeError as error:
        raise UsageError(str(error)) from None
    except ValueError:
        form = {"shape": "M,K,N", "rank": "an integer", "max_rank": "an integer"}.get(key, "a positive number")
        raise UsageError(f"{key}={value:.40} in a selector: must be {form}") from None


def _choose(selector: Selector, dirs: Iterable[str | os.PathLike[str]] | None) -> Entry:
    """The entry that a selector names."""
    if selector.rtol is not None or selector.speedup is not None:
        raise UsageError("rtol and speedup choose for a product (stl.amm); to load a scheme give rank or max_rank")
    if selector.kind == "best":
        if selector.shape is None:
            raise UsageError("catalog:best needs a shape to load a scheme: catalog:best?shape=4,4,4&rank=24&dtype=bf16")
        return best(selector.shape, selector.rank, selector.max_rank, selector.dtype or "fp32", selector.ring, dirs)
    filtered = candidates(selector.shape, selector.rank, selector.max_rank, selector.ring, dirs)
    if selector.kind == "id":
        entry = by_id(selector.value, dirs)
        if entry.id not in {e.id for e in filtered}:
            raise CatalogError(f"entry {entry.path.name} is not what the rest of the selector asks for")
        return entry
    named = [e for e in filtered if e.path.stem == selector.value or e.path.stem.startswith(selector.value + "_")]
    winner = named[0] if len(named) == 1 else _first_proved(named, selector.dtype or "fp32")
    if winner is None:
        near = difflib.get_close_matches(selector.value, [e.path.stem for e in entries(dirs)], n=3, cutoff=0.4)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise CatalogError(f"the catalog has no entry named {selector.value}{hint}")
    return winner


def load(spec: str | os.PathLike[str] | Scheme, dirs: Iterable[str | os.PathLike[str]] | None = None) -> Scheme:
    """The scheme, u (r, m, k), v (r, k, n), w (r, m, n), of a selector or a file, proved; a Scheme comes back as it is.

    Selectors: ``catalog:best?shape=M,K,N&rank=R&dtype=D`` (smallest error at the dtype, by default fp32; ``max_rank``
    bounds the rank, ``ring`` restricts it), ``catalog:id/HEX``, ``catalog:NAME`` (a file name without ``.json``, or the
    start of one such as ``2x2x2_r7_ZT``: then the best of them). With ``shape`` the scheme is brought to it.

    Raises UsageError, CatalogError, FormatError or VerificationError, each in one line.
    """
    if isinstance(spec, Scheme):
        return spec
    if isinstance(spec, str) and spec.startswith("catalog:"):
        selector = parse_selector(spec)
        return scheme_of(_choose(selector, dirs), selector.shape)
    try:
        path = Path(spec)
    except TypeError:
        raise UsageError(f"a scheme is given as a selector, a path or a Scheme, not {type(spec).__name__}") from None
    if not path.exists():
        raise FormatError(f"no file {one_line(spec)!r:.200}; to choose from the catalog write 'catalog:...'")
    return _prove(path).scheme


# -- writing -----------------------------------------------------------------------------------------------------------


def add(
    scheme: Scheme,
    provenance: Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
) -> Path:
    """Puts u (r, m, k), v (r, k, n), w (r, m, n) into a catalog folder (by default the user's); the path of its file.

    The one door: the scheme is brought to the smallest ring over which it is proved, floats to their short form, all
    is proved afresh and written in one step, so that a reader or a second writer never sees half a file. ``dtype`` is
    what an approximate scheme was made for and becomes part of its name. A scheme that the folder already holds, by
    id, is not written again. A folder that has ``schemes/``, as the shipped catalog does, gets the file there.

    Raises VerificationError for a scheme that is not what its ring says, CatalogError when the folder cannot be
    written.
    """
    folder = user_dir() if out is None else Path(out)
    if dtype is not None:
        check_dtype(dtype)
    scheme = retag(scheme)
    held = _held(folder, scheme.id)
    if held is None and not scheme.ring.exact and not any(_held(root, scheme.id) for root in _roots(None)):
        scheme = retag(shorten(scheme))
        held = _held(folder, scheme.id)
    if held is not None:
        return held
    record = Record.prove(scheme, provenance)
    label = f"_{dtype}" if dtype is not None and record.certificate.kind == "residual" else ""
    return _write(_place(folder, "schemes"), scheme.name + label, scheme.id, record.dumps())


def add_composition(
    op: str,
    parts: Sequence[str | dict[str, Any]],
    provenance: Mapping[str, Any],
    out: str | os.PathLike[str] | None = None,
    shapes: Sequence[Sequence[int]] | None = None,
    **indices: Sequence[int],
) -> Path:
    """Writes a ``stl-composition/1`` file, for schemes too big to store; the path of the file.

    ``parts`` are full ids, or compositions in their turn (see ``record.compose``).
    ``op`` is kron, sum_m, sum_k, sum_n or project (with ``rows``, ``inner``, ``cols``: the indices to keep). The parts
    must be in the same folder or in the catalog; their file names carry their ids. They are brought to ``shapes``,
    permutations of their own, where given. A folder that has ``compositions/`` gets the file there. Raises what
    ``record.combine`` raises, and CatalogError for a part that is not there.
    """
    folder = user_dir() if out is None else Path(out)
    finder = part_finder(folder)
    schemes = [part_of(part, finder) for part in parts]
    if shapes is not None:
        schemes = [permute_to(one, turned) for one, turned in zip(schemes, shapes, strict=True)]
    kept: dict[str, list[int]] = {}
    if op == "project" and schemes:
        sides = zip(("rows", "inner", "cols"), schemes[0].shape, strict=True)
        kept = {key: [int(i) for i in indices.get(key, range(side))] for key, side in sides}
    scheme = combine(op, schemes, **kept)
    full = Record.prove(scheme, provenance).to_json()
    obj = {"format": COMPOSITION, **{key: full[key] for key in ("shape", "rank", "ring")}}
    obj |= {"op": op, "parts": list(parts), **kept}
    obj |= {} if shapes is None else {"shapes": [list(turned) for turned in shapes]}
    obj |= {key: full[key] for key in ("id", "certificate", "figures", "provenance")}
    text = dump_scheme_object(obj)
    return _held(folder, scheme.id) or _write(_place(folder, "compositions"), scheme.name, scheme.id, text)


def remove(prefix: str) -> Path:
    """Deletes the entry of the user's catalog whose id starts with ``prefix``; the path that is gone.

    Raises CatalogError when there is none, when several match, and for entries that come with the package.
    """
    try:
        entry = by_id(prefix, [user_dir()])
    except CatalogError:
        if any(e.id.startswith(prefix.lower()) for e in entries([shipped_dir()])):
            raise CatalogError(
                f"{prefix} comes with the package: only entries of {user_dir()} can be removed"
            ) from None
        raise
    try:
        entry.path.unlink()
    except OSError as error:
        raise CatalogError(f"cannot remove {entry.path}: {error.strerror}") from None
    return entry.path


def _held(folder: Path, wanted: str) -> Path | None:
    """The file of a catalog folder that holds a scheme by id, and proves to."""
    for path in _files_with([folder], wanted):
        try:
            if _prove(path).scheme.id == wanted:
                return path
        except StlError:
            continue
    return None


def _place(folder: Path, kind: str) -> Path:
    """Where a file of that kind, "schemes" or "compositions", goes in a catalog folder: one laid out so, or flat."""
    return folder / kind if (folder / kind).is_dir() else folder


def _write(folder: Path, name: str, wanted: str, text: str) -> Path:
    """Writes a file under the first free name, the id in it as long as needed; a whole file or none at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{name}_{wanted[:8]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            with open(draft, "x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            for digits in (8, 12, 16, 24, 32, 64):
                path = folder / f"{name}_{wanted[:digits]}.json"
                if _publish(draft, path):
                    _sync(folder)
                    return path
                held = _held(folder, wanted)
                if held is not None:  # another writer was faster with the same scheme
                    return held
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise CatalogError(f"cannot write to {one_line(folder)}: {error.strerror or error}") from None
    raise CatalogError(f"every name for {wanted} in {one_line(folder)} is taken by another file")


def _publish(draft: Path, path: Path) -> bool:
    """Gives a finished file its name in one step unless the name is taken; False when it is."""
    try:
        os.link(draft, path)  # unlike a rename it never replaces what another writer has just put there
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        os.replace(draft, path)
    return True


def _sync(folder: Path) -> None:
    """Makes a new name last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
