"""Who may import whom: reads every source file with `ast` and holds it against the table of docs/architecture.md.

Also guards the packaging that the table rests on: the links into stl_search/ and the list of packages.
"""

from __future__ import annotations

import ast
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "stl_search"
LINKED = ("groups", "kernels", "catalog")  # folders of the checkout that are packages inside stl_search
BARE = {*LINKED, "cli"}  # names that belong to other packages on the index, never ours at the top level

FOUNDATION = {"errors", "rings", "jit"}
COEFFICIENTS = FOUNDATION | {"scheme", "verify", "transform", "score", "formats"}
RUNTIME = COEFFICIENTS | {"programs", "kernels", "catalog", "runtime"}
BENCH = RUNTIME | {"additions", "known", "decompose", "discretize", "groups", "search", "nn", "bench", "__init__"}
ALL = BENCH | {"cli"}

# Layer -> layers that it may import, besides itself. A layer is a module or package directly inside stl_search;
# "__init__" is stl_search itself (its lazy attributes), which only the outermost layers may use.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "rings": {"errors"},
    "jit": set(),
    "scheme": FOUNDATION,
    "verify": FOUNDATION | {"scheme"},
    "transform": FOUNDATION | {"scheme"},
    "decompose": FOUNDATION | {"scheme"},
    "discretize": FOUNDATION | {"scheme", "decompose", "verify"},
    "score": FOUNDATION | {"scheme"},
    "known": FOUNDATION | {"scheme"},
    "programs": FOUNDATION | {"scheme"},
    "additions": FOUNDATION | {"scheme", "score", "programs"},
    "formats": FOUNDATION | {"scheme", "transform", "verify"},
    "groups": FOUNDATION,
    "kernels": FOUNDATION | {"scheme", "score"},
    "catalog": COEFFICIENTS | {"programs"},
    "search": COEFFICIENTS
    | {"known", "programs", "additions", "decompose", "discretize", "groups", "kernels", "catalog"},
    "runtime": RUNTIME,
    "nn": RUNTIME,
    "bench": BENCH,
    "cli": ALL,
    "__init__": ALL,
    "__main__": ALL,
    "testing": ALL,  # imports anything; nobody imports it
}


@dataclass(frozen=True)
class Source:
    """One file: where it is, its text, and its dotted name when it is part of the library (else "")."""

    path: str
    text: str
    module: str = ""

    @property
    def layer(self) -> str:
        """The layer it belongs to: "search" for stl_search.search.journal, "__init__" for stl_search itself."""
        return self.module.split(".")[1] if "." in self.module else "__init__"

    @property
    def package(self) -> str:
        """The package against which its relative imports are resolved."""
        return self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]


def python_files(top: Path) -> Iterator[Path]:
    """The .py files under a folder, through links; hidden, built and environment folders are left out."""
    for folder, subfolders, names in os.walk(top, followlinks=True):
        subfolders[:] = sorted(
            s
            for s in subfolders
            if not s.startswith(".")
            and s not in {"build", "dist", "__pycache__"}
            and not (Path(folder) / s / "pyvenv.cfg").exists()
        )
        yield from (Path(folder) / name for name in sorted(names) if name.endswith(".py"))


