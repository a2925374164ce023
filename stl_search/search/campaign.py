"""A long search over many shapes, in which each find serves its neighbours; journalled, so that it can be cut anywhere.

It is a series of slices: each picks a shape and a rank to aim at and calls ``discover`` for some seconds. What a slice
finds is in the catalog before the next one begins, with the ``discover`` command that finds it again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from stl_search import __version__, known, rings, transform
from stl_search.catalog import store
from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme, Shape, parse_shape
from stl_search.search import neighbours, standing
from stl_search.search.bounds import lower_bound
from stl_search.search.compose import splits
from stl_search.search.journal import Journal
from stl_search.search.portfolio import _cores, discover
from stl_search.search.problem import LEAST, check_series
from stl_search.search.ternary import MAX_SIDE

__all__ = ["Campaign", "Row", "campaign"]

_FIRST = 10.0  # seconds of the first slice of a shape; each one in vain doubles the next
_LONGEST = 640.0
_STARTS = 4  # schemes of a shape that a slice begins from, beside
_MADE = 4  # ones made from other shapes
_EAGER = 3.0  # how much more time goes to a shape behind the best known rank
_LATER = 60.0  # seconds for which the others wait
_ERRORS = 3  # failing slices in a row end a campaign


@dataclass
class Row:
    """Where the campaign stands with one shape <m,k,n>: what it prints of it, and what the next choice rests on."""

    shape: Shape
    bound: int  # proved: no scheme has a smaller rank
    known: int | None
    began: int | None = None  # the best rank held before the campaign
    best: int | None = None
    seconds: float = 0.0  # spent on it
    slices: int = 0
    last: float | None = None  # when it last improved, in seconds of the campaign
    idle: float = field(default=0.0, repr=False)  # seconds spent in vain since it or a neighbour improved
    failed: int = field(default=0, repr=False)  # slices in vain; 1 again since then

    @property
    def gap(self) -> int | None:
        """Our rank minus the best known."""
        return None if self.best is None or self.known is None else self.best - self.known

    @property
    def settled(self) -> bool:
        """Whether a proof says that the rank cannot fall."""
        return self.best is not None and self.best <= self.bound

    @property
    def target(self) -> int:
        """The rank to aim at: the best known at first, nearer to what is held after each slice in vain."""
        best = math.prod(self.shape) if self.best is None else self.best
        gap = best - self.known if self.known is not None else 0
        return max(self.bound, best - max(1, gap >> self.failed))

    def to_json(self) -> dict[str, Any]:
        """The row as ``stl-search campaign --json`` prints it."""
        return {
            "shape": list(self.shape),
            "rank": self.best,
            "began": self.began,
            "known": self.known,
            "gap": self.gap,
            "lower_bound": self.bound,
            "seconds": round(self.seconds, 1),
            "slices": self.slices,
            "last_improvement": None if self.last is None else round(self.last, 1),
        }


@dataclass
class Campaign:
    """What a campaign has done so far, over all runs that its journal tells of."""

    ring: str
    folder: Path
    rows: dict[Shape, Row]
    seconds: float = 0.0  # of all slices
    run: float = 0.0  # of those since a run last came to its end
    slices: int = 0
    finds: list[dict[str, Any]] = field(default_factory=list)
    now: str = ""  # what is being done

    def to_json(self) -> dict[str, Any]:
        """The JSON object that ``stl-search campaign --json`` prints."""
        return {
            "ring": self.ring,
            "out": str(self.folder),
            "seconds": round(self.seconds, 1),
            "slices": self.slices,
            "shapes": [row.to_json() for row in self.rows.values()],
            "improvements": self.finds,
        }


def campaign(
    shapes: Iterable[Sequence[int]],
    *,
    ring: str = "ZT",
    time: float,
    seed: int = 0,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    progress: Callable[[Campaign], None] | None = None,
) -> Campaign:
    """Search the shapes (m, k, n) over an exact ring for ``time`` seconds, for smaller ranks than the catalogs hold.

    The order of sides does not matter. Every find goes to ``out`` (default: the user's catalog) at once, and is built
    upon for the shapes around it, as is what the shipped and the user's catalog hold. The same call goes on where one
    that was cut stopped; after one that came to its end it goes on for another ``time``; ``fresh`` forgets both.
    ``progress`` is called at every change and a few times a second.

    Raises UsageError for what makes no sense; KeyboardInterrupt loses nothing.
    """
    name = rings.get(ring).name
    if name not in known.RINGS:
        raise UsageError(f"a campaign looks for exact schemes: ring {name} is none of {', '.join(known.RINGS)}")
    check_series(time, seed, workers)
    sides = sorted({parse_shape(sorted(shape)) for shape in shapes})
    if not sides:
        raise UsageError("a campaign needs at least one shape")
    workers = workers or _cores()
    folder = Path(out) if out is not None else store.user_dir()
    header = {"campaign": [[list(shape) for shape in sides], name, seed, workers, __version__]}
    digest = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]
    with Journal(folder / ".journal" / f"campaign-{digest}", header, fresh) as journal:
        return _Campaign(sides, name, time, seed, workers, folder, journal, fresh, progress).go()


class _Campaign:
    """One call of ``campaign``: chooses slices, runs them, and keeps the journal that the choices are rebuilt from."""

    def __init__(
        self,
        shapes: list[Shape],
        ring: str,
        seconds: float,
        seed: int,
        workers: int,
        folder: Path,
        journal: Journal,
        fresh: bool,
        progress: Callable[[Campaign], None] | None,
    ) -> None:
        self.seconds, self.seed, self.workers, self.folder, self.journal = seconds, seed, workers, folder, journal
        self.fresh, self.progress = fresh, progress
        self.ring = ring
        self.held: dict[Shape, list[Scheme]] = {}
        self.residues: dict[Shape, list[Scheme]] = {}  # over Z2 alone: to walk from and to lift, in other rings
        rows = {}
        for shape in shapes:
            found = known.rank(shape, ring)
            rows[shape] = Row(shape, lower_bound(shape, ring).rank, None if found is None else found.rank)
        self.state = Campaign(ring, folder, rows)
        for line in journal.lines:
            self._replay(line)
        self._look()
        for row in rows.values():
            if row.began is None and row.last is None:
                row.began = row.best
        if not journal.lines:
            journal.append({"began": [[list(row.shape), row.began] for row in rows.values()]})

    def go(self) -> Campaign:
        """Run slices until the time is used, or nothing is left that is not proved to be best."""
        errors = 0
        while True:
            row = self._next()
            left = self.seconds - self.state.run
            if row is None or left < LEAST:
                break
            try:
                self._slice(row, left)
                errors = 0
            except UsageError:
                raise
            except StlError as error:  # a night's work does not end with one slice
                errors += 1
                self._record(
                    {"slice": self.state.slices, "shape": list(row.shape), "seconds": 1.0, "error": str(error)}
                )
                if errors == _ERRORS:
                    raise
        self.journal.append({"end": round(self.state.seconds, 3)})
        self.state.now = ""
        self._report()
        return self.state

    def _look(self) -> None:
        """Take in what the catalogs hold: the smallest ranks that prove, a few schemes of each shape."""
        folders = [store.shipped_dir(), store.user_dir(), self.folder]
        self.held = self._proved(self.ring, folders)
        for shape, row in self.state.rows.items():  # every find is there, unless somebody has removed it
            row.best = self.held[shape][0].rank if shape in self.held else None
        if self.ring != "Z2":
            found = self._proved("Z2", folders)
            self.residues = {shape: [s for s in some if s.ring.name == "Z2"] for shape, some in found.items()}

    @staticmethod
    def _proved(ring: str, folders: list[Path]) -> dict[Shape, list[Scheme]]:
        """The few entries of smallest rank of each shape that hold over the ring."""
        found = {}
        for shape, entries in standing.held_over(ring, folders).items():
            proved = (store.scheme_of(e) for e in entries if standing.holds(e, ring))
            if some := list(itertools.islice(proved, _STARTS)):
                found[shape] = some
        return found

    def _next(self) -> Row | None:
        """The shape whose turn it is: the one with least seconds in vain, those behind the best known first."""
        open_ = [row for row in self.state.rows.values() if not row.settled]
        return min(open_, key=self._turn, default=None)

    @staticmethod
    def _turn(row: Row) -> tuple[float, int, Shape]:
        behind = row.best is None or row.gap is None or row.gap > 0
        return (row.idle / _EAGER if behind else row.idle + _LATER, math.prod(row.shape), row.shape)

    def _slice(self, row: Row, left: float) -> None:
        """Look for one shape for a while: from nothing at first, then from all that is held around it."""
        began = monotonic()
        target, seconds = row.target, min(_FIRST * 2.0**row.failed, _LONGEST, left)
        own, made = self._near(row.shape)
        given = own + self.residues.get(row.shape, []) + [s for one in made[:_MADE] for s in one.sources]
        if not row.failed:
            given = []
        elif made and (row.best is None or made[0].scheme.rank < row.best):
            target, given = made[0].scheme.rank, list(made[0].sources)  # a find by itself, without any search
        elif row.failed % 4 == 0:
            given = []
        # where schemes over Z2 of the rank are held that did not lift, every second slice walks over {-1, 0, 1} itself
        unlifted = any(s.rank <= target for s in self.residues.get(row.shape, []))
        stuck = bool(own) and unlifted and max(row.shape) <= MAX_SIDE
        strategies = ("ternary",) if stuck and given and row.failed % 2 else ()
        number = self.state.slices
        self.state.now = f"<{','.join(map(str, row.shape))}> rank {target}"
        self._report()
        result = discover(
            row.shape,
            target,
            ring=self.ring,
            time=seconds,
            seed=self.seed * 1_000_003 + number,
            workers=self.workers,
            strategies=strategies,
            given=given,
            out=self.folder,
            fresh=self.fresh,
            progress=lambda state: self._report(),
        )
        seconds = max(result.seconds, monotonic() - began)  # result.seconds counts what an interrupted call had used
        line = {"slice": number, "shape": list(row.shape), "target": target, "seconds": round(seconds, 3)}
        if result.scheme is not None:
            line |= {"rank": result.scheme.rank, "id": result.scheme.id, "path": str(result.path)}
            low, middle, high = sorted(result.scheme.shape)
            self.held[low, middle, high] = [result.scheme, *self.held.get((low, middle, high), [])][:_STARTS]
        self._record(line)
        # what the slice itself kept to go on from has served; a night has thousands of slices
        (self.folder / ".journal" / result.problem.key(self.workers, __version__)).unlink(missing_ok=True)

    def _near(self, shape: Shape) -> tuple[list[Scheme], list[neighbours.Made]]:
        """(schemes of the shape itself, what the best ones of other shapes give for it), as the catalogs hold them."""
        others = [some[0] for other, some in sorted(self.held.items()) if other != shape and _serves(other, shape)]
        if self.ring != "Z2":
            return self.held.get(shape, []), neighbours.derived(shape, others)
        residues = [transform.to_ring(one, "Z2") for one in others]
        original = {two.id: one for one, two in zip(others, residues, strict=True)}
        made = neighbours.derived(shape, residues)
        made = [neighbours.Made(m.scheme, tuple(original[s.id] for s in m.sources)) for m in made]
        return self.held.get(shape, []), made

    def _record(self, line: dict[str, Any]) -> None:
        self.journal.append(line)
        self._replay(line)
        self._report()

    def _replay(self, line: dict[str, Any]) -> None:
        """Bring the state up to date with one line of the journal."""
        state = self.state
        if "end" in line:
            state.run = 0.0
        for shape, rank in line.get("began", []):
            m, k, n = shape
            state.rows[m, k, n].began = state.rows[m, k, n].best = rank
        if "slice" not in line:
            return
        m, k, n = line["shape"]
        row = state.rows[m, k, n]
        state.slices += 1
        state.seconds += line["seconds"]
        state.run += line["seconds"]
        row.slices += 1
        row.seconds += line["seconds"]
        if line.get("rank") is None or (row.best is not None and line["rank"] >= row.best):
            row.failed += 1
            row.idle += line["seconds"]
            return
        state.finds.append(
            {
                "shape": list(row.shape),
                "rank": line["rank"],
                "from": row.best,
                "at": round(state.seconds, 1),
                "id": line["id"],
                "path": line["path"],
            }
        )
        row.best, row.last = line["rank"], state.seconds
        for other in state.rows.values():
            if _serves(row.shape, other.shape):
                other.idle, other.failed = 0.0, min(other.failed, 1)

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.state)


def _serves(held: Shape, shape: Shape) -> bool:
    """Whether a scheme of one shape is of use for another: the same, a neighbour, or a part of a sum or product."""
    if neighbours.distance(held, shape) <= 1:
        return True
    return any(held in (tuple(sorted(first)), tuple(sorted(second))) for _, first, second in splits(shape))
