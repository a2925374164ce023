"""Sharing work among threads: all of it once, several callers at once, in a fork too."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stl_search.kernels import threads


@pytest.fixture(params=["team", "own"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """torch's team, or threads of our own as where that cannot be reached."""
    if request.param == "own":
        monkeypatch.setattr(threads, "_team", lambda process: None)
    elif sys.platform != "linux":
        pytest.skip("torch's OpenMP library is looked for on Linux alone")
    else:
        assert threads._team(threads._HOME) is not None
    return str(request.param)


def shared(count: int) -> list[int]:
    """What threads did of 0, ..., count - 1, each taking what is left."""
    left, done = list(range(count)), []

    def body(address: int | None) -> None:
        assert address == 64
        while left:
            with contextlib.suppress(IndexError):
                done.append(left.pop())

    threads.together(threads._BODY(body), 64, count)
    return sorted(done)


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_every_part_is_done_once(either: str, count: int) -> None:
    assert shared(count) == list(range(count))


def test_threads_run_beside_each_other(either: str) -> None:
    meeting = threading.Barrier(2, timeout=20)
    met = []
    threads.together(threads._BODY(lambda _: met.append(meeting.wait())), None, 2)
    assert sorted(met) == [0, 1]


def test_several_callers_at_once(either: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(lambda _: [shared(2) for _ in range(50)], range(8)):
            assert done == [[0, 1]] * 50


def _in_a_fork(answers: multiprocessing.SimpleQueue[int]) -> None:
    answers.put(sum(shared(3)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_fork_has_its_own_threads(either: str) -> None:
    shared(2)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_a_fork, args=(answers,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == 3
