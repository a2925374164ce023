"""Calibration and conversion: closed forms against plain least squares, budgets kept, models converted and back."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import stl_search as stl
from stl_search import score, transform
from stl_search.errors import UsageError
from stl_search.nn import Config, Encoders, STLConv2d, STLLinear, calibrate, convert_, unconvert_
from stl_search.nn.calibrate import Seen
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROUGH = Scheme((2, 2, 2), "R", *(f[:5] for f in STRASSEN.as_float()))
RANDOM = Scheme((2, 3, 4), "R", *(inputs(9, *side).numpy() for side in ((2, 3), (3, 4), (2, 4))))
CLASSICAL = transform.classical((1, 2, 1))


def structured(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    """Correlated rows with a mean: a few directions carry most."""
    mix = inputs(size, size, seed=50) * 0.7 ** torch.arange(size, dtype=torch.float64)
    return inputs(rows, size, seed=seed) @ mix.T + 3 * inputs(size, seed=51)


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    inner = nn.Sequential(nn.Linear(8, 12, dtype=torch.float64), nn.Tanh())
    return nn.Sequential(inner, nn.Linear(12, 6, bias=False, dtype=torch.float64))


def seen_of(layer: nn.Module, x: torch.Tensor) -> Seen:
    seen = Seen(layer, layer.weight[0].numel())
    seen.add(x)
    return seen


# -- calibration -------------------------------------------------------------------------------------------------------


def test_moments_and_samples_leave_a_quarter_out() -> None:
    x = structured(40, 8).reshape(8, 5, 8)
    seen = seen_of(nn.Linear(8, 3), x)
    fit = x[:6].reshape(-1, 8)
    assert (seen.rows, seen.count) == (40, 30)
    np.testing.assert_allclose(seen.covariance.numpy(), np.cov(fit.numpy().T, bias=True), atol=1e-10)
    far = seen_of(nn.Linear(8, 3), (x + 1e4).float())  # a mean far from zero costs no digits of the covariance
    rounding = float(np.abs(fit.numpy()).max() * 1e4 * 2.0**-24 * 4)
    np.testing.assert_allclose(far.covariance.numpy(), seen.covariance.numpy(), atol=rounding)
    seen.add(x[:3] + 1)
    both = torch.cat([fit, x[:2].reshape(-1, 8) + 1])
    np.testing.assert_allclose(seen.covariance.numpy(), np.cov(both.numpy().T, bias=True), atol=1e-10)
    assert torch.equal(seen.sample, both)
    seen = seen_of(nn.Linear(8, 3), x)
    assert torch.equal(seen.held_out, x[6:].reshape(-1, 8))
    one = seen_of(nn.Linear(8, 3), x[0])  # a single sequence: its last rows
    assert torch.equal(one.sample, x[0, :4])
    assert torch.equal(one.held_out, x[0, 4:])
    conv = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    image = inputs(4, 2, 5, 4)
    seen = seen_of(conv, image)
    assert seen.rows == 4 * 20
    flat = seen.sample @ conv.weight.flatten(1).T.detach() + conv.bias.detach()
    torch.testing.assert_close(flat, conv(image[:3]).detach().permute(0, 2, 3, 1).reshape(-1, 3))


@pytest.mark.parametrize(
    "scheme", [ROUGH, Scheme((2, 3, 4), "R", *(inputs(9, *s).numpy() for s in ((2, 3), (3, 4), (2, 4))))]
)
def test_the_predicted_error_is_the_one_met(scheme: Scheme) -> None:
    m, k, n = scheme.shape

    def measured(x: torch.Tensor, b: torch.Tensor) -> float:
        layer = STLLinear(b.shape[0], b.shape[1], bias=False, encoder=scheme, dtype=torch.float64)
        layer.weight.data = b.T
        return float((layer(x).detach() - x @ b).norm() / (x @ b).norm())

    # one inner tile: every tile of x meets every tile of b, so that nothing but their moments counts
    x, b = structured(10 * m, k), inputs(k, 8 * n, seed=1) + 1.0
    assert calibrate.predicted_error(scheme, x, b) == pytest.approx(measured(x, b), rel=1e-9)
    # many inner tiles, independent, with a mean: the spread of a sum over some hundred tiles each way
    x, b = inputs(100 * m, 6 * k) + 0.3, inputs(6 * k, 100 * n, seed=1) - 0.2
    assert calibrate.predicted_error(scheme, x, b) == pytest.approx(measured(x, b), rel=0.05)
    # independent entries: E itself
    x, b = inputs(1000, 12), inputs(12, 1000, seed=1)
    assert calibrate.predicted_error(scheme, x, b) == pytest.approx(math.sqrt(score.expected_error(scheme)), rel=0.05)


@pytest.mark.parametrize(("scheme", "width"), [(CLASSICAL, 5), (STRASSEN, 4), (STRASSEN, 3), (STRASSEN, 2)])
def test_directions_are_fitted_by_least_squares(scheme: Scheme, width: int) -> None:
    linear = nn.Linear(11, 6, bias=False, dtype=torch.float64)
    x = structured(4000, 11)
    seen = seen_of(linear, x)
    b = linear.weight.detach().T
    encoders, b_hat, error = calibrate.fit_directions(scheme, width, seen, b)
    layer = STLLinear.from_linear(linear, encoders, weight="encoded")
    with torch.no_grad():
        layer.encoded.copy_(b_hat)
    fit = seen.sample - seen.mean
    y, exact = layer(fit).detach(), fit @ b
    # what is predicted from moments is met on the rows that they come from
    assert float((y - exact).norm() / exact.norm()) == pytest.approx(error, rel=1e-6, abs=1e-6)
    # no weight on the same directions does better, but for the ridge: J(ridge) <= J(best) + RIDGE |best|^2
    m, k, n = scheme.shape
    alone, _, _ = calibrate.fit_directions(transform.classical((1, k, 1)), width, seen, b)
    z = stl.nn.functional.encode_lhs(fit, alone.u.detach()).permute(1, 2, 0).flatten(1)  # the directions themselves
    best = torch.linalg.lstsq(z, exact, driver="gelsd").solution
    least, found = ((g - exact).square().sum() / len(fit) for g in (z @ best, y))
    assert least * (1 - 1e-9) <= found <= least + calibrate.RIDGE * best.square().sum() * (1 + 1e-9)
    if width == k:
        assert least < 1e-20  # nothing is left out
    # at most k of width directions of each tile are used
    tiles = -(-11 // width)
    assert torch.linalg.matrix_rank(y) <= min(6, tiles * k)


def test_one_wide_tile_is_the_best_low_rank_approximation() -> None:
    linear = nn.Linear(10, 8, bias=False, dtype=torch.float64)
    x = structured(3000, 10)
    seen = seen_of(linear, x)
    b = linear.weight.detach().T
    _, _, error = calibrate.fit_directions(transform.classical((1, 3, 1)), 10, seen, b)
    values = torch.linalg.svdvals(torch.linalg.cholesky(seen.covariance).T @ b)
    best = float((values[3:].square().sum() / values.square().sum()).sqrt())  # Eckart and Young
    assert best * (1 - 1e-9) <= error < best * (1 + 1e-3)


@pytest.mark.parametrize("mode", ["dense", "encoded"])
def test_refitting_never_makes_it_worse_and_finds_what_is_there(mode: str) -> None:
    linear = nn.Linear(8, 6, bias=False, dtype=torch.float64)
    x = structured(400, 8)
    y = (x @ linear.weight.T).detach()
    layer = STLLinear.from_linear(linear, ROUGH, weight=mode)
    before, w = gap_of(layer, x, y), layer.encoders.w.detach().clone()
    calibrate.refit(layer, x, y, rounds=4, ridge=calibrate.RIDGE)
    assert gap_of(layer, x, y) < 0.95 * before
    if mode == "dense":
        assert torch.equal(layer.weight, linear.weight)
        # the decoder is the least-squares one: the gap is orthogonal to every product, but for the ridge
        p = torch.einsum("qij,qjl->qil", _a_hat(layer, x), layer.encoded_weight().detach())
        gap = (layer(x).detach() - y).reshape(-1, 2, 3, 2).permute(0, 2, 1, 3).reshape(-1, 4)
        pull = calibrate.RIDGE * p.square().sum(dim=(1, 2)).mean() * (layer.encoders.w.detach() - w)
        torch.testing.assert_close((p.flatten(1) @ gap).norm(), pull.norm())
    # factors drawn away from an exact scheme find the way back: the weight is encoded again
    exact = STLLinear.from_linear(linear, STRASSEN, weight="encoded")
    with torch.no_grad():
        exact.encoded += 0.1 * inputs(*exact.encoded.shape)
    spoiled = gap_of(exact, x, y)
    calibrate.refit(exact, x, y, rounds=2, ridge=calibrate.RIDGE)
    assert gap_of(exact, x, y) < 0.05 * spoiled


def gap_of(layer: STLLinear, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((layer(x).detach() - y).norm())


@pytest.mark.parametrize("mode", ["dense", "encoded"])
def test_refitting_minds_the_mean_as_far_as_no_bias_can(mode: str) -> None:
    """On rows far from zero: fitting to the centred rows alone leaves rows of a tile apart from each other."""
    linear = nn.Linear(8, 6, bias=False, dtype=torch.float64)
    x = structured(400, 8) + 30 * inputs(8, seed=9)
    y, mean = (x @ linear.weight.T).detach(), x.mean(0)
    errors = {}
    for heed in (None, mean):
        layer = STLLinear.from_linear(linear, ROUGH, weight=mode)
        calibrate.refit(layer, x - mean, y - y.mean(0), heed, ridge=calibrate.RIDGE)
        calibrate.correct_bias(layer, linear.weight.detach(), mean)
        errors[heed is None] = gap_of(layer, x, y)
    assert errors[False] < 0.5 * errors[True]


def _a_hat(layer: STLLinear, x: torch.Tensor) -> torch.Tensor:
    return stl.nn.functional.encode_lhs(x, layer.encoders.u.detach())


def test_the_bias_makes_up_for_the_mean() -> None:
    linear = nn.Linear(8, 6, bias=False, dtype=torch.float64)
    layer = STLLinear.from_linear(linear, ROUGH)
    mean = inputs(8) + 5
    calibrate.correct_bias(layer, linear.weight.detach(), mean)
    x = mean.expand(2, 8)
    torch.testing.assert_close(layer(x).mean(0), (x @ linear.weight.T)[0])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.floats(0, 1))
def test_allocation_keeps_the_budget_and_is_near_the_best(seed: int, layers: int, choices: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(1, 20, (layers, choices)).tolist()
    losses = rng.integers(0, 50, (layers, choices)).tolist()
    least, most = sum(map(min, costs)), sum(map(max, costs))
    budget = least + share * (most - least)
    picks = calibrate.allocate(costs, losses, budget)

    def total(table: Any, picks: Any) -> float:
        return sum(row[i] for row, i in zip(table, picks, strict=True))

    assert total(costs, picks) <= budget
    every = itertools.product(range(choices), repeat=layers)
    best = min(total(losses, p) for p in every if total(costs, p) <= budget)
    # Everett: what the relaxation leaves open is at most one layer's step
    assert total(losses, picks) <= best + max(max(row) - min(row) for row in losses)
    if share == 1:
        assert total(losses, picks) == best


def test_a_budget_below_everything_is_refused() -> None:
    with pytest.raises(UsageError, match="below the cheapest"):
        calibrate.allocate([[4.0, 2.0]], [[0.0, 1.0]], 1.0)


# -- conversion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["layer", "row", "shared"])
@pytest.mark.parametrize("mode", ["dense", "encoded"])
def test_a_nested_model_is_converted_in_place_and_back(mode: str, sharing: str) -> None:
    m = model()
    twin, x = copy.deepcopy(m), inputs(5, 8)
    first, parameter = m[0][0], m[0][0].weight
    calls: list[int] = []
    first.register_forward_hook(lambda *_: calls.append(1))
    report = convert_(m, Config(STRASSEN, weight=mode, sharing=sharing))
    assert m[0][0] is first
    assert isinstance(first, STLLinear)
    assert [row.name for row in report.rows] == ["0.0", "1"]
    torch.testing.assert_close(m(x), twin(x), rtol=0, atol=1e-13)
    assert calls == [1]
    assert (m[0][0].encoders is m[1].encoders) == (sharing == "shared")
    assert (first.weight is parameter) == (mode == "dense")
    assert m[1].bias is None
    row = report.rows[0]
    assert row.parameters == (8 * 12 + 12, 7 * 4 * 6 + 12 + 7 * 4 * (5 if sharing == "row" else 2))
    assert row.bytes == tuple(8 * p for p in row.parameters) if sharing != "shared" else row.bytes[0] == 8 * 108
    assert "STLLinear" not in str(report)
    assert "<2,2,2> r=7" in str(report)
    assert unconvert_(m) == ["0.0", "1"]
    assert type(first) is nn.Linear
    torch.testing.assert_close(m(x), twin(x), rtol=0, atol=1e-13)
    assert calls == [1, 1]
    m.load_state_dict(twin.state_dict())


@pytest.mark.parametrize("mode", ["dense", "encoded"])
def test_hooks_of_every_kind_are_kept_both_ways_and_can_be_removed(mode: str) -> None:
    m = model()
    layer, x = m[1], inputs(5, 8)
    called: list[str] = []

    def note(kind: str) -> Any:
        return lambda *_: called.append(kind)  # None: changes nothing

    handles = [
        getattr(layer, f"register_{kind}")(note(kind))
        for kind in (
            "forward_pre_hook",
            "forward_hook",
            "full_backward_pre_hook",
            "full_backward_hook",
            "state_dict_pre_hook",
            "state_dict_post_hook",
            "load_state_dict_pre_hook",
            "load_state_dict_post_hook",
        )
    ]

    def calls() -> list[str]:
        called.clear()
        m(x).sum().backward()
        m.load_state_dict(m.state_dict())
        return list(called)

    want = calls()
    assert len(want) == len(handles)
    convert_(m, Config(STRASSEN, weight=mode))
    assert calls() == want
    layer.freeze()
    with torch.no_grad():
        state = {
            name: 2 * p if name.split(".")[-1] in ("weight", "encoded") else p for name, p in m.state_dict().items()
        }
    before = layer(inputs(5, 12)).detach()
    m.load_state_dict(state)
    torch.testing.assert_close(layer(inputs(5, 12)), 2 * before)  # the layer's own hook: no stale encoding
    layer.thaw()
    unconvert_(m)
    assert calls() == want
    convert_(m, Config(STRASSEN, weight=mode))
    for handle in handles:
        handle.remove()
    assert calls() == []


@pytest.mark.parametrize("mode", ["dense", "encoded"])
@pytest.mark.parametrize("conv", [False, True])
def test_what_else_was_put_on_a_layer_is_kept_both_ways(conv: bool, mode: str) -> None:
    layer = nn.Conv2d(2, 4, 3) if conv else nn.Linear(8, 8)
    layer.tag, layer.reset_parameters = {"stage": 1}, lambda: None
    layer.scale = nn.Parameter(torch.ones(3))
    layer.register_buffer("steps", torch.tensor(7))
    layer.register_buffer("cache", torch.ones(2), persistent=False)
    layer.adapter = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8))
    names, kept = set(vars(layer)), dict(layer.state_dict(keep_vars=True))
    others = {name: getattr(layer, name) for name in ("tag", "reset_parameters", "scale", "steps", "cache", "adapter")}

    def holds_them(changed: set[str]) -> None:
        assert all(getattr(layer, name) is value for name, value in others.items())
        now = layer.state_dict(keep_vars=True)
        assert set(now) ^ set(kept) == changed
        assert all(now[name] is value for name, value in kept.items() if name not in changed and name != "weight")

    report = convert_(layer, Config(STRASSEN, weight=mode), skip=["adapter"])
    assert [row.name for row in report.rows] == [""]
    holds_them({f"encoders.{name}" for name in "uvw"} | ({"weight", "encoded"} if mode == "encoded" else set()))
    layer.freeze()
    layer.late = 1
    unconvert_(layer)
    holds_them(set())
    assert set(vars(layer)) == names | {"late"}
    convert_(layer, Config(STRASSEN, weight=mode), skip=["adapter"])
    assert isinstance(layer, STLConv2d if conv else STLLinear)


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("forward", lambda layer: setattr(layer, "forward", lambda x: nn.Linear.forward(layer, x) + 1)),
        ("frozen", lambda layer: setattr(layer, "frozen", True)),
        ("inner", lambda layer: layer.register_buffer("inner", torch.ones(1))),
        ("encoded", lambda layer: layer.register_parameter("encoded", nn.Parameter(torch.ones(1)))),
        ("encoders", lambda layer: layer.add_module("encoders", nn.Identity())),
    ],
)
def test_layers_with_names_of_their_own_that_stl_layers_need_are_left(name: str, put: Any) -> None:
    m, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.ones(2, 8)
    put(m[0])
    want = m(x)
    report = convert_(m, Config(STRASSEN))
    assert report.left == {"0": f"it has a {name} of its own, where an STL layer has another"}
    assert type(m[0]) is nn.Linear
    torch.testing.assert_close(m(x), want)


class Louder(STLLinear):
    """Not what it inherits."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_an_stl_layer_with_a_forward_of_its_own_is_not_made_dense() -> None:
    for kind in (STLLinear, Louder):
        m = nn.Sequential(STLLinear(8, 8, encoder=STRASSEN), kind(8, 8, encoder=STRASSEN))
        if kind is STLLinear:
            m[1].forward = lambda x, layer=m[1]: 2 * STLLinear.forward(layer, x)
        want = m(torch.ones(2, 8))
        with pytest.raises(UsageError, match=r"^1: a \w+ with a forward of its own does what no dense layer does$"):
            unconvert_(m)
        assert [type(part) for part in m] == [STLLinear, kind]
        assert torch.equal(m(torch.ones(2, 8)), want)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", ["dense", "encoded"])
