"""What a strategy is, and the registry of those there are: one file each, one ``register`` line each."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Protocol

import numpy as np

from stl_search.errors import StlError, UsageError
from stl_search.scheme import Scheme
from stl_search.search.problem import Pool, Problem

__all__ = ["Clock", "Strategy", "batched", "get", "names", "recorded", "register", "suitable", "usual"]

# each registers its strategy when imported
_MODULES = (
    "numeric",
    "compose",
    "deflate",
    "descent",
    "orbit",
    "group_algebra",
    "flipgraph",
    "ternary",
    "endurance",
    "border",
    "mirror",
    "symmetric",
    "isotropy",
    "twisted",
    "relax",
    "rotation",
    "loosen",
    "quiet",
    "hopping",
    "batch",
    "cheap",
)


class Clock:
    """Says when a job must end; a job that runs under ``--steps`` has no deadline."""

    def __init__(self, seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.cut = False  # whether a job was told to stop: what it found then depends on the speed of the machine
        self.flips = 0  # how much was tried, for strategies that count it

    def expired(self) -> bool:
        """Whether the job should return now."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        self.cut = self.cut or late
        return late

    def count(self, flips: int) -> None:
        """Say that so many more flips were made: a search that finds nothing tells how many it tried."""
        self.flips += flips


class Strategy(Protocol):
    """One way to search; a job is a pure function of (problem, pool, rng), since state lives in the pool alone.

    ``weight`` is how often the portfolio should choose it here (0: never); ``run`` does a job of about a second and
    yields schemes as it finds them, of the problem's shape or of others that may help (factors, neighbouring ranks).
    It takes all randomness from ``rng`` and returns early when the clock has expired. For exact rings it yields
    schemes that it has proved.

    One with a true attribute ``symmetric`` serves searches with a symmetry, one with ``on_request`` only those that
    name it. One with ``batched`` works on the device of the search: it is chosen only by name, its jobs are apart from
    the others', and one process does them all.
    """

    name: str

    def weight(self, problem: Problem, pool: Pool) -> float: ...

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]: ...


_REGISTRY: dict[str, Strategy] = {}


def register(strategy: Strategy) -> None:
    """Make a strategy known under its name."""
    _REGISTRY[strategy.name] = strategy


def _load() -> None:
    for name in _MODULES:
        import_module(f"stl_search.search.{name}")


def names() -> tuple[str, ...]:
    """The names of all strategies."""
    _load()
    return tuple(sorted(_REGISTRY))


def usual() -> tuple[str, ...]:
    """The names of the strategies of a search that names none: all but those that must be named."""
    return tuple(name for name in names() if not _on_request(_REGISTRY[name]))


def recorded(problem: Problem, pool: Pool) -> tuple[str, ...]:
    """The names by which a search of this problem is made again, also when there are more strategies than now.

    Those it names; where it names none the usual ones, less those that serve this problem only where they are named:
    naming all would call for these too, and give other jobs to other strategies.
    """
    return problem.strategies or tuple(name for name in usual() if not _for_the_asking(name, problem, pool))


def _for_the_asking(name: str, problem: Problem, pool: Pool) -> bool:
    """Whether a strategy serves a problem that names it and not one that names none."""
    named = dataclasses.replace(problem, strategies=(name,))
    with contextlib.suppress(StlError):  # a symmetry that it does not know
        return get(name).weight(problem, pool) == 0 < get(name).weight(named, pool)
    return False


def batched(strategy: Strategy) -> bool:
    """Whether its jobs are the device's."""
    return bool(getattr(strategy, "batched", False))


def _on_request(strategy: Strategy) -> bool:
    return batched(strategy) or bool(getattr(strategy, "on_request", False))


def get(name: str) -> Strategy:
    """The strategy of that name; raises UsageError that lists the known ones."""
    _load()
    if name not in _REGISTRY:
        raise UsageError(f"unknown strategy {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]


def suitable(problem: Problem, pool: Pool, device: bool | None = None) -> list[tuple[Strategy, float]]:
    """The strategies that apply, with weights > 0, in name order; raises UsageError when there is none.

    ``device`` asks for those whose jobs are the device's, or for the others.
    """
    chosen = [get(name) for name in (sorted(problem.strategies) or usual())]
    if device is not None:
        chosen = [s for s in chosen if batched(s) == device]
    if problem.symmetry:
        chosen = [s for s in chosen if getattr(s, "symmetric", False)]
    found: list[tuple[Strategy, float]] = []
    refused: StlError | None = None
    for one in chosen:
        try:
            weight = one.weight(problem, pool)
        except StlError as error:  # a symmetry that this strategy does not know, and another one may
            refused = refused or error
            continue
        if weight > 0:
            found.append((one, weight))
    if not found and refused is not None:
        raise refused
    if not found:
        what = f"<{','.join(map(str, problem.shape))}> over {problem.ring}"
        what += f" with symmetry {problem.symmetry}" if problem.symmetry else ""
        raise UsageError(f"no strategy of {', '.join(problem.strategies or usual())} applies to {what}")
    return found
