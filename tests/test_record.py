"""Catalog records: what is written holds, every false claim is named, no file makes a check raise or pass unproved."""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import score, transform
from stl_search.catalog import record as records
from stl_search.catalog.record import Record, check_file, compose, read_file, read_record, retag, shorten
from stl_search.errors import BudgetError, CatalogError, FormatError, StlError, UsageError, VerificationError
from stl_search.scheme import Scheme, dump_scheme_object
from stl_search.testing import STRASSEN
from stl_search.verify import residual


def random_scheme(shape: tuple[int, int, int], rank: int, seed: int, ring: str = "R") -> Scheme:
    """A scheme with normal coefficients, terms of very different sizes."""
    rng = np.random.default_rng(seed)
    m, k, n = shape
    factors = []
    for width in (m * k, k * n, m * n):
        f = rng.standard_normal((rank, width)) * np.exp(rng.normal(size=(rank, 1)))
        factors.append(f + 1j * rng.standard_normal((rank, width)) if ring == "C" else f)
    return Scheme(shape, ring, *factors)


def near(scheme: Scheme, spread: float, seed: int = 0) -> Scheme:
    """The scheme over R with every coefficient moved a little: almost exact."""
    rng = np.random.default_rng(seed)
    return Scheme(scheme.shape, "R", *(f + spread * rng.standard_normal(f.shape) for f in scheme.as_float()))


MODULO_2 = Scheme((2, 2, 2), "Z2", *(f % 2 for f in STRASSEN.factors))  # with its signs gone it holds over Z2 only
COMPLEX_EXACT = Scheme((2, 2, 2), "C", STRASSEN.u * 1j, STRASSEN.v * -1j, STRASSEN.w)
CASES = {
    "strassen": STRASSEN,
    "modulo 2": MODULO_2,
    "2x3x4": transform.classical((2, 3, 4)),
    "Z": transform.change_basis(STRASSEN, [[1, 2], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]]),
    "Q": transform.change_basis(STRASSEN, [[2, 1], [0, 1]], [[1, 0], [0, 3]], [[1, 0], [0, 1]]),
    "R": random_scheme((2, 1, 3), 3, 1),
    "R near exact": near(STRASSEN, 1e-9),
    "R exact": transform.to_ring(STRASSEN, "R"),
    "C": random_scheme((1, 2, 2), 2, 2, "C"),
    "C exact": COMPLEX_EXACT,
    "rank 0": Scheme((2, 1, 2), "R", [], [], []),
}


def write(folder: Path, obj: Any, name: str = "scheme.json") -> Path:
    path = folder / name
    path.write_text(dump_scheme_object(obj) if isinstance(obj, dict) else obj, encoding="utf-8")
    return path


# -- what is written holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_proved_record_passes_its_own_check(name: str, tmp_path: Path) -> None:
    scheme = CASES[name]
    record = Record.prove(scheme, {"seed": 3, "strategy": "test"})
    path = tmp_path / "x.json"
    path.write_text(record.dumps(), encoding="utf-8")
    checked = check_file(path)
    assert (checked.ok, checked.code, checked.reason) == (True, 0, None)
    assert (checked.ring, checked.shape, checked.rank) == (scheme.ring.name, scheme.shape, scheme.rank)
    assert record.figures["E"] == checked.E
    again = read_record(path)
    assert again.scheme == scheme
    assert again.to_json() == record.to_json()
    assert next(iter(again.provenance)) == "strategy"  # known keys come in their own order
    assert "version" in again.provenance


def test_figures_are_upper_bounds_and_null_where_they_have_no_meaning() -> None:
    approximate = Record.prove(CASES["R"], {})
    assert Fraction(approximate.figures["E"]) >= residual(CASES["R"]) > 0
    expected = math.sqrt(
        approximate.figures["E"] + 2 * score.relative_rounding("bf16") ** 2 * score.noise_gain(CASES["R"])
    )
    assert approximate.figures["error"]["bf16"] == pytest.approx(expected, rel=1e-14)
    assert Record.prove(STRASSEN, {}).figures["E"] == 0
    modular = Record.prove(MODULO_2, {}).figures
    assert (modular["E"], modular["kappa"], modular["error"]) == (None, None, None)
    assert (modular["additions"], modular["max_coeff"]) == (18, 1.0)  # Strassen's 18 additions