@pytest.mark.parametrize("learnable", [False, True])
def test_what_is_learnable_is_so_again_after_the_way_back(learnable: bool, mode: str, frozen: bool) -> None:
    m = model()
    m[1].weight.requires_grad_(learnable)
    m[0][0].bias.requires_grad_(learnable)
    want = {name: p.requires_grad for name, p in m.named_parameters()}
    convert_(m, Config(STRASSEN, weight=mode))
    if frozen:
        m[0][0].freeze()
        m[1].freeze()
    unconvert_(m)
    assert {name: p.requires_grad for name, p in m.named_parameters()} == want


def test_encoders_given_are_copied_for_each_layer_unless_shared() -> None:
    given = Encoders.of(ROUGH, dtype=torch.float64)
    kept = given.w.detach().clone()
    x = structured(300, 8)
    m = model()
    convert_(m, Config(given, calibrate=lambda m: m(x)))
    assert m[0][0].encoders is not m[1].encoders
    assert torch.equal(given.w, kept)  # fitted copies
    assert not torch.equal(m[1].encoders.w, kept)
    m = model()
    convert_(m, Config(given, sharing="shared"))
    assert m[0][0].encoders is m[1].encoders is given
    m = model()
    convert_(m, Config(STRASSEN, sharing="shared"))
    assert m[1].encoders.u.dtype == torch.float64


