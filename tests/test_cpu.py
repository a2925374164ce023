"""The numba kernels against their naive oracles: every size, stride, dtype, layout; parts, threads, NaN."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search.kernels import cpu, reference, strips
from stl_search.kernels.plan import LAYOUTS, Plan, torch_dtype
from stl_search.kernels.vectors import BYTES
from stl_search.testing import STRASSEN

SLOW = settings(deadline=None, max_examples=60)
# Unit roundoff of what is stored; sums add at most that of their own precision for each term.
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# (operand, sums, result): each is compiled once, so that not all 32 are tried.
FORMATS = [
    (torch.float32, torch.float32, torch.float32),
    (torch.float64, torch.float64, torch.float64),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.float16, torch.float32, torch.float16),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, torch.float64, torch.bfloat16),
]
# 0 and 1, primes, just below and above a strip of float32 and of float64, and a strip that overlaps its neighbour.
SIZE = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 31, 64, 127, 255, 256, 257, 300, 513])


@pytest.fixture(autouse=True, scope="module")
def poisoned() -> Iterator[None]:
    """What a kernel does not write into a new result is NaN, not the zero that fresh memory often holds."""
    real = cpu.empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "empty", lambda shape, dtype: real(shape, dtype).fill_(math.nan))
        yield


def gaussian(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers, otherwise placed in memory, NaN between them."""
    if how == "turned":
        return x.mT.contiguous().mT
    if how == "plain":
        return x
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 3, 2 * x.shape[-1]), math.nan, dtype=x.dtype)
    rows = wide[..., 1 : 1 + x.shape[-2], :]
    view = rows[..., ::2] if how == "spread" else rows[..., : x.shape[-1]]
    view.copy_(x)
    return view


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    stored, sums, made = draw(st.sampled_from(FORMATS))
    return {
        "given": stored,
        "sums": sums,
        "made": made,
        "grid": draw(st.tuples(*[st.integers(1, 4)] * 2)),
        "rank": draw(st.integers(1, 9)),
        "sizes": draw(st.tuples(SIZE, SIZE)),
        "batch": draw(st.sampled_from([(), (1,), (3,), (2, 0), (2, 3)])),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "how": draw(st.sampled_from(["plain", "turned", "spread", "inside"])),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "dense": draw(st.sampled_from([False, False, True])),
    }


def factor(case: dict[str, Any]) -> torch.Tensor:
    """A third of the coefficients is zero, a term may be zero altogether; or none is, for the way without zeros."""
    c = gaussian((case["rank"], *case["grid"]), case["sums"], case["seed"] + 1)
    if case["dense"]:
        return c
    return torch.where(c.abs() < 0.43, torch.zeros_like(c), c)


def agree(got: torch.Tensor, exact: torch.Tensor, size: torch.Tensor, terms: int, case: dict[str, Any]) -> None:
    """``size`` is the sum of the absolute values of what was added."""
    assert got.dtype == case["made"]
    assert got.shape == exact.shape
    allowed = (terms + 1) * UNIT[case["sums"]] * size + 2 * UNIT[case["made"]] * exact.abs() + 1e-7
    assert bool(((got.double() - exact).abs() <= allowed).all())


@SLOW
@given(cases())
def test_encode_agrees_with_its_oracle(case: dict[str, Any]) -> None:
    x = gaussian((*case["batch"], *case["sizes"]), case["given"], case["seed"])
    c = factor(case)
    got = cpu.encode(strided(x, case["how"]), c, case["layout"], case["made"])
    exact = reference.encode_naive(x.double(), c.double(), case["layout"])
    size = reference.encode_naive(x.double().abs(), c.double().abs(), case["layout"])
    agree(got, exact, size, math.prod(case["grid"]), case)


