"""``convert_``: the linear and convolution layers of a model turned into STL layers, in place, within a budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from stl_search.errors import UsageError
from stl_search.kernels.plan import Plan
from stl_search.nn import calibrate
from stl_search.nn.calibrate import Seen
from stl_search.nn.layers import DEFAULT_ENCODER, Encoders, STLConv2d, STLLayer, STLLinear, derived, encode_again
from stl_search.runtime.dispatch import request_of
from stl_search.scheme import Scheme

__all__ = ["CANDIDATES", "Config", "Report", "Row", "Survey", "convert_", "survey", "unconvert_"]

Tensor = torch.Tensor
_HOOKS = frozenset(key for key in vars(nn.Module()) if "_hook" in key)  # all that torch keeps of a module's hooks
_REGISTERED = ("_parameters", "_buffers", "_modules")  # where torch keeps what is no plain attribute
# What an STL layer holds and a dense one does not.
_OURS = frozenset({"encoders", "encoded", "frozen", "edges", "_thawed", "_kept"})
_TAKEN = _OURS.union(vars(STLLayer), vars(STLLinear), vars(STLConv2d))  # names that a dense layer's owner may not use
_STRASSEN = "catalog:best?shape=2,2,2&rank=7&ring=ZT"
MODERATE = 0.2  # the candidate of about this error tells how much the output feels a layer: nearly linear there
CANDIDATES: tuple[Any, ...] = (_STRASSEN, *((_STRASSEN, width) for width in (3, 4, 6, 8, 12)))


@dataclass(frozen=True)
class Config:
    """How to convert a model.

    ``encoder`` names one scheme or is ``Encoders`` (see ``STLLinear``), or is a pair (scheme, width): inner tiles
    ``width`` features wide, reduced to the scheme's k by directions fitted to calibration data. ``weight`` is "dense"
    or "encoded" (a width always means encoded); ``sharing`` "layer" gives each layer encoders, "row" each block-row of
    its weight, "shared" one set for all layers.

    ``calibrate(model)`` runs the model on calibration data and returns a tensor, what counts of its output. With it,
    factors are fitted by least squares (decoder; encoded weight), biases corrected, errors measured on held-out rows;
    in float32 at least, whatever the model's own dtype, which its layers keep.
    ``probe`` is a smaller such run for the sensitivities, which take one run a layer (by default ``calibrate`` itself).
    With ``budget``, a share of the dense layers' multiplications, each layer gets one of ``candidates``, or stays
    dense, so that the predicted change of that output is least.
    """

    encoder: Any = DEFAULT_ENCODER
    weight: str = "dense"
    sharing: str = "layer"
    calibrate: Callable[[nn.Module], Tensor] | None = None
    probe: Callable[[nn.Module], Tensor] | None = None
    budget: float | None = None
    candidates: tuple[Any, ...] = CANDIDATES

    def __post_init__(self) -> None:
        if self.sharing not in ("layer", "row", "shared"):
            raise UsageError(f'sharing is {self.sharing!r:.40}, must be "layer", "row" or "shared"')
        if self.weight not in ("dense", "encoded"):
            raise UsageError(f'weight is {self.weight!r:.40}, must be "dense" or "encoded"')
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UsageError(f"budget is {self.budget!r:.40}, must be a share of the multiplications, in (0, 1]")
        if self.sharing == "shared" and (self._needs_data or self.calibrate is not None):
            raise UsageError("shared encoders belong to all layers and are not fitted to one: give no calibrate")

    @property
    def _needs_data(self) -> bool:
        """Whether there is no converting without calibration data."""
        return self.budget is not None or isinstance(self.encoder, tuple)


@dataclass(frozen=True)
class Row:
    """One layer of the report: what became of it, and its figures before and after.

    ``flops`` are of multiplications and additions of the products, encoding and decoding, for one row of input;
    ``parameters`` and ``bytes`` what a frozen layer needs (encoded weight, u, w, bias; the processor's kernels keep the
    weight once more). ``predicted`` is the expected
    relative error of the output under the model's assumptions, ``measured`` that on held-out calibration rows,
    relative to the centred output; None without calibration data. ``sensitivity`` is the change of the model's output
    for each unit of measured error.
    """

    name: str
    what: str
    flops: tuple[float, float]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    predicted: float
    measured: float | None = None
    sensitivity: float | None = None
    rows: int = 1


@dataclass(frozen=True)
class Report:
    """What ``convert_`` did: ``rows`` for layers converted or kept dense by choice, ``left`` for others, with why."""

    rows: list[Row] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Operations of these layers relative to dense, each weighted by the rows that it saw."""
        before, after = (sum(r.flops[i] * r.rows for r in self.rows) for i in (0, 1))
        return after / before if before else 1.0

    def __str__(self) -> str:
        lines = [f"{'layer':40} {'now':34} {'flops':>6} {'params':>7} {'bytes':>7} {'predicted':>9} {'measured':>8}"]
        for r in self.rows:
            ratios = [b / a if a else 1.0 for a, b in (r.flops, r.parameters, r.bytes)]
            measured = "-" if r.measured is None else f"{r.measured:.4f}"
            lines.append(
                f"{r.name or '(model)':40} {r.what:34} {ratios[0]:6.3f} {ratios[1]:7.3f} {ratios[2]:7.3f} "
                f"{r.predicted:9.2e} {measured:>8}"
            )
        lines += [f"{name or '(model)':40} left: {why}" for name, why in self.left.items()]
        return "\n".join([*lines, f"operations of these layers: {self.ratio:.3f} of dense"])


