"""A name for any small group that says how it is built: "D4", "C4 x C2", "C7 : C3", "C2 . S4".

A x B is a direct product, A : B a semidirect one (A normal), A . B an extension that does not split, A o B a central
product. Names are hints for people: different groups may share one; ids tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import factorial, isqrt

from stl_search.groups import named
from stl_search.groups.group import Group
from stl_search.groups.isomorphism import isomorphic
from stl_search.groups.subgroups import (
    Subgroup,
    abelian_invariants,
    as_group,
    complement,
    generated,
    invariant_factors,
    is_simple,
    normal_subgroups,
    primes_of,
    quotient,
)

__all__ = ["describe"]


def _families(n: int) -> Iterator[tuple[str, Callable[[], Group]]]:
    """The named non-abelian groups of order n, best-known names first."""
    for k in range(3, 8):
        if factorial(k) == n:
            yield f"S{k}", partial(named.symmetric, k)
        if factorial(k) == 2 * n and k > 3:
            yield f"A{k}", partial(named.alternating, k)
    if n % 2 == 0 and n >= 6:
        yield f"D{n // 2}", lambda: named.dihedral(n // 2)
    if n % 4 == 0 and n >= 8:
        yield "", lambda: named.dicyclic(n // 4)
    if n >= 16 and n & (n - 1) == 0:
        yield f"SD{n}", lambda: named.semidihedral(n)
        yield f"M{n}", lambda: named.modular(n)
    for q in range(3, isqrt(2 * n) + 2):
        if len(primes_of(q)) != 1:
            continue
        if q * (q * q - 1) == n:
            yield f"SL(2,{q})", partial(named.special_linear, q)
        if q * (q * q - 1) == 2 * n and q % 2:
            yield f"PSL(2,{q})", partial(named.projective_special_linear, q)
        if (q * q - 1) * (q * q - q) == n:
            yield f"GL(2,{q})", partial(named.general_linear, q)
        if q * (q - 1) == n:
            yield f"AGL(1,{q})", partial(named.affine, q)
    for p in primes_of(n):
        k = 1
        while p ** (1 + 2 * k) <= n:
            if p ** (1 + 2 * k) == n:
                for sign in "+-":
                    if p == 2 or sign == "+":
                        yield "", partial(named.extraspecial, p, k, sign)
            k += 1
    if n >= 16 and n & (n - 1) == 0:
        c, d = named.cyclic(n // 4), named.dihedral(4)
        yield "", lambda: named.central_product(c, d, n // 8, 2)


def _bracketed(name: str) -> str:
    return f"({name})" if " " in name else name


def describe(group: Group) -> str:
    """A structure description; families first, then direct, split and other extensions.

    The search for extensions lists normal subgroups and complements: meant for orders up to a few hundred.

    >>> from stl_search.groups.named import affine, cyclic, dihedral, direct, symmetric
    >>> describe(affine(5)), describe(direct(cyclic(6), cyclic(4))), describe(direct(symmetric(4), cyclic(2)))
    ('AGL(1,5)', 'C12 x C2', 'S4 x C2')
    """
    if group.is_abelian:
        return named.abelian(invariant_factors(abelian_invariants(group))).name
    for name, build in _families(group.order):
        model = build()
        if isomorphic(model, group):
            return name or model.name
    factors = _direct_factors(group)
    if len(factors) > 1:
        parts = [as_group(group, f) for f in factors]
        others = sorted((describe(p) for p in parts if not p.is_abelian), key=lambda text: (-len(text), text))
        flat = [q for p in parts if p.is_abelian for q in abelian_invariants(p)]
        pieces = [_bracketed(text) for text in others]
        if flat:
            pieces.append(named.abelian(invariant_factors(flat)).name)
        return " x ".join(pieces)
    if is_simple(group):
        return f"simple group of order {group.order}"
    split = _best_split(group)
    if split is not None:
        normal, acting = (describe(as_group(group, s)) for s in split)
        return f"{_bracketed(normal)} : {_bracketed(acting)}"
    normal_part = next(s for s in normal_subgroups(group) if len(s) > 1)
    return (
        f"{_bracketed(describe(as_group(group, normal_part)))} . "
        f"{_bracketed(describe(quotient(group, normal_part)[0]))}"
    )


def _direct_factors(group: Group) -> list[Subgroup]:
    """Directly indecomposable factors whose product is the group (unique up to isomorphism: Krull and Schmidt)."""
    factors: list[Subgroup] = []
    rest: Subgroup = tuple(range(group.order))
    normals = normal_subgroups(group)
    while True:
        size = len(rest)
        inside = [s for s in normals if 1 < len(s) < size and size % len(s) == 0 and set(s) <= set(rest)]
        pair = next(
            (
                (a, b)
                for a in inside
                for b in inside
                if len(a) * len(b) == size and len(set(a).intersection(b)) == 1 and len(generated(group, a + b)) == size
            ),
            None,
        )
        if pair is None:
            return [*factors, rest]
        factors.append(pair[0])  # of least order, so indecomposable: normal in the factor is normal in the group
        rest = pair[1]


def _best_split(group: Group) -> tuple[Subgroup, Subgroup] | None:
    """A normal subgroup and a complement: cyclic and abelian pieces first, then the largest normal subgroup."""
    best: tuple[tuple[bool, bool, bool, bool, int], Subgroup, Subgroup] | None = None
    for normal in normal_subgroups(group)[1:-1]:
        acting = complement(group, normal)
        if acting is None:
            continue
        parts = [as_group(group, s) for s in (normal, acting)]
        cyclic = [max(p.element_orders) == p.order for p in parts]
        score = (all(cyclic), parts[0].is_abelian and parts[1].is_abelian, cyclic[1], parts[0].is_abelian, len(normal))
        if best is None or score > best[0]:
            best = score, normal, acting
    return None if best is None else best[1:]
