"""STLLinear and STLConv2d: layers whose matrix product is a bilinear scheme on tiles, with learnable encoders.

Ailon, Bercovich, Uffenheimer, Weinstein, "Changing base without losing pace: a GPU-efficient alternative to MatMul in
DNNs", arXiv 2503.12211. With A = x: (..., M, in) and B = weight^T: (in, out), cut into m x k and k x n tiles,

    y = A B + bias,   A_hat[q] = <u[q], A_tile>,   B_hat[q] = <v[q], B_tile>,   y_tile = sum_q w[q] (A_hat[q] B_hat[q])
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from stl_search import score
from stl_search.errors import UsageError
from stl_search.kernels.plan import Plan
from stl_search.nn import functional
from stl_search.runtime.dispatch import request_of
from stl_search.scheme import Scheme, Shape

__all__ = ["DEFAULT_ENCODER", "Encoders", "STLConv2d", "STLLayer", "STLLinear"]

Tensor = torch.Tensor
L = TypeVar("L", nn.Linear, nn.Conv2d)
DEFAULT_ENCODER = "catalog:best?shape=4,4,4&rank=32"


class Encoders(nn.Module):
    """u: (r, m, k), v: (r, k, n), w: (r, m, n) as parameters; u and v may be (J, r, ...), one for each inner tile.

    One module may serve many layers ("shared encoders"): hand it to each of them. Raises UsageError for factors that
    do not go together.
    """

    def __init__(self, u: Tensor, v: Tensor, w: Tensor) -> None:
        super().__init__()
        shapes = (u.shape[-3:], v.shape[-3:], w.shape)
        r, m, n = w.shape if w.ndim == 3 else (0, 0, 0)
        if (
            not r
            or shapes[0] != (r, m, v.shape[-2])
            or shapes[1] != (r, u.shape[-1], n)
            or u.shape[:-3] != v.shape[:-3]
        ):
            raise UsageError(f"u {tuple(u.shape)}, v {tuple(v.shape)} and w {tuple(w.shape)} are no encoders")
        self.u, self.v, self.w = nn.Parameter(u), nn.Parameter(v), nn.Parameter(w)
        self._empty = u.is_meta  # no values: made on the meta device or left by ``to_empty``, and not loaded since

    @classmethod
    def of(cls, encoder: Any, device: Any = None, dtype: torch.dtype | None = None) -> Encoders:
        """The factors of a scheme: a selector or path that names one, a ``Scheme`` or a ``Plan``.

        Raises UsageError for open selectors and for schemes over Z2 and C, and what loading raises.
        """
        request = request_of(encoder)
        if request.named is None:
            raise UsageError("an open selector cannot fill a layer: name one scheme, with shape= and rank=")
        found = request.named("fp32")
        plan = found if isinstance(found, Plan) else Plan(found)
        kind = dtype or torch.get_default_dtype()
        return cls(*(torch.tensor(np.asarray(f), device=device, dtype=kind) for f in plan.factors))

    @classmethod
    def random(
        cls,
        shape: Shape,
        rank: int,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Encoders:
        """Independent normal factors for <m,k,n>, scaled so that outputs have the variance of a dense layer's.

        They are drawn on the generator's device, without one by the CPU's own, so that the same seed gives the same.
        """
        m, k, n = shape
        kind = dtype or torch.get_default_dtype()
        drawn = generator.device if generator is not None else "cpu"
        place = device if device is not None else torch.get_default_device()
        scales = (1 / math.sqrt(m * k), 1 / math.sqrt(k * n), math.sqrt(k / max(rank, 1)))
        sides = ((m, k), (k, n), (m, n))
        return cls(
            *(
                (torch.randn((rank, *side), generator=generator, device=drawn, dtype=kind) * scale).to(place)
                for side, scale in zip(sides, scales, strict=True)
            )
        )

    @property
    def shape(self) -> Shape:
        """(m, k, n)."""
        return self.u.shape[-2], self.u.shape[-1], self.w.shape[-1]

    @property
    def rank(self) -> int:
        """r."""
        return self.w.shape[0]

    @property
    def rows(self) -> int | None:
        """How many inner tiles have encoders of their own; None when all share one."""
        return self.u.shape[0] if self.u.ndim == 4 else None

    def per_row(self, count: int) -> Encoders:
        """A copy in which each of ``count`` inner tiles (block-rows of the weight) has encoders of its own."""
        if self.rows is not None:
            raise UsageError("these encoders are per block-row already")
        u, v = (f.detach().expand(count, *f.shape).clone() for f in (self.u, self.v))
        made = Encoders(u, v, self.w.detach().clone())
        made._empty = self._empty
        return made

    @torch.no_grad()
    def schemes(self) -> list[Scheme]:
        """The factors as schemes over R: one, or one for each inner tile."""
        us, vs = (f.detach()[None] if f.ndim == 3 else f.detach() for f in (self.u, self.v))
        w = self.w.detach().double().cpu().numpy()
        pairs = zip(us.double().cpu().numpy(), vs.double().cpu().numpy(), strict=True)
        return [Scheme(self.shape, "R", u, v, w) for u, v in pairs]

    def expected_error(self) -> float:
        """E, see ``stl_search.score``, the mean over inner tiles: 0 where these encoders multiply exactly."""
        return float(np.mean([score.expected_error(s) for s in self.schemes()]))

    def _apply(self, fn: Any, recurse: bool = True) -> Encoders:
        """As in torch, noting whether the values were lost: what ``to_empty`` gives depends on none, for autograd."""
        with torch.inference_mode(False), torch.enable_grad():
            kept = fn(torch.empty(0, dtype=self.u.dtype, device=self.u.device, requires_grad=True)).requires_grad
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._empty = self._empty or not kept or self.u.is_meta
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As in torch, noting whether all values were brought."""
        error_msgs = rest[-1]
        before = len(error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if len(error_msgs) == before and all(prefix + name in state_dict for name in "uvw"):
            self._empty = self.u.is_meta

    def extra_repr(self) -> str:
        """<m,k,n>, rank and how many."""
        m, k, n = self.shape
        return f"<{m},{k},{n}>, rank={self.rank}" + (f", rows={self.rows}" if self.rows is not None else "")


class STLLayer(nn.Module):
    """What STLLinear and STLConv2d share: a weight seen as B: (inner, cols), encoders, bias, and what becomes of them.

    ``weight`` (dense, of the replaced layer's own shape) is encoded at every step; or ``encoded`` (r, J, L) stands in
    its place and is trained directly, r/(kn) times as many numbers. Never both, unless ``freeze`` keeps an encoding
    beside the weight, outside the state_dict.
    """

    encoders: Encoders
    weight: nn.Parameter | None
    encoded: nn.Parameter | None
    bias: nn.Parameter | None
    frozen: Tensor | None
    _kept: tuple[Tensor, Any, Any] | None = None  # a frozen weight, its state, and what products take for it

    def _fill(self, encoder: Any, dense: nn.Linear | nn.Conv2d, mode: str, per_row: bool) -> None:
        if mode not in ("dense", "encoded"):
            raise UsageError(f'weight is {mode!r:.40}, must be "dense" or "encoded"')
        _demand_own(dense, "become an STL layer", "weight", "bias")
        weight: Any = dense.weight
        bias: Any = dense.bias
        made = encoder if isinstance(encoder, Encoders) else Encoders.of(encoder, weight.device, weight.dtype)
        if not weight.is_complex() and any(f.is_complex() for f in made.parameters()):
            raise UsageError(f"complex encoders give complex results, the layer is {weight.dtype}: give real ones")
        inner = math.ceil(self.inner / made.shape[1])
        if per_row and made.rows is None:
            made = made.per_row(inner)
        if made.rows is not None and made.rows != inner:
            raise UsageError(f"encoders for {made.rows} inner tiles, the layer has {inner}")
        self.encoders = made
        self.register_parameter("weight", weight)
        self.register_parameter("encoded", None)
        self.register_parameter("bias", bias)
        self.register_buffer("frozen", None, persistent=False)
        self._thawed: tuple[str, ...] = ()
        self._kept = None
        self.register_load_state_dict_post_hook(encode_again)  # type: ignore[no-untyped-call]
        if mode == "encoded":
            self.encode_()

    # -- sizes ---------------------------------------------------------------------------------------------------------

    @property
    def inner(self) -> int:
        """K, what is summed over: in_features, or the entries of one convolution window."""
        raise NotImplementedError

    @property
    def cols(self) -> int:
        """N: out_features or out_channels."""
        raise NotImplementedError

    @property
    def multiplications(self) -> float:
        """Of scalars, for each row of x, whole tiles counted: encoding x, the r products, decoding."""
        m, k, n = self.encoders.shape
        across, out = math.ceil(self.inner / k), math.ceil(self.cols / n)
        return self.encoders.rank * (across * k + across * out / m + out * n)

    # -- the weight ----------------------------------------------------------------------------------------------------

    def _matrix(self, weight: Tensor) -> Tensor:
        """weight -> B: (inner, cols)."""
        return weight.flatten(1).T

    def encoded_weight(self) -> Tensor:
        """B_hat: (r, J, L), from wherever the weight is held."""
        if self.encoded is not None:
            return self.encoded
        if self.frozen is not None:
            return self.frozen
        assert self.weight is not None
        v, b = self.encoders.v, self._matrix(self.weight)
        wide = torch.promote_types(torch.promote_types(b.dtype, torch.float32), v.dtype)
        with _plain(b.device):
            return functional.encode_rhs(b.to(wide), v.to(wide))

    @torch.no_grad()
    def encode_(self) -> None:
        """From now on the encoded weight is what is held and trained; the dense one is given up. Explicit, no way back
        but ``dense_weight``, for exact encoders.

        Raises UsageError, and changes nothing, for a weight that is worked out from other parameters.
        """
        if self.encoded is not None:
            return
        _demand_own(self, "be encoded", "weight")
        assert self.weight is not None
        self.thaw()
        b_hat = self.encoded_weight().to(self.weight.dtype)
        self.encoded = nn.Parameter(b_hat, requires_grad=self.weight.requires_grad)
        self.weight = None
        self.encoders.v.requires_grad_(False)  # takes no part any more, but for dense_weight

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """The dense weight that this layer multiplies by, in the replaced layer's shape.

        Raises UsageError where there is none: for encoders that are not exact, and for an encoded weight that is not
        the encoding of a dense one (it has r/(kn) times as many degrees of freedom, and training uses them).
        """
        if self.encoders.expected_error() > self._exactness() ** 2:
            raise UsageError(
                f"{self} is not exact (E = {self.encoders.expected_error():.3g}): no dense layer does the same"
            )
        if self.weight is not None:
            return self.weight.detach()
        assert self.encoded is not None
        kind = torch.promote_types(self.encoded.dtype, torch.float32)
        u, v, w = (f.to(kind) for f in (self.encoders.u, self.encoders.v, self.encoders.w))
        unit = torch.eye(self.inner, dtype=kind, device=u.device)
        b = functional.stl_product(unit, self.encoded.to(kind), u, w, self.cols)
        again = functional.encode_rhs(b, v)
        gap = torch.linalg.vector_norm(again - self.encoded)
        if gap > self._exactness() * torch.linalg.vector_norm(self.encoded):
            raise UsageError(f"{self}: its encoded weight is no dense one's encoding any more")
        return b.T.reshape(self._weight_shape()).to(self.encoded.dtype)

    def to_dense(self) -> nn.Module:
        """The dense layer that does the same.

        Raises UsageError where there is none, see ``dense_weight``, for a parametrized weight or bias, and for a
        ``forward`` of its own.
        """
        raise NotImplementedError

    def _exactness(self) -> float:
        """How far from exact the encoders may be: rounding of the dtype in one product of the layer's own size.

        Encoding, product and decoding make at most mk + K + r roundings one after another; growth is that of sums of
        r terms.
        """
        held = self.encoded if self.encoded is not None else self.weight
        assert held is not None
        m, k, n = self.encoders.shape
        steps = m * k + self.inner + 2 * self.encoders.rank
        return float(torch.finfo(held.dtype).eps) * steps

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.cols, self.inner)

    # -- inference -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def freeze(self) -> None:
        """For inference: encode the weight once and stop all learning in this layer, until ``thaw``.

        The dense weight stays, and with it the state_dict; the encoding beside it costs r/(kn) of its memory, and again
        as much from the first large product on the processor on, as its kernels read it. Give the dense weight up with
        ``encode_`` where memory counts. What is changed in a frozen weight, but by loading, counts from ``thaw`` on.
        """
        if self._thawed or self.frozen is not None:
            return
        if self.weight is not None:
            self.frozen = self.encoded_weight().detach()
        self._thawed = tuple(name for name, p in self.named_parameters() if p.requires_grad)
        for name in self._thawed:
            self.get_parameter(name).requires_grad_(False)

    def thaw(self) -> None:
        """Undo ``freeze``: what was learnable is learnable again, and the weight is encoded at each step."""
        self.frozen = self._kept = None
        for name in self._thawed:
            self.get_parameter(name).requires_grad_(True)
        self._thawed = ()

    # -- forward -------------------------------------------------------------------------------------------------------

    def _multiply(self, x: Tensor) -> Tensor:
        """x: (..., M, inner) -> (..., M, cols), bias included; under autocast encoded operands are in its dtype."""
        stored = self._stored(x)
        b_hat, u, w = self.encoded_weight(), self.encoders.u, self.encoders.w
        with _plain(x.device):
            if not functional.in_parts(x, b_hat, u, w, self.cols):
                y = functional.at_once(x, b_hat, u, w, self.cols, stored)
                return (y if self.bias is None else y + self.bias).to(stored)
            held = self._packed(x, b_hat, stored) if self.frozen is b_hat or self._thawed else b_hat
            y = functional.by_parts(x, held, u, w, self.cols, stored)
            return (y if self.bias is None else y.add_(self.bias)).to(stored)

    def _packed(self, x: Tensor, b_hat: Tensor, stored: torch.dtype) -> Any:
        """The encoded weight of a frozen layer as products on the processor take it, made once."""
        state = b_hat.data_ptr(), None if b_hat.is_inference() else b_hat._version, stored
        kept = self._kept  # once: another thread may have another dtype
        if kept is None or kept[0] is not b_hat or kept[1] != state:
            kept = b_hat, state, functional.pack(x, b_hat, self.encoders.u, self.encoders.w, stored)
            self._kept = kept
        return kept[2]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._kept = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _stored(self, x: Tensor) -> torch.dtype:
        """The dtype of encoded operands and output: autocast's where torch would cast both x and the weight, which are
        real and not float64, else theirs; raises UsageError where these differ."""
        held = self.encoded if self.encoded is not None else self.weight
        assert held is not None
        narrow = all(kind.is_floating_point and kind != torch.float64 for kind in (x.dtype, held.dtype))
        if narrow and _autocasts(x.device):
            return torch.get_autocast_dtype(x.device.type)
        if x.dtype != held.dtype:
            way = ", or use torch.autocast" if narrow else ""
            raise UsageError(f"x is {x.dtype}, the layer {held.dtype}: convert one{way}")
        return held.dtype

    # -- state ---------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As in torch, but a dense layer's checkpoint fills a dense-weight layer, whose encoders then stay as they are;
        encoders without values and a weight of the other form are errors even where ``strict`` is False."""
        mine, other = ("encoded", "weight") if self.encoded is not None else ("weight", "encoded")
        if prefix + other in state_dict and prefix + mine not in state_dict:
            way = (
                "load it into a layer with a dense weight and call encode_()"
                if other == "weight"
                else "call encode_() on the layer first"
            )
            error_msgs.append(
                f"{prefix or 'the layer '}holds {'an encoded' if mine == 'encoded' else 'a dense'} weight, the "
                f"checkpoint {prefix}{other}: {way}"
            )
        names = [prefix + "encoders." + name for name in "uvw"]
        if prefix + "weight" in state_dict and not any(name in state_dict for name in names):
            if self.encoders._empty:
                error_msgs.append(
                    f"{prefix}encoders has no values (the meta device gives none, to_empty keeps none), the checkpoint "
                    f"brings none: call load_state_dict on it first, with the state_dict() of Encoders.of a scheme"
                )
            else:
                for name in names:  # a dense layer's checkpoint knows no encoders
                    state_dict[name] = self.encoders.get_parameter(name[-1]).detach()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        """How the weight is held."""
        held = "encoded" if self.encoded is not None else "dense, frozen" if self.frozen is not None else "dense"
        return f"weight={held}, bias={self.bias is not None}"


def derived(layer: nn.Module, *names: str) -> str | None:
    """Why these tensors of a layer cannot be handed on: the first that is no Parameter of its own; None if all are."""
    made = next((name for name in names if name not in layer._parameters), None)
    return made and f"its {made} is worked out from other parameters (parametrized, normalised or pruned)"


def _demand_own(layer: nn.Module, aim: str, *names: str) -> None:
    """Raises UsageError, before anything is changed, where ``derived`` has a reason."""
    if reason := derived(layer, *names):
        raise UsageError(f"a {type(layer).__name__} cannot {aim}: {reason}; undo that first")


def encode_again(layer: STLLayer, incompatible: Any) -> None:
    """After loading: what ``freeze`` kept belongs to the weight that was there before."""
    layer._kept = None
    if layer.frozen is not None:
        layer.frozen = None
        with torch.no_grad():
            layer.frozen = layer.encoded_weight().detach()


def _plain(device: torch.device) -> AbstractContextManager[Any]:
    """Sums run in the precision that they are given, whatever torch.autocast says around the layer."""
    return torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()


def _autocasts(device: torch.device) -> bool:
    """Whether torch.autocast is on for this device; some, such as "meta", know none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


