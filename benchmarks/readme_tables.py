"""Writes the tables of README.md, the shipped catalog and rows measured before, and docs/winners_cpu.md.

``--check`` says if they are stale.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stl_search.bench.amm import chosen
from stl_search.catalog import store
from stl_search.kernels import tuning

README = Path(__file__).resolve().parent.parent / "README.md"
WINNERS = README.parent / "docs" / "winners_cpu.md"
RESULTS = Path(__file__).resolve().parent / "results"


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
        if len(best) == 1:  # the exact rank, with less noise
            continue
        cells = []
        for share in KEPT:
            rank = max((r for r in best if r <= share * math.prod(shape)), default=0)
            cells.append(f"{best[rank]:{'.4f' if best[rank] > 0.001 else '.1e'}} (r = {rank})" if rank else "-")
        last = max(best)
        cells.append(f"{best[last]:.2g} (r = {last})")
        rows.append(f"| <{','.join(map(str, shape))}> | {min(best)}-{last} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


SHOWN = (49, 32, 24, 16, 12)  # ranks of <4,4,4> in the table of speeds on a GPU
ON_CPU = (49, 48, 32, 24, 16, 12)  # and in those on processors, where they were measured
EXACT = ("4x4x4_r49_ZT", "4x4x4_r48_Q")  # the schemes of the first two; others have less noise
FEWEST = 5  # ``repeats`` of a row that is shown: two pairs of runs say little


def _measured(name: str = "amm_cpu.jsonl", dtype: str = "fp32") -> dict[tuple[int, int | None, str], dict[str, Any]]:
    """The newest rows in a precision, by size, rank of a <4,4,4> (None for the open selector), encoding.

    Of more than a few runs, and for exact ranks those of the ``EXACT`` schemes alone.
    """
    found = {}
    for row in _rows(name):
        scheme, rank = row["scheme"], row.get("rank")
        shown = rank is None or scheme in EXACT or (rank < 48 and scheme.startswith("4x4x4_"))
        if shown and row["dtype"] == dtype and row["repeats"] >= FEWEST:
            found[row["size"], rank, row["encoded"]] = row
    wrong = [key for key, row in found.items() if not row["ok"]]
    if wrong:
        sys.exit(f"rows of {name} with a wrong result: {wrong}")
    return found


def speeds(name: str = "amm_cpu.jsonl", dtype: str = "fp32") -> str:
    """How many times faster than dense <4,4,4> schemes are at 4096 square, by rank."""
    found = {(rank, encoded): row for (size, rank, encoded), row in _measured(name, dtype).items() if size == 4096}
    ranks = [r for r in ON_CPU if (r, "none") in found]
    lines = [f"| rank | {' | '.join(map(str, ranks))} |", "|---" * (1 + len(ranks)) + "|"]
    for encoded, name in (("rhs", "B encoded beforehand"), ("none", "nothing encoded beforehand")):
        lines.append(f"| {name} | {' | '.join(format(found[r, encoded]['ratio']['p50'], '.2f') for r in ranks)} |")
    lines.append(f"| error | {' | '.join(format(found[r, 'none']['error'], '.2g') for r in ranks)} |")
    return "\n".join(lines)


def sizes(name: str = "amm_cpu.jsonl", ranks: tuple[int, ...] = ON_CPU) -> str:
    """By size: the open exact selector's ratio to dense and its choice, and those of <4,4,4> schemes by rank."""
    found = _measured(name)
    columns = sorted({size for size, rank, _ in found if rank is None})
    lines = [f"| size | {' | '.join(map(str, columns))} |", "|---" * (1 + len(columns)) + "|"]
    lines.append(f"| open exact selector | {' | '.join(_ratio(found.get((n, None, 'none'))) for n in columns)} |")
    choices = [_choice(found[n, None, "none"]) for n in columns]
    lines.append(f"| its choice | {' | '.join(choices)} |")
    for rank in ranks:
        for encoded, how in (("rhs", "B encoded"), ("none", "nothing encoded")):
            cells = [_ratio(found.get((n, rank, encoded))) for n in columns]
            lines.append(f"| rank {rank}, {how} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['ratio']['p50']:.2f}"


def on_gpu() -> str:
    """On the H100 at 8192 square in bf16, by rank: whole products against dense, encode and decode against a copy.

    The newest rows, of the configurations that are shipped as the default.
    """
    found: dict[tuple[str, int], float] = {}
    rows = sorted(_rows("device-NVIDIA-H100-80GB-HBM3.jsonl"), key=lambda row: row["date"], reverse=True)
    for row in rows:
        kernel = tuning.Key(row["what"], "bf16-bf16", "16/sparse")
        default = "config" not in row or (
            kernel.kernel in ("encode", "decode") and row["config"] == tuning.shipped("sm_90", kernel)[0]
        )
        whole = row["what"].startswith("amm") and row["method"] in ("auto", "unfused")
        if (
            row["dtype"] == "bf16"
            and row["sizes"] == [8192] * 3
            and row.get("products", "bf16") == "bf16"
            and (whole or default)
        ):
            found.setdefault((row["what"], row["rank"]), row["ratio"])
    names = {
        "amm, B encoded in advance": "B encoded beforehand, of the speed of dense",
        "encode": "encode, of the speed of a copy",
        "decode": "decode, of the speed of a copy",
    }
    lines = [f"| rank | {' | '.join(map(str, SHOWN))} |", "|---" * (1 + len(SHOWN)) + "|"]
    for what, name in names.items():
        lines.append(f"| {name} | {' | '.join(format(found[what, rank], '.2f') for rank in SHOWN)} |")
    return "\n".join(lines)


def conversion() -> str:
    """Cosines of a converted transformer's embeddings to the dense model's, by nominal cost and method."""
    methods = {
        "STL calibrated, by budget": "STL layers, calibrated, by budget",
        "low rank calibrated, by budget": "low rank, calibrated, by budget",
        "2:4 calibrated (SparseGPT)": "2:4 sparsity, SparseGPT",
        "2:4 magnitude": "2:4 sparsity, magnitude",
        "int8 row-wise": "int8, row-wise",
    }
    found = {(row["method"], row.get("nominal")): row["cosine"]["mean"] for row in _rows("minilm_convert.jsonl")}
    costs = sorted({cost for method, cost in found if method in methods}, reverse=True)
    lines = [f"| cost | {' | '.join(map(str, costs))} |", "|---" * (1 + len(costs)) + "|"]
    for method, name in methods.items():
        cells = [f"{found[method, cost]:.3f}" if (method, cost) in found else "" for cost in costs]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def forward() -> str:
    """A converted transformer's speed relative to the dense one by torch, and its embeddings' cosine to that one's."""
    rows = _rows("minilm_speed.jsonl")
    names = [row["method"].replace("STL <4,4,4> of ", "") for row in rows]
    lines = [f"| all linear layers | {' | '.join(names)} |", "|---" * (1 + len(rows)) + "|"]
    lines.append(f"| speed | {' | '.join(format(row['ratio']['p50'], '.2f') for row in rows)} |")
    lines.append(f"| cosine, without calibration | {' | '.join(format(row['cosine'], '.3f') for row in rows)} |")
    return "\n".join(lines)


def winners() -> str:
    """docs/winners_cpu.md: every shipped winner at every size, in float32."""
    rows = [row for row in _rows("amm_cpu.jsonl") if row["dtype"] == "fp32" and row["repeats"] >= FEWEST]
    found = {(row["size"], row.get("id"), row["encoded"]): row for row in rows}  # the newest of each
    columns = sorted({size for size, id_, _ in found if id_ is not None})
    lines = [
        "# Shipped schemes on a CPU",
        "",
        "Ratios to the fastest dense float32 product of 2 cores with AVX-512, square, above 1 where the scheme is "
        "faster: nothing encoded beforehand / B encoded beforehand. All exact schemes that ship and can be run, and at "
        "each sixteenth of the multiplications the most accurate approximate one. Medians of three pairs of runs, two "
        "at 8192; rows of `stl-search bench amm --repeats 5`, in benchmarks/results/amm_cpu.jsonl. Written by "
        "benchmarks/readme_tables.py.",
        "",
        f"| scheme | rank | ring | error | {' | '.join(map(str, columns))} |",
        "|---" * (4 + len(columns)) + "|",
        f"| open exact selector | | | | {' | '.join(_ratio(found.get((n, None, 'none'))) for n in columns)} |",
        f"| its choice | | | | {' | '.join(_choice(found[n, None, 'none']) for n in columns)} |",
    ]
    for entry in chosen("winners", "fp32"):
        cells = [" / ".join(_ratio(found.get((n, entry.id, how))) or "-" for how in ("none", "rhs")) for n in columns]
        name = f"<{','.join(map(str, entry.shape))}> {entry.id[:8]}"
        error = "" if entry.exact else f"{entry.error('fp32'):.2g}"
        lines.append(f"| {name} | {entry.rank} | {entry.ring} | {error} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _choice(row: dict[str, Any]) -> str:
    return str(row["choice"].rpartition(" ")[0] or row["choice"])


BLOCKS: dict[str, Callable[[], str]] = {
    "catalog": tables,
    "speeds": speeds,
    "bf16": partial(speeds, dtype="bf16"),
    "avx2": partial(speeds, "amm_cpu_avx2.jsonl"),
    "avx2sizes": partial(sizes, "amm_cpu_avx2.jsonl", ()),
    "sizes": sizes,
    "gpu": on_gpu,
    "conversion": conversion,
    "forward": forward,
}


def rendered(text: str) -> str:
    """README's text with the tables of today; each stands between its two comments."""
    for name, table in BLOCKS.items():
        begin, end = f"<!-- {name}:begin (benchmarks/readme_tables.py writes this) -->", f"<!-- {name}:end -->"
        head, found, rest = text.partition(begin)
        if not found:
            sys.exit(f"README.md has no place for the table {name!r}")
        text = f"{head}{begin}\n{table()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    texts = {README: rendered(README.read_text(encoding="utf-8")), WINNERS: winners()}
    if "--check" in sys.argv:
        stale = [path.name for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
        sys.exit(f"stale: {', '.join(stale)}; run python benchmarks/readme_tables.py" if stale else 0)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
