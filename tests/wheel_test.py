"""Builds a wheel and tries it in an empty environment, beside the packages `kernels` and `numpy-stl` of the index.

Run by `make wheel-test`; no part of the pytest run, since it installs torch. It shows that the wheel holds all of the
library and nothing else, leaves other packages as they are, and works away from the checkout.
"""

from __future__ import annotations

import email
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "stl_search"
LINKED = ("groups", "kernels", "catalog")  # folders of the checkout that are packages inside stl_search
NEIGHBOURS = {"kernels": "kernels", "numpy-stl": "stl"}  # distribution -> import name; both clash with names of ours
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "venv")

# Run by the Python of the new environment: version, files with hashes and import check of each distribution named.
PROBE = """
import hashlib, importlib, importlib.metadata, json, sys
report = {}
for name, module in json.loads(sys.argv[1]).items():
    dist = importlib.metadata.distribution(name)
    files = {str(f): hashlib.sha256(f.locate().read_bytes()).hexdigest() for f in dist.files if f.suffix != ".pyc"}
    report[name] = [dist.version, files, importlib.import_module(module).__file__]
print(json.dumps(report))
"""

START = time.monotonic()


def say(text: str) -> None:
    print(f"wheel-test: [{time.monotonic() - START:3.0f} s] {text}", flush=True)


def require(holds: bool, text: str) -> None:
    """Ends the run with one line when something does not hold."""
    if not holds:
        sys.exit(f"wheel-test: FAILED: {text}")


def call(*command: str | Path, cwd: Path, capture: bool = False) -> str:
    """Runs a command away from the checkout's modules; a failure ends the run. Returns its stdout if captured."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE if capture else None
    )
    require(done.returncode == 0, f"exit code {done.returncode} from {' '.join(map(str, command))[:200]}")
    return done.stdout or ""


def build(source: Path, work: Path) -> Path:
    """A wheel made from a copy of the checkout, where no remains of an earlier build can slip in."""
    shutil.copytree(ROOT, source, symlinks=True, ignore=NOT_SOURCE)
    call(sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", work / "wheel", source, cwd=work)
    (wheel,) = (work / "wheel").glob("*.whl")
    return wheel


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def expected_files(source: Path) -> dict[str, str]:
    """Name in the wheel -> hash, for every module, catalog entry and type marker of the source tree."""
    tops = [(source / PACKAGE, PACKAGE), *((source / name, f"{PACKAGE}/{name}") for name in LINKED)]
    return {  # rglob does not enter the links, so each file comes once, under its true name
        f"{prefix}/{path.relative_to(top).as_posix()}": digest(path.read_bytes())
        for top, prefix in tops
        for path in top.rglob("*")
        if path.suffix in {".py", ".json"} or path.name == "py.typed"
    }


def check_contents(wheel: Path, source: Path) -> None:
    """The wheel holds the library, file for file, its licence and one command, and no other top-level name."""
    with zipfile.ZipFile(wheel) as archive:
        info = next(n.partition("/")[0] for n in archive.namelist() if n.partition("/")[0].endswith(".dist-info"))
        held = {n: digest(archive.read(n)) for n in archive.namelist() if not n.startswith(f"{info}/")}
        licence = archive.read(f"{info}/licenses/LICENSE")
        commands = archive.read(f"{info}/entry_points.txt").decode().split()
        tags = email.message_from_bytes(archive.read(f"{info}/WHEEL")).get_all("Tag")
    wanted = expected_files(source)
    tops = {name.partition("/")[0] for name in held}
    require(tops == {PACKAGE}, f"top-level names besides {PACKAGE}: {', '.join(sorted(tops - {PACKAGE}))}")
    require(not wanted.keys() - held.keys(), f"not in the wheel: {', '.join(sorted(wanted.keys() - held.keys()))}")
    require(not held.keys() - wanted.keys(), f"unknown in the wheel: {', '.join(sorted(held.keys() - wanted.keys()))}")
    differ = [name for name in wanted if wanted[name] != held[name]]
    require(not differ, f"differs from its source: {', '.join(differ)}")
    require(f"{PACKAGE}/py.typed" in held, "py.typed is not in the wheel")
    require(licence == (source / "LICENSE").read_bytes(), "the licence is not its source's")
    require(
        commands == ["[console_scripts]", "stl-search", "=", "stl_search.cli:main"],
        f"unexpected entry points: {commands}",
    )
    require(tags == ["py3-none-any"], f"not a pure wheel: {tags}")
    entries = sum(name.startswith(f"{PACKAGE}/catalog/") and name.endswith(".json") for name in held)
    say(f"{wheel.name}: {len(held)} files, {entries} of them catalog entries, only {PACKAGE} at the top")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="stl-search-wheel-") as folder:
        work = Path(folder).resolve()
        require(not work.is_relative_to(ROOT), f"{work} lies inside the checkout; set TMPDIR to another place")
        source = work / "source"
        wheel = build(source, work)
        check_contents(wheel, source)

        call(sys.executable, "-m", "venv", work / "env", cwd=work)
        python = work / "env" / "bin" / "python"
        # --no-compile: most of what is installed is never imported here.
        install = (python, "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-compile")
        probe = (python, "-c", PROBE, json.dumps(NEIGHBOURS))
        call(*install, *NEIGHBOURS, cwd=work)
        before = json.loads(call(*probe, cwd=work, capture=True))
        require(all(files for _, files, _ in before.values()), "a neighbour lists no files")
        say("beside " + " and ".join(f"{name} {before[name][0]}" for name in before) + "; installing (torch: minutes)")

        call(*install, "-c", ROOT / "constraints.txt", wheel, "pytest", cwd=work)
        after = json.loads(call(*probe, cwd=work, capture=True))
        for name in NEIGHBOURS:
            changed = [f for f in before[name][1] if after[name][1].get(f) != before[name][1][f]]
            require(not changed, f"installing stl-search changed {name}: {', '.join(changed[:5])}")
            require(before[name] == after[name], f"installing stl-search changed {name}")
        call(python, "-m", "pip", "--disable-pip-version-check", "check", cwd=work, capture=True)
        say(f"{' and '.join(NEIGHBOURS)} are unchanged and import")

        place = work / "elsewhere"
        place.mkdir()
        shutil.copy(ROOT / "tests" / "test_smoke.py", place)
        found = call(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=place, capture=True).strip()
        require(Path(found).is_relative_to(work / "env"), f"{PACKAGE} came from {found}, not from the wheel")
        markers = "markers=smoke: runs on the installed package"
        options = ("-q", "-p", "no:cacheprovider", "-W", "error", "--strict-markers", "-o", markers, "-m", "smoke")
        call(work / "env" / "bin" / "pytest", *options, cwd=place)
    say("PASSED: the wheel is complete, disturbs nothing and works")


if __name__ == "__main__":
    main()
