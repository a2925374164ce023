"""Plans: names of precisions, what is refused, coefficients as they are run, predicted errors and rigorous bounds."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import score, transform
from stl_search.errors import UsageError, VerificationError
from stl_search.kernels.plan import Plan, dtype_name, numpy_dtype, torch_dtype, wider
from stl_search.scheme import Scheme, matmul_tensor
from stl_search.testing import STRASSEN

HALF = Scheme((1, 1, 1), "R", [[1.0]], [[1.0]], [[0.5]])  # E = 1/4, kappa = 1/4
COMPLEX = Scheme((1, 1, 1), "C", [[1j]], [[-1j]], [[1]])
MODULO_2 = Scheme((2, 2, 2), "Z2", *(f % 2 for f in STRASSEN.factors))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float8_e4m3fn, ("fp8_e4m3", False)),
        (torch.bfloat16, ("bf16", False)),
        (torch.half, ("fp16", False)),
        (torch.float32, ("fp32", False)),
        (torch.float64, ("fp64", False)),
        (torch.complex64, ("fp32", True)),
        (torch.complex128, ("fp64", True)),
        (np.float16, ("fp16", False)),
        (np.dtype(">f8"), ("fp64", False)),
        (np.complex64, ("fp32", True)),
        (float, ("fp64", False)),
        ("bf16", ("bf16", False)),
        ("bfloat16", ("bf16", False)),
        ("float32", ("fp32", False)),
    ],
)
def test_dtypes_of_torch_and_numpy_have_our_names(dtype: Any, expected: tuple[str, bool]) -> None:
    assert dtype_name(dtype) == expected


@pytest.mark.parametrize("name", score.DTYPES)
def test_names_and_torch_dtypes_are_one_to_one_and_have_the_stated_precision(name: str) -> None:
    dtype = torch_dtype(name)
    assert dtype_name(dtype) == (name, False)
    assert torch.finfo(dtype).eps == 2 * score.unit_roundoff(name)
    assert torch.finfo(dtype).max == score.DTYPES[name][2]


@pytest.mark.parametrize("name", ["fp16", "fp32", "fp64"])
def test_numpy_and_torch_mean_the_same_by_a_name(name: str) -> None:
    assert torch.from_numpy(np.zeros(1, numpy_dtype(name))).dtype == torch_dtype(name)


@pytest.mark.parametrize(
    "dtype", [torch.int32, bool, "int8", np.longdouble, torch.complex32, "fp4", None.__class__, []]
)
def test_other_dtypes_are_refused_with_the_known_ones(dtype: Any) -> None:
    with pytest.raises(UsageError, match=r"bfloat16.*fp8_e4m3"):
        dtype_name(dtype)


def test_what_numpy_lacks_is_said() -> None:
    with pytest.raises(UsageError, match="numpy has no bf16"):
        numpy_dtype("bf16")
    with pytest.raises(UsageError, match="fp32 or fp64, not fp16"):
        torch_dtype("fp16", is_complex=True)


@settings(deadline=None)
@given(st.sampled_from(list(score.DTYPES)), st.sampled_from(list(score.DTYPES)))
def test_the_wider_precision_has_the_smaller_roundoff(a: str, b: str) -> None:
    assert score.unit_roundoff(wider(a, b)) == min(score.unit_roundoff(a), score.unit_roundoff(b))


@pytest.mark.parametrize(
    ("dtype", "product", "out", "compute"),
    [
        ("fp8_e4m3", "fp32", "fp32", "fp32"),
        ("bf16", "fp32", "bf16", "fp32"),
        ("fp16", "fp32", "fp16", "fp32"),
        ("fp32", "fp32", "fp32", "fp32"),
        ("fp64", "fp64", "fp64", "fp64"),
    ],
)
def test_defaults_follow_the_dtype(dtype: str, product: str, out: str, compute: str) -> None:
    plan = Plan(STRASSEN, dtype)
    assert (plan.product, plan.out, plan.compute) == (product, out, compute)
    assert plan.ratio == 7 / 8


def test_products_kept_in_float64_are_summed_there() -> None:
    assert Plan(STRASSEN, "fp32", "fp64").compute == "fp64"
    assert Plan(STRASSEN, "fp64", "fp32").compute == "fp64"
    assert Plan(STRASSEN, "fp32", out="fp64").compute == "fp32"


@pytest.mark.parametrize(
    ("scheme", "options", "complaint"),
    [
        (MODULO_2, {}, "modulo 2 only.*lift"),
        (COMPLEX, {}, "complex operands only"),
        (STRASSEN, {"dtype": "fp4"}, "unknown dtype 'fp4'; known: fp8_e4m3"),
        (STRASSEN, {"product": "fp8_e4m3"}, "products cannot be stored in fp8"),
        (STRASSEN, {"out": "fp8_e4m3"}, "output cannot be stored in fp8"),
        (STRASSEN, {"layout": "tiles"}, "unknown layout 'tiles'; known: block, tile"),
        (STRASSEN, {"dtype": "bf16", "complex": True}, "fp32 or fp64, not bf16"),
    ],
)
def test_what_cannot_run_is_refused(scheme: Scheme, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Plan(scheme, **options)


def test_plans_are_frozen_values() -> None:
    plan = Plan(STRASSEN, "bf16")
    assert plan == Plan(Scheme.from_json(STRASSEN.to_json()), "bf16")
    assert len({plan, Plan(STRASSEN, "bf16"), Plan(STRASSEN, "fp16"), Plan(HALF, "bf16")}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.dtype = "fp32"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        plan.factors[0][0, 0, 0] = 2


def trilinear(u: Any, v: Any, w: Any) -> Any:
    """sum_q u (x) v (x) w."""
    return np.einsum("qi,qj,qk->ijk", *(f.reshape(len(f), -1) for f in (u, v, w)))


def test_unbalanced_terms_are_brought_into_range_without_any_rounding() -> None:
    gains = np.array([1e6, 1e-7, 3e4, 1.0, 1e-3, 7.0, 1e9])[:, None, None]
    lopsided = Scheme((2, 2, 2), "R", STRASSEN.u * gains, STRASSEN.v / gains**2, STRASSEN.w * gains)
    u, v, w = Plan(lopsided).factors
    for f in (u, v):
        size = np.sqrt((f**2).sum(axis=(1, 2)))
        assert np.all((size > 0.7) & (size < 1.5))
    for scaled, given_factor in zip((u, v, w), lopsided.factors, strict=True):
        ratio = np.divide(scaled, given_factor, where=given_factor != 0, out=np.ones_like(scaled))
        assert np.all(np.frexp(ratio)[0] == 0.5)  # powers of two: nothing was rounded
    np.testing.assert_allclose(trilinear(u, v, w), matmul_tensor((2, 2, 2)), atol=1e-13)
    assert all(np.array_equal(f, g) for f, g in zip(Plan(STRASSEN).factors, STRASSEN.factors, strict=True))


def test_a_zero_term_stays_zero() -> None:
    u, v, w = Plan(Scheme((1, 1, 1), "R", [[0.0], [1.0]], [[2.0], [1.0]], [[3.0], [1.0]])).factors
    assert float(trilinear(u, v, w)[0, 0, 0]) == 1.0
    assert np.isfinite(w).all()


def test_coefficient_tensors_are_made_once_and_survive_inference_mode() -> None:
    plan = Plan(STRASSEN)
    with torch.inference_mode():
        first = plan.coefficients("rhs", "fp32", "cpu")
    assert plan.coefficients("rhs", "fp32", "cpu") is first
    assert not first.is_inference()
    assert torch.equal(first, torch.tensor(STRASSEN.v, dtype=torch.float32))
    assert torch.equal(plan.coefficients("out", "fp64", "cpu"), torch.tensor(STRASSEN.w, dtype=torch.float64))


# Strassen: E = 0 and kappa = (2*2*2 + 6 * 4) / 8 = 4.
@pytest.mark.parametrize(
    ("options", "squared"),
    [
        ({"dtype": "bf16"}, {"bf16": 2 * 4 + 1}),
        ({"dtype": "bf16", "out": "fp32"}, {"bf16": 2 * 4}),
        ({"dtype": "bf16", "product": "bf16"}, {"bf16": 3 * 4 + 1}),
        ({"dtype": "fp16", "product": "bf16", "out": "fp64"}, {"fp16": 2 * 4, "bf16": 4}),
        ({"dtype": "fp8_e4m3", "out": "bf16"}, {"fp8_e4m3": 2 * 4, "bf16": 1}),
        ({"dtype": "fp32"}, {"fp32": 2 * 4}),
        ({"dtype": "fp64"}, {"fp64": 2 * 4}),
        ({"dtype": "fp64", "out": "fp32"}, {"fp64": 2 * 4, "fp32": 1}),
        ({"dtype": "fp32", "complex": True}, {"fp32": 2 * 4}),
    ],
)
def test_predicted_error_adds_up_what_is_rounded(options: dict[str, Any], squared: dict[str, int]) -> None:
    expected = sum(times * score.relative_rounding(name) ** 2 for name, times in squared.items())
    assert Plan(STRASSEN, **options).predicted_error == pytest.approx(math.sqrt(expected), rel=1e-12)


def test_predicted_error_of_an_approximate_scheme_is_dominated_by_e() -> None:
    plan = Plan(HALF, "bf16", out="fp32")
    d = score.relative_rounding("bf16")
    assert plan.predicted_error == pytest.approx(math.sqrt(0.25 + 2 * d**2 * 0.25), rel=1e-12)
    assert plan.predicted_error == pytest.approx(score.error(HALF, "bf16"), rel=1e-12)
    assert plan.error_dominates
    assert not Plan(STRASSEN, "bf16").error_dominates
    nearly = Scheme((1, 1, 1), "R", [[1.0]], [[1.0]], [[0.999]])  # E = 1e-6, kappa = .998
    assert not Plan(nearly, "bf16").error_dominates  # 1e-6 < 100 * 2 * (1.66e-3)^2
    assert Plan(nearly, "fp32").error_dominates
    assert not Plan(nearly, "fp32", product="bf16").error_dominates


def test_the_apriori_bound_is_that_of_the_plan_and_covers_exact_schemes_only() -> None:
    assert Plan(STRASSEN, "fp64").apriori(100) == score.apriori_bound(STRASSEN, 100, "fp64")
    narrow = Plan(STRASSEN, "bf16").apriori(100)
    assert narrow == score.apriori_bound(STRASSEN, 100, "fp32", "bf16", "bf16")
    assert narrow.frobenius > Plan(STRASSEN, "bf16", out="fp32").apriori(100).frobenius
    with pytest.raises(VerificationError, match="2x2x2_r6_ZT is not exact"):
        Plan(Scheme((2, 2, 2), "ZT", *(f[:6] for f in STRASSEN.factors))).apriori(100)
    wrong = Scheme((2, 2, 2), "Q", np.array(STRASSEN.u, dtype=object) * 3, STRASSEN.v, STRASSEN.w)
    with pytest.raises(VerificationError, match="not exact"):
        Plan(wrong).apriori(100)
    for options in ({"dtype": "fp8_e4m3"}, {"dtype": "bf16", "product": "bf16"}, {"complex": True}):
        with pytest.raises(UsageError, match="a-priori bound"):
            Plan(STRASSEN, **options).apriori(100)  # type: ignore[arg-type]


def test_the_apriori_bound_of_a_rational_scheme_is_given() -> None:
    third = transform.change_basis(
        transform.to_ring(STRASSEN, "Q"), [[3, 1], [0, 1]], [[1, 0], [0, 1]], [[1, 2], [0, 3]]
    )
    assert Plan(third).apriori(64).frobenius > Plan(STRASSEN).apriori(64).frobenius


def test_plans_are_made_without_torch() -> None:
    code = "import sys, stl_search.kernels.plan as p; p.dtype_name('float32'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