@dataclass(frozen=True)
class Survey:
    """What calibration found: ``seen`` by each layer, how much the output feels it, and ``options`` for a budget.

    ``options[name][candidate]`` is the row of the report that this choice would give; the candidate None is dense.
    """

    seen: dict[str, Seen]
    sensitivities: dict[str, float]
    options: dict[str, dict[Any, Row]]

    def within(self, budget: float, names: list[str]) -> dict[str, Any]:
        """The choice for each of these layers, by least sum of (sensitivity * measured error)^2 within the budget."""
        if missing := [name for name in names if name not in self.options]:
            raise UsageError(f"the survey has no options for {missing[0]!r:.80}: make it with a budget in its config")
        tables = [list(self.options[name].items()) for name in names]
        costs = [[row.flops[1] * row.rows for _, row in table] for table in tables]
        losses = [[((row.sensitivity or 0.0) * (row.measured or 0.0)) ** 2 for _, row in table] for table in tables]
        picks = calibrate.allocate(costs, losses, budget * sum(row[0] for row in costs))
        return {name: table[i][0] for name, table, i in zip(names, tables, picks, strict=True)}


def convert_(
    model: nn.Module,
    config: Config | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    skip: Iterable[str] = (),
    *,
    survey: Survey | None = None,
) -> Report:
    """The nn.Linear and nn.Conv2d layers of ``model`` become STL layers in place; also ``model`` itself if it is one.

    Layers keep their identity, hooks and, where the weight stays dense, their Parameters; attributes, buffers and
    submodules that others put on them stay too. ``filter_fn(layer, name)`` says which to convert, ``skip`` lists names,
    of layers or of parts of the model, to leave alone. Subclasses (such as the projection inside
    nn.MultiheadAttention), grouped convolutions, layers with a ``forward`` of their own or another name that STL layers
    need, layers whose weight or bias is worked out from other parameters (weight_norm, spectral_norm, pruning) and, for
    encoded weights, weights that are tied to others are left as they are, and the report says why. ``survey`` is what
    ``survey`` found for the same model, layers, calibration and candidates. Raises UsageError for unknown names in
    ``skip`` and for layers on the "meta" device, and what loading the encoders raises; the model is then unchanged.

    >>> from stl_search.scheme import Scheme
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = convert_(model, Config(Scheme((1, 1, 1), "ZT", [[1]], [[1]], [[1]])), skip=["2"])
    >>> type(model[0]).__name__, type(model[2]).__name__, len(report.rows)
    ('STLLinear', 'Linear', 1)
    """
    config = config or Config()
    layers, left = _chosen(model, config, filter_fn, tuple(skip))
    found = survey
    if found is None and config.calibrate is not None and layers:
        found = _surveyed(model, config, layers)
    if found is None and config._needs_data and layers:
        raise UsageError("a budget or a width needs calibration data: give calibrate, which runs the model on it")
    if found is not None:
        for name in [name for name in layers if name not in found.seen]:
            left[name] = "calibration never ran it"
            del layers[name]
    encoder = config.encoder
    if config.sharing == "shared" and not isinstance(encoder, Encoders) and layers:
        first: Any = next(iter(layers.values())).weight
        encoder = Encoders.of(encoder, first.device, first.dtype)
    choices: dict[str, Any] = dict.fromkeys(layers, encoder)
    if config.budget is not None and layers:
        assert found is not None
        choices = found.within(config.budget, list(layers))
    rows, made = [], {}
    for name, choice in choices.items():
        seen = found.seen[name] if found is not None else None
        if choice is None:
            assert seen is not None
            row = _kept(name, layers[name], seen)
        else:
            made[name], row = _option(name, layers[name], choice, config, seen)
        rows.append(replace(row, sensitivity=found.sensitivities.get(name) if found is not None else None))
    for name, new in made.items():
        _become(layers[name], new)
    _no_fast_path(model)
    return Report(rows, left)


