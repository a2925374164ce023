"""Long symmetric walks on square shapes: where they begin, how long they stay, what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stl_search.scheme import Scheme
from stl_search.search import endurance, flipgraph, flips
from stl_search.search.endurance import Endurance
from stl_search.search.flipgraph import terms_of
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock, suitable
from stl_search.testing import StrategyContract
from stl_search.verify import verify

FIVE = Problem((5, 5, 5), 93, ring="ZT")


def jobs(problem: Problem, numbers: Sequence[int]) -> list[list[Scheme]]:
    chosen, pool = Endurance(), Pool(problem)
    return [list(chosen.run(problem, pool, np.random.default_rng([7, j]), Clock(None))) for j in numbers]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that stays at a rank for two million flips is over."""
    monkeypatch.setattr(endurance, "_RESTING", (2_000_000,) * 5)
    monkeypatch.setattr(endurance, "_ABOVE", 2_000_000)


@pytest.mark.usefixtures("short")
class TestEndurance(StrategyContract):
    strategy = "endurance"
    problem = Problem((5, 5, 5), 117, ring="Z2")


def test_it_serves_square_shapes_that_short_walks_do_not() -> None:
    def names(problem: Problem) -> set[str]:
        return {s.name for s, _ in suitable(problem, Pool(problem))}

    assert "endurance" in names(FIVE)
    assert "endurance" in names(Problem((5, 5, 5), 93, ring="Z2", symmetry="cyclic"))
    assert "endurance" not in names(Problem((4, 4, 4), 49, ring="ZT"))
    assert "endurance" not in names(Problem((4, 5, 5), 76, ring="ZT"))
    weights = {s.name: weight for s, weight in suitable(FIVE, Pool(FIVE))}
    assert weights["endurance"] > 0.9 * sum(weights.values())


@pytest.mark.parametrize(("side", "rank"), [(5, 93), (6, 153), (7, 250)])
def test_fresh_walks_begin_from_fixed_terms_of_like_size(side: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[int]] = []
    walk = flips.Walk

    def noted(orbits: Any, fixed: Any, *rest: Any) -> flips.Walk:
        begun.append(sorted(int(term[0]).bit_count() for term in fixed))
        return walk(orbits, fixed, *rest)

    monkeypatch.setattr(flips, "Walk", noted)
    problem = Problem((side, side, side), rank, ring="Z2")
    for seed in range(8):
        endurance._begun(problem, "cyclic", Pool(problem), np.random.default_rng(seed))
    assert len(begun) == 8
    for found in begun:
        assert sum(found) == side
        assert (rank - len(found)) % 3 == 0
        assert found[-1] - found[0] <= 1
    if side == 5:
        assert begun == [[1, 2, 2]] * 8


@pytest.mark.usefixtures("short")
def test_walks_come_down_and_end_where_their_rank_stays() -> None:
    for found in jobs(FIVE, range(3)):
        (scheme,) = found
        assert scheme.ring.name == "Z2"
        assert 93 < scheme.rank < 125
        verify(scheme)


@pytest.mark.usefixtures("short")
def test_they_go_on_from_the_pool_but_not_from_the_last_rank_before_the_target() -> None:
    (low,) = jobs(FIVE, [0])[0]
    near = Problem((5, 5, 5), low.rank - 3, ring="ZT")
    far = Problem((5, 5, 5), low.rank - 6, ring="ZT")
    ranks = {}
    for name, problem in (("near", near), ("far", far)):
        pool = Pool(problem)
        pool.add(Entry(cost(problem, low), low.id, low))
        started = [endurance._begun(problem, "cyclic", pool, np.random.default_rng(seed)).terms() for seed in range(16)]
        ranks[name] = {len(terms) for terms in started}
        if name == "far":
            same = sorted(terms_of(low).tolist())
            assert any(sorted(terms.tolist()) == same for terms in started)
    assert low.rank not in ranks["near"]
    assert low.rank in ranks["far"]


@pytest.mark.usefixtures("short")
def test_what_is_found_is_lifted_and_the_same_seed_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flipgraph, "_BASES", 1)  # each that fails takes seconds
    problem = Problem((5, 5, 5), 117, ring="ZT")
    first = jobs(problem, range(3))
    lifted = [j for j, found in enumerate(first) if found[-1].rank <= 117 and "ZT" in verify(found[-1]).rings]
    assert lifted
    assert all("Z2" in verify(found[-1]).rings for found in first)  # what does not lift is left as material
    (again,) = jobs(problem, lifted[:1])
    assert [s.id for s in first[lifted[0]]] == [s.id for s in again]
