"""Products in parts: any chunk and workspace gives the product, memory keeps to its bound; levels, packed operands."""

from __future__ import annotations

import math
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import transform
from stl_search.errors import UsageError
from stl_search.kernels import cpu, dense, multiply, panels
from stl_search.kernels.plan import LAYOUTS, Plan, dtype_name, torch_dtype
from stl_search.runtime import calibrate
from stl_search.runtime.amm import amm, encode_lhs, encode_rhs
from stl_search.testing import STRASSEN

SCHEMES = {
    "strassen": STRASSEN,
    "<2,3,4>": transform.sum_k(transform.sum_n(STRASSEN, STRASSEN), transform.classical((2, 1, 4))),
}
SIDE = st.sampled_from([1, 2, 5, 17, 40, 67])


def whole(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Whole numbers: products of them are exact in float32."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


class Memory:
    """Stands for ``cpu.empty``: NaN throughout, and what is allocated at any time is counted."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def _release(self, size: int) -> None:
        self.live -= size

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        self.live += size
        self.peak = max(self.peak, self.live)
        made = np.full(max(1, size), 255, np.uint8)
        weakref.finalize(made, self._release, size)
        return torch.from_numpy(made)[:size].view(dtype).view(shape)


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(SIDE, SIDE, SIDE),
    st.sampled_from([((), ()), ((3,), ()), ((2, 2), ()), ((), (3,)), ((3,), (3,)), ((2, 1), (3,)), ((1,), (2,))]),
    st.sampled_from(list(SCHEMES)),
    st.sampled_from(LAYOUTS),
    st.integers(0, 3),
    st.sampled_from([1, 3000, 10**9]),
    st.sampled_from([1, 1, 2, 3]),
)
def test_any_chunk_gives_the_product(
    sizes: tuple[int, int, int],
    batches: tuple[tuple[int, ...], tuple[int, ...]],
    name: str,
    layout: str,
    encoded: int,
    chunk: int,
    levels: int,
) -> None:
    m, k, n = sizes
    plan = Plan(SCHEMES[name], layout=layout)
    levels = levels if name == "strassen" else min(levels, 2)  # a third one of 22 products takes seconds
    a, b = whole((*batches[0], m, k), 0), whole((*batches[1], k, n), 1)
    given_encoded = bool(encoded & 1), bool(encoded & 2)
    x = multiply.encode(a, plan, "lhs") if given_encoded[0] else a
    y = multiply.encode(b, plan, "rhs") if given_encoded[1] else b
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiply, "CHUNK", chunk)
        c = multiply.multiply(x, y, plan, m, n, given_encoded, levels)
    assert torch.equal(c, a @ b)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(SIDE, SIDE, SIDE),
    st.sampled_from([((), ()), ((3,), ()), ((2,), (2,))]),
    st.sampled_from(list(SCHEMES)),
    st.integers(0, 3),
    st.floats(1.0, 3.0),
)
def test_a_workspace_is_honoured(
    sizes: tuple[int, int, int],
    batches: tuple[tuple[int, ...], tuple[int, ...]],
    name: str,
    encoded: int,
    room: float,
) -> None:
    """All that is allocated at any time, the result apart, is within the limit; a smaller limit is refused."""
    m, k, n = sizes
    plan = Plan(SCHEMES[name])
    a, b = whole((*batches[0], m, k), 0), whole((*batches[1], k, n), 1)
    given_encoded = bool(encoded & 1), bool(encoded & 2)
    x = multiply.encode(a, plan, "lhs") if given_encoded[0] else a
    y = multiply.encode(b, plan, "rhs") if given_encoded[1] else b
    least = multiply.least_workspace(x, y, plan, m, n, given_encoded)
    memory = Memory()
    limit = max(1, int(least * room))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "empty", memory.empty)
        c = multiply.multiply(x, y, plan, m, n, given_encoded, limit=limit)
    assert torch.equal(c, a @ b)
    assert memory.peak <= limit + c.nbytes
    if least > 1:
        with pytest.raises(UsageError, match=f"too small for this product and scheme: give {least} at least"):
            multiply.multiply(x, y, plan, m, n, given_encoded, limit=least - 1)


@pytest.mark.parametrize("way", ["torch", "panels"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("given", ["plain", "encoded", "packed"])
def test_of_much_b_some_columns_are_encoded_at_a_time(
    way: str, dtype: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, kind = Plan(STRASSEN, dtype), torch_dtype(dtype)
    a, b = whole((90, 60), 0).to(kind), whole((60, 1000), 1).to(kind)
    encoded = given != "plain"
    y: Any = multiply.encode(b, plan, "rhs") if encoded else b
    want = multiply.multiply(a, y, plan, 90, 1000, (False, encoded), way=way)
    y = multiply.pack(y, plan, "panels") if given == "packed" else y
    monkeypatch.setattr(multiply, "ENCODED", 1 << 16)
    monkeypatch.setattr(multiply, "CHUNK", 1 << 15)
    monkeypatch.setattr(multiply, "_idle", [])
    memory, parts = Memory(), []
    monkeypatch.setattr(cpu, "empty", memory.empty)
    products = multiply._products
    monkeypatch.setattr(multiply, "_products", lambda a, b, *rest: parts.append(b.shape[-1]) or products(a, b, *rest))
    c = multiply.multiply(a, y, plan, 90, 1000, (False, encoded), way=way)
    assert torch.equal(c, want)
    held = encoded and dtype == "fp32" and isinstance(y, torch.Tensor) and way == "torch"  # nothing of B is made
    assert (max(parts) == 500) == held  # columns of B that meet rows of A at a time
    column = 30 * 7 * (4 if dtype == "fp32" else 6)  # bytes of B encoded
    row = 7 * (30 * 6 + (multiply.ACROSS + (1 << 16) // column) * 4)
    assert memory.peak <= c.nbytes + (1 << 16) + column * multiply.ACROSS + (1 << 15) + multiply.FEWEST * row
    assert memory.peak < c.nbytes + 500 * column  # far from all of it


def test_memory_peak_of_amm_keeps_to_what_is_documented() -> None:
    """Large arrays are numpy's, which tracemalloc sees: C, B encoded, one chunk."""
    plan = Plan(STRASSEN)
    n = 2048
    a, b = (np.ones((n, n), np.float32) for _ in range(2))
    amm(a, b, plan)  # compiled and imported, the machine measured
    for workspace in (60 << 20, 100 << 20):
        tracemalloc.start()
        c = amm(a, b, plan, workspace=workspace)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= c.nbytes + workspace + (1 << 20)
        assert (c == n).all()


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(SIDE, SIDE, SIDE),
    st.sampled_from([((), ()), ((3,), ()), ((2,), (2,)), ((2, 3), (3,))]),
    st.sampled_from(list(SCHEMES)),
    st.sampled_from(["fp32", "fp64", "bf16", "fp16"]),
    st.integers(1, 200_000),
    st.sampled_from(["torch", "panels"]),
    st.booleans(),
)
def test_memory_without_a_limit_is_b_encoded_and_one_chunk(
    sizes: tuple[int, int, int],
    batches: tuple[tuple[int, ...], tuple[int, ...]],
    name: str,
    dtype: str,
    chunk: int,
    way: str,
    turned: bool,
) -> None:
    """Everything that is allocated at once, the result apart; a chunk is ``CHUNK`` bytes or FEWEST rows."""
    m, k, n = sizes
    plan = Plan(SCHEMES[name], dtype)
    kind = torch_dtype(dtype)
    a, b = whole((*batches[0], m, k), 0).to(kind), whole((*batches[1], k, n), 1).to(kind)
    a = a.mT.contiguous().mT if turned else a
    memory = Memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "empty", memory.empty)
        patch.setattr(multiply, "CHUNK", chunk)
        c = multiply.multiply(a, b, plan, m, n, way=way)
    assert torch.equal(c.double(), (a.double() @ b.double()).to(kind).double())
    down, inner, across = (-(-side // part) for side, part in zip(sizes, plan.scheme.shape, strict=True))
    entry = {"fp32": 4, "fp64": 8}.get(dtype, 2 + 4)  # 16-bit operands are multiplied in float32
    made = 8 if dtype == "fp64" else 4
    encoded = plan.scheme.rank * inner * across * entry
    if way == "panels" and panels.supports(torch_dtype(plan.compute)):  # a panel is filled up with zeros
        encoded = max(encoded, panels.Panels.size((plan.scheme.rank, inner, across), torch_dtype(plan.compute)))
    again = made if turned and way == "panels" else 0  # column-major rows are copied for panels
    row = plan.scheme.rank * (inner * (entry + again) + across * made)
    assert memory.peak <= c.nbytes + encoded + max(chunk, min(multiply.FEWEST, down) * row)


@pytest.mark.parametrize(
    ("dtype", "way"),
    [(torch.float32, "onednn"), (torch.bfloat16, "onednn"), (torch.float32, "panels"), (torch.float64, "panels")],
)
def test_packed_operands_multiply_alike_and_come_back_unchanged(dtype: torch.dtype, way: str) -> None:
    name = dtype_name(dtype)[0]
    plan = Plan(STRASSEN, name, "bf16" if dtype == torch.bfloat16 else "")
    a, b = (whole(s, i).to(dtype) for i, s in enumerate([(3, 37, 41), (41, 53)]))
    b_hat = multiply.encode(b, plan, "rhs")
    there = {
        "panels": torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"),
        "onednn": torch.backends.mkldnn.is_available()
        and (dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    }
    if not there[way]:
        assert way not in dense.packings(b_hat)
        pytest.skip(f"this processor, or this torch, has nothing to pack {dtype} by {way}")
    packed = multiply.pack(b_hat, plan, way)
    assert isinstance(packed, dense.Packed if way == "onednn" else panels.Panels)
    assert torch.equal(packed.unpacked(), b_hat)
    assert b_hat.nbytes <= packed.nbytes < 2 * b_hat.nbytes
    turned = a.mT.contiguous().mT
    least = [multiply.least_workspace(x, packed, plan, 37, 53, (False, True)) for x in (a, turned)]
    for x, enough in zip((a, turned), least, strict=True):
        with pytest.raises(UsageError, match=f"give {enough} at least"):
            multiply.multiply(x, packed, plan, 37, 53, (False, True), 1, enough - 1)
    for x, levels, limit in (
        (a, 1, None), (turned, 1, None), (a, 2, None), (a, 1, 10**6), (a, 1, least[0]), (turned, 1, least[1]),
    ):  # fmt: skip
        memory = Memory()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "empty", memory.empty)
            if limit:  # is for all that is made, and B stays as it is
                patch.setattr(panels.Panels, "unpacked", None)
                patch.setattr(dense.Packed, "unpacked", None)
            c = multiply.multiply(x, packed, plan, 37, 53, (False, True), levels, limit)
        assert limit is None or memory.peak <= limit + c.nbytes
        exact = a.double() @ b.double()
        gap = float((c.double() - exact).norm() / exact.norm())
        assert gap <= (4 * plan.predicted_error if dtype == torch.bfloat16 else 0.0)


def test_every_dense_way_gives_the_product() -> None:
    a, b = whole((3, 20, 30), 0), whole((30, 10), 1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for way in dense.ways(dtype):
            x, y = a.to(dtype), b.to(dtype)
            for left, right in ((x, y), (x[0], y), (x[0].mT.contiguous().mT, y), (x[0], y.mT.contiguous().mT)):
                c = dense.matmul(left, right, way)
                assert c.dtype == dtype
                torch.testing.assert_close(c.double(), (left.double() @ right.double()).to(dtype).double())
            assert dense.matmul(x[:0], y, way).shape == (0, 20, 10)
    assert dense.ways(torch.bfloat16) == dense.ways(torch.float16) == ["torch", "float32"]
    for other in (torch.float16, torch.complex64):  # theirs or torch's
        for way in dense.WAYS:
            assert torch.equal(dense.matmul(a[0].to(other), b.to(other), way), (a[0] @ b).to(other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_widened_products_are_rounded_once(dtype: torch.dtype) -> None:
    a, b = (torch.randn(s, generator=torch.Generator().manual_seed(0)).to(dtype) for s in ((70, 300), (300, 50)))
    exact = a.double() @ b.double()
    nearest = exact.to(dtype)
    gap = (dense.matmul(a, b, "float32").double() - exact).abs() - (nearest.double() - exact).abs()
    assert float(gap.max()) <= 1e-4  # of sums in float32, which may round the other way where two are about as near


def test_products_go_the_way_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = ((256.0, 1e9),)
    monkeypatch.setattr(
        calibrate, "rates", lambda *_: calibrate.Rates(curve, ("torch",), curve, ("openblas",), (), (), 1e9, 1e9, 0.0)
    )
    asked: list[str] = []
    batched = dense.batched
    monkeypatch.setattr(dense, "batched", lambda a, b, out=None, way="": asked.append(way) or batched(a, b, out, way))
    a, b = whole((600, 520), 0), whole((520, 512), 1)
    known = "openblas" if len(dense.slice_ways(torch.float32)) > 1 else "torch"
    for x, y, way in (
        (a, b, known),
        (a, encode_rhs(b, STRASSEN), known),
        (a[:30], b, "torch"),  # slices too small to ask
        (a.bfloat16(), b.bfloat16(), known),  # bf16 in storage, products in float32
    ):
        asked.clear()
        c = amm(x, y, encoder=STRASSEN) if isinstance(y, torch.Tensor) else amm(x, y)
        assert set(asked) == {way}
        assert c.shape == (len(x), 512)
    assert torch.equal(amm(a, b, encoder=STRASSEN).double(), a.double() @ b.double())


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "1G"])
def test_a_workspace_is_a_positive_number_of_bytes(bad: Any) -> None:
    with pytest.raises(UsageError, match="positive number of bytes"):
        amm(np.eye(2), np.eye(2), STRASSEN, workspace=bad)


def test_a_workspace_is_refused_where_it_cannot_be_kept_to() -> None:
    a = torch.ones(4, 4, requires_grad=True)
    with pytest.raises(UsageError, match="on the processor only"):
        amm(a, a, STRASSEN, workspace=1 << 20)
    with pytest.raises(UsageError, match="give 672 at least"):
        amm(np.ones((4, 4)), np.ones((4, 4)), STRASSEN, workspace=100)


def test_encoded_operands_in_chunks() -> None:
    plan = Plan(STRASSEN)
    a, b = whole((130, 70), 0), whole((70, 90), 1)
    left, right = encode_lhs(a, plan), encode_rhs(b, plan)
    for x, y in ((a, right), (left, b), (left, right)):
        assert torch.equal(amm(x, y, workspace=1 << 18), a @ b)


def test_buffers_stay_for_the_next_call_and_nothing_of_a_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as a chunk; what was made in inference mode serves outside of it; gradients hang on none of them."""
    monkeypatch.setattr(multiply, "_idle", [])
    plan = Plan(STRASSEN, "fp32")
    a, b = torch.randn(2, 96, 64, generator=torch.Generator().manual_seed(6)).unbind()
    b = b.T.contiguous()
    with torch.inference_mode():
        first = multiply.multiply(a, b, plan, 96, 96)
    (kept,) = multiply._idle
    assert kept
    assert not any(buffer.is_inference() for buffer in kept.values())
    places = {name: buffer.data_ptr() for name, buffer in kept.items()}
    with torch.no_grad():
        again = multiply.multiply(a, b, plan, 96, 96)
        other = multiply.multiply(2 * a, b, plan, 96, 96)
    assert {name: buffer.data_ptr() for name, buffer in multiply._idle[0].items()} == places
    assert torch.equal(first, again)
    assert torch.equal(other, 2 * first)  # and no result lies in a buffer
    multiply.multiply(a.clone().requires_grad_(), b, plan, 96, 96)
    assert not any(buffer.requires_grad for buffer in multiply._idle[0].values())
    monkeypatch.setattr(multiply, "CHUNK", 1)
    multiply.multiply(a, b, plan, 96, 96)
    assert multiply._idle == [{}]


def test_a_workspace_is_all_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiply, "_idle", [])
    plan = Plan(STRASSEN, "fp32")
    a, b = torch.randn(2, 96, 96, generator=torch.Generator().manual_seed(7)).unbind()
    multiply.multiply(a, b, plan, 96, 96, limit=1 << 20)
    assert multiply._idle == []
    multiply.multiply(a, b, plan, 96, 96)
    gone = [weakref.ref(buffer) for buffer in multiply._idle[0].values()]
    assert gone
    multiply.multiply(a, b, plan, 96, 96, limit=1 << 20)
    assert multiply._idle == []
    assert [buffer() for buffer in gone] == [None] * len(gone)
