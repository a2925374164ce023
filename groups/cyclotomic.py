"""Exact numbers in cyclotomic fields: integer combinations of roots of unity, the values of characters.

With z = exp(2 pi i / e), an element of Z[z] is held as its phi(e) integer coefficients on 1, z, ..., z^(phi(e)-1).
That basis makes the representation unique, so equality of arrays is equality of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd, isqrt, lcm

import numpy as np
from numpy.typing import NDArray

from stl_search.groups.group import GroupError, Ints, frozen

__all__ = ["Cyclotomic", "cyclotomic_polynomial", "galois_action", "power_basis", "roots_of_unity"]


@lru_cache(maxsize=1024)
def cyclotomic_polynomial(n: int) -> tuple[int, ...]:
    """Coefficients of the n-th cyclotomic polynomial, the constant term first.

    >>> cyclotomic_polynomial(6), cyclotomic_polynomial(5)
    ((1, -1, 1), (1, 1, 1, 1, 1))
    """
    result = [-1] + [0] * (n - 1) + [1]  # x^n - 1
    for d in range(1, n):
        if n % d == 0:
            divisor = cyclotomic_polynomial(d)
            quotient = [0] * (len(result) - len(divisor) + 1)
            for i in reversed(range(len(quotient))):
                quotient[i] = result[i + len(divisor) - 1]  # divisors are monic
                for j, c in enumerate(divisor):
                    result[i + j] -= quotient[i] * c
            result = quotient
    return tuple(result)


@lru_cache(maxsize=1024)
def power_basis(e: int) -> Ints:
    """(e, phi(e)): row j holds the coefficients of z^j.

    >>> power_basis(4).tolist()
    [[1, 0], [0, 1], [-1, 0], [0, -1]]
    """
    polynomial = np.array(cyclotomic_polynomial(e))
    degree = len(polynomial) - 1
    rows = [np.eye(1, degree, dtype=np.intp)[0]]
    for _ in range(e - 1):
        shifted = np.concatenate([[0], rows[-1]])
        rows.append(shifted[:-1] - shifted[-1] * polynomial[:-1])
    return frozen(rows)


@lru_cache(maxsize=4096)
def galois_action(e: int, j: int) -> Ints:
    """(phi(e), phi(e)): the map z -> z^j (j prime to e) on rows of coefficients; j = -1 is complex conjugation.

    >>> (np.array([2, 3]) @ galois_action(4, -1)).tolist()  # the conjugate of 2 + 3i
    [2, -3]
    """
    powers = power_basis(e)
    return frozen(powers[np.arange(powers.shape[1]) * j % e])


@lru_cache(maxsize=1024)
def roots_of_unity(e: int) -> NDArray[np.complex128]:
    """(e,): exp(2 pi i j / e), exact where cosine and sine are 0, 1/2 or 1, and exactly symmetric.

    >>> roots_of_unity(12).real[[0, 2, 3, 4, 6]].tolist()
    [1.0, 0.5, 0.0, -0.5, -1.0]
    """

    result = np.array([complex(_cosine(j, e), _cosine(e - 4 * j, 4 * e)) for j in range(e)])
    result.setflags(write=False)
    return result


def _cosine(a: int, b: int) -> float:
    """cos(2 pi a / b), folded into the first eighth of the circle."""
    a %= b
    a = min(a, b - a)
    if 4 * a > b:
        return -_cosine(b - 2 * a, 2 * b)
    if 6 * a == b:
        return 0.5
    return float(np.cos(2 * np.pi * a / b) if 8 * a <= b else np.sin(2 * np.pi * (b - 4 * a) / (4 * b)))


@dataclass(frozen=True)
class Cyclotomic:
    """One algebraic integer of Z[z_e]: ``coefficients`` (phi(e),) on 1, z_e, ..., z_e^(phi(e)-1).

    Numbers of different e compare, add and multiply; ``minimal`` gives the smallest e that holds a number.

    >>> z = Cyclotomic.root(5)
    >>> z + z.conjugate(), (z + z.conjugate()) * (z * z + (z * z).conjugate()) == -1
    ((-1+√5)/2, True)
    """

    conductor: int
    coefficients: tuple[int, ...]

    @classmethod
    def root(cls, e: int, power: int = 1) -> Cyclotomic:
        """exp(2 pi i power / e)."""
        return cls(e, tuple(power_basis(e)[power % e].tolist()))

    @classmethod
    def integer(cls, value: int) -> Cyclotomic:
        """An ordinary integer."""
        return cls(1, (int(value),))

    def __post_init__(self) -> None:
        degree = power_basis(self.conductor).shape[1]
        if len(self.coefficients) != degree:
            raise GroupError(
                f"a number of Z[z_{self.conductor}] has {degree} coefficients, got {len(self.coefficients)}"
            )

    def lifted(self, e: int) -> Cyclotomic:
        """The same number in Z[z_e], e a multiple of the conductor."""
        if e % self.conductor:
            raise GroupError(f"Z[z_{self.conductor}] does not lie in Z[z_{e}]")
        rows = power_basis(e)[np.arange(len(self.coefficients)) * (e // self.conductor)]
        return Cyclotomic(e, tuple((np.array(self.coefficients) @ rows).tolist()))

    def minimal(self) -> Cyclotomic:
        """The same number with the smallest possible conductor (never 2 mod 4)."""
        for f in (d for d in range(1, self.conductor) if self.conductor % d == 0 and d % 4 != 2):
            fixing = (j for j in range(1, self.conductor, f) if gcd(j, self.conductor) == 1)
            if all(self.galois(j) == self for j in fixing):
                degree = power_basis(f).shape[1]
                rows = power_basis(self.conductor)[np.arange(degree) * (self.conductor // f)]
                solution = np.linalg.lstsq(rows.T.astype(float), np.array(self.coefficients, dtype=float))[0]
                smaller = Cyclotomic(f, tuple(int(c) for c in np.rint(solution)))
                assert smaller.lifted(self.conductor).coefficients == self.coefficients
                return smaller
        return self

    def galois(self, j: int) -> Cyclotomic:
        """The image under z -> z^j, j prime to the conductor."""
        row = np.array(self.coefficients) @ galois_action(self.conductor, j)
        return Cyclotomic(self.conductor, tuple(row.tolist()))

    def conjugate(self) -> Cyclotomic:
        """The complex conjugate."""
        return self.galois(-1)

    def _with(self, other: Cyclotomic | int) -> tuple[Cyclotomic, Cyclotomic]:
        right = Cyclotomic.integer(other) if isinstance(other, int) else other
        e = lcm(self.conductor, right.conductor)
        return self.lifted(e), right.lifted(e)

    def __add__(self, other: Cyclotomic | int) -> Cyclotomic:
        a, b = self._with(other)
        return Cyclotomic(a.conductor, tuple(x + y for x, y in zip(a.coefficients, b.coefficients, strict=True)))

    def __neg__(self) -> Cyclotomic:
        return Cyclotomic(self.conductor, tuple(-x for x in self.coefficients))

    def __sub__(self, other: Cyclotomic | int) -> Cyclotomic:
        return self + (-other)

    def __mul__(self, other: Cyclotomic | int) -> Cyclotomic:
        a, b = self._with(other)
        e = a.conductor
        long = np.convolve(np.array(a.coefficients), np.array(b.coefficients))
        return Cyclotomic(e, tuple((long @ power_basis(e)[np.arange(len(long)) % e]).tolist()))

    __radd__ = __add__
    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int | Cyclotomic):
            a, b = self._with(other)
            return a.coefficients == b.coefficients
        return NotImplemented

    def __hash__(self) -> int:
        small = self.minimal()
        return hash(small.coefficients[0] if small.conductor == 1 else (small.conductor, small.coefficients))

    def __complex__(self) -> complex:
        return complex(np.array(self.coefficients) @ roots_of_unity(self.conductor)[: len(self.coefficients)])

    def __repr__(self) -> str:
        """Integers plainly, quadratic numbers with a root, others as sums of roots of unity ("ζ7+ζ7^6")."""
        small = self.minimal()
        e = small.conductor
        if e == 1:
            return str(small.coefficients[0])
        conjugates = {small.galois(j).coefficients for j in range(1, e) if gcd(j, e) == 1}
        if len(conjugates) == 2:
            return _quadratic(small, Cyclotomic(e, (conjugates - {small.coefficients}).pop()))
        return _sum_of_roots(small)


def _quadratic(number: Cyclotomic, other: Cyclotomic) -> str:
    """(a + b sqrt(d)) / c for a number with the single further conjugate ``other``."""
    trace = (number + other).minimal().coefficients[0]
    square = ((number - other) * (number - other)).minimal().coefficients[0]  # (number - other)^2 = b^2 d
    value = complex(number) - complex(other)
    sign = -1 if (value.real if square > 0 else value.imag) < 0 else 1
    b = next(b for b in range(isqrt(abs(square)), 0, -1) if square % (b * b) == 0)
    d = square // (b * b)
    half = 2
    if trace % 2 == 0:  # then b is even too: trace^2 - b^2 d is a multiple of 4, and d has no square factor
        trace, b, half = trace // 2, b // 2, 1
    root = ("i" if d < 0 else "") + (f"√{abs(d)}" if abs(d) != 1 else "")
    text = f"{'-' if sign < 0 else '+' if trace else ''}{b if b != 1 else ''}{root}"
    text = f"{trace}{text}" if trace else text
    return text if half == 1 else f"({text})/2"


def _sum_of_roots(number: Cyclotomic) -> str:
    """A multiple of one root of unity or a sum of two where possible, else a sum with few terms."""
    e = number.conductor
    roots = {tuple((sign * row).tolist()): (sign, k) for sign in (-1, 1) for k, row in enumerate(power_basis(e))}
    content = gcd(*number.coefficients)
    if tuple(c // content for c in number.coefficients) in roots:
        sign, k = roots[tuple(c // content for c in number.coefficients)]
        return _terms(e, {k: sign * content})
    for row, (sign, k) in roots.items():
        rest = tuple(c - r for c, r in zip(number.coefficients, row, strict=True))
        if rest in roots:
            other_sign, other = roots[rest]
            return _terms(e, {k: sign, other: other_sign})
    terms = list(number.coefficients)
    if cyclotomic_polynomial(e) == (1,) * e:  # e prime: 1 + z + ... = 0 shortens the sum
        terms.append(0)
        middle = sorted(terms)[len(terms) // 2]
        terms = [c - middle for c in terms]
    return _terms(e, dict(enumerate(terms)))


def _terms(e: int, coefficients: dict[int, int]) -> str:
    text = ""
    for power, c in sorted(coefficients.items()):
        if c:
            root = (f"ζ{e}" + (f"^{power}" if power != 1 else "")) if power else ""
            size = str(abs(c)) if abs(c) != 1 or not root else ""
            text += ("-" if c < 0 else "+" if text else "") + size + root
    return text
