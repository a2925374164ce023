"""The torch forms of encode, product and decode: against explicit loops, each other, and their own adjoints."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product as pairs
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import score, transform
from stl_search.errors import UsageError
from stl_search.kernels import reference
from stl_search.kernels.plan import LAYOUTS, Plan, torch_dtype
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN

# <2,3,4>, rank 22: Strassen's on two of three inner indices and twice along the columns, the rest classical.
RECTANGULAR = transform.sum_k(transform.sum_n(STRASSEN, STRASSEN), transform.classical((2, 1, 4)))
SLOW = settings(deadline=None, max_examples=60)


def place(a: int, i: int, count: int, size: int, layout: str) -> int:
    """Where entry i of part a lies along an axis of ``size`` cut into ``count`` parts."""
    return a * -(-size // count) + i if layout == "block" else i * count + a


def encode_loops(x: np.ndarray[Any, Any], u: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    """The definition, entry by entry."""
    r, m, k = u.shape
    rows, cols = x.shape
    out = np.zeros((r, -(-rows // m), -(-cols // k)))
    for q, i, j in np.ndindex(out.shape):
        for a, b in np.ndindex(m, k):
            row, col = place(a, i, m, rows, layout), place(b, j, k, cols, layout)
            if row < rows and col < cols:
                out[q, i, j] += u[q, a, b] * x[row, col]
    return out


def decode_loops(p: np.ndarray[Any, Any], w: np.ndarray[Any, Any], rows: int, cols: int, layout: str) -> Any:
    """The definition, entry by entry."""
    out = np.zeros((rows, cols))
    r, m, n = w.shape
    for a, c, i, j in np.ndindex(m, n, *p.shape[1:]):
        row, col = place(a, i, m, rows, layout), place(c, j, n, cols, layout)
        if row < rows and col < cols:
            out[row, col] = sum(w[q, a, c] * p[q, i, j] for q in range(r))
    return out


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    """Small integers, with which float64 sums are exact in any order."""
    return rng.integers(-3, 4, shape).astype(np.float64)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes around the grid's: empty, smaller than it, even, ragged."""
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    size = draw(st.tuples(st.integers(0, 11), st.integers(0, 11)))
    rank, seed = draw(st.integers(0, 6)), draw(st.integers(0, 2**32 - 1))
    return {"grid": grid, "size": size, "rank": rank, "seed": seed, "layout": draw(st.sampled_from(LAYOUTS))}


