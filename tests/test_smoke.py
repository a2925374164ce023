"""The least that an installed stl-search must do; runs in the checkout and, by `make wheel-test`, away from it.

Uses nothing but the installed package: no file of the checkout, no other test.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import json
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import stl_search as stl

pytestmark = pytest.mark.smoke

# Strassen's scheme, <2,2,2> rank 7 over ZT: rows of u on (a00, a01, a10, a11), of v on b, of w on c alike.
STRASSEN = stl.Scheme(
    (2, 2, 2),
    "ZT",
    [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]],
    [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]],
    [[1, 0, 0, 1], [0, 0, 1, -1], [0, 1, 0, 1], [1, 0, 1, 0], [-1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]],
)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command `stl-search`, run to its end."""
    script = Path(sysconfig.get_path("scripts")) / "stl-search"
    return subprocess.run([script, *arguments], capture_output=True, text=True, timeout=120)


def shipped(folder: str) -> list[Path]:
    """The catalog files that the package carries."""
    files = importlib.resources.files("stl_search.catalog") / folder
    return sorted(Path(str(f)) for f in files.iterdir() if f.name.endswith(".json"))


def test_the_version_is_the_one_installed() -> None:
    assert stl.__version__ == importlib.metadata.version("stl-search")


@pytest.mark.parametrize("name", ["bench", "catalog", "groups", "kernels", "nn", "runtime", "search"])
def test_every_subpackage_is_installed(name: str) -> None:
    assert importlib.import_module(f"stl_search.{name}").__name__ == f"stl_search.{name}"


def test_the_package_says_that_it_is_typed() -> None:
    assert (importlib.resources.files("stl_search") / "py.typed").is_file()


def test_strassen_is_proved_and_a_wrong_coefficient_is_named() -> None:
    assert stl.verify(STRASSEN).kind == "exact"
    u = STRASSEN.u.copy()
    u[0, 0, 0] = -1
    with pytest.raises(stl.StlError, match=r"coefficient of A\[0,0\] B\[0,0\] in C\[0,0\]"):
        stl.verify(stl.Scheme((2, 2, 2), "ZT", u, STRASSEN.v, STRASSEN.w))


def test_amm_with_an_exact_scheme_agrees_with_numpy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 7)), rng.standard_normal((7, 3))
    np.testing.assert_allclose(stl.amm(a, b, encoder=STRASSEN), a @ b, rtol=0, atol=1e-12 * np.linalg.norm(a @ b))


def test_the_shipped_catalog_is_there_and_holds() -> None:
    files = shipped("schemes")
    assert any(f.name.startswith("2x2x2_r7_ZT") for f in files)
    assert stl.load("catalog:best?shape=2,2,2&rank=7").rank == 7
    done = command("verify", *(str(f) for f in files if f.name.startswith("2x2x2_")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_catalog_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STL_CATALOG", str(tmp_path / "mine"))
    path = stl.catalog.add(STRASSEN, {"strategy": "smoke"})
    assert stl.load(path) == STRASSEN
    assert command("verify", str(path)).returncode == 0
    shown = command("catalog", "show", "catalog:best?shape=2,2,2&rank=7&ring=ZT", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["rank"] == 7
    path.write_text(path.read_text("utf-8").replace("[1,0,0,1]", "[1,0,0,0]", 1), "utf-8")
    done = command("verify", str(path))
    assert done.returncode == 1
    assert "coefficient of A[1,1] B[0,0] in C[0,0] is -1, must be 0" in done.stdout


def test_the_command_is_installed() -> None:
    done = command("--help")
    assert done.returncode == 0, done.stderr
    assert "discover" in done.stdout
