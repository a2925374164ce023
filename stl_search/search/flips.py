"""Compiled random walks in the flip graph over Z2: flips, reductions and plus-transitions, also under a symmetry.

Imported by ``flipgraph`` only when a walk is made, since numba is heavy.

A term is three factors (a, b, c), each at most 8 x 8, as bit masks: a (m, k) and b (k, n) row-major, c (n, m) the
*transpose* of w, so that the tensor is the trace of a b c and rotation (a, b, c) -> (b, c, a) needs no transposition.
Factor p of term i stands in ``val[p * CAPACITY + i]``; that place is called a slot. Under a group each term stands for
the sum of its images (its orbit), and fixed terms, which no flip touches, stand apart.

A flip takes two terms with a common factor,

    a (x) b (x) c + a (x) b' (x) c'  ->  a (x) (b + b') (x) c + a (x) b' (x) (c + c'),

and a reduction joins two terms that share two factors. Under a group an image of one term may share a factor with the
other: the same is then done to all images at once. Every slot has a key: the smallest of the images of its factor in
the first slot that the group takes it to. Slots of equal key are kept in circular lists, found by an open hash table,
and those with company stand in one array, so that a flip costs the same whatever the rank.

Kauers and Moosbauer, "Flip graphs for matrix multiplication", ISSAC 2023; plus-transitions: Arai, Ichikawa and
Hukushima, "Adaptive flip graph algorithm for matrix multiplication", ISSAC 2024; with symmetry: Moosbauer and Poole,
"Flip graphs with symmetry and new matrix multiplication schemes", ISSAC 2025.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stl_search.jit import compiled

__all__ = ["CAPACITY", "MAX_TERMS", "Group", "Walk", "settle"]

CAPACITY = 1024  # terms; a power of two, so that slots are taken apart by shifts and masks
MAX_TERMS = CAPACITY - 2  # a plus-transition adds one
_SLOTS = 3 * CAPACITY
_MAX_BITS = 12  # of a hash table: 4096 cells a factor

# Everything that indexes is unsigned: numba then needs no test for negative indices, which makes a flip 3 times faster.
_U = np.uint64
_CAP, _TOP, _MASK, _SHIFT = _U(CAPACITY), _U(_SLOTS), _U(CAPACITY - 1), _U(CAPACITY.bit_length() - 1)
_ZERO, _ONE, _TWO, _THREE, _WORD, _HALF = _U(0), _U(1), _U(2), _U(3), _U(64), _U(32)
_OCTET, _EIGHT = _U(255), _U(8)
# One uint16 array holds all book-keeping: next and previous slot of equal key, the slots with company, where each
# stands among them, and the hash table. Keys have an array of their own, and behind them which elements give them.
_NEXT, _PREV, _PAIRED, _PLACE, _TABLE = (_U(i * _SLOTS) for i in range(5))
_INDEX_SIZE = 4 * _SLOTS + (3 << _MAX_BITS)
_NONE = _U(0xFFFF)
_GOLDEN, _MIX1, _MIX2 = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)

# The head of the array of a group: its order, whether it is simple, kind and count of each slot, the most elements that
# send a slot to its kind, and where the parts begin.
_ORDER, _SIMPLE, _KIND, _COUNT, _MOST = (_U(i) for i in (0, 1, 2, 5, 8))
_SLOTS_AT, _MAPS_AT, _INTO_AT, _ALIGN_AT, _TABLES_AT = (_U(i) for i in range(9, 14))
_HEAD = 14

Bits = npt.NDArray[np.uint64]
Element = tuple[tuple[int, int, int], tuple[Any, Any, Any]]  # where it sends the slots, and its matrices
Term = tuple[int, int, int]


def _inlined(function: Callable[..., Any]) -> Any:
    """Compiled as a part of its callers: what is constant there is constant in it."""
    return compiled(function, forceinline=True)


@dataclass(frozen=True)
class Group:
    """A finite group that acts on terms, as the one array that compiled walks read (several would cost them time).

    Element e sends factor p of a term, seen as a vector of bits, to factor ``slots[e, p]`` of its image by the linear
    map ``maps[e, p]``, whose values on each byte of the vector are ``tables[map, byte, value]``; map 0 is the identity,
    element 0 the neutral one. The kind of slot p is the least slot in its orbit, and ``into[p]`` are the elements that
    send p there, as many for every slot of an orbit (its count). ``align`` has, for slots p, p' of one orbit and
    elements g of ``into[p]`` and h of ``into[p']``, what the walk needs of d = g^-1 h, which takes p' to p: which
    slots d takes to p + 1 and p + 2 (modulo 3), its maps there, and the maps of d^-1 back from p + 1 and p + 2.
    """

    order: int
    simple: bool  # every map is the identity, and the group turns the slots or leaves them
    slots: Bits
    maps: Bits
    tables: Bits
    array: Bits  # head, slots, maps, into, align, tables

    def image(self, element: int, term: Sequence[int]) -> Term:
        """The image of a term (three masks) under an element."""
        image = [0, 0, 0]
        for p in range(3):
            table = self.tables[int(self.maps[element, p])]
            value = 0
            for byte in range(8):
                value ^= int(table[byte, (int(term[p]) >> 8 * byte) & 255])
            image[int(self.slots[element, p])] = value
        return image[0], image[1], image[2]

    def images(self, terms: Bits) -> Bits:
        """(order, n, 3): the images of terms (n, 3) under every element."""
        octets = (terms[:, :, None] >> np.arange(0, 64, 8, dtype=np.uint64)) & _OCTET
        found = np.zeros((self.order, *terms.shape), dtype=np.uint64)
        for e in range(self.order):
            for p in range(3):
                values = self.tables[int(self.maps[e, p])][np.arange(8), octets[:, p]]
                found[e, :, int(self.slots[e, p])] = np.bitwise_xor.reduce(values, axis=1)
        return found

    @classmethod
    def of(cls, elements: Sequence[Element]) -> Group:
        """The group with these elements: for each, where it sends the three slots, and three 0-1 matrices.

        Matrix p is (bits of the image, bits of factor p) over GF(2). Raises ValueError when the elements are no group
        or more than 64, since a word has a bit for each.
        """
        if len(elements) > 64:
            raise ValueError(f"{len(elements)} elements; walks take groups of order at most 64")
        place = {_key_of(e): i for i, e in enumerate(elements)}
        neutral = next(
            (i for i, (slots, ms) in enumerate(elements) if slots == (0, 1, 2) and all(map(_is_one, ms))), -1
        )
        if neutral < 0 or len(place) != len(elements):
            raise ValueError("the elements are no group: the neutral one is missing, or one is there twice")
        elements = [elements[neutral], *(e for i, e in enumerate(elements) if i != neutral)]
        place = {_key_of(e): i for i, e in enumerate(elements)}
        product = [[place.get(_key_of(_product(f, g)), -1) for g in elements] for f in elements]
        if any(i < 0 for row in product for i in row):
            raise ValueError("the elements are no group: a product of two is missing")
        inverse = [row.index(0) for row in product]
        matrices: dict[Any, int] = {}
        tables = [_tables(np.eye(64, dtype=np.int64))]
        maps = np.zeros((len(elements), 3), dtype=np.uint64)
        for e, (_, ms) in enumerate(elements):
            for p, matrix in enumerate(ms):
                if not _is_one(matrix):
                    key = (matrix.shape, matrix.tobytes())
                    if key not in matrices:
                        matrices[key] = len(tables)
                        tables.append(_tables(matrix))
                    maps[e, p] = matrices[key]
        slots = np.array([s for s, _ in elements], dtype=np.uint64).reshape(-1, 3)
        kind = slots.min(axis=0)
        into = [[e for e in range(len(elements)) if slots[e, p] == kind[p]] for p in range(3)]
        count = np.array([len(es) for es in into], dtype=np.uint64)
        most = int(count.max())
        align = np.zeros((3, 3, most, most, 6), dtype=np.uint64)
        for p in range(3):
            for q in range(3):
                for g, eg in enumerate(into[p] if kind[p] == kind[q] else []):
                    for h, eh in enumerate(into[q]):
                        d = product[inverse[eg]][eh]
                        back = inverse[d]
                        s1, s2 = (p + 1) % 3, (p + 2) % 3
                        q1, q2 = int(slots[back, s1]), int(slots[back, s2])
                        align[p, q, g, h] = (q1, q2, maps[d, q1], maps[d, q2], maps[back, s1], maps[back, s2])
        padded = np.array([es + [0] * (most - len(es)) for es in into], dtype=np.uint64)
        turns = {(0, 1, 2), (1, 2, 0), (2, 0, 1)}
        simple = most == 1 and not maps.any() and all(tuple(map(int, s)) in turns for s in slots)
        parts = [slots, maps, padded, align, np.array(tables, dtype=np.uint64)]
        places = np.cumsum([_HEAD, *(part.size for part in parts)])[:-1]
        head = np.array([len(elements), simple, *kind, *count, most, *places], dtype=np.uint64)
        array = np.concatenate([head, *(part.ravel() for part in parts)])
        return cls(len(elements), simple, slots, maps, parts[-1], array)


def _is_one(matrix: Any) -> bool:
    return matrix.shape[0] == matrix.shape[1] and bool((matrix == np.eye(len(matrix))).all())


def _key_of(element: Element) -> Any:
    slots, matrices = element
    return tuple(slots), tuple(np.asarray(m, dtype=np.int64).tobytes() for m in matrices)


def _product(f: Element, g: Element) -> Element:
    """First g, then f."""
    slots = tuple(f[0][g[0][p]] for p in range(3))
    matrices = tuple((f[1][g[0][p]] @ g[1][p]) % 2 for p in range(3))
    return slots, matrices  # type: ignore[return-value]


def _tables(matrix: Any) -> Bits:
    """(8, 256): the images of the values of each byte of a vector of bits under a 0-1 matrix."""
    places = np.arange(matrix.shape[0], dtype=np.uint64)
    columns = (matrix.astype(np.uint64) << places[:, None]).sum(axis=0, dtype=np.uint64)
    columns = np.concatenate([columns, np.zeros(64 - len(columns), dtype=np.uint64)])
    table = np.zeros((8, 256), dtype=np.uint64)
    for bit in range(64):
        hit = (np.arange(256) >> bit % 8) & 1 == 1
        table[bit // 8, hit] ^= columns[bit]
    return table


@_inlined
def _mix(z: Any) -> Any:
    """The output function of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (z ^ (z >> _U(30))) * _MIX1
    z = (z ^ (z >> _U(27))) * _MIX2
    return z ^ (z >> _U(31))


@compiled
def _below(state: Any, n: int) -> Any:
    """A random integer in 0 .. n-1."""
    state[0] += _GOLDEN
    return np.int64(((_mix(state[0]) >> _HALF) * _U(n)) >> _HALF)


@_inlined
def _turn(s: Any) -> Any:
    """The slot of the next factor of the same term."""
    t = s + _CAP
    return t - _TOP if t >= _TOP else t


@compiled
def _mapped(group: Any, m: Any, x: Any) -> Any:
    """The image of a mask under map m."""
    if m == _ZERO:
        return x
    y = _ZERO
    table = group[_TABLES_AT] + (m << _U(11))
    while x != _ZERO:
        y ^= group[table + (x & _OCTET)]
        x >>= _EIGHT
        table += _U(256)
    return y


@compiled
def _brought(group: Any, p: Any, g: Any, x: Any) -> Any:
    """The image of factor p in the first slot of its orbit, under the g-th of the elements that bring it there."""
    e = group[group[_INTO_AT] + p * group[_MOST] + g]
    return _mapped(group, group[group[_MAPS_AT] + e * _THREE + p], x)


@compiled
def _way(group: Any, p: Any, q: Any, g: Any, h: Any) -> Any:
    """Where the six numbers of ``align`` begin for slots p, q and their g-th and h-th element."""
    most = group[_MOST]
    return group[_ALIGN_AT] + _U(6) * (((p * _THREE + q) * most + g) * most + h)


@_inlined
def _choose_key(val: Any, key: Any, s: Any, group: Any, simple: bool) -> Any:
    """The key of slot s; which of the elements that bring it to its first slot give it is noted, a bit each."""
    x = val[s]
    if simple:
        key[s] = x
        return x
    p = s >> _SHIFT
    best = _brought(group, p, _ZERO, x)
    ties = _ONE
    g = _ONE
    while g < group[_COUNT + p]:
        y = _brought(group, p, g, x)
        if y < best:
            best, ties = y, _ONE << g
        elif y == best:
            ties |= _ONE << g
        g += _ONE
    key[s] = best
    key[_TOP + s] = ties
    return best


@_inlined
def _home(x: Any, s: Any, bits: Any, kinds: Any) -> Any:
    """The cell where key x of slot s belongs: one table for each orbit of slots (``kinds``: see ``_kinds``)."""
    return ((x * _GOLDEN) >> (_WORD - bits)) + (((kinds >> ((s >> _SHIFT) << _THREE)) & _THREE) << bits)


@compiled
def _kinds(group: Any) -> Any:
    """The kinds of the three slots in one word, a byte each."""
    return group[_KIND] | (group[_KIND + _ONE] << _EIGHT) | (group[_KIND + _TWO] << _U(16))


@_inlined
def _next_bit(mask: Any, h: Any) -> Any:
    """The first place of a one from place h on; there must be one."""
    while (mask >> h) & _ONE == _ZERO:
        h += _ONE
    return h


@_inlined
def _meets(val: Any, s: Any, t: Any, key: Any, group: Any, simple: bool) -> bool:
    """Whether the terms of slots s and t, whose keys are equal, have images that share this and another factor."""
    s1 = _turn(s)
    y, z = val[s1], val[_turn(s1)]
    if simple:
        t1 = _turn(t)
        return bool((val[t1] == y) | (val[_turn(t1)] == z))
    j, p, q = t & _MASK, s >> _SHIFT, t >> _SHIFT
    g, h = _next_bit(key[_TOP + s], _ZERO), _ZERO
    ties = key[_TOP + t]
    while ties >> h != _ZERO:
        h = _next_bit(ties, h)
        way = _way(group, p, q, g, h)
        if _mapped(group, group[way + _TWO], val[group[way] * _CAP + j]) == y:
            return True
        if _mapped(group, group[way + _THREE], val[group[way + _ONE] * _CAP + j]) == z:
            return True
        h += _ONE
    return False


@compiled
def _image(val: Any, j: Any, e: Any, image: Any, group: Any) -> None:
    """The image of term j under element e, in an array of three."""
    for p in range(3):
        at = e * _THREE + _U(p)
        x = _mapped(group, group[group[_MAPS_AT] + at], val[_U(p) * _CAP + j])
        image[group[group[_SLOTS_AT] + at]] = x


@compiled
def _stable(val: Any, i: Any, group: Any) -> Any:
    """How many elements leave term i as it is."""
    found = _ZERO
    e = _ZERO
    while e < group[_ORDER]:
        same = True
        for p in range(3):
            at = e * _THREE + _U(p)
            x = _mapped(group, group[group[_MAPS_AT] + at], val[_U(p) * _CAP + i])
            if x != val[group[group[_SLOTS_AT] + at] * _CAP + i]:
                same = False
                break
        if same:
            found += _ONE
        e += _ONE
    return found


@_inlined
def _link(val: Any, key: Any, index: Any, paired: Any, s: Any, bits: Any, kinds: Any, group: Any, simple: bool) -> Any:
    """Take slot s into the lists; (number of paired slots, what became of its term: 1 where it can be reduced, 2 where
    several elements leave it as it is, 3 for both, or else 0)."""
    x = _choose_key(val, key, s, group, simple)
    h = _home(x, s, bits, kinds)
    mask = (_ONE << bits) - _ONE
    head = _U(index[_TABLE + h])
    while head != _NONE and key[head] != x:
        h = (h & ~mask) | ((h + _ONE) & mask)
        head = _U(index[_TABLE + h])
    if head == _NONE:
        index[_TABLE + h] = s
        index[_NEXT + s] = s
        index[_PREV + s] = s
        return paired, _ZERO
    after = _U(index[_NEXT + head])
    if after == head:
        index[_PLACE + head] = paired
        index[_PAIRED + paired] = head
        paired += _ONE
    index[_NEXT + head] = s
    index[_PREV + s] = head
    index[_NEXT + s] = after
    index[_PREV + after] = s
    index[_PLACE + s] = paired
    index[_PAIRED + paired] = s
    paired += _ONE
    news = _ZERO
    t = head
    while t != s:
        if (s ^ t) & _MASK != _ZERO:
            if _meets(val, s, t, key, group, simple):
                news |= _ONE
        elif _stable(val, s & _MASK, group) > _ONE:
            news |= _TWO
        t = _U(index[_PREV + t])
    return paired, news


@_inlined
def _leave(index: Any, paired: Any, s: Any) -> Any:
    """Strike slot s from the paired ones."""
    place = _U(index[_PLACE + s])
    paired -= _ONE
    last = _U(index[_PAIRED + paired])
    index[_PAIRED + place] = last
    index[_PLACE + last] = place
    return paired


@_inlined
def _unlink(key: Any, index: Any, paired: Any, s: Any, bits: Any, kinds: Any) -> Any:
    """Take slot s out of the lists; returns the number of paired slots."""
    x = key[s]
    h = _home(x, s, bits, kinds)
    mask = (_ONE << bits) - _ONE
    head = _U(index[_TABLE + h])
    while key[head] != x:
        h = (h & ~mask) | ((h + _ONE) & mask)
        head = _U(index[_TABLE + h])
    after = _U(index[_NEXT + s])
    if after != s:
        before = _U(index[_PREV + s])
        index[_NEXT + before] = after
        index[_PREV + after] = before
        index[_TABLE + h] = after
        paired = _leave(index, paired, s)
        if before == after:
            paired = _leave(index, paired, after)
        return paired
    hole, cell = h, h  # the last of its key: its cell is emptied, and later ones move up (Knuth 6.4, algorithm R)
    while True:
        cell = (cell & ~mask) | ((cell + _ONE) & mask)
        head = _U(index[_TABLE + cell])
        if head == _NONE:
            break
        if ((cell - _home(key[head], head, bits, kinds)) & mask) >= ((cell - hole) & mask):
            index[_TABLE + hole] = head
            hole = cell
    index[_TABLE + hole] = _NONE
    return paired


@compiled
def _table_bits(count: int) -> Any:
    """How many bits the cells of a hash table are numbered by that takes so many slots: eight cells a slot."""
    bits = _U(4)
    while bits < _U(_MAX_BITS) and (1 << np.int64(bits)) < 8 * count:
        bits += _ONE
    return bits


@compiled
def _build(val: Any, n: int, key: Any, index: Any, bits: Any, kinds: Any, group: Any, simple: bool) -> Any:
    """The lists of the first n terms from scratch; returns the number of paired slots."""
    for cell in range(3 << bits):
        index[_TABLE + _U(cell)] = _NONE
    paired = _ZERO
    for p in range(3):
        for i in range(n):
            paired, _ = _link(val, key, index, paired, _U(p) * _CAP + _U(i), bits, kinds, group, simple)
    return paired


@compiled
def _remove(val: Any, n: int, i: int) -> int:
    """Term i out, the last one in its place; returns the number of terms."""
    n -= 1
    for p in range(3):
        val[p * CAPACITY + i] = val[p * CAPACITY + n]
    return n


@compiled
def settle(val: Any, n: int, image: Any, group: Any) -> int:
    """Drop terms that are zero and join terms that share two factors, as long as there are any; returns their number.

    A term that an even number of elements leave as it is comes to nothing over Z2. image: room for three masks.
    """
    order = np.int64(group[_ORDER])
    again = True
    while again:
        again = False
        i = 0
        while i < n:
            zero = val[i] == _ZERO or val[CAPACITY + i] == _ZERO or val[2 * CAPACITY + i] == _ZERO
            if zero or (order > 1 and _stable(val, _U(i), group) & _ONE == _ZERO):
                n = _remove(val, n, i)
            else:
                i += 1
        for i in range(n):
            for e in range(order):
                _image(val, _U(i), _U(e), image, group)
                x, y, z = image[0], image[1], image[2]
                for j in range(i + 1, n):
                    a, b, c = val[j], val[CAPACITY + j], val[2 * CAPACITY + j]
                    if int(x == a) + int(y == b) + int(z == c) >= 2:
                        if x != a:
                            val[j] = x ^ a
                        elif y != b:
                            val[CAPACITY + j] = y ^ b
                        else:
                            val[2 * CAPACITY + j] = z ^ c
                        n = _remove(val, n, i)
                        again = True
                        break
                if again:
                    break
            if again:
                break
    return n


@compiled
def _plus(val: Any, n: int, image: Any, group: Any, state: Any) -> int:
    """One more term: a split of a term by a factor of another one, and a flip of the two, where all factors differ.

    a (x) b (x) c + a' (x) b' (x) c' -> a (x) (b + b') (x) c + a (x) b' (x) (c + c') + (a + a') (x) b' (x) c'

    Where no two terms are found that differ in all factors, the split alone. The second term is a random one of its
    images.
    """
    if n < 2:
        return n
    for attempt in range(32):
        i, j = _below(state, n), _below(state, n)
        if i == j:
            continue
        _image(val, _U(j), _U(_below(state, np.int64(group[_ORDER]))), image, group)
        p = _below(state, 3)
        step = 1 + _below(state, 2)
        p1 = (p + step) % 3
        p2 = (p1 + step) % 3
        a1, b1, c1 = val[p * CAPACITY + i], val[p1 * CAPACITY + i], val[p2 * CAPACITY + i]
        a2, b2, c2 = image[p], image[p1], image[p2]
        if a1 == a2:
            continue
        if attempt < 16:
            if b1 == b2 or c1 == c2:
                continue
            val[p1 * CAPACITY + i] = b1 ^ b2
            val[p2 * CAPACITY + n] = c1 ^ c2
        else:
            val[p2 * CAPACITY + n] = c2
        val[p * CAPACITY + n] = a1
        val[p1 * CAPACITY + n] = b2
        val[p * CAPACITY + j] = a1 ^ a2
        val[p1 * CAPACITY + j] = b2
        val[p2 * CAPACITY + j] = c2
        return n + 1
    return n


@compiled
def _rank(val: Any, n: int, fixed: Any, image: Any, group: Any) -> Any:
    """Terms in all, images counted. Modulo 2 an orbit of g elements whose term an odd number s of them leave as it is
    is g / s terms, and fewer by two for each that is a fixed term as well; for an even s it is nothing."""
    order = np.int64(group[_ORDER])
    rank = len(fixed) + order * n
    if order > 1:
        for i in range(n):
            stable = np.int64(_stable(val, _U(i), group))
            if stable == 1:
                continue
            rank -= order
            if stable % 2 == 0:
                continue
            rank += order // np.int64(stable)
            for f in range(len(fixed)):
                for e in range(order):
                    _image(val, _U(i), _U(e), image, group)
                    if fixed[f, 0] == image[0] and fixed[f, 1] == image[1] and fixed[f, 2] == image[2]:
                        rank -= 2
                        break
    return rank


@_inlined
def _advance(
    val: Any,
    key: Any,
    sizes: Any,
    fixed: Any,
    best: Any,
    best_sizes: Any,
    index: Any,
    state: Any,
    group: Any,
    steps: int,
    patience: int,
    margin: int,
    target: int,
    simple: bool,
) -> int:
    """Walk for ``steps`` steps, or until a reduction ends at rank <= ``target``; returns the steps made.

    A step is a flip, except where it drew two factors of one orbit. sizes: (terms, flips made so far); fixed: terms
    that stay; best_sizes: (terms, rank) of the copy in ``best`` of the last state of the lowest rank met. After
    ``patience`` steps without a reduction a plus-transition is made, where the rank is below the best one + margin;
    where there is nothing to flip, one is made at once (none and the end of the walk with margin 0).
    """
    order = np.int64(group[_ORDER])
    kinds = _kinds(group)
    image = np.zeros(3, dtype=np.uint64)
    n = sizes[0]
    first, second, third = group[_KIND], group[_KIND + _ONE], group[_KIND + _TWO]
    bits = _table_bits(n * (1 + max(int(first == second) + int(first == third), int(second == third))))
    paired = _build(val, n, key, index, bits, kinds, group, simple)
    done, since = 0, 0
    while done < steps:
        left = min(steps - done, patience - since)
        made, void = left, 0
        event = False
        stuck = paired == _ZERO
        if stuck:
            made = 1
        else:
            x = state[0]
            # a term that is its own image makes the rank less, but is no less of a term: news where it is a record
            worth = _THREE if len(fixed) + order * (n - 1) < best_sizes[1] else _ONE
            for f in range(left):
                x += _GOLDEN
                r = _mix(x)
                s = _U(index[_PAIRED + (((r >> _HALF) * paired) >> _HALF)])
                t = _U(index[_NEXT + s]) if r & _ONE else _U(index[_PREV + s])
                if (s ^ t) & _MASK == _ZERO:  # two factors of one orbit
                    void += 1
                    continue
                s1, t1 = _turn(s), _turn(t)
                s2, t2 = _turn(s1), _turn(t1)
                swap = (r & _TWO) != _ZERO
                if simple:
                    sa, ta = (s2, t2) if swap else (s1, t1)
                    sb, tb = (s1, t1) if swap else (s2, t2)
                    a = val[sa] ^ val[ta]
                    b = val[sb] ^ val[tb]
                else:
                    p, q, j = s >> _SHIFT, t >> _SHIFT, t & _MASK
                    ties = key[_TOP + t]  # where several elements give the key of t, any of them
                    h = (((r >> _TWO) & _U(0xFFFF)) * group[_COUNT + q]) >> _U(16)
                    h = _next_bit(ties, h if ties >> h != _ZERO else _ZERO)
                    way = _way(group, p, q, _next_bit(key[_TOP + s], _ZERO), h)
                    k1, k2 = (_ONE, _ZERO) if swap else (_ZERO, _ONE)
                    sa, ta = (s2 if swap else s1), group[way + k1] * _CAP + j
                    sb, tb = (s1 if swap else s2), group[way + k2] * _CAP + j
                    a = val[sa] ^ _mapped(group, group[way + _TWO + k1], val[ta])
                    b = val[tb] ^ _mapped(group, group[way + _U(4) + k2], val[sb])
                if a == _ZERO or b == _ZERO:
                    val[sa] = a
                    val[tb] = b
                    event = True
                else:
                    paired = _unlink(key, index, paired, sa, bits, kinds)
                    paired = _unlink(key, index, paired, tb, bits, kinds)
                    val[sa] = a
                    val[tb] = b
                    paired, one = _link(val, key, index, paired, sa, bits, kinds, group, simple)
                    paired, other = _link(val, key, index, paired, tb, bits, kinds, group, simple)
                    event = (one | other) & worth != _ZERO
                if event:
                    made = f + 1
                    break
            state[0] = x
            sizes[1] += made - void
        done += made
        since += made
        if event:
            terms = n
            n = settle(val, n, image, group)
            since = 0 if n < terms else since
            rank = _rank(val, n, fixed, image, group)
            if rank <= best_sizes[1]:  # of equal ranks the last: another scheme, for those who go on from it
                best_sizes[0] = n
                best_sizes[1] = rank
                for factor in range(3):
                    for i in range(n):
                        best[factor * CAPACITY + i] = val[factor * CAPACITY + i]
            if rank <= target:
                break
            paired = _build(val, n, key, index, bits, kinds, group, simple)
        elif stuck or since >= patience:
            since = 0
            if stuck and (margin == 0 or n < 2):
                break
            if (stuck or len(fixed) + order * n < best_sizes[1] + margin) and n < MAX_TERMS:
                n = _plus(val, n, image, group, state)
                paired = _build(val, n, key, index, bits, kinds, group, simple)
    sizes[0] = n
    return done


@compiled
def _advance_simple(
    val: Any,
    key: Any,
    sizes: Any,
    fixed: Any,
    best: Any,
    best_sizes: Any,
    index: Any,
    state: Any,
    group: Any,
    steps: int,
    patience: int,
    margin: int,
    target: int,
) -> int:
    """``_advance`` for a group without maps: the compiler leaves out all that has to do with them."""
    return int(
        _advance(val, key, sizes, fixed, best, best_sizes, index, state, group, steps, patience, margin, target, True)
    )


@compiled
def _advance_group(
    val: Any,
    key: Any,
    sizes: Any,
    fixed: Any,
    best: Any,
    best_sizes: Any,
    index: Any,
    state: Any,
    group: Any,
    steps: int,
    patience: int,
    margin: int,
    target: int,
) -> int:
    """``_advance`` for any group."""
    return int(
        _advance(val, key, sizes, fixed, best, best_sizes, index, state, group, steps, patience, margin, target, False)
    )


class Walk:
    """A walker: terms (r', 3) of bit masks, one for each orbit of ``group``, fixed terms (f, 3), and what it has met.

    Two walkers with equal terms, seed and calls of ``run`` make equal flips.
    """

    def __init__(self, terms: Bits, fixed: Bits, group: Group, rng: np.random.Generator) -> None:
        if len(terms) > MAX_TERMS:
            raise ValueError(f"{len(terms)} terms; a walk takes at most {MAX_TERMS}")
        self.group = group
        self.fixed = np.array(fixed, dtype=np.uint64).reshape(-1, 3)
        self._group = group.array
        self._val = np.zeros(_SLOTS, dtype=np.uint64)
        self._key = np.zeros(2 * _SLOTS, dtype=np.uint64)
        for p in range(3):
            self._val[p * CAPACITY : p * CAPACITY + len(terms)] = terms[:, p]
        room = np.zeros(3, dtype=np.uint64)
        n = int(settle(self._val, len(terms), room, self._group))
        self._sizes = np.array([n, 0], dtype=np.int64)
        self._best = self._val.copy()
        self._best_sizes = np.array([n, int(_rank(self._val, n, self.fixed, room, self._group))], dtype=np.int64)
        self._index = np.zeros(_INDEX_SIZE, dtype=np.uint16)
        self._state = rng.integers(0, 2**64, size=1, dtype=np.uint64)

    @property
    def rank(self) -> int:
        """The rank where the walk stands."""
        return int(_rank(self._val, int(self._sizes[0]), self.fixed, np.zeros(3, dtype=np.uint64), self._group))

    @property
    def flips(self) -> int:
        """The flips made so far."""
        return int(self._sizes[1])

    @property
    def best_rank(self) -> int:
        """The lowest rank met."""
        return int(self._best_sizes[1])

    def run(self, steps: int, patience: int, margin: int, target: int = 0) -> int:
        """Walk on (see ``_advance``); returns the steps made."""
        walk = _advance_simple if self.group.simple else _advance_group
        done = walk(
            self._val,
            self._key,
            self._sizes,
            self.fixed,
            self._best,
            self._best_sizes,
            self._index,
            self._state,
            self._group,
            steps,
            patience,
            margin,
            target,
        )
        return int(done)

    def terms(self, best: bool = False) -> Bits:
        """(r, 3): every term where the walk stands, or where its rank was lowest; orbits are written out."""
        val, n = (self._best, int(self._best_sizes[0])) if best else (self._val, int(self._sizes[0]))
        orbits = np.stack([val[p * CAPACITY : p * CAPACITY + n] for p in range(3)], axis=1)
        if self.group.order == 1 and not len(self.fixed):
            return orbits
        images = self.group.images(orbits).reshape(-1, 3)
        parity = Counter(map(tuple, np.concatenate([images, self.fixed]).tolist()))
        return np.array(sorted(t for t, c in parity.items() if c % 2), dtype=np.uint64).reshape(-1, 3)