def read_sources(root: Path) -> list[Source]:
    """Every file once: those of the library under their dotted names, then all others."""
    found: dict[Path, Source] = {}
    for path in python_files(root / PACKAGE):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        real = path.resolve()
        assert real not in found, f"{path} is {found[real].module} already"
        found[real] = Source(str(real.relative_to(root)), real.read_text("utf-8"), module)
    for path in python_files(root):
        real = path.resolve()
        if real not in found:
            found[real] = Source(str(real.relative_to(root)), real.read_text("utf-8"))
    return list(found.values())


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a file imports, at any depth: in functions and under
    TYPE_CHECKING too, and by import_module or __import__ with a literal name."""
    for node in ast.walk(ast.parse(source.text, source.path)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=name, names=names, level=level):
                base = absolute("." * level + (name or ""), source)
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, absolute(name, source)


def absolute(name: str, source: Source) -> str:
    """A relative name made absolute; one that leaves the package becomes "<outside>"."""
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    if level == 0:
        return name
    parts = source.package.split(".") if source.package else []
    parts = parts[: len(parts) - level + 1]
    return ".".join([*parts, rest] if rest else parts) if parts else "<outside>"


def target_layer(name: str) -> str | None:
    """The layer that an imported name of the library belongs to; None for a dunder such as stl_search.__version__."""
    first = name.split(".")[1] if "." in name else "__init__"
    if first in LAYERS:
        return first
    return None if first.startswith("__") and first.endswith("__") else "__init__"


def violations(sources: list[Source]) -> list[str]:
    """One line for each import that breaks a rule: file, line, what is wrong."""
    lines = []
    for source in sources:
        if source.module and source.layer not in LAYERS:
            lines.append(f"{source.path}: {source.layer!r} has no row in the layer table; add one on purpose")
            continue
        allowed = {*LAYERS.get(source.layer, ()), source.layer} - {"testing"}
        for line, name in imports(source):
            where = f"{source.path}:{line}"
            top = name.partition(".")[0]
            if top in BARE:
                lines.append(f"{where}: imports {top!r} as a top-level name; write {PACKAGE}.{top}")
            elif top == "<outside>":
                lines.append(f"{where}: a relative import leaves the package")
            elif top == PACKAGE and source.module:
                layer = target_layer(name)
                if layer is not None and layer not in allowed:
                    lines.append(f"{where}: {source.layer} may not import {layer}")
    return lines


def test_no_file_of_the_checkout_breaks_a_layer_rule() -> None:
    sources = read_sources(ROOT)
    assert {f"{PACKAGE}.{name}" for name in LINKED} <= {s.module for s in sources}, "the links were not followed"
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("scheme", "import stl_search.verify", "scheme may not import verify"),
        ("scheme", "from stl_search import verify", "scheme may not import verify"),
        ("scheme", "from . import verify", "scheme may not import verify"),
        ("scheme", "from .verify import verify", "scheme may not import verify"),
        ("scheme", "import numpy, stl_search.errors, stl_search.catalog.store", "scheme may not import catalog"),
        ("errors", "from stl_search.rings import Ring", "errors may not import rings"),
        ("verify", "from stl_search.transform import permute", "verify may not import transform"),
        ("transform", "def f():\n    from stl_search.verify import verify", ":2: transform may not import verify"),
        (
            "score",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stl_search.search import Problem",
            ":3: score may not import search",
        ),
        ("formats", "from stl_search.catalog import add", "formats may not import catalog"),
        ("groups.tpp", "from stl_search.scheme import Scheme", "groups may not import scheme"),
        ("groups.tpp", "from ..scheme import Scheme", "groups may not import scheme"),
        ("kernels.plan", "from stl_search.runtime.dispatch import x", "kernels may not import runtime"),
        ("catalog.store", "from stl_search.kernels.plan import Plan", "catalog may not import kernels"),
        ("search.orbit", "from stl_search.runtime import amm", "search may not import runtime"),
        ("runtime.amm", "from stl_search import search", "runtime may not import search"),
        ("runtime.amm", "import stl_search.groups.small", "runtime may not import groups"),
        ("nn.linear", "from stl_search.search.base import Strategy", "nn may not import search"),
        ("bench.report", "from stl_search.cli import main", "bench may not import cli"),
        ("bench.report", "from stl_search.testing import cases", "bench may not import testing"),
        ("cli", "from stl_search.testing import cases", "cli may not import testing"),
        ("runtime.amm", "import stl_search as stl", "runtime may not import __init__"),
        ("runtime.amm", "from stl_search import discover", "runtime may not import __init__"),
        ("runtime.amm", "from stl_search import *", "runtime may not import __init__"),
        ("runtime.amm", "import importlib\nimportlib.import_module('stl_search.search')", "may not import search"),
        ("runtime.amm", "from importlib import import_module\nimport_module('..search', __package__)", "import search"),
        ("surprise", "", "'surprise' has no row in the layer table"),
        ("search.orbit", "import groups", "imports 'groups' as a top-level name; write stl_search.groups"),
        ("search.orbit", "from catalog.store import add", "imports 'catalog' as a top-level name"),
        ("groups.tpp", "from ... import cli", "a relative import leaves the package"),
        ("", "def f():\n    import kernels", ":2: imports 'kernels' as a top-level name"),
        ("", "from cli import main", "imports 'cli' as a top-level name"),
    ],
)
def test_the_checker_sees_a_broken_rule(module: str, text: str, complaint: str) -> None:
    (found,) = violations([fake(module, text)])
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("scheme", "from stl_search.errors import SchemeError\nfrom stl_search import rings\nfrom . import errors"),
        ("scheme", "from stl_search import __version__\nimport numpy, torch.nn"),
        ("catalog.store", "from stl_search import formats, transform, verify\nfrom .files import read"),
        (
            "search.numeric",
            "from stl_search.kernels import batch\nfrom stl_search.groups import tpp\nfrom . import lm",
        ),
        ("runtime", "from .amm import amm\nfrom ..kernels.plan import Plan"),
        ("nn.linear", "def f():\n    from stl_search.runtime import amm"),
        ("bench.report", "import stl_search as stl\nfrom stl_search.search import discover"),
        ("cli", "import stl_search.bench.report"),
        ("testing", "import stl_search.cli\nfrom stl_search.search import REGISTRY"),
        ("", "import stl_search.testing\nfrom stl_search.cli import main\nimport other.groups"),
    ],
)
def test_the_checker_accepts_what_the_table_allows(module: str, text: str) -> None:
    assert violations([fake(module, text)]) == []


def fake(module: str, text: str) -> Source:
    """A library file (a package when it has a row but no dot and is a folder of the checkout), or a test."""
    if not module:
        return Source("tests/test_fake.py", text)
    is_package = (ROOT / PACKAGE / module).is_dir()
    path = f"{PACKAGE}/{module.replace('.', '/')}{'/__init__' if is_package else ''}.py"
    return Source(path, text, f"{PACKAGE}.{module}")


def test_the_links_are_relative_and_lead_to_the_folders_of_the_checkout() -> None:
    for name in LINKED:
        link = ROOT / PACKAGE / name
        assert link.is_symlink(), f"{link} must be a link to ../{name}"
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == ROOT / name


def test_every_package_is_in_the_packaging_table() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT) for p in python_files(ROOT / PACKAGE)}
    assert set(table["packages"]) == {".".join(folder.parts) for folder in folders}
    assert table["package-dir"] == {PACKAGE: PACKAGE, **{f"{PACKAGE}.{name}": name for name in LINKED}}
