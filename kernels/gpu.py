"""Encode, product and decode on a GPU: the launchers of the Triton kernels, on plain tensors.

Operands are CUDA tensors in bf16, fp16 or fp32 (encoded ones also in fp8_e4m3 with one scale a slice); sums run in
fp32. Shapes and meanings are those of ``stl_search.kernels.reference``, whose functions are the oracles. Coefficients
that lie on the host (numpy, or a CPU tensor) may be compiled into a kernel; those on the device are read by it.
``method`` "auto" takes what was measured on this GPU, else what is shipped (``tuning``). Under Triton's interpreter
(TRITON_INTERPRET=1) the same launchers run on CPU tensors. Nothing here is imported without need: triton may be absent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stl_search.errors import UsageError
from stl_search.kernels import tuning
from stl_search.kernels.plan import LAYOUTS, dtype_name, torch_dtype
from stl_search.kernels.reference import Stored, scale_for

__all__ = ["ACTIVATIONS", "DTYPES", "available", "decode", "encode", "product", "product_decode", "residuals"]

Tensor = torch.Tensor
Coefficients = Tensor | npt.NDArray[Any]
Config = dict[str, Any]

DTYPES = ("bf16", "fp16", "fp32")
ACTIVATIONS = ("relu", "gelu", "silu")
# Constants beyond these make kernels that take long to compile; parts beyond that do not fit in registers.
MOST_CONSTANTS, MOST_PARTS = 4096, 64
MOST_HOSTS = 1024  # arrays of coefficients that are kept ready, and calls
# Multiply-adds for each byte moved that cost a GPU's ordinary cores no more time than its memory needs.
FLOPS_PER_BYTE = 4.0


@cache
def available() -> bool:
    """Whether these launchers can run here: a CUDA device that torch sees, and triton."""
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


@cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    import triton

    from stl_search.kernels import triton_encode

    return not isinstance(triton_encode.encode_dot, triton.runtime.JITFunction)


def encode(
    x: Tensor, coefficients: Coefficients, layout: str = "block", out_dtype: Any = "bf16", *, method: str = "auto"
) -> Stored:
    """x: (..., M, K), coefficients: (r, m, k) -> data (r, ..., ceil(M/m), ceil(K/k)), with a scale for each slice in
    fp8_e4m3, (r, ..., 1, 1); as ``reference.store(reference.encode(x, coefficients, layout), out_dtype)``.

    Any strides; a ragged edge is masked. ``method`` is "auto", "unrolled" or "dot". Raises UsageError for other
    dtypes, layouts and methods, and for more than 64 parts.
    """
    x = x.resolve_neg()  # torch may hold a sign as a note, which memory does not tell
    key_again = _again_key("encode", (x,), coefficients, layout, out_dtype, method)
    if (known := _again.get(key_again)) is not None:
        return Stored(known(x))
    given = x
    name = _check(x, "x", DTYPES)
    out_name = _known(out_dtype, (*DTYPES, "fp8_e4m3"), "out_dtype")
    r, m, k = _shape(coefficients)
    steps = _steps(layout, m, k, height := -(-x.shape[-2] // m), width := -(-x.shape[-1] // k))
    batch = x.shape[:-2]
    x = x.reshape(math.prod(batch), *x.shape[-2:])
    out = x.new_empty((r, *batch, height, width), dtype=torch_dtype(out_name))
    moved = m * k * x.element_size() + r * out.element_size()
    constants = _constants(coefficients, moved)

    def run(config: Config, out: Tensor | None, scale: Tensor | None, peak: Tensor | None) -> tuning.Launch | None:
        from stl_search.kernels import triton_encode

        meta, options = _split(config)
        shared = (out, scale, peak, *x.shape[1:], height, width, len(x), *x.stride(), *steps[:2])
        flags: Config = {"M": m, "K": k, "SCALED": scale is not None, "PEAK": peak is not None} | steps[2]
        grid = (len(x) * -(-height // meta["HIGH"]) * -(-width // meta["WIDE"]),)
        if config["use"] == "unrolled":
            assert constants is not None
            flags |= {"COEFFICIENTS": constants.values, "R": r}
            return tuning.launch(triton_encode.encode_unrolled, grid, x, *shared, **flags, **meta, **options)
        u = _on_device(coefficients, x.device)
        flags |= {"PARTS": _padded(m * k)} | _precision(name, out_name)
        return tuning.launch(triton_encode.encode_dot, grid, x, u, *shared, r, **flags, **meta, **options)

    if not out.numel():
        return Stored(out, out.new_ones((r, *batch, 1, 1), dtype=torch.float32) if out_name == "fp8_e4m3" else None)
    with _guard(x):
        key = tuning.Key("encode", f"{name}-{out_name}", _parts_class(m * k, constants))
        config = tuning.choose(key, _eligible(constants, method), x.device, lambda c: run(c, out, None, None))
        if out_name != "fp8_e4m3":
            _remember(key_again, coefficients, run(config, out, None, None), given, x, out)
            return Stored(out)
        peak = x.new_zeros((r, *batch, 1, 1), dtype=torch.int32)
        run(config, None, None, peak)
        scale = scale_for(peak.view(torch.float32))
        run(config, out, scale, None)
    return Stored(out, scale)


def decode(
    p: Tensor,
    coefficients: Coefficients,
    rows: int,
    cols: int,
    layout: str = "block",
    out_dtype: Any = "bf16",
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    method: str = "auto",
) -> Tensor:
    """p: (r, ..., M', N'), coefficients: (r, m, n) -> (..., rows, cols), as ``reference.decode``.

    ``bias``: (cols) and ``activation`` ("relu", "gelu", "silu") act in fp32 before the result is rounded. Any strides.
    ``coefficients`` on the device may also be (batch, r, m, n), other ones for each batch. ``method`` is "auto",
    "unrolled" or "dot". Raises UsageError for other dtypes, layouts and methods, and for sizes that do not agree.
    """
    key_again = None
    if bias is None:
        key_again = _again_key("decode", (p,), coefficients, rows, cols, layout, out_dtype, activation, method)
        if (known := _again.get(key_again)) is not None:
            return known(p)
    given = p
    name = _check(p, "p", DTYPES)
    out_name = _known(out_dtype, DTYPES, "out_dtype")
    own = coefficients.ndim == 4
    r, m, n = _shape(coefficients)
    height, width = p.shape[-2:]
    _check_decode(p.shape[0], r, rows, cols, (m, n), (height, width), bias, activation)
    batch = p.shape[1:-2]
    steps = _steps(layout, m, n, height, width)
    p = p.reshape(r, math.prod(batch), height, width)
    out = p.new_empty((*batch, rows, cols), dtype=torch_dtype(out_name))
    moved = r * p.element_size() + m * n * out.element_size()
    constants = None if own else _constants(coefficients, moved)
    if not out.numel():
        return out

    def run(config: Config) -> tuning.Launch | None:
        from stl_search.kernels import triton_decode

        meta, options = _split(config)
        shared = (out, bias, rows, cols, height, width, *p.stride(), *steps[:2])
        flags: Config = {"M": m, "N": n, "BIAS": bias is not None, "ACTIVATION": activation} | steps[2]
        grid = (p.shape[1] * -(-height // meta["HIGH"]) * -(-width // meta["WIDE"]),)
        if config["use"] == "unrolled":
            assert constants is not None
            flags |= {"COEFFICIENTS": constants.values, "R": r}
            return tuning.launch(triton_decode.decode_unrolled, grid, p, *shared, **flags, **meta, **options)
        w = _on_device(coefficients, p.device)
        flags |= {"PARTS": _padded(m * n)} | _precision(name, out_name)
        w_batch = r * m * n if own else 0
        return tuning.launch(triton_decode.decode_dot, grid, p, w, *shared, r, w_batch, **flags, **meta, **options)

    with _guard(p):
        key = tuning.Key("decode", f"{name}-{out_name}", _parts_class(m * n, constants))
        made = run(tuning.choose(key, _eligible(constants, method), p.device, run))
        _remember(key_again, coefficients, made, given, p, out)
    return out


def product(
    a: Tensor,
    b: Tensor,
    out_dtype: Any = "fp32",
    scales: tuple[Tensor, Tensor] | None = None,
    *,
    method: str = "auto",
    tf32: bool = False,
) -> Tensor:
    """a: (r, ..., M', K'), b: (r, ..., K', N') -> (r, ..., M', N') in ``out_dtype``, as ``reference.product``.

    Batches broadcast, any strides. For fp8_e4m3 ``scales`` holds those of a and of b, (r, ..., 1, 1), and the product
    is divided by both; tensor cores want b with K' innermost, as ``encode(B.mT, v.transpose(1, 2)).data.mT`` lies.
    ``tf32`` lets Triton's kernel multiply fp32 by tf32. ``method`` is "auto", "triton" or "bmm" (torch's own, which
    "auto" takes too until a measurement on this GPU says otherwise). Raises UsageError for operands that do not go
    together.
    """
    key_again = None
    if scales is None:
        key_again = _again_key("product", (a, b), None, out_dtype, method, tf32)
        if (known := _again.get(key_again)) is not None:
            return known(a, b)
    pair = _Pair(a, b, scales)
    out_name = _known(out_dtype, DTYPES, "out_dtype")
    out = a.new_empty((pair.rank, *pair.batch, pair.height, pair.width), dtype=torch_dtype(out_name))
    if not out.numel():
        return out

    def run(config: Config) -> None:
        if config["use"] == "bmm":
            pair.bmm(out)
            return
        from stl_search.kernels import triton_product

        meta, options = _split(config)
        tiles = pair.rank * pair.count * pair.tiles(meta)
        grid = (min(tiles, tuning.programs(a.device) * meta.pop("WAVES", 1)),)
        tuning.launch(
            triton_product.product,
            grid,
            *pair.operands,
            out,
            pair.rank,
            pair.count,
            pair.height,
            pair.width,
            pair.inner,
            *pair.strides,
            **pair.flags(meta, tf32),
            **meta,
            **options,
        )

    with _guard(a):
        key = tuning.Key("product", f"{pair.name}-{out_name}", pair.size_class)
        uses = ("bmm", "triton") if pair.has_bmm(out_name) else ("triton",)
        config = tuning.choose(key, _among(uses, method), a.device, run)
        run(config)
    if key_again is not None and config["use"] == "bmm" and a.ndim == b.ndim == 3:
        _keep(key_again, None, partial(_bmm, dtype=out.dtype))
    return out


def product_decode(
    a: Tensor,
    b: Tensor,
    coefficients: Coefficients,
    rows: int,
    cols: int,
    layout: str = "block",
    out_dtype: Any = "bf16",
    *,
    scales: tuple[Tensor, Tensor] | None = None,
    product_dtype: Any = "fp32",
    bias: Tensor | None = None,
    activation: str | None = None,
    method: str = "auto",
    tf32: bool = False,
) -> Tensor:
    """a: (r, ..., M', K'), b: (r, ..., K', N'), coefficients: (r, m, n) -> (..., rows, cols): the product, decoded.

    ``method``: "unfused" calls the two; "registers" keeps the decoder's sums in registers (at most 4 parts; products
    are never rounded); "arrival" computes the r products of an output tile side by side and decodes them, in the order
    of q, while they are in L2; "auto" takes what was measured on this GPU, else "unfused". The fused forms need
    coefficients on the host. ``product_dtype`` is what products are stored in. Raises UsageError as those two do.
    """
    key_again = None
    if scales is None and bias is None:
        asked = (rows, cols, layout, out_dtype, product_dtype, activation, method, tf32)
        key_again = _again_key("product_decode", (a, b), coefficients, *asked)
        if (known := _again.get(key_again)) is not None:
            return known(a, b)
    pair = _Pair(a, b, scales)
    out_name = _known(out_dtype, DTYPES, "out_dtype")
    product_name = _known(product_dtype, DTYPES, "product_dtype")
    r, m, n = _shape(coefficients)
    _check_decode(pair.rank, r, rows, cols, (m, n), (pair.height, pair.width), bias, activation)
    constants = _constants(coefficients, 0)
    uses = ["unfused"]
    if constants is not None and math.prod(pair.batch) * rows * cols:
        uses += (["registers"] if m * n <= 4 else []) + (["arrival"] if m * n <= 16 else [])
    steps = _steps(layout, m, n, pair.height, pair.width)

    def unfused(a: Tensor, b: Tensor) -> Tensor:
        p = product(a, b, product_name, scales, tf32=tf32)
        return decode(p, coefficients, rows, cols, layout, out_name, bias=bias, activation=activation)

    def run(config: Config) -> Tensor:
        if config["use"] == "unfused":
            return unfused(a, b)
        from stl_search.kernels import triton_product

        assert constants is not None
        meta, options = _split(config)
        out = a.new_empty((*pair.batch, rows, cols), dtype=torch_dtype(out_name))
        tiles = pair.count * pair.tiles(meta)
        sizes = (out, bias, rows, cols, pair.count, pair.height, pair.width, pair.inner, *pair.strides, *steps[:2])
        flags = {"COEFFICIENTS": constants.values, "R": r, "M": m, "N": n} | steps[2] | pair.flags(meta, tf32)
        flags |= {"BIAS": bias is not None, "ACTIVATION": activation}
        if config["use"] == "registers":
            tuning.launch(
                triton_product.product_decode_registers, (tiles,), *pair.operands, *sizes, **flags, **meta, **options
            )
            return out
        shape = (r, pair.count, pair.height, pair.width)
        products = a.new_empty(shape, dtype=torch_dtype(product_name))
        arrived = a.new_zeros(tiles, dtype=torch.int32)
        tuning.launch(
            triton_product.product_decode_arrival,
            (tiles * r,),
            *pair.operands,
            products,
            arrived,
            *sizes,
            **flags,
            **meta,
            **options,
        )
        return out

    with _guard(a):
        key = tuning.Key(
            "product_decode", f"{pair.name}-{product_name}-{out_name}", f"{_parts_size(m * n)}/{pair.size_class}"
        )
        config = tuning.choose(key, _among(uses, method), a.device, run)
        if key_again is not None and config["use"] == "unfused":
            _keep(key_again, coefficients, unfused)
        return run(config)


def residuals(u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """u: (S, r, m, k), v: (S, r, k, n), w: (S, r, m, n) in fp64 -> E and kappa, (S) each, in one launch for all S.

    The figures of ``score.expected_error`` and ``score.noise_gain``, in fp64. Raises UsageError for other dtypes and
    for shapes that do not agree.
    """
    count, r, m, k = u.shape
    n = v.shape[-1]
    if v.shape != (count, r, k, n) or w.shape != (count, r, m, n):
        raise UsageError(f"u {tuple(u.shape)}, v {tuple(v.shape)} and w {tuple(w.shape)} are no <m,k,n> schemes")
    for x, what in ((u, "u"), (v, "v"), (w, "w")):
        _check(x, what, ("fp64",))
    error, gain = (u.new_empty((count, m * k)) for _ in range(2))
    if error.numel():
        from stl_search.kernels import triton_score

        with _guard(u):
            options = _split(tuning.choose(tuning.Key("score", "fp64", "all"), ("triton",), u.device, lambda _: None))[
                1
            ]
            sides = (1 << max(side - 1, 0).bit_length() for side in (k * n, m * n))
            flags = {"M": m, "K": k, "N": n, "KN": next(sides), "MN": next(sides)}
            factors = (x.contiguous() for x in (u, v, w))
            tuning.launch(triton_score.residuals, (count * m * k,), *factors, error, gain, r, **flags, **options)
    return error.sum(1) / (m * k * n), gain.sum(1) / (m * k * n)


# -- calls that were made before ---------------------------------------------------------------------------------------

# What was asked, of operands of which sizes, strides, dtypes and alignment -> what does it again at once. A call takes
# the processor tens of microseconds, most of it to find out what these facts already say.
_again: dict[Any, Callable[..., Tensor]] = {}
_held: dict[int, Any] = {}  # the coefficients of such calls, by the address that stands for them


def _again_key(what: str, operands: tuple[Tensor, ...], coefficients: Coefficients | None, *asked: Any) -> Any:
    """What a call may be known by; None where it may not: coefficients that can change, configurations that are being
    measured, operands on another device than the current one."""
    if coefficients is not None and (isinstance(coefficients, Tensor) or coefficients.flags.writeable):
        return None
    settled = tuning.settled()
    first = operands[0]
    if settled is None or not (first.get_device() == torch.cuda.current_device() if first.is_cuda else interpreted()):
        return None
    facts = tuple((x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16) for x in operands)
    return what, settled, facts, id(coefficients), asked


def _remember(
    key: Any, coefficients: Coefficients, made: tuning.Launch | None, given: Tensor, flat: Tensor, out: Tensor
) -> None:
    """Keeps a launch on ``flat``, a view of ``given``, into ``out``."""
    if key is None or made is None or flat.data_ptr() != given.data_ptr():
        return
    shape, dtype, run = tuple(out.shape), out.dtype, made.repeat(flat, out)

    def again(x: Tensor) -> Tensor:
        out = x.new_empty(shape, dtype=dtype)
        run(x, out)
        return out

    _keep(key, coefficients, again)


def _keep(key: Any, coefficients: Coefficients | None, again: Callable[..., Tensor]) -> None:
    if len(_again) >= MOST_HOSTS:
        _again.clear()
        _held.clear()
    _again[key] = again
    _held[id(coefficients)] = coefficients


def _bmm(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """torch's product of (r, M', K') and (r, K', N') into ``dtype``."""
    if out is None:
        out = a.new_empty((a.shape[0], a.shape[1], b.shape[2]), dtype=dtype)
    if dtype == a.dtype:
        torch.bmm(a, b, out=out)
    else:
        torch.ops.aten.bmm.dtype_out(a, b, dtype, out=out)
    return out