def survey(
    model: nn.Module,
    config: Config,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    skip: Iterable[str] = (),
) -> Survey:
    """What ``convert_`` measures before it chooses, to be handed to it for several budgets; the model is unchanged.

    Raises UsageError for a config without ``calibrate`` and what ``convert_`` raises.
    """
    if config.calibrate is None:
        raise UsageError("a survey needs calibration data: give calibrate, which runs the model on it")
    return _surveyed(model, config, _chosen(model, config, filter_fn, tuple(skip))[0])


def _surveyed(model: nn.Module, config: Config, layers: dict[str, nn.Module]) -> Survey:
    assert config.calibrate is not None
    seen, output = _watch(model, layers, config.calibrate)
    seen = {name: s for name, s in seen.items() if s.count}
    if config.budget is None:
        return Survey(seen, {}, {})
    probe = config.probe or config.calibrate
    output = _run(model, probe) if config.probe is not None else output
    weights, options = {}, {}
    for name, s in seen.items():
        made = {c: _option(name, layers[name], c, config, s) for c in config.candidates}
        rows = {None: _kept(name, layers[name], s), **{c: row for c, (_, row) in made.items()}}
        tried = min(made.values(), key=lambda m: abs((m[1].measured or 0.0) - MODERATE), default=None)
        weights[name] = 0.0
        if tried is not None and tried[1].measured:
            weights[name] = _sensitivity(model, layers[name], tried[0], tried[1].measured, probe, output)
        options[name] = {c: replace(row, sensitivity=weights[name]) for c, row in rows.items()}
    return Survey(seen, weights, options)


