"""`import stl_search` and `stl-search --help` stay quick: neither loads the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "triton", "scipy", "sympy", "numba", "galois"}


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running some code."""
    report = "; import sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_probe_sees_what_is_loaded() -> None:
    assert {"sys", "fractions"} <= loaded_after("import fractions")
    assert "numpy" in loaded_after("import numpy.linalg")


def test_importing_the_library_loads_nothing_heavy() -> None:
    loaded = loaded_after("import stl_search")
    assert "stl_search" in loaded
    assert loaded & HEAVY == set()


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_after("from stl_search.cli import main; main(['--help'], standalone_mode=False)")
    assert "click" in loaded
    assert loaded & HEAVY == set()


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "stl_search", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "discover" in done.stdout
    assert "verify" in done.stdout


def test_a_product_does_not_load_the_compiler_of_graphs() -> None:
    """Dynamo takes as long to import as torch itself, and serves inside of torch.compile alone."""
    say = "; import sys; print('torch._dynamo' in sys.modules)"
    code = "import torch, stl_search as stl; a = torch.ones(70, 70); stl.amm(a, a); stl.encode_rhs(a, {0}){1}"
    encoder = "stl.Scheme((1, 1, 1), 'ZT', [[1]], [[1]], [[1]])"
    command = [sys.executable, "-c", code.format(encoder, say)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False"]
