"""The main job, as ``make run`` shows it: discover a scheme, prove it, and multiply real matrices with it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from minilm import CACHE, record

FOUND = Path(os.path.relpath(CACHE / "run"))


def run(*words: str) -> None:
    """Run one stl-search command in sight of the reader; a failure ends the demonstration with its exit code."""
    print(f"\n$ stl-search {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "stl_search", *words]).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Discover, verify, multiply; about a minute and a half once the model is there."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    for old in FOUND.glob("4x4x4_r12_*.json"):  # so that what is verified is what is found now
        old.unlink()
    run("discover", "--tile", "4", "--rank", "12", "--time", seconds, "--out", str(FOUND))
    newest = max(FOUND.glob("4x4x4_r12_*.json"), key=lambda p: p.stat().st_mtime)
    run("verify", str(newest))

    a, b = record()
    for name, matrix in (("activations", a), ("weights", b)):
        np.save(FOUND / f"{name}.npy", matrix)
    print(
        f"\nActivations {a.shape} entering a feed-forward layer of all-MiniLM-L6-v2 on real text, times its weights"
        f" {b.shape}.\nThe prediction assumes independent zero-mean entries, which activations are not."
    )
    files = [str(FOUND / "activations.npy"), str(FOUND / "weights.npy"), "-o", str(FOUND / "product.npy")]
    run("amm", *files, "--encoder", str(newest))
    print("\nThe exact scheme of the catalog at the same tile, for comparison:", flush=True)
    run("amm", *files, "--encoder", "catalog:best?shape=4,4,4&rank=49")


if __name__ == "__main__":
    main()
