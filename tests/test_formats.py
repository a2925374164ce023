"""Foreign scheme files: written here by hand or by a small writer for each format, read, proved and written back.

Nothing here uses the package's writers to test its readers: conventions are spelled out anew, on rectangular shapes,
where a wrong one shows.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stl_search import formats, score
from stl_search.errors import (
    BudgetError,
    FormatError,
    SchemeError,
    StlError,
    UsageError,
    VerificationError,
)
from stl_search.formats import FORMATS, LaurentScheme, load, read, write
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN
from stl_search.verify import first_failure, residual

# ---------------------------------------------------------------------------------------------------------------------
# Schemes
# ---------------------------------------------------------------------------------------------------------------------


def classical(m: int, k: int, n: int) -> Scheme:
    """<m,k,n> of rank mkn, product by product."""
    u, v, w = (np.zeros((m * k * n, *sides), dtype=int) for sides in ((m, k), (k, n), (m, n)))
    for q, (a, b, c) in enumerate(np.ndindex(m, k, n)):
        u[q, a, b] = v[q, b, c] = w[q, a, c] = 1
    return Scheme((m, k, n), "ZT", u, v, w)


def strassen_and_a_column() -> Scheme:
    """<2,2,3> of rank 11: Strassen on the first two columns of B, the classical way on the third."""
    u, v, w = (np.zeros((11, *sides), dtype=int) for sides in ((2, 2), (2, 3), (2, 3)))
    u[:7], v[:7, :, :2], w[:7, :, :2] = STRASSEN.factors
    for q, (a, b) in enumerate(np.ndindex(2, 2), 7):
        u[q, a, b] = v[q, b, 2] = w[q, a, 2] = 1
    return Scheme((2, 2, 3), "ZT", u, v, w)


def shear(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A random integer matrix of determinant 1 and its inverse."""
    p, p_inverse = np.eye(size, dtype=int), np.eye(size, dtype=int)
    for _ in range(2 * size):
        i, j = rng.choice(size, 2, replace=False)
        step = np.eye(size, dtype=int)
        step[i, j] = rng.choice([-1, 1])
        p, p_inverse = p @ step, p_inverse_step(step, i, j) @ p_inverse
    return p, p_inverse


def p_inverse_step(step: np.ndarray, i: int, j: int) -> np.ndarray:
    back = step.copy()
    back[i, j] = -step[i, j]
    return back


def changed_basis(scheme: Scheme, seed: int) -> Scheme:
    """The scheme for A' = P A Q^-1, B' = Q B R^-1, C' = P C R^-1: dense, integer, and for the same shape."""
    rng = np.random.default_rng(seed)
    (p, pi), (q, qi), (r, ri) = (shear(rng, side) for side in scheme.shape)
    u = np.array([pi.T @ x @ q.T for x in scheme.u])
    v = np.array([qi.T @ x @ r.T for x in scheme.v])
    w = np.array([p @ x @ ri for x in scheme.w])
    return Scheme(scheme.shape, "Z", u, v, w)


def scaled(scheme: Scheme) -> Scheme:
    """The same over Q: u by 2/3, v by 3/200, w by 100."""
    u, v, w = scheme.factors
    scale = [np.array(x, dtype=object) for x in (Fraction(2, 3), Fraction(3, 200), 100)]
    return Scheme(scheme.shape, "Q", *(f.astype(object) * s for f, s in zip((u, v, w), scale, strict=True)))


def parity(scheme: Scheme) -> Scheme:
    """The scheme modulo 2."""
    return Scheme(scheme.shape, "Z2", *(f % 2 for f in scheme.factors))


SCHEMES = {
    "classical 234": classical(2, 3, 4),
    "dense 234": changed_basis(classical(2, 3, 4), 1),
    "strassen 223": strassen_and_a_column(),
    "dense 223": changed_basis(strassen_and_a_column(), 2),
    "rational 223": scaled(strassen_and_a_column()),
    "modulo two 223": parity(strassen_and_a_column()),
    "strassen 222": STRASSEN,
    "column 411": classical(4, 1, 1),
    "row 115": classical(1, 1, 5),
    "inner 131": classical(1, 3, 1),
}
RECTANGULAR = ["dense 234", "strassen 223", "dense 223", "rational 223", "modulo two 223"]


def test_the_schemes_of_these_tests_are_what_they_are_said_to_be() -> None:
    for scheme in SCHEMES.values():
        assert first_failure(scheme) is None
    unsigned = strassen_and_a_column()
    assert first_failure(Scheme(unsigned.shape, "Z", *(np.abs(f) for f in unsigned.factors))), "must hold modulo 2 only"
    assert max(abs(x) for x in SCHEMES["dense 234"].coefficients()) > 1


# ---------------------------------------------------------------------------------------------------------------------
# One small writer a format, independent of the package; ``turn`` = whether C is written transposed
# ---------------------------------------------------------------------------------------------------------------------

Files = dict[str, bytes]


def c_entries(w: np.ndarray, turn: bool) -> np.ndarray:
    """(m, n) as it is written: its transpose in the formats that have C transposed."""
    return w.T if turn else w


def by_hand_perminov(s: Scheme, turn: bool) -> Files:
    def flat(matrix: np.ndarray) -> list[Any]:
        return [str(x) if isinstance(x, Fraction) else int(x) for row in matrix.tolist() for x in row]

    obj = {
        "n": list(s.shape),
        "m": s.rank,
        "z2": s.ring.name == "Z2",
        "multiplications": ["m1 = (a11) * (b11)"],
        "u": [flat(x) for x in s.u],
        "v": [flat(x) for x in s.v],
        "w": [flat(c_entries(x, turn)) for x in s.w],
    }
    return {"": json.dumps(obj, indent=2).encode()}


def nested(matrix: np.ndarray, opening: str, closing: str, comma: str) -> str:
    rows = [opening + comma.join(str(x) for x in row) + closing for row in matrix.tolist()]
    return opening + comma.join(rows) + closing


def by_hand_mathematica(s: Scheme, turn: bool) -> Files:
    terms = []
    for u, v, w in s.terms():
        terms.append("{" + ", \n".join(nested(x, "{", "}", ", ") for x in (u, v, c_entries(w, turn))) + "}")
    return {"": ("{" + ", \n ".join(terms) + "}\n").encode()}


def by_hand_maple(s: Scheme, turn: bool) -> Files:
    triads = []
    for u, v, w in s.terms():
        parts = [
            f"Matrix({len(x)}, {len(x[0])}, {nested(x, '[', ']', ',')})" for x in (u, v, np.array(c_entries(w, turn)))
        ]
        triads.append(f"Triad([{', '.join(parts)}])")
    return {"": f"A:=Matrix(1, 1, [[A_1_1]]):\nTensor:=TriadSet([{', '.join(triads)}]):\nmap(expand, A);\n".encode()}


def by_hand_products(s: Scheme, turn: bool) -> Files:
    lines = []
    for u, v, w in s.terms():
        factors = []
        for letter, x in (("a", u), ("b", v), ("c", c_entries(w, turn))):
            terms = [f"{x[i, j]}*{letter}{i + 1}{j + 1}" for i, j in np.ndindex(*x.shape) if x[i, j] != 0]
            factors.append("(" + " + ".join(terms).replace("+ -", "- ") + ")")
        lines.append("*".join(factors))
    return {"": ("\n".join(lines) + "\n").encode()}


def by_hand_arbenson(s: Scheme, turn: bool) -> Files:
    out = "# by hand\n"
    for block, f in enumerate((s.u, s.v, s.w)):
        if block == 2 and turn:
            f = f.swapaxes(1, 2)
        out += "#\n" if block else ""
        for i, j in np.ndindex(*f.shape[1:]):
            out += " ".join(str(f[q, i, j]) for q in range(s.rank)) + "\n"
    return {"": out.encode()}


def sparse(rows: list[list[Any]]) -> bytes:
    out = f"# sparse\n{len(rows)} {len(rows[0])} R\n"
    for i, row in enumerate(rows):
        for j in reversed(range(len(row))):
            out += f"{i + 1} {j + 1} {row[j]}\n" if row[j] != 0 else ""
    return (out + "0 0 0\n\n").encode()


def by_hand_plinopt(s: Scheme, turn: bool) -> Files:
    left, right = ([x.ravel().tolist() for x in f] for f in (s.u, s.v))
    outputs = [c_entries(x, turn).ravel().tolist() for x in s.w]
    return {
        "_L.sms": sparse(left),
        "_R.sms": sparse(right),
        "_P.sms": sparse([list(x) for x in zip(*outputs, strict=True)]),
    }