def test_the_model_itself_may_be_the_layer() -> None:
    for layer, x in ((nn.Linear(5, 3), torch.ones(2, 5)), (nn.Conv2d(2, 3, 3), torch.ones(2, 2, 5, 5))):
        want = layer(x)
        report = convert_(layer, Config(STRASSEN))
        assert isinstance(layer, STLLinear | STLConv2d)
        assert report.rows[0].name == ""
        torch.testing.assert_close(layer(x), want)
        assert unconvert_(layer) == [""]
        torch.testing.assert_close(layer(x), want)


def test_what_is_skipped_filtered_or_not_ours_stays() -> None:
    class Odd(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    m = nn.ModuleDict(
        {
            "a": model(),
            "b": nn.Linear(4, 4),
            "odd": Odd(4, 4),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "tied": nn.Linear(4, 4),
            "attention": nn.MultiheadAttention(4, 1),
        }
    )
    m["table"] = nn.Embedding(4, 4)
    m["table"].weight = m["tied"].weight
    report = convert_(m, Config(STRASSEN, weight="encoded"), lambda layer, name: layer.in_features != 12, ["a.0"])
    assert [row.name for row in report.rows] == ["b"]
    assert set(report.left) == {"a.0.0", "a.1", "odd", "grouped", "tied", "attention.out_proj"}
    for name, word in (("a.0.0", "skipped"), ("a.1", "filtered"), ("odd", "Odd"), ("tied", "tied"), ("grouped", "2 g")):
        assert word in report.left[name]
    assert "a.0.0" in str(report)
    assert m["table"].weight is m["tied"].weight
    again = convert_(m, Config(STRASSEN))  # tied weights may stay dense; what is converted already stays
    assert [row.name for row in again.rows] == ["a.0.0", "a.1", "tied"]
    assert m["table"].weight is m["tied"].weight


WORKED_OUT = [
    (nn.utils.weight_norm, "weight"),
    (nn.utils.spectral_norm, "weight"),
    (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "weight"),
    (parametrizations.weight_norm, "weight"),
    (parametrizations.spectral_norm, "weight"),
    (lambda layer: prune.l1_unstructured(layer, "bias", 0.5), "bias"),
    (lambda layer: parametrize.register_parametrization(layer, "bias", nn.Tanh()), "bias"),
]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(("derive", "name"), WORKED_OUT)
@pytest.mark.parametrize("conv", [False, True])
def test_layers_whose_tensors_are_worked_out_from_others_are_left(derive: Any, name: str, conv: bool) -> None:
    m = nn.Sequential(nn.Conv2d(3, 4, 3) if conv else nn.Linear(8, 8), nn.Linear(8, 8))
    derive(m[0])
    kind, keys = type(m[0]), set(m.state_dict())
    report = convert_(m, Config(STRASSEN))
    assert [row.name for row in report.rows] == ["1"]
    assert f"its {name} is worked out" in report.left["0"] or "a Parametrized" in report.left["0"]
    assert type(m[0]) is kind
    assert keys == {key for key in m.state_dict() if "encoders" not in key}
    with pytest.raises(UsageError, match=f"^a {kind.__name__} cannot become an STL layer: its {name} is") as error:
        STLConv2d.from_conv(m[0], STRASSEN) if conv else STLLinear.from_linear(m[0], STRASSEN)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(("derive", "name"), [*WORKED_OUT, (parametrizations.weight_norm, "encoded")])
def test_an_stl_layer_with_such_tensors_is_neither_encoded_nor_made_dense(derive: Any, name: str) -> None:
    m = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    convert_(m, Config(STRASSEN, weight="encoded" if name == "encoded" else "dense"))
    derive(m[1], name) if name == "encoded" else derive(m[1])
    m[1].freeze()
    kinds, state = [type(part) for part in m], copy.deepcopy(m.state_dict())
    calls = [(lambda: unconvert_(m), "1: a "), (m[1].to_dense, "a ")]
    for call, start in calls if name != "weight" else [*calls, (m[1].encode_, "a ")]:
        with pytest.raises(UsageError, match=rf"^{start}\S+ cannot .*: its {name} is worked out") as error:
            call()
        assert "\n" not in str(error.value)
        assert kinds == [type(part) for part in m]
        assert m[1].encoded is None or name == "encoded"
        assert state.keys() == m.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in m.state_dict().items())
        assert not any(p.requires_grad for p in m[1].parameters())  # frozen still


