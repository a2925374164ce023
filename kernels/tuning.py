"""Which configuration a kernel runs with: measured on this GPU, else shipped.

``defaults.json`` holds, for each architecture, kernel and class of sizes, a short list of configurations pruned by
hand: the first is the default, all are what is measured. Measuring happens inside ``with measuring():`` (or with
STL_AUTOTUNE=1 in the environment) when a kernel meets a class for the first time, never at import and never in Triton's
interpreter; results are kept in the user's cache folder, in one file a GPU model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import statistics
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from stl_search.errors import UsageError

__all__ = [
    "ARCHITECTURES",
    "Key",
    "Launch",
    "cache_file",
    "choose",
    "defaults",
    "launch",
    "measuring",
    "multiplies_fp8",
    "programs",
    "settled",
    "source_hash",
    "tracing",
]

Config = dict[str, Any]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# Small, so that small operands have several tiles: what the interpreter runs, whose speed depends on nothing else.
INTERPRETER: Config = {"HIGH": 16, "WIDE": 16}
INTERPRETER_MORE: dict[str, Config] = {
    "dot": {"RANKS": 16},
    "triton": {"DEEP": 16, "GROUP": 2},
    "registers": {"DEEP": 16, "GROUP": 2},
    "arrival": {"DEEP": 16, "GROUP": 2, "BESIDE": 3, "STRIP": 8},
}
PLAIN = (("bmm",), ("unfused",))  # forms without a kernel of their own: nothing to configure
_measuring: ContextVar[bool] = ContextVar("measuring", default=False)
_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)
_changes = [0]  # how often a configuration was measured


@dataclass
class Trace:
    """Launches that were asked for and not made, while all kernels take one configuration: see ``tracing``."""

    config: Config
    launches: list[tuple[Any, tuple[Any, ...], Config]] = field(default_factory=list)


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen for: kernel, dtypes joined by "-", and class of sizes."""

    kernel: str
    dtypes: str
    sizes: str

    @property
    def text(self) -> str:
        """The key of the file of measurements."""
        return f"{self.kernel} {self.dtypes} {self.sizes}"


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Kernels that run inside, on classes not measured before, are measured first; results are kept on disk."""
    token = _measuring.set(True)
    try:
        yield
    finally:
        _measuring.reset(token)


@contextlib.contextmanager
def tracing(config: Config) -> Iterator[Trace]:
    """Launchers called inside, on meta tensors, take ``config`` and only note (kernel, arguments, keywords)."""
    trace = Trace(config)
    token = _trace.set(trace)
    try:
        yield trace
    finally:
        _trace.reset(token)


def traced() -> Trace | None:
    """The innermost ``tracing`` that this code runs in."""
    return _trace.get()


@dataclass(frozen=True)
class Launch:
    """A launch as it was made: the compiled kernel over its grid, what it took at run time, and its constants."""

    run: Callable[..., Any]
    args: tuple[Any, ...]
    constants: tuple[Any, ...]

    def repeat(self, *tensors: torch.Tensor) -> Callable[..., None]:
        """What makes it again, on others in the place of these tensors: of the same dtypes and alignment.

        Triton's own look at every argument is left out, which takes longer than kernels of small operands do.
        """
        places = [next(i for i, x in enumerate(self.args) if x is tensor) for tensor in tensors]
        blank = [None if i in places else x for i, x in enumerate(self.args)] + list(self.constants)
        run = self.run

        def again(*others: torch.Tensor) -> None:
            args = blank.copy()
            for place, other in zip(places, others, strict=True):
                args[place] = other
            run(*args)

        return again


def launch(kernel: Any, grid: tuple[int], *args: Any, **keywords: Any) -> Launch | None:
    """Runs a Triton kernel over ``grid``, or notes it where launches are traced.

    ``args`` are what the kernel takes at run time, ``keywords`` its constants and the compiler's options. Returns what
    may be repeated; None where nothing was compiled (traced, or interpreted).
    """
    if (trace := _trace.get()) is not None:
        trace.launches.append((kernel, args, keywords))
        return None
    made = kernel[grid](*args, **keywords)
    if not hasattr(made, "asm"):  # Triton's interpreter makes nothing
        return None
    constants = tuple(keywords[name] for name in kernel.arg_names[len(args) :])
    return Launch(made[(*grid, 1, 1)], args, constants)


def settled() -> int | None:
    """A number that changes when configurations were measured anew; None while they are measured, or traced."""
    if _trace.get() is not None or _measuring.get() or os.environ.get("STL_AUTOTUNE") == "1":
        return None
    return _changes[0]


@cache
def defaults() -> dict[str, dict[str, dict[str, list[Config]]]]:
    """Architecture -> kernel -> class -> configurations, as shipped."""
    text = resources.files(__package__).joinpath("defaults.json").read_text("utf-8")
    found: dict[str, dict[str, dict[str, list[Config]]]] = json.loads(text)
    return found


def architecture(capability: tuple[int, int]) -> str:
    """The shipped architecture whose configurations suit a compute capability: the last one not above it.

    >>> architecture((8, 6)), architecture((9, 0)), architecture((12, 0))
    ('sm_80', 'sm_90', 'sm_80')
    """
    # Consumer chips of capability 12 have no tensor memory and no wgmma, and shared memory like those of 8.6.
    known = {8: "sm_80", 9: "sm_90", 10: "sm_100"}
    return known.get(capability[0], "sm_80")


def shipped(arch: str, key: Key) -> list[Config]:
    """The configurations shipped for a key, the default first; products distinguish the width of their operands."""
    classes = defaults()[arch][key.kernel]
    first = key.dtypes.partition("-")[0]
    width = {"fp8_e4m3": "8", "fp32": "32"}.get(first, "16")
    return classes.get(f"{width}/{key.sizes}") or classes[key.sizes]


def multiplies_fp8(device: torch.device) -> bool:
    """Whether the GPU has products of fp8_e4m3; Triton's interpreter has."""
    return device.type != "cuda" or _architecture(device) != "sm_80"


