"""Plan: a scheme made ready for a device and dtype; the only form of a scheme that a kernel sees.

A_hat[q] = sum_ab u[q,a,b] A_ab     B_hat[q] = sum_bc v[q,b,c] B_bc     P[q] = A_hat[q] @ B_hat[q]
C_ac = sum_q w[q,a,c] P[q]          A_ab: the m x k grid of blocks of A, or its tiles' entries (see ``Plan.layout``)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stl_search import score
from stl_search.errors import UsageError, VerificationError
from stl_search.scheme import Array, Scheme, Shape

if TYPE_CHECKING:
    import torch

__all__ = ["LAYOUTS", "Plan", "dtype_name", "numpy_dtype", "torch_dtype", "wider", "with_out"]

LAYOUTS = ("block", "tile")

# Ours: (numpy, torch) for real entries and (numpy, torch) for complex ones, whose real and imaginary parts are meant.
_REAL = {
    "fp8_e4m3": (None, "float8_e4m3fn"),
    "bf16": (None, "bfloat16"),
    "fp16": ("float16", "float16"),
    "fp32": ("float32", "float32"),
    "fp64": ("float64", "float64"),
}
_COMPLEX = {"fp32": ("complex64", "complex64"), "fp64": ("complex128", "complex128")}
_BY_TEXT = {torch_name: (name, False) for name, (_, torch_name) in _REAL.items()} | {
    torch_name: (name, True) for name, (_, torch_name) in _COMPLEX.items()
}

_NAMED: dict[Any, tuple[str, bool]] = {}  # torch dtypes met before: their text takes longer than their name


def dtype_name(dtype: Any) -> tuple[str, bool]:
    """(name, whether complex) of a torch dtype, a numpy dtype or type, or one of our own names.

    Raises UsageError for what is none of them: integers, booleans, other precisions.

    >>> dtype_name("bf16"), dtype_name(np.complex64), dtype_name(np.dtype("float64"))
    (('bf16', False), ('fp32', True), ('fp64', False))
    """
    if isinstance(dtype, str) and dtype in _REAL:
        return dtype, False
    try:
        return _NAMED[dtype]
    except (KeyError, TypeError):
        pass
    text = str(dtype)
    if text.startswith("torch."):
        text = text.removeprefix("torch.")
    else:
        try:
            text = np.dtype(dtype).name
        except TypeError:
            text = text.removeprefix("numpy.")
    if text not in _BY_TEXT:
        known = "float16, bfloat16, float32, float64, complex64 and complex128"
        raise UsageError(f"dtype {text:.60} has no plan; known: {known}, and the names {', '.join(_REAL)}")
    if type(dtype).__module__ == "torch":
        _NAMED[dtype] = _BY_TEXT[text]
    return _BY_TEXT[text]


@lru_cache(maxsize=64)
def torch_dtype(name: str, is_complex: bool = False) -> torch.dtype:
    """The torch dtype of that name; raises UsageError where there is none (complex numbers of 16 bits and fewer)."""
    import torch

    found: torch.dtype = getattr(torch, _lookup(name, is_complex)[1])
    return found


def numpy_dtype(name: str, is_complex: bool = False) -> np.dtype[Any]:
    """The numpy dtype of that name; raises UsageError where numpy has none (bf16, fp8_e4m3).

    >>> numpy_dtype("fp32", is_complex=True)
    dtype('complex64')
    """
    text = _lookup(name, is_complex)[0]
    if text is None:
        raise UsageError(f"numpy has no {name}: ask for another out_dtype, or pass torch tensors")
    return np.dtype(text)


def _lookup(name: str, is_complex: bool) -> tuple[str | None, str]:
    score.check_dtype(name)
    if not is_complex:
        return _REAL[name]
    if name not in _COMPLEX:
        raise UsageError(f"complex entries have parts in fp32 or fp64, not {name}")
    return _COMPLEX[name]


def wider(first: str, second: str) -> str:
    """The one of two precisions with more significand bits, ``first`` when they have the same.

    >>> wider("bf16", "fp32"), wider("fp64", "fp32")
    ('fp32', 'fp64')
    """
    return max(first, second, key=lambda name: score.DTYPES[score.check_dtype(name)][0])


@dataclass(frozen=True)
class Plan:
    """A scheme <m,k,n> made ready for operands A: (..., M, K) and B: (..., K, N) of any size; frozen and hashable.

    ``dtype`` is what encoded operands are stored in (fp8_e4m3 with one scale a slice), ``product`` what products are
    stored in (fp32; fp64 when ``dtype`` is), ``out`` what the result is rounded to (``dtype``; fp32 when that is
    fp8_e4m3). ``layout`` "block" cuts an operand into an m x k grid of contiguous blocks, "tile" into contiguous
    m x k tiles. ``complex`` says that operands are complex; the dtypes are then those of their parts.

    Nothing is claimed of the scheme: an approximate one runs as well as an exact one, and ``predicted_error`` says
    what to expect. Raises UsageError for unknown names, for schemes over Z2 (they compute A B modulo 2 only) and for
    schemes over C on real operands.

    >>> plan = Plan(Scheme((1, 1, 1), "ZT", [[1]], [[1]], [[1]]), "bf16")
    >>> plan.product, plan.out, round(plan.predicted_error / score.relative_rounding("bf16"), 3)
    ('fp32', 'bf16', 1.732)
    """

    scheme: Scheme
    dtype: str = "fp32"
    product: str = ""
    out: str = ""
    layout: str = "block"
    device: str = "cpu"
    complex: bool = False

    def __post_init__(self) -> None:
        score.check_dtype(self.dtype)
        if not self.product:
            object.__setattr__(self, "product", "fp64" if self.dtype == "fp64" else "fp32")
        if not self.out:
            object.__setattr__(self, "out", "fp32" if self.dtype == "fp8_e4m3" else self.dtype)
        for role, name in (("products", self.product), ("the output", self.out)):
            if score.check_dtype(name) == "fp8_e4m3":
                raise UsageError(f"{role} cannot be stored in fp8_e4m3: only encoded operands carry scales")
        if self.layout not in LAYOUTS:
            raise UsageError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        if self.scheme.ring.characteristic:
            raise UsageError(f"{self.scheme.name} computes A B modulo 2 only and is never run: lift it to Z or Q first")
        if self.scheme.ring.name == "C" and not self.complex:
            raise UsageError(f"{self.scheme.name} has complex coefficients and runs on complex operands only")
        if self.complex:
            for name in (self.dtype, self.product, self.out):
                _lookup(name, True)

    @property
    def shape(self) -> Shape:
        """<m, k, n>."""
        return self.scheme.shape

    @property
    def rank(self) -> int:
        """Products of a tile."""
        return self.scheme.rank

    @property
    def compute(self) -> str:
        """The precision of all sums: fp32, or fp64 when operands or products are stored so."""
        return "fp64" if "fp64" in (self.dtype, self.product) else "fp32"

    @property
    def ratio(self) -> float:
        """r / (mkn): multiplications relative to the classical product."""
        return self.scheme.rank / self.scheme.volume

    @cached_property
    def factors(self) -> tuple[Array, Array, Array]:
        """u: (r, m, k), v: (r, k, n), w: (r, m, n) in float64 or complex128, as they are run; read-only.

        Over R and C each term is scaled by powers of two, exactly, to |u_q| and |v_q| in [0.7, 1.5), so that encoded
        operands stay in the range of narrow formats whatever the balance of the scheme that was given.
        """
        u, v, w = self.scheme.as_float()
        if not self.scheme.ring.exact:
            shifts = []
            for f in (u, v):
                norm = np.sqrt((np.abs(f) ** 2).sum(axis=(1, 2)))
                log = np.log2(norm, where=norm > 0, out=np.zeros_like(norm))
                shifts.append(np.exp2(-np.rint(log))[:, None, None])
            u, v, w = u * shifts[0], v * shifts[1], w / (shifts[0] * shifts[1])
        for f in (u, v, w):
            f.flags.writeable = False
        return u, v, w

    @cached_property
    def _tensors(self) -> dict[tuple[str, str, str], torch.Tensor]:
        return {}

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """What kernels make of the coefficients once, under keys of their own."""
        return {}

    def coefficients(self, side: str, dtype: str, device: Any) -> torch.Tensor:
        """u for side "lhs", v for "rhs", w for "out", as a torch tensor (r, rows, cols) in ``dtype``.

        Made once, but for what is made under a transform or a mode of torch: such a tensor belongs to it alone.
        """
        import torch

        from stl_search.kernels.watched import watched

        alone = watched()
        key = (side, dtype, str(device))
        if not alone and key in self._tensors:
            return self._tensors[key]
        array = self.factors[("lhs", "rhs", "out").index(side)]
        with torch.inference_mode(False):  # else a later call with gradients could not use them
            made = torch.tensor(array, dtype=torch_dtype(dtype, np.iscomplexobj(array)), device=device)
        if not alone:
            self._tensors[key] = made
        return made

    @cached_property
    def expected_error(self) -> float:
        """E of the scheme, see ``stl_search.score``; 0 when exact."""
        return score.expected_error(self.scheme)

    @cached_property
    def noise_gain(self) -> float:
        """kappa of the scheme, see ``stl_search.score``."""
        return score.noise_gain(self.scheme)

    @cached_property
    def predicted_error(self) -> float:
        """sqrt(E + (2 d^2 + d_P^2) kappa + d_C^2): expected |C_hat - C|_F / |C|_F on independent zero-mean entries.

        d, d_P and d_C are the relative roundings of encoded operands, products and output; d_P and d_C are 0 where
        nothing is rounded beyond ``compute``. In fp32 and fp64, accumulation adds to it: ``apriori`` bounds that.
        """
        d = score.relative_rounding(self.dtype)
        noise = (2 * d**2 + self._rounding(self.product) ** 2) * self.noise_gain
        return math.sqrt(self.expected_error + noise + self._rounding(self.out) ** 2)

    @property
    def error_dominates(self) -> bool:
        """Whether E >= 100 (2 d^2 + d_P^2) kappa: rounding is invisible beside the scheme's own error."""
        d = score.relative_rounding(self.dtype)
        return self.expected_error >= 100 * (2 * d**2 + self._rounding(self.product) ** 2) * self.noise_gain

    def apriori(self, inner: int) -> score.Apriori:
        """Rigorous bounds of |C_hat - C|, relative to |A|_F |B|_F and to max|A| max|B|, for K = ``inner``.

        For real operands, no narrower than ``dtype``, without under- or overflow; see ``score.apriori_bound``. Raises
        UsageError for fp8_e4m3, for products rounded beyond ``compute`` and for complex operands, VerificationError
        for a scheme that is not exact.
        """
        if self.complex or self.dtype == "fp8_e4m3" or self._rounding(self.product):
            raise UsageError("an a-priori bound covers real operands, no fp8_e4m3, and products kept in full precision")
        # Off zero by rounding alone: the residual of a wrong scheme over Z is at least 1/(mkn), over Q at least
        # 1/(mkn D^2) with D the common denominator.
        if self.expected_error > 1e-20:
            raise VerificationError(
                f"{self.scheme.name} is not exact (E = {self.expected_error:.3g}): no a-priori bound"
            )
        return score.apriori_bound(self.scheme, inner, self.compute, self.dtype, self.out)

    def _rounding(self, name: str) -> float:
        """d of a result that leaves ``compute`` for ``name``."""
        return 0.0 if wider(name, self.compute) == name else score.relative_rounding(name)


@lru_cache(maxsize=256)
def with_out(plan: Plan, out: str) -> Plan:
    """The same plan with another output precision; made once."""
    return replace(plan, out=out)
