"""Strategy ``cheap``: bases that change nothing, settled coefficients that stay, the grid kept through the catalog."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stl_search import decompose, score
from stl_search.catalog import store
from stl_search.catalog.record import check_file
from stl_search.cli import main
from stl_search.errors import UsageError
from stl_search.scheme import Scheme, Shape
from stl_search.search.cheap import Partial, gridded, improved, pruned, rotated
from stl_search.search.portfolio import discover
from stl_search.search.problem import COEFFICIENTS, Entry, Pool, Problem, cost, density
from stl_search.search.strategy import Clock, get
from stl_search.testing import STRASSEN, StrategyContract

LAM = 2 * score.relative_rounding("bf16") ** 2


class TestSparse(StrategyContract):
    strategy = "cheap"
    problem = Problem((2, 2, 3), 8, coefficients="sparse")
    jobs = 2


class TestGrid(StrategyContract):
    strategy = "cheap"
    problem = Problem((2, 2, 2), 6, coefficients="grid")
    jobs = 3


class TestGridWithTheDecoder(StrategyContract):
    strategy = "cheap"
    problem = Problem((2, 2, 2), 6, coefficients="grid+w")
    jobs = 3


def fitted(shape: Shape, rank: int, seed: int = 0) -> list[np.ndarray]:
    batch, f = decompose.refine(shape, decompose.random_batch(shape, rank, 8, np.random.default_rng(seed)), LAM, 200)
    return [x[int(np.argmin(f))] for x in batch]


def value(shape: Shape, factors: list[np.ndarray]) -> float:
    return float(decompose.objective(shape, (factors[0][None], factors[1][None], factors[2][None]), LAM)[0])


@pytest.mark.parametrize("parts", [(0, 1), (0, 1, 2)])
@pytest.mark.parametrize(("shape", "rank"), [((2, 3, 4), 11), ((3, 1, 2), 4), ((2, 2, 2), 5)])
def test_turning_a_scheme_changes_neither_figure_and_shortens_1_norms(
    shape: Shape, rank: int, parts: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    start = fitted(shape, rank)
    crooked = rotated(shape, start, (), rng)  # with nothing to make short: a random basis
    found = rotated(shape, crooked, parts, rng)
    for f in (crooked, found):
        assert value(shape, f) == pytest.approx(value(shape, start), rel=1e-9)
        scheme, first = (decompose.scheme_of(shape, tuple(x[None] for x in y)) for y in (f, start))
        assert score.noise_gain(scheme) == pytest.approx(score.noise_gain(first), rel=1e-9)
    sizes = [
        sum(float((np.abs(f[p]).sum(axis=1) / np.linalg.norm(f[p], axis=1)).sum()) for p in parts)
        for f in (crooked, found)
    ]
    assert sizes[1] < 0.95 * sizes[0]


def test_a_sparse_scheme_in_a_crooked_basis_is_found_again() -> None:
    """Strassen's scheme turned at random: its 24 non-zeros of u and v come back from 56."""
    rng = np.random.default_rng(0)
    strassen = [f.reshape(7, -1).astype(float) for f in STRASSEN.factors]
    counts = []
    for _ in range(6):
        found = rotated((2, 2, 2), rotated((2, 2, 2), strassen, (), rng), (0, 1), rng)
        counts.append(sum(int((np.abs(f) > 1e-6).sum()) for f in found[:2]))
    assert min(counts) == 24


@pytest.mark.parametrize("coefficients", ["sparse", "grid", "grid+w"])
def test_a_fit_leaves_what_is_settled_up_to_a_scale_for_each_row(coefficients: str) -> None:
    problem = Problem((2, 3, 2), 8, coefficients=coefficients)
    state = Partial.of(problem, fitted((2, 3, 2), 8))
    rng = np.random.default_rng(2)
    for p in state.parts:
        state.settled[p] = rng.random(state.factors[p].shape) < 0.6
        state.factors[p][state.settled[p]] = rng.choice([-1.0, 0.0, 0.5, 1.0], int(state.settled[p].sum()))
    before = state.copy()
    start = value((2, 3, 2), state.factors)
    assert state.fit() < start
    for p in state.parts:
        for old, new, held in zip(before.factors[p], state.factors[p], state.settled[p], strict=True):
            assert (new[held & (old == 0)] == 0).all()
            ratios = new[held & (old != 0)] / old[held & (old != 0)]
            np.testing.assert_allclose(ratios, ratios[:1].repeat(len(ratios)), rtol=1e-9)
    assert (state.factors[0] != before.factors[0])[~state.settled[0]].all()


def test_dropping_coefficients_keeps_most_of_the_precision() -> None:
    problem = Problem((3, 3, 3), 15, coefficients="sparse")
    start = fitted((3, 3, 3), 15)
    turned = rotated((3, 3, 3), start, (0, 1), np.random.default_rng(0))
    found = pruned(Partial.of(problem, turned), Clock(None))
    assert density(found.factors[:2]) < 0.7
    assert value((3, 3, 3), found.factors) < 1.1 * value((3, 3, 3), start)


def test_exchanges_on_the_grid_only_gain() -> None:
    problem, rng = Problem((2, 2, 3), 9, coefficients="grid"), np.random.default_rng(0)
    state = Partial.of(problem, fitted((2, 2, 3), 9))
    rough = gridded(state, [np.zeros((9, 4)), np.zeros((9, 6))], Clock(None))
    better = improved(problem, rough, rng, Clock(None))
    prices = []
    for patterns in (rough, better):
        assert all(score.on_grid(p) and p.any(axis=1).all() for p in patterns)
        _, f = decompose.eliminated((2, 2, 3), patterns[0][None], patterns[1][None], LAM)
        prices.append(float(f[0]) * (1 + density(patterns) / 4))
    assert prices[1] < prices[0]