def test_prove_refuses_what_is_false_not_finite_or_no_json() -> None:
    u = STRASSEN.u.copy()
    u[3, 1, 1] = 0
    with pytest.raises(VerificationError, match=r"coefficient of A\[1,1\] B\[0,0\] in C\[0,0\] is 1, must be 0"):
        Record.prove(Scheme((2, 2, 2), "ZT", u, STRASSEN.v, STRASSEN.w), {})
    with pytest.raises(VerificationError, match="beyond the range of a double"):
        Record.prove(Scheme((1, 1, 1), "Q", [[10**400]], [[Fraction(1, 10**400)]], [[1]]), {})
    with pytest.raises(VerificationError, match="beyond the range of a double"):
        Record.prove(Scheme((1, 1, 1), "R", [[1e200]], [[1e200]], [[1.0]]), {})
    for bad in ({"seed": math.nan}, {"seed": object()}, {"command": "\ud800"}):
        with pytest.raises(FormatError, match="provenance"):
            Record.prove(STRASSEN, bad)


# -- every false claim is named ----------------------------------------------------------------------------------------


def lie(case: str, *keys: Any) -> Callable[[Any], tuple[str, Callable[[dict[str, Any]], None]]]:
    """A change of one value of the file, deep inside."""

    def to(value: Any) -> tuple[str, Callable[[dict[str, Any]], None]]:
        def change(obj: dict[str, Any]) -> None:
            place = functools.reduce(lambda o, key: o[key], keys[:-1], obj)
            place[keys[-1]] = value(place[keys[-1]]) if callable(value) else value

        return case, change

    return to


FALSE_CLAIMS = {
    "coefficient": (lie("strassen", "u", 0, 3)(0), r"coefficient of A\[1,1\] B\[0,0\] in C\[0,0\] is -1, must be 0"),
    "coefficient of Z2": (
        lie("modulo 2", "w", 6, 3)(1),
        r"coefficient of A\[0,1\] B\[1,0\] in C\[1,1\] is 1, must be 0",
    ),
    "fraction": (lie("Q", "u", 0, 0)("7/5"), "coefficient of A"),
    "outside ZT": (lie("strassen", "v", 2, 1)(2), r"v\[2\]\[1\] = 2 is not in ZT"),
    "outside Z2": (lie("modulo 2", "v", 2, 1)(-1), r"v\[2\]\[1\] = -1 is not in Z2"),
    "outside Z": (lie("Z", "w", 0, 0)("1/2"), r"w\[0\]\[0\] = 1/2 is not in Z"),
    "id": (lie("strassen", "id")("0" * 64), r"id is 0000"),
    "kind": (lie("R", "certificate", "kind")("exact"), "certificate.kind is 'exact', proved is 'residual'"),
    "rings": (lie("Q", "certificate", "rings")(["Z", "Q"]), "certificate.rings names Z, proved: Q"),
    "no ring": (lie("R", "certificate", "rings")(["R"]), "certificate.rings names R, proved: none"),
    "E_exact": (lie("R", "certificate", "E_exact")("1/3"), "certificate.E_exact is 1/3, proved is "),
    "E_exact of an exact one": (lie("2x3x4", "certificate", "E_exact")("1/3"), "E_exact is 1/3, proved is 0"),
    "E below": (lie("R", "figures", "E")(lambda e: math.nextafter(e, 0)), "below the proved"),
    "E above": (lie("R", "figures", "E")(lambda e: e * (1 + 1e-8)), "figures.E is"),
    "E of an exact one": (lie("strassen", "figures", "E")(1e-300), "figures.E is 1e-300, proved is 0.0"),
    "E over Z2": (lie("modulo 2", "figures", "E")(0.0), "figures.E has no meaning over Z2"),
    "error over Z2": (lie("modulo 2", "figures", "error")({"bf16": 0.0}), "figures.error has no meaning over Z2"),
    "bytes": (lie("R", "figures", "bytes", "B")(lambda x: x * (1 + 1e-8)), "figures.bytes.B is"),
    "bytes over Z2": (lie("modulo 2", "figures", "bytes", "C")(1), "figures.bytes.C is 1, computed is 16.0"),
    "kappa": (lie("R", "figures", "kappa")(lambda x: x * (1 + 1e-8)), "figures.kappa is"),
    "error": (lie("R", "figures", "error", "fp16")(lambda x: x * (1 - 1e-5)), "figures.error.fp16 is"),
    "additions": (lie("strassen", "figures", "additions")(17), "figures.additions is 17, counted are 18"),
    "too few shared": (lie("strassen", "figures", "additions_shared")(17), "additions_shared is 17, the program found"),
    "too many shared": (
        lie("strassen", "figures", "additions_shared")(19),
        "additions_shared is 19, the program found",
    ),
    "shared over R": (lie("R", "figures", "additions_shared")(0), "figures.additions_shared has no meaning over R"),
    "max_coeff": (lie("Z", "figures", "max_coeff")(1), "figures.max_coeff is 1, computed is"),
}


