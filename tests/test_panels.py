"""Products of panels: right for any shape, stride and number of threads, and nothing beyond C is written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search.kernels import cpu, panels, tiles
from stl_search.kernels.panels import Panels
from stl_search.kernels.plan import LAYOUTS

CAPABLE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # as torch sees the processor
KINDS = [torch.float32, torch.float64]
ACROSS = tiles.VECTORS * tiles.BYTES // 4  # columns of a panel in float32

pytestmark = pytest.mark.skipif(not CAPABLE, reason="this processor adds no products at once")


def whole(shape: tuple[int, ...], seed: int, kind: torch.dtype) -> torch.Tensor:
    """Whole numbers: sums of their products are exact."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(kind)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 7),
    st.sampled_from([0, 1, 3, 4, 5, 8, 13, 40]),
    st.sampled_from([0, 1, 2, 3, 4, 7, 33, 1030]),
    st.sampled_from([0, 1, 7, 8, 9, 12, 16, 17, 23, 24, 25, 47, 48, 49, 100]),
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(0, 2**30),
)
def test_whole_numbers_are_multiplied_exactly(
    r: int, rows: int, inner: int, cols: int, kind: torch.dtype, turned: bool, seed: int
) -> None:
    a, b = whole((r, rows, inner), seed, kind), whole((r, inner, cols), seed + 1, kind)
    made = Panels.of(b.mT.contiguous().mT if turned else b)
    assert torch.equal(made.unpacked(), b)
    assert made.nbytes == Panels.size((r, inner, cols), kind)
    room = torch.full((r, rows + 2, cols + 5), torch.nan, dtype=kind)
    inside = room[:, 1:-1, 2:-3]
    assert made.products(a.mT.contiguous().mT if turned else a, inside) is inside
    assert torch.equal(inside, a @ b)
    inside.fill_(torch.nan)
    assert room.isnan().all()  # the frame is as it was


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_any_number_of_threads_makes_the_same_sums(torch_threads: int, r: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(r)
    a = torch.randn(r, 2 * tiles.BLOCK + 37, 1500, generator=generator, dtype=torch.float64).to(kind)
    b = torch.randn(r, 1500, 75, generator=generator, dtype=torch.float64).to(kind)
    c = Panels.of(b).products(a)
    exact = a.double() @ b.double()
    bound = torch.finfo(kind).eps * a.shape[-1] * (a.double().abs() @ b.double().abs())
    assert ((c.double() - exact).abs() <= bound).all()
    torch.set_num_threads(1)
    assert torch.equal(Panels.of(b).products(a), c)


@pytest.mark.parametrize("kind", KINDS)
def test_panels_are_filled_some_rows_at_a_time_from_any_format(kind: torch.dtype) -> None:
    b = whole((3, 29, ACROSS + 3), 0, kind)
    memory = torch.full((Panels.size((3, 29, ACROSS + 3), kind) + 8,), 255, dtype=torch.uint8)
    made = Panels((3, 29, ACROSS + 3), kind, memory)
    for top in range(0, 29, 10):
        made.fill(b[:, top : top + 10].bfloat16(), top)
    assert torch.equal(made.data, Panels.of(b).data)
    assert (memory[-8:] == 255).all()
    assert len(made) == 3
    a = whole((3, 2, 5, 29), 1, kind)
    assert torch.equal(made.products(a), a @ b[:, None])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row_and_column(kind: torch.dtype) -> None:
    a, b = whole((1, 9, 6), 0, kind), whole((1, 6, ACROSS + 1), 1, kind)
    clean = a @ b
    a[0, 2, 3], b[0, 1, ACROSS] = torch.inf, torch.nan
    c = Panels.of(b).products(a)
    torch.testing.assert_close(c, a @ b, rtol=0, atol=0, equal_nan=True)
    others = torch.ones_like(c, dtype=torch.bool)
    others[0, 2], others[0, :, ACROSS] = False, False
    assert torch.equal(c[others], clean[others])


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 9 * ACROSS)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 6),
    st.sampled_from(
        [  # operand, sums, panels
            (torch.float32,) * 3,
            (torch.float64,) * 3,
            (torch.bfloat16, torch.float32, torch.float32),
            (torch.float64, torch.float64, torch.float32),
        ]
    ),
    st.sampled_from(LAYOUTS),
    st.tuples(*[st.sampled_from([0, 0, 1, 2, 5])] * 2),
    st.booleans(),
    st.sampled_from([False, False, True]),
    st.integers(0, 2**30),
)
def test_encoding_into_panels_is_filling_them_with_what_is_encoded(
    sizes: tuple[int, int],
    grid: tuple[int, int],
    r: int,
    kinds: tuple[torch.dtype, torch.dtype, torch.dtype],
    layout: str,
    corner: tuple[int, int],
    dense: bool,
    spread: bool,
    seed: int,
) -> None:
    """Any window, layout, stride and format; zeros beyond the last column, and nothing written between matrices."""
    given_in, sums, kind = kinds
    x = whole((sizes[0] + 2, sizes[1] + 3), seed, torch.float64).to(given_in)[1:-1, 2:-1]
    x = x.repeat_interleave(2, 1)[:, ::2] if spread else x
    u = whole((r, *grid), seed + 1, sums)
    u = torch.where(u == 0, 1, u) if dense else u
    top, left = corner
    rows, cols = (-(-size // part) - start for size, part, start in zip(sizes, grid, corner, strict=True))
    if min(rows, cols) <= 0:
        return
    memory = torch.full((Panels.size((r, rows, cols), kind),), 255, dtype=torch.uint8)
    made = Panels((r, rows, cols), kind, memory)
    cpu.encode_panels(x, u, layout, made.data, top, left)
    hat = cpu.encode(x, u, layout, kind)[:, top:, left:]
    assert torch.equal(made.data, Panels.of(hat).data)
    assert (memory.view(r, -1)[:, -tiles.LINE :] == 255).all()


def test_what_is_taken() -> None:
    assert all(panels.supports(kind) for kind in KINDS)
    assert not any(panels.supports(kind) for kind in (torch.float16, torch.bfloat16, torch.complex64, torch.int64))
