"""All groups of order <= 63 by number, and groups by name: "16.3", "D4", "C4 x C2", "PSL(2,7)".

Numbers are those of the small groups library (16.3 is SmallGroup(16, 3) there). The groups are stored as cyclic
extensions of one another (small_groups_table.py, written by extension.py) and built when asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from stl_search.groups import named
from stl_search.groups.extension import extend, spread
from stl_search.groups.group import Group, GroupError
from stl_search.groups.isomorphism import isomorphic
from stl_search.groups.small_groups_table import ROWS

__all__ = ["MAX_LIBRARY_ORDER", "all_groups", "count", "get", "identify", "names", "small_group"]

MAX_LIBRARY_ORDER = 63

_ROWS = {row[0]: row for row in ROWS}


def count(order: int) -> int:
    """The number of groups of an order <= 63 (OEIS A000001). Raises GroupError for other orders.

    >>> [count(n) for n in (1, 8, 16, 32, 48)]
    [1, 5, 14, 51, 52]
    """
    if not 1 <= order <= MAX_LIBRARY_ORDER:
        raise GroupError(f"the library holds the groups of order 1..{MAX_LIBRARY_ORDER}, not of order {order}")
    return sum(id.split(".")[0] == str(order) for id in _ROWS)


def _primes(id: str) -> tuple[int, ...]:
    """Indices in the chain of extensions that makes up a group, from the trivial group up."""
    base = _ROWS[id][2]
    if not base:
        return ()
    return (*_primes(base), int(id.split(".")[0]) // int(base.split(".")[0]))


@lru_cache(maxsize=512)
def small_group(id: str) -> Group:
    """The group with a number such as "16.3". Elements are words in a, b, c, ...; raises GroupError for no such id.

    >>> small_group("8.4")
    <Group Q8 = 8.4 of order 8>
    """
    if id not in _ROWS:
        order = id.split(".")[0]
        if order.isdigit() and 1 <= int(order) <= MAX_LIBRARY_ORDER:
            raise GroupError(f"no group {id}: the groups of order {order} are {order}.1 to {order}.{count(int(order))}")
        raise GroupError(f"no group {id!r}: numbers run from 1.1 to {ROWS[-1][0]}")
    _, name, base_id, images, power = _ROWS[id]
    if not base_id:
        plain = named.alternating(5) if id == "60.5" else named.cyclic(1)
        return plain.renamed(name=name, id=id)
    base = small_group(base_id)
    *primes, last = _primes(id)
    return extend(base, last, spread(base, primes, images), power).renamed(name=name, id=id)


@lru_cache(maxsize=64)
def all_groups(order: int) -> tuple[Group, ...]:
    """All groups of an order <= 63, one of each isomorphism type, by number.

    >>> [g.name for g in all_groups(8)]
    ['C8', 'C4 x C2', 'D4', 'Q8', 'C2^3']
    """
    return tuple(small_group(f"{order}.{i}") for i in range(1, count(order) + 1))


def names() -> Iterator[tuple[str, str]]:
    """Pairs (id, name) of all groups of the library, by number."""
    return ((row[0], row[1]) for row in ROWS)


def identify(group: Group) -> str:
    """The number of the group that is isomorphic to ``group``. Raises GroupError above order 63.

    >>> identify(named.heisenberg(2)), identify(named.projective_special_linear(4))
    ('8.3', '60.5')
    """
    if group.order > MAX_LIBRARY_ORDER:
        raise GroupError(f"groups are numbered up to order {MAX_LIBRARY_ORDER}, this one has order {group.order}")
    for candidate in all_groups(group.order):
        if isomorphic(candidate, group):
            return candidate.id
    raise AssertionError(f"{group!r} is missing in the library, which is complete")


def _numbered(group: Group) -> Group:
    """With its library number where there is one."""
    return group.renamed(id=identify(group)) if group.order <= MAX_LIBRARY_ORDER else group


_BY_NUMBER: dict[str, Callable[[int], Group]] = {
    "C": named.cyclic,
    "Z": named.cyclic,
    "D": named.dihedral,
    "Dic": named.dicyclic,
    "Q": named.quaternion,
    "SD": named.semidihedral,
    "M": named.modular,
    "S": named.symmetric,
    "A": named.alternating,
}
_BY_FIELD: dict[str, Callable[[int], Group]] = {
    "AGL(1,": named.affine,
    "PSL(2,": named.projective_special_linear,
    "SL(2,": named.special_linear,
    "GL(2,": named.general_linear,
    "Heis(": named.heisenberg,
}
_EXAMPLES = (
    "C12 or Z12, D4 (of order 8), Dic3 (of order 12), Q8, SD16, M16, S4, A5, AGL(1,5), PSL(2,7), SL(2,3), GL(2,3), "
    "Heis(3), 2^(1+4)+, products and powers of these (D4 x C2^3), and the numbers 1.1 to 63.4"
)

_FACTOR = re.compile(r"([A-Za-z]+)_?(\d+)(?:\^(\d+))?")
_LINEAR = re.compile(r"((?:AGL|PSL|SL|GL|Heis)\((?:[12],)?)(\d+)\)(?:\^(\d+))?")
_EXTRASPECIAL = re.compile(r"(\d+)\^\(1\+(\d+)\)([+-])(?:\^(\d+))?")


def _factor(text: str) -> Group | None:
    """One factor of a product, or None where the text is no name of a family."""
    if match := _EXTRASPECIAL.fullmatch(text):
        if int(match[2]) % 2:
            raise GroupError(f"{text}: an extraspecial group has order p^(1+2n)")
        return _repeated(named.extraspecial(int(match[1]), int(match[2]) // 2, match[3]), match[4])
    if (match := _LINEAR.fullmatch(text)) and match[1] in _BY_FIELD:
        return _repeated(_BY_FIELD[match[1]](int(match[2])), match[3])
    if (match := _FACTOR.fullmatch(text)) and match[1] in _BY_NUMBER:
        if match[1] in "CZ" and match[3]:
            return named.elementary_abelian(int(match[2]), int(match[3]))
        return _repeated(_BY_NUMBER[match[1]](int(match[2])), match[3])
    return None


def _repeated(group: Group, exponent: str | None) -> Group:
    return named.direct(*[group] * int(exponent or 1))


def get(name: str) -> Group:
    """The group that a text names: a number, a family, a direct product of these, or a name of the library.

    Names of the library may stand for several groups; then GroupError lists their numbers. Unknown names list what
    is known.

    >>> get("Z2^3"), get("D4 x C2").id, get("PSL(2,7)").order
    (<Group C2^3 = 8.5 of order 8>, '16.11', 168)
    >>> get("C8 : C4")
    Traceback (most recent call last):
        ...
    stl_search.groups.group.GroupError: 'C8 : C4' names several groups: 32.4, 32.13, 32.14; choose one by number
    """
    text = re.sub(r"\s+", " ", name.strip().replace("×", "x").replace("∘", "o"))
    if re.fullmatch(r"\d+\.\d+", text):
        return small_group(text)
    factors = [_factor(part.strip()) for part in re.split(r" ?x ?", text)]
    if factors and all(f is not None for f in factors):
        return _numbered(named.direct(*(f for f in factors if f is not None)))
    ids = [id for id, known in names() if known == text]
    if len(ids) == 1:
        return small_group(ids[0])
    if ids:
        raise GroupError(f"{text!r} names several groups: {', '.join(ids)}; choose one by number")
    raise GroupError(f"no group is called {name!r}; known are {_EXAMPLES}")