# -- operands and coefficients as kernels see them ---------------------------------------------------------------------


class _Pair:
    """a: (r, ..., M', K') and b: (r, ..., K', N') as kernels see them: one batch axis each, with steps of 0 where one
    is shared."""

    def __init__(self, a: Tensor, b: Tensor, scales: tuple[Tensor, Tensor] | None) -> None:
        self.name = _check(a, "a", (*DTYPES, "fp8_e4m3"))
        if b.dtype != a.dtype or b.device != a.device:
            raise UsageError(f"a is {a.dtype} on {a.device} and b {b.dtype} on {b.device}: they must agree")
        if (self.name == "fp8_e4m3") != (scales is not None):
            raise UsageError("fp8_e4m3 operands carry scales, one for each slice of a and of b; others carry none")
        if a.ndim < 3 or b.ndim < 3 or a.shape[0] != b.shape[0] or a.shape[-1] != b.shape[-2]:
            raise UsageError(f"a {tuple(a.shape)} and b {tuple(b.shape)} do not multiply slice by slice")
        self.batch = np.broadcast_shapes(a.shape[1:-2], b.shape[1:-2])
        self.count = math.prod(self.batch)
        self.rank, self.height, self.inner, self.width = (int(s) for s in (*a.shape[:1], *a.shape[-2:], b.shape[-1]))
        self.a, self.b = (self._flat(x) for x in (a, b))
        pairs = (None, None) if scales is None else tuple(self._flat(s) for s in scales)
        self.operands = (self.a, self.b, *pairs)
        steps = [0, 0, 0, 0] if scales is None else [s for x in pairs if x is not None for s in x.stride()[:2]]
        self.strides = (*self.a.stride(), *self.b.stride(), *steps)

    def _flat(self, x: Tensor) -> Tensor:
        """x: (r, ..., rows, cols) -> (r, count, rows, cols), a view where the batch is whole or shared by all."""
        if x.ndim == 3 and self.count == 1:
            return x.unsqueeze(1)
        if math.prod(x.shape[1:-2]) == 1:
            return x.reshape(x.shape[0], 1, *x.shape[-2:]).expand(-1, self.count, -1, -1)
        x = x.reshape(self.rank, *[1] * (len(self.batch) + 3 - x.ndim), *x.shape[1:])
        return x.expand(self.rank, *self.batch, -1, -1).reshape(self.rank, self.count, *x.shape[-2:])

    @property
    def size_class(self) -> str:
        """What a shipped or measured configuration depends on, besides dtypes: whether tiles are whole, and "odd" for
        operands that cannot be read 16 bytes at a time, or that fp8 tensor cores cannot take as they lie."""
        per_read = 16 // self.a.element_size()
        k_first = self.a.stride(3) == 1 and self.b.stride(2) == 1
        unaligned = any(s % per_read for x in (self.a, self.b) for s in x.stride() if s != 1)
        if unaligned or (self.name == "fp8_e4m3" and not k_first):
            return "odd"
        return "large" if self.height >= 128 and self.width >= 128 else "small"

    def tiles(self, meta: Config) -> int:
        """Output tiles of one slice."""
        high, wide = int(meta["HIGH"]), int(meta["WIDE"])
        return -(-self.height // high) * -(-self.width // wide)

    def flags(self, meta: Config, tf32: bool) -> Config:
        """Compile-time facts that all kernels with products take."""
        return {
            "SCALED": self.operands[2] is not None,
            "WIDEN": _widen(),
            "PRECISION": "tf32" if tf32 else "ieee",
            "IMPRECISE": min(meta["DEEP"], 128) if self.name == "fp8_e4m3" else 0,
            "EVEN": self.inner % meta["DEEP"] == 0,
        }

    def has_bmm(self, out_name: str) -> bool:
        """Whether torch.bmm makes this product: no fp8, and another output than operands only where torch can."""
        if self.name == out_name:
            return True
        wide = out_name == "fp32" and self.name in ("bf16", "fp16")
        return wide and self.a.is_cuda and hasattr(torch.ops.aten.bmm, "dtype")

    def bmm(self, out: Tensor) -> None:
        """torch's own product into ``out``; a batch on the left alone is folded into the rows."""
        if self.b.stride(1) == 0:
            a, b = self.a.reshape(self.rank, self.count * self.height, self.inner), self.b[:, 0]
        else:
            a, b = (x.reshape(self.rank * self.count, *x.shape[2:]) for x in (self.a, self.b))
        _bmm(a, b, out.dtype, out.view(a.shape[0], a.shape[1], b.shape[2]))


@dataclass(frozen=True)
class _Constants:
    """Coefficients (r, m, k) on the host, in the order of a flat tuple, and whether few enough of them are not zero
    that adding them up one by one keeps pace with memory."""

    values: tuple[float, ...]
    sparse: bool


def _constants(coefficients: Coefficients, moved: int) -> _Constants | None:
    """What may be compiled in; None when the coefficients lie on the device, or are too many."""
    if isinstance(coefficients, Tensor) and coefficients.device.type != "cpu":
        return None
    host = _host(coefficients)
    return None if host.size > MOST_CONSTANTS else _listed(host.data, moved)


@lru_cache(maxsize=1024)
def _listed(data: bytes, moved: int) -> _Constants:
    """The same object for the same coefficients: a list of thousands is made once, and told from others by itself."""
    array = np.frombuffer(data, np.float32)
    return _Constants(tuple(array.tolist()), int(np.count_nonzero(array)) <= FLOPS_PER_BYTE * moved)


def _on_device(coefficients: Coefficients, device: torch.device) -> Tensor:
    """The coefficients as a contiguous fp32 tensor there; those from the host are moved once."""
    if isinstance(coefficients, Tensor) and coefficients.device == device:
        return coefficients.detach().to(torch.float32).contiguous()
    host = _host(coefficients)
    return _moved(host.data, host.shape, device)


def _host(coefficients: Coefficients) -> _Host:
    """The coefficients on the host in fp32; made once of an array that cannot be written to, as those of a plan."""
    if isinstance(coefficients, Tensor):
        return _Host(coefficients.detach().to("cpu", torch.float32).numpy())
    if coefficients.flags.writeable:
        return _Host(np.asarray(coefficients, np.float32))
    known = _hosts.get(id(coefficients))
    if known is None:
        if len(_hosts) >= MOST_HOSTS:
            _hosts.clear()
        known = _hosts[id(coefficients)] = coefficients, _Host(np.asarray(coefficients, np.float32))
    return known[1]


class _Host:
    """Coefficients (..., r, m, k) in fp32 as bytes in a row, and how many there are."""

    def __init__(self, array: npt.NDArray[np.float32]) -> None:
        self.data, self.shape, self.size = array.tobytes(), array.shape, array.size


_hosts: dict[int, tuple[Any, _Host]] = {}  # by the address of the array, which is kept so that it stays its own


@lru_cache(maxsize=256)
def _moved(data: bytes, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float32).reshape(shape).copy()).to(device)


