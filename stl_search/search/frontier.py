"""The frontier of a shape: the best approximate scheme of every rank at one precision, each rank serving the others.

Like a campaign it is a series of slices: each picks a rank and calls ``discover`` for some jobs, from what the catalogs
hold at that rank and beside it, from the parts of a good composition, or from nothing; after one in vain the next sends
descents from exact schemes down to it, which owe nothing to what is held. What improves on the catalogs is kept at
once, with the ``discover`` command that makes it from schemes of the catalogs; the rest is dropped. What is held for
other precisions is followed to this one before anything else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from stl_search import __version__, score
from stl_search.catalog import store
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme, Shape, parse_shape
from stl_search.search.border import invariant_form
from stl_search.search.bounds import reached_rank
from stl_search.search.compositions import Mark, check_work, front, parts_for
from stl_search.search.descent import Descent, serves
from stl_search.search.hopping import Hopping
from stl_search.search.journal import Journal
from stl_search.search.loosen import Loosen
from stl_search.search.numeric import variables
from stl_search.search.portfolio import _cores, discover, placed
from stl_search.search.problem import LEAST, Pool, Problem, check_series
from stl_search.search.relax import Relax
from stl_search.search.rotation import LARGEST, Rotated

__all__ = ["Frontier", "Row", "frontier"]

STRATEGIES = (
    "border",
    "compose",
    "deflate",
    "hopping",
    "isotropy",
    "mirror",
    "numeric",
    "quiet",
    "rotation",
    "symmetric",
)
_QUICK = ("compose", "deflate")  # of the first slice of a rank, which is short, so that all ranks are there soon
GAIN = 1e-3  # relative gain in error^2 below which a find is no improvement
_SLICE = 60.0  # seconds that a slice should take; its jobs are counted from how long the last ones took
_FEWEST = 12  # jobs of a slice, at least
_KINDS = ("descents", "climbs", "hops")  # of slices that begin apart from what is held for this rank
_WAYS = 4  # jobs of a slice of these, at least
_FIRST = 2  # of the first one of a rank
_JOBS = 200  # of a slice, at most
_RELAXED = 1300  # unknowns up to which following a scheme to another precision takes seconds
_NEAR = 1.05  # a composition is searched from when its error^2 is within this factor of what is held


@dataclass
class Row:
    """Where one rank stands: error^2 at the dtype, the entry that has it, and what has been spent on it."""

    rank: int
    began: float | None = None  # error^2 held before
    best: float | None = None
    entry: store.Entry | None = field(default=None, repr=False)
    strategy: str = ""
    seconds: float = 0.0
    slices: int = 0
    relaxed: bool = field(default=False, repr=False)  # whether schemes for other precisions were followed to this one
    last: float | None = None  # when it last improved, in seconds of the search
    idle: float = field(default=0.0, repr=False)  # seconds in vain since it or a neighbour improved
    failed: int = field(default=0, repr=False)  # slices in vain since then


@dataclass
class Frontier:
    """What a frontier search has done so far, over all runs that its journal tells of."""

    shape: Shape
    dtype: str
    folder: Path
    rows: dict[int, Row]
    seconds: float = 0.0
    run: float = 0.0  # since a run last came to its end
    slices: int = 0
    finds: list[dict[str, Any]] = field(default_factory=list)
    now: str = ""  # what is being done

    def to_json(self) -> dict[str, Any]:
        """The object of ``stl-search catalog frontier --json``, with what the search did."""
        points = [
            store.Point(row.rank, row.entry.E or 0.0, row.entry.kappa or 0.0, math.sqrt(row.best), row.entry)
            for row in self.rows.values()
            if row.entry is not None and row.best is not None
        ]
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "points": [point.to_json() for point in points],
            "out": str(self.folder),
            "seconds": round(self.seconds, 1),
            "slices": self.slices,
            "improvements": self.finds,
        }


def frontier(
    shape: Sequence[int],
    *,
    dtype: str = "bf16",
    time: float,
    ranks: Sequence[int] | None = None,
    seed: int = 0,
    workers: int | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    progress: Callable[[Frontier], None] | None = None,
) -> Frontier:
    """Search all ranks of <m,k,n> (or those given) at a precision for ``time`` seconds, for less error than is held.

    Ranks go from 1 to the least of an exact scheme by default. Every improvement goes to ``out`` (default: the user's
    catalog) at once, and what the shipped and the user's catalog and ``out`` hold is built upon. The same call goes on
    where one that was cut stopped; after one that came to its end it goes on for another ``time``; ``fresh`` forgets
    both. Slices are bounded by jobs, not by time, so that each can be repeated, and the last one may end late. On
    ``device`` "cuda", which "auto" means where there is a GPU, strategy ``batch`` works there in every slice, but for
    descents and for what schemes for other precisions become.

    Raises UsageError for what makes no sense or is too large; KeyboardInterrupt loses nothing.
    """
    sides = parse_shape(shape)
    check_work(sides)
    score.check_dtype(dtype)
    check_series(time, seed, workers)
    wanted = sorted(set(ranks)) if ranks is not None else list(range(1, reached_rank(sides) + 1))
    if not wanted or wanted[0] < 1 or wanted[-1] > math.prod(sides):
        raise UsageError(f"ranks go from 1 to {math.prod(sides)} for <{','.join(map(str, sides))}>")
    workers = workers or _cores()
    device = placed(Problem(sides, wanted[-1], dtype=dtype), device).device
    folder = Path(out) if out is not None else store.user_dir()
    about = [list(sides), dtype, wanted, seed, workers, __version__]
    header = {"frontier": about + ([device] if device != "cpu" else [])}
    digest = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]
    with Journal(folder / ".journal" / f"frontier-{digest}", header, fresh) as journal:
        state = Frontier(sides, dtype, folder, {rank: Row(rank) for rank in wanted})
        return _Search(state, time, seed, workers, device, journal, fresh, progress).go()


class _Search:
    """One call of ``frontier``: chooses slices, runs them, and keeps the journal that the choices are rebuilt from."""

    def __init__(
        self,
        state: Frontier,
        seconds: float,
        seed: int,
        workers: int,
        device: str,
        journal: Journal,
        fresh: bool,
        progress: Callable[[Frontier], None] | None,
    ) -> None:
        self.state, self.seconds, self.seed, self.workers = state, seconds, seed, workers
        self.device = device
        self.journal, self.fresh, self.progress = journal, fresh, progress
        self.lam = 2 * score.relative_rounding(state.dtype) ** 2
        self.folders = [store.shipped_dir(), store.user_dir(), state.folder]
        self.held: dict[int, store.Entry] = {}  # the best of every rank, also of those that are not searched
        self.pace: dict[tuple[str, int], float] = {}  # seconds a job took, by the kind of the slice and its rank
        for line in journal.lines:
            self._replay(line)
        self._look()
        for row in state.rows.values():
            if row.began is None and row.last is None:
                row.began = row.best
        if not journal.lines:
            journal.append({"began": [[row.rank, row.began] for row in state.rows.values()]})
        self.composed = self._compositions()

    def go(self) -> Frontier:
        """Run slices until the time is used."""
        errors = 0
        while self.seconds - self.state.run >= LEAST:
            row = self._next()
            try:
                self._slice(row)
                errors = 0
            except UsageError:
                raise
            except StlError as error:
                errors += 1
                self._record({"slice": self.state.slices, "rank": row.rank, "seconds": 1.0, "error": str(error)})
                if errors == 3:
                    raise
        self.journal.append({"end": round(self.state.seconds, 3)})
        self.state.now = ""
        self._report()
        return self.state

    # -- what is held --------------------------------------------------------------------------------------------------

    def _cost(self, entry: store.Entry) -> float:
        return entry.error(self.state.dtype) ** 2

    def _look(self) -> None:
        """Take in what the catalogs hold of the shape; a scheme of a smaller rank serves the ranks above it too."""
        for point in store.frontier(self.state.shape, self.state.dtype, self.folders):
            self.held[point.rank] = point.entry
        for rank, row in self.state.rows.items():
            row.entry = self.held.get(rank)
            row.best = None if row.entry is None else self._cost(row.entry)

    def _compositions(self) -> list[Mark]:
        """The best compositions of what the catalogs hold of smaller shapes, for every rank."""
        marks = parts_for(self.state.shape, self.state.dtype, self.folders)
        return front(self.state.shape, marks, self.lam, own=False)

    # -- slices --------------------------------------------------------------------------------------------------------

    def _next(self) -> Row:
        """The rank whose turn it is: each one once, from high to low, then the least time in vain for its promise."""
        return min(self.state.rows.values(), key=lambda row: (row.slices > 0, row.idle / self._promise(row), -row.rank))

    def _promise(self, row: Row) -> float:
        """1 for a rank that lies where its neighbours let expect, up to 4 where above, 1/4 where it ties the line."""
        line = score.line(self.state.shape, row.rank)
        if row.best is None:
            return 4.0
        if row.failed > 1 and row.best > line * (1 - 1e-3):
            return 0.25
        below, above = self.held.get(row.rank - 1), self.held.get(row.rank + 1)
        expected = [(self._cost(below) + self._cost(above)) / 2] if below and above else []
        expected += [self._cost(above) + 1.2 / math.prod(self.state.shape)] if above else []
        expected += [self._cost(below) - 1 / math.prod(self.state.shape)] if below else []
        excess = max(0.0, row.best / max(min(expected), 1e-9) - 1) if expected else 0.0
        return 1 + min(3.0, 10 * excess)

    def _slice(self, row: Row) -> None:
        """Look for one rank for a while; first of all at what schemes for other precisions become at this one."""
        strategy, elsewhere = ("", []) if row.slices or row.relaxed else self._elsewhere(row)
        if elsewhere:
            self._search(row, 1, (strategy,), elsewhere, "cpu", {"relaxed": True})
            return
        kind, strategies, given = self._turn(row)
        fewest = _WAYS if kind else _FEWEST
        near = min((r for k, r in self.pace if k == kind), key=lambda r: abs(r - row.rank), default=None)
        jobs = fewest if near is None else max(fewest, min(_JOBS, int(_SLICE / self.pace[kind, near])))
        jobs = jobs if row.slices else _FIRST
        notes = {"jobs": jobs} | ({kind: True} if kind else {})
        self._search(row, jobs, strategies, given, "cpu" if kind else self.device, notes)

    def _turn(self, row: Row) -> tuple[str, tuple[str, ...], list[Scheme]]:
        """(kind, strategies, schemes to begin from) of a slice.

        Where a rank does not improve by the usual ones, descents from an exact scheme take their turn, and climbs from
        schemes of fewer products: these have other terms to grow than what a shake leaves of the best scheme. So do
        walks from one scheme alone that is best at another precision, there or at a rank beside it.
        """
        if row.slices and row.failed % 2 == 1 and serves(self.state.shape, row.rank, bool(self._exact())):
            return "descents", (Descent.name,), self._exact()
        if row.failed and row.failed % 2 == 0:
            below = self._below(row)
            if below and row.failed % 4 == 2:
                return "climbs", (Rotated.name,), below
            due = row.failed % 8 == 4 if below else row.failed % 4 == 2
            if due and (others := self._others(row)):
                return "hops", (Hopping.name,), [others[row.slices // (8 if below else 4) % len(others)]]
        strategies = STRATEGIES if row.slices else _QUICK
        return "", (*strategies, *(["batch"] if self.device != "cpu" else [])), self._parents(row)

    def _search(
        self, row: Row, jobs: int, strategies: tuple[str, ...], given: list[Scheme], device: str, notes: dict[str, Any]
    ) -> None:
        """One call of ``discover``, which writes a find that improves on what is held; ``notes`` are journalled."""
        state, began = self.state, monotonic()
        number = state.slices
        state.now = f"rank {row.rank}, {jobs} jobs from {', '.join(s.name for s in given) or 'nothing'}"
        self._report()
        result = discover(
            state.shape,
            row.rank,
            dtype=state.dtype,
            steps=jobs,
            seed=self.seed * 1_000_003 + number,
            workers=self.workers,
            strategies=strategies,
            given=given,
            device=device,
            out=state.folder,
            fresh=self.fresh,
            wanted=self._improves,
            progress=lambda _: self._report(),
        )
        seconds = monotonic() - began
        line: dict[str, Any] = {"slice": number, "rank": row.rank, "seconds": round(seconds, 3), **notes}
        if result.scheme is not None:
            cost = score.error(result.scheme, state.dtype) ** 2
            line |= {"found": result.scheme.rank, "error2": cost, "strategy": result.strategy}
            if result.path is not None:
                line |= {"id": result.scheme.id, "path": str(result.path)}
        self._record(line)
        (state.folder / ".journal" / result.problem.key(self.workers, __version__)).unlink(missing_ok=True)

    def _improves(self, scheme: Scheme) -> bool:
        """Whether a find is better than what is held at its rank, by enough to be kept."""
        held = self.held.get(scheme.rank)
        return held is None or score.error(scheme, self.state.dtype) ** 2 < self._cost(held) * (1 - GAIN)

    def _elsewhere(self, row: Row) -> tuple[str, list[Scheme]]:
        """The approximate schemes of that rank that are best at some precision, and the strategy that follows them to
        this one; of large shapes only those that rotation leaves invariant."""
        unknowns = variables(self.state.shape, row.rank)
        square = len(set(self.state.shape)) == 1
        if unknowns > (3 * LARGEST if square else _RELAXED):
            return "", []
        schemes = [store.scheme_of(entry, self.state.shape) for entry in self._anywhere((row.rank,)) if entry.E]
        if unknowns <= _RELAXED:
            return Relax.name, schemes
        return Loosen.name, [scheme for scheme in schemes if invariant_form(scheme) is not None]

    def _exact(self) -> list[Scheme]:
        """The best exact scheme over ZT that is held, from which descents begin; none where none is."""
        held = [e for _, e in sorted(self.held.items(), reverse=True) if e.E == 0 and e.ring == "ZT"]
        return [store.scheme_of(e, self.state.shape) for e in held[:1]]

    def _below(self, row: Row) -> list[Scheme]:
        """The best schemes of one and of two products fewer that rotation leaves invariant, where it serves."""
        problem = Problem(self.state.shape, row.rank, dtype=self.state.dtype)
        if not Rotated().weight(problem, Pool(problem)):
            return []
        found = []
        for rank in (row.rank - 1, row.rank - 2):
            held = store.candidates(self.state.shape, rank, ring="R", dirs=self.folders)
            schemes = (store.scheme_of(entry, self.state.shape) for entry in sorted(held, key=self._cost))
            found += [s for s in schemes if invariant_form(s) is not None][:1]
        return found

    def _others(self, row: Row) -> list[Scheme]:
        """The schemes that are best at another precision, and not at this one, at that rank and those beside it."""
        mine = {entry.id for entry in self.held.values()}
        ranks = (row.rank, row.rank - 1, row.rank + 1)
        found = [entry for entry in self._anywhere(ranks) if entry.E and entry.id not in mine]
        found.sort(key=lambda entry: (ranks.index(entry.rank), entry.id))
        return [store.scheme_of(entry, self.state.shape) for entry in found]

    def _anywhere(self, ranks: Sequence[int]) -> list[store.Entry]:
        """The entries of these ranks that are best at some precision."""
        best = {dtype: store.frontier(self.state.shape, dtype, self.folders) for dtype in score.DTYPES}
        return list({p.entry.id: p.entry for points in best.values() for p in points if p.rank in ranks}.values())

    def _parents(self, row: Row) -> list[Scheme]:
        """What a slice begins from: the parts of a better composition; or neighbours and near parts; or nothing."""
        composed = self.composed[min(row.rank, len(self.composed) - 1)]
        leaves = list(composed.leaves())
        if leaves and (row.best is None or composed.cost(self.lam) < row.best * (1 - GAIN)):
            return leaves
        if row.failed % 4 == 1 or not self.held:
            return []
        ranks = [row.rank, row.rank + 1, row.rank - 1]
        if row.rank not in self.held:  # the nearest ones on both sides
            ranks = [
                min((r for r in self.held if r > row.rank), default=0),
                max((r for r in self.held if r < row.rank), default=0),
            ]
        found = [store.scheme_of(self.held[r], self.state.shape) for r in ranks if r in self.held]
        if leaves and row.best is not None and row.failed % 4 == 3 and composed.cost(self.lam) < row.best * _NEAR:
            found += leaves
        return found

    # -- journal -------------------------------------------------------------------------------------------------------

    def _record(self, line: dict[str, Any]) -> None:
        self.journal.append(line)
        self._replay(line)
        self._report()

    def _replay(self, line: dict[str, Any]) -> None:
        """Bring the state up to date with one line of the journal."""
        state = self.state
        if "end" in line:
            state.run = 0.0
        for rank, best in line.get("began", []):
            state.rows[rank].began = state.rows[rank].best = best
        if "slice" not in line:
            return
        row = state.rows[line["rank"]]
        relaxed = line.get("relaxed", False)
        row.relaxed = row.relaxed or relaxed
        state.slices += 1
        state.seconds += line["seconds"]
        state.run += line["seconds"]
        row.slices += not relaxed
        row.seconds += line["seconds"]
        if line.get("jobs"):
            kind = next((kind for kind in _KINDS if line.get(kind)), "")
            self.pace[kind, row.rank] = max(0.02, line["seconds"] / line["jobs"])
        if "id" not in line:
            row.failed += not relaxed
            row.idle += 0.0 if relaxed else line["seconds"]
            return
        rank = line["found"]
        for point in store.frontier(state.shape, state.dtype, self.folders):
            if point.rank == rank:
                self.held[rank] = point.entry
        better = state.rows.get(rank, row)
        find = {"rank": rank, "error2": line["error2"], "from": better.best, "strategy": line["strategy"]}
        state.finds.append(find | {"at": round(state.seconds, 1), "id": line["id"], "path": line["path"]})
        better.entry, better.best = self.held.get(rank), line["error2"]
        better.strategy, better.last = line["strategy"], state.seconds
        for other in state.rows.values():
            if abs(other.rank - rank) <= 1:
                other.idle, other.failed = other.idle / 4, 0

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.state)