def test_fused_transformer_kernels_do_not_go_round_it() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = inputs(2, 5, 8).float()
    with torch.no_grad():
        want = block(x)
        convert_(block, Config(ROUGH))
        assert not torch.allclose(block(x), want, atol=1e-3)  # an approximate scheme shows


def test_without_a_dense_counterpart_nothing_is_changed_back() -> None:
    m = model()
    convert_(m, Config(STRASSEN), skip=["1"])
    convert_(m, Config(ROUGH))
    with pytest.raises(UsageError, match=r"^1: .*is not exact"):
        unconvert_(m)
    assert isinstance(m[0][0], STLLinear)


def test_calibration_helps_and_a_budget_is_kept_and_repeats() -> None:
    x, other = structured(600, 8).reshape(60, 10, 8) / 8, structured(100, 8, seed=7) / 8
    dense = model()
    want = dense(other).detach()

    def change(config: Config) -> tuple[float, Any, nn.Module]:
        m = copy.deepcopy(dense).train()
        report = convert_(m, config)
        assert all(part.training for part in m.modules())
        return float((m(other).detach() - want).norm() / want.norm()), report, m

    def run(m: nn.Module) -> torch.Tensor:
        assert not m.training
        return m(x)

    plain, decoder, both = (
        change(c) for c in (Config(ROUGH), Config(ROUGH, calibrate=run), Config(ROUGH, weight="encoded", calibrate=run))
    )
    assert max(decoder[0], both[0]) < 0.8 * plain[0]
    for one, two in zip(decoder[1].rows, both[1].rows, strict=True):
        assert 0 < two.measured < one.measured < 1
        assert two.predicted == one.predicted > 0
    wide, report, m = change(Config((STRASSEN, 4), calibrate=run))
    assert report.rows[0].predicted == pytest.approx(report.rows[0].measured, rel=0.5)
    assert m[1].bias is not None  # made: the mean is corrected
    config = Config(budget=0.75, candidates=((CLASSICAL, 12), (CLASSICAL, 8)), calibrate=run, probe=run)
    survey = stl.nn.survey(dense, config)
    assert {type(part) for part in dense.modules()} == {nn.Sequential, nn.Linear, nn.Tanh}
    found = {}
    for budget in (1.0, 0.9, 0.75):
        m = copy.deepcopy(dense)
        report = convert_(m, Config(budget=budget), survey=survey)
        assert report.ratio <= budget * (1 + 1e-12)
        found[budget] = float((m(other).detach() - want).norm() / want.norm())
    assert found[1.0] == 0
    assert 0 < found[0.9] <= found[0.75] < 1
    assert change(config)[0] == found[0.75]  # the same choice, the same numbers