def programs(device: torch.device) -> int:
    """Programs that a persistent kernel starts for each wave: one a multiprocessor."""
    return _multiprocessors(device) if device.type == "cuda" else 3


def choose(key: Key, uses: tuple[str, ...], device: torch.device, run: Callable[[Config], Any]) -> Config:
    """The configuration for ``key`` among those whose "use" is one of ``uses``; ``run`` is what measuring times."""
    if (trace := _trace.get()) is not None:
        return trace.config
    if device.type != "cuda":
        return {"use": uses[0]} | INTERPRETER | INTERPRETER_MORE.get(uses[0], {})
    if uses in PLAIN:
        return {"use": uses[0]}
    arch = _architecture(device)
    if "fp8" in key.dtypes and not multiplies_fp8(device):
        raise UsageError("fp8_e4m3 needs a GPU of compute capability 9.0 or 10.0: use bf16")
    text = f"{key.text} {'+'.join(uses)}"
    measured = _measured(_device_name(device))
    if text in measured:
        return dict(measured[text])
    options = [c for c in shipped(arch, key) if c["use"] in uses]
    if len(options) > 1 and (_measuring.get() or os.environ.get("STL_AUTOTUNE") == "1"):
        options = sorted(options, key=lambda config: _seconds(run, config))
        measured[text] = options[0]
        _changes[0] += 1
        _save(_device_name(device), measured)
    return options[0]


def _seconds(run: Callable[[Config], Any], config: Config) -> float:
    """Median of 10 runs; infinite for a configuration that this GPU refuses."""
    import triton

    try:
        run(config)
    except (triton.runtime.errors.OutOfResources, triton.CompilationError):
        return float("inf")
    marks: list[list[Any]] = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(10)]  # type: ignore[no-untyped-call]
    for start, end in marks:
        start.record()
        run(config)
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(end) for start, end in marks))


@cache
def _architecture(device: torch.device) -> str:
    return architecture(torch.cuda.get_device_capability(device))


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def cache_file(name: str) -> Path:
    """Where measurements on a GPU of that name are kept: they hold for one version of triton and of this library."""
    import platformdirs
    import triton

    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return platformdirs.user_cache_path("stl-search") / "tuning" / f"{slug}-{triton.__version__}-{source_hash()}.json"


@cache
def source_hash(more: bytes = b"") -> str:
    """16 hexadecimal digits of all that decides what kernels are compiled to, triton apart, and of ``more``."""
    digest = hashlib.sha256(more)
    for file in sorted(resources.files(__package__).iterdir(), key=lambda f: f.name):
        if file.name == "defaults.json" or re.fullmatch(r"(triton_\w+|gpu)\.py", file.name):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _measured(name: str) -> dict[str, Config]:
    """What was measured on a GPU of that name; nothing when its file is absent or damaged."""
    try:
        found = json.loads(cache_file(name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(name: str, measured: dict[str, Config]) -> None:
    """Keeps measurements; a folder that cannot be written to costs the next process the same measurements again."""
    path = cache_file(name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(measured, indent=1), "utf-8")
        draft.replace(path)
