"""The check that compiles kernels without a GPU: what it covers, what it complains of, and two compilations.

These run in a process of their own: in this one kernels may be interpreted.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stl_search.kernels import aot, tuning

CASES = list(aot.cases())


def run(*arguments: str, cache: Path, blocked: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(blocked)] if blocked else []
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *sys.path]), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "stl_search.kernels.aot", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_every_shipped_configuration_is_covered() -> None:
    """Configurations that two classes share are compiled once."""
    for arch in tuning.ARCHITECTURES:
        for kernel, classes in tuning.defaults()[arch].items():
            compiled = [case.config for case in CASES if (case.arch, case.kernel) == (arch, kernel)]
            for configs in classes.values():
                assert all(c in compiled or c["use"] in ("bmm", "unfused") for c in configs)


def test_fp8_is_for_chips_that_have_it() -> None:
    assert {case.arch for case in CASES if "fp8_e4m3" in case.dtypes} == {"sm_90", "sm_100"}


def test_complaints() -> None:
    case = next(c for c in CASES if c.arch == "sm_90" and c.kernel == "product" and c.sizes == "16/large")
    good = aot.Figures("product", 200, 0, 100000, "wgmma")
    assert aot.complaint(case, good) == ""
    assert "spills" in aot.complaint(case, dataclasses.replace(good, stack=8))
    assert "shared memory" in aot.complaint(case, dataclasses.replace(good, shared=232449))
    assert "not wgmma" in aot.complaint(case, dataclasses.replace(good, tensor_cores="mma.sync"))
    older = dataclasses.replace(case, arch="sm_80")
    assert "sm_80 has" in aot.complaint(older, dataclasses.replace(good, tensor_cores="mma.sync", shared=166913))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton has no wheel for this platform")
def test_compiling_and_reading_again(tmp_path: Path) -> None:
    chosen = ("sm_90", "product", "16/small", "HIGH=64", "bf16-fp32")
    first = run(*chosen, cache=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "wgmma" in first.stdout
    assert "2 configurations (2 compiled now), 0 wrong" in first.stdout
    assert "2 configurations (0 compiled now), 0 wrong" in run(*chosen, cache=tmp_path).stdout


def test_without_triton_one_line_says_so(tmp_path: Path) -> None:
    """``find_spec`` is what the check asks; a sitecustomize hides triton from it, as on a platform without a wheel."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'triton' else real(n, *a)\n"
    )
    found = run(cache=tmp_path, blocked=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "kernels not compiled: triton has no wheel for this platform\n"
