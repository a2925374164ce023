"""C = A B by a plan on the processor, part by part: only a few slices' rows are in memory, and in cache, at a time.

B is encoded whole (r/(k n) of its size; some columns at a time where that is much, or the limit asks for it), then for
each run of rows of A: encode, r products, decode. What lies between never leaves the last cache when the runs are short
enough.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch

from stl_search.errors import UsageError
from stl_search.kernels import cpu, dense, panels
from stl_search.kernels.plan import Plan, dtype_name, torch_dtype, wider, with_out
from stl_search.kernels.watched import watched
from stl_search.scheme import Shape

__all__ = ["CHUNK", "Bilinear", "applies", "encode", "least_workspace", "made_in", "multiply"]

Tensor = torch.Tensor
Packed = dense.Packed | panels.Panels
Operand = Tensor | Packed

# Bytes of encoded rows of A and of products that are in memory together. Buffers of 32 MB and more are new memory each
# time with glibc, which costs more than products of fewer rows do; either of the two stays below.
CHUNK = 48 << 20
# Bytes of B encoded that are in memory together: of more, some columns are made at a time, A encoded again for each.
# New memory is dear, the more so the more there is of it (805 MB: .3 to 1.5 s of 3, docs/log.md), and with fewer
# columns a chunk has more rows.
ENCODED = 256 << 20
ACROSS = 96  # such columns are a multiple of it, so that panels are whole
PAD = 64  # bytes between rows of a buffer that would all begin at the same place of a cache
FEWEST = 16  # rows and columns of a slice below which a limit is refused rather than honoured
SOME = 128  # rows of a slice that make a product worth while


class Bilinear(Protocol):
    """What operands are multiplied by: a ``Plan``, or coefficients from elsewhere; its names mean the same."""

    @property
    def shape(self) -> Shape: ...
    @property
    def rank(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def product(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def complex(self) -> bool: ...
    @property
    def compute(self) -> str: ...
    @property
    def derived(self) -> dict[Any, Any]: ...
    def coefficients(self, side: str, dtype: str, device: Any) -> Tensor: ...


def applies(plan: Bilinear, *operands: Tensor) -> bool:
    """Whether these operands are multiplied here: real, on the processor, and stored in a format that it rounds to."""
    formats = () if plan.dtype == "fp8_e4m3" else [torch_dtype(x) for x in (plan.dtype, plan.product, plan.out)]
    return (
        bool(formats)
        and not plan.complex
        and all(x.device.type == "cpu" for x in operands)
        and cpu.supports(*formats, *(x.dtype for x in operands))
    )


def multiply(
    a: Tensor,
    b: Operand,
    plan: Bilinear,
    rows: int,
    cols: int,
    encoded: tuple[bool, bool] = (False, False),
    levels: int = 1,
    limit: int | None = None,
    out: Tensor | None = None,
    way: str = "torch",
    chunk: int | None = None,
) -> Tensor:
    """A: (..., M, K), B: (..., K, N) -> C: (..., rows = M, cols = N) in ``plan.out``; no gradient.

    ``encoded`` says which of the two is given encoded, as (r, ..., rows', cols') in ``plan.dtype``; B may be packed,
    see ``pack``. ``levels`` - 1 times more, each of the r products is made by the same plan; the last ones, unless B is
    packed, by that ``way`` of ``dense.batched`` ("panels" not under a limit). Besides the operands and C there are in
    memory, in buffers of which CHUNK bytes at most stay for the next call: B encoded, r/(k n) of its size and for
    panels what fills the last one, but no more than ENCODED bytes or ACROSS columns, and one chunk of encoded rows of A
    and of products, ``CHUNK`` bytes or the FEWEST rows; with more levels, A encoded and all products at once. With
    ``limit`` all this keeps below that many bytes, at the price of encoding A several times; raises UsageError where it
    cannot. C may be given, to be filled, and another ``chunk`` of so many bytes.
    """
    if isinstance(b, panels.Panels) or way == "panels":
        way = "panels" if limit is None else "torch"
    idle = _borrowed()
    if limit is not None:
        idle.clear()  # all there is, in all, keeps below it
    scratch = _Scratch(way, idle)
    try:
        return _multiply(a, b, plan, rows, cols, encoded, levels, limit, out, scratch, chunk or CHUNK)
    finally:
        if limit is None:
            scratch.give_back()


def _multiply(
    a: Tensor,
    b: Operand,
    plan: Bilinear,
    rows: int,
    cols: int,
    encoded: tuple[bool, bool],
    levels: int,
    limit: int | None,
    out: Tensor | None,
    scratch: _Scratch,
    chunk: int,
) -> Tensor:
    """The same, in buffers that are given."""
    way = scratch.way
    sizes = _Sizes(a, b, plan, rows, cols, encoded, way == "panels" and _turned(a))
    if out is None:
        out = cpu.empty((*sizes.batch, rows, cols), torch_dtype(plan.out))
    if out.numel() == 0:
        return out
    if sizes.inner == 0:
        return out.zero_()
    chunk = chunk if limit is None else limit
    if way == "panels":
        chunk -= chunk // 16  # what lies between rows
    if not isinstance(b, Tensor) and levels > 1:
        b = b.unpacked()
    if levels == 1 and sizes.bytes(sizes.height, sizes.width) * sizes.most <= chunk:
        b_hat = _right(b, plan, (sizes.inner, sizes.width), scratch, 0, encoded[1])
        a_hat = a if encoded[0] else _window(a, plan, "lhs", (sizes.height, sizes.inner), scratch)
        cpu.decode_into(_products(a_hat, b_hat, plan, scratch), _factor(plan), plan.layout, out)
        return out
    if isinstance(b, Tensor) and (math.prod(b.shape[int(encoded[1]) : -2]) != 1 or levels > 1):
        a, b = (_spread(x, int(e), sizes.batch) for x, e in zip((a, b), encoded, strict=True))
        for index in np.ndindex(*sizes.batch):
            one, other = (x[(slice(None),) * int(e) + index] for x, e in zip((a, b), encoded, strict=True))
            if levels > 1:
                _nested(one, other, plan, encoded, levels, out[index], scratch)
            else:
                one = one.unsqueeze(int(encoded[0]))
                _panels(one, other, plan, encoded, sizes, chunk, limit, out[index][None], scratch)
        return out
    a = _spread(a, int(encoded[0]), sizes.batch)
    a = a.flatten(int(encoded[0]), -3) if sizes.batch else a.unsqueeze(int(encoded[0]))
    if isinstance(b, Tensor):
        b = b.reshape(*b.shape[: int(encoded[1])], *b.shape[-2:])
    _panels(a, b, plan, encoded, sizes, chunk, limit, out.reshape(-1, rows, cols), scratch)
    return out


def _spread(x: Tensor, lead: int, batch: tuple[int, ...]) -> Tensor:
    """x: (..., rows, cols), behind ``lead`` dimensions, broadcast to that batch."""
    new = (1,) * (len(batch) - (x.ndim - lead - 2))
    x = x.reshape(*x.shape[:lead], *new, *x.shape[lead:])
    return x.expand(*x.shape[:lead], *batch, *x.shape[-2:])


def encode(x: Tensor, plan: Bilinear, side: str) -> Tensor:
    """x: (..., M, K) for side "lhs", (..., K, N) for "rhs" -> (r, ..., rows, cols) in ``plan.dtype``."""
    return cpu.encode(x, _factor(plan, side, x), plan.layout, torch_dtype(plan.dtype))


def pack(b_hat: Tensor, plan: Bilinear, way: str) -> Operand:
    """B encoded: (r, ..., K', N') in ``plan.dtype`` -> packed that way where its products are made in that dtype."""
    return dense.pack(b_hat, way) if b_hat.dtype == made_in(plan) and way in dense.packings(b_hat) else b_hat


def _factor(plan: Bilinear, side: str = "out", x: Tensor | None = None) -> cpu.Constant:
    """The coefficients in the precision in which sums over entries of x, or over products, are made."""
    key = side, plan.compute if x is None else wider(plan.compute, dtype_name(x.dtype)[0])
    found: cpu.Constant | None = plan.derived.get(key)
    if found is None:
        found = cpu.Constant(plan.coefficients(*key, "cpu"))
        if not watched():  # else they belong to who looks on
            plan.derived[key] = found
    return found


class _Sizes:
    """Of the slices: (height, inner) and (inner, width); what a chunk of rows and columns takes."""

    def __init__(
        self,
        a: Tensor,
        b: Operand,
        plan: Bilinear,
        rows: int,
        cols: int,
        encoded: tuple[bool, bool],
        copied: bool = False,
    ) -> None:
        """``copied`` says whether A encoded is once more in memory."""
        m, k, n = plan.shape
        self.rank = plan.rank
        self.height, self.width = -(-rows // m), -(-cols // n)
        self.inner = b.shape[-2] if encoded[1] else -(-b.shape[-2] // k)
        batches = [x.shape[int(e) : -2] for x, e in zip((a, b), encoded, strict=True)]
        self.batch: tuple[int, ...] = np.broadcast_shapes(*batches)
        self.most = math.prod(self.batch)
        stored, work, kept = torch_dtype(plan.dtype), made_in(plan), torch_dtype(plan.product)
        twice = stored.itemsize + work.itemsize if stored != work else work.itemsize
        of_products = work.itemsize + (kept.itemsize if kept != work else 0)
        self.per = [0 if encoded[0] and stored == work else twice, 0 if encoded[1] and stored == work else twice]
        copied = copied or (isinstance(b, panels.Panels) and _turned(a))
        self.per[0] += work.itemsize if copied else 0
        self.of_products = of_products

    def bytes(self, rows: int, cols: int) -> int:
        """Of so many rows of encoded A, columns of encoded B, and their products."""
        left, right = rows * self.inner * self.per[0], self.inner * cols * self.per[1]
        return self.rank * (left + right + rows * cols * self.of_products)

    def least(self, b: Operand) -> int:
        """The bytes of the fewest rows and columns that are made together: of a packed B all columns."""
        return self.bytes(min(FEWEST, self.height), min(FEWEST, self.width) if isinstance(b, Tensor) else self.width)

    def rows_within(self, chunk: int, cols: int) -> int:
        """The most rows of encoded A and of their products with ``cols`` columns that take ``chunk`` bytes."""
        return chunk // max(1, self.bytes(1, cols) - self.bytes(0, cols))


def least_workspace(a: Tensor, b: Operand, plan: Bilinear, rows: int, cols: int, encoded: tuple[bool, bool]) -> int:
    """The bytes below which ``multiply`` refuses a limit."""
    return _Sizes(a, b, plan, rows, cols, encoded).least(b)


def _panels(
    a: Tensor,
    b: Operand,
    plan: Bilinear,
    encoded: tuple[bool, bool],
    sizes: _Sizes,
    chunk: int,
    limit: int | None,
    out: Tensor,
    scratch: _Scratch,
) -> None:
    """A: (G, M, K) or (r, G, M', K'), B: (K, N) or (r, K', N') -> out: (G, M, N), in chunks of rows and columns."""
    height, width = sizes.height, sizes.width
    panel = width
    if limit is not None:
        least = sizes.least(b)
        if limit < least:
            raise UsageError(
                f"a workspace of {limit} bytes is too small for this product and scheme: give {least} at least"
            )
        # The widest panel of B beside which SOME rows of A and their products fit.
        while isinstance(b, Tensor) and panel > FEWEST and sizes.bytes(min(SOME, height), panel) > limit:
            panel = max(FEWEST, -(-panel // 2))
        chunk = limit - sizes.bytes(0, panel)
    elif not isinstance(b, dense.Packed):
        made = made_in(plan).itemsize * sizes.rank * sizes.inner * width if scratch.way == "panels" else 0
        parts = -(-max(made, sizes.bytes(0, width)) // ENCODED)
        panel = -(-width // parts // ACROSS) * ACROSS if parts > 1 else width
    step = max(min(FEWEST, height), min(height * len(out), sizes.rows_within(chunk, panel)))
    group = max(1, step // height)  # whole products at a time, or runs of rows of one
    for left in range(0, width, panel):
        here = min(panel, width - left)
        b_hat = b if here == width or not isinstance(b, panels.Panels) else b.columns(left, here)
        if isinstance(b, Tensor):  # once for all rows of A
            part = b[..., left : left + here] if encoded[1] else b
            b_hat = _right(part, plan, (sizes.inner, here), scratch, left, encoded[1])
        for g in range(0, len(out), group):
            rows_of_a = a[:, g : g + group] if encoded[0] else a[g : g + group]
            for top in range(0, height, step):
                size = (min(step, height - top), sizes.inner)
                rows = slice(top, top + size[0])
                a_hat = rows_of_a[..., rows, :] if encoded[0] else _window(rows_of_a, plan, "lhs", size, scratch, top)
                p = _products(a_hat, b_hat, plan, scratch)
                cpu.decode_into(p, _factor(plan), plan.layout, out[g : g + group], top, left)


# Buffers that a call left to the next, CHUNK bytes at most: new memory costs a fault for every page of it, and at 1024
# square, rank 49, half as much again as all that is done there.
_idle: list[dict[str, Tensor]] = []


def _borrowed() -> dict[str, Tensor]:
    """What lies idle; nothing where another thread has it."""
    try:
        return _idle.pop()
    except IndexError:
        return {}


class _Scratch:
    """What one call works with: named buffers, asked for again and again, first touched once, and its ``way``."""

    def __init__(self, way: str, held: dict[str, Tensor] | None = None, prefix: str = "") -> None:
        self.way = way
        self._held = {} if held is None else held
        self._prefix = prefix

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of that shape on the buffer of that name, which grows where it is too small."""
        name, size = self._prefix + name, math.prod(shape) * dtype.itemsize
        if name not in self._held or self._held[name].numel() < size:
            self._held.pop(name, None)
            with torch.inference_mode(False):  # others will write on it
                self._held[name] = cpu.empty((size,), torch.uint8)
        return self._held[name][:size].view(dtype).view(shape)

    def apart(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The same; of operands of panels the rows lie apart where they would get in each other's way."""
        more = PAD // dtype.itemsize if self.way == "panels" and shape[-1] * dtype.itemsize % 1024 == 0 else 0
        return self(name, (*shape[:-1], shape[-1] + more), dtype)[..., : shape[-1]]

    def convert(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x in that dtype; on the buffer of that name where that is another one."""
        return x if x.dtype == dtype else self.apart(name, tuple(x.shape), dtype).copy_(x)

    def forget(self, *names: str) -> None:
        """Give up the buffers of these names."""
        for name in names:
            self._held.pop(self._prefix + name, None)

    def give_back(self) -> None:
        """Leave what CHUNK bytes hold, the smallest first, to the next call, unless another has left something."""
        kept, total = {}, 0
        for name, buffer in sorted(self._held.items(), key=lambda item: item[1].numel()):
            total += buffer.numel()
            if total <= CHUNK and not buffer.requires_grad:
                kept[name] = buffer
        self._held = {}
        if not _idle:
            _idle.append(kept)

    def inner(self) -> _Scratch:
        """The buffers of what is done inside, one set for all repetitions."""
        return _Scratch(self.way, self._held, self._prefix + "inner ")


def _turned(x: Tensor) -> bool:
    """Whether x is column-major."""
    return x.stride(-1) != 1 and x.stride(-2) == 1 and x.shape[-1] > 1


def _window(
    x: Tensor, plan: Bilinear, side: str, size: tuple[int, int], scratch: _Scratch, top: int = 0, left: int = 0
) -> Tensor:
    """The rows and columns of the slices of x: (..., rows, cols) that begin at (top, left), encoded."""
    factor, dtype = _factor(plan, side, x), torch_dtype(plan.dtype)
    if _turned(x):  # and so are its slices
        hat = scratch(side, (plan.rank, *x.shape[:-2], *size[::-1]), dtype)
        cpu.encode_into(x.mT, factor.mT, plan.layout, hat, left, top)
        return hat.mT
    hat = scratch.apart(side, (plan.rank, *x.shape[:-2], *size), dtype)
    cpu.encode_into(x, factor, plan.layout, hat, top, left)
    return hat


def _right(
    b: Operand, plan: Bilinear, size: tuple[int, int], scratch: _Scratch, left: int = 0, encoded: bool = False
) -> Operand:
    """(r, ..., inner, cols), as the products take it, from what is encoded already or from B: (..., K, N).

    Of B's slices they are the ``size`` = (inner, cols) that begin at column ``left``.
    """
    if not isinstance(b, Tensor):
        return b
    work, rank, (inner, cols) = made_in(plan), plan.rank, size
    if scratch.way != "panels" or b.ndim - int(encoded) > 2 or not panels.supports(work):
        return scratch.convert("wide rhs", b if encoded else _window(b, plan, "rhs", size, scratch, 0, left), work)
    shape = (rank, inner, cols)
    taken = panels.Panels.size(shape, work)
    found = panels.Panels(shape, work, scratch("panels", (taken,), torch.uint8))
    if not encoded and torch_dtype(plan.dtype) == work and not _turned(b):
        cpu.encode_panels(b, _factor(plan, "rhs", b), plan.layout, found.data, 0, left)
        scratch.forget("rhs")
        return found
    if taken > CHUNK // 2:  # beside much of B, no room is taken for A and products
        scratch.forget("lhs", "wide lhs", "rows lhs", "products", "kept products")
    step = max(1, CHUNK // (6 * rank * cols * torch_dtype(plan.dtype).itemsize))  # rows, which the last cache holds
    for top in range(0, inner, step):
        rows = min(step, inner - top)
        part = b[:, top : top + rows] if encoded else _window(b, plan, "rhs", (rows, cols), scratch, top, left)
        found.fill(part, top)
    scratch.forget("rhs")
    return found


def _products(a: Tensor, b: Operand, plan: Bilinear, scratch: _Scratch) -> Tensor | list[Tensor]:
    """a: (r, ..., M', K'), b: (r, ..., K', N') -> (r, ..., M', N') in ``plan.product``, or r times (..., M', N')."""
    work, kept = made_in(plan), torch_dtype(plan.product)
    a = scratch.convert("wide lhs", a, work)
    if isinstance(b, dense.Packed):
        return [x.to(kept) for x in b.products(a)]
    if isinstance(b, Tensor):
        b = scratch.convert("wide rhs", b, work)
    elif a.stride(-1) != 1:
        a = scratch.apart("rows lhs", tuple(a.shape), work).copy_(a)
    out = scratch.apart("products", (*a.shape[:-1], b.shape[-1]), work) if len(b.shape) == 3 else None
    p = dense.batched(a, b, out, scratch.way) if isinstance(b, Tensor) else b.products(a, out)
    return scratch.convert("kept products", p, kept)


def _nested(
    a: Tensor, b: Tensor, plan: Bilinear, encoded: tuple[bool, bool], levels: int, out: Tensor, scratch: _Scratch
) -> None:
    """A: (M, K) or (r, M', K'), B: (K, N) or (r, K', N') -> out: (M, N), the products by the same plan."""
    work, (m, k, n) = torch_dtype(plan.compute), plan.shape
    height, width = -(-out.shape[-2] // m), -(-out.shape[-1] // n)
    inner = b.shape[-2] if encoded[1] else -(-b.shape[-2] // k)
    a_hat = a if encoded[0] else _window(a, plan, "lhs", (height, inner), scratch)
    b_hat = b if encoded[1] else _window(b, plan, "rhs", (inner, width), scratch)
    a_hat, b_hat = scratch.convert("wide lhs", a_hat, work), scratch.convert("wide rhs", b_hat, work)
    p = scratch("products", (len(a_hat), height, width), work)
    assert isinstance(plan, Plan)
    inside = with_out(plan, plan.compute)
    for q in range(len(p)):
        left, right = a_hat[q], b_hat[q]
        _multiply(
            left, right, inside, height, width, (False, False), levels - 1, None, p[q], scratch.inner(), CHUNK
        )  # fmt: skip
    kept = scratch.convert("kept products", p, torch_dtype(plan.product))
    cpu.decode_into(kept, _factor(plan), plan.layout, out)


def made_in(plan: Bilinear) -> torch.dtype:
    """In what precision products are made: bf16 where operands and products are both stored so, else that of sums."""
    return torch.bfloat16 if plan.dtype == plan.product == "bf16" else torch_dtype(plan.compute)
