"""Fewer additions: moves keep schemes exact, the compiled count is the plain one, known marks are reached."""

from __future__ import annotations

import numpy as np
import pytest

from stl_search import additions, score
from stl_search.additions import _fewer_nonzeros, _fewer_shared, fewest_additions, improved, shared
from stl_search.errors import SchemeError
from stl_search.programs import _eliminate, _rows, scheme_programs, tie_break_weight
from stl_search.scheme import Scheme
from stl_search.search.problem import Problem
from stl_search.search.worker import _sparser
from stl_search.testing import STRASSEN
from stl_search.transform import change_basis, classical, extend, kron, sum_n, to_ring
from stl_search.verify import verify


def lines(scheme: Scheme) -> tuple[int, ...]:
    """Ranks of the factor matrices, sorted: a change of basis leaves them, a flip seldom does."""
    return tuple(sorted(int(np.linalg.matrix_rank(x)) for f in scheme.factors for x in f))


def test_the_compiled_elimination_counts_what_the_plain_one_counts() -> None:
    rng = np.random.default_rng(7)
    for _ in range(120):
        table = rng.integers(-1, 2, (rng.integers(1, 14), rng.integers(1, 10)))
        for order in range(3):
            assert shared(table, order) == _eliminate(_rows(table)[0], table.shape[1], order, 1).additions
    big = rng.integers(-1, 2, (40, 12))
    assert shared(big) == _eliminate(_rows(big)[0], 12, 0, 1).additions


def walked(start: Scheme, steps: int, flips: bool, share: bool) -> Scheme:
    """Where a hot walk of that many proposals ends, best or not: there every move leaves its trace."""
    now = tuple(np.array(f, dtype=np.int8) for f in start.factors)
    best = tuple(f.copy() for f in now)
    state = np.array([12345], dtype=np.uint64)
    if share:
        _fewer_shared(*now, best, steps, 30.0, 30.0, flips, state, 0, tie_break_weight(0))
    else:
        _fewer_nonzeros(*now, best, steps, 30.0, 30.0, flips, state)
    return Scheme(start.shape, "ZT", *now)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (2, 3, 4), (4, 1, 3), (3, 3, 2)])
def test_moves_keep_schemes_exact_ternary_and_of_their_rank(shape: tuple[int, int, int], share: bool) -> None:
    """Rectangular shapes, so that no axis can stand for another; without flips the orbit is kept as well."""
    start = extend(STRASSEN, shape) if min(shape) > 1 else classical(shape)
    for flips in (False, True):
        found = walked(start, 3000, flips, share)
        assert verify(found).kind == "exact"
        assert found.rank == start.rank
        assert (found == start) == (shape == (1, 1, 1))
        assert flips or lines(found) == lines(start)
    assert min(shape) == 1 or lines(found) != lines(start)


def test_a_result_is_never_worse_and_depends_on_the_generator_alone() -> None:
    start = sum_n(STRASSEN, STRASSEN)
    twice = [improved(start, np.random.default_rng(5), 3000) for _ in range(2)]
    assert twice[0].id == twice[1].id
    assert score.additions(twice[0]) <= score.additions(start)
    cold = improved(start, np.random.default_rng(5), 0)
    assert cold == start


def test_few_nonzeros_are_found_again_after_a_change_of_basis() -> None:
    """Strassen's 18 additions out of a basis in which there are more, by changes of basis alone."""
    unit, shear = np.eye(2, dtype=int), np.array([[1, 0], [1, 1]])
    moved = change_basis(STRASSEN, shear, unit, unit)
    assert moved.ring.name == "ZT"
    assert score.additions(moved) > 18
    assert score.additions(improved(moved, np.random.default_rng(0), 5000, flips=False)) == 18


def test_winograds_15_additions_are_reached_from_strassens_scheme() -> None:
    """15 is the least with 7 products (Probert, "On the additive complexity of matrix multiplication", SIAM J. Comput.
    5 (1976); Bshouty, Inf. Process. Lett. 56 (1995)) as long as operands come in the standard basis."""
    found = fewest_additions(STRASSEN, np.random.default_rng(1), rounds=1, steps=20_000)
    assert (found.before.additions, found.after.additions) == (18, 15)
    assert scheme_programs(found.scheme).additions == 15
    assert verify(found.scheme).rings == verify(STRASSEN).rings
    again = fewest_additions(found.scheme, np.random.default_rng(2), rounds=2, steps=5_000)
    assert again.after.additions == 15
    basis = fewest_additions(STRASSEN, np.random.default_rng(1), rounds=2, steps=20_000, flips=False)
    assert basis.after.additions == 15  # all schemes of rank 7 are one orbit, and this one is an integer orbit away


def test_strassen_squared_loses_additions() -> None:
    """<4,4,4> of rank 49: two recursive levels of Winograd's form need 4 * 15 + 7 * 15 = 165 additions; 159 are known
    to be found."""
    found = fewest_additions(kron(STRASSEN, STRASSEN), np.random.default_rng(4), rounds=1, steps=60_000)
    assert found.after.additions <= 165
    assert verify(found.scheme).kind == "exact"


def test_what_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SchemeError, match="only ternary schemes"):
        improved(to_ring(STRASSEN, "Z2"), rng, 10)
    broken = Scheme((2, 2, 2), "ZT", *(f[:6] for f in STRASSEN.factors))
    with pytest.raises(SchemeError, match="is not exact"):
        improved(broken, rng, 10)


def test_answers_of_a_search_are_made_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ternary ones in any way, or in their orbit where a symmetry was asked for; over Z2 too; others stay."""
    allowed = []
    monkeypatch.setattr(additions, "improved", lambda *a, flips: allowed.append(flips) or improved(*a, flips=flips))
    moved = change_basis(
        kron(STRASSEN, classical((1, 1, 2))), np.array([[1, 0], [1, 1]]), np.eye(2, dtype=int), np.eye(4, dtype=int)
    )
    for symmetry in ("", "cyclic"):
        problem = Problem((2, 2, 4), 14, "ZT", symmetry=symmetry)
        found = _sparser(problem, moved, np.random.default_rng(0))
        assert verify(found).kind == "exact"
        assert score.additions(found) < score.additions(moved)
        assert found == _sparser(problem, moved, np.random.default_rng(0))
    assert allowed == [True, True, False, False]
    modular = to_ring(moved, "Z2")
    found = _sparser(Problem((2, 2, 4), 14, "Z2"), modular, np.random.default_rng(0))
    assert verify(found).rings == ("Z2",)
    assert score.additions(found) < score.additions(modular)
    whole = Scheme(moved.shape, "Z", 2 * moved.u.astype(int), moved.v, moved.w)
    assert _sparser(Problem((2, 2, 4), 14, "Z"), whole, np.random.default_rng(0)) is whole