def unconvert_(model: nn.Module) -> list[str]:
    """Every STL layer of ``model`` becomes the nn.Linear or nn.Conv2d that does the same, in place; gives their names.

    What others put on them stays. Raises UsageError, and changes nothing, where one has no dense counterpart:
    approximate encoders, an encoded weight that training has taken away from any dense one's encoding, a weight or
    bias that is parametrized, or a ``forward`` of its own.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, STLLayer)}
    dense: dict[str, nn.Module] = {}
    for name, layer in found.items():
        try:
            dense[name] = layer.to_dense()
        except UsageError as error:
            raise UsageError(f"{name or 'the model'}: {' '.join(str(error).split())}") from None
    for name, layer in found.items():
        layer.thaw()
        _become(layer, dense[name])
    return list(found)


# -- which layers ------------------------------------------------------------------------------------------------------


def _chosen(
    model: nn.Module, config: Config, filter_fn: Callable[[nn.Module, str], bool] | None, skip: tuple[str, ...]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    modules = dict(model.named_modules())
    for name in skip:
        if name not in modules:
            raise UsageError(f"skip names {name!r:.80}, which is no part of the model")
    owners: dict[int, int] = {}
    for module in modules.values():
        for p in module._parameters.values():
            owners[id(p)] = owners.get(id(p), 0) + (p is not None)
    layers: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    encoded = config.weight == "encoded" or config.budget is not None or isinstance(config.encoder, tuple)
    for name, module in modules.items():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if any(name == s or name.startswith(s + ".") for s in skip):
            left[name] = "skipped"
        elif type(module) not in (nn.Linear, nn.Conv2d):
            left[name] = f"a {type(module).__name__}: its owner may use the weight directly"
        elif isinstance(module, nn.Conv2d) and module.groups != 1:
            left[name] = f"a convolution in {module.groups} groups"
        elif clash := next((held for held in _held(module) if held in _TAKEN), None):
            left[name] = f"it has a {clash} of its own, where an STL layer has another"
        elif reason := derived(module, "weight", "bias"):
            left[name] = reason
        elif encoded and owners.get(id(module.weight), 0) > 1:
            left[name] = "its weight is tied to another's"
        elif filter_fn is not None and not filter_fn(module, name):
            left[name] = "filtered out"
        elif module.weight.is_meta:
            where = f"{name or 'the model'} is on the meta device, where encoders have no values"
            raise UsageError(f"{where}: load its weight first, or skip it")
        else:
            layers[name] = module
    return layers, left


def _held(module: nn.Module) -> list[str]:
    """The names of all that a module holds: plain attributes, parameters, buffers and submodules."""
    return [name for part in (vars(module), *(vars(module)[key] for key in _REGISTERED)) for name in part]


def _become(module: nn.Module, new: nn.Module) -> None:
    """``module`` turns into ``new`` without losing its identity, its hooks, what else others put on it or its place in
    anything that holds it."""
    old, made = vars(module), vars(new)
    after = old["_load_state_dict_post_hooks"]  # changed in place: handles that remove a hook refer to this dict
    for key in [key for key, hook in after.items() if hook is encode_again]:
        del after[key]
    after.update(made["_load_state_dict_post_hooks"])
    made.update({key: value for key, value in old.items() if key in _HOOKS or key == "training"})
    made["_non_persistent_buffers_set"] |= old["_non_persistent_buffers_set"] - _OURS
    for there, here in ((old, made), *((old[key], made[key]) for key in _REGISTERED)):
        here.update({name: value for name, value in there.items() if name not in here and name not in _OURS})
    module.__class__ = new.__class__
    module.__dict__ = made


def _no_fast_path(model: nn.Module) -> None:
    """torch's fused transformer kernels take the weights of linear1 and linear2 and never call these layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, STLLayer) for m in module.modules()):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, STLLayer) for m in module.modules()):
            module.enable_nested_tensor = False


# -- calibration -------------------------------------------------------------------------------------------------------


@contextmanager
def _running(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every part's own mode is back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def _watch(
    model: nn.Module, layers: dict[str, nn.Module], run: Callable[[nn.Module], Tensor]
) -> tuple[dict[str, Seen], Tensor]:
    """What enters each layer while the model runs on calibration data, and what comes out in the end."""
    seen = {name: Seen(layer, layer.weight[0].numel()) for name, layer in layers.items()}  # type: ignore[index]
    handles = [
        layers[name].register_forward_pre_hook(
            lambda _, args, named, s=s: s.add(args[0] if args else named["input"]), with_kwargs=True
        )
        for name, s in seen.items()
    ]
    try:
        return seen, _run(model, run)
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> Tensor:
    with _running(model):
        output = run(model)
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        raise UsageError("calibrate and probe must return a tensor: what counts of the model's output")
    return output.detach()


def _sensitivity(
    model: nn.Module, layer: nn.Module, new: STLLayer, error: float, run: Callable[[nn.Module], Tensor], output: Tensor
) -> float:
    """|change of the model's output| / |output| with ``new`` in the place of ``layer``, for each unit of its error.

    Noise instead of a real candidate misleads: averages over many rows cancel it, and no approximation's error.
    """
    handle = layer.register_forward_hook(lambda _, args, named, y: new(*args, **named), with_kwargs=True)
    try:
        changed = _run(model, run)
    finally:
        handle.remove()
    changed, output = changed.double(), output.double()  # squares of float16 numbers overflow
    return float(torch.linalg.vector_norm(changed - output) / torch.linalg.vector_norm(output)) / error


# -- one layer, one choice ---------------------------------------------------------------------------------------------


def _scheme(encoder: Any) -> Scheme:
    request = request_of(encoder)
    if request.named is None:
        raise UsageError("an open selector cannot fill a layer: name one scheme, with shape= and rank=")
    found = request.named("fp32")
    return found.scheme if isinstance(found, Plan) else found


