"""Schemes scored in batches, against the figures of ``stl_search.score`` and its measurements on equal draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stl_search import score, transform
from stl_search.errors import UsageError
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN

pytest.importorskip("triton")

from stl_search.kernels import batch_score

pytestmark = pytest.mark.usefixtures("poisoned")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_scheme(seed: int, shape: tuple[int, int, int], rank: int) -> Scheme:
    rng = np.random.default_rng(seed)
    m, k, n = shape
    return Scheme(shape, "R", *(rng.standard_normal((rank, size)) for size in (m * k, k * n, m * n)))


def batch(shape: tuple[int, int, int]) -> list[Scheme]:
    """Two that are far off, of different ranks, and two that are exact."""
    classical = transform.classical(shape)
    return [random_scheme(1, shape, 3), classical, random_scheme(2, shape, 5), classical]


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (3, 1, 2)])
def test_figures(shape: tuple[int, int, int]) -> None:
    schemes = batch(shape)
    errors, gains = batch_score.figures(schemes, DEVICE)
    # both sum in fp64, in another order; an exact scheme's residual is exactly zero
    np.testing.assert_allclose(errors, [score.expected_error(s) for s in schemes], rtol=1e-13, atol=0)
    np.testing.assert_allclose(gains, [score.noise_gain(s) for s in schemes], rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_measured_error_is_that_of_score_on_the_same_draws(dtype: str) -> None:
    """What is left is fp32 in place of float64: 100 roundings of 2^-24, and the few encodings that it rounds another
    way when they are stored."""
    schemes = [STRASSEN, random_scheme(3, (2, 2, 2), 3)]
    means, spreads = batch_score.monte_carlo(
        schemes, dtype, np.random.default_rng(4), blocks=5, trials=2, device=DEVICE
    )
    for scheme, mean, spread in zip(schemes, means, spreads, strict=True):
        expected, wanted_spread = score.monte_carlo(scheme, dtype, np.random.default_rng(4), blocks=5, trials=2)
        near = 100 * 2.0**-24 * max(1.0, score.noise_gain(scheme)) + 0.02 * score.relative_rounding(dtype)
        assert abs(mean - expected) < near
        assert abs(spread - wanted_spread) < near


def test_refusals() -> None:
    with pytest.raises(UsageError, match="2 shapes"):
        batch_score.figures([STRASSEN, transform.classical((1, 2, 2))], DEVICE)
    with pytest.raises(UsageError, match="only real"):
        batch_score.figures([Scheme((1, 1, 1), "Z2", [[1]], [[1]], [[1]])], DEVICE)
