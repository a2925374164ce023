"""Compiles every kernel in every shipped configuration for sm_80, sm_90 and sm_100, without a GPU, and checks the code:
no registers spilled, shared memory within the chip's, tensor-core instructions of the right generation.

``python -m stl_search.kernels.aot`` prints the table. What was compiled before from the same sources, by the same
triton, is read from the user's cache folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Case", "Figures", "cases", "compile_case", "complaint", "main"]

# Bytes of shared memory that one block may have (CUDA C++ Programming Guide, table of compute capabilities).
SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448}
TENSOR_CORES = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05.mma"}
# Rank and grid of parts that stand for a class of parts. What is unrolled takes the longer to compile the higher the
# rank is, and no more registers: the tiles held are those of the parts.
SCHEMES = {"4": (7, 2, 2), "16": (24, 4, 4), "64": (40, 5, 5)}
_TRITON_NAMES = {"fp64": "fp64", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8_e4m3": "fp8e4nv"}
# Sides of slices: multiples of every block; not so, but aligned; and odd.
WHOLE, RAGGED, ODD = 1024, 1008, 1005


@dataclass(frozen=True)
class Case:
    """One launch to compile: architecture, kernel and class of ``defaults.json``, index of the configuration, dtypes
    joined by "-", and whether tiles are ragged (Triton then makes other code)."""

    arch: str
    kernel: str
    sizes: str
    index: int
    dtypes: str
    ragged: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The shipped configuration."""
        from stl_search.kernels import tuning

        return tuning.defaults()[self.arch][self.kernel][self.sizes][self.index]

    @property
    def text(self) -> str:
        """One line that names it."""
        config = self.config
        blocks = " ".join(f"{key}={value}" for key, value in config.items() if key != "use")
        edge = " ragged" if self.ragged else ""
        return f"{self.arch} {self.kernel} {self.sizes} {config['use']} {self.dtypes}{edge} {blocks}"


@dataclass(frozen=True)
class Figures:
    """What became of one launch: registers a thread, bytes of stack (spills), bytes of shared memory, tensor cores."""

    kernel: str
    registers: int
    stack: int
    shared: int
    tensor_cores: str


def cases() -> Iterator[Case]:
    """Every kernel and shipped configuration, fp8 on sm_90 and later; the default of each class with all dtypes that
    it serves and with ragged tiles too."""
    from stl_search.kernels import tuning

    seen = set()
    for arch in tuning.ARCHITECTURES:
        for kernel, classes in tuning.defaults()[arch].items():
            for sizes, configs in classes.items():
                own = [(i, c) for i, c in enumerate(configs) if c["use"] not in ("bmm", "unfused")]
                for index, config in own:
                    first, *more = _dtypes(arch, kernel, sizes)
                    # "sparse" and "dense" differ in the order of their configurations, which are compiled alike
                    same = (arch, kernel, sizes.removesuffix("sparse").removesuffix("dense"), json.dumps(config))
                    if same in seen:
                        continue
                    seen.add(same)
                    yield Case(arch, kernel, sizes, index, first)
                    if index == own[0][0]:
                        yield from (Case(arch, kernel, sizes, index, dtypes) for dtypes in more)
                        if kernel != "score" and not sizes.endswith("odd"):
                            yield Case(arch, kernel, sizes, index, first, ragged=True)


def _dtypes(arch: str, kernel: str, sizes: str) -> list[str]:
    fp8 = [] if arch == "sm_80" else ["bf16-fp8_e4m3"]
    if kernel == "encode":
        return ["bf16-bf16", "fp32-fp32", *fp8]
    if kernel == "decode":
        return ["fp32-bf16", "bf16-bf16"]
    if kernel == "score":
        return ["fp64"]
    width = {"8": "fp8_e4m3", "16": "bf16", "32": "fp32"}[sizes.partition("/")[0]]
    if kernel == "product":
        return [f"{width}-fp32"] + ([f"{width}-{width}"] if width == "bf16" else [])
    return [f"{width}-fp32-{'fp32' if width == 'fp32' else 'bf16'}"]


def launches(case: Case) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """(kernel, arguments, keywords) of what ``gpu`` launches for a case: its own code, on tensors without data."""
    import torch

    from stl_search.kernels import gpu, tuning
    from stl_search.kernels.plan import torch_dtype

    first, *rest = case.dtypes.split("-")
    size = ODD if case.sizes.endswith("odd") else RAGGED if case.ragged else WHOLE

    def empty(*shape: int, dtype: str = first) -> torch.Tensor:
        return torch.empty(shape, dtype=torch_dtype(dtype), device="meta")

    with tuning.tracing(case.config) as trace:
        if case.kernel == "score":
            rank, m, k = SCHEMES["16"]
            gpu.residuals(*(empty(64, rank, m, k) for _ in range(3)))
            return trace.launches
        if case.kernel in ("encode", "decode"):
            rank, m, k = SCHEMES[case.sizes.partition("/")[0]]
            u = _ternary(rank, m, k)
            if case.kernel == "encode":
                gpu.encode(empty(m * size - case.ragged, k * size), u, "block", rest[0])
            else:
                gpu.decode(empty(rank, size, size), u, m * size - case.ragged, k * size, "block", rest[0])
            return trace.launches
        parts = case.sizes.split("/")[-2]
        rank, m, n = SCHEMES[parts] if case.kernel == "product_decode" else (7, 1, 1)
        a, b = empty(rank, size, size), empty(rank, size, size)
        if first == "fp8_e4m3" and not case.sizes.endswith("odd"):
            b = b.mT
        scales = (empty(rank, 1, 1, dtype="fp32"),) * 2 if first == "fp8_e4m3" else None
        if case.kernel == "product":
            gpu.product(a, b, rest[0], scales)
        else:
            w = _ternary(rank, m, n)
            gpu.product_decode(
                a, b, w, m * size - case.ragged, n * size, "block", rest[1], scales=scales, product_dtype=rest[0]
            )
        return trace.launches