def _shape(coefficients: Coefficients) -> tuple[int, int, int]:
    kind = coefficients.dtype
    if kind.is_complex if isinstance(kind, torch.dtype) else kind.kind == "c":
        raise UsageError("coefficients are complex; the GPU kernels take real ones: use the torch form")
    r, m, k = coefficients.shape[-3:]
    if m * k > MOST_PARTS:
        raise UsageError(f"the GPU kernels take at most {MOST_PARTS} parts, not {m} x {k}: use the torch form")
    return int(r), int(m), int(k)


def _check(x: Tensor, what: str, known: tuple[str, ...]) -> str:
    """The name of x's dtype; raises UsageError for one that the kernels do not take, and for a wrong device."""
    name, is_complex = dtype_name(x.dtype)
    if is_complex or name not in known:
        raise UsageError(f"{what} is {x.dtype}; the GPU kernels take {', '.join(known)}: use the torch form")
    if not x.is_cuda and tuning.traced() is None and not interpreted():
        raise UsageError(f"{what} is on {x.device}; the GPU kernels take CUDA tensors")
    return name


def _known(dtype: Any, known: tuple[str, ...], what: str) -> str:
    name, is_complex = dtype_name(dtype)
    if is_complex or name not in known:
        raise UsageError(f"{what} is {dtype}; the GPU kernels store {', '.join(known)}")
    return name