@SLOW
@given(problems())
def test_encode_is_its_definition(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    x, u = integers(rng, *case["size"]), integers(rng, case["rank"], *case["grid"])
    expected = encode_loops(x, u, case["layout"])
    for form in (reference.encode, reference.encode_naive):
        found = form(torch.from_numpy(x), torch.from_numpy(u), case["layout"])
        np.testing.assert_array_equal(found.numpy(), expected)


@SLOW
@given(problems())
def test_decode_is_its_definition(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    (m, n), (rows, cols) = case["grid"], case["size"]
    p, w = integers(rng, case["rank"], -(-rows // m), -(-cols // n)), integers(rng, case["rank"], m, n)
    expected = decode_loops(p, w, rows, cols, case["layout"])
    for form in (reference.decode, reference.decode_naive):
        found = form(torch.from_numpy(p), torch.from_numpy(w), rows, cols, case["layout"])
        np.testing.assert_array_equal(found.numpy(), expected)


@SLOW
@given(problems(), st.sampled_from([(), (3,), (2, 1, 3), (0,)]), st.booleans(), st.booleans())
def test_encode_and_decode_are_adjoint(
    case: dict[str, Any], batch: tuple[int, ...], is_complex: bool, turned: bool
) -> None:
    rng = np.random.default_rng(case["seed"])

    def draw(*shape: int) -> torch.Tensor:
        x = torch.from_numpy(integers(rng, *shape))
        return torch.complex(x, torch.from_numpy(integers(rng, *shape))) if is_complex else x

    (m, k), (rows, cols), layout = case["grid"], case["size"], case["layout"]
    x = draw(*batch, cols, rows).mT if turned else draw(*batch, rows, cols)
    u, y = draw(case["rank"], m, k), draw(case["rank"], *batch, -(-rows // m), -(-cols // k))
    forward, backward = reference.encode(x, u, layout), reference.decode(y, u.conj(), rows, cols, layout)
    assert forward.is_contiguous()
    assert backward.shape == x.shape
    assert (forward * y.conj()).sum() == (x * backward.conj()).sum()
    torch.testing.assert_close(forward, reference.encode_naive(x, u, layout), rtol=0, atol=0)
    torch.testing.assert_close(backward, reference.decode_naive(y, u.conj(), rows, cols, layout), rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_coefficients_act_on_both_parts_of_complex_operands(layout: str) -> None:
    rng = np.random.default_rng(1)
    u = torch.from_numpy(integers(rng, 5, 2, 3))
    x = torch.complex(torch.from_numpy(integers(rng, 5, 7)), torch.from_numpy(integers(rng, 5, 7)))
    found = reference.encode(x.conj(), u, layout)
    assert torch.equal(found.real, reference.encode(x.real, u, layout))
    assert torch.equal(found.imag, -reference.encode(x.imag, u, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(5, 7), (6, 6), (1, 1), (2, 9)])
def test_nothing_beyond_the_operand_is_read_and_all_of_the_result_is_written(
    size: tuple[int, int], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        return empty(*args, **options).fill_(math.nan)

    frame = torch.full((size[0] + 4, size[1] + 6), math.nan)
    inside = frame[2:-2, 3:-3]
    inside.copy_(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    plan = Plan(RECTANGULAR, layout=layout)
    b = torch.randn((size[1], 5), generator=torch.Generator().manual_seed(1))
    clean = reference.multiply(inside.clone(), b, plan)
    monkeypatch.setattr(torch, "empty", poisoned)
    assert torch.empty(1).isnan().all()
    assert torch.equal(reference.multiply(inside, b, plan), clean)


# -- storage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_storage_rounds_as_the_error_model_says(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 40, 50)) * np.array([1.0, 1e-6, 300.0])[:, None, None]
    stored = reference.store(torch.from_numpy(x), dtype)
    assert stored.scale is None
    assert stored.data.dtype == torch_dtype(dtype)
    np.testing.assert_array_equal(reference.restore(stored, "fp64").numpy(), score.round_to(x, dtype))


def test_fp8_has_one_scale_a_slice() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(-20, 20, (5, 4)))
    x = rng.standard_normal((5, 4, 30, 40)) * sizes[:, :, None, None]
    stored = reference.store(torch.from_numpy(x), "fp8_e4m3")
    assert stored.data.dtype == torch.float8_e4m3fn
    assert stored.data.is_contiguous()
    assert stored.scale is not None
    assert stored.scale.shape == (5, 4, 1, 1)
    scaled = x * (448.0 / np.abs(x).max(axis=(2, 3), keepdims=True))
    np.testing.assert_array_equal(stored.data.to(torch.float64).numpy(), score.round_to(scaled, "fp8_e4m3"))
    back = reference.restore(stored, "fp64").numpy()
    assert np.abs(back).max() == pytest.approx(np.abs(x).max(), rel=1e-12)
    # 24000 entries: sampling moves the measured rounding by about 1/sqrt(24000) = .6%; the position of the 20 scales
    # in their binades, which the model averages over, by a few percent.
    relative = np.sqrt(np.mean((back - x) ** 2, axis=(2, 3)) / np.mean(x**2, axis=(2, 3))).mean()
    assert relative == pytest.approx(score.relative_rounding("fp8_e4m3"), rel=0.03)


def test_fp8_edge_cases_stay_what_they_are() -> None:
    x = torch.zeros(5, 2, 2)
    x[1, 0, 0], x[2, 0, 0], x[3, 0, 0] = math.nan, math.inf, 1e-45
    x[4] = torch.tensor([[448.0, -1.0], [0.0, 2.0]])
    back = reference.restore(reference.store(x, "fp8_e4m3"), "fp32")
    assert torch.equal(back[0], torch.zeros(2, 2))
    assert not back[1].isfinite()[0, 0]
    assert not back[2].isfinite()[0, 0]
    assert back[3].isfinite().all()
    assert torch.equal(back[4], x[4])
    assert reference.restore(reference.store(torch.zeros(3, 0, 2), "fp8_e4m3"), "fp32").shape == (3, 0, 2)


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3"])
def test_the_gradient_passes_rounding_untouched(dtype: str) -> None:
    x = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    y = reference.rounded(x, dtype, "fp32")
    assert not torch.equal(y, x)
    (y * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weights)


# -- product -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "right"), list(pairs([(), (1,), (4,), (2, 1), (2, 4), (0,)], repeat=2)))
def test_batches_of_products_broadcast_like_matmul(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(integers(rng, 3, *left, 2, 5)), torch.from_numpy(integers(rng, 3, *right, 5, 4))
    try:
        expected = torch.stack([torch.matmul(a[q], b[q]) for q in range(3)])
    except RuntimeError:
        with pytest.raises(ValueError, match="broadcast"):
            reference.product(a, b)
        return
    assert torch.equal(reference.product(a, b), expected)


# -- all together ------------------------------------------------------------------------------------------------------


@SLOW
@given(
    st.tuples(*[st.integers(0, 13)] * 3),
    st.sampled_from(
        [STRASSEN, RECTANGULAR, transform.permute_to(RECTANGULAR, (3, 4, 2)), transform.classical((1, 3, 2))]
    ),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**32 - 1),
)
def test_an_exact_scheme_multiplies_integers_exactly(
    sizes: tuple[int, int, int], scheme: Scheme, layout: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = integers(rng, sizes[0], sizes[1]), integers(rng, sizes[1], sizes[2])
    for dtype in ("fp32", "fp64"):
        plan = Plan(scheme, dtype, layout=layout)
        c = reference.multiply(*(torch.from_numpy(x).to(torch_dtype(dtype)) for x in (a, b)), plan)
        assert c.dtype == torch_dtype(dtype)
        np.testing.assert_array_equal(c.numpy(), a @ b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "product"), [("bf16", "fp32"), ("fp16", "fp32"), ("bf16", "bf16"), ("fp8_e4m3", "fp32"), ("fp32", "fp16")]
)
def test_only_what_is_stored_is_rounded(dtype: str, product: str, layout: str) -> None:
    """Against the same steps in float64: sums in fp32 differ by their own rounding, a sum in bf16 would differ by d."""
    rng = np.random.default_rng(0)
    rows, inner, cols = 37, 300, 29
    x = [rng.standard_normal((rows, inner)), rng.standard_normal((inner, cols))]
    a, b = (torch.from_numpy(y).to(torch.float32) for y in x)
    plan = Plan(RECTANGULAR, dtype, product, out="fp32", layout=layout)
    hats = [
        reference.restore(reference.store(reference.encode_operand(y, plan, side), dtype), "fp64")
        for y, side in ((a, "lhs"), (b, "rhs"))
    ]
    products = torch.from_numpy(score.round_to((hats[0] @ hats[1]).numpy(), product))
    w = torch.from_numpy(RECTANGULAR.w.astype(np.float64))
    expected = reference.decode_naive(products, w, rows, cols, layout)
    found = reference.multiply(a, b, plan).double()
    gap = float((found - expected).norm() / expected.norm())
    # fp32 sums: relative error below 1e-5. Where products are stored, one that lies near a rounding boundary may go
    # the other way: a few of a hundred of them, by one unit each.
    assert gap < (1e-5 if product == "fp32" else 0.2 * score.relative_rounding(product))


def test_wide_operands_are_encoded_wide_and_rounded_once() -> None:
    x = torch.tensor([[1.0, 2.0**-30]], dtype=torch.float64)  # 1 + 2^-30 needs more than fp32
    difference = Scheme((1, 2, 1), "Z", [[1, 1], [1, 0]], [[1, 0], [1, 0]], [[1], [-1]])
    plan = Plan(difference, "fp32", "fp64", out="fp64")
    hat = reference.encode_operand(x, plan, "lhs")
    assert hat.dtype == torch.float64
    assert float(hat[0, 0, 0]) == 1 + 2.0**-30
    assert float(reference.rounded(hat, "fp32", "fp64")[0, 0, 0]) == 1.0
    third = Plan(Scheme((1, 1, 1), "Q", [[Fraction(1, 3)]], [[3]], [[1]]))  # coefficients are as wide as the operand
    assert float(reference.encode_operand(torch.ones(1, 1, dtype=torch.float64), third, "lhs")) == 1 / 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_both_operands(layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    plan = Plan(RECTANGULAR, "fp64", layout=layout)
    a = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    b = torch.randn(5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: reference.multiply(x, y, plan), (a, b))
    assert torch.autograd.gradgradcheck(lambda x, y: reference.multiply(x, y, plan), (a, b))


def test_gradients_of_complex_operands_under_complex_coefficients() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = Scheme((2, 2, 2), "C", STRASSEN.u * 1j, STRASSEN.v * (2 - 1j), STRASSEN.w * (0.2 - 0.4j))
    plan = Plan(turned, "fp64", complex=True)
    a = torch.randn(3, 5, dtype=torch.complex128, generator=generator, requires_grad=True)
    b = torch.randn(5, 2, dtype=torch.complex128, generator=generator, requires_grad=True)
    torch.testing.assert_close(reference.multiply(a, b, plan), a @ b)
    assert torch.autograd.gradcheck(lambda x, y: reference.multiply(x, y, plan), (a, b))


def test_operands_that_do_not_go_together_are_refused() -> None:
    plan = Plan(STRASSEN)
    with pytest.raises(UsageError, match="3 != 4"):
        reference.multiply(torch.zeros(2, 3), torch.zeros(4, 2), plan)
    with pytest.raises(UsageError, match="B is complex"):
        reference.multiply(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.complex64), plan)