def test_what_is_eliminated_is_the_best() -> None:
    shape, (u, v, w) = (2, 3, 2), fitted((2, 3, 2), 7)
    rng = np.random.default_rng(0)
    u = u + 0.1 * rng.standard_normal(u.shape)
    for given in (None, w[None]):
        best, f = decompose.eliminated(shape, u[None], v[None], LAM, given)
        assert float(f[0]) == pytest.approx(value(shape, [u, v, best[0]]), rel=1e-9)
        for q in range(7):
            for factor in (0.999, 1.001):
                other = best[0].copy()
                other[q] *= factor
                assert value(shape, [u, v, other]) > float(f[0])
    np.testing.assert_allclose(best[0] / w, (best[0] / w)[:, :1].repeat(4, axis=1), rtol=1e-9)


def test_a_pool_answers_with_cheap_schemes_alone_and_keeps_the_others() -> None:
    problem = Problem((2, 2, 2), 7, coefficients="grid")
    pool = Pool(problem)
    dense = decompose.scheme_of((2, 2, 2), tuple(f[None] for f in fitted((2, 2, 2), 7)))
    for scheme in (dense, STRASSEN):
        assert pool.wants(scheme, cost(problem, scheme))
        assert pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
        assert not pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
    assert {e.id for e in pool.cell((2, 2, 2), 7)} == {dense.id, STRASSEN.id}
    best = pool.best((2, 2, 2), 7)
    assert best is not None
    assert best.id == STRASSEN.id
    assert best.cost == pytest.approx(cost(problem, STRASSEN) * (1 + 24 / 56 / 4))


def test_cheap_coefficients_are_for_approximate_schemes_without_symmetry() -> None:
    for wrong in ({"ring": "ZT"}, {"symmetry": "cyclic"}):
        with pytest.raises(UsageError, match="cheap coefficients"):
            Problem((2, 2, 2), 7, coefficients="grid", **wrong)
    with pytest.raises(UsageError, match="unknown coefficients 'cheap'"):
        Problem((2, 2, 2), 7, coefficients="cheap")
    assert get("cheap").weight(Problem((2, 2, 2), 6), Pool(Problem((2, 2, 2), 6))) == 0
    keys = {Problem((2, 2, 2), 6, coefficients=c).key(1, "0") for c in COEFFICIENTS}
    assert len(keys) == len(COEFFICIENTS)


@pytest.mark.parametrize("coefficients", COEFFICIENTS[1:])
def test_a_search_keeps_what_was_asked_for_and_is_repeated_by_its_command(
    coefficients: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    start = decompose.scheme_of((2, 2, 3), tuple(f[None] for f in fitted((2, 2, 3), 9)))
    path = store.add(start, {}, tmp_path / "mine", "bf16")
    begun = store.load(path)
    result = discover(
        (2, 2, 3), 9, coefficients=coefficients, strategies="cheap", given=[begun], workers=1,
        steps={"grid": 4, "grid+w": 8}.get(coefficients, 2), out=tmp_path / "one",
    )  # fmt: skip
    assert result.found
    assert result.path is not None
    assert check_file(result.path).ok
    kept = store.load(result.path)
    found = result.to_json()
    u, v, w = (f.reshape(9, -1) for f in kept.factors)
    if coefficients.startswith("grid"):
        assert score.on_grid(u)
        assert score.on_grid(v)
        assert score.on_grid(w, scaled=True) == coefficients.endswith("+w")
    else:
        assert density([u, v]) < 0.9
        assert (density([w]) < 1) == coefficients.endswith("+w")
    assert found["unrestricted"]["error"] <= score.error(begun, "bf16") * (1 + 1e-6)
    assert found["error"] >= found["unrestricted"]["error"] * (1 - 1e-6)
    assert found["additions"] == score.additions(kept) < score.additions(begun)
    assert found["bytes"] == found["unrestricted"]["bytes"] == score.bytes_moved((2, 2, 3), 9)
    command = json.loads(result.path.read_text())["provenance"]["command"]
    again = CliRunner().invoke(main, [*command.split()[1:], "--out", str(tmp_path / "two")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "two" / result.path.name).read_bytes() == result.path.read_bytes()
    assert f"{coefficients:8}" in again.stdout
    assert str(found["unrestricted"]["additions"]) in again.stdout


def test_schemes_on_the_grid_are_stored_there() -> None:
    from stl_search.catalog.record import shorten

    rng = np.random.default_rng(0)
    u, v = (rng.choice([-2.0, -0.25, 0.0, 0.5, 1.0], (5, 4)) for _ in range(2))
    u[:, 0] = v[:, 0] = 1.0
    w = rng.standard_normal((5, 4)) / 7
    kept = shorten(Scheme((2, 2, 2), "R", u, v, w))
    assert (kept.u.reshape(5, 4) == u).all()
    assert (kept.v.reshape(5, 4) == v).all()
    assert (kept.w.reshape(5, 4) != w).any()  # its digits are cut
    np.testing.assert_allclose(kept.w.reshape(5, 4), w, rtol=1e-4, atol=1e-6)
    scaled = shorten(Scheme((2, 2, 2), "R", u, v, u * w[:, :1]))
    assert score.on_grid(scaled.w.reshape(5, 4), scaled=True)
    crooked = shorten(Scheme((2, 2, 2), "R", 3 * u, v, w))  # not on the grid: balanced as ever
    norms = np.linalg.norm(crooked.u.reshape(5, -1), axis=1) / np.linalg.norm(crooked.v.reshape(5, -1), axis=1)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-2)
