"""The catalog of schemes: what ships with the package and what the user has found; every way in and out proves."""

from __future__ import annotations

from stl_search.catalog.record import Checked, Record, check_file, shorten
from stl_search.catalog.store import (
    Entry,
    Selector,
    add,
    add_composition,
    best,
    by_id,
    candidates,
    entries,
    frontier,
    load,
    parse_selector,
    remove,
    scheme_of,
    shipped_dir,
    user_dir,
)

__all__ = [
    "Checked",
    "Entry",
    "Record",
    "Selector",
    "add",
    "add_composition",
    "best",
    "by_id",
    "candidates",
    "check_file",
    "entries",
    "frontier",
    "load",
    "parse_selector",
    "remove",
    "scheme_of",
    "shipped_dir",
    "shorten",
    "user_dir",
]