def npy_header(descr: str, shape: str) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def by_hand_khoruzhii(s: Scheme, turn: bool) -> Files:
    numbers: list[int] = []
    for block, f in enumerate((s.u, s.v, s.w)):
        for x in f:
            for entry in (c_entries(x, turn) if block == 2 else x).ravel().tolist():
                numbers += [Fraction(entry).numerator, Fraction(entry).denominator]
    return {"": npy_header("<i8", f"(1, {len(numbers)})") + struct.pack(f"<{len(numbers)}q", *numbers)}


def columns(s: Scheme, turn: bool) -> list[np.ndarray]:
    """U (mk, r), V (kn, r), W (mn, r): entries x products; floats where there are fractions."""
    out = []
    for block, f in enumerate((s.u, s.v, s.w)):
        table = [(c_entries(x, turn) if block == 2 else x).ravel().tolist() for x in f]
        out.append(np.array(table, dtype=float if s.ring.name == "Q" else np.int64).T)
    return out


def by_hand_npz(s: Scheme, turn: bool) -> Files:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, x in zip("UVW", columns(s, turn), strict=True):
            shape = f"({x.shape[0]}, {x.shape[1]})"
            archive.writestr(f"{name}.npy", npy_header(x.dtype.str, shape) + np.ascontiguousarray(x).tobytes())
    return {"": out.getvalue()}


def by_hand_alphatensor(s: Scheme, turn: bool, protocol: int = 3) -> Files:
    objects = np.empty(3, dtype=object)
    objects[:] = columns(s, turn)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        key = ",".join(map(str, s.shape))
        archive.writestr(f"{key}.npy", npy_header("|O", "(3,)") + pickle.dumps(objects, protocol=protocol))
    return {"": out.getvalue()}


# format: (writer, whether C is transposed in it, schemes that it cannot hold)
BY_HAND: dict[str, tuple[Callable[[Scheme, bool], Files], bool, set[str]]] = {
    "perminov": (by_hand_perminov, True, set()),
    "mathematica": (by_hand_mathematica, True, set()),
    "maple": (by_hand_maple, True, set()),
    "products": (by_hand_products, True, set()),
    "arbenson": (by_hand_arbenson, False, set()),
    "plinopt": (by_hand_plinopt, False, set()),
    "khoruzhii": (by_hand_khoruzhii, False, set()),
    "npz": (by_hand_npz, False, {"rational 223"}),  # thirds are no doubles
    "alphatensor": (by_hand_alphatensor, True, {"rational 223"}),
}


def put(folder: Path, files: Files, name: str = "scheme") -> Path:
    """Writes the files; returns the first one's path. The default name says nothing of what is inside."""
    for ending, data in files.items():
        (folder / (name + ending)).write_bytes(data)
    return folder / (name + next(iter(files)))


def held(cases: Iterable[str]) -> list[tuple[str, str]]:
    """(format, case) of every scheme that the format can hold."""
    return [(format, case) for format, (_, _, never) in BY_HAND.items() for case in cases if case not in never]


@pytest.mark.parametrize(("format", "case"), held(SCHEMES))
def test_a_file_written_by_hand_is_read_and_recognised_by_its_content(format: str, case: str, tmp_path: Path) -> None:
    writer, turn, _ = BY_HAND[format]
    scheme = SCHEMES[case]
    path = put(tmp_path, writer(scheme, turn))
    assert formats.detect(formats.Source.open(path)).name == format
    found = load(path)
    assert isinstance(found, Scheme)
    assert found.id == scheme.id  # shape, ring, every coefficient
    assert found.rank == scheme.rank
    assert load(path, format, scheme.shape).id == scheme.id


@pytest.mark.parametrize(("format", "case"), held([*RECTANGULAR, "strassen 222"]))
def test_c_transposed_the_wrong_way_is_refused(format: str, case: str, tmp_path: Path) -> None:
    writer, turn, _ = BY_HAND[format]
    path = put(tmp_path, writer(SCHEMES[case], not turn))
    with pytest.raises((VerificationError, FormatError)) as caught:
        load(path)
    shows_sizes = format in ("mathematica", "maple") and SCHEMES[case].shape[0] != SCHEMES[case].shape[2]
    assert caught.type is (FormatError if shows_sizes else VerificationError)
    assert "\n" not in str(caught.value)
    if shows_sizes:
        assert "C of product 1 is 2 x" in str(caught.value)
    else:
        assert re.search(r"coefficient of A\[\d,\d\] B\[\d,\d\] in C\[\d,\d\] is ", str(caught.value))
    if not shows_sizes and format not in ("products", "khoruzhii"):
        assert "it is one with C in the other convention" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Literal files: <2,1,3>, A = (a, b)^T, B = (c, d, e), the six products ac, ad, ae, bc, bd, be
# ---------------------------------------------------------------------------------------------------------------------

LITERAL: dict[str, Files] = {
    "perminov": {
        "": b"""{"n": [2, 1, 3], "m": 6, "z2": false,
            "u": [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]],
            "v": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
            "w": [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0],
                  [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]}"""
    },
    "mathematica": {
        "": b"""{{{{1}, {0}}, {{1, 0, 0}}, {{1, 0}, {0, 0}, {0, 0}}},
                 {{{1}, {0}}, {{0, 1, 0}}, {{0, 0}, {1, 0}, {0, 0}}},
                 {{{1}, {0}}, {{0, 0, 1}}, {{0, 0}, {0, 0}, {1, 0}}},
                 {{{0}, {-1}}, {{-1, 0, 0}}, {{0, 1}, {0, 0}, {0, 0}}},
                 {{{0}, {1/2}}, {{0, 1, 0}}, {{0, 0}, {0, 2}, {0, 0}}},
                 {{{0}, {1}}, {{0, 0, 1}}, {{0, 0}, {0, 0}, {0, 1}}}};"""
    },
    "maple": {
        "": b"""Tensor := TriadSet([
            Triad([Matrix(2, 1, [[1],[0]]), Matrix(1, 3, [[1,0,0]]), Matrix(3, 2, [[1,0],[0,0],[0,0]])]),
            Triad([Matrix(2, 1, [[1],[0]]), Matrix(1, 3, [[0,1,0]]), Matrix(3, 2, [[0,0],[1,0],[0,0]])]),
            Triad([Matrix(2, 1, [[1],[0]]), Matrix(1, 3, [[0,0,1]]), Matrix(3, 2, [[0,0],[0,0],[1,0]])]),
            Triad([Matrix(2, 1, [[0],[1]]), Matrix(1, 3, [[1,0,0]]), Matrix(3, 2, [[0,1],[0,0],[0,0]])]),
            Triad([Matrix(2, 1, [[0],[1]]), Matrix(1, 3, [[0,1,0]]), Matrix(3, 2, [[0,0],[0,1],[0,0]])]),
            Triad([Matrix(2, 1, [[0],[1]]), Matrix(1, 3, [[0,0,1]]), Matrix(3, 2, [[0,0],[0,0],[0,1]])])]):"""
    },
    "products": {
        "": b"""(a11)*(b11)*(c11)
            a11*b12*c21   # no parentheses
            -(a11)*(-b13)*(c31)
            2*(a21) * (b11) * (1/2*c12)

            (-3a21 + 4*a21) (b12) (c22)
            c32*(b_1_3)*(a[2,1])"""
    },
    "arbenson": {
        "": b"""# six products
1 1 1 0 0 0
0 0 0 1 1 -1
# V
1 0 0 1 0 0
0 1 0 0 .5 0
0 0 1 0 0 1
#
1 0 0 0 0 0
0 1 0 0 0 0
0 0 1 0 0 0
0 0 0 1 0 0
0 0 0 0 2. 0
0 0 0 0 0 -1
"""
    },
    "plinopt": {
        "_L.sms": b"6 2 R\n1 1 1\n2 1 1\n3 1 1\n4 2 1\n5 2 2/3\n6 2 1\n0 0 0\n",
        "_R.sms": b"# B\n6 3 M\n1 1 1\n4 1 1\n2 2 1\n5 2 3/2\n3 3 1\n6 3 1\n0 0 0\n",
        "_P.sms": b"6 6 R\n1 1 1\n2 2 1\n3 3 1\n4 4 1\n5 5 1\n6 6 1\n0 0 0\n",
    },
}


