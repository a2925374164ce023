"""What conversion costs a real transformer: embeddings of all-MiniLM-L6-v2 after each method, against the dense model.

All 36 linear layers are replaced; methods with "calibrated" in their name see the same calibration text, measurements
are on other text. Writes one JSON line a method to benchmarks/results/minilm_convert.jsonl. ``cost`` counts operations
relative to dense, encoding and decoding included; ``nominal`` is the products' share alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from minilm import PACKAGE, VERSION, linears, model, passages, replaced
from torch import nn

import stl_search as stl
from stl_search.nn.calibrate import RIDGE, Seen, allocate

OUT = Path(__file__).resolve().parent / "results" / "minilm_convert.jsonl"
STRASSEN = "catalog:best?shape=2,2,2&rank=7&ring=ZT"
APPROXIMATE = "catalog:best?shape=4,4,4&rank={}"
BUDGETS = (0.9, 0.75, 0.6, 0.5, 0.4)
SHARES = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of the dense cost, for low rank


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """The two largest of each four neighbours along the inputs are kept: a mask."""
    groups = weight.unflatten(1, (-1, 4))
    smallest = groups.abs().argsort(-1)[..., :2]
    return torch.ones_like(groups).scatter_(-1, smallest, 0).flatten(1).bool()


def recentred(layer: nn.Linear, new: torch.Tensor, seen: Seen) -> None:
    """Takes a new weight, and the bias that makes the layer right at the mean input, as STL layers do."""
    layer.bias.data += (layer.weight - new) @ seen.mean.float()
    layer.weight.data = new


def prune(layer: nn.Linear, seen: Seen | None) -> None:
    """2:4 by magnitude; with calibration data by SparseGPT (Frantar and Alistarh, arXiv 2301.00774).

    That goes through the inputs in order, picks what to drop by its cost to the output, and lets the inputs to come
    make up for it.
    """
    weight = layer.weight.detach().clone()
    if seen is None:
        layer.weight.data = weight * two_of_four(weight)
        return
    c = seen.covariance
    c = c + RIDGE * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype)
    factor = torch.linalg.cholesky(torch.linalg.inv(c), upper=True).float()
    for i in range(len(c)):
        if i % 4 == 0:
            kept = two_of_four(weight[:, i : i + 4] / factor.diagonal()[i : i + 4])
        error = weight[:, i] * ~kept[:, i % 4] / factor[i, i]
        weight[:, i:] -= torch.outer(error, factor[i, i:])
    recentred(layer, weight, seen)


def low_rank(layer: nn.Linear, seen: Seen | None, shares: list[float]) -> tuple[list[torch.Tensor], list[float]]:
    """Best weights of rank share * in * out / (in + out), and (calibrated) their errors relative to centred output."""
    weight, root = layer.weight.double(), None
    if seen is not None:
        c = seen.covariance
        root = torch.linalg.cholesky(c + RIDGE * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype))
    left, values, _ = torch.linalg.svd(weight if root is None else weight @ root, full_matrices=False)
    found, errors = [], []
    for share in shares:
        rank = int(share * weight.numel() / sum(weight.shape))
        found.append((left[:, :rank] @ (left[:, :rank].T @ weight)).float())
        errors.append(float((values[rank:].square().sum() / values.square().sum()).sqrt()))
    return found, errors


class Int8(nn.Module):
    """Weights in int8 with a scale for each output, activations in int8 with a scale for each token; exact sums."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.bias = dense.bias
        self.weight = self.rounded(dense.weight.detach())

    @staticmethod
    def rounded(x: torch.Tensor) -> torch.Tensor:
        """x: (..., n), each row to 255 levels."""
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
        return (x / scale).round() * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)."""
        return nn.functional.linear(self.rounded(x), self.weight, self.bias)


def methods(dense: nn.Module, found: stl.nn.Survey) -> Iterator[tuple[str, float, float, Callable[[], nn.Module]]]:
    """(name, nominal, cost, how to make the model) of every row."""

    def each(change: Callable[[str, nn.Linear], None]) -> nn.Module:
        m = copy.deepcopy(dense)
        for name, layer in linears(m).items():
            change(name, layer)
        return m

    def converted(config: stl.nn.Config, calibrated: bool) -> nn.Module:
        m = copy.deepcopy(dense)
        m.report = stl.nn.convert_(m, config, survey=found if calibrated else None)
        return m

    yield "dense", 1.0, 1.0, lambda: dense
    yield "int8 row-wise", 0.5, 0.5, lambda: replaced(dense, Int8)
    yield "2:4 magnitude", 0.5, 0.5, lambda: each(lambda _, layer: prune(layer, None))
    yield "2:4 calibrated (SparseGPT)", 0.5, 0.5, lambda: each(lambda name, layer: prune(layer, found.seen[name]))
    for budget in BUDGETS:
        config = stl.nn.Config(budget=budget)
        yield "STL calibrated, by budget", budget, budget, lambda config=config: converted(config, True)
    for width in (3, 4):
        config = stl.nn.Config((STRASSEN, width))
        name = f"STL calibrated, Strassen on {width} features in every layer"
        yield name, 7 / (4 * width), 0, lambda config=config: converted(config, True)
    for rank in (48, 32, 24, 16):
        entry = APPROXIMATE.format(rank) if rank < 48 else APPROXIMATE.format(49) + "&ring=ZT"
        rank = rank if rank < 48 else 49
        config = stl.nn.Config(entry)
        yield f"STL <4,4,4> of rank {rank}", rank / 64, 0, lambda config=config: converted(config, False)
    tables = {name: low_rank(layer, found.seen[name], list(SHARES)) for name, layer in linears(dense).items()}
    for share in (0.75, 0.5, 0.375):
        at = SHARES.index(share)
        yield (
            "low rank",
            share,
            share,
            lambda share=share: each(
                lambda _, layer: setattr(layer.weight, "data", low_rank(layer, None, [share])[0][0])
            ),
        )
        yield (
            "low rank calibrated",
            share,
            share,
            lambda at=at: each(lambda name, layer: recentred(layer, tables[name][0][at], found.seen[name])),
        )
    for budget in BUDGETS:
        costs = [[dense.get_submodule(name).weight.numel() * share for share in (*SHARES, 1.0)] for name in tables]
        gains = found.sensitivities
        losses = [[(gains.get(name, 0.0) * e) ** 2 for e in (*table[1], 0.0)] for name, table in tables.items()]
        picks = dict(zip(tables, allocate(costs, losses, budget * sum(c[-1] for c in costs)), strict=True))

        def allotted(name: str, layer: nn.Linear, picks: dict[str, int] = picks) -> None:
            if picks[name] < len(SHARES):
                recentred(layer, tables[name][0][picks[name]], found.seen[name])

        yield "low rank calibrated, by budget", budget, budget, lambda allotted=allotted: each(allotted)
    config = stl.nn.Config(APPROXIMATE.format(24), weight="encoded")
    yield "STL <4,4,4> of rank 24 calibrated", 24 / 64, 0, lambda config=config: converted(config, True)


def main() -> None:
    """Survey once, then every method: prints and writes its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibrate", type=int, default=24, help="passages of 128 tokens to calibrate on")
    parser.add_argument("--test", type=int, default=32, help="passages of 128 tokens to measure on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="methods whose names hold this; other rows stay as they are")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dense = model()
    ours, others = passages()
    calibration = ours[:: len(ours) // options.calibrate][: options.calibrate]
    test = others[:: len(others) // options.test][: options.test]
    start = time.perf_counter()
    config = stl.nn.Config(
        budget=1.0 if "budget" in options.only or not options.only else None,
        calibrate=lambda m: m(calibration),
        probe=lambda m: m(calibration[:: options.calibrate // 4]),
    )
    found = stl.nn.survey(dense, config)
    print(f"survey: {time.perf_counter() - start:.0f} s", flush=True)
    root = Path(__file__).resolve().parent.parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    about = {
        "bench": "minilm_convert",
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}, {options.threads} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, PACKAGE: VERSION},
        "commit": commit,
        "dtype": "fp32",
        "calibration_tokens": calibration.numel(),
        "test_tokens": test.numel(),
    }
    OUT.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in OUT.read_text("utf-8").splitlines()] if options.only and OUT.exists() else []
    with torch.no_grad():
        want = dense(test)
        if not options.only:
            rows.append(about | {"method": "another passage", "cosine": spread((want * want.roll(1, 0)).sum(-1))})
        for name, nominal, cost, make in methods(dense, found):
            if options.only not in name:
                continue
            start = time.perf_counter()
            m = make()
            report = getattr(m, "report", None)
            row = about | {"method": name, "nominal": nominal, "cost": round(report.ratio if report else cost, 4)}
            if report is not None:
                before, after = (sum(r.parameters[i] for r in report.rows) for i in (0, 1))
                row["parameters"] = round(after / before, 4)
            row |= {"cosine": spread((m(test) * want).sum(-1)), "seconds": round(time.perf_counter() - start, 1)}
            rows = [r for r in rows if (r["method"], r.get("nominal")) != (name, nominal)] + [row]
            OUT.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
            print(f"{name:55} nominal {nominal:5.3f} cost {row['cost']:5.3f} cosine {row['cosine']}", flush=True)


def spread(x: torch.Tensor) -> dict[str, float]:
    """Mean and percentiles of a sample."""
    p = torch.quantile(x, torch.tensor([0.05, 0.5])).tolist()
    return {"mean": round(float(x.mean()), 5), "p5": round(p[0], 5), "p50": round(p[1], 5)}


if __name__ == "__main__":
    main()
