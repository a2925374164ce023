"""Sharing work among threads: all of it once, errors raised, several callers at once, in a fork too."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

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


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_every_part_is_done_once(either: str, count: int) -> None:
    done: list[int] = []
    threads.share(done.append, count)
    assert sorted(done) == list(range(count))


def test_parts_run_beside_each_other(either: str) -> None:
    meeting = threading.Barrier(2, timeout=20)
    threads.share(lambda _: meeting.wait(), 2)


def test_an_error_is_raised_after_the_other_parts(either: str) -> None:
    done: list[int] = []

    def work(part: int) -> None:
        if part == 1:
            raise ZeroDivisionError("part 1")
        time.sleep(0.01)
        done.append(part)

    with pytest.raises(ZeroDivisionError, match="part 1"):
        threads.share(work, 3)
    assert sorted(done) == [0, 2]
    with pytest.raises(IndexError):  # not taken for the end of the work
        threads.share(lambda part: [][part], 2)


def test_several_callers_at_once(either: str) -> None:
    def call(_: int) -> list[int]:
        done: list[int] = []
        for _ in range(50):
            threads.share(done.append, 2)
        return done

    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(call, range(8)):
            assert sorted(done) == [0] * 50 + [1] * 50


def _in_a_fork(answers: multiprocessing.SimpleQueue[int]) -> None:
    done: list[int] = []
    threads.share(done.append, 3)
    answers.put(sum(done))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_fork_has_its_own_threads(either: str) -> None:
    threads.share(lambda _: None, 2)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_a_fork, args=(answers,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == 3


def test_each_part_is_done_once_and_in_order_by_one_thread() -> None:
    done: list[tuple[int, str]] = []
    parts = [(i, str(i)) for i in range(20)]
    threads.each(lambda i, name: done.append((i, name)), parts)
    assert sorted(done) == parts
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done.clear()
        threads.each(lambda i, name: done.append((i, name)), parts)
    finally:
        torch.set_num_threads(before)
    assert done == parts
    threads.each(lambda: done.clear(), [])
    assert done == parts
    with pytest.raises(ZeroDivisionError):
        threads.each(lambda i: 1 // i, [(1,), (0,)])


def test_what_was_shared_is_let_go_at_once(either: str) -> None:
    """Buffers that a product worked on do not wait for the collector of cycles."""

    class Buffer:
        pass

    buffer = Buffer()
    gone = weakref.ref(buffer)
    gc.disable()
    try:
        threads.share(lambda _, held=buffer: None, 2)
        del buffer
        assert gone() is None
    finally:
        gc.enable()
