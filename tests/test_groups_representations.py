"""Real representations, the decomposition of R[G], and the Fourier transform, for every group of order <= 63."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from stl_search.groups import (
    Group,
    GroupError,
    all_groups,
    alternating,
    character_table,
    cyclic,
    dicyclic,
    dihedral,
    division_algebra,
    elementary_abelian,
    fourier_transform,
    get,
    projective_special_linear,
    quaternion,
    real_irreps,
    small_group,
    special_linear,
    symmetric,
    wedderburn,
    wedderburn_text,
)
from stl_search.groups.representations import TOLERANCE

EVERY_ID = [g.id for n in range(1, 64) for g in all_groups(n)]


def test_tolerance_is_what_was_promised() -> None:
    assert TOLERANCE <= 1e-12


@pytest.mark.parametrize(("name", "unit_squares"), [("R", []), ("C", [-1]), ("H", [-1, -1, -1])])
def test_division_algebras_are_associative_and_have_norms(name: str, unit_squares: list[int]) -> None:
    t = division_algebra(name)
    assert np.array_equal(np.einsum("abx,xcy->abcy", t, t), np.einsum("bcx,axy->abcy", t, t))
    assert np.array_equal(t[0], np.eye(len(t)))
    assert np.array_equal(t[:, 0], np.eye(len(t)))
    assert [int(t[a, a, 0]) for a in range(1, len(t))] == unit_squares
    x, y = np.random.default_rng(0).standard_normal((2, len(t)))
    assert np.isclose(np.linalg.norm(np.einsum("a,b,abt->t", x, y, t)), np.linalg.norm(x) * np.linalg.norm(y))
    if name == "H":
        assert t[1, 2].tolist() == [0, 0, 0, 1]  # ij = k
        assert t[2, 1].tolist() == [0, 0, 0, -1]
    with pytest.raises(GroupError, match="known are R, C and H"):
        division_algebra("O")


def test_wedderburn_dimensions_sum_to_the_order() -> None:
    for id in EVERY_ID:
        group = small_group(id)
        blocks = wedderburn(group)
        assert sum(b.dimension for b in blocks) == group.order, id
        # As many blocks as classes of {g, g^-1}; every character in one block.
        pairs = {frozenset((c, int(d))) for c, d in enumerate(group.class_power(-1))}
        assert len(blocks) == len(pairs), id
        assert sorted(itertools.chain.from_iterable(b.characters for b in blocks)) == list(range(len(group.classes)))
        assert all(b.degree == b.size * {"R": 1, "C": 2, "H": 4}[b.algebra] for b in blocks)


def test_known_decompositions() -> None:
    # From the degrees and Frobenius-Schur indicators of the published character tables.
    cases: list[tuple[Group, str]] = [
        (elementary_abelian(2, 3), "8 R"),
        (cyclic(3), "R + C"),
        (cyclic(8), "2 R + 3 C"),
        (symmetric(3), "2 R + M2(R)"),
        (dihedral(4), "4 R + M2(R)"),
        (quaternion(), "4 R + H"),
        (quaternion(16), "4 R + M2(R) + 2 H"),
        (dicyclic(3), "2 R + C + M2(R) + H"),
        (alternating(4), "R + C + M3(R)"),
        (symmetric(4), "2 R + M2(R) + 2 M3(R)"),
        (special_linear(3), "R + C + H + M2(C) + M3(R)"),
        (alternating(5), "R + 2 M3(R) + M4(R) + M5(R)"),
        (special_linear(5), "R + 2 H + 2 M3(R) + M4(R) + M2(H) + M5(R) + M3(H)"),
        (projective_special_linear(7), "R + M3(C) + M6(R) + M7(R) + M8(R)"),
        (get("2^(1+4)-"), "16 R + M2(H)"),
        (get("2^(1+4)+"), "16 R + M4(R)"),
    ]
    for group, text in cases:
        assert sorted(wedderburn_text(group).split(" + ")) == sorted(text.split(" + ")), group


def check_transform(group: Group) -> None:
    """Everything that is promised of irreps and transform, recomputed here from the matrices."""
    n = group.order
    transform = fourier_transform(group)
    table = character_table(group)
    for irrep, where in zip(transform.irreps, transform.slices, strict=True):
        rho, d = irrep.matrices, irrep.degree
        assert rho.shape == (n, d, d)
        assert not rho.flags.writeable
        assert np.abs(rho @ rho.transpose(0, 2, 1) - np.eye(d)).max() <= 1e-12, (group, irrep.block)
        assert np.abs(rho[0] - np.eye(d)).max() <= 1e-12
        for s in group.generators:  # enough: the set of g with rho(a) rho(g) = rho(ag) for all a is a subgroup
            assert np.abs(rho @ rho[s] - rho[group.table[:, s]]).max() <= 1e-12, (group, irrep.block)
        exact = table.complex_values[irrep.block.characters[0]][group.class_of]
        factor = {"R": 1, "C": 2, "H": 2}[irrep.block.algebra]
        assert np.abs(np.trace(rho, axis1=1, axis2=2) - factor * exact.real).max() <= 1e-12, (group, irrep.block)
        trace_over = np.einsum("giit->gt", irrep.over)
        if irrep.block.algebra == "C":
            assert np.abs(trace_over @ [1, 1j] - exact).max() <= 1e-12, (group, irrep.block)
        assert where.stop - where.start == irrep.block.dimension
        assert np.array_equal(transform.matrix[where].T.reshape(irrep.over.shape), irrep.over)
    assert np.abs(transform.orthogonal @ transform.orthogonal.T - np.eye(n)).max() <= 1e-12, group
    assert np.abs(transform.inverse @ transform.matrix - np.eye(n)).max() <= 1e-12, group
    x, y = np.random.default_rng(n).standard_normal((2, n))
    convolved = np.zeros(n)
    np.add.at(convolved, group.table, np.outer(x, y))
    product = transform.multiply(transform.matrix @ x, transform.matrix @ y)
    assert np.abs(transform.matrix @ convolved - product).max() <= 1e-12 * n, group


@pytest.mark.parametrize("order", range(1, 64))
def test_every_group_of_order(order: int) -> None:
    for group in all_groups(order):
        check_transform(group)


LARGER: list[Callable[[], Group]] = [
    lambda: projective_special_linear(7),
    lambda: symmetric(5),
    lambda: special_linear(5),
    lambda: get("3^(1+4)+"),
    lambda: get("D4 x D4"),
]


@pytest.mark.parametrize("build", LARGER)
def test_larger_groups(build: Callable[[], Group]) -> None:
    check_transform(build())


@pytest.mark.parametrize("k", range(6))
def test_elementary_abelian_groups_give_the_walsh_hadamard_matrix(k: int) -> None:
    transform = fourier_transform(elementary_abelian(2, k))
    assert np.array_equal(transform.matrix, hadamard(2**k))  # exactly, in Sylvester's order
    assert (transform.weights == 1).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12, 16, 45])
def test_cyclic_groups_give_the_real_dft(n: int) -> None:
    transform = fourier_transform(cyclic(n))
    a = np.random.default_rng(n).standard_normal(n)
    expected = np.conj(np.fft.rfft(a))  # numpy has exp(-2 pi i jk/n)
    rows = [transform.matrix[where] @ a for where in transform.slices]
    frequencies = [0, *([n // 2] if n % 2 == 0 else []), *range(1, (n + 1) // 2)]
    for row, j in zip(rows, frequencies, strict=True):
        parts = [expected[j].real] if len(row) == 1 else [expected[j].real, expected[j].imag]
        assert np.abs(row - parts).max() < 1e-12


def test_bases_show_the_structure() -> None:
    """Monomial representations come out as signed permutations, without rounding."""
    for name in ("D4", "Q8", "A4", "S4", "2^(1+4)+", "2^(1+4)-", "C4 o D4", "C2^2 x D4", "SD16 x C2", "A4 x C2^2"):
        group = get(name)
        for irrep in real_irreps(group):
            entries = set(np.unique(np.abs(irrep.matrices)).tolist())
            if irrep.block.size > 1 and name not in ("S4", "SD16 x C2"):
                assert entries <= {0.0, 1.0}, (name, irrep.block)
    tetrahedral = real_irreps(special_linear(3))[-1]  # of A4 = SL(2,3) / +-1
    assert set(np.unique(np.abs(tetrahedral.matrices)).tolist()) == {0.0, 1.0}
    s3 = real_irreps(symmetric(3))[-1]
    assert all(min(abs(abs(x) - v) for v in (0, 0.5, 1, 3**0.5 / 2)) < 1e-15 for x in s3.matrices.ravel())
    q8 = quaternion()
    over = real_irreps(q8)[-1].over[:, 0, 0]
    assert set(map(tuple, np.abs(over).tolist())) == set(map(tuple, np.eye(4).tolist()))


def test_results_do_not_depend_on_what_was_computed_before() -> None:
    real_irreps.cache_clear()
    first = [r.over.copy() for r in real_irreps(small_group("24.3"))]
    real_irreps(small_group("48.28"))
    real_irreps.cache_clear()
    assert all(np.array_equal(a, r.over) for a, r in zip(first, real_irreps(small_group("24.3")), strict=True))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(EVERY_ID), st.integers(0, 2**32 - 1))
def test_multiplication_of_many_elements_at_once(id: str, seed: int) -> None:
    transform = fourier_transform(small_group(id))
    n = transform.group.order
    x, y = np.random.default_rng(seed).standard_normal((2, 3, n))
    many = transform.multiply(x, y)
    for i in range(3):
        assert np.allclose(many[i], transform.multiply(x[i], y[i]), atol=1e-12)
    g, h = np.random.default_rng(seed).integers(n, size=2)
    unit = transform.multiply(transform.matrix[:, g], transform.matrix[:, h])
    assert np.abs(unit - transform.matrix[:, transform.group.table[g, h]]).max() < 1e-12