@pytest.mark.parametrize("format", LITERAL)
def test_a_literal_file_computes_the_six_products(format: str, tmp_path: Path) -> None:
    found = load(put(tmp_path, LITERAL[format]))
    assert isinstance(found, Scheme)
    assert (found.shape, found.rank) == ((2, 1, 3), 6)
    assert found.ring.name == ("Q" if format in ("mathematica", "arbenson", "plinopt") else "ZT")
    # evaluated on numbers, without any of the package's algebra
    a, b = np.array([[2], [3]]), np.array([[5, 7, 11]])
    c = sum((u * a).sum() * (v * b).sum() * w for u, v, w in found.terms())
    assert c.tolist() == [[10, 14, 22], [15, 21, 33]]


def test_the_text_writers_write_what_the_formats_say(tmp_path: Path) -> None:
    scheme = Scheme(  # <2,1,2> with a combination, a sign and a fraction; C = A B has rank 4
        (2, 1, 2),
        "Q",
        [[1, 1], [1, 0], [0, 1], [0, Fraction(1, 2)]],
        [[1, 0], [0, 1], [-1, 0], [0, 2]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, -1, 0], [0, 0, 0, 1]],
    )
    assert formats.dumps(scheme, "products").decode().splitlines() == [
        "(a11+a21)*(b11)*(c11)",
        "(a11)*(b12)*(c21)",
        "(a21)*(-b11)*(c11-c12)",
        "(1/2*a21)*(2*b12)*(c22)",
    ]
    assert (
        formats.dumps(scheme, "mathematica").decode().splitlines()[3] == "  {{{0}, {1}}, {{-1, 0}}, {{1, -1}, {0, 0}}},"
    )
    assert formats.dumps(scheme, "arbenson").decode().splitlines()[1:] == [
        *("1 1 0 0", "1 0 1 0.5", "#", "1 0 -1 0", "0 1 0 2", "#"),
        *("1 0 1 0", "0 1 0 0", "0 0 -1 0", "0 0 0 1"),
    ]
    assert formats.encode(scheme, "plinopt")["_P.sms"] == b"4 4 R\n1 1 1\n1 3 1\n2 2 1\n3 3 -1\n4 4 1\n0 0 0\n"
    assert formats.encode(scheme, "plinopt")["_L.sms"].decode().splitlines()[-3:] == ["3 2 1", "4 2 1/2", "0 0 0"]
    written = json.loads(formats.dumps(scheme, "perminov"))
    assert (written["n"], written["m"], written["z2"]) == ([2, 1, 2], 4, False)
    assert (written["u"][3], written["w"][2]) == ([0, "1/2"], [1, -1, 0, 0])
    assert b"Triad([Matrix(2, 1, [[0],[1]]), Matrix(1, 2, [[-1,0]]), Matrix(2, 2, [[1,-1],[0,0]])])" in formats.dumps(
        scheme, "maple"
    )
    pairs = np.load(io.BytesIO(formats.dumps(scheme, "khoruzhii")), allow_pickle=False)
    assert (pairs.dtype, pairs.shape) == (np.int64, (1, 2 * 4 * 8))
    assert pairs[0, :16].tolist() == [1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 2]
    arrays = np.load(io.BytesIO(formats.dumps(scheme, "npz")), allow_pickle=False)
    assert {name: arrays[name].tolist() for name in "UW"} == {
        "U": [[1, 1, 0, 0], [1, 0, 1, 0.5]],
        "W": [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Round trips
# ---------------------------------------------------------------------------------------------------------------------

WRITTEN = [name for name, format in FORMATS.items() if format.writer]
LARGE = Scheme((1, 1, 1), "Z", [[10**30]], [[1]], [[1]])


@pytest.mark.parametrize("case", SCHEMES)
@pytest.mark.parametrize("format", WRITTEN)
def test_what_is_written_is_read_back(format: str, case: str, tmp_path: Path) -> None:
    scheme = SCHEMES[case]
    if format == "npz" and case == "rational 223":
        with pytest.raises(UsageError, match="npz files hold 64-bit numbers"):
            write(scheme, tmp_path / "x.npz")
        return
    paths = write(scheme, tmp_path / "out", format)
    assert len(paths) == (3 if format == "plinopt" else 1)
    assert sorted(tmp_path.iterdir()) == sorted(paths)  # no draft is left behind
    for path in paths:
        assert load(path).id == scheme.id
    assert formats.detect(formats.Source.open(paths[0])).name == format
    again = write(scheme, tmp_path / "out", format)
    assert [p.read_bytes() for p in again] == [
        formats.encode(scheme, format)[e] for e in formats.encode(scheme, format)
    ]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    seed=st.integers(0, 2**32 - 1),
    format=st.sampled_from(WRITTEN),
    rational=st.booleans(),
)
def test_any_shape_and_basis_survives_a_round_trip(
    shape: tuple[int, int, int], seed: int, format: str, rational: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scheme = classical(*shape)
    scheme = changed_basis(scheme, seed) if min(shape) > 1 else scheme
    if rational and format != "npz":
        scheme = scaled(scheme)
    path = write(scheme, tmp_path_factory.mktemp("round") / "s", format)[0]
    found = load(path)
    assert found.shape == shape
    assert {tuple(x.ravel()) for x in found.u} == {tuple(x.ravel()) for x in scheme.u}
    assert first_failure(found) is None


def test_sides_above_nine_are_written_with_separated_indices(tmp_path: Path) -> None:
    scheme = classical(1, 11, 2)
    (path,) = write(scheme, tmp_path / "wide.exp")
    assert "(a_1_11)*(b_11_2)*(c_2_1)" in path.read_text()
    assert load(path).id == scheme.id


def test_real_schemes_are_written_as_doubles_and_read_back_bit_by_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    u, v, w = (f + 1e-6 * rng.standard_normal(f.shape) for f in STRASSEN.as_float())
    scheme = Scheme((2, 2, 2), "R", u, v, w)
    for format in ("npz", "arbenson", "stl"):
        (path,) = write(scheme, tmp_path / f"real-{format}", format)
        assert read(path, noise=1e-3).id == scheme.id
    with pytest.raises(UsageError, match="perminov files hold no coefficients in R; use stl, npz, arbenson"):
        write(scheme, tmp_path / "x.json", "perminov")
    assert not (tmp_path / "x.json").exists()


def test_powers_of_ten_that_a_float_needs_are_read(tmp_path: Path) -> None:
    text = b"# tiny\n1e-05 1\n#\n1e+05 0\n#\n1 0.5\n"
    assert load(put(tmp_path, {"": text})).rank == 2


def test_writing_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    wrong = Scheme((1, 1, 1), "Z", [[1]], [[1]], [[2]])
    cases = [
        (
            lambda: write(wrong, tmp_path / "a.m"),
            VerificationError,
            r"coefficient of A\[0,0\] B\[0,0\] in C\[0,0\] is 2",
        ),
        (lambda: write(STRASSEN, tmp_path / "a.xyz"), UsageError, "name one of: stl, perminov"),
        (lambda: write(STRASSEN, tmp_path / "a", "latex"), UsageError, "unknown format 'latex'; known: stl"),
        (lambda: write(STRASSEN, tmp_path / "a.npz", "alphatensor"), UsageError, "only read; written are"),
        (lambda: write(STRASSEN, tmp_path / "no" / "a.m"), UsageError, "cannot be written"),
        (lambda: write(STRASSEN, tmp_path / "folder.m"), UsageError, "folder.m: cannot be written: Is a directory"),
        (lambda: formats.dumps(STRASSEN, "plinopt"), UsageError, "3 files"),
        (lambda: formats.dumps(inverse_pair(10**30), "khoruzhii"), UsageError, "64-bit"),
        (lambda: formats.dumps(inverse_pair(10**30), "npz"), UsageError, "64-bit"),
    ]
    (tmp_path / "folder.m").mkdir()
    for act, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.m"]  # and no draft
    assert load(put(tmp_path, {"": formats.dumps(inverse_pair(10**30), "products")})).id == inverse_pair(10**30).id


def inverse_pair(x: int) -> Scheme:
    """<1,1,1> by x * 1/x."""
    return Scheme((1, 1, 1), "Q", [[x]], [[Fraction(1, x)]], [[1]])


# ---------------------------------------------------------------------------------------------------------------------
# The ring is proved, the rank counted, the name not believed
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [f for f in BY_HAND if f not in ("npz", "alphatensor")])
def test_the_smallest_ring_is_recognised(format: str, tmp_path: Path) -> None:
    writer, turn, _ = BY_HAND[format]
    rings = {
        case: load(put(tmp_path, writer(s, turn), case.replace(" ", "-"))).ring.name for case, s in SCHEMES.items()
    }
    assert {case: rings[case] for case in ("strassen 223", "dense 223", "rational 223", "modulo two 223")} == {
        "strassen 223": "ZT",
        "dense 223": "Z",
        "rational 223": "Q",
        "modulo two 223": "Z2",
    }


def test_a_z2_mark_in_the_file_proves_nothing(tmp_path: Path) -> None:
    files = by_hand_perminov(strassen_and_a_column(), True)
    marked = {"": files[""].replace(b'"z2": false', b'"z2": true')}
    assert marked != files
    assert load(put(tmp_path, marked)).ring.name == "ZT"


def test_coefficients_that_hold_only_modulo_2_are_reduced(tmp_path: Path) -> None:
    strange = STRASSEN.u.astype(int) + 2 * np.arange(28).reshape(7, 2, 2)  # even changes
    odd = np.array([[[Fraction(int(x), 3) for x in row] for row in matrix] for matrix in strange], dtype=object)
    for case, u in enumerate((strange, odd)):
        scheme = Scheme((2, 2, 2), "Q", u, STRASSEN.v, STRASSEN.w)
        assert load(put(tmp_path, by_hand_mathematica(scheme, True), f"case{case}")).id == parity(STRASSEN).id
    even = Scheme((2, 2, 2), "Q", strange * np.array(Fraction(1, 2), dtype=object), STRASSEN.v, STRASSEN.w * 2)
    with pytest.raises(VerificationError, match=r"not a <2,2,2> scheme: coefficient of A\[0,0\]"):
        load(put(tmp_path, by_hand_mathematica(even, True)))


def test_a_rank_and_a_shape_in_the_name_are_not_looked_at(tmp_path: Path) -> None:
    for format, (writer, turn, _) in BY_HAND.items():
        path = put(tmp_path, writer(strassen_and_a_column(), turn), f"3x3x3_m23_Z2_{format}.json")
        found = load(path)
        assert (found.shape, found.rank, found.ring.name) == ((2, 2, 3), 11, "ZT"), format


@pytest.mark.parametrize("format", BY_HAND)
def test_a_wrong_coefficient_is_named(format: str, tmp_path: Path) -> None:
    writer, turn, _ = BY_HAND[format]
    w = strassen_and_a_column().w.astype(int)
    w[10, 1, 2] = 3  # the product a11 b12, in C[1,2] alone; odd, so that it still holds modulo 2 ...
    w[9, 1, 2] = 2  # ... and even, so that it does not
    path = put(tmp_path, writer(Scheme((2, 2, 3), "Z", *strassen_and_a_column().factors[:2], w), turn))
    with pytest.raises(VerificationError) as caught:
        load(path, shape=(2, 2, 3))
    assert (
        "coefficient of A[1,0] B[0,2] in C[1,2] is 2, must be 1 (2 coefficients are wrong), nor is it one modulo 2"
        in str(caught.value)
    )
    assert str(caught.value).startswith(str(path))


def test_the_shape_asked_for_must_be_the_one_in_the_file(tmp_path: Path) -> None:
    for format, (writer, turn, _) in BY_HAND.items():
        path = put(tmp_path, writer(strassen_and_a_column(), turn), format)
        with pytest.raises((FormatError, VerificationError)) as caught:
            load(path, shape=(3, 2, 2))
        assert caught.type is (VerificationError if format == "khoruzhii" else FormatError), format
    with pytest.raises(UsageError, match="a shape is three integers"):
        load(path, shape=(3, 2))


# ---------------------------------------------------------------------------------------------------------------------
# khoruzhii: a file of numbers that does not say its shape
# ---------------------------------------------------------------------------------------------------------------------


def npy_pairs(numbers: list[int], descr: str = "<i8") -> bytes:
    return npy_header(descr, f"(1, {len(numbers)})") + np.array(numbers, dtype=descr).tobytes()


def test_another_tensor_of_the_same_format_is_no_matrix_product(tmp_path: Path) -> None:
    # X X^T for X (2, 2), upper triangle: six products x_ij x_kj, factors of 4, 4 and 3 entries
    u, v, w = (np.zeros((6, size), dtype=int) for size in (4, 4, 3))
    for q, (i, k, j) in enumerate([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1)]):
        u[q, 2 * i + j] = v[q, 2 * k + j] = w[q, i + k] = 1
    numbers = [x for f in (u, v, w) for x in f.ravel().tolist()]
    path = put(tmp_path, {"": npy_pairs([y for x in numbers for y in (x, 1)])}, "gg-222-rank6.npy")
    with pytest.raises(FormatError, match="66 coefficients are no multiple of the 12 in a product of <2,2,2>"):
        load(path, shape=(2, 2, 2))
    with pytest.raises((FormatError, VerificationError)):
        load(path)
    # A B^T has factors of the right sizes
    turned = Scheme((2, 2, 2), "ZT", STRASSEN.u, STRASSEN.v.swapaxes(1, 2), STRASSEN.w)
    path = put(tmp_path, by_hand_khoruzhii(turned, False))
    for shape in (None, (2, 2, 2)):
        with pytest.raises(VerificationError, match=r"coefficient of A\[0,0\] B\[0,1\] in C\[0,1\] is 0, must be 1"):
            load(path, shape=shape)