def test_sensitivity_is_the_gain_of_what_follows() -> None:
    m = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(1, 1)).double()
    with torch.no_grad():
        m[1].weight.copy_(torch.diag(torch.tensor([3.0, 3, 3, 3, 3, 3])))
    x = inputs(400, 6) * torch.tensor([4.0, 4, 4, 1, 1, 1])
    run = lambda m: m[1](m[0](x))  # noqa: E731
    survey = stl.nn.survey(m, Config(budget=1.0, candidates=((CLASSICAL, 3),), calibrate=run), skip=["2"])
    for name in ("0", "1"):
        # the output has no mean and what follows is a multiple of the identity: errors arrive as they are, but for
        # the rows that were held out for measuring
        assert survey.sensitivities[name] == pytest.approx(1, rel=0.25)
        assert survey.options[name][None].measured == 0
    assert stl.nn.survey(m, Config(budget=1.0, candidates=(), calibrate=run)).sensitivities == {"0": 0.0, "1": 0.0}


class ByName(nn.Module):
    """Calls its layers, a convolution and a linear one, by the name of their argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(2, 4, 3, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(input=self.conv(input=x).mT.flatten(-2).mT)
        return y


def test_layers_called_by_the_name_of_their_argument_are_calibrated_and_converted() -> None:
    m, x = ByName(), inputs(8, 2, 6, 5)
    want = m(x).detach()
    survey = stl.nn.survey(m, Config(budget=1.0, candidates=((CLASSICAL, 3),), calibrate=lambda part: part(x)))
    assert {name: s.rows for name, s in survey.seen.items()} == {"conv": 8 * 4 * 3, "linear": 8 * 4 * 3}
    assert all(s > 0 for s in survey.sensitivities.values())
    convert_(m, Config(STRASSEN, calibrate=lambda part: part(x)))
    assert isinstance(m.conv, STLConv2d)
    assert isinstance(m.linear, STLLinear)
    torch.testing.assert_close(m(x), want)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: convert_(model(), skip=["nowhere"]), "skip names 'nowhere'"),
        (lambda: convert_(model().to("meta"), Config(STRASSEN)), "0.0 is on the meta device"),
        (lambda: Config(sharing="all"), "sharing is 'all'"),
        (lambda: Config(weight="thin"), "weight is 'thin'"),
        (lambda: Config(budget=1.5), "budget is 1.5"),
        (lambda: Config((STRASSEN, 4), sharing="shared"), "shared encoders"),
        (lambda: convert_(model(), Config(budget=0.5)), "needs calibration data"),
        (lambda: convert_(model(), Config((STRASSEN, 4))), "needs calibration data"),
        (lambda: convert_(model(), Config("catalog:best")), "open selector"),
        (lambda: convert_(model(), Config(ROUGH, calibrate=lambda m: None)), "must return a tensor"),
        (lambda: convert_(model(), Config((STRASSEN, 1), calibrate=lambda m: m(inputs(9, 8)))), "at least k"),
        (lambda: stl.nn.survey(model(), Config()), "needs calibration data"),
        (
            lambda: convert_(
                model(), Config(budget=0.5), survey=stl.nn.survey(model(), Config(calibrate=lambda m: m(inputs(9, 8))))
            ),
            "has no options",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(call: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_layer_that_calibration_never_ran_is_left() -> None:
    m = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    report = convert_(m, Config(ROUGH, calibrate=lambda m: m[0](torch.ones(8, 4))))
    assert report.left == {"1": "calibration never ran it"}
    assert Encoders.of(ROUGH).expected_error() == pytest.approx(score.expected_error(ROUGH))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [
        {"encoder": STRASSEN},
        {"encoder": STRASSEN, "weight": "encoded", "sharing": "row"},
        {"encoder": ROUGH},
        {"encoder": ROUGH, "weight": "encoded"},
        {"encoder": (STRASSEN, 4)},
        {"budget": 0.9, "candidates": ((CLASSICAL, 12), (CLASSICAL, 8))},
    ],
)
def test_a_narrow_model_keeps_its_dtype_and_is_fitted_as_a_wide_one(dtype: torch.dtype, options: Any) -> None:
    """The same fit as for the same numbers in float64, but for the rounding of what is kept."""
    dense = model().to(dtype)
    x, other = structured(600, 8).reshape(60, 10, 8).to(dtype) / 8, structured(100, 8, seed=7).to(dtype) / 8
    with torch.no_grad():
        want = copy.deepcopy(dense).double()(other.double())
    errors = []
    for kind in (dtype, torch.float64):
        m = copy.deepcopy(dense).to(kind)
        report = convert_(m, Config(**options, calibrate=lambda part, kind=kind: part(x.to(kind))))
        assert {p.dtype for p in m.parameters()} == {kind}
        assert all(row.measured is not None and math.isfinite(row.measured) for row in report.rows)
        with torch.no_grad():
            y = m(other.to(kind))
        assert y.dtype == kind
        errors.append(float((y.double() - want).norm() / want.norm()))
    assert errors[0] <= errors[1] + 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": ROUGH, "sharing": "row"},
        {"encoder": ROUGH, "weight": "encoded"},
        {"encoder": (STRASSEN, 4)},
        {"budget": 0.9, "candidates": ((CLASSICAL, 12), (CLASSICAL, 8))},
    ],
)
def test_another_default_device_changes_nothing(options: Any) -> None:
    dense, x = model(), structured(600, 8).reshape(60, 10, 8) / 8
    config = Config(**options, calibrate=lambda part: part(x))
    want, mine = copy.deepcopy(dense), copy.deepcopy(dense)
    convert_(want, config)
    with torch.device("meta"):
        report = convert_(mine, config)
    assert {p.device.type for p in mine.parameters()} == {"cpu"}
    assert all(math.isfinite(row.measured) for row in report.rows)
    torch.testing.assert_close(mine(x), want(x))


def test_sensitivities_of_a_narrow_model_do_not_overflow() -> None:
    """Each output fits float16, the norm of all of them does not."""
    dense = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).half()
    with torch.no_grad():
        for p in dense.parameters():
            p.copy_(inputs(*p.shape, seed=p.ndim) * 20)
    x = structured(600, 8).half() / 8
    config = Config(budget=0.9, candidates=((CLASSICAL, 4),), calibrate=lambda part: part(x))
    survey = stl.nn.survey(dense, config)
    with torch.no_grad():
        assert dense(x).isfinite().all()
        assert dense(x).float().norm() > torch.finfo(torch.float16).max
    assert all(0 < s < math.inf for s in survey.sensitivities.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_model_comes_back(dtype: torch.dtype) -> None:
    dense = model().to(dtype)
    m = copy.deepcopy(dense)
    convert_(m, Config(STRASSEN))
    unconvert_(m)
    for mine, want in zip(m.parameters(), dense.parameters(), strict=True):
        assert torch.equal(mine, want)