@pytest.mark.parametrize("name", FALSE_CLAIMS)
def test_a_false_claim_is_named_and_gives_1(name: str, tmp_path: Path) -> None:
    (case, change), complaint = FALSE_CLAIMS[name]
    obj = json.loads(Record.prove(CASES[case], {}).dumps())
    if name != "id":
        del obj["id"]  # a changed coefficient alone must be found, whatever the id says
    path = write(tmp_path, obj)
    assert check_file(path).code == 0
    change(obj)
    path = write(tmp_path, obj)
    checked = check_file(path)
    assert (checked.ok, checked.code) == (False, 1)
    assert checked.reason is not None
    assert "\n" not in checked.reason
    with pytest.raises(VerificationError, match=complaint):
        read_record(path)
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(checked.reason)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("R", lambda o: o["figures"].update(E=o["figures"]["E"] * (1 + 1e-10))),
        ("R", lambda o: o["figures"]["error"].update(bf16=o["figures"]["error"]["bf16"] * (1 + 1e-7))),
        ("R", lambda o: o["figures"].update(E=None, kappa=None, error=None)),
        ("R", lambda o: o["figures"].pop("bytes")),
        ("Z", lambda o: o["figures"]["bytes"].pop("A")),
        ("R", lambda o: o.update(certificate=None, figures=None, provenance=None, id=None)),
        ("strassen", lambda o: o["certificate"].update(rings=["ZT"])),
        ("strassen", lambda o: o["certificate"].update(E_exact="0/7")),
        (
            "Q",
            lambda o: o["figures"].update(additions_shared=o["figures"]["additions_shared"] + 1),
        ),  # found by less search
        ("strassen", lambda o: o["figures"].update(E=0, remark="a key of a later version")),
        ("Z", lambda o: [o.pop(key) for key in ("id", "certificate", "figures", "provenance")]),
    ],
)
def test_claims_within_their_tolerance_or_absent_pass(case: str, change: Callable[[Any], Any], tmp_path: Path) -> None:
    obj = json.loads(Record.prove(CASES[case], {}).dumps())
    change(obj)
    assert check_file(write(tmp_path, obj)).reason is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 83), st.integers(1, 2))