def test_the_shape_is_found_among_all_that_fit(tmp_path: Path) -> None:
    for scheme in (classical(2, 3, 4), classical(4, 3, 2), classical(3, 4, 2), classical(6, 1, 1), parity(STRASSEN)):
        path = put(tmp_path, by_hand_khoruzhii(scheme, False))
        count = scheme.rank * sum(f[0].size for f in scheme.factors)
        assert len(formats._shapes(count, None)) > (0 if scheme.rank == 7 else 1)
        assert load(path).shape == scheme.shape


# ---------------------------------------------------------------------------------------------------------------------
# AlphaTensor's archives
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("fortran", [False, True])
def test_numpys_own_archives_of_objects_are_read(protocol: int, fortran: bool, tmp_path: Path) -> None:
    scheme = strassen_and_a_column()
    objects = np.empty(3, dtype=object)
    for i, x in enumerate(columns(scheme, True)):
        objects[i] = np.asarray(x.astype(np.int8 if i else ">i4"), order="F" if fortran else "C")
    payload = npy_header("|O", "(3,)") + pickle.dumps(objects, protocol=protocol)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("2,2,3.npy", payload)
    path = put(tmp_path, {"": out.getvalue()})
    if protocol in (3, 4):  # those that numpy.save has used
        assert load(path).id == scheme.id
    else:
        with pytest.raises(FormatError, match="only arrays of numbers are read"):
            load(path)


def test_one_shape_of_several_is_chosen(tmp_path: Path) -> None:
    contents: dict[str, Any] = {}
    for scheme in (strassen_and_a_column(), STRASSEN, classical(2, 3, 4)):
        contents[",".join(map(str, scheme.shape))] = objects = np.empty(3, dtype=object)
        objects[:] = columns(scheme, True)
    contents["2,2,2"] = np.array(columns(STRASSEN, True))  # all of one size: numpy makes a plain array of it
    np.savez(tmp_path / "all.npz", **contents)
    with pytest.raises(FormatError, match=r"schemes of several shapes, 2,2,3, 2,2,2, 2,3,4: give the shape"):
        load(tmp_path / "all.npz")
    for scheme in (strassen_and_a_column(), STRASSEN, classical(2, 3, 4)):
        assert load(tmp_path / "all.npz", shape=scheme.shape).id == scheme.id
    with pytest.raises(FormatError, match="no scheme for <3,2,2>; there are 2,2,3"):
        load(tmp_path / "all.npz", shape=(3, 2, 2))


def test_an_opcode_that_arrays_do_not_need_is_refused_even_where_it_changes_nothing(tmp_path: Path) -> None:
    objects = np.empty(3, dtype=object)
    objects[:] = columns(STRASSEN, True)
    good = pickle.dumps(objects, protocol=4)
    for tail, message in (
        (b".", None),
        (b"}0.", "a pickle that uses EMPTY_DICT"),
        (b"cos\nsystem\n0.", "names 'os system'"),
    ):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("2,2,2.npy", npy_header("|O", "(3,)") + good[:-1] + tail)
        path = put(tmp_path, {"": out.getvalue()})
        if message is None:
            assert load(path).id == STRASSEN.id
        else:
            with pytest.raises(FormatError, match=message):
                load(path)


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


