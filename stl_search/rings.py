"""Coefficient rings of bilinear schemes: how each reads, stores, prints and compares its coefficients.

``Z2`` is GF(2), ``Z`` the integers, ``ZT`` the integers with coefficients in {-1, 0, 1} (a set, not a ring: sums
leave it), ``Q`` the rationals, ``R`` and ``C`` the real and complex numbers as finite doubles.
Exact means exact: Z2, ZT, Z and Q are held as Python integers and fractions, never as floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stl_search.errors import FormatError, SchemeError, UsageError

__all__ = ["EXACT", "NAMES", "Ring", "Written", "get", "smallest_exact"]

Coefficient = int | Fraction | float | complex

MAX_DIGITS = 1000  # of a numerator or denominator, and so of what a file can make the arithmetic grow to
_FRACTION = re.compile(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}(/[0-9]{{1,{MAX_DIGITS}}})?")
_TOO_LARGE = 10**MAX_DIGITS


class Written(float):
    """A double with the decimal text that it was read from, which is what exact rings go by.

    >>> get("ZT").contains(get("ZT").parse(Written("1.00000000000000000001")))
    False
    """

    text: str

    def __new__(cls, text: str) -> Written:
        self = super().__new__(cls, text)
        self.text = text
        return self


@dataclass(frozen=True)
class Ring:
    """One coefficient ring: ``name`` as in files, ``exact`` for Z2, ZT, Z and Q, ``characteristic`` 2 or 0.

    >>> get("Q").parse("3/6"), get("ZT").contains(2), get("R").render(0.5)
    (Fraction(1, 2), False, '0.5')
    """

    name: str
    exact: bool
    characteristic: int

    def parse(self, value: Any) -> Coefficient:
        """One JSON value as a coefficient; membership in the ring is *not* checked (see ``contains``).

        Raises FormatError for what is no coefficient at all: a boolean, text that is no ``p/q``, a zero
        denominator, NaN or infinity, more than 1000 digits.
        """
        if isinstance(value, bool) or value is None:
            raise FormatError(f"{value!r} is not a coefficient")
        if self.name == "C":
            parts = value if isinstance(value, list) else [value, 0]
            if len(parts) != 2 or not all(isinstance(p, int | float) and not isinstance(p, bool) for p in parts):
                raise FormatError(f"{value!r:.60} is not a pair [real, imaginary]")
            return complex(_finite(parts[0]), _finite(parts[1]))
        if self.name == "R":
            if not isinstance(value, int | float):
                raise FormatError(f"{value!r:.60} is not a number")
            return _finite(value)
        if isinstance(value, int):
            if abs(value) >= _TOO_LARGE:
                raise FormatError(f"an integer has more than {MAX_DIGITS} digits")
            return value
        if isinstance(value, float):  # kept as the fraction it is, so that membership fails with its place
            return _whole(_exact(value.text) if isinstance(value, Written) else Fraction(_finite(value)))
        if isinstance(value, str):
            if not _FRACTION.fullmatch(value):
                raise FormatError(f"{value!r:.60} is not an integer or a fraction 'p/q'")
            top, _, bottom = value.partition("/")
            if bottom and int(bottom) == 0:
                raise FormatError(f"{value!r:.60} has a zero denominator")
            return _whole(Fraction(int(top), int(bottom or 1)))
        raise FormatError(f"{value!r:.60} is not a coefficient")

    def contains(self, value: Coefficient) -> bool:
        """Whether a parsed coefficient lies in the ring: {0, 1} for Z2, {-1, 0, 1} for ZT, any integer for Z."""
        match self.name:
            case "Z2":
                return isinstance(value, int) and value in (0, 1)
            case "ZT":
                return isinstance(value, int) and value in (-1, 0, 1)
            case "Z":
                return isinstance(value, int)
            case "Q":
                return isinstance(value, int | Fraction)
            case "R":
                return isinstance(value, int | float) and math.isfinite(value)
            case _:
                return isinstance(value, int | float | complex) and _is_finite_complex(complex(value))

    def coerce(self, value: Any) -> Coefficient:
        """Any Python or numpy scalar as a coefficient of this ring.

        Raises SchemeError when it is not in the ring, or has a numerator or denominator of more than 1000 digits.
        """
        raw = value.item() if hasattr(value, "item") else value
        if isinstance(raw, bool):
            raw = int(raw)
        if isinstance(raw, int | Fraction) and max(abs(raw.numerator), raw.denominator) >= _TOO_LARGE:
            raise SchemeError(f"a coefficient has more than {MAX_DIGITS} digits")
        result: Any = raw
        if self.exact:
            if isinstance(raw, float):
                result = int(raw) if math.isfinite(raw) and raw.is_integer() else raw
            elif isinstance(raw, Fraction):
                result = _whole(raw)
            if isinstance(result, float) and self.name == "Q" and math.isfinite(result):
                result = Fraction(result)
        elif self.name == "R" and isinstance(raw, int | Fraction | float):
            result = _double(raw) + 0.0  # -0.0 becomes 0.0
        elif self.name == "C" and isinstance(raw, int | Fraction | float | complex):
            z = raw if isinstance(raw, complex) else complex(_double(raw))
            result = complex(z.real + 0.0, z.imag + 0.0)
        if not isinstance(result, int | Fraction | float | complex) or not self.contains(result):
            raise SchemeError(f"{value!s:.60} is not in {self.name}")
        return result

    def to_json(self, value: Coefficient) -> Any:
        """The JSON value of a coefficient: an integer, a ``"p/q"`` string, a double, or a pair of doubles for C."""
        if self.name == "C":
            z = complex(value)
            return [z.real, z.imag]
        if self.name == "R":
            return float(value)  # type: ignore[arg-type]
        if isinstance(value, Fraction):
            return f"{value.numerator}/{value.denominator}"
        return value

    def render(self, value: Coefficient) -> str:
        """The canonical text of a coefficient, on which content ids rest: equal texts, equal coefficients."""
        if self.name == "C":
            z = complex(value)
            return f"{z.real + 0.0!r},{z.imag + 0.0!r}"
        if self.name == "R":
            return repr(float(value) + 0.0)  # type: ignore[arg-type]
        return str(value)

    def __str__(self) -> str:
        return self.name


def _double(value: int | Fraction | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise SchemeError("a coefficient is beyond the range of a double") from None


def _finite(value: int | float) -> float:
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise FormatError("a coefficient is NaN or infinite")
    return result + 0.0


def _exact(text: str) -> Fraction:
    """The number that a decimal text stands for, whose size is bounded before it is formed."""
    exponent = text.lower().partition("e")[2] or "0"
    if len(text) <= MAX_DIGITS and abs(int(exponent)) <= MAX_DIGITS:
        value = Fraction(text)
        if max(abs(value.numerator), value.denominator) < _TOO_LARGE:
            return value
    raise FormatError(f"{text:.60} has more than {MAX_DIGITS} digits")


def _is_finite_complex(value: complex) -> bool:
    return math.isfinite(value.real) and math.isfinite(value.imag)


def _whole(value: Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value


_RINGS = {
    r.name: r
    for r in (
        Ring("Z2", True, 2),
        Ring("ZT", True, 0),
        Ring("Z", True, 0),
        Ring("Q", True, 0),
        Ring("R", False, 0),
        Ring("C", False, 0),
    )
}
NAMES = tuple(_RINGS)
EXACT = tuple(name for name, ring in _RINGS.items() if ring.exact)


def get(name: str | Ring) -> Ring:
    """The ring of that name; raises UsageError that lists the known ones.

    >>> get("Z").exact
    True
    """
    if isinstance(name, Ring):
        return name
    try:
        return _RINGS[name]
    except (KeyError, TypeError):
        raise UsageError(f"unknown ring {name!r}; known: {', '.join(NAMES)}") from None


def smallest_exact(values: Iterable[int | Fraction]) -> Ring:
    """The smallest of ZT, Z, Q that holds every given integer or fraction.

    >>> smallest_exact([0, 1, -1]).name, smallest_exact([2]).name, smallest_exact([Fraction(1, 2)]).name
    ('ZT', 'Z', 'Q')
    """
    name = "ZT"
    for value in values:
        if isinstance(value, Fraction) and value.denominator != 1:
            return get("Q")
        if not -1 <= value <= 1:
            name = "Z"
    return get(name)
