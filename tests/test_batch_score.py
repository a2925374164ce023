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

from stl_search.kernels import batch_score, gpu, reference

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


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (3, 1, 2)])
def test_figures_of_factors(shape: tuple[int, int, int]) -> None:
    """The plain form and the kernel, on what a search on the device hands over: flat factors of one rank."""
    schemes = [random_scheme(seed, shape, 4) for seed in range(3)]
    flat = [torch.stack([torch.from_numpy(s.as_float()[i].reshape(4, -1)) for s in schemes]) for i in range(3)]
    expected = [[score.expected_error(s) for s in schemes], [score.noise_gain(s) for s in schemes]]
    for found, wanted in zip(batch_score.of_factors(shape, *(f.to(DEVICE) for f in flat)), expected, strict=True):
        np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=1e-13, atol=0)
    shaped = [f.reshape(3, 4, *s.shape[1:]).to(DEVICE) for f, s in zip(flat, schemes[0].factors, strict=True)]
    for own, oracle in zip(gpu.residuals(*shaped), reference.residuals(*shaped), strict=True):
        torch.testing.assert_close(own, oracle, rtol=1e-13, atol=0)
    assert [x.numel() for x in reference.residuals(*(x[:0] for x in shaped))] == [0, 0]


def test_the_plain_form_goes_through_large_batches_in_pieces() -> None:
    """Of <4,4,4>, 1024 residual tensors are in memory at a time; an exact scheme's is exactly zero."""
    exact = transform.classical((4, 4, 4))
    factors = [torch.from_numpy(f.copy()).expand(1100, *f.shape).clone() for f in exact.as_float()]
    factors[2][1050, 0] *= 2
    errors, gains = reference.residuals(*factors)
    assert float(errors[1050]) == 1 / 64
    assert errors.count_nonzero() == 1
    assert float(gains[1050]) == 67 / 64
    assert (gains == 1).sum() == 1099


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
