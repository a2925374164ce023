"""How fast a converted transformer runs: forward passes of all-MiniLM-L6-v2 on the processor, dense ones in turn.

All 36 linear layers are replaced by frozen STL layers of one rank. Ratios are to the dense model as torch runs it; it
runs once more with its linear layers by the fastest library at hand, which whoever wants speed alone would take. Prints
and writes one JSON line a method to benchmarks/results/minilm_speed.jsonl; what conversion does to the embeddings is
minilm_convert.py's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from minilm import PACKAGE, VERSION, model, passages, replaced
from torch import nn

import stl_search as stl
from stl_search.bench.amm import environment
from stl_search.kernels import dense
from stl_search.runtime.dispatch import Problem, dense_way

OUT = Path(__file__).resolve().parent / "results" / "minilm_speed.jsonl"
APPROXIMATE = "catalog:best?shape=4,4,4&rank={}"
EXACT = "catalog:best?shape=4,4,4&rank=49&ring=ZT"
RANKS = (32, 24, 16)


class Fastest(nn.Module):
    """A linear layer by the library that is fastest at this size on this machine."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.bias = layer.weight.detach().T.contiguous(), layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)."""
        rows = x.flatten(0, -2)
        way = dense_way(Problem(len(rows), *self.matrix.shape))
        return dense.matmul(rows, self.matrix, way).add_(self.bias).unflatten(0, x.shape[:-1])


def converted(m: nn.Module, encoder: str) -> nn.Module:
    """A copy whose linear layers are STL layers, frozen."""
    m = copy.deepcopy(m)
    stl.nn.convert_(m, stl.nn.Config(encoder))
    for layer in m.modules():
        if isinstance(layer, stl.nn.STLLinear):
            layer.freeze()
    return m


def main() -> None:
    """Every model once for warmth, then all of them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=32, help="of 128 tokens, one batch")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    plain = model()
    ids = passages()[1][: options.passages]
    models = {
        "dense, torch": plain,
        "dense, fastest library": replaced(plain, Fastest),
        "STL <4,4,4> of rank 49": converted(plain, EXACT),
        **{f"STL <4,4,4> of rank {r}": converted(plain, APPROXIMATE.format(r)) for r in RANKS},
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        want = plain(ids)
        about = {name: float((m(ids) * want).sum(-1).mean()) for name, m in models.items()}
        for turn in range(options.turns):  # there and back, so that neither comes first
            for name in list(models)[:: -1 if turn % 2 else 1]:
                start = time.perf_counter()
                models[name](ids)
                times[name].append(time.perf_counter() - start)
    lines = []
    for name in models:
        ratios = np.divide(times["dense, torch"], times[name])
        row = {
            "bench": "minilm_speed", **environment(), PACKAGE: VERSION, "dtype": "fp32", "tokens": ids.numel(),
            "turns": options.turns, "method": name, "seconds": round(statistics.median(times[name]), 5),
            "ratio": {f"p{q}": round(float(np.quantile(ratios, q / 100)), 4) for q in (20, 50, 80)},
            "cosine": round(about[name], 5),
        }  # fmt: skip
        lines.append(json.dumps(row))
        ratio, cosine = row["ratio"]["p50"], row["cosine"]
        print(f"{name:25} {row['seconds']:8.4f} s, of dense by torch {ratio:5.2f}, cosine {cosine:.3f}")
    OUT.write_text("".join(line + "\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
