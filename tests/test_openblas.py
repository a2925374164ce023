"""Products by OpenBLAS in torch's threads: wherever operands lie; its own threads given back; forks; many at once."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search.kernels import dense, openblas, threads

SIDE = st.sampled_from([0, 1, 2, 5, 17, 40])
DTYPES = (torch.float32, torch.float64)


def whole(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Whole numbers: products of them are exact in float32."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


HERE = "openblas" in np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]  # type: ignore[index]
needed = pytest.mark.skipif(not HERE, reason="numpy multiplies by another library than OpenBLAS")


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> Iterator[openblas.Library]:
    """numpy's OpenBLAS, which is given three threads; the smallest product is shared, and five slices are many."""
    monkeypatch.setattr(openblas, "GRAIN", 1)
    monkeypatch.setattr(openblas, "FEW", 4)
    found = openblas.loaded()
    assert found is not None  # where numpy has it, it is found
    usual = found.threads()
    found.set_threads(3)
    yield found
    found.set_threads(usual)


@needed
@pytest.mark.parametrize("team", [True, False])
def test_slices_are_shared_among_threads_and_none_is_left_out(
    team: bool, torch_threads: int, blas: openblas.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not team:
        monkeypatch.setattr(threads, "_team", lambda process: None)
    for dtype, count in itertools.product(DTYPES, (1, 2, 5, 6, 7)):
        for left, right in (((4, 5), (5, 9)), ((1, 8), (8, 1)), ((3, 7, 5), (5, 2)), ((33, 40), (40, 24))):
            a, b = whole((count, *left), 0).to(dtype), whole((count, *right), 1).to(dtype)
            exact = a.double() @ (b.double() if len(left) == 2 else b.double()[:, None])
            for x in (a, a.mT.contiguous().mT):
                for y in (b, b.mT.contiguous().mT):
                    c = dense.batched(x, y, way="openblas")
                    assert c.dtype == dtype
                    assert torch.equal(c.double(), exact)  # of whole numbers
    assert blas.threads() == 3


def laid(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers, lying otherwise in memory."""
    if how == "turned":
        return x.mT.contiguous().mT
    if how == "spread":  # neither rows nor columns are whole
        wide = torch.full((*x.shape[:-2], 2 * x.shape[-2], 3 * x.shape[-1]), torch.nan, dtype=x.dtype)
        wide[..., ::2, ::3] = x
        return wide[..., ::2, ::3]
    if how == "part":
        wide = torch.full((*x.shape[:-2], x.shape[-2] + 3, x.shape[-1] + 5), torch.nan, dtype=x.dtype)
        wide[..., 1 : 1 + x.shape[-2], 2 : 2 + x.shape[-1]] = x
        return wide[..., 1 : 1 + x.shape[-2], 2 : 2 + x.shape[-1]]
    if how == "negative":  # torch keeps the sign as a note
        return torch.complex(torch.zeros_like(x), -x).conj().imag
    return x


HOW = st.sampled_from(["", "turned", "spread", "part", "negative"])


@needed
@settings(deadline=None, max_examples=150)
@given(st.tuples(SIDE, SIDE, SIDE), st.sampled_from([None, 1, 2, 3]), HOW, HOW, st.sampled_from(DTYPES), st.booleans())
def test_operands_may_lie_anyhow(
    sizes: tuple[int, int, int], count: int | None, left: str, right: str, dtype: torch.dtype, shared: bool
) -> None:
    m, k, n = sizes
    batch = () if count is None else (count,)
    a, b = whole((*batch, m, k), 0).to(dtype), whole((*batch, k, n), 1).to(dtype)
    frame = torch.full((*batch, m + 2, n + 4), 0.5, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openblas, "GRAIN", 1)
        patch.setattr(torch, "get_num_threads", lambda: 3 if shared else 1)
        out = openblas.products(laid(a, left), laid(b, right), frame[..., 1:-1, :n])
    assert torch.equal(out.double(), a.double() @ b.double())
    assert (frame[..., n:] == 0.5).all()  # nothing beside is written
    assert (frame[..., [0, -1], :] == 0.5).all()
    if count is None and m and n:
        assert torch.equal(dense.matmul(laid(a, left), laid(b, right), "openblas").double(), out.double())


@needed
def test_rows_that_are_the_same_memory_may_be_multiplied(blas: openblas.Library) -> None:
    a, b = whole((1, 8), 0).expand(5, 8), whole((8, 1), 1).expand(8, 6)
    assert torch.equal(dense.matmul(a, b, "openblas"), a @ b)
    b = whole((1, 8, 6), 2).expand(4, 8, 6)
    a = whole((4, 3, 8), 3)
    assert torch.equal(dense.batched(a, b, way="openblas"), a @ b)


@needed
def test_what_is_not_finite_stays_in_its_row_and_column(blas: openblas.Library) -> None:
    a, b = whole((9, 7), 0), whole((7, 8), 1)
    a[3, 2], b[4, 5] = torch.nan, torch.inf
    c = dense.matmul(a, b, "openblas")
    rest = torch.ones(9, 8, dtype=torch.bool)
    rest[3], rest[:, 5] = False, False
    assert torch.equal(c[rest], (a @ b)[rest])
    assert c[3].isnan().all()
    assert not c[:, 5].isfinite().any()


def test_empty_products() -> None:
    assert torch.equal(dense.batched(torch.ones(2, 3, 0), torch.ones(2, 0, 4), way="openblas"), torch.zeros(2, 3, 4))
    assert dense.batched(torch.ones(0, 3, 2), torch.ones(0, 2, 4), way="openblas").shape == (0, 3, 4)


@needed
def test_the_threads_of_openblas_are_given_back(blas: openblas.Library) -> None:
    with blas:
        assert blas.threads() == 1
        with blas:  # as another caller at the same time
            assert blas.threads() == 1
        assert blas.threads() == 1
    assert blas.threads() == 3
    with pytest.raises(ZeroDivisionError), blas:
        1 / 0  # noqa: B018
    assert blas.threads() == 3
    with blas, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside threads
        child = os.fork()
        if not child:  # nobody is inside here
            os._exit(0 if blas.threads() == 3 and not blas._inside else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert blas.threads() == 1
    assert blas.threads() == 3


@needed
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("torch_threads", [3], indirect=True)
def test_a_fork_multiplies_by_threads_of_its_own(torch_threads: int, blas: openblas.Library) -> None:
    a, b = whole((40, 30), 0), whole((30, 20), 1)
    exact = dense.matmul(a, b, "openblas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        os._exit(0 if torch.equal(dense.matmul(a, b, "openblas"), exact) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needed
@pytest.mark.parametrize("torch_threads", [3], indirect=True)
def test_many_callers_at_once(torch_threads: int, blas: openblas.Library) -> None:
    def call(seed: int) -> bool:
        inner = 20 + seed % 2
        a, b = whole((37, inner), seed), whole((inner, 31), seed + 1)
        return all(torch.equal(dense.matmul(a, b, "openblas"), a @ b) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(8)))
    assert blas.threads() == 3


def test_a_library_that_lacks_something_is_not_taken() -> None:
    with pytest.raises((AttributeError, StopIteration)):
        openblas.Library(object())
    assert not openblas.supports(torch.bfloat16)
