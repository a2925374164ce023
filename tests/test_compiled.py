"""amm inside torch.compile(fullgraph=True): the same values and gradients, any sizes from one graph, any encoder."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import library, nn

from stl_search import transform
from stl_search.kernels.plan import Plan
from stl_search.nn import Encoders, STLLinear, convert_
from stl_search.nn.convert import Config
from stl_search.runtime import compiled, dispatch, traced
from stl_search.runtime.amm import amm, encode_lhs, encode_rhs
from stl_search.runtime.dispatch import Explanation
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN

LONG = transform.sum_k(transform.sum_n(STRASSEN, STRASSEN), transform.classical((2, 1, 4)))  # <2,3,4>, rank 22
ROUGH = Scheme((2, 3, 4), "R", *(f[:9] for f in LONG.as_float()))  # approximate: no plain product is close to it


def gaussian(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, grad: bool = True) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).requires_grad_(grad)


class Whole:
    """A function compiled into one graph; counts how often that was done."""

    def __init__(self, f: Callable[..., Any]) -> None:
        self.graphs = 0
        torch._dynamo.reset()
        self.call = torch.compile(f, fullgraph=True, backend=self._backend)

    def _backend(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)  # type: ignore[no-untyped-call]

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def agrees(f: Callable[..., torch.Tensor], *tensors: torch.Tensor, **close: float) -> None:
    """Values and gradients as without torch.compile, and the second call takes the first one's graph."""
    whole = Whole(f)
    whole(*tensors)
    found, wanted = whole(*tensors), f(*tensors)
    assert whole.graphs == 1
    torch.testing.assert_close(found, wanted, **close)
    leaves = [x for x in tensors if x.requires_grad]
    if leaves:
        weights = gaussian(*wanted.shape, dtype=wanted.dtype, seed=9, grad=False)
        mine, others = (torch.autograd.grad((c * weights).sum().abs(), leaves) for c in (found, wanted))
        for got, want in zip(mine, others, strict=True):
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, **close)


def written(tmp_path: Path) -> Path:
    path = tmp_path / "rough.json"
    path.write_text(json.dumps(ROUGH.to_json()))
    return path


@pytest.mark.parametrize("kind", ["scheme", "plan", "tile plan", "path", "text", "selector", "open", "none"])
def test_every_encoder_goes_into_one_graph(kind: str, tmp_path: Path) -> None:
    encoder: Any = {
        "scheme": ROUGH,
        "plan": Plan(ROUGH, "fp64"),
        "tile plan": Plan(ROUGH, "fp64", layout="tile"),
        "path": written(tmp_path),
        "text": str(written(tmp_path)),
        "selector": "catalog:best?shape=4,4,4&rank=32",
        "open": "catalog:best?rtol=.1",
        "none": None,
    }[kind]
    agrees(lambda a, b: 2 * amm(a, b, encoder), gaussian(2, 9, 7, seed=1), gaussian(7, 6, seed=2))


