"""The Scheme value: what it accepts, that it is frozen, what its id stands for, and its file form both ways."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import rings
from stl_search.errors import FormatError, StlError, VerificationError
from stl_search.scheme import (
    FORMAT,
    MAX_RANK,
    Scheme,
    as_integers,
    dump_scheme_object,
    matmul_tensor,
    parse_shape,
    triple_sum,
)

TIMELESS = settings(deadline=None)
SIDES = st.tuples(*[st.integers(1, 4)] * 3)
ENTRIES: dict[str, st.SearchStrategy[Any]] = {
    "Z2": st.integers(0, 1),
    "ZT": st.integers(-1, 1),
    "Z": st.integers(-5, 5) | st.integers(-(2**70), 2**70),
    "Q": st.builds(Fraction, st.integers(-9, 9), st.integers(1, 2**40)),
    "R": st.floats(allow_nan=False, allow_infinity=False),
    "C": st.complex_numbers(allow_nan=False, allow_infinity=False),
}


@st.composite
def schemes(draw: st.DrawFn, ring: str | None = None) -> Scheme:
    """A random scheme of rank 0..4: six drawn coefficients, spread by a seeded generator."""
    name = ring or draw(st.sampled_from(rings.NAMES))
    m, k, n = draw(SIDES)
    r = draw(st.integers(0, 4))
    pool = [draw(ENTRIES[name]) for _ in range(6)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factors = []
    for rows, cols in ((m, k), (k, n), (m, n)):
        f = np.empty(r * rows * cols, dtype=object)
        f[:] = [pool[i] for i in rng.integers(0, 6, f.size)]
        factors.append(f.reshape(r, rows, cols))
    return Scheme((m, k, n), name, *factors)


@given(SIDES)
def test_matmul_tensor_is_matrix_multiplication(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    t = matmul_tensor(shape)
    assert t.shape == (m * k, k * n, m * n)
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 9, (m, k)), rng.integers(-9, 9, (k, n))
    c = np.einsum("ijl,i,j->l", t.astype(int), a.ravel(), b.ravel()).reshape(m, n)
    assert (c == a @ b).all()


# ---------------------------------------------------------------------------------------------------------------------
# Exact sums


@TIMELESS
@given(st.integers(0, 5), st.sampled_from([1, 2**10, 2**17, 2**18, 2**20, 2**21, 2**40, 10**30]), st.integers(0, 2**32))
def test_triple_sum_is_exact_at_every_size(r: int, size: int, seed: int) -> None:
    """Around the borders between float64, int64 and Python integers, with mixed signs, against plain loops."""
    rng = np.random.default_rng(seed)
    flat = []
    for width in (2, 3, 1):
        f = np.empty((r, width), dtype=object)
        for place in np.ndindex(r, width):
            f[place] = int(rng.integers(-1, 2)) * (size - int(rng.integers(0, min(size, 3)))) + int(rng.integers(0, 2))
        flat.append(f if size > 2**62 or rng.integers(0, 2) else f.astype(np.int64))
    total = triple_sum(*flat)
    assert total.shape == (2, 3, 1)
    for i, j, h in np.ndindex(2, 3, 1):
        assert int(total[i, j, h]) == sum(int(u[i]) * int(v[j]) * int(w[h]) for u, v, w in zip(*flat, strict=True))


@pytest.mark.parametrize("entry", [2**17 - 1, 2**20 - 1])
def test_triple_sum_counts_its_terms(entry: int) -> None:
    """Each product fits a double (or int64), the sum of 61 of them does not."""
    f = np.full((61, 1), entry)
    assert int(triple_sum(f, f, f)[0, 0, 0]) == 61 * entry**3


def test_triple_sum_where_a_zero_factor_hides_a_huge_one() -> None:
    huge = np.array([[10**400]], dtype=object)
    zero = np.array([[0]])
    for order in itertools.permutations([huge, zero, zero]):
        assert triple_sum(*order).tolist() == [[[0]]]


@TIMELESS
@given(schemes())
def test_as_integers_is_exact(s: Scheme) -> None:
    for f in s.factors:
        if f.dtype.kind != "c":
            whole, scale = as_integers(f)
            assert scale.numerator == 1
            assert whole.shape == f.shape
            for x, y in zip(whole.ravel().tolist(), f.ravel().tolist(), strict=True):
                assert type(x) is int
                assert x * scale == Fraction(y)


# ---------------------------------------------------------------------------------------------------------------------
# Construction


@TIMELESS
@given(schemes())
def test_shapes_and_types(s: Scheme) -> None:
    m, k, n = s.shape
    assert [f.shape for f in s.factors] == [(s.rank, m, k), (s.rank, k, n), (s.rank, m, n)]
    assert [f.shape for f in s.flat()] == [(s.rank, m * k), (s.rank, k * n), (s.rank, m * n)]
    assert s.volume == m * k * n
    assert s.name == f"{m}x{k}x{n}_r{s.rank}_{s.ring}"
    assert len(list(s.terms())) == s.rank
    assert len(list(s.coefficients())) == s.rank * (m * k + k * n + m * n)
    exact = {"Z2": "int8", "ZT": "int8", "R": "float64", "C": "complex128"}
    for f in s.factors:
        if s.ring.name in exact:
            assert f.dtype == exact[s.ring.name]
        elif f.dtype == object:
            assert {type(x) for x in f.ravel().tolist()} <= {int, Fraction}
        assert f.flags.c_contiguous
    assert Scheme(s.shape, s.ring, *s.flat()) == s  # flat rows will do


@TIMELESS
@given(schemes())
def test_schemes_are_frozen(s: Scheme) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.shape = (1, 1, 1)  # type: ignore[misc]
    for again in (s, copy.copy(s), copy.deepcopy(s), pickle.loads(pickle.dumps(s))):  # noqa: S301
        assert again == s
        assert hash(again) == hash(s)
        for f in again.factors:
            with pytest.raises(ValueError, match="read-only"):
                f[...] = 0


def test_the_given_arrays_are_copied() -> None:
    given_arrays = [np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1))]
    for ring in rings.NAMES:
        s = Scheme((1, 1, 1), ring, *given_arrays)
        for array in given_arrays:
            array[...] = 0
        assert [complex(x) for x in s.coefficients()] == [1, 1, 1]
        for array in given_arrays:
            array[...] = 1
            assert array.flags.writeable


@pytest.mark.parametrize(
    "values",
    [[2**63 + 1, -1], [2**60 + 1, -1], [2**64, 1], [2**100, -(2**100)], [2**60 + 1, 2.0]],
    ids=str,
)
def test_large_integers_in_lists_stay_exact(values: list[int]) -> None:
    """numpy makes doubles of lists such as [2**63 + 1, -1]; a scheme may not."""
    for ring in ("Z", "Q"):
        s = Scheme((1, 2, 1), ring, [values], [[1, 1]], [[1]])
        assert s.u.ravel().tolist() == values
        nested = Scheme((1, 2, 1), ring, [[values]], [[[1], [1]]], [[[1]]])
        assert nested == s


def test_fractions_and_doubles_mix_exactly_over_q() -> None:
    s = Scheme((1, 3, 1), "Q", [[2**60 + 1, 0.5, Fraction(1, 3)]], [[1, 1, 1]], [[1]])
    assert s.u.ravel().tolist() == [2**60 + 1, Fraction(1, 2), Fraction(1, 3)]


ONE = [[1]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (((0, 1, 1), "Z", ONE, ONE, ONE), "every side must be 1..64"),
        (((65, 1, 1), "Z", ONE, ONE, ONE), "every side must be 1..64"),
        (((1, 1), "Z", ONE, ONE, ONE), "three integers"),
        (((1, 1, 1.0), "Z", ONE, ONE, ONE), "three integers"),
        (((True, 1, 1), "Z", ONE, ONE, ONE), "three integers"),
        ((5, "Z", ONE, ONE, ONE), "three integers"),
        (("111", "Z", ONE, ONE, ONE), "three integers"),
        (((1, 1, 1), "N", ONE, ONE, ONE), "unknown ring 'N'; known: Z2, ZT"),
        (((1, 1, 1), "Z", [[1, 2]], ONE, ONE), r"u has shape \(1, 2\), must be \(r, 1, 1\) or \(r, 1\)"),
        (((1, 1, 1), "Z", ONE, 1, ONE), r"v has shape \(\)"),
        (((1, 1, 1), "Z", ONE, ONE, [[1], [1]]), "u, v and w have 1, 1, 2 terms"),
        (((1, 2, 1), "Z", [[1, 2], [1]], ONE, ONE), "u is ragged"),
        (((1, 1, 1), "ZT", ONE, [[2]], ONE), r"v\[0, 0, 0\] = 2 is not in ZT"),
        (((1, 1, 1), "Z2", ONE, ONE, [[-1]]), r"w\[0, 0, 0\] = -1 is not in Z2"),
        (((1, 1, 1), "Z2", np.array([[256]]), ONE, ONE), "256 is not in Z2"),
        (((1, 1, 1), "ZT", np.array([[255]], dtype=np.uint8), ONE, ONE), "255 is not in ZT"),
        (((1, 1, 1), "Z", [[0.5]], ONE, ONE), r"u\[0, 0, 0\]: 0.5 is not in Z"),
        (((1, 1, 1), "Z", [["1"]], ONE, ONE), "1 is not in Z"),
        (((1, 1, 1), "R", [[math.nan]], ONE, ONE), r"u holds NaN or infinity at \[0, 0, 0\]"),
        (((1, 1, 1), "C", ONE, [[complex(0, math.inf)]], ONE), r"v holds NaN or infinity"),
        (((1, 1, 1), "R", [[10**400]], ONE, ONE), r"u\[0, 0, 0\]: a coefficient is beyond the range of a double"),
        (((1, 1, 1), "R", [[1j]], ONE, ONE), "is not in R"),
        (((1, 1, 1), "Z", [[10**1000]], ONE, ONE), "more than 1000 digits"),
        (((1, 1, 1), "ZT", *[np.ones((MAX_RANK + 1, 1), dtype=int)] * 3), "above the limit"),
    ],
)
def test_bad_schemes_are_refused(arguments: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(StlError, match=complaint) as caught:
        Scheme(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_parse_shape_takes_numpy_integers() -> None:
    assert parse_shape(np.array([2, 3, 4])) == (2, 3, 4)
    assert all(type(side) is int for side in parse_shape(np.array([2, 3, 4])))


def test_what_is_too_large_to_run_is_refused() -> None:
    s = Scheme((1, 1, 1), "Q", [[Fraction(10**400, 3)]], ONE, ONE)
    with pytest.raises(VerificationError, match="beyond the range of a double: the scheme cannot be run"):
        s.as_float()


# ---------------------------------------------------------------------------------------------------------------------
# The id


@TIMELESS
@given(schemes(), st.integers(0, 2**32 - 1))
def test_the_id_ignores_order_and_signs_and_nothing_else(s: Scheme, seed: int) -> None:
    rng = np.random.default_rng(seed)
    factors = [f.astype(object) if s.ring.exact else f.copy() for f in s.factors]
    if s.ring.name != "Z2":
        for q in np.flatnonzero([u.any() and v.any() for u, v, _ in s.terms()]):
            one, two = rng.choice(3, 2, replace=False)
            factors[one][q] = -factors[one][q]
            factors[two][q] = -factors[two][q]
    order = rng.permutation(s.rank)
    t = Scheme(s.shape, s.ring, *(f[order] for f in factors))
    assert t.id == s.id
    assert t == s
    assert hash(t) == hash(s)
    if s.rank:
        which, q = rng.integers(0, 3), rng.integers(0, s.rank)
        place = (q, *(int(rng.integers(0, d)) for d in factors[which].shape[1:]))
        moved = [f.copy() for f in factors]
        moved[which][place] = 0 if moved[which][place] else 1
        if canonical(factors) != canonical(moved):
            assert Scheme(s.shape, s.ring, *moved) != s


def canonical(factors: list[np.ndarray]) -> list[str]:
    """The terms up to the signs that two factors may exchange, from all four sign choices."""
    out = []
    for term in zip(*factors, strict=True):
        rows = [f.ravel().tolist() for f in term]
        choices = [
            str([[s * x + 0 for x in row] for s, row in zip(signs, rows, strict=True)])
            for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
        ]
        out.append(min(choices))
    return sorted(out)


def test_the_id_depends_on_shape_and_ring() -> None:
    base = Scheme((1, 1, 1), "ZT", ONE, ONE, ONE)
    others = [Scheme((1, 1, 1), ring, ONE, ONE, ONE) for ring in rings.NAMES if ring != "ZT"]
    flat = [Scheme(shape, "ZT", [[1, 0]], [[1, 0]], [[1]]) for shape in ((1, 2, 1),)]
    turned = Scheme((2, 1, 1), "ZT", [[1, 0]], [[1]], [[1, 0]])
    assert len({s.id for s in (base, *others, *flat, turned)}) == 8
    assert base != "not a scheme"


def test_the_id_is_what_its_docstring_says() -> None:
    """Written out by hand, so that ids in files stay valid: two terms, the first with both signs turned."""
    import hashlib

    s = Scheme((1, 2, 1), "Q", [[-1, 2], [0, Fraction(1, 2)]], [[0, -3], [1, 1]], [[5], [-1]])
    text = f"{FORMAT} 1 2 1 Q\n" + "\n".join(sorted(["1 -2|0 3|5", "0 1/2|1 1|-1"]))
    assert s.id == hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Files


@TIMELESS
@given(schemes())
def test_json_both_ways(s: Scheme) -> None:
    text = dump_scheme_object(s.to_json())
    obj = json.loads(text)
    back = Scheme.from_json(obj)
    assert back.id == s.id == obj["id"]
    assert back.shape == s.shape
    assert back.ring == s.ring
    for f, g in zip(back.factors, s.factors, strict=True):
        assert f.tolist() == g.tolist()
    assert text.endswith("}\n")
    assert dump_scheme_object(back.to_json()) == text
    assert obj["format"] == FORMAT == "stl-scheme/1"
    assert obj["rank"] == s.rank


GOOD = Scheme((1, 2, 1), "Q", [[1, Fraction(1, 2)]], [[1, 0]], [[1]]).to_json()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "stl-scheme/2"}, "format is 'stl-scheme/2', must be 'stl-scheme/1'"),
        ({"format": None}, "format is None"),
        ({"shape": [1, 2]}, "three integers"),
        ({"shape": [1, 2, "1"]}, "three integers"),
        ({"shape": [1, 2, 10**4000]}, "shape 1,2,huge: every side must be 1..64"),
        ({"shape": None}, "three integers"),
        ({"rank": 2}, "u has 1 rows, rank says 2"),
        ({"rank": True}, "rank is True"),
        ({"rank": -1}, "rank is -1"),
        ({"rank": 1.0}, "rank is 1.0"),
        ({"rank": 10**9}, "rank is 1000000000, must be an integer 0..65536"),
        ({"ring": "GF4"}, "unknown ring 'GF4'; known"),
        ({"ring": ["Q"]}, "unknown ring"),
        ({"u": [[1]]}, r"u\[0\] has 1 entries, shape 1,2,1 asks for 2"),
        ({"u": [1]}, r"u\[0\] has int entries"),
        ({"v": {}}, "v has dict rows"),
        ({"w": []}, "w has 0 rows, rank says 1"),
        ({"w": [[math.nan]]}, r"w\[0\]\[0\]: a coefficient is NaN or infinite"),
        ({"v": [[1, "1/0"]]}, r"v\[0\]\[1\]: '1/0' has a zero denominator"),
        ({"v": [[1, None]]}, r"v\[0\]\[1\]: None is not a coefficient"),
        ({"u": [[10**1200, 1]]}, r"u\[0\]\[0\]: an integer has more than 1000 digits"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_malformed_objects_are_refused_with_the_place(change: dict[str, Any], complaint: str) -> None:
    Scheme.from_json(GOOD)
    with pytest.raises(FormatError, match=complaint) as caught:
        Scheme.from_json({**GOOD, **change})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("key", ["shape", "rank", "ring", "u", "v", "w"])
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(FormatError, match=f"'{key}' is missing"):
        Scheme.from_json({k: v for k, v in GOOD.items() if k != key})


@pytest.mark.parametrize("obj", [None, [], "x", 3, [GOOD]], ids=str)
def test_other_json_is_no_scheme(obj: Any) -> None:
    with pytest.raises(FormatError, match="no JSON object"):
        Scheme.from_json(obj)


def test_coefficients_outside_the_ring_are_a_false_claim_not_a_bad_file() -> None:
    for ring, value in (("ZT", 2), ("Z2", -1), ("Z", "1/2"), ("Z", 0.5)):
        obj = {**GOOD, "ring": ring, "u": [[0, value]]}
        with pytest.raises(VerificationError, match=rf"u\[0\]\[1\] = .* is not in {ring}"):
            Scheme.from_json(obj)


def test_other_claims_of_a_file_are_not_believed() -> None:
    lie = {**GOOD, "id": "0" * 64, "certificate": {"kind": "exact"}, "figures": {"E": 0}}
    assert Scheme.from_json(lie).id == GOOD["id"]
