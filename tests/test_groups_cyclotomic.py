"""Cyclotomic integers against floating-point complex numbers and known values."""

from __future__ import annotations

import cmath
import re
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search.groups import Cyclotomic, GroupError
from stl_search.groups.cyclotomic import cyclotomic_polynomial, galois_action, power_basis, roots_of_unity

CONDUCTORS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 20, 24, 30]


@st.composite
def numbers(draw: st.DrawFn) -> Cyclotomic:
    e = draw(st.sampled_from(CONDUCTORS))
    degree = power_basis(e).shape[1]
    return Cyclotomic(e, tuple(draw(st.lists(st.integers(-9, 9), min_size=degree, max_size=degree))))


def test_polynomials() -> None:
    # The 105th is the first with a coefficient other than -1, 0, 1; degrees are Euler's phi.
    assert [cyclotomic_polynomial(n) for n in (1, 2, 3, 4)] == [(-1, 1), (1, 1), (1, 1, 1), (1, 0, 1)]
    assert min(cyclotomic_polynomial(105)) == -2
    for n in range(1, 80):
        assert len(cyclotomic_polynomial(n)) - 1 == sum(gcd(j, n) == 1 for j in range(n))
        at_roots = np.polyval(cyclotomic_polynomial(n)[::-1], np.exp(2j * np.pi * np.arange(n) / n))
        assert [abs(v) < 1e-9 for v in at_roots] == [gcd(j, n) == 1 for j in range(n)]


@pytest.mark.parametrize("e", [*range(1, 64), 420])
def test_roots_and_powers(e: int) -> None:
    roots = roots_of_unity(e)
    assert np.abs(roots - [cmath.exp(2j * cmath.pi * j / e) for j in range(e)]).max() < 4e-15
    assert np.array_equal(roots[-np.arange(e) % e], roots.conj())
    assert np.abs(power_basis(e) @ roots[: power_basis(e).shape[1]] - roots).max() < 1e-12
    for j in (j for j in range(-3, 8) if gcd(j, e) == 1):
        assert np.array_equal(power_basis(e) @ galois_action(e, j), power_basis(e)[np.arange(e) * j % e])
    if e % 12 == 0:
        assert roots[[0, e // 6, e // 4, e // 3, e // 2]].real.tolist() == [1, 0.5, 0, -0.5, -1]
        assert roots[[0, e // 12, e // 4]].imag.tolist() == [0, 0.5, 1]


@settings(max_examples=150, deadline=None)
@given(numbers(), numbers())
def test_arithmetic_is_complex_arithmetic(x: Cyclotomic, y: Cyclotomic) -> None:
    a, b = complex(x), complex(y)
    for exact, rough in [(x + y, a + b), (x - y, a - b), (x * y, a * b), (-x, -a), (x.conjugate(), a.conjugate())]:
        assert abs(complex(exact) - rough) < 1e-9
    assert (x == y) == (abs(a - b) < 1e-12)
    assert x + 2 == 2 + x
    assert 3 * x == x + x + x
    small = x.minimal()
    assert small == x
    assert small.conductor % 4 != 2
    assert hash(small) == hash(x) == hash(x.lifted(4 * x.conductor))


def test_minimal_conductors() -> None:
    z = Cyclotomic.root
    cases = [(z(6), 3), (z(10), 5), (z(12, 3), 4), (z(5) + z(5, 4), 5), (z(8) + z(8, 7), 8), (z(7) * z(7, 6), 1)]
    assert [x.minimal().conductor for x, _ in cases] == [f for _, f in cases]
    assert (z(24) + z(24, 11)).minimal().conductor == 24  # sqrt(-2) + ... needs all of 24
    assert sum((z(9, j) for j in range(1, 9)), start=Cyclotomic.integer(1)) == 0
    assert Cyclotomic.integer(7) == 7
    assert Cyclotomic.integer(7) != 8
    assert z(3) != "z"
    assert hash(Cyclotomic.integer(7)) == hash(7)


def test_text() -> None:
    z = Cyclotomic.root
    cases = {
        "0": z(3) * 0,
        "-5": Cyclotomic.integer(-5),
        "i": z(4),
        "-1+3i": 3 * z(4) - 1,
        "√2": z(8) + z(8, 7),
        "i√2": z(8) + z(8, 3),
        "-i√3": z(3, 2) - z(3),
        "(-1+i√3)/2": z(3),
        "(1-√5)/2": -(z(5) + z(5, 4)),
        "(-1+i√7)/2": z(7) + z(7, 2) + z(7, 4),
        "ζ7+ζ7^6": z(7) + z(7, 6),
        "-ζ7^2-ζ7^5": -(z(7, 2) + z(7, 5)),
        "-2ζ15^8": 2 * z(30),
        "ζ9": z(9),
        "ζ12": z(12),
    }
    assert {text: str(x) for text, x in cases.items()} == {text: text for text in cases}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([3, 4, 5, 7, 8, 12]), st.integers(-6, 6), st.integers(-6, 6))
def test_quadratic_text_evaluates_to_the_number(e: int, a: int, b: int) -> None:
    gauss = {3: [1], 4: [1], 5: [1, 4], 7: [1, 2, 4], 8: [1, 7], 12: [1, 11]}[e]
    x = sum((Cyclotomic.root(e, j) for j in gauss), start=Cyclotomic.integer(0)) * b + a
    form = re.fullmatch(r"\(?(-?\d+(?![\di√]))?(?:([+-]?)(\d*)(i?)(?:√(\d+))?)?\)?(/2)?", str(x))
    assert form is not None, str(x)
    rational, sign, size, imaginary, root, half = form.groups()
    value = complex(int(rational or 0))
    if imaginary or root:
        value += (-1 if sign == "-" else 1) * int(size or 1) * (1j if imaginary else 1) * int(root or 1) ** 0.5
    assert abs(value / (2 if half else 1) - complex(x)) < 1e-9, str(x)


def test_refusals() -> None:
    with pytest.raises(GroupError, match=r"Z\[z_5\] has 4 coefficients, got 2"):
        Cyclotomic(5, (1, 2))
    with pytest.raises(GroupError, match="does not lie in"):
        Cyclotomic.root(5).lifted(6)
