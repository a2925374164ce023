"""The journal of a search: append-only lines, each with its checksum, so that a killed run loses nothing it had found.

A line is ``crc32 json``. The first names the search, the last of a completed one says ``finished``; between them stand
one line a job (``{"job": 7, "strategy": .., "seconds": .., "schemes": [..]}``). A torn last line is ignored.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from stl_search.errors import CatalogError, UsageError
from stl_search.scheme import Scheme, parse_shape

__all__ = ["Journal", "decode", "encode"]


def encode(scheme: Scheme) -> dict[str, Any]:
    """A scheme as a compact JSON object that keeps every bit: float64 in base64 for R, plain rows otherwise."""
    if scheme.ring.name != "R":
        return scheme.to_json()
    data = np.concatenate([f.ravel() for f in scheme.factors]).astype("<f8").tobytes()
    return {"shape": list(scheme.shape), "rank": scheme.rank, "ring": "R", "data": base64.b64encode(data).decode()}


def decode(obj: dict[str, Any]) -> Scheme:
    """The scheme of ``encode``."""
    if "data" not in obj:
        return Scheme.from_json(obj)
    m, k, n = shape = parse_shape(obj["shape"])
    r = int(obj["rank"])
    flat = np.frombuffer(base64.b64decode(obj["data"]), dtype="<f8")
    u, v, w = np.split(flat, [r * m * k, r * (m * k + k * n)])
    return Scheme(shape, "R", u.reshape(r, m, k), v.reshape(r, k, n), w.reshape(r, m, n))


class Journal:
    """One file, held by one process at a time; opening a finished one, or with ``fresh``, starts anew.

    Raises UsageError when another process holds it, CatalogError when the folder cannot be written.
    """

    def __init__(self, path: Path, header: dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise CatalogError(f"cannot write the journal {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UsageError(
                f"the same search is running already (journal {path}); choose another --seed or --out"
            ) from None
        lines, good = self._read()
        if fresh or not lines or lines[0] != header or any("finished" in x for x in lines):
            lines, good = [], 0
        self._file.truncate(good)
        self._file.seek(0, os.SEEK_END)
        self.lines = lines[1:]
        if not lines:
            self.append(header)

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """(whole lines, number of bytes they take)."""
        self._file.seek(0)
        lines: list[dict[str, Any]] = []
        good = 0
        for raw in self._file:
            check, _, text = raw.partition(b" ")
            if not raw.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
                break
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict):
                break
            lines.append(line)
            good += len(raw)
        return lines, good

    def append(self, line: dict[str, Any]) -> None:
        """Write one line and wait until it is on disk."""
        text = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            self._file.write(b"%08x " % zlib.crc32(text) + text)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CatalogError(f"cannot write the journal {self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