class STLLinear(STLLayer):
    """x: (..., in_features) -> (..., out_features), about x weight^T + bias, by a scheme <m,k,n> of rank r on tiles.

    Tiles take m consecutive positions of x's last dimension but one, so that sequences of a batch do not mix; what
    lies beyond an edge counts as zero. With an approximate scheme a row of the output thus depends a little on the
    rows in its tile.

    ``encoder`` is a selector or path that names one scheme, a ``Scheme``, a ``Plan``, or ``Encoders``, which are used
    as they are and may be shared between layers (``Encoders.random`` makes random ones). ``per_row`` gives each
    block-row of the weight (inner tile) encoders of its own. ``weight`` is "dense", encoded anew at each step, or
    "encoded", r/(kn) times as many numbers trained directly. Gradients reach x, weight, bias and the encoders.

    Parameters are those of nn.Linear (its checkpoints load into a dense-weight layer) and encoders.u, .v, .w.
    Raises UsageError for encoders that do not fit, and in ``forward`` for another dtype than the layer's.

    >>> from stl_search.scheme import Scheme
    >>> one = Scheme((1, 1, 1), "ZT", [[1]], [[1]], [[1]])
    >>> STLLinear(5, 3, encoder=one)(torch.ones(2, 7, 5)).shape
    torch.Size([2, 7, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        encoder: Any = DEFAULT_ENCODER,
        weight: str = "dense",
        per_row: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dense = nn.Linear(in_features, out_features, bias, device, dtype)
        self._take(dense, encoder, weight, per_row)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, encoder: Any = DEFAULT_ENCODER, *, weight: str = "dense", per_row: bool = False
    ) -> STLLinear:
        """A layer with the weight and bias of a dense one: the same Parameters, where the weight stays dense."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take(linear, encoder, weight, per_row)
        layer.train(linear.training)
        return layer

    def _take(self, dense: nn.Linear, encoder: Any, mode: str, per_row: bool) -> None:
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self._fill(encoder, dense, mode, per_row)

    @property
    def inner(self) -> int:
        """in_features."""
        return self.in_features

    @property
    def cols(self) -> int:
        """out_features."""
        return self.out_features

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., in_features) -> (..., out_features)."""
        if input.shape[-1:] != (self.in_features,):
            raise UsageError(f"x has shape {tuple(input.shape)}, its last dimension must be {self.in_features}")
        return self._multiply(input) if input.ndim > 1 else self._multiply(input[None])[0]

    def to_dense(self) -> nn.Linear:
        """The nn.Linear that does the same; raises UsageError where there is none, see ``dense_weight``."""
        return _dense(nn.Linear(self.in_features, self.out_features, bias=False, device="meta"), self)

    def extra_repr(self) -> str:
        """As nn.Linear, and how the weight is held."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}"