def _check_decode(
    slices: int,
    rank: int,
    rows: int,
    cols: int,
    grid: tuple[int, int],
    size: tuple[int, int],
    bias: Tensor | None,
    activation: str | None,
) -> None:
    if slices != rank:
        raise UsageError(f"{slices} products, but coefficients of rank {rank}")
    most = grid[0] * size[0], grid[1] * size[1]
    if not (0 <= rows <= most[0] and 0 <= cols <= most[1]):
        raise UsageError(f"({rows}, {cols}) asked of products that decode to {most}")
    if bias is not None and (tuple(bias.shape) != (cols,) or not bias.is_contiguous()):
        raise UsageError(f"bias has shape {tuple(bias.shape)}, must be contiguous of shape ({cols},)")
    if activation is not None and activation not in ACTIVATIONS:
        raise UsageError(f"unknown activation {activation!r:.40}; known: {', '.join(ACTIVATIONS)}")


def _steps(layout: str, m: int, k: int, height: int, width: int) -> tuple[int, int, Config]:
    """From a part to the next, down and across, and from an entry of a part to the next (as compile-time facts)."""
    if layout == "block":
        return height, width, {"ROW_ITEM": 1, "COL_ITEM": 1}
    if layout == "tile":
        return 1, 1, {"ROW_ITEM": m, "COL_ITEM": k}
    raise UsageError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")


