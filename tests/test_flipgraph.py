"""Walks in the flip graph: they keep the tensor and the symmetry, repeat under a seed, find known ranks, and lift."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stl_search import transform
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.flip_starts import check, group_of, orbits_of, start
from stl_search.search.flipgraph import FlipGraph, scheme_of, terms_of
from stl_search.search.flips import CAPACITY, Group, Walk, settle
from stl_search.search.portfolio import discover
from stl_search.search.problem import Entry, Pool, Problem, cost
from stl_search.search.strategy import Clock, suitable
from stl_search.testing import StrategyContract
from stl_search.verify import first_failure, verify

NOTHING = np.zeros((0, 3), dtype=np.uint64)
SHAPES = [(2, 2, 2), (1, 2, 3), (2, 3, 4), (4, 3, 2), (3, 2, 5), (3, 3, 3), (4, 4, 4), (2, 8, 3), (8, 8, 8)]


def classical_walk(shape: Shape, seed: int = 0) -> Walk:
    terms = terms_of(transform.classical(shape, "Z2"))
    return Walk(terms, NOTHING, group_of("", shape), np.random.default_rng(seed))


def symmetric_walk(name: str, shape: Shape, rank: int, seed: int = 0) -> Walk:
    rng = np.random.default_rng(seed)
    return Walk(*start(name, shape, rank, rng), group_of(name, shape), rng)


def term_set(scheme: Scheme) -> list[tuple[int, ...]]:
    return sorted(tuple(t) for t in terms_of(scheme).tolist())


class TestModulo2(StrategyContract):
    strategy = "flipgraph"
    problem = Problem((2, 3, 2), 11, ring="Z2")


class TestTernary(StrategyContract):
    strategy = "flipgraph"
    problem = Problem((3, 3, 3), 23, ring="ZT")

    def test_every_scheme_is_what_it_claims(self) -> None:
        super().test_every_scheme_is_what_it_claims()
        assert all("ZT" in verify(entry.scheme).rings for entry in self._pool())


class TestSymmetric(StrategyContract):
    strategy = "flipgraph"
    problem = Problem((3, 3, 3), 23, ring="Z2", symmetry="cyclic")

    def test_what_it_finds_is_invariant(self) -> None:
        for entry in self._pool():
            assert term_set(transform.cyclic(entry.scheme)) == term_set(entry.scheme)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_and_schemes_are_two_forms_of_one_thing(shape: Shape) -> None:
    m, k, n = shape
    rng = np.random.default_rng(1)
    scheme = Scheme(shape, "Z2", *(rng.integers(0, 2, (7, a, b)) for a, b in ((m, k), (k, n), (m, n))))
    terms = terms_of(scheme)
    assert scheme_of(shape, terms) == scheme
    q, i, j = 5, m - 1, k - 1
    assert int(terms[q, 0]) >> (i * k + j) & 1 == scheme.u[q, i, j]
    assert int(terms[q, 2]) >> ((n - 1) * m + i) & 1 == scheme.w[q, i, n - 1]  # the third factor is w transposed
    if m == k == n:
        turned = terms_of(transform.cyclic(scheme))
        assert turned.tolist() == np.roll(terms, -1, axis=1).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_walk_keeps_the_tensor(shape: Shape) -> None:
    walk = classical_walk(shape)
    start = term_set(scheme_of(shape, walk.terms()))
    for steps, patience in (
        (3000, 10**9),
        (3000, 50),
        (100_000, 1000),
        (20_000, 5),
    ):  # from few plus-transitions to many
        walk.run(steps, patience, 3)
        now = scheme_of(shape, walk.terms())
        assert first_failure(now) is None
        assert now.rank == walk.rank
        best = scheme_of(shape, walk.terms(best=True))
        assert first_failure(best) is None
        assert best.rank == walk.best_rank
    assert term_set(now) != start or shape == (1, 2, 3)
    if shape in ((2, 2, 2), (2, 3, 4), (3, 3, 3)):
        assert walk.best_rank < shape[0] * shape[1] * shape[2]


SYMMETRIC = [
    ("cyclic", (2, 2, 2), 7, 7),
    ("cyclic", (3, 3, 3), 23, 24),
    ("cyclic", (5, 5, 5), 93, 125),
    ("transpose", (2, 3, 2), 11, 14),
    ("transpose", (3, 3, 3), 23, 26),
    ("transpose", (4, 2, 4), 26, 34),
    ("reverse", (2, 3, 4), 20, 22),
    ("reverse", (3, 3, 3), 23, 25),
    ("cyclic+transpose", (2, 2, 2), 7, 7),
    ("cyclic+transpose", (3, 3, 3), 23, 41),
    ("cyclic+reverse", (3, 3, 3), 23, 27),
    ("cyclic+reverse", (4, 4, 4), 49, 55),
    ("reverse+transpose", (4, 3, 4), 38, 48),
    ("cyclic+reverse+transpose", (4, 4, 4), 49, 64),
    ("cyclic", (8, 8, 8), 343, 512),
    ("permute:(1,2)", (3, 3, 3), 23, 27),
    ("cyclic+permute:(1,2)", (4, 4, 4), 49, 64),
]


@pytest.mark.parametrize(("name", "shape", "rank", "reached"), SYMMETRIC)
def test_a_symmetric_walk_keeps_the_tensor_and_the_symmetry(name: str, shape: Shape, rank: int, reached: int) -> None:
    """And it leads down: ``reached`` are ranks that these seeds came to in 300 000 steps, or stayed at."""
    group = group_of(name, shape)
    walk = symmetric_walk(name, shape, rank, 1)
    for steps, patience in ((0, 1), (2000, 10**9), (2000, 40), (300_000, 3000)):
        walk.run(steps, patience, 2 * group.order)
        for best in (False, True):
            terms = walk.terms(best)
            scheme = scheme_of(shape, terms)
            assert first_failure(scheme) is None
            have = {tuple(t) for t in terms.tolist()}
            assert all({group.image(e, t) for t in have} == have for e in range(group.order))  # type: ignore[arg-type]
            assert scheme.rank == (walk.best_rank if best else walk.rank)
    assert walk.best_rank <= reached


def test_the_groups_are_those_of_the_scheme_algebra() -> None:
    """Elements act on masks as ``transform`` acts on schemes."""
    rng = np.random.default_rng(2)
    for name, shape, move in (
        ("cyclic", (3, 3, 3), transform.cyclic),
        ("transpose", (3, 4, 3), lambda s: transform.transpose(s)),
        (
            "reverse",
            (2, 3, 4),
            lambda s: transform.change_basis(s, *(np.eye(side, dtype=int)[::-1] for side in s.shape)),
        ),
    ):
        m, k, n = shape
        one = Scheme(shape, "Z2", *(rng.integers(0, 2, (1, a, b)) for a, b in ((m, k), (k, n), (m, n))))
        group = group_of(name, shape)
        term = tuple(terms_of(one)[0].tolist())
        images = {group.image(e, term) for e in range(group.order)}
        moved = one
        for _ in range(group.order):
            assert tuple(terms_of(moved)[0].tolist()) in images
            moved = move(moved)
        assert moved == one
    orders = {"": 1, "cyclic": 3, "transpose": 2, "reverse": 2, "cyclic+transpose": 6, "cyclic+reverse+transpose": 12}
    assert {name: group_of(name, (3, 3, 3)).order for name in orders} == orders


@pytest.mark.parametrize("name", ["", "cyclic", "cyclic+reverse+transpose"])
def test_images_of_many_terms_are_those_of_each(name: str) -> None:
    group = group_of(name, (4, 4, 4))
    terms = np.random.default_rng(3).integers(0, 2**16, size=(5, 3), dtype=np.uint64)
    one_by_one = [[list(group.image(e, term)) for term in terms.tolist()] for e in range(group.order)]
    assert group.images(terms).tolist() == one_by_one


def test_what_is_no_group_is_refused() -> None:
    one = tuple(np.eye(4, dtype=np.int64) for _ in range(3))
    turn = ((2, 0, 1), one)
    with pytest.raises(ValueError, match="a product of two is missing"):
        Group.of([((0, 1, 2), one), turn])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at most 64"):
        Group.of([turn] * 65)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="neutral"):
        Group.of([turn])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="does not permute"):
        check("linear:010/001/101", (3, 3, 3))
    with pytest.raises(UsageError, match="known: cyclic, transpose, reverse"):
        check("turning", (3, 3, 3))
    with pytest.raises(UsageError, match="square"):
        check("cyclic", (3, 3, 4))
    with pytest.raises(UsageError, match="M,K,M"):
        check("transpose", (3, 3, 4))


@pytest.mark.parametrize("name", ["cyclic", "transpose", "cyclic+transpose", "cyclic+reverse"])
def test_starts_are_the_tensor_whatever_the_fixed_part(name: str) -> None:
    for shape in ((3, 3, 3), (4, 4, 4)) if "cyclic" in name else ((2, 3, 2), (3, 2, 3), (4, 4, 4)):
        sizes = set()
        for seed in range(6):
            walk = symmetric_walk(name, shape, 23, seed)
            assert first_failure(scheme_of(shape, walk.terms())) is None
            sizes.add(len(walk.fixed))
        assert all((23 - size) % 3 == 0 for size in sizes) or name != "cyclic"


def test_the_list_of_pairs_is_all_pairs() -> None:
    """A walk without plus-transitions ends nowhere but where no two terms share a factor, or at its limit."""
    walk = classical_walk((2, 2, 2))
    walk.run(1_000_000, 10**9, 0, 7)
    assert walk.rank == 7
    terms = walk.terms()
    assert all(len(set(terms[:, p].tolist())) == 7 for p in range(3))  # Strassen: nothing to flip
    before = terms.tolist()
    flips = walk.flips
    assert walk.run(1000, 10**9, 0) == 1
    assert walk.terms().tolist() == before
    assert walk.flips == flips
    walk.run(5, 10**9, 1)  # and a plus-transition leads out
    assert sorted(walk.terms().tolist()) != sorted(before)


def test_settling_joins_terms_that_share_two_factors_and_drops_zeros() -> None:
    rows = [(1, 2, 4), (1, 2, 8), (3, 3, 3), (3, 3, 3), (5, 0, 1), (7, 2, 12)]  # the joined first two meet the last
    val = np.zeros(3 * CAPACITY, dtype=np.uint64)
    for i, row in enumerate(rows):
        val[i], val[CAPACITY + i], val[2 * CAPACITY + i] = row
    room = np.zeros(3, dtype=np.uint64)
    assert settle(val, len(rows), room, group_of("", (2, 2, 2)).array) == 1
    assert (int(val[0]), int(val[CAPACITY]), int(val[2 * CAPACITY])) == (1 ^ 7, 2, 12)


def test_settling_under_rotation_joins_orbits() -> None:
    val = np.zeros(3 * CAPACITY, dtype=np.uint64)
    for i, row in enumerate([(1, 2, 4), (2, 8, 1)]):  # (2, 8, 1) rotates to (1, 2, 8)
        val[i], val[CAPACITY + i], val[2 * CAPACITY + i] = row
    room = np.zeros(3, dtype=np.uint64)
    assert settle(val.copy(), 2, room, group_of("", (2, 2, 2)).array) == 2
    group = group_of("cyclic", (2, 2, 2))
    assert settle(val, 2, room, group.array) == 1
    term = (int(val[0]), int(val[CAPACITY]), int(val[2 * CAPACITY]))
    assert (1, 2, 12) in {group.image(e, term) for e in range(3)}


def test_equal_seeds_make_equal_walks() -> None:
    def end(seed: int, parts: int) -> list[list[int]]:
        walk = classical_walk((3, 3, 4), seed)
        for _ in range(parts):
            walk.run(60_000 // parts, 1000, 2)
        return walk.terms().tolist()

    assert end(1, 1) == end(1, 1)
    assert end(1, 1) != end(2, 1)


def test_of_equal_ranks_the_last_state_is_kept() -> None:
    """So that a job hands on another scheme than the one it began with, though it came no lower."""
    walk = classical_walk((3, 3, 3))
    walk.run(2_000_000, 3000, 2, 23)
    assert walk.best_rank == 23
    before = walk.terms(best=True).tolist()
    walk.run(1_000_000, 3000, 2, 22)
    assert walk.best_rank == 23
    after = walk.terms(best=True)
    assert sorted(after.tolist()) != sorted(before)
    assert first_failure(scheme_of((3, 3, 3), after)) is None


@pytest.mark.parametrize("name", ["cyclic", "transpose", "cyclic+transpose"])
def test_orbits_are_recognised(name: str) -> None:
    shape = (3, 3, 3)
    walk = symmetric_walk(name, shape, 23)
    walk.run(50_000, 1000, 6)
    group = group_of(name, shape)
    found = orbits_of(walk.terms(), group)
    assert found is not None
    orbits, fixed = found
    assert len(fixed) + group.order * len(orbits) == walk.rank
    again = Walk(orbits, fixed, group, np.random.default_rng(0))
    assert sorted(again.terms().tolist()) == sorted(walk.terms().tolist())
    plain = classical_walk(shape)
    plain.run(1000, 10**9, 0)
    assert orbits_of(plain.terms(), group) is None


@pytest.mark.parametrize(
    ("shape", "rank", "ring"),
    [((3, 3, 3), 23, "Z2"), ((3, 3, 3), 23, "ZT"), ((4, 2, 3), 20, "Z2"), ((2, 4, 3), 20, "ZT"), ((4, 3, 3), 29, "ZT")],
)
def test_known_ranks_are_found_at_any_order_of_the_sides(shape: Shape, rank: int, ring: str) -> None:
    problem = Problem(shape, rank, ring=ring)
    pool = Pool(problem)
    for job in range(12):
        for scheme in FlipGraph().run(problem, pool, np.random.default_rng([8, job]), Clock(None)):
            pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
        best = pool.best(shape, rank)
        if best is not None:
            assert ring in verify(best.scheme).rings
            assert best.scheme.ring.name == ring
            return
    pytest.fail("not found in 12 jobs")


def test_a_scheme_modulo_2_is_material_but_no_answer_over_the_integers() -> None:
    scheme = transform.classical((2, 2, 2), "Z2")
    pool = Pool(Problem((2, 2, 2), 8, ring="ZT"))
    entry = Entry(1.0, scheme.id, scheme)
    assert pool.wants(scheme, 1.0)
    assert pool.add(entry)
    assert not pool.add(entry)
    assert not pool.wants(scheme, 1.0)
    assert pool.best((2, 2, 2), 8) is None
    assert pool.material((2, 2, 2), 8) == [scheme]
    assert pool.material_ranks((2, 2, 2)) == [8]
    modular = Pool(Problem((2, 2, 2), 8, ring="Z2"))
    assert modular.add(entry)
    assert modular.best((2, 2, 2), 8) == entry


def test_material_gives_way_to_newer_material() -> None:
    problem = Problem((3, 3, 3), 23, ring="ZT")
    pool = Pool(problem)
    walk = classical_walk((3, 3, 3))
    ids = []
    while len(ids) < Pool.capacity + 3:
        walk.run(500, 10**9, 0)
        scheme = scheme_of((3, 3, 3), walk.terms())
        if scheme.rank == 27:
            ids.append(scheme.id)
            pool.add(Entry(1.0, scheme.id, scheme))
        else:
            walk = classical_walk((3, 3, 3), len(ids))
    assert [s.id for s in pool.material((3, 3, 3), 27)] == ids[3:]


@pytest.mark.parametrize(
    ("problem", "applies"),
    [
        (Problem((4, 4, 4), 49, ring="ZT"), True),
        (Problem((4, 4, 4), 49), False),  # over R
        (Problem((9, 2, 2), 32, ring="Z2"), False),  # a factor of 9 x 2 would fit, 9 x 9 does not
        (Problem((3, 3, 3), 23, ring="Z2", symmetry="cyclic"), True),
        (Problem((3, 3, 3), 23, ring="Z2", symmetry="transpose"), True),
        (Problem((3, 3, 3), 23, ring="Z2", symmetry="S3"), False),
        (Problem((2, 3, 3), 15, ring="Z2", symmetry="cyclic"), False),
    ],
)
def test_it_applies_where_it_can_walk(problem: Problem, applies: bool) -> None:
    assert (FlipGraph().weight(problem, Pool(problem)) > 0) == applies


def test_the_portfolio_prefers_it_for_exact_problems() -> None:
    problem = Problem((3, 3, 4), 29, ring="ZT")
    weights = {s.name: w for s, w in suitable(problem, Pool(problem))}
    assert weights["flipgraph"] > 10 * sum(w for name, w in weights.items() if name != "flipgraph")


def test_discover_finds_with_it_and_gives_up_where_it_must(tmp_path: Path) -> None:
    found = discover((3, 2, 3), 15, ring="ZT", steps=4, workers=1, strategies=["flipgraph"], out=tmp_path)
    assert found.found
    assert found.strategy == "flipgraph"
    assert found.scheme is not None
    assert "ZT" in verify(found.scheme).rings
    again = discover((3, 2, 3), 15, ring="ZT", steps=4, workers=1, strategies=["flipgraph"], out=tmp_path / "b")
    assert again.scheme == found.scheme
    none = discover((3, 2, 3), 14, ring="Z2", steps=4, workers=1, strategies=["flipgraph"], out=tmp_path / "c")
    assert not none.found
    assert "rank >= 15" in none.reason
    missed = discover((3, 3, 3), 21, ring="Z2", steps=1, workers=1, strategies=["flipgraph"], out=tmp_path / "d")
    assert not missed.found
    assert missed.reason.startswith("not found after 1 jobs and ")
    assert found.flips > 0
    assert missed.flips > 1_000_000


def test_the_kernels_compile_where_nothing_can_be_written(tmp_path: Path) -> None:
    """As in a read-only installation without a home: numba then keeps nothing, and the walk runs all the same."""
    package = tmp_path / "locked"
    package.mkdir()
    source = Path(sys.modules["stl_search.search.flips"].__file__ or "")
    (package / "flips.py").write_text(source.read_text())
    code = (
        "import os\n"
        "import numba.core.caching as caching\n"
        "def refuse(*args, **kwargs):\n"
        "    raise OSError('read-only')\n"
        "caching.tempfile.TemporaryFile = os.makedirs = refuse\n"
        "import numpy as np, flips\n"
        "assert flips._mix(np.uint64(1)) != 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