@SLOW
@given(cases())
def test_decode_agrees_with_its_oracle(case: dict[str, Any]) -> None:
    (rows, cols), (m, n) = case["sizes"], case["grid"]
    p = gaussian((case["rank"], *case["batch"], -(-rows // m), -(-cols // n)), case["given"], case["seed"])
    c = factor(case)
    got = cpu.decode(strided(p, case["how"]), c, rows, cols, case["layout"], case["made"])
    exact = reference.decode_naive(p.double(), c.double(), rows, cols, case["layout"])
    size = reference.decode_naive(p.double().abs(), c.double().abs(), rows, cols, case["layout"])
    agree(got, exact, size, case["rank"], case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(21, 300), (7, 5), (2, 2)])
def test_parts_are_parts_of_the_whole(layout: str, sizes: tuple[int, int]) -> None:
    """Rows and columns of the slices one window after another; what a window does not cover is left alone."""
    c = gaussian((5, 3, 2), torch.float32, 0)
    x = gaussian(sizes, torch.float32, 1)
    whole = cpu.encode(x, c, layout)
    height, width = whole.shape[-2:]
    back = torch.full(sizes, math.nan)
    for top in range(0, height, 3):
        for left in range(0, width, 67):
            window = whole[:, top : top + 3, left : left + 67]
            part = torch.full_like(window, math.nan)
            cpu.encode_into(x, c, layout, part, top, left)
            torch.testing.assert_close(part, window, rtol=0, atol=1e-6)
            before = int(back.isnan().sum())
            cpu.decode_into(window, c, layout, back, top, left)
            assert before - int(back.isnan().sum()) <= 6 * window[0].numel()
    torch.testing.assert_close(back, cpu.decode(whole, c, *sizes, layout), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (4, 4), (2, 5), (5, 5)])
def test_without_zeros_as_with_them(layout: str, dtype: str, grid: tuple[int, int]) -> None:
    """A matrix without zeros is summed otherwise, up to a size; one more term, all zeros, sends it the usual way."""
    kind = torch_dtype(dtype)
    c = gaussian((6, *grid), torch.float32, 0)
    usual = torch.cat([c, torch.zeros(1, *grid)])
    x = gaussian((70, 1301), kind, 1)
    allowed = {"rtol": 2 * UNIT[kind], "atol": 1e-5}
    hat = cpu.encode(x, c, layout, kind)
    torch.testing.assert_close(hat, cpu.encode(x, usual, layout, kind)[:-1], **allowed)
    more = torch.cat([hat, hat[:1]])
    want = cpu.decode(more, usual, 70, 1301, layout, kind)
    torch.testing.assert_close(cpu.decode(hat, c, 70, 1301, layout, kind), want, **allowed)


@pytest.mark.parametrize(
    ("layout", "dtype", "dense"),
    [("block", "fp32", False), ("block", "bf16", True), ("tile", "fp32", True), ("tile", "fp64", False)],
)
def test_rows_of_any_width(layout: str, dtype: str, dense: bool) -> None:
    """Strips are as narrow as rows ask for; whole numbers are added exactly."""
    kind, sums = torch_dtype(dtype), torch_dtype("fp64" if dtype == "fp64" else "fp32")
    generator = torch.Generator().manual_seed(0)
    u = torch.randint(-1, 2, (5, 2, 3), generator=generator).double()
    u = torch.where(u == 0, 1.0, u) if dense else u
    for width in range(1, strips.VECTORS * BYTES // 4 + 20):
        x = torch.randint(-4, 5, (5, 3 * width - 1), generator=generator).double()
        hat = cpu.encode(x.to(kind), u.to(sums), layout, kind)
        exact = reference.encode_naive(x, u, layout)
        assert torch.equal(hat.double(), exact)
        back = cpu.decode(hat, u.to(sums), *x.shape, layout, sums)
        assert torch.equal(back.double(), reference.decode_naive(exact, u, *x.shape, layout))


def test_what_is_made_of_constant_coefficients_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    u = gaussian((5, 3, 2), torch.float32, 0)
    constant, x = cpu.Constant(u), gaussian((70, 90), torch.float32, 1)
    made: list[bool] = []
    terms = cpu._Terms
    monkeypatch.setattr(cpu, "_Terms", lambda c, by_output: made.append(by_output) or terms(c, by_output))
    for _ in range(3):
        hat = cpu.encode(x, constant)
        assert torch.equal(hat, cpu.encode(x, u))
        assert torch.equal(cpu.decode(hat, constant, 70, 90), cpu.decode(hat, u, 70, 90))
        assert torch.equal(cpu.encode(x.mT, constant.mT), cpu.encode(x.mT, u.mT))
    assert sorted(made) == [False] * (3 + 1) + [True] * (6 + 2)


def test_a_copy_of_constant_coefficients_has_addresses_of_its_own() -> None:
    """What is kept tells where numbers lie: a copy that took it over would read memory that is not there any more."""
    u, x = gaussian((5, 3, 2), torch.float32, 0), gaussian((64, 128), torch.float32, 0)
    plan = Plan(STRASSEN)
    plan.derived["u"] = constant = cpu.Constant(u)
    want = cpu.encode(x, constant)
    again = copy.deepcopy(plan).derived["u"]
    assert not again._terms
    assert torch.equal(cpu.encode(x, again), want)
    mine, other = (c.terms(True) for c in (constant, again))
    assert mine.whole.ctypes.data in mine.words
    assert mine.whole.ctypes.data not in other.words


def test_several_threads_at_once_and_the_same_bits_each_time() -> None:
    u = Plan(STRASSEN).coefficients("lhs", "fp32", "cpu")
    xs = [gaussian((300, 700), torch.float32, seed) for seed in range(4)]
    expected = [cpu.encode(x, u) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lambda i: cpu.encode(xs[i % 4], u), range(24)), expected * 6, strict=True):
            assert torch.equal(got, want)


def test_threads_share_rows_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    u = Plan(STRASSEN).coefficients("lhs", "fp32", "cpu")
    x = gaussian((3, 301, 260), torch.float32, 0)
    expected = cpu.encode(x, u)
    monkeypatch.setattr(cpu, "GRAIN", 1)
    for threads in (2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(cpu.encode(x, u), expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounding_is_torchs_own(dtype: str) -> None:
    """Every float32 pattern of a sample, NaN and infinities among them, is stored as torch stores it."""
    kind = torch_dtype(dtype)
    bits = torch.randint(-(2**31), 2**31, (64, 512), dtype=torch.int64, generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int32).view(torch.float32)
    x[0, :4] = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    x[1] = (x[1].to(kind).view(torch.int16)).view(kind).float()  # representable already
    one = torch.ones(1, 1, 1)
    got, want = cpu.encode(x, one, dtype=kind)[0], x.to(kind)
    assert torch.equal(got.isnan(), want.isnan())
    # Sums begin with 0, so that -0 becomes 0.
    assert torch.equal(got.nan_to_num(), (want + 0).nan_to_num())
    back = cpu.encode(want, one, dtype=torch.float32)[0]
    assert torch.equal(back.nan_to_num(), (want.float() + 0).nan_to_num())


def test_what_is_not_supported_is_said() -> None:
    assert cpu.supports(torch.float16, torch.float64)
    assert not cpu.supports(torch.float32, torch.complex64)
    assert not cpu.supports(torch.float8_e4m3fn)


def test_signs_that_torch_keeps_as_a_note_are_read() -> None:
    x = torch.complex(gaussian((9, 7), torch.float32, 0), gaussian((9, 7), torch.float32, 1)).conj().imag
    assert x.is_neg()
    u = gaussian((3, 2, 2), torch.float32, 2)
    for given_x, given_u in ((x, u), (x.mT, u.mT.contiguous())):
        torch.testing.assert_close(cpu.encode(given_x, given_u), reference.encode_naive(given_x, given_u))
