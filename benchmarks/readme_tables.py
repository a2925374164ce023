"""Writes the tables of README.md that rest on the shipped catalog; ``--check`` says whether they are stale."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from stl_search.catalog import store

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- catalog:begin (benchmarks/readme_tables.py writes this) -->"
END = "<!-- catalog:end -->"


KEPT = (1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)  # multiplications kept, in the table of approximate entries


def tables() -> str:
    """Two Markdown tables: the exact entries, and the frontier at bf16 of the shapes that have approximate ones."""
    entries = sorted(store.entries([store.shipped_dir()]), key=lambda e: (e.shape, e.rank, e.id))
    exact = [e for e in entries if e.exact]
    rows = ["| exact | rank | ring | additions | error(bf16) |", "|---|---|---|---|---|"]
    for e in exact:
        error = "-" if e.ring == "Z2" else f"{e.error('bf16'):.4f}"
        rows.append(f"| <{','.join(map(str, e.shape))}> | {e.rank} | {e.ring} | {e.additions} | {error} |")
    heads = [f"{share:g} kept" for share in KEPT]
    rows += ["", f"| approximate, error(bf16)² | ranks | {' | '.join(heads)} | best inexact |", "|---" * 8 + "|"]
    for shape in sorted({e.shape for e in entries if not e.exact}):
        best: dict[int, float] = {}
        for e in entries:
            if e.shape == shape and e.ring != "Z2" and not e.exact:
                best[e.rank] = min(best.get(e.rank, 1.0), e.error("bf16") ** 2)
        cells = []
        for share in KEPT:
            rank = max((r for r in best if r <= share * math.prod(shape)), default=0)
            cells.append(f"{best[rank]:.4f} (r = {rank})" if rank else "-")
        last = max(best)
        cells.append(f"{best[last]:.2g} (r = {last})")
        rows.append(f"| <{','.join(map(str, shape))}> | {min(best)}-{last} | {' | '.join(cells)} |")
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
