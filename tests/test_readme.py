"""The README's tables are those of today's catalog, and its first screen has the two commands."""

import importlib.util
from pathlib import Path

from stl_search import known
from stl_search.catalog import store

ROOT = Path(__file__).resolve().parent.parent


def test_the_tables_are_current() -> None:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.README.read_text(encoding="utf-8")
    assert text == module.rendered(text), "README.md is stale: run python benchmarks/readme_tables.py"
    page = module.WINNERS.read_text(encoding="utf-8")
    assert page == module.winners(), "docs/winners_cpu.md is stale: run python benchmarks/readme_tables.py"


def test_the_first_screen_has_the_two_commands() -> None:
    screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    assert any(line.startswith("make run") for line in screen)
    assert any(line.startswith("make test") for line in screen)


def test_ranks_below_the_sources_are_those_that_the_readme_names() -> None:
    below = set()
    for entry in store.entries([store.shipped_dir()]):
        best = known.rank(entry.shape, "ZT")
        if entry.ring == "ZT" and best is not None and entry.rank < best.rank:
            below.add(f"<{','.join(map(str, entry.shape))}> of rank {entry.rank} over ZT")
    assert below == {"<4,5,5> of rank 75 over ZT"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(claim in text for claim in below)
