"""Contract tests that any strategy must pass, and Strassen's scheme as an example.

Subclass, name the strategy and a small problem, and collect with pytest:

class TestNumeric(StrategyContract):
    strategy = "numeric"
    problem = Problem((2, 2, 2), 5)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from stl_search import score
from stl_search.scheme import Scheme
from stl_search.search import strategy as registry
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock
from stl_search.transform import classical
from stl_search.verify import residual, verify

__all__ = ["STRASSEN", "StrategyContract"]

# Strassen, "Gaussian elimination is not optimal", Numer. Math. 13 (1969): u (7, 2*2), v (7, 2*2), w (7, 2*2)
STRASSEN = Scheme(
    (2, 2, 2),
    "ZT",
    [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]],
    [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]],
    [[1, 0, 0, 1], [0, 0, 1, -1], [0, 1, 0, 1], [1, 0, 1, 0], [-1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]],
)

_REPEATED = 2  # jobs that are done a second time


class _Expired(Clock):
    """A clock that has run out, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.asked = 0

    def expired(self) -> bool:
        self.asked += 1
        return True


class StrategyContract:
    """What the portfolio relies on: honest schemes, randomness from the generator alone, respect for the clock."""

    strategy: str
    problem: Problem
    jobs: int = 4
    _jobs_done: list[list[Scheme]]

    def _play(self, seed: int = 0) -> Iterator[list[Scheme]]:
        """One job after another on one pool; the schemes that each yielded, in order."""
        chosen, pool = registry.get(self.strategy), Pool(self.problem)
        for job in itertools.count():
            yielded = []
            for scheme in chosen.run(self.problem, pool, np.random.default_rng([seed, job]), Clock(None)):
                yielded.append(scheme)
                pool.add(self._entry(scheme))
            yield yielded

    def _entry(self, scheme: Scheme) -> Entry:
        return Entry(cost(self.problem, scheme), scheme.id, scheme, self.strategy)

    def _played(self) -> list[list[Scheme]]:
        """What ``jobs`` jobs yielded, and those that are repeated: played once for all tests of the class."""
        kept = type(self)
        if "_jobs_done" not in vars(kept):
            kept._jobs_done = list(itertools.islice(self._play(), max(self.jobs, _REPEATED)))
        return kept._jobs_done

    def _pool(self) -> Pool:
        """The pool after ``jobs`` jobs."""
        pool = Pool(self.problem)
        for scheme in itertools.chain(*self._played()[: self.jobs]):
            pool.add(self._entry(scheme))
        return pool

    def test_it_is_registered_and_applies(self) -> None:
        chosen = registry.get(self.strategy)
        assert chosen.name == self.strategy
        assert chosen.weight(self.problem, Pool(self.problem)) > 0

    def test_it_finds_what_is_asked(self) -> None:
        best = self._pool().best(self.problem.shape, self.problem.rank)
        assert best is not None
        assert best.scheme.shape == self.problem.shape
        assert best.scheme.rank <= self.problem.rank
        if self.problem.exact:
            verify(best.scheme)
        else:
            floor = score.floor(self.problem.shape, best.scheme.rank)
            assert floor <= float(residual(best.scheme)) < score.line(self.problem.shape, best.scheme.rank) - 1e-6

    def test_every_scheme_is_what_it_claims(self) -> None:
        for entry in self._pool():
            if self.problem.exact:
                verify(entry.scheme)  # an exact strategy yields proved schemes only
            else:
                assert entry.scheme.ring.name != "Z2"
                assert abs(float(residual(entry.scheme)) - score.expected_error(entry.scheme)) < 1e-12

    def test_exact_schemes_in_the_pool_do_no_harm(self) -> None:
        pool = Pool(self.problem)
        for ring in ("ZT", "Q"):
            scheme = Scheme(self.problem.shape, ring, *classical(self.problem.shape).factors)
            pool.add(Entry(cost(self.problem, scheme), scheme.id, scheme))
        for job in range(2):
            for scheme in registry.get(self.strategy).run(self.problem, pool, np.random.default_rng(job), Clock(None)):
                assert np.isfinite(cost(self.problem, scheme))

    def test_the_generator_decides_everything(self) -> None:
        first = [[scheme.id for scheme in job] for job in self._played()[:_REPEATED]]
        assert first == [[scheme.id for scheme in job] for job in itertools.islice(self._play(), _REPEATED)]
        if not self.problem.exact:  # an exact strategy may have one answer only
            other = ([scheme.id for scheme in job] for job in self._play(seed=1))
            assert any(ids != next(other) for ids in first)

    def test_an_expired_clock_ends_the_job(self) -> None:
        chosen = registry.get(self.strategy)
        clock = _Expired()
        list(chosen.run(self.problem, Pool(self.problem), np.random.default_rng(0), clock))
        assert clock.asked > 0, "the job did not look at its clock"