def evil_payloads(target: Path) -> dict[str, bytes]:
    evil = Evil(target)
    inside = np.empty(3, dtype=object)
    inside[:] = [np.eye(2), evil, np.eye(2)]
    marker = b"\x80\x04"
    return {
        **{f"bare, protocol {p}": pickle.dumps(evil, protocol=p) for p in range(5)},
        "inside an array": pickle.dumps(inside, protocol=4),
        "numpy.load": marker + b"cnumpy\nload\n(X\x05\x00\x00\x00x.npytR.",
        "ndarray with a state": marker + b"cnumpy\nndarray\n}(X\x08\x00\x00\x00__init__K\x01ub.",
        "a memo index of 2^31": marker + b"Nr\xff\xff\xff\x7f.",
        "8 GiB announced": marker + b"\x8e" + struct.pack("<Q", 1 << 33) + b".",
        "cut short": pickle.dumps(inside, protocol=4)[:-40],
        "tuples of tuples": marker
        + b")\x94"
        + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(200))
        + b"h\xc8h\xc8\x93R.",
        "a call of a tuple": marker + b"))R.",
        "empty stack": marker + b"R.",
        "nothing": b"",
    }


def test_pickles_are_refused_and_run_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made"
    pickle.loads(evil_payloads(target)["bare, protocol 4"])  # noqa: S301 - it does work where pickles are trusted
    target.rmdir()
    for name, payload in evil_payloads(target).items():
        for member, header in (("2,2,2", "(3,)"), ("U", "(4, 7)")):
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as archive:
                for other in ("U", "V", "W") if member == "U" else (member,):
                    archive.writestr(f"{other}.npy", npy_header("|O", header) + payload)
            with pytest.raises(FormatError) as caught:
                load(put(tmp_path, {"": out.getvalue()}))
            assert "\n" not in str(caught.value)
            assert re.search("only arrays of numbers are read|nothing is unpickled", str(caught.value)), name
        with pytest.raises(FormatError, match="nothing is unpickled"):
            load(put(tmp_path, {"": npy_header("|O", "(1, 168)") + payload}))
        for format in FORMATS:
            with pytest.raises(StlError):
                load(put(tmp_path, {"": payload or b"N."}), format)
        assert not target.exists(), name


# ---------------------------------------------------------------------------------------------------------------------
# Malformed files
# ---------------------------------------------------------------------------------------------------------------------


def replaced(files: Files, old: bytes, new: bytes) -> Files:
    """The first file with one place changed."""
    ending = next(iter(files))
    assert old in files[ending], old
    return {**files, ending: files[ending].replace(old, new, 1)}


def malformed() -> list[tuple[str, Files, str]]:
    """(format, files, what the error must say)."""
    lit = LITERAL
    arrays: dict[str, Any] = dict(zip("UVW", columns(STRASSEN, False), strict=True))

    def npz(**changes: Any) -> Files:
        out = io.BytesIO()
        np.savez(out, **{k: x for k, x in {**arrays, **changes}.items() if x is not None})
        return {"": out.getvalue()}

    poisoned = arrays["V"].astype(float)
    poisoned[2, 3] = np.nan
    return [
        ("perminov", replaced(lit["perminov"], b"[0, 1]],", b"[0, 1],"), r"bad JSON: line \d+, column \d+"),
        (
            "perminov",
            replaced(lit["perminov"], b"[1, 0], [1, 0]", b"[1, 0], [1, 0, 0]"),
            r"u\[1\] has 3 entries, <2,1,3> asks for 2",
        ),
        ("perminov", replaced(lit["perminov"], b'"m": 6', b'"m": 7'), "u has 6 rows, 'm' says 7"),
        ("perminov", replaced(lit["perminov"], b'"m": 6', b'"m": true'), "'m' is True"),
        ("perminov", replaced(lit["perminov"], b"[2, 1, 3]", b"[2, 1]"), "a shape is three integers"),
        ("perminov", replaced(lit["perminov"], b"[2, 1, 3]", b"[2, 1, 65]"), "every side must be 1..64"),
        ("perminov", replaced(lit["perminov"], b"[[1, 0, 0], ", b"[[1, NaN, 0], "), "NaN is not a coefficient"),
        (
            "perminov",
            replaced(lit["perminov"], b"[[1, 0, 0], ", b"[[1, 1e999, 0], "),
            r"v\[0\]\[1\]: a coefficient is NaN or inf",
        ),
        (
            "perminov",
            replaced(lit["perminov"], b"[[1, 0, 0], ", b'[[1, "1/0", 0], '),
            r"v\[0\]\[1\]: '1/0' has a zero denominator",
        ),
        (
            "perminov",
            replaced(lit["perminov"], b"[[1, 0, 0], ", b'[[1, "x", 0], '),
            r"v\[0\]\[1\]: 'x' is not an integer",
        ),
        ("perminov", replaced(lit["perminov"], b'"u"', b'"U"'), "'u' is missing"),
        ("stl", {"": b'{"format": "stl-scheme/2"}'}, "format is 'stl-scheme/2', must be 'stl-scheme/1'"),
        ("stl", {"": b"{" + b'"a":{' * 100_000}, "bad JSON: nested too deeply"),
        ("stl", {"": b'{"a": ' + b"1" * 5000 + b"}"}, "bad JSON: Exceeds the limit"),
        (
            "mathematica",
            replaced(lit["mathematica"], b"};", b""),
            "line 6, column 69: ',' or '}' expected, the text ends",
        ),
        (
            "mathematica",
            replaced(lit["mathematica"], b"1/2", b"1/0"),
            r"line 5, column \d+: a denominator other than 0",
        ),
        (
            "mathematica",
            replaced(lit["mathematica"], b"1/2", b"x"),
            r"line 5, column \d+: a number expected, 'x' found",
        ),
        (
            "mathematica",
            replaced(lit["mathematica"], b"{{0, 1, 0}}", b"{{0, 1}}"),
            "B of product 2 is 1 x 2, must be 1 x 3",
        ),
        ("mathematica", replaced(lit["mathematica"], b"{1, 0}, {0, 0}", b"{1, 0}, {0}"), "a row of 2 numbers expected"),
        ("mathematica", replaced(lit["mathematica"], b"};", b"} + 1"), "the end expected, '[+]' found"),
        ("maple", replaced(lit["maple"], b"])]):", b""), "'Triad'|',' or '\\]' expected|the text ends"),
        (
            "maple",
            replaced(lit["maple"], b"Matrix(2, 1, [[1],[0]])", b"Matrix(1, 2, [[1],[0]])"),
            "a 1 x 2 matrix expected",
        ),
        ("maple", replaced(lit["maple"], b"TriadSet", b"TriadBag"), "no TriadSet"),
        ("products", replaced(lit["products"], b"a11*b12*c21", b"a11*b12"), "line 2, .* a factor in c expected"),
        (
            "products",
            replaced(lit["products"], b"a11*b12*c21", b"a11*b12*c21*a11"),
            "line 2, column 25: a second factor in a",
        ),
        (
            "products",
            replaced(lit["products"], b"a11*b12*c21", b"a11*b12*c"),
            "line 2, column 21: an entry such as a12",
        ),
        ("products", replaced(lit["products"], b"a11*b12*c21", b"a11*b12*c210"), "an entry such as a12"),
        ("products", replaced(lit["products"], b"a11*b12*c21", b"a11*b12*c20"), "indices 1..64 expected"),
        ("products", replaced(lit["products"], b"a11*b12*c21", b"(a11+b11)*b12*c21"), "line 2, .* only entries of a"),
        (
            "products",
            replaced(lit["products"], b"a11*b12*c21", b"(a11*b12*c21"),
            r"line 2, .* '\)' expected, '\*' found",
        ),
        ("products", {"": b"# nothing\n"}, "no product"),
        ("arbenson", replaced(lit["arbenson"], b"0 0 0 1 1 -1\n", b""), "1, 3 and 6 are mk, kn and mn of no <m,k,n>"),
        (
            "arbenson",
            replaced(lit["arbenson"], b"0 1 0 0 .5 0", b"0 1 0 0 .5"),
            "line 6 has 5 numbers, the first row 6",
        ),
        ("arbenson", replaced(lit["arbenson"], b".5", b"nan"), "line 6, column 9: 'nan' is no number"),
        ("arbenson", replaced(lit["arbenson"], b".5", b"1/0"), "line 6, column 9: '1/0' has a zero denominator"),
        ("arbenson", replaced(lit["arbenson"], b".5", b"(1+x"), "line 6, column 9: '[(]1[+]x' is no number"),
        ("arbenson", replaced(lit["arbenson"], b"# V\n", b""), "2 blocks of numbers"),
        (
            "arbenson",
            replaced(replaced(lit["arbenson"], b".5", b"x"), b"2.", b"y"),
            "line 13, column 9: two letters, x and y",
        ),
        (
            "plinopt",
            replaced(lit["plinopt"], b"0 0 0\n", b""),
            "scheme_L.sms: cut short: the end mark 0 0 0 is missing",
        ),
        ("plinopt", replaced(lit["plinopt"], b"6 2 1", b"7 2 1"), "line 7: entry 7, 2 lies outside 6 x 2"),
        ("plinopt", replaced(lit["plinopt"], b"6 2 1", b"5 2 1"), "line 7: entry 5, 2 is given twice"),
        ("plinopt", replaced(lit["plinopt"], b"2/3", b"2/0"), "line 6: '2/0' has a zero denominator"),
        ("plinopt", replaced(lit["plinopt"], b"6 2 R", b"6 2"), "line 1: a header such as"),
        ("plinopt", replaced(lit["plinopt"], b"6 2 R", b"99999999 99999999 R"), "limit 4194304 entries"),
        ("plinopt", replaced(lit["plinopt"], b"0 0 0\n", b"0 0 0\n1 1 1\n"), "line 9: '1' after the end mark"),
        ("plinopt", replaced(lit["plinopt"], b"6 2 R", b"7 2 R"), "L and R have 7 and 6 rows, P has 6 columns"),
        ("plinopt", {"_L.sms": lit["plinopt"]["_L.sms"]}, "scheme_R.sms: no such file"),
        ("plinopt", {"_X.sms": lit["plinopt"]["_L.sms"]}, "three files that end in _L.sms"),
        ("khoruzhii", {"": npy_pairs([1, 1, 1])}, "3 integers; pairs"),
        ("khoruzhii", {"": npy_pairs([1, 1, 1, 0, 1, 1])}, "pair 1 has the denominator 0"),
        ("khoruzhii", {"": npy_pairs([1, 1, 1, 1, 1, 1])[:-8]}, r"40 bytes of numbers, the header says \(1, 6\)"),
        ("khoruzhii", {"": npy_header("<i8", "(1, 1000000000000)")}, "0 bytes of numbers"),
        ("khoruzhii", {"": npy_header("<i8", "(" + "1, " * 99 + ")") + bytes(8)}, "an array of 99 dimensions"),
        ("khoruzhii", {"": npy_header("<c16", "(1, 6)") + bytes(96)}, "of '<c16'; at most 3, of integers or real"),
        ("khoruzhii", {"": npy_pairs([1] * 6, "<f8")}, r"an array \(1, 6\) of float64"),
        ("khoruzhii", {"": b"\x93NUMPY\x01\x00\xff\xff"}, "is no .npy file|cut short"),
        ("npz", npz(V=poisoned), r"V\[2, 3\] is NaN or infinite"),
        ("npz", npz(W=arrays["W"][:, :6]), r"W is an array \(4, 6\), must be \(4, r\) for <2,2,2>"),
        ("npz", npz(W=arrays["W"][:3]), "4, 4 and 3 are mk, kn and mn"),
        ("npz", npz(U=arrays["U"].ravel()), "must have two dimensions"),
        ("npz", npz(U=arrays["U"].astype(complex)), "of '<c16'"),
        ("npz", npz(U=np.array([["a"]])), "of '<U1'|no plain .npy header"),
        ("npz", {"": npz()[""][:-30]}, "broken .npz|in no format|not UTF-8"),
        (
            "alphatensor",
            {"": npz(**{"2,2,2": np.zeros((2, 4, 7), dtype=int), "U": None})[""]},
            "holds 2 arrays, must be 3",
        ),
    ]