def _dense(shell: L, layer: STLLayer) -> L:
    _demand_own(layer, "become dense", "weight", "encoded", "bias")
    if getattr(layer.forward, "__func__", None) not in (STLLinear.forward, STLConv2d.forward):
        raise UsageError(f"a {type(layer).__name__} with a forward of its own does what no dense layer does")
    weight = layer.dense_weight()
    learnable = "encoded" in layer._thawed or (layer.encoded is not None and layer.encoded.requires_grad)
    shell.weight = layer.weight if layer.weight is not None else nn.Parameter(weight, requires_grad=learnable)
    shell.register_parameter("bias", layer.bias)
    shell.train(layer.training)
    return shell


def edges(conv: nn.Conv2d) -> tuple[int, ...]:
    """(left, right, top, bottom): what a convolution adds around an image, "same" and "valid" worked out."""
    if conv.padding == "valid":
        return (0, 0, 0, 0)
    if conv.padding == "same":
        spare = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return tuple(part for s in reversed(spare) for part in (s // 2, s - s // 2))
    down, across = (int(p) for p in conv.padding)
    return (across, across, down, down)


def windows(conv: nn.Conv2d | STLConv2d, x: Tensor) -> Tensor:
    """x: (..., in_channels, H, W) -> (..., H' W', inner): the entries under each place of the kernel, padding done."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    around = conv.edges if isinstance(conv, STLConv2d) else edges(conv)
    x = torch.nn.functional.pad(x, around, mode=mode)
    return torch.nn.functional.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride).transpose(-2, -1)


class STLConv2d(STLLayer):
    """x: (batch, in_channels, H, W) or without batch -> (..., out_channels, H', W'): nn.Conv2d by unfolding.

    The windows of an image are the rows of A, its in_channels * kernel entries the inner dimension, in the order of the
    flattened weight; m consecutive windows share a tile. All else as in ``STLLinear``. Raises UsageError for groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        *,
        encoder: Any = DEFAULT_ENCODER,
        weight: str = "dense",
        per_row: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self._take(nn.Conv2d(*sizes, bias, padding_mode, device, dtype), encoder, weight, per_row)

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, encoder: Any = DEFAULT_ENCODER, *, weight: str = "dense", per_row: bool = False
    ) -> STLConv2d:
        """A layer with the weight and bias of a dense one: the same Parameters, where the weight stays dense."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take(conv, encoder, weight, per_row)
        layer.train(conv.training)
        return layer

    def _take(self, dense: nn.Conv2d, encoder: Any, mode: str, per_row: bool) -> None:
        if dense.groups != 1:
            raise UsageError(f"a convolution in {dense.groups} groups is that many small products: not unfolded here")
        self.in_channels, self.out_channels, self.padding_mode = (
            dense.in_channels,
            dense.out_channels,
            dense.padding_mode,
        )
        self.kernel_size, self.stride, self.padding = dense.kernel_size, dense.stride, dense.padding
        self.dilation: tuple[int, ...] = dense.dilation
        self.edges = edges(dense)
        self._fill(encoder, dense, mode, per_row)

    @property
    def inner(self) -> int:
        """Entries of one window."""
        return int(self.in_channels * math.prod(self.kernel_size))

    @property
    def cols(self) -> int:
        """out_channels."""
        return int(self.out_channels)

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., in_channels, H, W) -> (..., out_channels, H', W')."""
        x = input
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise UsageError(f"x has shape {tuple(x.shape)}, must be (batch, {self.in_channels}, H, W)")
        rows = windows(self, x)
        heights = [
            (x.shape[i - 2] + sum(self.edges[2 - 2 * i : 4 - 2 * i]) - self.dilation[i] * (self.kernel_size[i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        ]
        y = self._multiply(rows).transpose(-2, -1)
        return y.reshape(*y.shape[:-1], *heights)

    def to_dense(self) -> nn.Conv2d:
        """The nn.Conv2d that does the same; raises UsageError where there is none, see ``dense_weight``."""
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        shell = nn.Conv2d(**settings, bias=False, device="meta")
        return _dense(shell, self)

    def extra_repr(self) -> str:
        """As nn.Conv2d, and how the weight is held."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{sizes}, padding={self.padding}, dilation={self.dilation}, {super().extra_repr()}"
