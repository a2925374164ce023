"""Groups as hosts: what blocks are multiplied with, what a search may and may not say, schemes that keep their word."""

import numpy as np
import pytest

from stl_search import groups, score
from stl_search.errors import UsageError
from stl_search.groups import Maps
from stl_search.search.group_algebra import matrix_product
from stl_search.search.group_hosts import candidates, catalog_products, generator, host
from stl_search.verify import verify


def test_matrix_blocks_are_multiplied_by_what_the_catalog_holds() -> None:
    shipped, none = catalog_products("shipped"), catalog_products("none")
    assert [none(size).rank for size in (1, 2, 3)] == [1, 7, 27]
    assert none is matrix_product
    for size in (1, 2, 3, 4, 5):
        scheme = shipped(size)
        assert scheme.shape == (size, size, size)
        assert verify(scheme).kind == "exact"
        assert scheme.rank <= none(size).rank
    assert (shipped(3).rank, shipped(4).rank) == (23, 48)
    with pytest.raises(UsageError, match="unknown starts 'all'; known: none, shipped, catalog"):
        catalog_products("all")


@pytest.mark.parametrize(("name", "answer"), [("S3", "found"), ("C7", "none"), ("C2^3", "found"), ("C6", "none")])
def test_a_host_says_what_is_proved(name: str, answer: str) -> None:
    group = groups.get(name)
    found = host(group, (2, 2, 2), generator(0, group, (2, 2, 2)), 500)
    assert found.answer == answer
    assert (found.error == 0) == (answer == "found")
    assert found.error == groups.collision_error(found.maps)
    if found.triple is not None:
        assert groups.is_tpp(group, *found.triple)
        assert isinstance(found.maps, Maps)


def test_a_search_that_was_given_up_says_so() -> None:
    group = groups.get("Q8 x C2")  # of order 16: counting excludes nothing, and there is no triple
    rng = np.random.default_rng(0)
    assert host(group, (3, 3, 3), rng, 50, limit=1).answer == "undecided"
    assert host(group, (3, 3, 3), rng, 50).answer == "none"


def test_a_host_as_json_can_be_checked_by_its_reader() -> None:
    group = groups.get("Q8")
    found = host(group, (2, 3, 2), generator(1, group, (2, 3, 2)), 500).to_json()
    assert sum(found["N"]) == 2 * 3**2 * 2
    maps = groups.FreeMaps(group, found["maps"]["a"], found["maps"]["b"])
    assert groups.collision_error(maps) == found["E"]
    assert found["line"] == score.line((2, 3, 2), found["rank"])


def test_maps_of_shapes_beyond_reason_are_refused() -> None:
    with pytest.raises(UsageError, match="<20,20,20> is too large for a search of maps"):
        host(groups.get("C2"), (20, 20, 20), np.random.default_rng(0))


@pytest.mark.parametrize("max_rank", [3, 6, 40])
def test_candidates_keep_to_the_rank_and_repeat(max_rank: int) -> None:
    shape = (2, 2, 3)
    hosts = [groups.get(name) for name in ("C4", "S3", "Q8", "A4")]
    found = list(candidates(shape, max_rank, hosts, "fp16", 3, sweeps=5, steps=100))
    again = list(candidates(shape, max_rank, hosts[2:3], "fp16", 3, sweeps=5, steps=100))
    assert [c.scheme.id for c in again] == [c.scheme.id for c in found if c.group.name == "Q8"]
    assert {c.weights for c in found} == {"unit", "one", "full"}
    for candidate in found:
        described = candidate.to_json()
        assert 1 <= candidate.scheme.rank <= min(max_rank, 12)
        assert described["error"] == score.error(candidate.scheme, "fp16")
        assert described["E"] == pytest.approx(score.expected_error(candidate.scheme))
    if max_rank == 6:  # R[A4] takes 31 products here: some of its blocks, and all of them less the cheapest terms
        assert {c.blocks for c in found if c.group.name == "A4"} == {"R + C", "R + C + M3(R)"}
    for group in hosts:  # an element and a weight are at least as good as weight 1, up to what the reduction loses
        errors = {c.weights: score.error(c.scheme, "fp16") for c in found if c.group.name == group.name}
        if max_rank == 40:
            assert errors["one"] <= errors["unit"] + 1e-6
