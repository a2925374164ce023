"""amm: the error is the one predicted; every size, stride, dtype, batch and kind; gradients; operands encoded ahead."""

from __future__ import annotations

import dataclasses
import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stl_search as stl
from stl_search import score, transform
from stl_search.catalog import store
from stl_search.catalog.record import read_file
from stl_search.errors import StlError
from stl_search.kernels.plan import LAYOUTS, Plan, torch_dtype
from stl_search.runtime import amm as amm_module
from stl_search.runtime.amm import amm, encode_lhs, encode_rhs, relative_error
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN

RECTANGULAR = transform.sum_k(transform.sum_n(STRASSEN, STRASSEN), transform.classical((2, 1, 4)))  # <2,3,4>, rank 22
MODULO_2 = Scheme((2, 2, 2), "Z2", *(f % 2 for f in STRASSEN.factors))
TURNED = Scheme((2, 2, 2), "C", STRASSEN.u * 1j, STRASSEN.v * -1j, STRASSEN.w)
SLOW = settings(deadline=None, max_examples=100)


def squared(scheme: Scheme) -> Scheme:
    """Two levels in one scheme, by numpy: the outer level acts on blocks, the inner one inside them."""
    factors = []
    for f in scheme.factors:
        r, rows, cols = f.shape
        factors.append(np.einsum("pab,qcd->pqacbd", f, f).reshape(r * r, rows * rows, cols * cols))
    return Scheme([side**2 for side in scheme.shape], "ZT", *factors)


def truncated(scheme: Scheme, rank: int) -> Scheme:
    """The first terms alone."""
    return Scheme(scheme.shape, "R", *(f[:rank] for f in scheme.as_float()))


def perturbed(scheme: Scheme, size: float) -> Scheme:
    """Gaussian noise on every coefficient."""
    rng = np.random.default_rng(0)
    return Scheme(scheme.shape, "R", *(f + size * rng.standard_normal(f.shape) for f in scheme.as_float()))


EXACT = {
    "strassen": STRASSEN,
    "strassen squared": squared(STRASSEN),
    "<2,2,3> 11": transform.sum_n(STRASSEN, transform.classical((2, 2, 1))),
    "<2,3,4> 22": RECTANGULAR,
    "<4,2,3> 22": transform.permute_to(RECTANGULAR, (4, 2, 3)),
}
APPROXIMATE = {
    "9 of <2,3,4>": truncated(transform.classical((2, 3, 4)), 9),
    "6 of strassen": truncated(STRASSEN, 6),
    "40 of strassen squared": truncated(squared(STRASSEN), 40),
    "strassen + .3": perturbed(STRASSEN, 0.3),
    "strassen + .01": perturbed(STRASSEN, 1e-2),
    "strassen + .001": perturbed(STRASSEN, 1e-3),
    "strassen + .0003": perturbed(STRASSEN, 3e-4),
}
SHIPPED = [entry for entry in store.entries([store.shipped_dir()]) if entry.ring != "Z2"]
COMPOSED = [entry for entry in SHIPPED if entry.path.parent.name == "compositions"]
SHIPPED = [entry for entry in SHIPPED if entry not in COMPOSED or entry in COMPOSED[::10]]  # big ones: a few do
NOISE = 10.0  # predicted error in fp8 above which a result is noise, of terms made for fp32 that nearly cancel


def shipped_or_made() -> list[Any]:
    """Every scheme on which agreement is asked: made here and shipped."""
    made = [pytest.param(scheme, id=name) for name, scheme in (EXACT | APPROXIMATE).items()]
    return made + [pytest.param(entry, id=entry.path.stem) for entry in SHIPPED]


def scheme_of(what: Any) -> Scheme:
    return what if isinstance(what, Scheme) else shipped(what.path)


@cache
def shipped(path: Path) -> Scheme:
    """As its file says; tests/test_store.py proves it."""
    return store.load(str(path)) if path.parent.name == "compositions" else Scheme.from_json(read_file(path))


