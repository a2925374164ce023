"""Calls of amm that were answered by dense before: at once, and right wherever the short way may be wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import stl_search as stl
from stl_search.catalog import store
from stl_search.errors import UsageError
from stl_search.runtime import amm as runtime
from stl_search.runtime import dispatch, recall
from stl_search.scheme import Scheme


@pytest.fixture(autouse=True)
def _anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path))
    monkeypatch.setattr(recall, "_ways", {})
    monkeypatch.setattr(recall, "_tests", {})
    dispatch.forget()
    yield
    dispatch.forget()


def matrix(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def warmed(a: torch.Tensor, b: torch.Tensor) -> None:
    """The second call knows the answer, the third by a single test."""
    for _ in range(2):
        assert torch.equal(stl.amm(a, b), a @ b)
    assert dispatch.seen.latest


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Appends a line for each call that no single test answers."""
    calls: list[str] = []
    real = recall.product
    monkeypatch.setattr(recall, "product", lambda *given: calls.append("longer") or real(*given))
    return calls


def test_a_third_call_is_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = matrix(20, 30), matrix(30, 10, seed=1)
    warmed(a, b)
    calls = counted(monkeypatch)
    for encoder in ("catalog:best", "catalog:" + "best", None):
        assert torch.equal(stl.amm(a, b, encoder), a @ b)
    assert torch.equal(stl.amm(matrix(30, 20).T, b), matrix(30, 20).T @ b)  # strides are free
    assert not calls
    stl.amm(a, b, rtol=1e-3)
    stl.amm(a, b, backend="reference")  # nor is this asked the same
    assert calls == ["longer"]


def test_several_shapes_in_turn_are_one_test_each(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(matrix(n, 8, seed=n), matrix(8, n + 1, seed=-n)) for n in range(1, recall.HELD + 1)]
    for a, b in pairs:
        warmed(a, b)
    calls = counted(monkeypatch)
    for _ in range(3):
        for a, b in pairs:
            assert torch.equal(stl.amm(a, b), a @ b)
    assert not calls
    more = (matrix(9, 8), matrix(8, 5))
    warmed(*more)
    assert len(dispatch.seen.latest) == recall.HELD
    made = dict(recall._tests)
    for _ in range(3):
        for a, b in (*pairs, more):
            assert torch.equal(stl.amm(a, b), a @ b)
    assert recall._tests == made  # the tests themselves are made once


