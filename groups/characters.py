"""Character tables, exactly: the algorithm of Burnside and Dixon over a prime field, lifted to cyclotomic integers.

The sum of a class acts on the centre of the group algebra; the common eigenvectors of all class sums are the
characters, up to scaling. Over a field of p elements with p = 1 mod e (e the exponent of the group) the eigenvalues
are found exactly, and a character value, a sum of at most n^(1/2) roots of unity, is known from its residues [1].
Instead of splitting spaces class by class, one random combination of all class sums is used, whose eigenvalues are
different for a suitable combination; then one Krylov sequence gives all eigenvectors.

[1] J. D. Dixon, High speed computation of group characters, Numer. Math. 10 (1967), 446-450.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd, isqrt

import numpy as np
from numpy.typing import NDArray

from stl_search.errors import BudgetError
from stl_search.groups.cyclotomic import Cyclotomic, galois_action, power_basis, roots_of_unity
from stl_search.groups.group import Group, Ints, frozen
from stl_search.groups.subgroups import primes_of

__all__ = ["MAX_CLASSES", "CharacterTable", "character_table", "class_constants"]

_DRAWS = 200  # a draw separates all characters with a chance of about 7 in 8 or more
MAX_CLASSES = 256  # more would need a table of hundreds of megabytes


@dataclass(frozen=True, eq=False)
class CharacterTable:
    """The k irreducible characters of a group on its k classes, exactly.

    ``values`` (k, k, phi(e)): character i on class j is the cyclotomic integer with these coefficients (see
    cyclotomic.py), e = ``conductor`` the exponent of the group. Columns follow ``group.classes``; the first row is the
    trivial character; rows go by degree, then real characters before complex ones, these in conjugate pairs. Characters
    of degree 1 are counted through like digits: natural order for C_n, Sylvester's for C_2^k.
    ``degrees`` (k,), ``indicators`` (k,) the Frobenius-Schur indicators 1, 0, -1 (real, complex, quaternionic),
    ``conjugates`` (k,) the row of the complex conjugate.

    >>> from stl_search.groups.named import quaternion
    >>> table = character_table(quaternion())
    >>> table.degrees.tolist(), table.indicators.tolist(), table[4]
    ([1, 1, 1, 1, 2], [1, 1, 1, 1, -1], (2, -2, 0, 0, 0))
    """

    group: Group
    conductor: int
    values: Ints
    degrees: Ints
    indicators: Ints
    conjugates: Ints

    def __len__(self) -> int:
        return len(self.values)

    def value(self, character: int, column: int) -> Cyclotomic:
        """One entry as a number."""
        return Cyclotomic(self.conductor, tuple(self.values[character, column].tolist()))

    def __getitem__(self, character: int) -> tuple[Cyclotomic, ...]:
        """One row as numbers."""
        return tuple(self.value(character, j) for j in range(len(self)))

    @cached_property
    def complex_values(self) -> NDArray[np.complex128]:
        """(k, k): the table in floating point."""
        result: NDArray[np.complex128] = self.values @ roots_of_unity(self.conductor)[: self.values.shape[2]]
        result.setflags(write=False)
        return result

    def gram(self) -> Ints:
        """(k, k, phi(e)): sum over the group of chi_i(g) conj(chi_j(g)), exactly; n times the identity matrix."""
        k, _, degree = self.values.shape
        conjugated = self.values @ galois_action(self.conductor, -1)
        weighted = self.values * self.group.class_sizes[None, :, None]
        bound = k * degree * int(np.abs(weighted).max()) * int(np.abs(conjugated).max())
        if bound >= 2**53:
            raise BudgetError(f"the inner products of the characters of {self.group!r} may exceed 2^53")
        right = conjugated.transpose(1, 0, 2).reshape(k, k * degree).astype(np.float64)  # integers below 2^53: exact
        total = np.zeros((k, k, 2 * degree - 1))
        for a in range(degree):
            total[:, :, a : a + degree] += (weighted[:, :, a].astype(np.float64) @ right).reshape(k, k, degree)
        powers = power_basis(self.conductor)[np.arange(2 * degree - 1) % self.conductor]
        result: Ints = total.astype(np.intp) @ powers
        return result

    def is_orthogonal(self) -> bool:
        """Whether rows are orthogonal and of norm n, exactly (columns then are so too: the table is square).

        Proved modulo one prime p = 1 mod e. The deviation a of an inner product from n or 0 lies in Z[z_e], and none
        of its conjugates exceeds n (b^2 + 1) in absolute value, b the largest sum of absolute coefficients of a value.
        If a vanishes modulo p for each of the phi(e) ways to map z_e to the prime field, then p divides a, and a != 0
        would have a norm of at least p^phi(e): impossible for p > n (b^2 + 1). ``gram`` computes the same in full.
        """
        k, e, n = len(self), self.conductor, self.group.order
        prime = _prime(e, n * (int(np.abs(self.values).sum(axis=2).max()) ** 2 + 1))
        if prime**2 * max(self.values.shape) >= 2**63:
            raise BudgetError(f"the character values of {self.group!r} are too large to be checked in 64 bits")
        z = _primitive_root(e, prime)
        weights = self.group.class_sizes % prime
        for j in (j for j in range(1, e + 1) if gcd(j, e) == 1):
            powers = np.array([pow(z, j * i, prime) for i in range(self.values.shape[2])])
            inverses = np.array([pow(z, -j * i, prime) for i in range(self.values.shape[2])])
            plain = self.values % prime @ powers % prime
            conjugated = self.values % prime @ inverses % prime
            gram = plain * weights % prime @ conjugated.T % prime
            if not np.array_equal(gram, n % prime * np.eye(k, dtype=np.intp)):
                return False
        return True

    def kernel(self, character: int) -> tuple[int, ...]:
        """The normal subgroup on which a character equals its degree, sorted."""
        trivial = (self.values[character] == self.values[character, 0]).all(axis=1)
        return tuple(int(a) for a in np.flatnonzero(trivial[self.group.class_of]))

    def class_names(self) -> tuple[str, ...]:
        """The classes as the ATLAS names them: order of the elements and a letter, such as "2A"."""
        texts: list[str] = []
        for members in self.group.classes:
            order = int(self.group.element_orders[members[0]])
            index = sum(t.startswith(str(order)) and not t[len(str(order))].isdigit() for t in texts)
            letters = chr(ord("A") + index % 26)
            texts.append(f"{order}{letters}{index // 26 if index >= 26 else ''}")
        return tuple(texts)

    def format(self) -> str:
        """The table as text, with class names and sizes; the last column shows the Frobenius-Schur indicators.

        >>> from stl_search.groups.named import symmetric
        >>> print(character_table(symmetric(3)).format())
            1A  2A  3A
             1   3   2
        X1   1   1   1  +
        X2   1  -1   1  +
        X3   2   0  -1  +
        """
        rows = [["", *self.class_names(), ""], ["", *map(str, self.group.class_sizes), ""]]
        for i, indicator in enumerate(self.indicators.tolist()):
            rows.append([f"X{i + 1}", *map(str, self[i]), {1: "+", 0: "o", -1: "-"}[indicator]])
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def class_constants(group: Group) -> Ints:
    """(k, k, k): a[r, s, t] = number of pairs (x, y), x in class r and y in class s, with xy = one element of class t.

    >>> from stl_search.groups.named import symmetric
    >>> class_constants(symmetric(3))[1].tolist()  # the sum of the transpositions times the class sums
    [[0, 1, 0], [3, 0, 3], [0, 2, 0]]
    """
    k = len(group.classes)
    leaders = [c[0] for c in group.classes]
    partner = group.class_of[group.table[group.inverse[:, None], leaders]]  # the class of y = x^-1 z_t
    code = (group.class_of[:, None] * k + partner) * k + np.arange(k)
    return frozen(np.bincount(code.ravel(), minlength=k**3).reshape(k, k, k))


@lru_cache(maxsize=512)
def character_table(group: Group) -> CharacterTable:
    """The character table of a group with at most MAX_CLASSES classes (else BudgetError).

    Exact: the rows are proved orthogonal over Z[z_e] before the table is returned.

    >>> from stl_search.groups.named import alternating
    >>> character_table(alternating(5))[1]
    (3, -1, 0, (1-√5)/2, (1+√5)/2)
    """
    k = len(group.classes)
    if k > MAX_CLASSES:
        raise BudgetError(f"{group!r} has {k} classes; character tables end at {MAX_CLASSES}")
    prime = _dixon_prime(group)
    omega = _central_characters(group, prime)
    sizes = group.class_sizes.astype(np.int64)
    inverses = group.class_power(-1)
    reciprocal_sizes = np.array([pow(int(s), -1, prime) for s in sizes])
    # n / chi(1)^2 = sum over classes of omega(C) omega(C^-1) / |C|, omega(C) = |C| chi(C) / chi(1).
    norms = (omega * omega[:, inverses] % prime * reciprocal_sizes % prime).sum(axis=1) % prime
    by_square = {d * d % prime: d for d in range(1, isqrt(group.order) + 1)}
    degrees = np.array([by_square[group.order * pow(int(s), -1, prime) % prime] for s in norms])
    residues = degrees[:, None] * omega % prime * reciprocal_sizes % prime
    values = _lift(group, residues, prime)
    return _sorted_table(group, values, degrees)


def _dixon_prime(group: Group) -> int:
    """A prime p = 1 mod e with p > 2 n^(1/2), so large that k random residues mostly differ (k classes)."""
    return _prime(group.exponent, max(2 * isqrt(group.order) + 2, 4 * len(group.classes) ** 2, 1024))


def _prime(e: int, above: int) -> int:
    """The least prime > ``above`` that is 1 mod e."""
    prime = e * (above // e + 1) + 1
    while primes_of(prime) != [prime]:
        prime += e
    return prime


def _central_characters(group: Group, prime: int) -> NDArray[np.int64]:
    """(k, k) residues: row i is omega_i on the classes, omega(C) = |C| chi(C) / chi(1).

    They are the common right eigenvectors, normalised to omega(1) = 1, of the matrices of the class sums.
    """
    k = len(group.classes)
    leaders = [c[0] for c in group.classes]
    rows = group.class_of[group.table[group.inverse[:, None], leaders]]  # x, t -> class s of x^-1 z_t
    code = rows * k + np.arange(k)
    rng = np.random.default_rng(0)  # the result does not depend on what is drawn
    for _ in range(_DRAWS):
        weights = rng.integers(prime, size=k)[group.class_of]
        matrix = np.bincount(code.ravel(), np.repeat(weights, k).astype(np.float64), k * k)  # sums below 2^53: exact
        matrix = matrix.astype(np.int64).reshape(k, k) % prime
        krylov = [rng.integers(prime, size=k)]
        for _ in range(k):
            krylov.append(matrix @ krylov[-1] % prime)
        polynomial = _solve(np.array(krylov[:k]).T, -krylov[k] % prime, prime)
        if polynomial is None:
            continue
        polynomial = np.append(polynomial, 1)
        roots = _roots(polynomial, prime)
        if len(roots) < k:
            continue
        # (f / (x - root))(matrix) maps the start to an eigenvector; its coefficients by Horner's scheme.
        quotients = np.zeros((k, k), dtype=np.int64)
        quotients[:, k - 1] = 1
        for j in range(k - 1, 0, -1):
            quotients[:, j - 1] = (polynomial[j] + roots * quotients[:, j]) % prime
        vectors = quotients @ np.array(krylov[:k]) % prime
        scale = np.array([pow(int(v), -1, prime) for v in vectors[:, 0]])
        return np.asarray(vectors * scale[:, None] % prime)
    raise AssertionError(f"no combination of class sums separates the characters of {group!r}")


def _solve(matrix: NDArray[np.int64], right: NDArray[np.int64], prime: int) -> NDArray[np.int64] | None:
    """The solution x of matrix x = right modulo a prime, or None for a singular matrix."""
    k = len(matrix)
    work = np.concatenate([matrix, right[:, None]], axis=1)
    for column in range(k):
        pivots = np.flatnonzero(work[column:, column])
        if len(pivots) == 0:
            return None
        work[[column, column + pivots[0]]] = work[[column + pivots[0], column]]
        work[column] = work[column] * pow(int(work[column, column]), -1, prime) % prime
        factors = work[:, column].copy()
        factors[column] = 0
        work = (work - factors[:, None] * work[column]) % prime
    return work[:, k]


def _roots(polynomial: NDArray[np.int64], prime: int) -> NDArray[np.int64]:
    """All roots modulo a prime, by trying every residue."""
    points = np.arange(prime)
    result = np.zeros(prime, dtype=np.int64)
    for c in polynomial[::-1]:
        result = (result * points + c) % prime
    return np.flatnonzero(result == 0)


def _primitive_root(e: int, prime: int) -> int:
    """An element of order e modulo a prime that is 1 mod e."""
    for g in range(1, prime):
        root = pow(g, (prime - 1) // e, prime)
        if all(pow(root, e // q, prime) != 1 for q in primes_of(e)):
            return root
    raise AssertionError("the multiplicative group of a prime field is cyclic")


def _lift(group: Group, residues: NDArray[np.int64], prime: int) -> Ints:
    """(k, k, phi(e)): values from residues, through the multiplicity of each eigenvalue of each element.

    On an element g of order m, chi(g) = sum_j c_j z_m^j, where c_j = (1/m) sum_i chi(g^i) z_m^(-ij) is an integer
    between 0 and chi(1) < p / 2.
    """
    e = group.exponent
    z = _primitive_root(e, prime)
    powers_of_z = np.array([pow(z, j, prime) for j in range(e)])
    basis = power_basis(e)
    powers = np.array([group.class_power(i) for i in range(e)])
    values = np.zeros((*residues.shape, basis.shape[1]), dtype=np.intp)
    for column, members in enumerate(group.classes):
        m = int(group.element_orders[members[0]])
        exponents = np.arange(m) * (e // m)
        transform = powers_of_z[-np.outer(np.arange(m), exponents) % e] * pow(m, -1, prime) % prime
        multiplicities = residues[:, powers[:m, column]] @ transform % prime
        values[:, column] = multiplicities @ basis[exponents]
    return values


def _sorted_table(group: Group, values: Ints, degrees: Ints) -> CharacterTable:
    conjugated = values @ galois_action(group.exponent, -1)
    squares = group.class_power(2)
    indicators = (values[:, squares] * group.class_sizes[None, :, None]).sum(axis=1)
    assert not indicators[:, 1:].any()
    assert not (indicators[:, 0] % group.order).any()
    indicator = indicators[:, 0] // group.order
    exponent = {row.tobytes(): j for j, row in enumerate(power_basis(group.exponent))}
    columns = group.class_of[list(reversed(group.generators))]

    def word(row: Ints) -> tuple[int, ...]:
        """What orders characters of one degree: exponents on the generators for degree 1, else minus the values."""
        if degrees_of[row.tobytes()] == 1:
            return tuple(exponent[v.tobytes()] for v in np.ascontiguousarray(row[columns]))
        return tuple((-row).ravel().tolist())

    degrees_of = {v.tobytes(): int(d) for v, d in zip(values, degrees, strict=True)}

    def key(i: int) -> tuple[object, ...]:
        mine, other = word(values[i]), word(np.ascontiguousarray(conjugated[i]))
        return int(degrees[i]), indicator[i] == 0, -int(indicator[i]), min(mine, other), mine

    order = sorted(range(len(values)), key=key)
    values = values[order]
    rows = {v.tobytes(): i for i, v in enumerate(values)}
    conjugates = [rows[v.tobytes()] for v in np.ascontiguousarray(conjugated[order])]
    table = CharacterTable(
        group, group.exponent, frozen(values), frozen(degrees[order]), frozen(indicator[order]), frozen(conjugates)
    )
    if not table.is_orthogonal():
        raise AssertionError(f"the characters of {group!r} are not orthogonal: this is a bug")
    return table