def gaussian(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Independent standard normal entries (complex ones have variance 1 too), rounded to the dtype."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -- the error is the one predicted ------------------------------------------------------------------------------------


def test_the_shipped_catalog_is_not_empty() -> None:
    """Else the test below would check nothing of it."""
    assert SHIPPED


def measured(scheme: Scheme, plan: Plan, size: int = 240, trials: int = 2) -> tuple[float, float]:
    """(root mean square relative error over some Gaussian products, largest |A| |B| / |C| among them).

    Sizes are multiples of the tile. At 240 one trial deviates by .5% to 1%, two by .35% to .7%.
    """
    m, k, n = (-(-size // side) * side for side in scheme.shape)
    storage = "bf16" if plan.dtype == "fp8_e4m3" else plan.dtype
    total, ratio = 0.0, 0.0
    for seed in range(trials):
        a, b, exact, norm, larger = operands((m, k, n), torch_dtype(storage, plan.complex), seed)
        total += float((amm(a, b, plan).to(exact.dtype) - exact).norm() / norm) ** 2
        ratio = max(ratio, larger)
    return math.sqrt(total / trials), ratio


@cache
def operands(
    shape: tuple[int, int, int], dtype: torch.dtype, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, float]:
    """Gaussian A and B, A B in double precision, its norm, and |A| |B| / |A B|."""
    m, k, n = shape
    a, b = gaussian((m, k), dtype, 2 * seed), gaussian((k, n), dtype, 2 * seed + 1)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = a.to(wide) @ b.to(wide)
    norm = float(exact.norm())
    return a, b, exact, norm, float(a.to(wide).norm() * b.to(wide).norm()) / norm


@pytest.mark.parametrize("what", shipped_or_made())
def test_measured_error_agrees_with_the_prediction(what: Any) -> None:
    scheme = scheme_of(what)
    is_complex = scheme.ring.name == "C"  # which have no narrower precisions
    wrong = {}
    for dtype in ("fp32", "fp64") if is_complex else ("fp8_e4m3", "bf16", "fp16", "fp32", "fp64"):
        plan = Plan(scheme, dtype, complex=is_complex)
        found, ratio = measured(scheme, plan, trials=2 if plan.error_dominates else 1)
        low, high = bounds(plan, ratio)
        if not low < found < high:
            wrong[dtype] = (found, low, high, plan.predicted_error)
    assert not wrong


def bounds(plan: Plan, ratio: float) -> tuple[float, float]:
    """Between which the measured error lies; ``ratio`` is |A| |B| / |C|."""
    if plan.error_dominates:
        return 0.97 * plan.predicted_error, 1.03 * plan.predicted_error
    if plan.dtype == "fp8_e4m3" and plan.predicted_error > NOISE:
        # Slices that are nearly multiples of each other round alike, and much of it cancels: no more than predicted.
        return 1.0, 1.15 * plan.predicted_error
    if plan.dtype in ("fp8_e4m3", "bf16", "fp16"):
        return 0.8 * plan.predicted_error, 1.15 * plan.predicted_error
    if plan.complex:
        return 0.0, math.inf  # no bound is known
    # Accumulation dominates: the a-priori bound holds for rounding, beside what the scheme misses (3% as above).
    rational = transform.to_ring(plan.scheme, "Q")
    inner = -(-240 // plan.scheme.shape[1]) * plan.scheme.shape[1]
    bound = score.apriori_bound(rational, inner, plan.compute).frobenius * ratio
    return 0.0, 1.03 * math.sqrt(plan.expected_error) + bound


@pytest.mark.parametrize("what", [pytest.param(scheme, id=name) for name, scheme in EXACT.items()])
@pytest.mark.parametrize("options", [{"product": "bf16"}, {"product": "fp16", "out": "fp32"}, {"out": "fp32"}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_stored_products_and_output_count_as_predicted(what: Scheme, options: dict[str, str], layout: str) -> None:
    plan = Plan(what, "bf16", layout=layout, **options)
    found, _ = measured(what, plan)
    assert 0.8 <= found / plan.predicted_error <= 1.15


def exact_schemes() -> list[Any]:
    made = [pytest.param(scheme, id=name) for name, scheme in EXACT.items()]
    return made + [pytest.param(e, id=e.path.stem) for e in SHIPPED if e.exact and e.ring != "C"]


@pytest.mark.parametrize("what", exact_schemes())
def test_exact_schemes_agree_with_numpy_and_obey_the_apriori_bound(what: Any) -> None:
    scheme = scheme_of(what)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((101, 203)), rng.standard_normal((203, 97))
    exact = a @ b
    for dtype, kind in (("fp64", np.float64), ("fp32", np.float32)):
        x, y = a.astype(kind), b.astype(kind)
        gap = np.asarray(amm(x, y, scheme), dtype=np.float64) - x.astype(np.float64) @ y.astype(np.float64)
        bound = Plan(scheme, dtype).apriori(203)
        assert np.linalg.norm(gap) <= bound.frobenius * np.linalg.norm(a) * np.linalg.norm(b)
        assert np.abs(gap).max() <= bound.maximum * np.abs(a).max() * np.abs(b).max()
    assert np.linalg.norm(amm(a, b, scheme) - exact) <= 1e-12 * np.linalg.norm(exact)


# -- every size, stride, dtype, batch, kind ----------------------------------------------------------------------------

SIDE = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 11, 13, 17])
LONG_SIDE = st.sampled_from([997, 1024, 4099])
SIZES = st.one_of(  # small ones, and products of one huge side and two small ones
    st.tuples(SIDE, SIDE, SIDE),
    st.tuples(st.permutations([0, 1, 2]), st.tuples(LONG_SIDE, SIDE, SIDE)).map(
        lambda drawn: tuple(drawn[1][i] for i in drawn[0])
    ),
)
BATCHES = st.sampled_from(
    [
        *(((), ()), ((3,), ()), ((), (2,)), ((3,), (3,)), ((2, 1), (3,)), ((1,), (4,)), ((0,), ()), ((2, 0), (1,))),
        *(((2, 1, 3), (2, 1)), ((2,), (1, 3, 1, 1)), ((1, 1, 1, 2), ())),
    ]
)
DTYPES = {"bf16": False, "fp16": True, "fp32": True, "fp64": True}  # and whether numpy has them


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from(list(DTYPES)))
    kind = draw(st.sampled_from(["torch", "numpy"] if DTYPES[dtype] else ["torch"]))
    left, right = draw(BATCHES)
    sizes = draw(SIZES)
    a, b = (*left, sizes[0], sizes[1]), (*right, sizes[1], sizes[2])
    if draw(st.booleans()):
        vector = draw(st.sampled_from(["left", "right", "both"]))
        a, b = (a if vector == "right" else (sizes[1],)), (b if vector == "left" else (sizes[1],))
    strides = draw(st.tuples(*[st.sampled_from(["plain", "turned", "strided", "reversed", "broadcast"])] * 2))
    scheme = draw(st.sampled_from(list(EXACT)))
    return {
        "dtype": dtype,
        "kind": kind,
        "shapes": (a, b),
        "strides": strides,
        "scheme": scheme,
        "open": draw(st.integers(0, 3)) == 0,
        "layout": draw(st.sampled_from(LAYOUTS)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def laid_out(x: np.ndarray[Any, Any], stride: str, kind: str) -> np.ndarray[Any, Any]:
    """The same numbers, otherwise placed in memory."""
    if x.ndim == 0 or stride == "plain":
        return x
    if stride == "turned" and x.ndim > 1:
        return np.ascontiguousarray(np.swapaxes(x, -1, -2)).swapaxes(-1, -2)
    if stride == "reversed" and kind == "numpy":  # torch has no negative strides
        return np.ascontiguousarray(np.flip(x, -1))[..., ::-1]
    if stride == "broadcast":
        return np.broadcast_to(x[..., :1], x.shape)  # other numbers, stride 0
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


@SLOW
@given(calls())
def test_any_operands_multiply_as_matmul_does(case: dict[str, Any]) -> None:
    """Against the product in float64, within the a-priori bound; entries are eighths, so that nothing underflows."""
    rng = np.random.default_rng(case["seed"])
    a, b = (
        laid_out(rng.integers(-16, 17, shape) / 8, stride, case["kind"])
        for shape, stride in zip(case["shapes"], case["strides"], strict=True)
    )
    expected = np.matmul(a, b)
    plan = Plan(EXACT[case["scheme"]], case["dtype"], layout=case["layout"])
    encoder = None if case["open"] else plan  # dense at such sizes, and more accurate
    if case["kind"] == "numpy":
        given_a, given_b = (
            x.astype({"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[case["dtype"]], order="K")
            for x in (a, b)
        )
        c = amm(given_a, given_b, encoder)
        assert type(c) is type(np.matmul(given_a, given_b))
        assert c.dtype == given_a.dtype
        found = np.asarray(c, dtype=np.float64)
    else:
        dtype = torch_dtype(case["dtype"])
        given_a, given_b = (torch.from_numpy(x.copy(order="K")).to(dtype) for x in (a, b))
        c = amm(given_a, given_b, encoder)
        assert c.dtype == dtype
        found = c.double().numpy()
    assert found.shape == expected.shape
    bound = plan.apriori(max(1, a.shape[-1])).frobenius * np.linalg.norm(a) * np.linalg.norm(b)
    # The bound is for one product; over broadcast batches |A| |B| still bounds the root of the sum of squares.
    assert np.linalg.norm(found - expected) <= bound


@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
@pytest.mark.parametrize("scheme", [STRASSEN, RECTANGULAR, TURNED], ids=["strassen", "<2,3,4>", "over C"])
def test_complex_operands_with_real_and_complex_schemes(scheme: Scheme, kind: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = (
        (rng.integers(-8, 9, s) + 1j * rng.integers(-8, 9, s)).astype(kind) for s in ((3, 1, 7, 5), (2, 5, 9))
    )  # Gaussian integers: exact in either precision
    np.testing.assert_array_equal(amm(a, b, scheme), a @ b)
    # Conjugated and transposed lazily, as torch keeps them.
    c = amm(torch.from_numpy(b).mH, torch.from_numpy(a[0]).mH, scheme)
    np.testing.assert_array_equal(c.numpy(), (b.conj().mT @ a[0].conj().mT))


class Named(np.ndarray[Any, Any]):
    """A subclass, as libraries make them."""


def test_numpy_arrays_that_torch_cannot_hold_are_multiplied_all_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 9, (7, 6)).astype(np.float64), rng.integers(-8, 9, (6, 5)).astype(np.float64)
    frozen = a.copy()
    frozen.flags.writeable = False
    record = np.zeros((7, 6), dtype=[("flag", "i1"), ("value", "f8")])
    record["value"] = a
    np.save(tmp_path / "a.npy", a)
    for x in (
        frozen,
        a.astype(">f8"),
        record["value"],
        np.load(tmp_path / "a.npy", mmap_mode="r"),
        a[::-1, ::-1].copy()[::-1, ::-1],
        np.asfortranarray(a),
        a.view(Named),
    ):
        c = amm(x, b, RECTANGULAR)
        assert type(c) is np.ndarray
        np.testing.assert_array_equal(c, a @ b)
    assert not frozen.flags.writeable
    # Aligned, and yet at a stride that is no multiple of the size of an entry.
    turns = np.zeros((7, 6), dtype=[("flag", "f8"), ("value", "c16")])
    turns["value"] = 1j * a
    assert turns["value"].flags.aligned
    np.testing.assert_array_equal(amm(turns["value"], b * 1j, RECTANGULAR), -(a @ b))


def test_operands_and_global_settings_are_left_as_they_were() -> None:
    a, b = gaussian((9, 7), torch.float32, 0), gaussian((7, 5), torch.float32, 1)
    before = (a.clone(), b.clone())

    def settings_now() -> tuple[Any, ...]:
        return (
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.enabled,
            np.geterr(),
            tuple(str(f) for f in warnings.filters),
        )

    now = settings_now()
    for encoder in (STRASSEN, Plan(STRASSEN, "fp8_e4m3"), "catalog:best"):
        first, second = amm(a, b, encoder), amm(a, b, encoder)
        assert torch.equal(first, second)
        amm(a.numpy(), b.numpy(), encoder)
    assert settings_now() == now
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_the_output_has_the_precision_asked_for() -> None:
    a, b = gaussian((40, 30), torch.bfloat16, 0), gaussian((30, 20), torch.bfloat16, 1)
    wide = amm(a, b, STRASSEN, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(amm(a, b, STRASSEN), wide.to(torch.bfloat16))
    assert torch.equal(amm(a, b, STRASSEN, out_dtype="fp32"), wide)
    assert amm(a, b, out_dtype="float64").dtype == torch.float64
    x, y = a.double().numpy(), b.double().numpy()
    assert amm(x, y, STRASSEN, out_dtype=np.float16).dtype == np.float16
    assert amm(x, y, out_dtype="fp32").dtype == np.float32
    assert amm(x, y, Plan(STRASSEN, "fp8_e4m3")).dtype == np.float32
    assert amm(x * 1j, y * 1j, STRASSEN, out_dtype="fp32").dtype == np.complex64
    dense = amm(a, b, out_dtype=torch.float32)  # small: dense; as accurate as its output
    assert relative_error(dense.double(), a.double(), b.double()) < 1e-6


def test_dense_products_of_numpy_arrays_are_numpys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 20, 30)), rng.standard_normal((30, 10))
    np.testing.assert_array_equal(amm(a, b), a @ b)
    halves = amm(a.astype(np.float16), b.astype(np.float16))
    assert halves.dtype == np.float16
    assert relative_error(halves, a.astype(np.float16), b.astype(np.float16)) < 1e-3
    a[0, 0, 0], a[0, 0, 1] = np.inf, np.nan  # numpy alone would warn of these
    assert np.isnan(amm(a, b)[0, 0]).all()
    assert np.isinf(amm(np.full((2, 2), 1e5), np.eye(2), out_dtype=np.float16)[0, 0])


def test_any_torch_device_will_do() -> None:
    """The meta device holds no numbers, but goes through every step."""
    a, b = torch.empty(3, 5, 7, device="meta"), torch.empty(7, 9, device="meta")
    for c in (amm(a, b, RECTANGULAR), amm(a, encode_rhs(b, RECTANGULAR)), amm(a, b)):
        assert c.device.type == "meta"
        assert c.shape == (3, 5, 9)


# -- NaN and infinity --------------------------------------------------------------------------------------------------


@SLOW
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["bf16", "fp16", "fp32", "fp64", "fp8_e4m3"]),
    st.sampled_from(LAYOUTS),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.booleans(),
)
def test_what_is_not_finite_in_the_product_is_not_finite_in_amm(
    seed: int, dtype: str, layout: str, value: float, on_left: bool
) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 9, 3)
    kind = torch_dtype("bf16" if dtype == "fp8_e4m3" else dtype)
    a, b = (
        torch.from_numpy(rng.standard_normal((m, k))).to(kind),
        torch.from_numpy(rng.standard_normal((k, n))).to(kind),
    )
    poisoned = a if on_left else b
    poisoned[rng.integers(poisoned.shape[0]), rng.integers(poisoned.shape[1])] = value
    c = amm(a, b, Plan(RECTANGULAR, dtype, layout=layout))
    assert not (c.isfinite() & ~(a.double() @ b.double()).isfinite()).any()


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"), [((5, 7), (7, 3)), ((2, 3, 5), (5, 4)), ((2, 1, 3, 2), (3, 2, 4)), ((4,), (4, 3)), ((4,), (4,))]
)
def test_gradients_reach_both_operands(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = (gaussian(s, torch.float64, i).requires_grad_() for i, s in enumerate((left, right)))
    assert torch.autograd.gradcheck(lambda x, y: amm(x, y, RECTANGULAR), (a, b))
    assert torch.autograd.gradcheck(lambda x, y: amm(x, y), (a, b))  # dense


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3"])
def test_gradients_in_low_precision_are_those_of_the_product(dtype: str) -> None:
    """The gradient of sum(W * A B) is W B^T; the scheme multiplies with B as rounded in storage."""
    kind = torch.bfloat16 if dtype == "fp8_e4m3" else torch_dtype(dtype)
    a, b, weights = (gaussian(s, kind, i) for i, s in enumerate([(64, 48), (48, 32), (64, 32)]))
    a.requires_grad_()
    b.requires_grad_()
    plan = Plan(STRASSEN, dtype, out="bf16" if dtype == "fp8_e4m3" else "")
    (amm(a, b, plan) * weights).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.dtype == kind
    # One operand of each gradient was rounded instead of two, and the result once, to the operands' dtype.
    for got, x, y in ((a.grad, weights, b.detach().mT), (b.grad, a.detach().mT, weights)):
        assert relative_error(got, x, y) < 1.15 * plan.predicted_error


def test_gradients_survive_an_earlier_call_in_inference_mode() -> None:
    scheme = Scheme.from_json(STRASSEN.to_json())
    a, b = gaussian((5, 6), torch.float64, 0), gaussian((6, 7), torch.float64, 1)
    with torch.inference_mode():
        amm(a, b, scheme)
        encoded = encode_rhs(b, scheme)
    a.requires_grad_()
    amm(a, b, scheme).sum().backward()
    first = a.grad
    a.grad = None
    amm(a, encoded).sum().backward()
    assert first is not None
    assert a.grad is not None
    torch.testing.assert_close(a.grad, first)


def test_autocast_does_not_reach_inside() -> None:
    a, b = gaussian((64, 64), torch.float32, 0), gaussian((64, 64), torch.float32, 1)
    for encoder in (STRASSEN, "catalog:best"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            c = amm(a, b, encoder)
            encoded = encode_rhs(b, STRASSEN)
            assert relative_error(amm(a, encoded), a, b) < 1e-6
        assert c.dtype == torch.float32
        assert relative_error(c, a, b) < 1e-6


# -- operands encoded ahead --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64", "fp8_e4m3"])
def test_an_encoded_operand_gives_the_same_product(dtype: str, layout: str) -> None:
    kind = torch.float32 if dtype == "fp8_e4m3" else torch_dtype(dtype)
    plan = Plan(RECTANGULAR, dtype, layout=layout)
    a, b = gaussian((2, 5, 7), kind, 0), gaussian((7, 9), kind, 1)
    expected = amm(a, b, plan)
    left, right = encode_lhs(a, plan), encode_rhs(b, plan)
    for x, y in ((a, right), (left, b), (left, right)):
        assert torch.equal(amm(x, y), expected)
        assert torch.equal(amm(x, y, plan), expected)
        assert torch.equal(amm(x, y, out_dtype=torch.float64), amm(a, b, plan, out_dtype=torch.float64))
    assert torch.equal(amm(a[0, 0], right), amm(a[0, 0], b, plan))
    assert torch.equal(amm(left, b[:, 0]), amm(a, b[:, 0], plan))
    assert (left.shape, right.shape) == ((2, 5, 7), (7, 9))
    assert left.stored.data.shape == (22, 2, 3, 3)
    assert left.stored.data.dtype == torch_dtype(dtype)
    assert left.stored.data.is_contiguous()
    scales = 4 * 22 * 2 if dtype == "fp8_e4m3" else 0
    assert left.nbytes == 22 * 2 * 3 * 3 * torch_dtype(dtype).itemsize + scales
    with pytest.raises(dataclasses.FrozenInstanceError):
        left.shape = (1, 1)  # type: ignore[misc]


def test_encoded_numpy_operands_give_numpy_arrays() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-8, 9, (5, 7)).astype(np.float32), rng.integers(-8, 9, (7, 9)).astype(np.float32)
    c = amm(a, encode_rhs(b, RECTANGULAR))
    assert type(c) is np.ndarray
    np.testing.assert_array_equal(c, a @ b)


def test_gradients_flow_past_an_encoded_partner() -> None:
    a, b = gaussian((5, 7), torch.float64, 0).requires_grad_(), gaussian((7, 3), torch.float64, 1)
    encoded = encode_rhs(b, RECTANGULAR)
    assert torch.autograd.gradcheck(lambda x: amm(x, encoded), (a,))


# -- refusals ----------------------------------------------------------------------------------------------------------

A, B = torch.zeros(3, 4), torch.zeros(4, 5)
PLAN = Plan(STRASSEN)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: amm(A, B.numpy(), STRASSEN), "A is a torch tensor and B a numpy array"),
        (lambda: amm([[1.0]], B, STRASSEN), "A is a list: amm multiplies torch tensors and numpy arrays"),
        (lambda: amm(A, B.double(), STRASSEN), "A is float32 and B float64"),
        (lambda: amm(A, B.to(torch.complex64), STRASSEN), "A is float32 and B complex64"),
        (lambda: amm(A.int(), B.int(), STRASSEN), "A is int32: amm multiplies float16, bfloat16"),
        (lambda: amm(A.numpy(), B.bool().numpy(), STRASSEN), "B is bool: amm multiplies float16, float32"),
        (lambda: amm(A.numpy().astype(np.longdouble), B.numpy(), STRASSEN), "A is .*: amm multiplies"),
        (lambda: amm(A.to(torch.float8_e4m3fn), B.to(torch.float8_e4m3fn), STRASSEN), "A is float8_e4m3fn"),
        (lambda: amm(A.to_sparse(), B, STRASSEN), r"A is a sparse tensor.*A\.to_dense"),
        (lambda: amm(np.ma.masked_array(A.numpy()), B.numpy(), STRASSEN), "A is a masked array"),
        (lambda: amm(A, A, STRASSEN), r"A \(3, 4\) and B \(3, 4\) do not multiply: inner sizes 4 and 3"),
        (lambda: amm(A, A), "inner sizes 4 and 3"),
        (lambda: amm(A[0], A, STRASSEN), "inner sizes 4 and 3"),
        (lambda: amm(A, torch.tensor(2.0), STRASSEN), "B is a scalar"),
        (lambda: amm(np.zeros(()), np.zeros(3), STRASSEN), "A is a scalar"),
        (lambda: amm(torch.zeros(2, 3, 4), torch.zeros(3, 4, 5), STRASSEN), "batches do not broadcast"),
        (lambda: amm(A, B.to("meta"), STRASSEN), "A is on cpu and B on meta"),
        (lambda: amm(A, B, Plan(STRASSEN, device="cuda")), "plan is for cuda, the operands are on cpu"),
        (lambda: amm(A, B, Plan(STRASSEN, complex=True)), "plan is for complex operands"),
        (lambda: amm(A, B, MODULO_2), "modulo 2 only"),
        (lambda: amm(A, B, TURNED), "complex operands only"),
        (lambda: amm(A, B, STRASSEN, out_dtype=torch.int32), "int32"),
        (lambda: amm(A, B, STRASSEN, out_dtype=torch.complex64), "operands are real"),
        (lambda: amm(A, B, STRASSEN, out_dtype="fp8_e4m3"), "output cannot be fp8"),
        (lambda: amm(A, B, out_dtype="fp8_e4m3"), "output cannot be fp8"),
        (lambda: amm(A.numpy(), B.numpy(), STRASSEN, out_dtype="bf16"), "numpy has no bf16"),
        (lambda: amm(A.numpy(), B.numpy(), Plan(STRASSEN, "bf16")), "numpy has no bf16"),
        (lambda: amm(A, B, STRASSEN, backend="cudnn"), "unknown backend 'cudnn'; known: auto, reference"),
        (lambda: amm(A, B, STRASSEN, rtol=0.1), "encoder names one"),
        (lambda: amm(A, B, STRASSEN, speedup=2), "encoder names one"),
        (lambda: amm(A, B, rtol=-1), "rtol is -1, must be a positive number"),
        (lambda: amm(A, B, speedup="fast"), "speedup is 'fast'"),
        (lambda: amm(A, B, "no/such/file.json"), "no file"),
        (lambda: amm(A, B, "catalog:worst?rank=3"), "catalog"),
        (lambda: amm(A, B, 7), "selector, a path or a Scheme, not int"),
        (lambda: encode_rhs(B, "catalog:best"), "open selector cannot encode B"),
        (lambda: encode_rhs(B[0], STRASSEN), "B has 1 dimensions"),
        (lambda: encode_lhs(encode_lhs(A, STRASSEN), STRASSEN), "A is encoded already"),
        (lambda: encode_rhs(B.clone().requires_grad_(), STRASSEN), r"B requires a gradient.*B\.detach\(\)"),
        (lambda: encode_rhs(B.numpy(), Plan(STRASSEN, "bf16")), "numpy has no bf16"),
        (lambda: amm(encode_rhs(B, STRASSEN), B), "A was made by encode_rhs: on this side encode_lhs"),
        (lambda: amm(A, encode_lhs(A, STRASSEN)), "B was made by encode_lhs"),
        (lambda: amm(A, encode_rhs(A, STRASSEN)), "inner sizes 4 and 3"),
        (lambda: amm(A.double(), encode_rhs(B, STRASSEN)), "A is float64 and B float32"),
        (lambda: amm(A.numpy(), encode_rhs(B, STRASSEN)), "A is a numpy array and B a torch tensor"),
        (lambda: amm(encode_lhs(A, STRASSEN), encode_rhs(B, RECTANGULAR)), "encode both by one plan"),
        (lambda: amm(encode_lhs(A, PLAN), encode_rhs(B, Plan(STRASSEN, layout="tile"))), "encode both by one plan"),
        (lambda: amm(A, encode_rhs(B, STRASSEN), RECTANGULAR), "encoder names another"),
        (lambda: amm(A, encode_rhs(B, STRASSEN), Plan(STRASSEN, "fp16")), "encoder names another"),
        (lambda: amm(A, encode_rhs(B, STRASSEN), "catalog:best?shape=2,2,2"), "encoder names another"),
        (lambda: amm(A, encode_rhs(B, STRASSEN), rtol=0.1), "rtol and speedup"),
        (lambda: relative_error(A, A, B), r"C has shape \(3, 4\), A B has \(3, 5\)"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(call: Any, complaint: str) -> None:
    with pytest.raises(StlError, match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_same_encoder_beside_an_encoded_operand_is_fine() -> None:
    c = amm(A, encode_rhs(B, PLAN), STRASSEN)
    assert torch.equal(c, torch.zeros(3, 5))
    assert torch.equal(amm(A, encode_rhs(B, STRASSEN), None), c)


def test_operands_that_require_gradients_are_encoded_where_no_gradient_is_asked_for() -> None:
    weight = torch.nn.Parameter(gaussian((4, 5), torch.float32, 0))
    with torch.no_grad():
        encoded = encode_rhs(weight, STRASSEN)
    assert not encoded.stored.data.requires_grad
    assert relative_error(amm(A + 1, encoded), A + 1, weight) < 1e-6


# -- the measure -------------------------------------------------------------------------------------------------------


def test_relative_error_is_measured_in_float64() -> None:
    a, b = gaussian((30, 40), torch.float32, 0), gaussian((40, 20), torch.float32, 1)
    exact = a.double() @ b.double()
    assert relative_error((1.25 * exact).float(), a, b) == pytest.approx(0.25, rel=1e-6)
    assert 0 < relative_error(a @ b, a, b) < 1e-6
    assert relative_error(exact.numpy(), a.double().numpy(), b.double().numpy()) < 1e-15
    assert relative_error(torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(3, 2)) == 0.0
    assert relative_error(torch.ones(2, 2), torch.zeros(2, 3), torch.zeros(3, 2)) == math.inf
    assert relative_error(torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(3, 2)) == 0.0


def test_the_package_offers_it() -> None:
    assert stl.amm is amm
    assert stl.encode_lhs is encode_lhs
    assert stl.encode_rhs is encode_rhs


def test_repeated_plain_calls_take_the_short_way_and_stay_right() -> None:
    """The second call of a shape is answered without reading operands again: same result, gradients, kinds, NaN."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        a, b = gaussian((24, 20), dtype, 0), gaussian((20, 28), dtype, 1)
        first = amm(a, b)
        assert torch.equal(amm(a, b), first)
        assert amm(a, b).dtype == dtype
        weight = a.clone().requires_grad_()
        amm(weight, b).sum().backward()
        assert weight.grad is not None
    x, y = gaussian((24, 20), torch.float32, 0).numpy(), gaussian((20, 28), torch.float32, 1).numpy()
    x[0, 0] = np.inf
    for _ in range(2):
        assert np.isinf(amm(x, y)[0]).any()
    with pytest.raises(StlError, match="A is a torch tensor and B a numpy array"):
        amm(torch.from_numpy(x), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert amm(gaussian((24, 20), torch.float32, 0), gaussian((20, 28), torch.float32, 1)).dtype == torch.float32
    with pytest.raises(StlError, match="sparse"):
        amm(a.float().to_sparse(), b.float())


@pytest.mark.parametrize("kind", ["tensors", "arrays", "parameters"])
@pytest.mark.parametrize(
    "asked",
    [{}, {"encoder": "".join(("catalog:", "best"))}, {"encoder": "catalog:best?ring=R", "rtol": 1e-6}, {"rtol": 1e-5}],
    ids=str,
)
def test_the_short_way_is_open_to_every_open_selector(
    kind: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to one that is spelled anew by the caller; another demand on the same operands is another question."""
    a, b = gaussian((24, 20), torch.float32, 0), gaussian((20, 28), torch.float32, 1)
    kinds: dict[str, tuple[Any, Any]] = {
        "tensors": (a, b),
        "arrays": (a.numpy(), b.numpy()),
        "parameters": (a, torch.nn.Parameter(b)),
    }
    x, y = kinds[kind]
    first = amm(x, y, **asked)
    assert isinstance(first, np.ndarray) == (kind == "arrays")

    def refuse(*_: Any) -> Any:
        raise AssertionError("chosen again")

    monkeypatch.setattr(amm_module, "planned", refuse)
    again = amm(x, y, **asked)
    assert np.array_equal(again, first) if kind == "arrays" else torch.equal(again, first)
    if kind == "parameters":
        again.sum().backward()
        assert torch.equal(y.grad, torch.matmul(a.T, torch.ones(24, 28)))
    with pytest.raises(AssertionError, match="chosen again"):
        amm(x, y, **{**asked, "rtol": 0.3})
    monkeypatch.undo()
    amm(x, y, rtol=1.0)
    for wrong in (True, "1", [1.0]):
        with pytest.raises(StlError, match=r"rtol is .* must be a positive number"):
            amm(x, y, rtol=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", [None, STRASSEN])
@pytest.mark.parametrize("size", [20, 300])
def test_signs_that_torch_keeps_as_a_note_are_not_lost(encoder: Scheme | None, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(-4, 5, (size, size), generator=generator).float() for _ in range(3)]
    a = torch.complex(parts[0], parts[1]).conj().imag
    b = parts[2]
    assert a.is_neg()
    for x, y in ((a, b), (b, a), (a.mT, b), (a, a.mT)):
        assert torch.equal(amm(x, y, encoder), x @ y)
    if encoder is not None:
        assert torch.equal(amm(b, encode_rhs(a, encoder)), b @ a)
        assert torch.equal(amm(encode_lhs(a, encoder), b), a @ b)
