"""STLLinear and STLConv2d: values and gradients of the dense layer, any sizes; weights held, saved, loaded."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import stl_search as stl
from stl_search import score, transform
from stl_search.errors import UsageError
from stl_search.kernels.plan import Plan
from stl_search.nn import Encoders, STLConv2d, STLLinear, functional
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN

RECTANGULAR = transform.sum_k(transform.sum_n(STRASSEN, STRASSEN), transform.classical((2, 1, 4)))  # <2,3,4>, rank 22
ROUGH = Scheme((2, 3, 4), "R", *(f[:9] for f in RECTANGULAR.as_float()))  # approximate, rectangular
COMPLEX = Encoders(*(torch.tensor(f * 1j, dtype=torch.complex64) for f in STRASSEN.as_float()))
MODES = ["dense", "encoded"]


def inputs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(inner: int, cols: int, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Linear:
    layer = nn.Linear(inner, cols, bias, dtype=dtype)
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(inputs(*p.shape, seed=i + 1) / math.sqrt(inner))
    return layer


def tolerance(layer: Any, x: torch.Tensor, weight: torch.Tensor, scheme: Scheme, stored: str) -> float:
    """|y - dense y|_F from the a-priori bound of the scheme in that precision."""
    bound = score.apriori_bound(scheme, x.shape[-1], "fp64" if stored == "fp64" else "fp32", stored, stored)
    bias = 0.0 if layer.bias is None else float(layer.bias.detach().double().norm()) * math.sqrt(x.shape[:-1].numel())
    ulp = score.unit_roundoff(stored)
    return bound.frobenius * float(x.double().norm() * weight.double().norm()) + 4 * ulp * bias


def as_loops(layer: STLLinear, x: torch.Tensor) -> torch.Tensor:
    """The definition, tile by tile, of a layer's output for x: (M, in)."""
    u, v, w = (f.detach() for f in (layer.encoders.u, layer.encoders.v, layer.encoders.w))
    r, m, n = w.shape
    k = u.shape[-1]
    rows, cols = x.shape[0], layer.out_features
    up = lambda size, side: -(-size // side)  # noqa: E731
    a = torch.zeros(up(rows, m) * m, up(x.shape[1], k) * k, dtype=x.dtype)
    a[:rows, : x.shape[1]] = x
    b = torch.zeros(a.shape[1], up(cols, n) * n, dtype=x.dtype)
    b[: x.shape[1], :cols] = layer.weight.detach().T
    y = torch.zeros(len(a), b.shape[1], dtype=x.dtype)
    for i in range(0, len(a), m):
        for c in range(0, b.shape[1], n):
            for j in range(0, a.shape[1], k):
                uj, vj = (f[j // k] if f.ndim == 4 else f for f in (u, v))
                for q in range(r):
                    left, right = (uj[q] * a[i : i + m, j : j + k]).sum(), (vj[q] * b[j : j + k, c : c + n]).sum()
                    y[i : i + m, c : c + n] += w[q] * left * right
    return y[:rows, :cols] + layer.bias.detach()


@pytest.mark.parametrize("per_row", [False, True])
def test_it_is_the_definition(per_row: bool) -> None:
    layer = STLLinear(7, 9, encoder=ROUGH, per_row=per_row, dtype=torch.float64)
    if per_row:
        with torch.no_grad():
            layer.encoders.u += inputs(*layer.encoders.u.shape) / 4
            layer.encoders.v += inputs(*layer.encoders.v.shape, seed=1) / 4
    x = inputs(5, 7)
    torch.testing.assert_close(layer(x), as_loops(layer, x), rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([(), (1,), (3,), (2, 5), (2, 1, 7), (0,), (2, 0)]),
    st.integers(1, 13),
    st.integers(1, 13),
    st.sampled_from([STRASSEN, RECTANGULAR]),
    st.sampled_from(MODES),
    st.booleans(),
    st.sampled_from(["fp64", "fp32", "bf16"]),
)
def test_an_exact_layer_is_the_dense_one_at_any_size(
    batch: tuple[int, ...], inner: int, cols: int, scheme: Scheme, mode: str, per_row: bool, name: str
) -> None:
    kind = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}[name]
    linear = dense(inner, cols, bias=cols % 2 == 0, dtype=kind)
    layer = STLLinear.from_linear(linear, scheme, weight=mode, per_row=per_row)
    x = inputs(*batch, inner, dtype=kind)
    y = layer(x)
    want = x.double() @ linear.weight.detach().double().T
    want = want if linear.bias is None else want + linear.bias.detach().double()
    assert y.dtype == kind
    assert y.shape == want.shape
    gap = float((y.detach().double() - want).norm())
    # an encoded weight in bf16 is rounded where it is held, as the operand is where it is encoded: one and the same
    assert gap <= tolerance(linear, x, linear.weight.detach(), scheme, name)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("inner", "cols"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("batch", [(), (2, 5), (0, 5)])
def test_without_features_there_is_the_bias_alone(batch: tuple[int, ...], inner: int, cols: int, mode: str) -> None:
    linear = nn.Linear(inner, cols)
    layer = STLLinear.from_linear(linear, STRASSEN, weight=mode)
    x = inputs(*batch, inner, dtype=torch.float32).requires_grad_()
    assert torch.equal(layer(x), linear(x))
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(layer.to_dense()(x), linear(x))


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_everything(mode: str, per_row: bool) -> None:
    layer = STLLinear(5, 6, encoder=ROUGH, weight=mode, per_row=per_row, dtype=torch.float64)
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    held = ["weight", "encoders.v"] if mode == "dense" else ["encoded"]
    assert set(names) == {*held, "encoders.u", "encoders.w", "bias"}

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return y

    start = [p.detach().clone().requires_grad_() for _, p in layer.named_parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(run, (inputs(3, 5).requires_grad_(), *start), fast_mode=True)


def test_a_few_steps_lower_the_loss() -> None:
    x, target = inputs(32, 8, dtype=torch.float32), inputs(32, 8, seed=9, dtype=torch.float32)
    losses: dict[str, list[float]] = {}
    for mode in MODES:
        torch.manual_seed(3)
        encoders = Encoders.random((2, 2, 2), 5, torch.Generator().manual_seed(4))
        layer = STLLinear(8, 8, encoder=encoders, weight=mode)
        before = {name: p.detach().clone() for name, p in layer.named_parameters() if p.requires_grad}
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        losses[mode] = []
        for _ in range(15):
            loss = (layer(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[mode].append(float(loss.detach()))
        assert losses[mode][-1] < 0.9 * losses[mode][0]
        assert all(not torch.equal(layer.get_parameter(name), p) for name, p in before.items())
    again = STLLinear(8, 8, encoder=Encoders.random((2, 2, 2), 5, torch.Generator().manual_seed(4)), weight="encoded")
    assert again.encoded is not None
    assert again.encoded.numel() == 5 * 4 * 4  # r/(kn) times 64


def test_random_encoders_keep_the_variance_of_a_dense_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(40):
        encoders = Encoders.random((2, 3, 4), 30, generator, dtype=torch.float64)
        linear = dense(48, 64, bias=False)
        y = STLLinear.from_linear(linear, encoders)(inputs(64, 48))
        ratios.append(float(y.detach().var() / linear(inputs(64, 48)).detach().var()))
    # The mean of 40 draws of sum_q |u|^2 |v|^2 |w|^2 / r, each with a spread of about sqrt(2 (1/6 + 1/12 + 1/8) / 30).
    assert abs(sum(ratios) / 40 - 1) < 5 * math.sqrt(2 * (1 / 6 + 1 / 12 + 1 / 8) / 30 / 40) + 0.05


def test_random_encoders_are_drawn_alike_under_another_default_device() -> None:
    want = Encoders.random((2, 3, 4), 9, torch.Generator().manual_seed(1))
    with torch.device("meta"):
        mine = Encoders.random((2, 3, 4), 9, torch.Generator().manual_seed(1), device="cpu")
        assert Encoders.random((2, 3, 4), 9, torch.Generator()).u.is_meta
    for name, factor in want.named_parameters():
        assert torch.equal(factor, mine.get_parameter(name))


@pytest.mark.parametrize("mode", MODES)
def test_state_dicts_go_round(mode: str) -> None:
    layer = STLLinear(5, 6, encoder=ROUGH, weight=mode)
    other = STLLinear(5, 6, encoder=Encoders.random((2, 3, 4), 9), weight=mode)
    assert not torch.allclose(layer(inputs(3, 5, dtype=torch.float32)), other(inputs(3, 5, dtype=torch.float32)))
    other.load_state_dict(layer.state_dict())
    x = inputs(3, 5, dtype=torch.float32)
    torch.testing.assert_close(layer(x), other(x), rtol=0, atol=0)
    assert set(layer.state_dict()) == {"weight" if mode == "dense" else "encoded", "bias", *_ENCODERS}


_ENCODERS = ("encoders.u", "encoders.v", "encoders.w")


@pytest.mark.parametrize("strict", [True, False])
def test_a_dense_checkpoint_loads_or_is_refused_never_lost(strict: bool) -> None:
    linear = nn.Sequential(dense(5, 6, dtype=torch.float32))
    model = nn.Sequential(STLLinear(5, 6, encoder=STRASSEN))
    model.load_state_dict(linear.state_dict(), strict=strict)
    torch.testing.assert_close(model[0].weight, linear[0].weight, rtol=0, atol=0)
    assert model[0].encoders.expected_error() == 0
    model[0].encode_()
    kept = model[0].encoded.detach().clone()
    with pytest.raises(RuntimeError, match=r"0\.holds an encoded weight, the checkpoint 0\.weight: load it into"):
        model.load_state_dict(linear.state_dict(), strict=strict)
    assert torch.equal(kept, model[0].encoded)
    with pytest.raises(RuntimeError, match=r"holds a dense weight, the checkpoint 0\.encoded: call encode_"):
        nn.Sequential(STLLinear(5, 6, encoder=STRASSEN)).load_state_dict(model.state_dict(), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_dense_checkpoint_is_refused_where_encoders_have_no_values(device: str, assign: bool, strict: bool) -> None:
    linear, x = nn.Sequential(dense(5, 6, dtype=torch.float32)), inputs(3, 5, dtype=torch.float32)
    model = nn.Sequential(STLLinear(5, 6, encoder=STRASSEN, device=device))
    if device == "cpu" or not assign:
        model.to_empty(device="cpu")
    for again in (model, copy.deepcopy(model)):
        with pytest.raises(RuntimeError, match=r"0\.encoders has no values .*: call load_state_dict on it first"):
            again.load_state_dict(linear.state_dict(), strict=strict, assign=assign)
        again[0].encoders.load_state_dict(Encoders.of(STRASSEN).state_dict(), assign=assign)
        again.load_state_dict(linear.state_dict(), strict=strict, assign=assign)
        torch.testing.assert_close(again(x), linear(x))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_encoders_keep_their_values_through_conversions_of_dtype_and_device(mode: Any) -> None:
    layer = STLLinear(5, 6, encoder=STRASSEN)
    with mode():
        for change in ("half", "double", "cpu", "share_memory"):
            getattr(layer, change)()
        layer.to(torch.bfloat16).to("cpu", torch.float64)
    linear, x = dense(5, 6), inputs(3, 5)
    layer.load_state_dict(linear.state_dict())
    torch.testing.assert_close(layer(x), linear(x))
    layer.to("meta")
    with pytest.raises(RuntimeError, match="encoders has no values"):
        layer.load_state_dict(linear.state_dict(), assign=True)


def test_a_checkpoint_with_other_gaps_is_not_excused() -> None:
    layer = STLLinear(5, 6, encoder=STRASSEN)
    state = layer.state_dict()
    del state["encoders.w"]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(state)


def test_freeze_encodes_once_and_thaw_undoes_it() -> None:
    layer = STLLinear(5, 6, encoder=ROUGH, dtype=torch.float64)
    layer.encoders.u.requires_grad_(False)
    x, want = inputs(3, 5), layer(inputs(3, 5))
    keys = set(layer.state_dict())
    layer.freeze()
    layer.freeze()
    assert set(layer.state_dict()) == keys
    assert not any(p.requires_grad for p in layer.parameters())
    torch.testing.assert_close(layer(x), want, rtol=0, atol=0)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    other = STLLinear(5, 6, encoder=STRASSEN, dtype=torch.float64)
    layer.load_state_dict(nn.Linear(5, 6, dtype=torch.float64).state_dict())  # what was encoded is stale
    fresh = copy.deepcopy(layer)
    fresh.thaw()
    torch.testing.assert_close(layer(x), fresh(x), rtol=0, atol=0)
    assert {name for name, p in fresh.named_parameters() if not p.requires_grad} == {"encoders.u"}
    assert other.frozen is None
    other.encode_()
    other.freeze()
    assert not any(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_way_back_to_dense(mode: str, dtype: torch.dtype) -> None:
    linear = dense(7, 6, dtype=dtype)
    layer = STLLinear.from_linear(linear, RECTANGULAR, weight=mode, per_row=True)
    back = layer.to_dense()
    assert type(back) is nn.Linear
    # one product of the unit matrix with the weight
    bound = score.apriori_bound(RECTANGULAR, 7, "fp64" if dtype == torch.float64 else "fp32").frobenius
    gap = (back.weight - linear.weight).detach().double().norm()
    assert gap <= 2 * bound * math.sqrt(7) * linear.weight.detach().double().norm()
    assert (mode == "dense") == (back.weight is linear.weight)
    assert back.bias is linear.bias


def test_no_way_back_from_what_no_dense_layer_does() -> None:
    with pytest.raises(UsageError, match="is not exact"):
        STLLinear(5, 6, encoder=ROUGH).to_dense()
    layer = STLLinear(5, 6, encoder=STRASSEN, weight="encoded")
    with torch.no_grad():
        layer.encoded[0] += 0.01
    with pytest.raises(UsageError, match="no dense one's encoding"):
        layer.to_dense()


@pytest.mark.parametrize("mode", MODES)
def test_autocast_stores_encodings_in_its_dtype_and_sums_in_fp32(mode: str) -> None:
    linear = dense(40, 24, dtype=torch.float32)
    layer = STLLinear.from_linear(linear, STRASSEN, weight=mode)
    x = inputs(30, 40, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    want = x.detach().double() @ linear.weight.detach().double().T + linear.bias.detach().double()
    gap = float((y.detach().double() - want).norm() / want.norm())
    # operands, products (torch.bmm gives bf16) and output are rounded; sums of few +-1 multiples are not generic: 1.15
    predicted = Plan(STRASSEN, "bf16", product="bf16", out="bf16").predicted_error
    assert 0.3 * predicted < gap < 1.15 * predicted
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_concerns_what_torch_casts_and_nothing_else(mode: str) -> None:
    """The dtype that nn.Linear gives, with autocast and without, or a UsageError where it raises."""
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
    for kind in kinds:
        linear = nn.Linear(5, 6, dtype=kind)
        layer = STLLinear.from_linear(linear, STRASSEN, weight=mode)
        for other, narrow in itertools.product([*kinds, torch.int64, torch.bool], [None, torch.bfloat16]):
            x = torch.ones(3, 5).to(other)
            with torch.autocast("cpu", narrow, enabled=narrow is not None):
                try:
                    want = linear(x)
                except RuntimeError:
                    with pytest.raises(UsageError, match=f"x is {other}, the layer {kind}: convert one"):
                        layer(x)
                    continue
                assert layer(x).dtype == want.dtype
    linear = nn.Linear(5, 6, dtype=torch.complex64)
    x = inputs(3, 5) + 1j * inputs(3, 5, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = STLLinear.from_linear(linear, STRASSEN, weight=mode)(x.to(torch.complex64))
    torch.testing.assert_close(y, linear(x.to(torch.complex64)))


def test_they_compile_in_one_graph() -> None:
    layer = STLLinear(5, 6, encoder=ROUGH, per_row=True)
    held = STLLinear(6, 4, encoder=STRASSEN, weight="encoded")
    conv = STLConv2d(2, 3, 3, encoder=STRASSEN)
    x, image = inputs(2, 3, 5, dtype=torch.float32), inputs(1, 2, 5, 6, dtype=torch.float32)

    def both(x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            narrow = held(layer(x))
        return held(layer(x)), conv(image), narrow

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for mine, want in zip(compiled(x, image), both(x, image), strict=True):
        torch.testing.assert_close(mine, want)
    compiled(x, image)[0].sum().backward()
    assert layer.encoders.u.grad is not None


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_dtypes_are_known_on_the_meta_device(mode: str) -> None:
    layer = STLLinear(5, 6, encoder=STRASSEN, weight=mode, device="meta", dtype=torch.bfloat16)
    y = layer(torch.empty(2, 3, 5, device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 6), torch.bfloat16, "meta")


def test_sequences_of_a_batch_do_not_mix_and_runs_repeat() -> None:
    layer = STLLinear(6, 4, encoder=ROUGH)
    x = inputs(3, 5, 6, dtype=torch.float32)
    alone = torch.stack([layer(s) for s in x])
    torch.testing.assert_close(layer(x), alone)
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": 1, "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": (2, 1), "padding_mode": "reflect", "stride": (1, 2)},
        {"padding": "valid", "padding_mode": "circular"},
    ],
)
def test_a_convolution_by_unfolding(settings: dict[str, Any], mode: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, (3, 5), dtype=torch.float64, **settings)
    layer = STLConv2d.from_conv(conv, RECTANGULAR, weight=mode)
    x = inputs(2, 3, 11, 10)
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), rtol=0, atol=1e-12)
    back = layer.to_dense()
    assert type(back) is nn.Conv2d
    torch.testing.assert_close(back(x), conv(x), rtol=0, atol=1e-12)
    grad = torch.autograd.grad(layer(x).square().sum(), layer.encoders.u)[0]
    assert grad.abs().sum() > 0
    if mode == "dense":
        made = STLConv2d(3, 5, (3, 5), encoder=STRASSEN, dtype=torch.float64, **settings)
        made.load_state_dict(conv.state_dict())
        torch.testing.assert_close(made(x), conv(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: STLLinear(4, 4, encoder="catalog:best"), "open selector"),
        (lambda: STLLinear(4, 4, encoder=STRASSEN, weight="sparse"), "weight is 'sparse'"),
        (lambda: STLLinear(4, 4, encoder=Encoders.of(STRASSEN).per_row(3)), "3 inner tiles, the layer has 2"),
        (lambda: STLLinear(4, 4, encoder=COMPLEX), "complex encoders give complex results, the layer is torch.float32"),
        (lambda: STLConv2d(4, 4, 3, encoder=COMPLEX, weight="encoded"), "complex encoders give complex results"),
        (lambda: Encoders.of(STRASSEN).per_row(2).per_row(2), "per block-row already"),
        (lambda: Encoders(*(torch.ones(s) for s in ((7, 2, 2), (7, 3, 2), (7, 2, 2)))), "are no encoders"),
        (lambda: STLLinear(4, 4, encoder=STRASSEN)(torch.ones(3, 5)), "its last dimension must be 4"),
        (lambda: STLLinear(4, 4, encoder=STRASSEN)(torch.ones(3, 4).double()), "the layer torch.float32"),
        (lambda: STLConv2d(4, 4, 3, groups=2, encoder=STRASSEN), "2 groups"),
        (lambda: STLConv2d(4, 4, 3, encoder=STRASSEN)(torch.ones(4, 3)), "must be (batch, 4, H, W)"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(call: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert words in str(error.value)


def test_the_catalog_serves_layers_and_operations_are_counted() -> None:
    layer = stl.nn.STLLinear(10, 6)  # <4,4,4> of rank 32 by default
    assert layer.encoders.shape == (4, 4, 4)
    assert layer.encoders.rank == 32
    # For 4 rows: encode 3 tiles of 16 entries, multiply 3 x 2 tiles, decode 2 tiles of 16 entries, 32 terms each.
    assert layer.multiplications * 4 == 32 * (3 * 16 + 3 * 2 + 2 * 16)
    x = inputs(4, 10, dtype=torch.float32)
    assert functional.encode_lhs(x, layer.encoders.u).shape == (32, 1, 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_compiled_kernels_do_what_plain_operations_do(
    mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values with the kernels and without; with gradients the plain form is taken, and they are the same."""
    calls: list[str] = []
    for place, name in ((functional.ops, "encode"), (functional.ops, "decode"), (functional.multiply, "multiply")):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, name=name, real=real, **k: calls.append(name) or real(*a, **k))
    layer = STLLinear(23, 17, encoder=ROUGH, weight=mode, dtype=dtype)
    conv = STLConv2d(3, 5, 3, encoder=ROUGH, weight=mode, dtype=dtype, padding=1)
    x, image = inputs(3, 2, 11, 23, dtype=dtype), inputs(2, 3, 6, 7, seed=1, dtype=dtype)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 64 * torch.finfo(dtype).eps}  # sums in another order

    def run() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            narrow = layer(x)
        return [layer(x), conv(image), layer(x.mT.contiguous().mT), layer(x[0, 0, 0]), narrow]

    def gradients() -> list[torch.Tensor]:
        parameters = [p for m in (layer, conv) for p in m.parameters() if p.requires_grad]
        return list(torch.autograd.grad(layer(x).float().sum() + conv(image).float().sum(), parameters))

    with torch.no_grad():
        plain = run()
    wanted = gradients()
    assert not calls  # all of it is small
    for name in ("LARGE", "LARGE_PRODUCT", "ROWS"):
        monkeypatch.setattr(functional, name, 0)
    for got, want in zip(gradients(), wanted, strict=True):
        assert torch.equal(got, want)
    assert not calls
    with torch.no_grad():
        for got, want in zip(run(), plain, strict=True):
            assert got.dtype == want.dtype
            rough = {"rtol": 0.05, "atol": 0.05} if got.dtype == torch.bfloat16 else close
            torch.testing.assert_close(got, want, **rough)
        assert set(calls) == ({"multiply"} if mode == "encoded" else {"encode", "multiply"})  # the weight, the product
        calls.clear()
        one = STLLinear(23, 17, encoder=ROUGH, per_row=True, dtype=dtype)
        one(x)
        assert set(calls) == {"decode"}  # encoders of their own for each inner tile: the rest is plain


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_frozen_layer_keeps_its_weight_as_products_take_it(
    mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once, and again where the weight is another one; no part of copies and files."""
    made: list[Any] = []
    real = functional.pack
    monkeypatch.setattr(functional, "pack", lambda *a: made.append(a) or real(*a))
    layer = STLLinear(40, 300, encoder=ROUGH, weight=mode, dtype=dtype)
    other = STLLinear(40, 300, encoder=ROUGH, weight=mode, dtype=dtype)
    x = inputs(2, 90, 40, dtype=dtype)
    close = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 64 * torch.finfo(dtype).eps}

    def right(times: int) -> None:
        made.clear()
        with torch.no_grad():
            monkeypatch.setattr(functional, "LARGE_PRODUCT", math.inf)
            want = layer(x)
            monkeypatch.setattr(functional, "LARGE_PRODUCT", 0)
            for _ in range(3):
                torch.testing.assert_close(layer(x), want, **close)
        assert len(made) == times

    right(0)
    layer.freeze()
    right(1)
    right(0)
    with torch.inference_mode():
        layer(x)
    assert not made
    layer.load_state_dict(other.state_dict())
    right(1)
    torch.testing.assert_close(layer(x), other(x), **close)
    if layer.encoded is not None:
        layer.encoded.data = other.encoded.detach().clone()
        right(1)
    with torch.inference_mode():
        third = STLLinear(40, 300, encoder=ROUGH, weight=mode, dtype=dtype)
        third.freeze()
        third(x)
        third.load_state_dict(other.state_dict())
        torch.testing.assert_close(third(x), other(x), **close)
    made.clear()
    layer.to(torch.float64)
    layer.to(dtype)
    right(1)
    again = copy.deepcopy(layer)
    assert again._kept is None
    assert layer._kept is not None
    with torch.no_grad():
        assert torch.equal(again(x), layer(x))
    layer.thaw()
    assert layer._kept is None
    right(0)
    assert not [key for key in layer.state_dict() if "kept" in key]


def test_operands_that_do_not_go_together_are_refused_by_size_of_product_alike() -> None:
    u, v, w = (f.detach().float() for f in Encoders.of(ROUGH).parameters())
    x, b = inputs(600, 40, dtype=torch.float32), inputs(40, 60, dtype=torch.float32)
    b_hat = functional.encode_rhs(b, v)
    with torch.no_grad():
        assert functional.in_parts(x, b_hat, u, w, 60)
        assert not functional.in_parts(x, b_hat, u, w, 68)
        assert functional.stl_product(x, b_hat, u, w, 68).shape == (600, 60)  # no more columns than there are
        with pytest.raises(RuntimeError, match="size"):
            functional.stl_product(x[:, :30].contiguous(), b_hat, u, w, 60)
    learning = x.clone().requires_grad_()
    assert functional.stl_product(learning, b_hat, u, w, 60).requires_grad


def test_a_layer_is_exported_for_any_batch() -> None:
    layer, x = STLLinear(64, 64, encoder=ROUGH), inputs(64, 16, 64, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=4096)},))
        for batch in (2, 70):
            given = inputs(batch, 16, 64, seed=batch, dtype=torch.float32)
            torch.testing.assert_close(program.module()(given), layer(given), rtol=1e-4, atol=1e-4)
