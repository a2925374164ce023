"""Strategy ``compose``: Kronecker products and direct sums of smaller schemes, refined at the whole shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stl_search import decompose, transform
from stl_search.scheme import Scheme, Shape
from stl_search.search.bounds import reached_rank
from stl_search.search.numeric import batch_size, solve_approximate, solve_exact, variables
from stl_search.search.problem import Entry, Pool, Problem, ranks_near
from stl_search.search.strategy import Clock, register

__all__ = ["Compose", "Recipe", "best_plan", "best_recipe", "build", "promise", "splits"]

Operation = Literal["kron", "sum_m", "sum_k", "sum_n"]
_BRICK_VARIABLES = 1000  # bricks with more unknowns are not solved inside a composition
_PART_VARIABLES = 1200


def splits(shape: Shape) -> list[tuple[Operation, Shape, Shape]]:
    """Every way to write <m,k,n> as a Kronecker product of two shapes of volume >= 4, or as a direct sum of two.

    Direct sums are listed once (first part not larger); Kronecker products in both orders, which differ.

    >>> [s for s in splits((2, 2, 3)) if s[0] != "sum_n"][:2]
    [('sum_m', (1, 2, 3), (1, 2, 3)), ('sum_k', (2, 1, 3), (2, 1, 3))]
    """
    found: list[tuple[Operation, Shape, Shape]] = []
    m, k, n = shape
    for a in (d for d in range(1, m + 1) if m % d == 0):
        for b in (d for d in range(1, k + 1) if k % d == 0):
            for c in (d for d in range(1, n + 1) if n % d == 0):
                rest = (m // a, k // b, n // c)
                if a * b * c >= 4 and math.prod(rest) >= 4:
                    found.append(("kron", (a, b, c), rest))
    operations: tuple[Operation, ...] = ("sum_m", "sum_k", "sum_n")
    for axis, operation in enumerate(operations):
        for size in range(1, shape[axis] // 2 + 1):
            first, second = list(shape), list(shape)
            first[axis], second[axis] = size, shape[axis] - size
            found.append((operation, (first[0], first[1], first[2]), (second[0], second[1], second[2])))
    return found


@dataclass(frozen=True)
class Recipe:
    """How an exact scheme of ``shape`` is composed: a leaf (a pool scheme, or the classical one) or an operation."""

    shape: Shape
    rank: int
    operation: Operation | None = None
    parts: tuple[tuple[Shape, Recipe], ...] = ()
    leaf: Scheme | None = None


def best_recipe(shape: Shape, pool: Pool, memo: dict[Shape, Recipe] | None = None) -> Recipe:
    """The composition of least rank, by dynamic programming over sorted shapes (a permuted shape has the same rank)."""
    memo = {} if memo is None else memo
    low, mid, high = sorted(shape)
    key = (low, mid, high)
    if key not in memo:
        best = Recipe(key, low * mid * high)
        for s in sorted({(a, b, c) for a in key for b in key for c in key if tuple(sorted((a, b, c))) == key}):
            ranks = pool.ranks(s)
            if ranks and ranks[0] < best.rank:
                best = Recipe(key, ranks[0], leaf=pool.cell(s, ranks[0])[0].scheme)
        memo[key] = best  # in place before the recursion, whose shapes are smaller
        for operation, first, second in splits(key):
            one, two = best_recipe(first, pool, memo), best_recipe(second, pool, memo)
            rank = one.rank * two.rank if operation == "kron" else one.rank + two.rank
            if rank < best.rank:
                best = Recipe(
                    key,
                    rank,
                    operation,
                    ((first, one), (second, two)),
                )
        memo[key] = best
    return memo[key]


def build(recipe: Recipe, shape: Shape) -> Scheme:
    """The exact scheme of a recipe, at any permutation of its shape."""
    if recipe.operation is not None:
        first, second = (build(part, part_shape) for part_shape, part in recipe.parts)
        scheme = getattr(transform, recipe.operation)(first, second)
    elif recipe.leaf is not None:
        scheme = recipe.leaf
    else:
        scheme = transform.classical(recipe.shape)
    return transform.permute_to(scheme, shape)


class Compose:
    """Kronecker products and direct sums (Strassen 1969; Hopcroft and Kerr 1971) of schemes found in the same run.

    Parts come from the pool, or are solved on the spot and handed to the pool as well. Over R the composition is
    shaken with several strengths of noise and refined at the whole shape, at the asked rank and near it.
    """

    name = "compose"

    def weight(self, problem: Problem, pool: Pool) -> float:
        if not splits(problem.shape):
            return 0.0
        if problem.exact:
            return 1.0
        known = sum(len(pool.cell(problem.shape, r)) for r in pool.ranks(problem.shape))
        return 0.4 + 4.0 / (1 + known / 8)

    def run(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        yield from (self._exact if problem.exact else self._approximate)(problem, pool, rng, clock)

    def _approximate(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        plan = best_plan(problem, pool, rng)
        if plan is None:
            return
        operation, (first, r1), (second, r2) = plan
        parts = []
        for shape, rank in ((first, r1), (second, r2)):
            cell = pool.cell(shape, rank)
            if not rank:
                found = [Scheme(shape, "R", *_empty(shape))]
            elif cell and rng.random() < 0.9:
                found = [e.scheme for e in cell[:4]]
            else:
                batch, f = solve_approximate(shape, rank, problem.lam, rng, polish=300)
                found = [decompose.scheme_of(shape, batch, int(i)) for i in np.argsort(f, kind="stable")[:4]]
                yield from found
            parts.append(found)
            if clock.expired():
                return
        starts = []
        size = max(4, batch_size(problem.rank))
        for _ in range(size):
            pair = [p[min(len(p), int(rng.geometric(0.6))) - 1] for p in parts]
            joined = getattr(transform, operation)(*pair)
            factors = [f.reshape(joined.rank, -1) for f in joined.as_float()]
            noise = float(rng.choice([0.005, 0.03, 0.1, 0.2, 0.4]))
            starts.append([f + noise * np.sqrt((f * f).mean()) * rng.standard_normal(f.shape) for f in factors])
        whole: decompose.Batch = tuple(np.stack([s[i] for s in starts]) for i in range(3))  # type: ignore[assignment]
        whole, f = decompose.refine(problem.shape, whole, problem.lam, 200)
        if not clock.expired():
            keep = np.argsort(f, kind="stable")[: size // 2]
            whole, f = decompose.refine(
                problem.shape, (whole[0][keep], whole[1][keep], whole[2][keep]), problem.lam, 500
            )
        for i in np.argsort(f, kind="stable")[:4]:
            yield decompose.scheme_of(problem.shape, whole, int(i))

    def _exact(self, problem: Problem, pool: Pool, rng: np.random.Generator, clock: Clock) -> Iterator[Scheme]:
        memo: dict[Shape, Recipe] = {}
        whole = best_recipe(problem.shape, pool, memo)
        if whole.rank > problem.rank:
            low, mid, high = sorted(problem.shape)
            bricks = [
                key
                for key, recipe in sorted(memo.items())
                if key[0] >= 2
                and key != (low, mid, high)
                and reached_rank(key) < recipe.rank
                and variables(key, reached_rank(key)) <= _BRICK_VARIABLES
            ]
            if not bricks:
                return
            weights = np.array([1.0 / variables(key, reached_rank(key)) for key in bricks])
            key = bricks[int(rng.choice(len(bricks), p=weights / weights.sum()))]
            for _ in range(max(1, 400 // variables(key, reached_rank(key)))):
                found = solve_exact(key, reached_rank(key), problem.ring, rng, clock)
                if found is not None:
                    yield found
                    richer = Pool(problem)
                    for entry in pool:
                        richer.add(entry)
                    richer.add(Entry(0.0, found.id, found))
                    whole = best_recipe(problem.shape, richer)
                    break
                if clock.expired():
                    return
        if whole.rank <= problem.rank or whole.rank < min(pool.ranks(problem.shape), default=problem.volume):
            scheme = build(whole, problem.shape)
            yield transform.to_ring(scheme, "Z2") if problem.ring == "Z2" else scheme


def best_plan(
    problem: Problem, pool: Pool, rng: np.random.Generator, exactly: int | None = None
) -> tuple[Operation, tuple[Shape, int], tuple[Shape, int]] | None:
    """A random operation with part shapes and ranks: the better the error that its parts promise, the likelier.

    The whole has a rank near the asked one, or ``exactly`` that one; both parts then have products.
    """
    window = ranks_near(problem) if exactly is None else range(exactly, exactly + 1)
    options: list[tuple[float, Operation, tuple[Shape, int], tuple[Shape, int]]] = []
    for operation, first, second in splits(problem.shape):
        v1, v2 = math.prod(first), math.prod(second)
        for r1 in range(v1 + 1):
            if operation == "kron":
                seconds = (
                    range(math.ceil(window.start / max(1, r1)), min(v2, window.stop // max(1, r1)) + 1) if r1 else ()
                )
            else:
                seconds = range(max(0, window.start - r1), min(v2, window.stop - 1 - r1) + 1)
            e1 = promise(pool, first, r1)
            for r2 in seconds:
                rank = r1 * r2 if operation == "kron" else r1 + r2
                if rank not in window or max(variables(first, r1), variables(second, r2)) > _PART_VARIABLES:
                    continue
                if exactly is not None and not (r1 and r2):
                    continue
                e2 = promise(pool, second, r2)
                kept = (1 - e1) * (1 - e2) if operation == "kron" else ((1 - e1) * v1 + (1 - e2) * v2) / (v1 + v2)
                near = min((rank - problem.rank) / 3, (problem.rank - rank) / 6)
                # what is kept beyond one product's worth each, on the scale on which good recipes differ
                merit = (kept - rank / problem.volume) / 0.02
                options.append((merit + near, operation, (first, r1), (second, r2)))
    if not options:
        return None
    merits = np.array([o[0] for o in options])
    weights = np.exp(merits - merits.max())
    _, operation, one, two = options[int(rng.choice(len(options), p=weights / weights.sum()))]
    return operation, one, two


def promise(pool: Pool, shape: Shape, rank: int) -> float:
    """The best E known for a part, or a hopeful guess for one that has not been solved: trying it tells."""
    volume = math.prod(shape)
    cell = pool.cell(shape, rank)
    if cell:
        return cell[0].cost
    # with a side of 1 every scheme is a choice of elementary products; otherwise up to a quarter more may be kept
    return max(0.0, 1 - rank / volume * (1.0 if min(shape) == 1 else 1.25))


def _empty(shape: Shape) -> tuple[decompose.Floats, decompose.Floats, decompose.Floats]:
    m, k, n = shape
    return np.zeros((0, m, k)), np.zeros((0, k, n)), np.zeros((0, m, n))


register(Compose())
