"""stl-search: find, prove, keep and run algebraic encoders for fast and approximate matrix multiplication.

    import stl_search as stl
    C = stl.amm(A, B, encoder="catalog:best")

Importing this package is cheap: torch and the other heavy libraries are loaded by the first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stl_search.errors import StlError
from stl_search.scheme import Scheme
from stl_search.verify import verify  # eager: the function, not the module of that name, is `stl.verify`

if TYPE_CHECKING:
    from stl_search.catalog.store import load
    from stl_search.runtime.amm import amm, encode_lhs, encode_rhs, explain
    from stl_search.runtime.estimate import apriori_bound, estimate_error
    from stl_search.search.portfolio import discover

__version__ = "0.1.0"

__all__ = [
    "Scheme",
    "StlError",
    "amm",
    "apriori_bound",
    "discover",
    "encode_lhs",
    "encode_rhs",
    "estimate_error",
    "explain",
    "load",
    "verify",
]

_LAZY = {
    "amm": "stl_search.runtime.amm",
    "encode_lhs": "stl_search.runtime.amm",
    "encode_rhs": "stl_search.runtime.amm",
    "explain": "stl_search.runtime.amm",
    "apriori_bound": "stl_search.runtime.estimate",
    "estimate_error": "stl_search.runtime.estimate",
    "discover": "stl_search.search.portfolio",
    "load": "stl_search.catalog.store",
}
_SUBPACKAGES = ("bench", "catalog", "groups", "kernels", "nn", "runtime", "search")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        found = getattr(import_module(_LAZY[name]), name)
    elif name in _SUBPACKAGES:
        found = import_module(f"stl_search.{name}")
    else:
        raise AttributeError(f"module 'stl_search' has no attribute {name!r}")
    globals()[name] = found  # the next call finds it at once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_SUBPACKAGES})
