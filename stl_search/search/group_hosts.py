"""What each finite group gives as a host of <m,k,n>: triples, maps with few collisions, and schemes made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stl_search import groups, score
from stl_search.catalog import store
from stl_search.errors import BudgetError, UsageError
from stl_search.groups.tpp import FreeMaps, Maps, Triple
from stl_search.scheme import Scheme, Shape
from stl_search.search.compose import best_recipe, build
from stl_search.search.group_algebra import (
    BilinearAlgorithm,
    chosen_blocks,
    group_algorithm,
    least_squares_scheme,
    matrix_product,
    real_rank,
    reduced,
)
from stl_search.search.group_placements import Placement, fit_weights, placed_scheme, placement_of
from stl_search.search.problem import STARTS, Entry, Pool, Problem, cost

__all__ = ["Candidate", "Host", "best_weights", "candidates", "catalog_products", "generator", "host"]

ANNEALINGS = 4  # from random maps, each of ``steps`` proposals
LIMIT = 200_000  # pairs of sets that an exact search for triples looks at before it leaves the question open
_MOST = 16**4  # collisions that are counted again at every proposal
_STARTS = 3  # of full weights: shaken unit weights, and random ones


def generator(seed: int, group: groups.Group, shape: Shape) -> np.random.Generator:
    """The randomness for one group and shape, so that no answer depends on which others are asked for."""
    return np.random.default_rng([seed, group.order, int(group.id.partition(".")[2] or 0), *shape])


def catalog_products(starts: str) -> Callable[[int], Scheme]:
    """The exact schemes of <d,d,d> for matrix blocks: from ``starts`` (none, shipped, catalog), or composed of these.

    >>> [catalog_products("shipped")(size).rank for size in (2, 3, 4, 6)], catalog_products("none")(3).rank
    ([7, 23, 48, 161], 27)
    """
    if starts not in STARTS:
        raise UsageError(f"unknown starts {starts!r}; known: {', '.join(STARTS)}")
    if starts == "none":
        return matrix_product
    problem = Problem((1, 1, 1), 1, "Q")
    pool = Pool(problem)
    for entry in store.candidates(ring="Q", dirs=[store.shipped_dir()] if starts == "shipped" else None):
        scheme = store.scheme_of(entry)
        pool.add(Entry(cost(problem, scheme), scheme.id, scheme))
    known: dict[int, Scheme] = {}

    def product_of(size: int) -> Scheme:
        if size not in known:
            shape = (size, size, size)
            known[size] = min(build(best_recipe(shape, pool), shape), matrix_product(size), key=lambda s: s.rank)
        return known[size]

    return product_of


@dataclass(frozen=True)
class Host:
    """A group for <m,k,n>: the real rank of R[G] by its blocks, a TPP triple, and the best maps met.

    ``triple`` None means that there is none where ``decided``, else that the search was given up. ``error`` is the
    collision error of ``maps``, 0 for a triple.
    """

    group: groups.Group
    shape: Shape
    rank: int
    triple: Triple | None
    decided: bool
    maps: FreeMaps
    error: float

    @property
    def answer(self) -> str:
        """found, none or undecided."""
        return "found" if self.triple is not None else "none" if self.decided else "undecided"

    def to_json(self) -> dict[str, Any]:
        """One element of ``groups`` in ``stl-search groups tpp --json``; maps are flat lists of elements."""
        maps = {"a": self.maps.a.tolist(), "b": self.maps.b.tolist()}
        if isinstance(self.maps, Maps):
            maps |= {name: getattr(self.maps, name).tolist() for name in "stu"}
        counts = groups.collisions(self.maps)
        return {
            "id": self.group.id,
            "name": self.group.name,
            "order": self.group.order,
            "rank": self.rank,
            "tpp": self.answer,
            "triple": None if self.triple is None else [list(x) for x in self.triple],
            "E": self.error,
            "line": score.line(self.shape, self.rank),
            "N": counts.tolist(),
            "maps": maps,
        }


def host(
    group: groups.Group,
    shape: Shape,
    rng: np.random.Generator,
    steps: int = 4000,
    limit: int = LIMIT,
    product_of: Callable[[int], Scheme] | None = None,
) -> Host:
    """What the group gives for <m,k,n>: a triple if there is one, else maps annealed a few times, structured and free.

    >>> h = host(groups.get("S3"), (2, 2, 2), np.random.default_rng(0))
    >>> h.answer, h.rank, h.error
    ('found', 9, 0.0)
    """
    m, k, n = shape
    if m * k * k * n > _MOST:
        raise UsageError(f"<{m},{k},{n}> is too large for a search of maps: m k^2 n is above {_MOST}")
    rank = real_rank(group, None if product_of is None else lambda size: product_of(size).rank)
    try:
        triple, decided = groups.find_tpp(group, shape, limit), True
    except BudgetError:
        triple, decided = None, False
    maps: FreeMaps
    if triple is not None:
        maps = Maps(group, *triple)
    else:
        tries: list[FreeMaps] = [groups.anneal_maps(group, shape, rng, steps) for _ in range(ANNEALINGS)]
        tries.append(groups.anneal_free_maps(group, shape, rng, steps, min(tries, key=groups.collision_error)))
        tries.append(groups.anneal_free_maps(group, shape, rng, steps))
        maps = min(tries, key=groups.collision_error)
    return Host(group, shape, rank, triple, decided, maps, groups.collision_error(maps))


def best_weights(
    algorithm: BilinearAlgorithm, maps: FreeMaps, lam: float, rng: np.random.Generator, sweeps: int, single: bool
) -> Placement:
    """The placement of least E + lam kappa found: from the maps for ``single``, else from starts shaken and random."""
    start = placement_of(maps)
    if single:
        return fit_weights(algorithm, start, lam, sweeps, single=True)
    shapes = (start.alpha.shape, start.beta.shape)
    starts = [
        Placement(start.group, start.shape, *(rng.standard_normal(x) for x in shapes)) for _ in range(_STARTS - 1)
    ]
    shaken = (f + 0.1 * rng.standard_normal(f.shape) for f in (start.alpha, start.beta))
    starts.append(Placement(start.group, start.shape, *shaken))
    fitted = [fit_weights(algorithm, x, lam, sweeps) for x in starts]
    best = min(fitted, key=lambda x: _objective(placed_scheme(algorithm, x, lam), lam))
    return fit_weights(algorithm, best, lam, 2 * sweeps)


def _objective(scheme: Scheme, lam: float) -> float:
    return score.expected_error(scheme) + lam * score.noise_gain(scheme)


@dataclass(frozen=True)
class Candidate:
    """A scheme from a group: which Wedderburn blocks were used (as text), and which kind of weights."""

    scheme: Scheme
    group: groups.Group
    blocks: str
    weights: str
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """One element of ``schemes`` in ``stl-search groups schemes --json``."""
        e = score.expected_error(self.scheme)
        return {
            "rank": self.scheme.rank,
            "E": e,
            "kappa": score.noise_gain(self.scheme),
            "error": score.error(self.scheme, self.dtype),
            "line": score.line(self.scheme.shape, self.scheme.rank),
            "group": self.group.id,
            "name": self.group.name,
            "blocks": self.blocks,
            "weights": self.weights,
            "id": self.scheme.id,
        }


def candidates(
    shape: Shape,
    max_rank: int,
    hosts: Iterable[groups.Group],
    dtype: str = "bf16",
    seed: int = 0,
    starts: str = "none",
    sweeps: int = 40,
    steps: int = 2000,
) -> Iterator[Candidate]:
    """The schemes <m,k,n> over R of rank <= ``max_rank`` that each group gives, best first for each group.

    Weights: unit (maps into the group), one (an element and a weight for each entry), full (a vector of R[G] for each).
    Where R[G] takes more products, some of its blocks are used; and with unit weights all, less the cheapest terms.
    """
    lam = 2 * score.relative_rounding(dtype) ** 2
    product_of = catalog_products(starts)
    bound = min(max_rank, math.prod(shape))
    for group in hosts:
        rng = generator(seed, group, shape)
        found = host(group, shape, rng, steps, 0, product_of)  # no search for triples, which `host` is for
        blocks = groups.wedderburn(group)
        whole = found.rank <= bound
        some = list(range(len(blocks))) if whole else chosen_blocks(group, bound, rng, product_of)
        algorithm = group_algorithm(group, product_of, some)
        made = [("unit", some, least_squares_scheme(algorithm, found.maps, lam))]
        for name in ("one", "full"):
            weights = best_weights(algorithm, found.maps, lam, rng, sweeps, name == "one")
            made.append((name, some, placed_scheme(algorithm, weights, lam)))
        if not whole:
            everything = least_squares_scheme(group_algorithm(group, product_of), found.maps, lam)
            made.append(("unit", list(range(len(blocks))), everything))
        ready = [
            Candidate(score.balanced(reduced(scheme, bound, lam)), group, _text([blocks[x] for x in used]), name, dtype)
            for name, used, scheme in made
        ]
        yield from sorted(
            (c for c in ready if c.scheme.rank), key=lambda c: (score.error(c.scheme, dtype), c.scheme.rank)
        )


def _text(blocks: Iterable[groups.Block]) -> str:
    counts = Counter(map(str, blocks))
    return " + ".join(f"{c} {text}" if c > 1 else text for text, c in counts.items())
