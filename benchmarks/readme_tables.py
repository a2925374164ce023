"""Writes the tables of README.md that rest on the shipped catalog; ``--check`` says whether they are stale."""

from __future__ import annotations

import sys
from pathlib import Path

from stl_search import score
from stl_search.catalog import store

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- catalog:begin (benchmarks/readme_tables.py writes this) -->"
END = "<!-- catalog:end -->"


def tables() -> str:
    """Two Markdown tables: the exact entries, and the approximate ones at the precision they were found for."""
    entries = sorted(store.entries([store.shipped_dir()]), key=lambda e: (e.shape, e.rank, e.id))
    exact = [e for e in entries if e.exact]
    rows = ["| exact | rank | ring | additions | error(bf16) |", "|---|---|---|---|---|"]
    for e in exact:
        error = "-" if e.ring == "Z2" else f"{e.error('bf16'):.4f}"
        rows.append(f"| <{','.join(map(str, e.shape))}> | {e.rank} | {e.ring} | {e.additions} | {error} |")
    rows += ["", "| approximate | rank | E | line | error(bf16) | error(fp8) |", "|---|---|---|---|---|---|"]
    for e in (x for x in entries if not x.exact):
        line = score.line(e.shape, e.rank)
        rows.append(
            f"| <{','.join(map(str, e.shape))}> | {e.rank} | {e.E:.4f} | {line:.4f} "
            f"| {e.error('bf16'):.4f} | {e.error('fp8_e4m3'):.4f} |"
        )
    return "\n".join(rows)


def rendered(text: str) -> str:
    """README's text with the tables of today's catalog."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    after = rendered(before)
    if "--check" in sys.argv:
        sys.exit(0 if after == before else "README.md is stale: run python benchmarks/readme_tables.py")
    README.write_text(after, encoding="utf-8")