def _ternary(rank: int, m: int, k: int) -> Any:
    """Coefficients (rank, m, k) from -1, 0 and 1, three of ten not zero, as exact schemes have them."""
    rng = np.random.default_rng(0)
    return (rng.choice([-1.0, 1.0], (rank, m, k)) * (rng.random((rank, m, k)) < 0.3)).astype(np.float32)


def compile_case(case: Case) -> list[Figures]:
    """The figures of each launch of a case. Needs triton, outside its interpreter."""
    return [_compile(case.arch, *launch) for launch in launches(case)]


def _attempt(case: Case) -> list[Figures] | str:
    """The figures of a case, or why it does not compile, in one line."""
    import triton

    try:
        return compile_case(case)
    except (triton.CompilationError, subprocess.CalledProcessError, RuntimeError) as error:
        return " ".join(str(error).split())[-160:]


def _compile(arch: str, kernel: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Figures:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stl_search.kernels.plan import dtype_name

    options = {key: value for key, value in keywords.items() if key.islower()}
    given = dict(zip(kernel.arg_names, args, strict=False)) | {k: v for k, v in keywords.items() if k.isupper()}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    # As triton.jit specialises arguments: 1 and None are constants, multiples of 16 are told to the compiler.
    for index, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + _TRITON_NAMES[dtype_name(value.dtype)[0]] if value.is_floating_point() else "*i32"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif name.isupper() or value is None or value == 1:
            signature[name] = "constexpr"
            constants[name] = value
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    code = triton.compile(source, target=target, options=options)
    registers, stack = _resources(code.asm["cubin"])
    found = [name for name in ("tcgen05.mma", "wgmma", "mma.sync") if name in code.asm["ptx"]]
    return Figures(kernel.__name__, registers, stack, int(code.metadata.shared), found[0] if found else "")


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes of stack and local memory) by the cuobjdump that triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def complaint(case: Case, figures: Figures) -> str:
    """What is wrong with a compiled launch, "" when nothing is."""
    if figures.stack:
        return f"spills: {figures.stack} bytes of stack"
    if figures.shared > SHARED[case.arch]:
        return f"{figures.shared} bytes of shared memory, {case.arch} has {SHARED[case.arch]}"
    wanted = TENSOR_CORES[case.arch]
    # Less than 64 rows are less than wgmma and tcgen05 take, and fp32 is multiplied in full by ordinary cores.
    large = case.sizes.endswith("large") and not case.dtypes.startswith("fp32")
    if case.kernel.startswith("product") and large and figures.tensor_cores != wanted:
        return f"multiplies by {figures.tensor_cores or 'ordinary cores'}, not {wanted}"
    return ""


def run(chosen: Sequence[Case], say: Callable[[str], None], workers: int | None = None) -> list[str]:
    """Compiles cases, or reads what was compiled before; says one line a launch, returns what is wrong."""
    known = _read()
    missing = [case for case in chosen if case.text not in known]
    wrong: list[str] = []
    if missing:
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            for case, found in zip(missing, pool.map(_attempt, missing), strict=True):
                if isinstance(found, str):
                    wrong.append(f"{case.text}: does not compile: {found}")
                    continue
                known[case.text] = [asdict(f) for f in found]
                _write(known)  # at once: an interrupted check goes on where it was
    say(f"{'registers':>9} {'spills':>6} {'shared':>6} tensor cores  kernel")
    for case in chosen:
        for figures in (Figures(**f) for f in known.get(case.text, ())):
            line = f"{figures.registers:9} {figures.stack:6} {figures.shared:6} {figures.tensor_cores or '-':12}"
            reason = complaint(case, figures)
            say(f"{line}  {figures.kernel}: {case.text}")
            if reason:
                wrong.append(f"{figures.kernel}, {case.text}: {reason}")
    for line in wrong:
        say(line)
    say(f"{len(chosen)} configurations ({len(missing)} compiled now), {len(wrong)} wrong")
    return wrong


def _cache() -> Path:
    import platformdirs
    import triton

    from stl_search.kernels import tuning

    own = tuning.source_hash(Path(__file__).read_bytes())
    return platformdirs.user_cache_path("stl-search") / "aot" / f"{triton.__version__}-{own}.json"


def _read() -> dict[str, Any]:
    try:
        found = json.loads(_cache().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(known: dict[str, Any]) -> None:
    path = _cache()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(known, indent=1), "utf-8")
    draft.replace(path)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(arguments: Sequence[str]) -> int:
    """The check of all cases, or of those whose line has every word of ``arguments``; 1 when something is wrong."""
    if importlib.util.find_spec("triton") is None:
        sys.stdout.write("kernels not compiled: triton has no wheel for this platform\n")
        return 0
    # A test may have asked for Triton's interpreter, which compiles nothing; workers inherit the environment.
    os.environ.pop("TRITON_INTERPRET", None)
    chosen = [case for case in cases() if all(word in case.text.split() for word in arguments)]
    wrong = run(chosen, _say)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