def _build(layer: nn.Module, encoder: Any, mode: str, per_row: bool) -> STLLayer:
    if isinstance(layer, nn.Conv2d):
        return STLConv2d.from_conv(layer, encoder, weight=mode, per_row=per_row)
    assert isinstance(layer, nn.Linear)
    return STLLinear.from_linear(layer, encoder, weight=mode, per_row=per_row)


def _option(name: str, layer: Any, encoder: Any, config: Config, seen: Seen | None) -> tuple[STLLayer, Row]:
    """The STL layer that would take the place of ``layer``, which is not changed, and its row of the report."""
    weight, bias = layer.weight.detach(), layer.bias
    scheme, width = encoder if isinstance(encoder, tuple) else (encoder, None)
    exact = False
    if width is not None:
        assert seen is not None
        encoders, b_hat, predicted = calibrate.fit_directions(_scheme(scheme), width, seen, weight.flatten(1).T)
        new = _build(layer, encoders, "encoded", False)
        assert new.encoded is not None
        new.encoded.data.copy_(b_hat)
        what = f"{_scheme(scheme).name} on {width}"
    else:
        if not isinstance(scheme, Encoders):
            encoders = Encoders.of(scheme, weight.device, weight.dtype)
        else:
            encoders = scheme if config.sharing == "shared" else copy.deepcopy(scheme)
        new = _build(layer, encoders, config.weight, config.sharing == "row")
        what = f"<{','.join(map(str, encoders.shape))}> r={encoders.rank}"
        E = encoders.expected_error()
        predicted, exact = math.sqrt(E), E < 1e-12
        if seen is not None and not exact:
            predicted = calibrate.predicted_error(encoders.schemes()[0], seen.sample, weight.flatten(1).T)
    measured = None
    if seen is not None:
        held = seen.held_out.to(weight.device, weight.dtype)
        if not exact:
            calibrate.correct_bias(new, weight, seen.mean)
        measured = calibrate.output_error(new, weight, bias, held)
        if width is None and not exact:
            measured = _refitted(new, layer, seen, held, measured)
    now = [p for p in (new.encoded_weight(), new.encoders.u, new.encoders.w, new.bias) if p is not None]
    before = [p for p in (layer.weight, layer.bias) if p is not None]
    row = Row(
        name,
        what,
        (2.0 * weight.numel(), 2.0 * new.multiplications),
        (sum(p.numel() for p in before), sum(p.numel() for p in now)),
        (sum(p.nbytes for p in before), sum(p.numel() * weight.element_size() for p in now)),
        predicted,
        measured,
        rows=seen.rows if seen is not None else 1,
    )
    return new, row


def _refitted(new: STLLayer, layer: Any, seen: Seen, held: Tensor, measured: float) -> float:
    """Refits ``new`` in place in the way that does best on held-out rows, or in none; its error there."""
    weight = layer.weight.detach()
    kind = torch.promote_types(weight.dtype, torch.float32)
    mean = seen.mean.to(weight.device, kind)
    x = seen.sample.to(weight.device, kind) - mean
    y = x @ new._matrix(weight).to(kind)

    def held_now() -> tuple[Any, Tensor, Tensor | None]:
        return new.bias, new.encoders.w.detach().clone(), None if new.encoded is None else new.encoded.detach().clone()

    def put(factors: tuple[Any, Tensor, Tensor | None]) -> None:
        new.bias = factors[0]
        new.encoders.w.data.copy_(factors[1])
        if new.encoded is not None and factors[2] is not None:
            new.encoded.data.copy_(factors[2])

    before = best = held_now()
    for ridge in (None, *(calibrate.WEIGHT_RIDGES if new.encoded is not None else ())):
        put(before)
        new.bias = layer.bias
        calibrate.refit(new, x, y, mean, ridge=ridge)
        calibrate.correct_bias(new, weight, seen.mean)
        error = calibrate.output_error(new, weight, layer.bias, held)
        if error < measured:
            measured = error
            best = held_now()
    put(best)
    return measured


def _kept(name: str, layer: Any, seen: Seen) -> Row:
    held = [p for p in (layer.weight, layer.bias) if p is not None]
    flops, count, size = 2.0 * layer.weight.numel(), sum(p.numel() for p in held), sum(p.nbytes for p in held)
    return Row(name, "dense", (flops, flops), (count, count), (size, size), 0.0, 0.0, rows=seen.rows)