@pytest.mark.parametrize(
    ("left", "right"), [((5, 7), (7, 3)), ((2, 3, 5), (5, 4)), ((2, 1, 3, 2), (3, 2, 4)), ((4,), (4, 3)), ((4,), (4,))]
)
@pytest.mark.parametrize("encoder", [ROUGH, "catalog:best"])
def test_any_ranks_and_batches(left: tuple[int, ...], right: tuple[int, ...], encoder: Any) -> None:
    agrees(lambda a, b: amm(a, b, encoder) * 3, gaussian(*left, seed=1), gaussian(*right, seed=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("encoder", [STRASSEN, "catalog:best"])
def test_any_dtype_and_output(dtype: torch.dtype, encoder: Any) -> None:
    a, b = gaussian(6, 8, dtype=dtype, seed=1), gaussian(8, 4, dtype=dtype, seed=2)
    agrees(lambda x, y: amm(x, y, encoder), a, b)
    wide: Any = torch.complex128 if dtype.is_complex else "fp64"
    agrees(lambda x, y: amm(x, y, encoder, out_dtype=wide), a, b)


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3"])
def test_a_plan_brings_its_own_precisions(dtype: str) -> None:
    plan = Plan(STRASSEN, dtype, out="fp32")
    a, b = (gaussian(8, 8, dtype=torch.bfloat16, seed=i, grad=dtype == "bf16") for i in (1, 2))
    agrees(lambda x, y: amm(x, y, plan), a, b)


def test_gradients_of_a_scaled_plan_are_those_of_the_product_it_makes() -> None:
    """fp8_e4m3 has its own way through eager autograd: there both operands pass through storage."""
    plan = Plan(STRASSEN, "fp8_e4m3", out="fp32")
    a, b = (gaussian(64, 64, dtype=torch.float32, seed=i) for i in (1, 2))
    weights = gaussian(64, 64, dtype=torch.float32, seed=3, grad=False)
    got = torch.autograd.grad((Whole(lambda x, y: amm(x, y, plan))(a, b) * weights).sum(), (a, b))
    for mine, want in zip(got, (weights @ b.detach().T, a.detach().T @ weights), strict=True):
        assert (mine - want).norm() < 1.15 * plan.predicted_error * want.norm()


@pytest.mark.parametrize("encoder", [ROUGH, "catalog:best"])
def test_an_open_choice_is_made_when_the_product_runs(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for all sizes; what is chosen for each size is used, forward and backward."""
    asked = []

    def choose(request: Any, problem: Any, out: str | None = None) -> Explanation:
        asked.append(problem.rows)
        found = dispatch.choose(request, problem, out)
        return found if problem.rows % 2 else Explanation(Plan(ROUGH, "fp64"), 0.0, 1.0, 1, "even")

    monkeypatch.setattr("stl_search.runtime.amm.choose", choose)
    whole = Whole(lambda a, b: amm(a, b, encoder) * 2)
    for rows in (5, 6, 7, 8, 9, 10):
        a, b = gaussian(rows, 7, seed=rows), gaussian(7, 5, seed=1)
        c = whole(a, b)
        scheme = ROUGH if encoder is ROUGH or rows % 2 == 0 else transform.classical((1, 1, 1))
        x, y = a.detach().requires_grad_(), b.detach().requires_grad_()
        want = amm(x, y, scheme) * 2
        torch.testing.assert_close(c, want)
        for got, expected in zip(
            torch.autograd.grad(c.sum(), (a, b)), torch.autograd.grad(want.sum(), (x, y)), strict=True
        ):
            torch.testing.assert_close(got, expected)
    assert set(range(5, 11)) <= set(asked)
    assert whole.graphs == 2  # the first sizes, then any


@pytest.mark.parametrize("pair", ["lhs", "rhs", "both"])
def test_encoded_operands(pair: str) -> None:
    a, b = gaussian(5, 7, seed=1), gaussian(7, 6, seed=2)
    left: Any = encode_lhs(a.detach(), ROUGH) if pair != "rhs" else a
    right: Any = encode_rhs(b.detach(), ROUGH) if pair != "lhs" else b
    if pair == "both":
        agrees(lambda x: amm(left, right) + x, gaussian(5, 6))
    elif pair == "lhs":
        agrees(lambda y: amm(left, y) * 2, b)
        agrees(lambda y: amm(left, y[:, 0], out_dtype=torch.float32), b)
    else:
        agrees(lambda x: amm(x, right) * 2, a)
        agrees(lambda x: amm(x.expand(2, 3, 5, 7), right, ROUGH), a)


def test_packed_operands_too() -> None:
    a, b = gaussian(3, 600, dtype=torch.float32, seed=1), gaussian(600, 640, dtype=torch.float32, seed=2, grad=False)
    encoded = encode_rhs(b, STRASSEN)
    agrees(lambda x: amm(x, encoded), a, rtol=1e-4, atol=1e-3)  # sums of 600 terms in another order


def test_one_graph_never_serves_two_encoders() -> None:
    a, b = gaussian(6, 6, seed=1, grad=False), gaussian(6, 6, seed=2, grad=False)
    whole = Whole(lambda x, y, encoder: amm(x, y, encoder))
    others = [Scheme((2, 2, 2), "R", *(f[:rank] for f in STRASSEN.as_float())) for rank in (4, 5, 6)]
    for scheme in [*others, *others]:
        torch.testing.assert_close(whole(a, b, scheme), amm(a, b, scheme))
    held = Whole(lambda x, right: amm(x, right))
    for scheme in others:
        right = encode_rhs(b, scheme)
        torch.testing.assert_close(held(a, right), amm(a, right))
        del right  # the next one may get its address
        gc.collect()


def test_graphs_keep_no_encoded_operand_alive() -> None:
    a, right = gaussian(6, 6, grad=False), encode_rhs(gaussian(6, 6, grad=False), STRASSEN)
    whole = Whole(lambda x, y: amm(x, y))
    whole(a, right)
    gc.collect()  # those of other tests
    before = len(compiled._operands)
    del right
    gc.collect()
    assert len(compiled._operands) == before - 1


def test_checks_mixing_workspace_and_backend_work_inside() -> None:
    a, b = gaussian(40, 30, seed=1, grad=False), gaussian(30, 50, seed=2, grad=False)
    agrees(lambda x, y: amm(x, y, ROUGH, randomize=3), a, b)
    agrees(lambda x, y: amm(x, y, ROUGH, randomize=("signs", 3)), a, b)
    agrees(lambda x, y: amm(x, y, STRASSEN, check=True, rtol=1e-6), a, b)
    agrees(lambda x, y: amm(x, y, STRASSEN, workspace=1 << 20), a, b)
    agrees(lambda x, y: amm(x, y, ROUGH, backend="reference"), a, b)
    agrees(lambda x, y: amm(x, y, rtol=0.5) + amm(x, y, speedup=1.5), a, b)
    whole = Whole(lambda x, y: amm(x, y, ROUGH, check=True, rtol=1e-6))
    with pytest.warns(UserWarning, match="exceeds rtol"):
        torch.testing.assert_close(whole(a, b), a @ b)
    with pytest.raises(Exception, match="have no gradients inside"):
        Whole(lambda x, y: amm(x, y, ROUGH, randomize=1))(a.requires_grad_(), b)


def test_numpy_arrays_inside_a_graph() -> None:
    a, b = gaussian(5, 7, grad=False), gaussian(7, 3, grad=False)
    agrees(lambda x, y: torch.from_numpy(amm(x.numpy(), y.numpy(), ROUGH)), a, b)


def test_autocast_does_not_reach_inside() -> None:
    a, b = gaussian(8, 8, dtype=torch.float32, seed=1), gaussian(8, 8, dtype=torch.float32, seed=2)

    def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return amm(x, y, STRASSEN) + amm(x, y)

    agrees(both, a, b)


@pytest.mark.parametrize("encoder", ["scheme", "open", "encoded"])
def test_opcheck(encoder: str) -> None:
    a, b = gaussian(2, 5, 7, seed=1), gaussian(7, 4, seed=2)
    operand = encode_rhs(b.detach(), ROUGH)
    rest: tuple[Any, ...] = (None, None, "auto", False, "", 0, None, torch.float64)
    if encoder == "encoded":
        name = traced._operand_name(id(operand))
        library.opcheck(compiled.multiply, (a, torch.empty(0, dtype=b.dtype), "", name, [], [7, 4], "", *rest))
        needed = [True, False]
        given = (
            gaussian(2, 5, 4, grad=False),
            a.detach(),
            torch.empty(0, dtype=b.dtype),
            "",
            name,
            "",
            None,
            None,
            needed,
        )
        library.opcheck(compiled.multiply_gradients, given)
        return
    name = traced._encoder_name(id(ROUGH)) if encoder == "scheme" else "catalog:best"
    library.opcheck(compiled.multiply, (a, b, "", "", [], [], name, *rest))
    for needed in ([True, True], [False, True]):
        given = (gaussian(2, 5, 4, grad=False), a.detach(), b.detach(), "", "", name, None, None, needed)
        library.opcheck(compiled.multiply_gradients, given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, b: amm(a, b.T, ROUGH), "inner sizes differ"),
        (lambda a, b: amm(a, b.float(), ROUGH), "A is torch.float64 and B torch.float32"),
        (lambda a, b: amm(a, b, 7), "not int"),
        (lambda a, b: amm(a, b, ROUGH, out_dtype="int8"), "int8 has no plan"),
    ],
)
def test_what_makes_no_sense_is_said_while_the_graph_is_made(call: Any, words: str) -> None:
    with pytest.raises(Exception, match=words):
        Whole(call)(gaussian(3, 4), gaussian(4, 5))


@pytest.mark.parametrize("mode", ["dense", "encoded", "shared", "frozen"])
def test_a_converted_model_compiles_in_one_graph(mode: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    model.double()
    weight = "encoded" if mode == "encoded" else "dense"
    convert_(model, Config(STRASSEN, weight=weight, sharing="shared" if mode == "shared" else "layer"))
    if mode == "frozen":
        for layer in model.modules():
            if hasattr(layer, "freeze"):
                layer.freeze()
    x = gaussian(3, 2, 5, 6)
    agrees(lambda y: model(y), x)
    if mode != "frozen":
        whole, eager = Whole(lambda y: model(y)), model
        parameters = [p for p in model.parameters() if p.requires_grad]
        mine = torch.autograd.grad(whole(x).square().sum(), parameters)
        for got, want in zip(mine, torch.autograd.grad(eager(x).square().sum(), parameters), strict=True):
            torch.testing.assert_close(got, want)


def test_a_layer_is_not_compiled_for_each_token_count() -> None:
    layer = STLLinear(9, 7, encoder=Encoders.of(ROUGH), dtype=torch.float64)
    layer.double()
    whole = Whole(lambda x: layer(x))
    for tokens in (3, 4, 5, 8, 16, 17):
        x = gaussian(2, tokens, 9, seed=tokens)
        torch.testing.assert_close(whole(x), layer(x))
    assert whole.graphs <= 3  # the first size, then sizes that fill tiles and sizes that do not


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own
def test_the_default_backend_fuses_around_it_and_trains_through_it() -> None:
    encoded = encode_rhs(gaussian(7, 9, seed=3, grad=False), ROUGH)
    layer = STLLinear(9, 6, encoder=Encoders.of(STRASSEN), dtype=torch.float64)
    leaves = [gaussian(5, 8, seed=1), gaussian(8, 7, seed=2), *layer.parameters()]

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        c: torch.Tensor = layer(amm(torch.relu(amm(a, b, STRASSEN)) + 1, encoded))
        return c.sin().sum()

    torch._dynamo.reset()
    found, wanted = torch.compile(loss, fullgraph=True)(*leaves[:2]), loss(*leaves[:2])
    torch.testing.assert_close(found, wanted)
    for got, want in zip(*(torch.autograd.grad(x, leaves) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(got, want)


def test_encoding_stays_outside_of_graphs() -> None:
    a, b = (gaussian(*size, seed=i, grad=False) for i, size in enumerate(((5, 7), (7, 6))))

    def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        c: torch.Tensor = amm(torch.relu(x), encode_rhs(2 * y, ROUGH)) + amm(encode_lhs(y.T, ROUGH), x.T).T
        return c

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(both, backend="eager")(a, b), both(a, b))
    with pytest.raises(Exception, match="encode_rhs"):
        Whole(lambda x, y: amm(x, encode_rhs(y, ROUGH)))(a, b)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_has_one_operator(strict: bool) -> None:
    """Without ``strict`` no Dynamo looks on: what tells ``amm`` are tensors without data, after its short way."""

    class Product(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return amm(a, b, STRASSEN)  # type: ignore[no-any-return]

    a, b = torch.randn(24, 16), torch.randn(16, 20)
    program = torch.export.export(Product(), (a, b), strict=strict)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == ["stl_search.multiply.default"]
    assert torch.equal(program.module()(a, b), amm(a, b, STRASSEN))
