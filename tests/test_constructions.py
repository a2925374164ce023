"""The named constructions are exact for every size tried, with the rank their theorem states."""

import pytest

from stl_search.errors import UsageError
from stl_search.search.constructions import simplex
from stl_search.transform import cyclic
from stl_search.verify import verify


@pytest.mark.parametrize("n", range(1, 7))
def test_simplex_is_exact_and_ternary_with_the_stated_rank(n: int) -> None:
    scheme = simplex(n)
    assert scheme.shape == (n, n, n)
    assert scheme.rank == n**3 - n + 1
    assert "ZT" in verify(scheme).rings


def test_simplex_is_invariant_under_rotation() -> None:
    assert cyclic(simplex(3)) == simplex(3)


def test_simplex_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        simplex(0)
