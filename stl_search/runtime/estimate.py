"""How far a product is from A B, at the cost of a few matrix-vector products; and products made robust by it.

``estimate_error`` measures with Gaussian probes, ``guarded`` is what ``amm`` does with ``check`` and ``randomize``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stl_search import score
from stl_search.errors import StlWarning, UsageError
from stl_search.kernels.plan import Plan, dtype_name, numpy_dtype, torch_dtype
from stl_search.runtime.dispatch import request_of
from stl_search.runtime.operand import EncodedOperand, Operand, read, to_kind

__all__ = ["ErrorEstimate", "Mixer", "apriori_bound", "estimate_error", "frobenius", "guarded"]

PROBES = 32
CONFIDENCE = 0.99
_TINY = 1e-140  # of a norm above, no square that counts was too small
HADAMARD_STEP = 7  # 2^7: factors of a Hadamard matrix are applied as small dense matrices of at most this order


@dataclass(frozen=True)
class ErrorEstimate:
    """|C - A B|_F / |A B|_F as measured by ``probes`` random vectors; ``float()`` gives ``estimate``.

    The true value is at most ``upper`` with probability at least ``confidence``, whatever the matrices.
    """

    estimate: float
    upper: float
    confidence: float
    probes: int

    def __float__(self) -> float:
        return self.estimate


def estimate_error(
    C: Any, A: Any, B: Any, *, probes: int = PROBES, confidence: float = CONFIDENCE, seed: int = 0
) -> ErrorEstimate:
    """C: (..., M, N), A: (..., M, K), B: (..., K, N) -> |C - A B|_F / |A B|_F over all batches, estimated at O(n^2).

    With D = C - A B and s probes g of independent N(0, 1) entries, mean |D g|^2 estimates |D|_F^2 without bias
    (Hutchinson's estimator for the trace of D^T D, with Gaussian vectors), and mean |A B g|^2 estimates |A B|_F^2;
    all in float64, by matrix-vector products alone. Bound: sum |D g|^2 is a weighted sum of chi-square variables of s
    degrees of freedom, and prod(1 + 2 t l_j) >= 1 + 2 t sum l_j for weights l_j >= 0, so Chernoff's bound gives for
    *every* D: P(mean |D g|^2 <= x |D|^2) <= (x e^(1-x))^(s/2) for x < 1, and the same for >= where x > 1. ``upper``
    divides by the x at which the right side is half of 1 - confidence, and takes the better of two lower bounds of
    |A B|: that from its own probes, and |C| - |D|.

    With no more columns than probes the unit vectors are taken instead: the error is then exact and ``upper`` equal to
    it. 0 when C and A B are both zero, infinite when only A B is; NaN where an entry is. Raises UsageError for
    operands that do not go together, encoded ones, and settings out of range.

    Avron and Toledo, "Randomized algorithms for estimating the trace of an implicit symmetric positive semi-definite
    matrix", J. ACM 58 (2011); Roosta-Khorasani and Ascher, "Improved bounds on sample size for implicit matrix trace
    estimators", Found. Comput. Math. 15 (2015), theorem 3.

    >>> import numpy as np
    >>> a = np.arange(6.0).reshape(2, 3)
    >>> estimate_error(1.5 * a @ a.T, a, a.T).estimate
    0.5
    """
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 1:
        raise UsageError(f"probes is {probes!r:.40}, must be a positive integer")
    if not isinstance(confidence, (float, np.floating)) or not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence!r:.40}, must lie between 0 and 1")
    for x, name in ((C, "C"), (A, "A"), (B, "B")):
        if isinstance(x, EncodedOperand):
            raise UsageError(f"{name} is an encoded operand: the error is measured against the matrices themselves")
    c, a, b = (read(x, name).tensor.detach() for x, name in ((C, "C"), (A, "A"), (B, "B")))
    if not a.ndim or not b.ndim:
        raise UsageError(f"{'B' if a.ndim else 'A'} is a scalar: there is no matrix product to compare with")
    a_matrix, b_matrix = a if a.ndim > 1 else a[None, :], b if b.ndim > 1 else b[:, None]
    try:
        batch = np.broadcast_shapes(a_matrix.shape[:-2], b_matrix.shape[:-2])
    except ValueError:
        raise UsageError(f"A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply: their batches differ") from None
    rows, inner, cols = a_matrix.shape[-2], a_matrix.shape[-1], b_matrix.shape[-1]
    if inner != b_matrix.shape[-2]:
        raise UsageError(f"A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply: inner sizes differ")
    expected = (*batch, *((rows,) if a.ndim > 1 else ()), *((cols,) if b.ndim > 1 else ()))
    if tuple(c.shape) != expected:
        raise UsageError(f"C has shape {tuple(c.shape)}, A B has {expected}")
    if not a.device == b.device == c.device:
        raise UsageError(f"A is on {a.device}, B on {b.device}, C on {c.device}: move them to one device")

    is_complex = any(x.is_complex() for x in (a, b, c))
    kind = torch_dtype("fp64", is_complex)
    c_matrix = c.reshape(*batch, rows, cols).to(kind)
    exact = cols <= probes
    if exact:
        g = torch.eye(cols, dtype=kind, device=c.device)
    else:
        generator = _generator(seed)
        drawn = torch.randn((*batch, cols, probes), dtype=torch.float64, generator=generator, device="cpu")
        g = drawn.to(c.device, kind)
    product = a_matrix.to(kind) @ (b_matrix.to(kind) @ g)  # autocast leaves float64 alone
    count = 1 if exact else probes
    gap, size = (frobenius(x) / math.sqrt(count) for x in (product - c_matrix @ g, product))
    estimate = _ratio(gap, size)
    if exact:
        return ErrorEstimate(estimate, estimate, confidence, cols)
    low, high = _tails(probes, (1 - confidence) / 2)
    gap_upper = gap / math.sqrt(low)
    size_lower = max(size / math.sqrt(high), frobenius(c_matrix) - gap_upper)
    return ErrorEstimate(estimate, _ratio(gap_upper, size_lower), confidence, probes)


def frobenius(x: torch.Tensor) -> float:
    """|x|_F of float64 or complex128 entries, also where squares of these are too small or too large for a double."""
    size = float(torch.linalg.vector_norm(x))
    if _TINY < size < math.inf or math.isnan(size) or not x.numel():
        return size
    largest = float(x.abs().max())
    if not 0 < largest < math.inf:
        return largest
    unit = 2.0 ** max(math.frexp(largest)[1] - 1, -1000)
    return unit * float(torch.linalg.vector_norm(x / unit))


def _generator(seed: Any) -> torch.Generator:
    """A generator of random numbers on the host; raises UsageError for what torch takes for no seed."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(1 << 63) <= seed < 1 << 64:
        raise UsageError(f"the seed is {seed!r:.40}, must be an integer of at most 64 bits")
    return torch.Generator().manual_seed(seed)


def _ratio(gap: float, size: float) -> float:
    if math.isnan(gap) or math.isnan(size):
        return math.nan
    return gap / size if size else (math.inf if gap else 0.0)


@lru_cache(maxsize=64)
def _tails(probes: int, probability: float) -> tuple[float, float]:
    """The two x, below and above 1, at which (x e^(1-x))^(probes/2) is that probability; each on its safe side."""
    target = 2 * math.log(probability) / probes

    def solve(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            if math.log(middle) + 1 - middle > target:
                inside = middle
            else:
                outside = middle
        return outside

    return solve(1.0, 0.5 * math.exp(target - 1)), solve(1.0, 4.0 - 4.0 * target)


def apriori_bound(encoder: Any, inner: int, dtype: Any = "fp32") -> score.Apriori:
    """Rigorous bounds of |C_hat - A B| for A: (..., M, inner), B: (..., inner, N), before anything is multiplied.

    ``frobenius`` is relative to |A|_F |B|_F, ``maximum`` (which carries the growth factor) to max|A| max|B|; for one
    level of an exact scheme on operands of that dtype, without under- or overflow; see ``score.apriori_bound``.
    Raises UsageError for an open selector, VerificationError for a scheme that is not exact.

    >>> from stl_search.scheme import Scheme
    >>> apriori_bound(Scheme((1, 1, 1), "ZT", [[1]], [[1]], [[1]]), 100).frobenius < 106 * 2.0**-24 * 1.001
    True
    """
    request = request_of(encoder)
    if request.named is None:
        raise UsageError("an open selector has no bound of its own: name one scheme, with shape= and rank=")
    name, is_complex = dtype_name(dtype)
    found = request.named(name)
    plan = found if isinstance(found, Plan) else Plan(found, name, complex=is_complex)
    return plan.apriori(inner)


class Mixer:
    """An orthogonal change of basis of R^size, Q = H D P: random signs D, for "hadamard" also mixing H of shuffled P.

    H is block diagonal, with Walsh-Hadamard matrices of the powers of two that add up to ``size``, scaled to be
    orthogonal; the random permutation P makes the blocks' places immaterial. ``apply`` acts along one dimension of a
    tensor, ``undo`` is its inverse (and transpose); both are differentiable.
    """

    def __init__(self, kind: str, size: int, generator: torch.Generator) -> None:
        self.size = size
        self.signs = torch.randint(0, 2, (size,), generator=generator, device="cpu") * 2 - 1
        self.order = torch.randperm(size, generator=generator, device="cpu") if kind == "hadamard" else None

    def apply(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """x -> Q x along ``dim``."""
        x = x.movedim(dim, -1)
        if self.order is not None:
            x = x.index_select(-1, self.order.to(x.device))
        x = x * self.signs.to(x.device, x.dtype)
        return (x if self.order is None else self._mixed(x)).movedim(-1, dim)

    def undo(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Q x -> x along ``dim``."""
        x = x.movedim(dim, -1)
        if self.order is None:
            return (x * self.signs.to(x.device, x.dtype)).movedim(-1, dim)
        x = self._mixed(x) * self.signs.to(x.device, x.dtype)
        return x.index_select(-1, torch.argsort(self.order).to(x.device)).movedim(-1, dim)

    def _mixed(self, x: torch.Tensor) -> torch.Tensor:
        """H x along the last dimension; H is symmetric and its own inverse."""
        if not self.size:
            return x
        powers = [p for p in range(self.size.bit_length() - 1, -1, -1) if self.size >> p & 1]
        parts = torch.split(x, [1 << p for p in powers], dim=-1)
        return torch.cat([_hadamard(part, p) for part, p in zip(parts, powers, strict=True)], dim=-1)


def _hadamard(x: torch.Tensor, power: int) -> torch.Tensor:
    """x: (..., 2^power) -> H x / sqrt(2^power), Sylvester's H, a Kronecker product of small ones applied in turn."""
    shape, left, done = x.shape, power, 1
    while left:
        step = min(left, HADAMARD_STEP)
        h = torch.ones((1, 1), dtype=x.dtype, device=x.device)
        for _ in range(step):
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)]) * math.sqrt(0.5)
        x = torch.matmul(h, x.reshape(*shape[:-1], shape[-1] // (done << step), 1 << step, done))
        left, done = left - step, done << step
    return x.reshape(shape)


def guarded(
    multiply: Callable[..., Any],
    dense: Callable[[Operand, Operand], tuple[Any, str]],
    A: Any,
    B: Any,
    encoder: Any,
    rtol: float | None,
    check: bool,
    randomize: Any,
) -> Any:
    """A: (..., M, K), B: (..., K, N) -> C: (..., M, N): ``multiply`` with mixed operands, checked, or ``dense``.

    ``multiply(A, B, rtol=)`` is ``amm`` with its other arguments, ``dense`` gives a plain product and whose it is.
    ``randomize`` is a seed, which stands for ("hadamard", seed), or ("signs", seed): A' = Q_m A Q_k^T, B' = Q_k B Q_n^T
    and C = Q_m^T C' Q_n. With ``check`` the result's estimated error is held against ``rtol``; where it is larger, or
    NaN, the dense product is returned with a StlWarning. Raises UsageError for encoded operands, and for ``check``
    without ``rtol``.
    """
    for x, name in ((A, "A"), (B, "B")):
        if isinstance(x, EncodedOperand):
            raise UsageError(f"check and randomize need the matrices themselves, and {name} is an encoded operand")
    if check and rtol is None:
        raise UsageError("check=True compares the error with rtol: give rtol")
    a, b = read(A, "A"), read(B, "B")
    inner_rtol = rtol
    if check and request_of(encoder).named is not None:
        request_of("catalog:best", rtol)  # its own complaint about a bad number
        inner_rtol = None  # one scheme was named: rtol is the check's alone
    if randomize is None:
        c = multiply(A, B, rtol=inner_rtol)
    else:
        kind, seed = randomize if isinstance(randomize, tuple) and len(randomize) == 2 else ("hadamard", randomize)
        if kind not in ("hadamard", "signs") or not isinstance(seed, int) or isinstance(seed, bool):
            raise UsageError(f'randomize is {randomize!r:.60}, must be a seed, ("hadamard", seed) or ("signs", seed)')
        c = _mixed_product(multiply, a, b, kind, seed, inner_rtol)
    if not check:
        return c
    assert rtol is not None
    found = estimate_error(c, A, B)
    if found.estimate <= rtol:
        return c
    plain, way = dense(a, b)
    warnings.warn(
        f"estimated relative error {found.estimate:.3g} exceeds rtol {rtol:.3g}: the dense product is returned, "
        f"by the fastest routine at hand ({way})",
        StlWarning,
        stacklevel=3,
    )
    return plain


def _mixed_product(
    multiply: Callable[..., Any], a: Operand, b: Operand, kind: str, seed: int, rtol: float | None
) -> Any:
    if not a.shape or not b.shape or a.shape[-1] != b.shape[max(len(b.shape) - 2, 0)]:
        return multiply(a.tensor, b.tensor, rtol=rtol)  # its own complaint
    generator = _generator(seed)
    rows = Mixer(kind, a.shape[-2], generator) if len(a.shape) > 1 else None
    inner = Mixer(kind, a.shape[-1], generator)
    cols = Mixer(kind, b.shape[-1], generator) if len(b.shape) > 1 else None
    device = a.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        x, y = _sums(a.tensor), _sums(b.tensor)
        x = inner.apply(x, -1)
        y = inner.apply(y, -2 if cols else -1)
        x = rows.apply(x, -2) if rows else x
        y = cols.apply(y, -1) if cols else y
        c = multiply(x.to(a.tensor.dtype), y.to(b.tensor.dtype), rtol=rtol)
        z = _sums(c)
        z = rows.undo(z, -2 if cols else -1) if rows else z
        z = cols.undo(z, -1) if cols else z
    if a.kind == "numpy":
        numpy_dtype(*dtype_name(c.dtype))  # refused in a sentence where numpy has none
    return to_kind(z.to(c.dtype), a.kind)


def _sums(x: torch.Tensor) -> torch.Tensor:
    """x in the precision that its mixing is summed in: fp32 for narrower ones."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
