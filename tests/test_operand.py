"""Encoded operands on disk: they come back as they were, know their plan, and damaged or foreign files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stl_search.errors import FormatError, UsageError
from stl_search.kernels.plan import LAYOUTS, Plan
from stl_search.runtime import calibrate
from stl_search.runtime.amm import EncodedOperand, amm, encode_lhs, encode_rhs
from stl_search.runtime.calibrate import Rates
from stl_search.testing import STRASSEN
from stl_search.transform import classical


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["fp8_e4m3", "bf16", "fp16", "fp32", "fp64"])
def test_a_saved_operand_comes_back_as_it_was(tmp_path: Path, dtype: str, layout: str) -> None:
    plan = Plan(STRASSEN, dtype, layout=layout)
    kind = torch.float64 if dtype == "fp64" else torch.float32
    if dtype in ("bf16", "fp16"):
        kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    a, b = torch.randn(2, 5, 7).to(kind), torch.randn(7, 9).to(kind)
    left, right = encode_lhs(a, plan), encode_rhs(b, plan)
    expected = amm(left, right)
    for name, x in (("left", left), ("right", right)):
        x.save(tmp_path / name)
    again = [EncodedOperand.load(tmp_path / name) for name in ("left", "right")]
    assert torch.equal(amm(*again), expected)
    assert (again[0].plan, again[0].shape, again[0].side, again[0].kind) == (plan, (2, 5, 7), "lhs", "torch")
    assert again[1].nbytes == right.nbytes
    with pytest.raises(UsageError, match="encode both by one plan"):
        amm(again[0], encode_rhs(b, Plan(classical((2, 2, 2)), dtype, layout=layout)))


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_complex_operands_are_saved_too(tmp_path: Path, dtype: str) -> None:
    kind = np.complex64 if dtype == "fp32" else np.complex128
    a, b = (np.random.default_rng(i).standard_normal((2, 5, 5)) for i in (0, 1))
    left, right = ((x[0] + 1j * x[1]).astype(kind) for x in (a, b))
    held = encode_rhs(right, STRASSEN)
    held.save(tmp_path / "held")
    again = EncodedOperand.load(tmp_path / "held")
    assert again.plan == held.plan
    assert np.array_equal(amm(left, again), amm(left, held))


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good"
    encode_rhs(np.ones((4, 4), np.float32), STRASSEN).save(good)
    assert EncodedOperand.load(good).kind == "numpy"
    (tmp_path / "text").write_text("no tensors")
    save_file({"data": torch.ones(2)}, tmp_path / "bare")
    from safetensors import safe_open

    with safe_open(good, framework="pt") as file:
        about = file.metadata()["stl_search"]
    data = load_file(good)["data"]
    for name, tensors, text in (
        ("shape", {"data": data[:, :1].contiguous()}, about),
        ("dtype", {"data": data.double()}, about),
        ("scale", {"data": data, "scale": data.clone()}, about),
        ("format", {"data": data}, about.replace("stl-operand/1", "stl-operand/9")),
        ("side", {"data": data}, about.replace('"rhs"', '"top"')),
        ("scheme", {"data": data}, about.replace('"rank": 7', '"rank": 8')),
        ("json", {"data": data}, about[:-1]),
        ("flat", {"data": data}, about.replace('"shape": [4, 4]', '"shape": [8]')),
        ("half", {"data": data}, about.replace('"shape": [4, 4]', '"shape": [4.0, 4.0]')),
        ("layout", {"data": data}, about.replace('"layout": "block"', '"layout": "rows"')),
        ("product", {"data": data}, about.replace('"product": "fp32"', '"product": "fp31"')),
        ("narrow", {"data": data}, about.replace('"dtype": "fp32", "kind"', '"dtype": "fp8_e4m3", "kind"')),
        ("field", {"data": data}, about.replace('"ring": "ZT"', '"ring": "Z2"')),
    ):
        assert text != about or name in ("shape", "dtype", "scale")
        save_file(tensors, tmp_path / name, metadata={"stl_search": text})
    names = {path.name for path in tmp_path.iterdir()} - {"good"} | {"absent"}
    assert len(names) == 16
    for name in sorted(names):
        with pytest.raises(FormatError) as caught:
            EncodedOperand.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cannot be loaded to cuda"):
            EncodedOperand.load(good, "cuda")
    with pytest.raises(UsageError, match="cannot be written"):
        EncodedOperand.load(good).save(tmp_path / "no" / "such" / "folder")


@pytest.mark.parametrize("way", ["onednn", "panels"])
def test_a_packed_operand_is_the_same_to_its_users(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = ((1.0, 1e9),)
    rates = Rates(curve, ("torch",), curve, ("torch",), ((1.0, 2e9),), (way,), 1e9, 1e9, 0.0)
    monkeypatch.setattr(calibrate, "rates", lambda device, dtype: rates)
    a, b = torch.randn(64, 256), torch.randn(256, 768)
    packed = encode_rhs(b, STRASSEN)
    monkeypatch.setattr(
        calibrate, "rates", lambda *_: Rates(curve, ("torch",), curve, ("torch",), (), (), 1e9, 1e9, 0.0)
    )
    plain = encode_rhs(b, STRASSEN)
    assert torch.equal(packed.stored.data, plain.stored.data)
    assert plain.nbytes <= packed.nbytes < 1.1 * plain.nbytes
    assert packed.device == plain.device
    torch.testing.assert_close(amm(a, packed), amm(a, plain))
    a.requires_grad_()
    torch.testing.assert_close(amm(a, packed), amm(a, plain))
    packed.save(tmp_path / "packed")
    assert torch.equal(EncodedOperand.load(tmp_path / "packed").stored.data, plain.stored.data)
