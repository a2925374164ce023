"""Coefficient rings: what is in them, how they are read and written, and that nothing exact is ever rounded."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import rings
from stl_search.errors import FormatError, SchemeError, UsageError

TIMELESS = settings(deadline=None)
INTEGERS = st.integers(-(10**30), 10**30) | st.integers(-3, 3)
FRACTIONS = st.builds(Fraction, INTEGERS, st.integers(1, 10**20))
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "Z2": st.integers(0, 1),
    "ZT": st.integers(-1, 1),
    "Z": INTEGERS,
    "Q": INTEGERS | FRACTIONS,
    "R": DOUBLES,
    "C": st.complex_numbers(allow_nan=False, allow_infinity=False),
}
ANY = st.sampled_from(rings.NAMES).flatmap(lambda name: st.tuples(st.just(name), ELEMENTS[name]))


@TIMELESS
@given(ANY)
def test_elements_survive_files_and_belong_to_their_ring(case: tuple[str, Any]) -> None:
    name, value = case
    ring = rings.get(name)
    element = ring.coerce(value)
    assert element == value
    assert ring.contains(element)
    text = json.dumps(ring.to_json(element), allow_nan=False)
    assert ring.parse(json.loads(text)) == element
    assert ring.coerce(element) == element


@TIMELESS
@given(ANY, ANY)
def test_equal_texts_mean_equal_elements(one: tuple[str, Any], two: tuple[str, Any]) -> None:
    ring = rings.get(one[0])
    if one[0] == two[0]:
        x, y = ring.coerce(one[1]), ring.coerce(two[1])
        assert (ring.render(x) == ring.render(y)) == (x == y)


@TIMELESS
@given(ANY)
def test_membership_grows_from_zt_to_c(case: tuple[str, Any]) -> None:
    name, value = case
    element = rings.get(name).coerce(value)
    order = ["ZT", "Z", "Q"]
    if name in order:
        for larger in order[order.index(name) :]:
            assert rings.get(larger).contains(element)
    assert rings.get("Z2").contains(element) == (isinstance(element, int) and element in (0, 1))
    assert rings.get("ZT").contains(element) == (isinstance(element, int) and abs(element) <= 1)


@TIMELESS
@given(st.lists(INTEGERS | FRACTIONS))
def test_smallest_exact_ring(values: list[Any]) -> None:
    found = rings.smallest_exact(values).name
    want = "Q" if any(Fraction(x).denominator > 1 for x in values) else "Z" if any(abs(x) > 1 for x in values) else "ZT"
    assert found == want


@pytest.mark.parametrize(
    ("ring", "value", "element"),
    [
        ("Q", "3/6", Fraction(1, 2)),
        ("Q", "-4/2", -2),
        ("Q", "+7", 7),
        ("Q", 0.25, Fraction(1, 4)),  # a double in an exact file is the fraction that it is
        ("Q", rings.Written("0.1"), Fraction(1, 10)),  # with its text it is what the text says
        ("Z", rings.Written("2.0e2"), 200),
        ("R", rings.Written("0.1"), 0.1),
        ("Z", 2.0, 2),
        ("Z", "12345678901234567890123", 12345678901234567890123),
        ("Z2", 3, 3),  # read, and then found outside the ring with its place
        ("R", -0.0, 0.0),
        ("R", 3, 3.0),
        ("C", [1, -2], 1 - 2j),
        ("C", 5, 5 + 0j),
    ],
)
def test_parse(ring: str, value: Any, element: Any) -> None:
    found = rings.get(ring).parse(value)
    assert found == element
    assert type(found) is type(element)
    assert str(found) == str(element)  # tells 0.0 from -0.0


@pytest.mark.parametrize("ring", rings.NAMES)
@pytest.mark.parametrize(
    "value",
    [
        *[True, None, "", "x", "1/", "/2", "1/0", "1//2", "1e3", " 1", "0x1", "١", "1" * 1001, {}, math.nan, math.inf],
        *[[[1]], [1, 2, 3], [1, None], [1, True], [1, math.nan]],
    ],
    ids=lambda x: f"{x!r:.12}",
)
def test_what_is_no_coefficient_is_refused(ring: str, value: Any) -> None:
    with pytest.raises(FormatError) as caught:
        rings.get(ring).parse(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_strings_are_fractions_in_exact_rings_only() -> None:
    for ring in ("R", "C"):
        with pytest.raises(FormatError):
            rings.get(ring).parse("1/2")
    with pytest.raises(FormatError):
        rings.get("Z").parse([1, 0])


def test_sizes_are_bounded() -> None:
    largest = 10**1000 - 1
    for ring in ("Z", "Q"):
        assert rings.get(ring).parse(largest) == rings.get(ring).parse(str(largest)) == largest
        assert rings.get(ring).coerce(-largest) == -largest
        for value in (largest + 1, -largest - 1):
            with pytest.raises(FormatError, match="more than 1000 digits"):
                rings.get(ring).parse(value)
            with pytest.raises(SchemeError, match="more than 1000 digits"):
                rings.get(ring).coerce(value)
    with pytest.raises(SchemeError, match="more than 1000 digits"):
        rings.get("Q").coerce(Fraction(1, 10**1000))
    for ring in ("R", "C"):
        with pytest.raises(FormatError, match="NaN or infinite"):
            rings.get(ring).parse([10**400, 0] if ring == "C" else 10**400)
        with pytest.raises(SchemeError, match="beyond the range of a double"):
            rings.get(ring).coerce(10**400)
        with pytest.raises(SchemeError, match="beyond the range of a double"):
            rings.get(ring).coerce(Fraction(10**400, 3))


@pytest.mark.parametrize(
    ("ring", "value", "element"),
    [
        ("Z", np.int8(-3), -3),
        ("Z", np.float32(4), 4),
        ("Z", True, 1),
        ("Z2", np.bool_(True), 1),
        ("Q", np.float64(0.1), Fraction(0.1)),
        ("Q", Fraction(6, 3), 2),
        ("R", Fraction(1, 4), 0.25),
        ("R", np.float32(0.1), float(np.float32(0.1))),
        ("C", np.complex64(1 - 2j), 1 - 2j),
    ],
)
def test_coerce(ring: str, value: Any, element: Any) -> None:
    found = rings.get(ring).coerce(value)
    assert found == element
    assert type(found) is type(element)


@pytest.mark.parametrize(
    ("ring", "value"),
    [
        ("Z2", -1),
        ("Z2", 2),
        ("ZT", 2),
        ("ZT", 0.5),
        ("Z", Fraction(1, 2)),
        ("Z", 0.5),
        ("Z", math.nan),
        ("Q", math.inf),
        ("Q", 1j),
        ("R", 1j),
        ("R", math.nan),
        ("C", complex(0, math.inf)),
        ("C", "1"),
        ("R", None),
        ("Z", [1]),
    ],
)
def test_coerce_refuses(ring: str, value: Any) -> None:
    with pytest.raises(SchemeError, match=f"is not in {ring}"):
        rings.get(ring).coerce(value)


@pytest.mark.parametrize("name", ["z", "GF(2)", "", None, 2, ["Z"]])
def test_unknown_rings_are_answered_with_the_known_ones(name: Any) -> None:
    with pytest.raises(UsageError, match="known: Z2, ZT, Z, Q, R, C"):
        rings.get(name)


def test_get_takes_rings_too() -> None:
    assert rings.get(rings.get("Q")) is rings.get("Q")
    assert rings.EXACT == ("Z2", "ZT", "Z", "Q")
    assert [rings.get(name).characteristic for name in rings.NAMES] == [2, 0, 0, 0, 0, 0]