@pytest.mark.parametrize(("format", "files", "message"), malformed())
def test_malformed_files_are_refused_in_one_line_that_says_where(
    format: str, files: Files, message: str, tmp_path: Path
) -> None:
    path = put(tmp_path, files)
    with pytest.raises(FormatError, match=message) as caught:
        load(path, format)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(FormatError):  # and without being told the format
        load(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (bytes(range(128, 256)), "not UTF-8 text: byte 0 is 0x80"),
        (b"\x00\x01\x02", "in no format known by its content; name one of: stl, perminov"),
        (b"hello\n", "in no format known by its content"),
        (b"[1, 2, 3]", "in no format known by its content"),
        (b"\x7fELF" + bytes(100), "in no format known by its content"),
        (b" " * ((16 << 20) + 1), "larger than the limit of 16 MiB"),
        (b"PK\x03\x04 not an archive", "in no format known|not UTF-8"),
    ],
)
def test_what_is_no_scheme_file_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        load(put(tmp_path, {"": data}))
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "absent", "no such file"),
        (tmp_path, "is no regular file"),
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path / "line\nbreak", "line[?]break: no such file"),
        ("nul\0", "nul[?]: no such file"),
    ):
        with pytest.raises(FormatError, match=message) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="unknown format 'latex'; known: stl, perminov"):
        load(tmp_path / "absent", "latex")


def test_archives_that_unpack_to_too_much_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("U.npy", bytes((16 << 20) + 1))
        archive.writestr("V.npy", b"")
        archive.writestr("W.npy", b"")
    assert len(out.getvalue()) < 1 << 16
    with pytest.raises(FormatError, match="unpacks to more than 16 MiB"):
        load(put(tmp_path, {"": out.getvalue()}))


def test_shapes_too_large_to_be_proved_are_refused_at_once(tmp_path: Path) -> None:
    obj = {"n": [64, 64, 64], "m": 1, "z2": False, "u": [[1] * 4096], "v": [[1] * 4096], "w": [[1] * 4096]}
    files = [{"": json.dumps(obj).encode()}, {"": b"(a_64_64)*(b_64_64)*(c_64_64)\n"}]
    files.append(
        {
            "": json.dumps(
                {"format": "stl-scheme/1", "shape": obj["n"], "rank": 1, "ring": "Z", **{k: obj[k] for k in "uvw"}}
            ).encode()
        }
    )
    for case in files:
        with pytest.raises(BudgetError, match="<64,64,64> is too large to be proved"):
            load(put(tmp_path, case))