OTHERS = {
    "rows": (matrix(21, 30), matrix(30, 10)),
    "batch": (matrix(2, 20, 30), matrix(30, 10)),
    "dtype": (matrix(20, 30, dtype=torch.float64), matrix(30, 10, dtype=torch.float64)),
    "half": (matrix(20, 30, dtype=torch.float16), matrix(30, 10, dtype=torch.float16)),
    "complex": (matrix(20, 30) + 1j * matrix(20, 30, seed=3), matrix(30, 10) + 0j),
    "conjugate": ((matrix(20, 30) + 1j * matrix(20, 30, seed=3)).conj(), matrix(30, 10) + 0j),
    "negative": (torch._neg_view(matrix(20, 30)), matrix(30, 10)),
    "vector": (matrix(30), matrix(30, 10)),
    "parameter": (torch.nn.Parameter(matrix(20, 30)), matrix(30, 10)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_operands_of_another_kind(other: str) -> None:
    warmed(matrix(20, 30), matrix(30, 10, seed=1))
    a, b = OTHERS[other]
    for _ in range(3):
        c = stl.amm(a, b)
        assert c.dtype == a.dtype
        tolerance = 1e-2 if a.dtype == torch.float16 else 1e-6
        torch.testing.assert_close(c, a @ b, rtol=tolerance, atol=tolerance)


def test_operands_that_do_not_go_together_are_refused_as_ever() -> None:
    a, b = matrix(20, 30), matrix(30, 10, seed=1)
    warmed(a, b)
    refused: list[Any] = [(a, b.double()), (a, b.numpy()), (a, matrix(31, 10)), (a.to_sparse(), b), (a, [[1.0]])]
    for left, right in refused:
        with pytest.raises(UsageError):
            stl.amm(left, right)


def test_a_tensor_with_itself() -> None:
    a = matrix(16, 16)
    for _ in range(4):
        assert torch.equal(stl.amm(a, a), a @ a)


@pytest.mark.parametrize("way", ["torch", "openblas"])
def test_gradients_transforms_and_modes(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, along = matrix(20, 30), matrix(30, 10, seed=1), matrix(20, 30, seed=2)
    stl.amm(a, b)
    for key in recall._ways:
        recall._ways[key] = way
    for _ in range(2):
        torch.testing.assert_close(stl.amm(a, b), a @ b)
    assert dispatch.seen.latest
    for _ in range(3):
        x = a.clone().requires_grad_()
        stl.amm(x, b).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad, b.sum(1).expand(20, 30))
        with torch.no_grad():
            assert not stl.amm(x, b).requires_grad
        with torch.inference_mode():
            assert stl.amm(a, b).is_inference()
        assert not stl.amm(a, b).is_inference()
        with torch.autocast("cpu", torch.bfloat16):
            assert stl.amm(a, b).dtype == torch.float32
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(stl.amm(forward_ad.make_dual(a, along), b)).tangent
            torch.testing.assert_close(tangent, along @ b)
        many = torch.stack([a, along])
        torch.testing.assert_close(torch.func.vmap(stl.amm, (0, None))(many, b), many @ b)
        grad = torch.func.grad(lambda t: stl.amm(t, b).square().sum())(a)
        torch.testing.assert_close(grad, 2 * a @ b @ b.T)


def test_autocast_to_one_dtype_is_not_autocast_to_another() -> None:
    a, b = matrix(8, 8, dtype=torch.bfloat16), matrix(8, 8, seed=1, dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            for _ in range(3):
                assert stl.amm(a, b).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_and_the_process_lives() -> None:
    a = matrix(8, 8)
    warmed(a, a.clone())
    nested = torch.nested.nested_tensor([a])
    for pair in ((nested, a), (a, nested)):
        with pytest.raises(UsageError, match="nested"):
            stl.amm(*pair)


@pytest.mark.parametrize("way", ["torch", "openblas", "onednn"])
def test_modes_see_plain_operations(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "SMALL_ARRAYS", 0)
    a, b = matrix(20, 30), matrix(30, 10, seed=1)
    for pair in ((a, b), (a.numpy(), b.numpy())):
        stl.amm(*pair)
    for key in recall._ways:
        recall._ways[key] = way
    for _ in range(2):
        stl.amm(a, b)
        stl.amm(a.numpy(), b.numpy())
    with FakeTensorMode() as mode:
        assert isinstance(stl.amm(mode.from_tensor(a), mode.from_tensor(b)), FakeTensor)
        with pytest.raises((RuntimeError, AssertionError)):  # no data to be had
            stl.amm(a.numpy(), b.numpy())
    with FlopCounterMode(display=False) as counter:
        stl.amm(a, b)
    assert counter.get_total_flops() == 2 * 20 * 30 * 10
    graph = make_fx(lambda x, y: stl.amm(x, y))(a, b)
    other = matrix(20, 30, seed=5)
    torch.testing.assert_close(graph(other, b), other @ b)


def test_what_is_held_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(matrix(n, 8), matrix(8, n)) for n in (3, 4)]
    for pair in pairs:
        warmed(*pair)
    for _ in range(2 * recall.HELD):
        monkeypatch.setattr(dispatch.seen, "until", 0.0)  # a second later
        stl.amm(*pairs[0])
    assert len(dispatch.seen.latest) == 2
    calls = counted(monkeypatch)
    stl.amm(*pairs[1])
    assert not calls


def test_explain_has_everything_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = matrix(16, 16), matrix(16, 16, seed=1)
    warmed(a, b)
    stl.explain((16, 16, 16), show=False)
    asked: list[str] = []
    real = runtime.planned
    monkeypatch.setattr(runtime, "planned", lambda *given: asked.append("planned") or real(*given))
    stl.amm(a, b)
    assert asked == ["planned"]


def test_a_catalog_that_changes_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = matrix(64, 64), matrix(64, 64, seed=1)
    warmed(a, b)
    store.user_dir().joinpath("schemes").mkdir(parents=True, exist_ok=True)
    calls = counted(monkeypatch)
    stl.amm(a, b)
    assert not calls  # it is looked at once in a second
    monkeypatch.setattr(dispatch.seen, "until", 0.0)
    asked: list[str] = []
    real = runtime.planned
    monkeypatch.setattr(runtime, "planned", lambda *given: asked.append("planned") or real(*given))
    stl.amm(a, b)
    assert asked == ["planned"]
    assert not dispatch.seen.latest


def test_without_torchs_test_the_longer_way_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "TensorGuards", None)
    a, b = matrix(20, 30), matrix(30, 10, seed=1)
    for _ in range(3):
        assert torch.equal(stl.amm(a, b), a @ b)
    assert not dispatch.seen.latest


def test_two_threads_and_two_kinds() -> None:
    pairs = [(matrix(24, 24, seed=i), matrix(24, 24, seed=i + 9)) for i in range(2)]
    pairs[1] = (pairs[1][0].double(), pairs[1][1].double())
    wrong: list[int] = []

    def run(i: int) -> None:
        a, b = pairs[i]
        expected = a @ b
        wrong.extend(i for _ in range(300) if not torch.equal(stl.amm(a, b), expected))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("way", ["torch", "numpy", "onednn"])
def test_arrays_too_large_for_numpy_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "SMALL_ARRAYS", 0)
    a, b = matrix(20, 30).numpy(), matrix(30, 10, seed=1).numpy()
    stl.amm(a, b)
    for key in recall._ways:
        recall._ways[key] = way
    read_only = a.copy()
    read_only.flags.writeable = False
    for given in (a, a[::-1, ::-1], read_only, np.asfortranarray(a), np.broadcast_to(a[:1], a.shape)):
        c = recall.product(given, b, dispatch.DEFAULT, None, None)
        assert type(c) is np.ndarray
        np.testing.assert_allclose(c, given @ b, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        c = stl.amm(a, b)
    assert c.dtype == np.float32
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)


def test_one_scheme_is_never_taken_for_dense() -> None:
    a, b = matrix(20, 30), matrix(30, 10, seed=1)
    warmed(a, b)
    zero = Scheme((1, 1, 1), "ZT", *(np.zeros((0, 1), int) for _ in range(3)))
    assert not stl.amm(a, b, zero).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_a_scheme_of_no_terms_makes_zeros(dtype: torch.dtype) -> None:
    nothing = Scheme((2, 1, 3), "ZT", *(np.zeros((0, size), int) for size in (2, 3, 6)))
    a, b = matrix(2, 7, 9).to(dtype), matrix(9, 11, seed=1).to(dtype)
    for c in (
        stl.amm(a, b, nothing),
        stl.amm(a, b, nothing, backend="reference"),
        stl.amm(a, stl.encode_rhs(b, nothing)),
        stl.amm(stl.encode_lhs(a, nothing), b),
    ):
        assert c.shape == (2, 7, 11)
        assert c.dtype == dtype
        assert not c.any()