def test_any_other_coefficient_of_an_exact_scheme_is_refused(place: int, step: int) -> None:
    obj = STRASSEN.to_json()
    del obj["id"]
    row = obj["uvw"[place // 28]][place % 28 // 4]
    row[place % 4] = (row[place % 4] + 1 + step) % 3 - 1
    with tempfile.TemporaryDirectory() as folder:
        checked = check_file(write(Path(folder), obj))
    assert checked.code == 1
    assert "coefficient of A[" in (checked.reason or "")


# -- what is no scheme file --------------------------------------------------------------------------------------------


def changed(case: str = "strassen", **values: Any) -> str:
    return dump_scheme_object(Record.prove(CASES[case], {}).to_json() | values)


def bare(shape: list[int], ring: str, rows: list[list[int]]) -> str:
    factors = {"u": rows, "v": rows, "w": rows}
    return json.dumps({"format": "stl-scheme/1", "shape": shape, "rank": len(rows), "ring": ring} | factors)


TEXT = changed()
MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not JSON: Expecting value at line 1, column 1"),
    "truncated": (TEXT[:200], "not JSON: .* at line 1[0-9], column"),
    "not UTF-8": (TEXT.replace("exact", "exäct").encode("latin-1"), "not UTF-8 text: byte [0-9]+ is 0xe4"),
    "UTF-16": (TEXT.encode("utf-16"), "not UTF-8 text: byte 0 is 0xff"),
    "byte order mark": ("\ufeff" + TEXT, "BOM"),
    "pickle": (pickle.dumps(STRASSEN.to_json()), "not UTF-8 text: byte 0 is 0x80"),
    "pickle 0": (pickle.dumps(STRASSEN.to_json(), protocol=0), "not JSON"),
    "NaN": (TEXT.replace("[1,0,0,1]", "[1,NaN,0,1]", 1), "NaN .* at line 7, column 6"),
    "minus infinity": (TEXT.replace("[1,0,0,1]", "[-Infinity,0,0,1]", 1), "-Infinity .* at line 7, column 4"),
    "beyond a double": (TEXT.replace("[1,0,0,1]", "[1,0,0,1e999]", 1), "1e999 is beyond .* at line 7, column 10"),
    "huge integer": (TEXT.replace("[1,0,0,1]", f"[1,0,{'7' * 1001},1]", 1), "1001 digits .* at line 7, column 8"),
    "duplicate key": (TEXT.replace('"rank"', '"ring": "Z", "rank"', 1), "'ring' appears twice at line 5"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "deep coefficient": (TEXT.replace("[1,0,0,1]", f"[{'[' * 300}1{']' * 300},0,0,1]", 1), r"u\[0\]\[0\]"),
    "deep closed": ('{"format":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
    "a list": ("[1, 2]", "no JSON object"),
    "a number": ("7", "no JSON object"),
    "unknown format": (changed(format="stl-scheme/9"), "format is 'stl-scheme/9'"),
    "unknown ring": (changed(ring="GF3"), "unknown ring 'GF3'; known: Z2, ZT"),
    "ring that is no text": (changed(ring=["Z"]), "unknown ring"),
    "no ring": (TEXT.replace('"ring"', '"rang"', 1), "'ring' is missing"),
    "wrong shape": (changed(shape=[2, 2, 3]), r"v\[0\] has 4 entries, shape 2,2,3 asks for 6"),
    "shape of two": (changed(shape=[2, 2]), "three integers"),
    "shape of zero": (changed(shape=[0, 2, 2]), "1..64"),
    "rank": (changed(rank=6), "u has 7 rows, rank says 6"),
    "rank as text": (changed(rank="7"), "rank is '7'"),
    "row length": (TEXT.replace("[1,0,0,1]", "[1,0,0]", 1), r"u\[0\] has 3 entries"),
    "zero denominator": (changed("Q").replace('"1/3"', '"1/0"', 1), "zero denominator"),
    "text": (TEXT.replace("[1,0,0,1]", '[1,0,"one",1]', 1), r"u\[0\]\[2\]: 'one' is not"),
    "true": (TEXT.replace("[1,0,0,1]", "[true,0,0,1]", 1), r"u\[0\]\[0\]: True is not"),
    "pair over R": (changed("R", u=[[[1, 2], 0]] * 3), r"u\[0\]\[0\]"),
    "null": (TEXT.replace("[1,0,0,1]", "[null,0,0,1]", 1), r"u\[0\]\[0\]"),
    "id that is no text": (changed(id=7), "id is 7"),
    "certificate of text": (changed(certificate="exact"), "certificate is 'exact'"),
    "certificate of another kind": (changed(certificate={"kind": "sure"}), "certificate.kind is 'sure'"),
    "certificate over nothing": (changed(certificate={"rings": ["X"]}), "unknown ring 'X'; known"),
    "certificate.rings": (changed(certificate={"rings": "Z"}), "must be a list"),
    "E_exact": (changed(certificate={"E_exact": 0.5}), "certificate.E_exact is 0.5"),
    "E_exact by zero": (changed(certificate={"E_exact": "1/0"}), "certificate.E_exact has a zero denominator"),
    "figures": (changed(figures=[1]), r"figures is \[1\]"),
    "E as text": (changed(figures={"E": "0"}), "figures.E is '0'"),
    "huge kappa": (changed(figures={"kappa": 10**400}), "figures.kappa is beyond"),
    "error": (changed(figures={"error": 1}), "figures.error is 1"),
    "bytes": (changed(figures={"bytes": {"A": "9"}}), "figures.bytes.A is '9', must be a number"),
    "unknown matrix": (changed(figures={"bytes": {"D": 9}}), "unknown matrix 'D'; known: A, B, C"),
    "unknown dtype": (changed(figures={"error": {"fp7": 1}}), "unknown dtype 'fp7'; known: fp8_e4m3"),
    "provenance": (changed(provenance="me"), "provenance is 'me'"),
    "too large a proof": (bare([64, 64, 64], "Z", []), "a proof of <64,64,64> needs"),
    "too large a rank": (bare([1, 1, 1], "R", [[0]] * 9999), "rank 9999 over R"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_scheme_file_gives_2_and_one_line(name: str, tmp_path: Path) -> None:
    content, complaint = MALFORMED[name]
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    checked = check_file(path)
    assert (checked.ok, checked.code, checked.E) == (False, 2, None)
    assert checked.reason is not None
    assert checked.reason.isprintable()
    assert len(checked.reason) < 200
    with pytest.raises(StlError, match=complaint) as caught:
        read_record(path)
    assert caught.value.exit_code == 2
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(checked.reason)


def test_absent_special_and_oversized_files_give_2(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(records.MAX_BYTES + 1)
    for name, complaint in {
        "absent": "cannot be read: No such file",
        ".": "cannot be read: Is a directory",
        "pipe": "not a regular file",
        "large": "larger than 16 MiB",
    }.items():
        checked = check_file(tmp_path / name)
        assert checked.code == 2
        assert complaint in (checked.reason or "")


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "padded.json"
    path.write_bytes(TEXT.encode().ljust(records.MAX_BYTES))
    assert check_file(path).ok


def test_the_place_of_a_refused_token_is_not_inside_a_string(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": "NaN, \\" NaN",\n "b": [1, NaN]}')
    with pytest.raises(FormatError, match="line 2, column 11"):
        read_file(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_never_raises_and_never_passes_as_something_else(data: st.DataObject) -> None:
    raw = bytearray(changed(data.draw(st.sampled_from(["strassen", "R", "Q", "modulo 2"]))).encode())
    head = data.draw(st.integers(0, len(raw) - 1), label="from")
    tail = data.draw(st.integers(head, min(len(raw), head + 4)), label="to")
    raw[head:tail] = data.draw(st.binary(max_size=4) | st.sampled_from([b"0", b"1", b"-", b"]", b"[", b'"', b"e9"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.json"
        path.write_bytes(raw)
        checked = check_file(path)
        assert checked.code in (0, 1, 2)
        assert checked.ok == (checked.code == 0) == (checked.reason is None)
        if checked.ok:  # the damage hit white space, a claim's last digits or the provenance
            assert Record.prove(read_record(path).scheme, {})


# -- smallest ring, fewest digits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "ring"),
    [
        (STRASSEN, "ZT"),
        (Scheme((2, 2, 2), "Q", *STRASSEN.factors), "ZT"),
        (transform.to_ring(CASES["Q"], "R"), "R"),  # thirds have no exact double
        (Scheme((2, 2, 2), "R", STRASSEN.u * 0.5, STRASSEN.v * 4.0, STRASSEN.w * 0.5), "Q"),
        (Scheme((2, 2, 2), "R", STRASSEN.u * 1.0, STRASSEN.v, STRASSEN.w), "ZT"),
        (Scheme((2, 2, 2), "C", *STRASSEN.factors), "ZT"),
        (COMPLEX_EXACT, "C"),
        (MODULO_2, "Z2"),
        (Scheme((2, 3, 4), "Z2", *transform.classical((2, 3, 4)).factors), "ZT"),
        (CASES["R"], "R"),
        (CASES["C"], "C"),
    ],
)
def test_retag_finds_the_smallest_ring_and_keeps_the_numbers(scheme: Scheme, ring: str) -> None:
    tagged = retag(scheme)
    assert tagged.ring.name == ring
    for old, new in zip(scheme.factors, tagged.factors, strict=True):
        assert (old == new).all()


def errors(scheme: Scheme) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([score.error(scheme, dtype) for dtype in score.DTYPES])


def digits(scheme: Scheme) -> int:
    """The most significant decimal digits among the coefficients (of their parts over C)."""
    parts = np.concatenate([f.ravel().view(np.float64) for f in scheme.factors])
    return max(next(d for d in range(1, 18) if float(f"{x:.{d - 1}e}") == x) for x in parts.tolist())


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 3)] * 3),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from(["R", "C"]),
    st.sampled_from([None, 1e-2, 1e-6, 1e-12]),
)
def test_shorten_keeps_every_error_with_the_fewest_digits(
    shape: tuple[int, int, int], rank: int, seed: int, ring: str, spread: float | None
) -> None:
    scheme = near(STRASSEN, spread, seed % 100) if spread else random_scheme(shape, rank, seed, ring)
    even = score.balanced(scheme)
    short = shorten(scheme)
    np.testing.assert_allclose(errors(short), errors(even), rtol=1e-6)
    norms = np.array([np.sqrt((np.abs(f) ** 2).sum(axis=(1, 2))) for f in short.factors])
    count = digits(short)
    moved = 5 * 10.0**-count + 1e-15  # rounding to d digits moves an entry by at most 5 * 10^-d of itself
    assert (norms.max(axis=0) * (1 - moved) <= norms.min(axis=0) * (1 + moved)).all()
    assert count <= 17
    if count > 1:  # one digit fewer, on the very same balanced terms, changes some error
        fewer = [
            np.array([float(f"{x:.{count - 2}e}") for x in f.ravel().view(np.float64).tolist()])
            .view(f.dtype)
            .reshape(f.shape)
            for f in even.factors
        ]
        gap = np.abs(errors(Scheme(scheme.shape, scheme.ring, *fewer)) - errors(even))
        assert (gap > 1e-6 * errors(even)).any()


def test_shorten_goes_down_to_one_digit() -> None:
    tiny = Scheme((1, 1, 2), "R", [[0.5]], [[0.5, 1.23456789e-9]], [[0.5, 9.87654321e-10]])
    assert shorten(tiny) == Scheme((1, 1, 2), "R", [[0.5]], [[0.5, 1e-9]], [[0.5, 1e-9]])


def test_shorten_leaves_exact_schemes_alone_whatever_their_ring() -> None:
    for name in ("strassen", "Q", "modulo 2", "R exact", "C exact"):
        assert shorten(CASES[name]) is CASES[name]


# -- compositions ------------------------------------------------------------------------------------------------------


PARTS = {s.id: s for s in (STRASSEN, CASES["2x3x4"], CASES["R"], MODULO_2, transform.classical((2, 2, 1)))}


def find(wanted: str) -> Scheme:
    if wanted not in PARTS:
        raise CatalogError(f"part {wanted} is not there")
    return PARTS[wanted]


def composition(op: str, *parts: Scheme, shape: Any, rank: Any, **more: Any) -> dict[str, Any]:
    ids = [p.id for p in parts]
    return {"format": "stl-composition/1", "shape": shape, "rank": rank, "op": op, "parts": ids, **more}


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (
            composition("kron", STRASSEN, CASES["2x3x4"], shape=[4, 6, 8], rank=168),
            transform.kron(STRASSEN, CASES["2x3x4"]),
        ),
        (
            composition("sum_m", CASES["2x3x4"], CASES["2x3x4"], CASES["2x3x4"], shape=[6, 3, 4], rank=72),
            transform.sum_m(transform.sum_m(CASES["2x3x4"], CASES["2x3x4"]), CASES["2x3x4"]),
        ),
        (composition("sum_k", STRASSEN, STRASSEN, shape=[2, 4, 2], rank=14), transform.sum_k(STRASSEN, STRASSEN)),
        (
            composition("sum_n", STRASSEN, transform.classical((2, 2, 1)), shape=[2, 2, 3], rank=11, ring="ZT"),
            transform.sum_n(STRASSEN, transform.classical((2, 2, 1))),
        ),
        (
            composition("project", CASES["2x3x4"], shape=[1, 3, 2], rank=6),
            transform.project(CASES["2x3x4"], rows=[0], cols=[0, 1]),
        ),
        (
            composition("project", CASES["2x3x4"], shape=[2, 1, 4], rank=8, inner=[2]),
            transform.project(CASES["2x3x4"], inner=[2]),
        ),
    ],
)
def test_a_composition_is_what_its_parts_give(obj: dict[str, Any], expected: Scheme, tmp_path: Path) -> None:
    assert compose(obj, find) == expected
    record = read_record(write(tmp_path, obj), find)
    assert record.figures == Record.prove(expected, {}).figures
    assert check_file(tmp_path / "scheme.json", find).code == 0
    assert check_file(write(tmp_path, obj | {"id": "0" * 64}), find).code == 1
    assert check_file(write(tmp_path, obj | {"figures": {"kappa": 0.25}}), find).code == 1


@pytest.mark.parametrize(
    ("obj", "code", "complaint"),
    [
        (composition("sum", STRASSEN, STRASSEN, shape=[2, 4, 2], rank=14), 2, "unknown op 'sum'; known: kron, sum_m"),
        (composition([], STRASSEN, shape=[2, 4, 2], rank=14), 2, "unknown op"),
        (composition("kron", STRASSEN, shape=[2, 2, 2], rank=7), 2, "two parts or more"),
        (composition("project", STRASSEN, STRASSEN, shape=[1, 2, 2], rank=7), 2, "one part"),
        (composition("project", STRASSEN, shape=[1, 2, 2], rank=7, rows=0), 2, "rows is 0"),
        (composition("project", STRASSEN, shape=[1, 2, 2], rank=7, rows=[5]), 1, "project: "),
        (composition("kron", STRASSEN, STRASSEN, shape=[4, 4], rank=49), 2, "three integers"),
        (composition("kron", STRASSEN, STRASSEN, shape=[4, 4, 8], rank=49), 1, "the parts give .4, 4, 4."),
        (composition("kron", STRASSEN, STRASSEN, shape=[4, 4, 4], rank=48), 1, "rank is 48, the parts give 49"),
        (composition("kron", STRASSEN, STRASSEN, shape=[4, 4, 4], rank=True), 2, "rank is True"),
        (composition("kron", STRASSEN, STRASSEN, shape=[4, 4, 4], rank=49, ring="Z"), 1, "the parts give ZT"),
        (composition("kron", STRASSEN, STRASSEN, shape=[4, 4, 4], rank=49, ring="Y"), 2, "unknown ring 'Y'"),
        (composition("sum_m", STRASSEN, CASES["2x3x4"], shape=[4, 2, 2], rank=31), 1, "sum_m: "),
        (composition("kron", STRASSEN, CASES["Z"], shape=[4, 4, 4], rank=49), 2, "is not there"),
        (composition("kron", shape=[4, 4, 4], rank=49), 2, "two parts"),
        (composition("kron", *[STRASSEN] * 65, shape=[4, 4, 4], rank=49), 2, "65 parts"),
        (composition("kron", STRASSEN, shape=[64, 64, 64], rank=49), 2, "a proof of <64,64,64>"),
        ({"format": "stl-composition/1", "shape": [2, 2, 2], "rank": 7, "op": "kron"}, 2, "'parts' is missing"),
        (composition("kron", STRASSEN, shape=[4, 4, 4], rank=49) | {"parts": ["12ab"]}, 2, "64 hexadecimal digits"),
    ],
)
def test_a_composition_that_is_not_what_it_says(obj: dict[str, Any], code: int, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path, obj)
    assert check_file(path, find).code == code
    with pytest.raises(StlError, match=complaint):
        read_record(path, find)


FIRST = {"op": "classical", "shape": [2, 1, 4], "rank": 5}


def test_parts_may_be_compositions_and_first_products_of_the_classical_algorithm(tmp_path: Path) -> None:
    whole = transform.classical((2, 1, 4))
    first = Scheme((2, 1, 4), "R", *(f[:5] for f in whole.factors))
    inner = {"op": "sum_n", "parts": [CASES["R"].id, FIRST]}
    rest = {"op": "classical", "shape": [7, 2, 2], "rank": 28}
    obj = composition("sum_k", shape=[2, 3, 7], rank=36, shapes=[[2, 1, 7], [2, 2, 7]]) | {"parts": [inner, rest]}
    last = transform.permute_to(transform.classical((7, 2, 2)), (2, 2, 7))
    expected = transform.sum_k(transform.sum_n(CASES["R"], first), last)
    assert compose(obj, find) == expected
    path = write(tmp_path, obj | {"id": expected.id})
    assert check_file(path, find).ok
    for wrong, code, complaint in (
        ({"parts": [inner, rest | {"rank": 29}]}, 2, "rank of a classical part is 29"),
        ({"parts": [inner, rest | {"shape": [7, 2]}]}, 2, "three integers"),
        ({"parts": [inner | {"op": "add"}, rest]}, 2, "unknown op 'add'"),
        ({"parts": [inner | {"parts": [7]}, rest]}, 2, "ids of 64 hexadecimal digits or of compositions"),
        ({"parts": [inner | {"shapes": [[1, 2, 3]]}, rest]}, 2, "one shape for each part"),
        ({"parts": [inner | {"parts": [CASES["R"].id, *[FIRST] * 63]}, rest]}, 2, "65 parts"),
        ({"parts": [inner | {"parts": [CASES["R"].id, STRASSEN.id]}, rest]}, 1, "sum_n: "),
        ({"parts": [inner | {"parts": ["ab" * 32, FIRST]}, rest]}, 2, "is not there"),
    ):
        checked = check_file(write(tmp_path, obj | wrong), find)
        assert checked.code == code
        assert complaint in str(checked.reason)


def test_an_exact_scheme_beside_some_products_of_the_classical_algorithm_is_an_approximation(tmp_path: Path) -> None:
    """Seven products of Strassen's and 3 of the 4 that the last column needs: over R, error 1/12."""
    some = {"op": "classical", "shape": [2, 2, 1], "rank": 3}
    obj = composition("sum_n", shape=[2, 2, 3], rank=10) | {"parts": [STRASSEN.id, some]}
    found = compose(obj, find)
    assert found.ring.name == "R"
    assert residual(found) == Fraction(1, 12)
    assert check_file(write(tmp_path, obj | {"ring": "R"}), find).ok
    assert compose(obj | {"rank": 11, "parts": [STRASSEN.id, some | {"rank": 4}]}, find).ring.name == "ZT"


def test_a_composition_needs_a_catalog() -> None:
    with pytest.raises(CatalogError, match="together with a catalog"):
        compose(composition("kron", STRASSEN, STRASSEN, shape=[4, 4, 4], rank=49), None)
    with pytest.raises(UsageError, match="unknown op"):
        records.combine("add", [STRASSEN])


def test_sizes_beyond_a_proof_are_refused() -> None:
    records.check_size((16, 16, 16), 2401, "ZT")
    records.check_size((4, 4, 4), 2048, "R")
    for shape, rank, ring in (((20, 20, 20), 1, "Q"), ((1, 1, 1), 2049, "R"), ((1, 1, 1), 2049, "C")):
        with pytest.raises(BudgetError, match="limit"):
            records.check_size(shape, rank, ring)
