"""The command that writes small_groups_table.py, the table of all groups of order <= 63.

    python -m stl_search.groups.make_small_groups --numbering tests/golden/groups_gap.json groups/small_groups_table.py

It enumerates the groups by cyclic extension, gives each the number of the permutation group of the golden file that
it is isomorphic to (the numbers of the small groups library), and writes each as an extension of an earlier one,
about 50 characters a group. It stops where the two lists do not match one to one. 15 seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stl_search.groups.extension import ENUMERATED, Extension, enumerate_groups
from stl_search.groups.group import Group, GroupError, from_permutations
from stl_search.groups.isomorphism import isomorphic
from stl_search.groups.structure import describe

__all__ = ["main", "tabulate"]


def tabulate(numbering: Path) -> str:
    """The text of small_groups_table.py: all groups of order <= 63 with the numbers that the golden file gives them."""
    known: dict[int, list[tuple[str, Group]]] = {}
    for entry in json.loads(numbering.read_text(encoding="utf-8"))["groups"]:
        group = from_permutations(entry["permutations"], degree=None if entry["permutations"] else 1)
        known.setdefault(group.order, []).append((entry["id"], group))
    smaller: dict[int, list[Group]] = {}
    chains: dict[str, tuple[int, ...]] = {}  # id -> primes of its chain of extensions
    rows: list[str] = []
    for order in range(1, ENUMERATED + 1):
        numbered: dict[int, tuple[Group, Extension | None]] = {}
        for group, data in enumerate_groups(order, smaller):
            ids = [id for id, other in known[order] if isomorphic(group, other)]
            if len(ids) != 1:
                raise GroupError(f"a group of order {order} is {ids or 'none'} of {numbering}, it must be one")
            numbered[int(ids[0].split(".")[1])] = group.renamed(name=describe(group), id=ids[0]), data
        if sorted(numbered) != list(range(1, len(known[order]) + 1)):
            raise GroupError(f"order {order}: groups {sorted(numbered)} found, {len(known[order])} in {numbering}")
        smaller[order] = [numbered[i][0] for i in sorted(numbered)]
        for i in sorted(numbered):
            group, data = numbered[i]
            if data is None:
                rows.append(f'    ("{group.id}", "{group.name}", "", (), 0),')
                chains[group.id] = ()
            else:
                primes = chains[data.base.id]
                chains[group.id] = (*primes, data.prime)
                images = tuple(data.images[step] for step in np.cumprod((1, *primes)).tolist()[:-1])
                rows.append(f'    ("{group.id}", "{group.name}", "{data.base.id}", {images}, {data.power}),')
    return "\n".join([_HEADER, *rows, ")", ""])


_HEADER = '''"""All groups of order <= 63: number, name, and the cyclic extension that each is. Generated, not edited.

    python -m stl_search.groups.make_small_groups --numbering tests/golden/groups_gap.json groups/small_groups_table.py

One row a group (id, name, id of N, images under s of the generators of N, z): see extension.py. The numbers are those
of the small groups library. The trivial group and A5 are no extensions; their rows name no N.
"""

from __future__ import annotations

__all__ = ["ROWS"]

ROWS: tuple[tuple[str, str, str, tuple[int, ...], int], ...] = ('''


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the table of all groups of order <= 63 to a file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--numbering", type=Path, required=True, help="golden file with the numbers of the groups")
    parser.add_argument("output", type=Path, help="the file to write: groups/small_groups_table.py")
    options = parser.parse_args(arguments)
    text = tabulate(options.numbering)
    options.output.write_text(text, encoding="utf-8")
    sys.stderr.write(f"{options.output}: {text.count(chr(10))} lines\n")


if __name__ == "__main__":
    main()