def text_files() -> list[tuple[str, Files]]:
    """(format, files) of a small scheme in every format, to be damaged."""
    scheme = SCHEMES["dense 223"]
    out = [(name, writer(scheme, turn)) for name, (writer, turn, _) in BY_HAND.items()]
    return [*out, ("stl", {"": formats.dumps(scheme, "stl")}), ("arbenson", {"": BINI.encode()})]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_raise_only_errors_of_ours_or_are_proved(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    format, files = data.draw(st.sampled_from(text_files()))
    ending = data.draw(st.sampled_from(sorted(files)))
    raw = bytearray(files[ending])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        kind = data.draw(st.sampled_from(["cut", "set", "insert", "drop", "repeat"]))
        if kind == "cut":
            del raw[at:]
        elif kind == "set" and raw:
            raw[at] = data.draw(st.sampled_from(list(b'0123456789-+*/.,(){}[]xeiabc \n#"\x00\xff')))
        elif kind == "insert":
            raw[at:at] = data.draw(
                st.sampled_from([b"0", b"1", b"-", b"\n", b"#", b"{", b"]", b"99999999999999", b"1e400", b"x9i"])
            )
        elif kind == "drop":
            del raw[at : at + data.draw(st.integers(1, 9))]
        else:
            raw[at:at] = raw[at : at + 40]
    path = put(tmp_path_factory.mktemp("damaged"), {**files, ending: bytes(raw)})
    for chosen in (format, None):
        try:
            found = load(path, chosen)
        except StlError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert isinstance(found, LaurentScheme) or first_failure(found) is None


# ---------------------------------------------------------------------------------------------------------------------
# Border rank
# ---------------------------------------------------------------------------------------------------------------------

# Bini's <3,2,2> of rank 10. Five products give x T' + O(x^2) for T' = A' B with A' (2, 2), A'[1,1] = 0:
#   (a12 + x a11) (b12 + x b22) c12  +  (a21 + x a11) b11 (c11 + x c21)  -  a12 b12 (c11 + c12 + x c22)
#   - a21 (b11 + b12 + x b21) c11    +  (a12 + a21) (b12 + x b21) (c11 + x c22)
# so that w carries 1/x. Rows 1, 2 of A without a22, then rows 3, 2 with the columns of A (the rows of B) exchanged,
# whose part of row 2 is a22 alone. D. Bini, M. Capovani, G. Lotti, F. Romani (1979).
BINI = """# 10 products, derived above
x x 0 0 0 0 0 0 0 0
1 0 1 0 1 0 0 0 0 0
0 1 0 1 1 0 0 0 0 0
0 0 0 0 0 0 1 0 1 1
0 0 0 0 0 1 0 1 0 1
0 0 0 0 0 x x 0 0 0
#
0 1 0 1 0 0 0 0 x x
1 0 1 1 1 x 0 0 0 0
0 0 0 x x 0 1 0 1 0
x 0 0 0 0 1 0 1 1 1
#
0 xi -xi -xi xi 0 0 0 0 0
xi 0 -xi 0 0 0 0 0 0 0
0 1 0 0 0 0 1 0 0 0
0 0 -1 0 1 0 0 -1 0 1
0 0 0 0 0 0 xi -xi -xi xi
0 0 0 0 0 xi 0 -xi 0 0
"""


def laurent(text: str, folder: Path) -> LaurentScheme:
    found = load(put(folder, {"": text.encode()}))
    assert isinstance(found, LaurentScheme)
    return found


def test_a_border_rank_file_is_proved_of_order_one(tmp_path: Path) -> None:
    bini = laurent(BINI, tmp_path)
    assert (bini.shape, bini.rank, bini.order) == ((3, 2, 2), 10, 1)
    # by numbers: C_hat - A B = O(x), exactly, from the coefficients alone
    rng = np.random.default_rng(5)
    a, b = (rng.integers(-9, 10, size).astype(object) for size in ((3, 2), (2, 2)))
    errors = []
    for x in (Fraction(1, 100), Fraction(1, 1000), Fraction(1, 10000)):
        u, v, w = (sum(part * x**power for power, part in f.items()) for f in (bini.u, bini.v, bini.w))
        c = sum((u[q] * a).sum() * (v[q] * b).sum() * w[q] for q in range(10))
        errors.append(max(abs(entry) for entry in (c - a @ b).ravel()))
    assert 0 < errors[0] < 50
    assert abs(errors[0] / errors[1] - 10) < 1
    assert abs(errors[1] / errors[2] - 10) < Fraction(1, 10)


@pytest.mark.parametrize("x", [Fraction(1, 7), 0.03, np.float32(0.125), "1/50", "1e-3", -0.2])
def test_at_an_x_it_is_a_scheme_over_r_with_the_error_foretold(x: Any, tmp_path: Path) -> None:
    path = put(tmp_path, {"": BINI.encode()})
    scheme, bini = read(path, x=x), laurent(BINI, tmp_path)
    assert (scheme.shape, scheme.rank, scheme.ring.name) == ((3, 2, 2), 10, "R")
    value = float(Fraction(float(x) if isinstance(x, np.generic) else x))
    assert sorted(set(np.abs(scheme.u).ravel().tolist())) == sorted({0.0, abs(value), 1.0})
    # E(x) comes from the exact residual's polynomial, E of the scheme from its rounded coefficients: |w| is 1/x, so
    # rounding moves the residual by at most about 2^-53 sum |u||v||w| = 2^-53 * 40 / x
    spread = 40 * 2.0**-53 / abs(value)
    assert abs(bini.expected_error(value) ** 0.5 - float(residual(scheme)) ** 0.5) <= spread
    assert bini.noise_gain(value) == pytest.approx(score.noise_gain(scheme), rel=1e-13)


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "bf16", "fp16", "fp32", "fp64"])
def test_the_best_x_for_a_dtype_is_the_best(dtype: str, tmp_path: Path) -> None:
    noise = score.relative_rounding(dtype)
    bini = laurent(BINI, tmp_path)
    best = bini.best_x(noise)
    scheme = read(put(tmp_path, {"": BINI.encode()}), noise=noise)
    assert scheme.id == bini.at(best).id
    error = score.error(scheme, dtype)
    others = [score.error(bini.at(s * 2.0**t), dtype) for t in np.linspace(-40, 3, 130) for s in (1, -1)]
    assert error <= min(others) * (1 + 1e-9)
    # E ~ x^2 and kappa ~ 1/x^2 for this one, so that the error goes like sqrt(d)
    assert 0.1 < error / noise**0.5 < 10


def test_an_order_that_does_not_hold_is_refused_and_the_coefficient_named(tmp_path: Path) -> None:
    wrong = [
        ("xi 0 -xi 0 0 0", "xi 0 -x2i 0 0 0", r"A\[0,1\] B\[0,1\] in C\[0,1\] has -1 x\^-2, must have 0 x\^-2"),
        ("xi 0 -xi 0 0 0", "xi 0 xi 0 0 0", r"A\[0,1\] B\[0,1\] in C\[0,1\] has 2 x\^-1, must have 0 x\^-1"),
        ("0 1 0 0 0 0 1", "0 2 0 0 0 0 1", r"A\[1,0\] B\[0,0\] in C\[1,0\] has 2 x\^0, must have 1 x\^0"),
        ("0 1 0 0 0 0 1", "0 0 0 0 0 0 1", r"A\[1,0\] B\[0,0\] in C\[1,0\] has 0 x\^0, must have 1 x\^0"),
    ]
    for old, new, message in wrong:
        assert BINI.count(old) == 1
        with pytest.raises(VerificationError, match="no approximate <3,2,2> scheme: the coefficient of " + message):
            load(put(tmp_path, {"": BINI.replace(old, new).encode()}))
    # C transposed: as many rows, another tensor
    rows = BINI.splitlines()
    turned = "\n".join([*rows[:13], *(rows[13 + i] for i in (0, 2, 4, 1, 3, 5))])
    assert sorted(turned.splitlines()) == sorted(rows)
    with pytest.raises(VerificationError, match="no approximate <3,2,2> scheme"):
        load(put(tmp_path, {"": turned.encode()}))


def test_a_change_of_basis_by_powers_of_x_is_exact_for_every_x(tmp_path: Path) -> None:
    """Strassen with A' = D A, C' = D C, D = diag(1, x): u's second row is divided by x, w's multiplied."""
    text = "# exact for every x\n"
    for block, (factor, power) in enumerate(((STRASSEN.u, "xi"), (STRASSEN.v, ""), (STRASSEN.w, "x"))):
        text += "#\n" if block else ""
        for i, j in np.ndindex(2, 2):
            names = {0: "0", 1: power or "1", -1: "-" + (power or "1")} if i and power else {0: "0", 1: "1", -1: "-1"}
            text += " ".join(names[int(factor[q, i, j])] for q in range(7)) + "\n"
    path = put(tmp_path, {"": text.encode()})
    found = load(path)
    assert isinstance(found, LaurentScheme)
    assert found.order is None
    assert read(path).id == STRASSEN.id  # x = 1
    half = read(path, x="1/2")
    assert (half.ring.name, first_failure(half)) == ("Q", None)
    assert half.u[1].tolist() == [[0, 0], [2, 2]]
    assert found.expected_error(0.37) == 0
    # nothing but noise counts: kappa at the best x is no larger than at any other
    best = found.best_x(1e-3)
    assert found.noise_gain(best) <= min(found.noise_gain(2.0**t) for t in np.linspace(-3, 3, 200)) * (1 + 1e-9)


NOTATION = {
    "x": {1: 1},
    "-x2": {2: -1},
    "xi": {-1: 1},
    "-x2i": {-2: -1},
    "2x": {1: 2},
    "0.5x": {1: Fraction(1, 2)},
    "-.25x3i": {-3: Fraction(-1, 4)},
    "2/3x": {1: Fraction(2, 3)},
    "3*x2": {2: 3},
    "(x+x2)": {1: 1, 2: 1},
    "(1+-x3)": {0: 1, 3: -1},
    "-(x-x2i)": {1: -1, -2: 1},
    "(-x2+-x3)": {2: -1, 3: -1},
    "2(1+x)": {0: 2, 1: 2},
    "(x+2x)": {1: 3},
    "x12i": {-12: 1},
    "+x": {1: 1},
    "x0": {0: 1},
    "1e-05x": {1: Fraction(1, 100000)},
}


