"""What numba compiles: kept where there is a folder for it, compiled all the same where there is none."""

from __future__ import annotations

from typing import Any

import pytest
from numba.core import caching

from stl_search import jit


def test_without_a_folder_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def triple(x: int) -> int:
        return 3 * x

    assert jit.compiled(triple)(5) == 15


def test_other_errors_are_raised_the_first_time() -> None:
    made: list[bool] = []

    def make(cache: bool) -> Any:
        made.append(cache)
        raise RuntimeError("out of registers")

    with pytest.raises(RuntimeError, match="out of registers"):
        jit._kept(make)
    assert made == [True]