def _precision(stored: str, out: str) -> Config:
    """How matrices of fp32 coefficients meet stored entries: coefficients keep more bits than ``out`` has. In fp16 they
    may not be had at all: its range is small."""
    precision = "ieee" if out == "fp32" else "split" if stored == "bf16" else "tf32x3"
    return {"PRECISION": precision, "WIDEN": _widen()}


def _widen() -> bool:
    """Whether 16-bit operands of a product are made fp32 first: in Triton's interpreter."""
    return interpreted() and tuning.traced() is None


def _padded(parts: int) -> int:
    """``parts`` as a side of a matrix that tensor cores take."""
    return next(size for size in (16, 32, MOST_PARTS) if parts <= size)


def _parts_size(parts: int) -> int:
    """The class of sizes that so many parts belong to."""
    return next(s for s in (4, 16, MOST_PARTS) if parts <= s)


def _parts_class(parts: int, constants: _Constants | None) -> str:
    return f"{_parts_size(parts)}/{'sparse' if constants is not None and constants.sparse else 'dense'}"


def _eligible(constants: _Constants | None, method: str) -> tuple[str, ...]:
    return _among(("dot",) if constants is None else ("unrolled", "dot"), method)


def _among(uses: list[str] | tuple[str, ...], method: str) -> tuple[str, ...]:
    if method == "auto":
        return tuple(uses)
    if method not in uses:
        raise UsageError(f"method {method!r:.40} does not apply to these operands; what does: auto, {', '.join(uses)}")
    return (method,)


def _split(config: Config) -> tuple[Config, Config]:
    """(what the kernel is compiled with, options of the compiler). Multiply-adds are fused, said explicitly because
    Triton's default changes between versions."""
    meta = {key: value for key, value in config.items() if key.isupper()}
    options = {key: value for key, value in config.items() if key.startswith("num_")}
    return meta, options | {"enable_fp_fusion": True}


def _guard(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    here = not x.is_cuda or x.get_device() == torch.cuda.current_device()
    return contextlib.nullcontext() if here else torch.cuda.device(x.device)