@pytest.mark.parametrize("letter", ["x", "e", "t"])
@pytest.mark.parametrize("token", NOTATION)
def test_every_notation_of_a_polynomial_is_understood(token: str, letter: str, tmp_path: Path) -> None:
    written = token.replace("x", letter)
    # <1,1,1> of rank 3: p * 1 - p * 1 + 1 * 1 with p written in full for the second product
    spelled = NOTATION[token]
    text = f"# notation\n{written} " + " ".join("1" for _ in spelled) + f" 1 {letter}\n#\n1 "
    text += " ".join(f"{-c}{letter}{abs(e)}{'i' if e < 0 else ''}" for e, c in spelled.items())
    text += " 1 0\n#\n1 " + " ".join("1" for _ in spelled) + " 1 1\n"
    found = laurent(text, tmp_path)
    assert found.order is None
    assert {e: part[0].item() for e, part in found.u.items() if part[0].item() != 0} == spelled


def test_e_is_a_letter_unless_a_sign_follows(tmp_path: Path) -> None:
    found = laurent("# e\n1 e 2e3\n#\n1 -2e2 1\n#\n1 1 1\n", tmp_path)
    assert (found.order, found.rank) == (None, 3)  # 1 - 2 e^3 + 2 e^3


@pytest.mark.parametrize(
    "token", ["x+x2", "1-1", "()", "((x))", "xx", "i", "x-1", "2ei3", "(x,x2)", "x123", "--", "(x", "1e5"]
)
def test_other_notations_are_refused(token: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"line 2, column 3: .*(is no number and no polynomial|two letters)"):
        load(put(tmp_path, {"": f"# no\nx {token}\n#\n1 1\n#\n1 1\n".encode()}), "arbenson")


def test_a_value_of_x_or_a_dtype_must_be_given_and_make_sense(tmp_path: Path) -> None:
    path = put(tmp_path, {"": BINI.encode()})
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, r"an error of order x\^1: give a value of x, or a dtype"),
        ({"x": 0.1, "noise": 0.1}, "not both"),
        *(
            ({"x": bad}, "must be a number other than 0")
            for bad in (
                0,
                0.0,
                "0",
                float("nan"),
                float("inf"),
                "abc",
                "1/0",
                "1e999999999",
                "1e-999999999",
                object(),
                [],
            )
        ),
        *(({"noise": bad}, "must be positive") for bad in (0.0, -1.0, float("nan"), float("inf"))),
        ({"x": 1e-320}, "coefficients overflow"),
    ]
    for arguments, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            read(path, **arguments)
        assert "\n" not in str(caught.value)


def test_laurent_schemes_check_their_shapes() -> None:
    with pytest.raises(SchemeError, match=r"v\[x\^1\] has shape \(1, 2\), must be \(r, 1, 1\)"):
        LaurentScheme((1, 1, 1), {0: [[1]]}, {1: [[1, 2]]}, {0: [[1]]})
    with pytest.raises(SchemeError, match="parts have 1, 2 terms"):
        LaurentScheme((1, 1, 1), {0: [[1]]}, {0: [[1], [2]]}, {0: [[1]]})
    one = LaurentScheme((1, 1, 1), {0: [[1]], 2: [[0]]}, {0: [[1]]}, {0: [[1]]})
    assert list(one.u) == [0]  # what is zero is not kept
    with pytest.raises(TypeError):
        one.u[1] = np.zeros((1, 1, 1))  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        one.u[0][0, 0, 0] = 2


def test_too_many_powers_are_refused(tmp_path: Path) -> None:
    for side, powers, message in (
        (3, 50, "50, 50 and 50 powers of x: too many for <3,3,3>"),
        (16, 99, "polynomials with more"),
    ):
        row = " ".join(f"x{i + 1}" for i in range(powers)) + "\n"
        text = "# long\n" + "#\n".join([row * side**2] * 3)
        with pytest.raises(BudgetError, match=message):
            load(put(tmp_path, {"": text.encode()}))


# ---------------------------------------------------------------------------------------------------------------------
# Floating-point numbers that are exact over no ring
# ---------------------------------------------------------------------------------------------------------------------


def test_approximate_numbers_are_taken_only_when_asked_for_and_when_they_approximate(tmp_path: Path) -> None:
    near = [x.astype(float) for x in columns(STRASSEN, False)]
    near[0][0, 0] = 0.75
    np.savez(tmp_path / "near.npz", **dict(zip("UVW", near, strict=True)))
    with pytest.raises(
        VerificationError, match=r"coefficient of A\[0,0\] .*; name a dtype if its floating-point numbers"
    ):
        read(tmp_path / "near.npz")
    found = read(tmp_path / "near.npz", noise=score.relative_rounding("bf16"))
    # u[0] = 3/4 a00 + a11 misses a quarter of a00 (b00 + b11) (c00 + c11): four coefficients of 1/4 each
    assert (found.ring.name, residual(found)) == ("R", Fraction(4, 16) / 8)
    far = [near[0], near[1], near[2].reshape(2, 2, 7).swapaxes(0, 1).reshape(4, 7)]
    np.savez(tmp_path / "far.npz", **dict(zip("UVW", far, strict=True)))
    with pytest.raises(VerificationError, match=r"no approximation of <2,2,2>: E = \d"):
        read(tmp_path / "far.npz", noise=1e-3)


def test_exact_numbers_in_floating_point_are_exact(tmp_path: Path) -> None:
    for kind in (np.float16, np.float32, np.float64, np.int8, np.uint8):
        scheme = parity(strassen_and_a_column()) if kind == np.uint8 else strassen_and_a_column()
        arrays = {name.lower(): x.astype(kind) for name, x in zip("UVW", columns(scheme, False), strict=True)}
        np.savez_compressed(tmp_path / "exact.npz", **arrays)
        assert load(tmp_path / "exact.npz").id == scheme.id


# ---------------------------------------------------------------------------------------------------------------------
# plinopt's three files, our own format, the registry
# ---------------------------------------------------------------------------------------------------------------------


def test_plinopt_is_read_from_any_of_its_files_or_their_common_start(tmp_path: Path) -> None:
    scheme = strassen_and_a_column()
    put(tmp_path, by_hand_plinopt(scheme, False), "2x2x3_99")
    for name in ("2x2x3_99_L.sms", "2x2x3_99_R.sms", "2x2x3_99_P.sms", "2x2x3_99"):
        assert load(tmp_path / name).id == scheme.id
        assert load(tmp_path / name, "plinopt").id == scheme.id
    assert [p.name for p in write(scheme, tmp_path / "new_R.sms")] == ["new_L.sms", "new_R.sms", "new_P.sms"]
    with pytest.raises(FormatError, match="no such file"):
        load(tmp_path / "2x2x3_99", "products")


def test_our_own_files_are_proved_too(tmp_path: Path) -> None:
    (path,) = write(STRASSEN, tmp_path / "s.json")
    assert json.loads(path.read_text())["certificate"] == {"kind": "exact", "rings": ["Z2", "ZT", "Z", "Q"]}
    assert load(path).id == STRASSEN.id
    obj = json.loads(path.read_text())
    obj["u"][0][0] = -1
    path.write_text(json.dumps(obj))
    with pytest.raises(VerificationError, match=r"not a <2,2,2> scheme over ZT: coefficient of A\[0,0\] B\[0,0\]"):
        load(path)
    real = Scheme((1, 1, 1), "R", [[1.0]], [[1.0]], [[0.5]])  # claims nothing, and is kept as it is
    assert load(write(real, tmp_path / "r.json")[0]).id == real.id
    complex_ = Scheme((1, 1, 1), "C", [[1j]], [[1.0]], [[-1j]])
    assert load(write(complex_, tmp_path / "c.json", "stl")[0]).id == complex_.id


def test_a_new_format_is_one_registration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(formats, "FORMATS", dict(FORMATS))
    named = formats.Format(
        "named",
        (".named",),
        "the name of a scheme",
        lambda source: source.data.startswith(b"NAMED strassen"),
        lambda source, shape: STRASSEN,
        lambda scheme: {"": b"NAMED strassen"},
    )
    assert formats.register(named) is named
    assert load(write(STRASSEN, tmp_path / "s.named")[0]).id == STRASSEN.id
    with pytest.raises(UsageError, match="registered already"):
        formats.register(named)
