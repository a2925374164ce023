"""What bench amm measures: the winners among shipped schemes, and turns that shrink where runs are long."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stl_search.bench import amm as measure
from stl_search.catalog import store
from stl_search.errors import UsageError


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_winners_are_the_exact_ones_and_the_most_accurate_of_each_share(dtype: str) -> None:
    entries = [e for e in store.entries([store.shipped_dir()]) if e.ring not in ("Z2", "C")]
    found = measure.winners(entries, dtype)
    assert len({e.id for e in found}) == len(found)
    assert {e.id for e in entries if e.exact} <= {e.id for e in found}
    rough = [e for e in found if not e.exact]
    assert len(rough) > 8

    def share(e: store.Entry) -> float:
        return e.rank / math.prod(e.shape)

    for e in rough:  # none of all is both cheaper and more accurate
        assert not any(share(o) < share(e) and o.error(dtype) < e.error(dtype) for o in entries)
    for step in range(1, 16):
        within = [e.error(dtype) for e in entries if share(e) <= step / 16]
        assert min(within) == min(e.error(dtype) for e in found if share(e) <= step / 16)
    assert {e.id for e in measure.chosen("winners", dtype)} == {e.id for e in found}


def test_what_is_chosen_by_name() -> None:
    everything = measure.chosen("all", "fp32")
    assert measure.chosen("none", "fp32") == []
    some = measure.chosen(f"49,{everything[0].id[:10]}", "fp32")
    assert some == [e for e in everything if e.rank == 49 or e.id == everything[0].id]
    with pytest.raises(UsageError, match="rank or an id"):
        measure.chosen("4711", "fp32")


def test_the_median_of_two_pairs_is_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([4.0, 4.0, 2.0, 1.0, 1.0, 4.0])  # a first turn, then as many as there is patience for, there and back
    monkeypatch.setattr(measure, "_time", lambda *_: next(times))
    monkeypatch.setattr(measure, "_fastest", lambda a, b: ("torch", lambda: a @ b))
    case = measure._Case(16, "fp32")
    (row,) = case.measured([({}, lambda: case.a @ case.b, 0.0)], "dense", 5)
    assert row["pairs"] == 2
    assert row["ratio"] == {"p20": pytest.approx(2.4), "p50": 3.0, "p80": pytest.approx(3.6)}


@pytest.mark.parametrize("mine", ["torch", "onednn", "numpy"])
@pytest.mark.parametrize("fastest", ["torch", "openblas", "numpy"])
def test_there_is_a_pause_between_threads_of_two_libraries(
    mine: str, fastest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numpy's threads look out for work for a while, and torch's: the other product has fewer processors then."""
    pauses: list[float] = []
    monkeypatch.setattr(measure, "time", SimpleNamespace(sleep=pauses.append, perf_counter=time.perf_counter))
    monkeypatch.setattr(measure, "_fastest", lambda a, b: (fastest, lambda: a @ b))
    dense = measure.explain((16, 16, 16), "fp32", show=False)
    monkeypatch.setattr(measure, "explain", lambda *_, **__: replace(dense, way=mine))
    (row,) = measure.rows([16], repeats=3, schemes="none")
    assert row["pairs"] == 3
    assert len(pauses) == (2 if (mine == "numpy") == (fastest == "numpy") else 2 + 2 * 3)  # two before it is known


@pytest.mark.parametrize(("seconds", "turns"), [(1e-4, 5), (1.0, 5), (2.0, 3), (4.0, 1), (20.0, 1)])
def test_long_runs_are_repeated_less(seconds: float, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_time", lambda *_: seconds)
    case = measure._Case(16, "fp32")
    runs: list[Any] = [({"encoded": x}, lambda: torch.mm(case.a, case.b), 0.0) for x in ("none", "rhs")]
    first, second = case.measured(runs, "dense", 5)
    assert first["pairs"] == second["pairs"] == turns
    assert first["ratio"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    assert first["ok"]
    wrong, _ = case.measured([(runs[0][0], lambda: torch.mm(case.a, case.a), 0.0), runs[1]], "dense", 5)
    assert not wrong["ok"]
