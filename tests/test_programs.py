"""Straight-line programs: they are the matrix they were made of, and the transposition principle holds."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stl_search import score
from stl_search.errors import SchemeError
from stl_search.programs import Program, additions_shared, linear_program, scheme_programs, tie_break
from stl_search.scheme import Scheme
from stl_search.testing import STRASSEN
from stl_search.transform import classical, cyclic, kron, transpose

# Winograd's form of Strassen's scheme (Knuth, "The Art of Computer Programming", vol. 2, 4.6.4, exercise 41 and text)
WINOGRAD = Scheme(
    (2, 2, 2),
    "ZT",
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, -1, -1], [0, 0, 0, 1], [0, 0, 1, 1], [-1, 0, 1, 1], [1, 0, -1, 0]],
    [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, -1, -1, 1], [-1, 1, 0, 0], [1, -1, 0, 1], [0, -1, 0, 1]],
    [[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]],
)


@st.composite
def matrices(draw: st.DrawFn, entries: st.SearchStrategy[Any], rows: int = 7, columns: int = 6) -> np.ndarray[Any, Any]:
    r, c = draw(st.integers(0, rows)), draw(st.integers(1, columns))
    table = np.empty((r, c), dtype=object)
    table[...] = np.array(draw(st.lists(entries, min_size=r * c, max_size=r * c)), dtype=object).reshape(r, c)
    return table


TERNARY = st.integers(-1, 1)
SMALL = st.integers(-3, 3)
RATIONAL = st.fractions(-2, 2, max_denominator=3)


def naive(table: np.ndarray[Any, Any]) -> int:
    return sum(max(0, sum(bool(x) for x in row) - 1) for row in table)


@given(st.one_of(matrices(TERNARY), matrices(SMALL), matrices(RATIONAL)))
@settings(max_examples=150, deadline=None)
def test_a_program_is_its_matrix_and_never_longer_than_row_by_row(table: np.ndarray[Any, Any]) -> None:
    program = linear_program(table, 2)
    assert (program.matrix() == table).all()
    assert program.additions <= naive(table)
    assert all(i < program.inputs + t and j < program.inputs + t for t, (_, i, _, j) in enumerate(program.steps))
    x = np.array([[3, -1], [5, 2], [-7, 4], [11, 0], [2, 2], [1, 9]], dtype=object)[: table.shape[1]]
    assert (program.evaluate(x) == table @ x).all()


@given(st.one_of(matrices(TERNARY), matrices(RATIONAL)))
@settings(max_examples=100, deadline=None)
def test_transposition_principle(table: np.ndarray[Any, Any]) -> None:
    """additions(transpose) = additions + rows - columns for maps without zero rows and columns."""
    table = table[(table != 0).any(axis=1)]
    table = table[:, (table != 0).any(axis=0)]
    if not table.size:
        return
    program = linear_program(table, 1)
    turned = program.transposed()
    assert (turned.matrix() == table.T).all()
    assert turned.additions == program.additions + len(table) - table.shape[1]
    assert (turned.transposed().matrix() == table).all()


def test_transposing_with_zero_rows_and_unused_inputs() -> None:
    table = np.array([[0, 0, 0], [1, 0, 1], [1, 0, 1], [2, 0, -1]], dtype=object)
    turned = linear_program(table).transposed()
    assert (turned.matrix() == table.T).all()
    assert turned.outputs[1] == (0, 0)
    doubled = Program(1, ((1, 0, -1, 0),), ((1, 1),))  # x - x
    assert doubled.transposed().matrix().tolist() == [[0]]
    assert doubled.transposed().additions == 0  # equal nodes are not added to one another


def test_signs_and_scales_are_shared() -> None:
    """x + y serves -x - y and 2x + 2y; x - y is another sum; x + 2y is one more."""
    assert linear_program([[1, 1, 0], [-1, -1, 1], [2, 2, 3]]).additions == 3
    assert linear_program([[1, 1], [1, -1], [-1, -1], [-1, 1]]).additions == 2
    halves = linear_program([[Fraction(1, 2), 1, 0], [1, 2, 1]])
    assert (halves.additions, halves.scalings) == (2, 2)  # s = x + 2y by one scaling, s/2 by another
    assert linear_program([[1, -1], [-1, 1], [0, 0]]).scalings == 0


def optimum(table: np.ndarray[Any, Any], limit: int) -> int:
    """The fewest additions and subtractions for a ternary matrix, by trying all programs; for tiny maps."""
    wanted = {max(tuple(row), tuple(-row)) for row in table if np.count_nonzero(row) > 1}

    def search(nodes: list[tuple[int, ...]], left: int) -> bool:
        missing = wanted - {max(n, tuple(-x for x in n)) for n in nodes}
        if len(missing) > left:
            return False
        if not missing:
            return True
        for a, b in itertools.combinations(nodes, 2):
            for sign in (1, -1):
                new = tuple(x + sign * y for x, y in zip(a, b, strict=True))
                if new not in nodes and search([*nodes, new], left - 1):
                    return True
        return False

    units = [tuple(int(i == j) for j in range(table.shape[1])) for i in range(table.shape[1])]
    return next(n for n in range(limit + 1) if search(units, n))


def test_greedy_against_the_optimum_of_small_maps() -> None:
    rng = np.random.default_rng(5)
    gaps = []
    for _ in range(40):
        table = rng.integers(-1, 2, (3, 3))
        found = linear_program(table).additions
        best = optimum(table, found)
        assert best <= found
        gaps.append(found - best)
    assert sum(gap == 0 for gap in gaps) >= 34  # greedy elimination never cancels, which a few maps would need
    assert max(gaps) <= 1


@pytest.mark.parametrize(("scheme", "plain", "shared"), [(STRASSEN, 18, 18), (WINOGRAD, 24, 15)], ids=["1969", "1971"])
def test_strassen_and_winograd(scheme: Scheme, plain: int, shared: int) -> None:
    """18 and 15 additions: Strassen, Numer. Math. 13 (1969); Winograd, Linear Algebra Appl. 4 (1971)."""
    assert score.additions(scheme) == plain
    assert scheme_programs(scheme).additions == additions_shared(scheme) == shared
    for turned in (cyclic(scheme), transpose(scheme)):  # 2 x 2: the encoders and the decoder are interchangeable
        assert additions_shared(turned) == shared


def test_the_programs_multiply_matrices() -> None:
    """Encode, multiply, decode: A (2, 3) by B (3, 4), rectangular, in integers."""
    scheme = classical((2, 3, 4))
    programs = scheme_programs(kron(classical((1, 3, 2)), classical((2, 1, 2))))
    a, b = np.arange(6).reshape(2, 3) - 2, np.arange(12).reshape(3, 4) ** 2 - 30
    c = programs.w.evaluate(programs.u.evaluate(a.ravel()) * programs.v.evaluate(b.ravel()))
    assert (c.reshape(2, 4) == a @ b).all()
    assert programs.additions == score.additions(scheme) == 16
    w = scheme_programs(WINOGRAD)
    x, y = np.array([[1, 2], [3, 5]]), np.array([[-4, 7], [6, 1]])
    assert (w.w.evaluate(w.u.evaluate(x.ravel()) * w.v.evaluate(y.ravel())) == (x @ y).ravel()).all()


def test_what_is_not_counted() -> None:
    with pytest.raises(SchemeError, match="not over R"):
        scheme_programs(Scheme((1, 1, 1), "R", [[0.5]], [[1]], [[1]]))
    assert additions_shared(Scheme((1, 1, 1), "R", [[0.5]], [[1]], [[1]])) is None
    with pytest.raises(SchemeError, match="integers or fractions"):
        linear_program([[0.5, 1.0]])
    with pytest.raises(SchemeError, match="2 inputs, not 3"):
        Program(2, (), ()).evaluate([1, 2, 3])
    dense = Scheme((16, 4, 4), "ZT", *(np.ones((300, n)) for n in (64, 16, 64)))
    assert additions_shared(dense) is None  # too much work
    assert additions_shared(Scheme((1, 1, 1), "Z", np.zeros((0, 1)), np.zeros((0, 1)), np.zeros((0, 1)))) == 0


def test_tie_breaks_are_spread_over_the_unit_interval() -> None:
    values = [tie_break(order, (i, j, 1, sign)) for order in range(4) for i, j in ((0, 1), (7, 9)) for sign in (1, -1)]
    assert len(set(values)) == len(values)
    assert all(0 <= x < 1 for x in values)
    many = [tie_break(0, (i, j, p, q)) for i in range(9) for j in range(9) for p in (1, 2) for q in (1, -1, 3)]
    assert len(set(many)) == len(many)
    assert 0.4 < np.mean(many) < 0.6
