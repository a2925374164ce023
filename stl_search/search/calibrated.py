"""Data-aware discovery: schemes fitted to the second moments of given matrices, with the error on rows kept back.

With S_A, S_B the uncentred second moments of the tiles of A and B, mu_A, mu_B their means, L inner tiles summed and
R = T - sum_q u_q (x) v_q (x) w_q:

    |R|_S^2 = |R x1 S_A^(1/2) x2 S_B^(1/2)|^2 + (L - 1) |R(mu_A, mu_B)|^2
    E = |R|_S^2 / |T|_S^2        kappa = sum_q (u_q' S_A u_q) (v_q' S_B v_q) |w_q|^2 / |T|_S^2

Correlation between inner tiles is not covered, so the measured error on held-out rows stands beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import scipy.optimize

from stl_search import __version__, score
from stl_search.catalog import store
from stl_search.decompose import Floats
from stl_search.errors import CatalogError, FormatError, UsageError
from stl_search.scheme import Scheme, Shape, matmul_tensor, parse_shape
from stl_search.search.journal import Journal, decode, encode
from stl_search.search.problem import STARTS

__all__ = ["LAYOUTS", "Calibration", "calibrated", "fit", "measured", "moments", "read_matrix", "tiles"]

LAYOUTS = ("block", "tile")
_RIDGE = 1e-9  # of the mean eigenvalue, added to second moments: directions that the data never take stay solvable
_ITERATIONS = 400


def read_matrix(path: str | os.PathLike[str]) -> Floats:
    """The real matrix in a .npy or .safetensors file (its one matrix), as float64; raises FormatError otherwise."""
    name = os.fspath(path)
    try:
        if name.endswith(".safetensors"):
            from safetensors.numpy import load_file

            found = [x for x in load_file(name).values() if x.ndim == 2]
            if len(found) != 1:
                raise FormatError(f"{name} holds {len(found)} matrices, must be one")
            array = found[0]
        else:
            with open(name, "rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise FormatError(f"{name} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, TypeError) as error:
        raise FormatError(f"{name} is no matrix file: {error}") from None
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise FormatError(f"{name} holds {array.dtype} of {array.ndim} dimensions, must be a real matrix")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise FormatError(f"{name} holds numbers that are not finite")
    return array


def tiles(x: Floats, rows: int, cols: int, layout: str = "block") -> Floats:
    """(count, rows * cols): the tiles of a matrix, row-major; what does not fill a tile at the end is left out.

    >>> tiles(np.arange(8.0).reshape(2, 4), 1, 2, "tile").tolist()
    [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    >>> tiles(np.arange(8.0).reshape(2, 4), 1, 2, "block").tolist()
    [[0.0, 2.0], [1.0, 3.0], [4.0, 6.0], [5.0, 7.0]]
    """
    high, wide = x.shape[0] // rows, x.shape[1] // cols
    x = x[: high * rows, : wide * cols]
    if layout == "block":
        return x.reshape(rows, high, cols, wide).transpose(1, 3, 0, 2).reshape(-1, rows * cols)
    return x.reshape(high, rows, wide, cols).transpose(0, 2, 1, 3).reshape(-1, rows * cols)


def moments(x: Floats, rows: int, cols: int, layout: str = "block") -> tuple[Floats, Floats]:
    """(S, mu): uncentred second moments (rows*cols, rows*cols) and means of the tiles, scaled to unit mean square."""
    flat = tiles(x, rows, cols, layout)
    size = math.sqrt(float((flat * flat).mean())) if flat.size else 0.0
    if not size:
        raise UsageError("calibration data are empty or zero: give matrices with at least one tile")
    flat = flat / size
    second = flat.T @ flat / len(flat)
    return second + _RIDGE * np.trace(second) / len(second) * np.eye(len(second)), flat.mean(axis=0)


@dataclass(frozen=True)
class Calibration:
    """The whitened problem for <m,k,n>: symmetric roots of S_A and S_B, the means, and L, the inner tiles summed."""

    shape: Shape
    roots: tuple[Floats, Floats]
    means: tuple[Floats, Floats]
    inner: int

    @classmethod
    def of(cls, shape: Shape, a: Floats, b: Floats, layout: str = "block") -> Calibration:
        """From A (.., inner) and B (inner, ..); raises UsageError for sizes that do not fit."""
        m, k, n = shape
        if a.shape[1] != b.shape[0]:
            raise UsageError(f"A {a.shape} and B {b.shape} do not multiply: inner sizes differ")
        if layout not in LAYOUTS:
            raise UsageError(f"unknown layout {layout!r:.40}; known: {', '.join(LAYOUTS)}")
        (second_a, mean_a), (second_b, mean_b) = moments(a, m, k, layout), moments(b, k, n, layout)
        return cls(shape, (_root(second_a), _root(second_b)), (mean_a, mean_b), max(1, a.shape[1] // k))

    def target(self) -> Floats:
        """T with S_A^(1/2) and S_B^(1/2) applied: (mk, kn, mn)."""
        result: Floats = np.einsum("ai,bj,abc->ijc", self.roots[0], self.roots[1], matmul_tensor(self.shape))
        return result

    def mean_product(self) -> Floats:
        """T(mu_A, mu_B): (mn,)."""
        m, k, n = self.shape
        return (self.means[0].reshape(m, k) @ self.means[1].reshape(k, n)).ravel()

    def norm2(self) -> float:
        """|T|_S^2."""
        return float((self.target() ** 2).sum() + (self.inner - 1) * (self.mean_product() ** 2).sum())

    def figures(self, scheme: Scheme) -> tuple[float, float]:
        """(E, kappa) of a real scheme on such data."""
        u, v, w = (f.reshape(scheme.rank, -1).astype(np.float64) for f in scheme.as_float())
        x, y = u @ self.roots[0], v @ self.roots[1]
        gap = self.target() - np.einsum("qi,qj,qc->ijc", x, y, w, optimize=True)
        mean = self.mean_product() - ((u @ self.means[0]) * (v @ self.means[1])) @ w
        whole = self.norm2()
        noise = ((x * x).sum(axis=1) * (y * y).sum(axis=1) * (w * w).sum(axis=1)).sum()
        return float((gap * gap).sum() + (self.inner - 1) * (mean * mean).sum()) / whole, float(noise) / whole

    def cost(self, scheme: Scheme, lam: float) -> float:
        """error^2 = E + lam kappa on such data."""
        e, kappa = self.figures(scheme)
        return e + lam * kappa


def _root(second: Floats) -> Floats:
    values, vectors = np.linalg.eigh(second)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def fit(calibration: Calibration, u: Floats, v: Floats, lam: float, iterations: int = _ITERATIONS) -> Scheme:
    """The scheme that a start u (r, mk), v (r, kn) becomes: L-BFGS on (u, v), w eliminated in closed form.

    With x = u S_A^(1/2), y = v S_B^(1/2), a_q = <u_q, mu_A>, b_q = <v_q, mu_B>: w solves
    ((x x^T) o (y y^T) (1 + lam on the diagonal) + (L - 1) (a o b)(a o b)^T) w = T'(x, y) + (L - 1) (a o b) T(mu)^T.
    """
    rank = len(u)
    target, goal, extra = calibration.target(), calibration.mean_product(), calibration.inner - 1
    (root_a, root_b), (mean_a, mean_b) = calibration.roots, calibration.means
    whole = calibration.norm2()
    cut = u.size
    diagonal = np.arange(rank)

    def solved(u: Floats, v: Floats) -> tuple[Floats, ...]:
        x, y = u @ root_a, v @ root_b
        p = (u @ mean_a) * (v @ mean_b)
        gram_x, gram_y = x @ x.T, y @ y.T
        normal = gram_x * gram_y
        normal[diagonal, diagonal] *= 1 + lam
        normal += extra * np.outer(p, p)
        normal[diagonal, diagonal] += 1e-13 * np.trace(normal) / rank + 1e-300
        right = np.einsum("qi,qj,ijc->qc", x, y, target, optimize=True) + extra * np.outer(p, goal)
        return x, y, p, gram_x, gram_y, np.linalg.solve(normal, right), right

    def value(z: Floats) -> tuple[float, Floats]:
        u, v = z[:cut].reshape(rank, -1), z[cut:].reshape(rank, -1)
        x, y, p, gram_x, gram_y, w, right = solved(u, v)
        gram_w = w @ w.T
        gram_w[diagonal, diagonal] *= 1 + lam
        dx = (gram_y * gram_w) @ x - np.einsum("qj,qc,ijc->qi", y, w, target, optimize=True)
        dy = (gram_x * gram_w) @ y - np.einsum("qi,qc,ijc->qj", x, w, target, optimize=True)
        dp = -extra * (w @ (goal - p @ w))
        du = dx @ root_a + np.outer(dp * (v @ mean_b), mean_a)
        dv = dy @ root_b + np.outer(dp * (u @ mean_a), mean_b)
        gradient = 2 * np.concatenate([du.ravel(), dv.ravel()])
        return (whole - float((right * w).sum())) / whole, gradient / whole

    start = np.concatenate([u.ravel(), v.ravel()])
    done = scipy.optimize.minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    u, v = done.x[:cut].reshape(rank, -1), done.x[cut:].reshape(rank, -1)
    w = solved(u, v)[5]
    m, k, n = calibration.shape
    shaped = Scheme(
        calibration.shape, "R", u.reshape(rank, m, k), v.reshape(rank, k, n), np.asarray(w).reshape(rank, m, n)
    )
    return score.balanced(shaped)


def measured(scheme: Scheme, a: Floats, b: Floats, dtype: str, layout: str = "block") -> float:
    """Relative Frobenius error of A B by the scheme, encoded operands rounded to ``dtype``, all else in float64."""
    m, k, n = scheme.shape
    high, inner, wide = a.shape[0] // m, a.shape[1] // k, b.shape[1] // n
    a, b = a[: high * m, : inner * k], b[: inner * k, : wide * n]
    exact = a @ b
    u, v, w = (f.reshape(scheme.rank, -1).astype(np.float64) for f in scheme.as_float())
    left = (u @ tiles(a, m, k, layout).T).reshape(-1, high, inner)
    right = (v @ tiles(b, k, n, layout).T).reshape(-1, inner, wide)
    products = score.stored(left, dtype) @ score.stored(right, dtype)
    c = (w.T @ products.reshape(scheme.rank, -1)).reshape(m, n, high, wide)
    order = (0, 2, 1, 3) if layout == "block" else (2, 0, 3, 1)
    return float(np.linalg.norm(c.transpose(order).reshape(exact.shape) - exact) / np.linalg.norm(exact))


def calibrated(
    shape: Shape,
    rank: int,
    a: Floats,
    b: Floats,
    *,
    dtype: str = "bf16",
    time: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    layout: str = "block",
    starts: str = "none",
    out: str | os.PathLike[str] | None = None,
    command: str = "",
    fresh: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Search for a scheme of <m,k,n> and rank r for data like A and B; the object that ``discover --json`` prints.

    The second half of A's rows is kept back, and measured with the scheme found and with the best universal one of
    the catalogs (``held_out``, ``held_out_universal``). Starts are random, ``steps`` of them or as many as ``time``
    allows; with ``starts`` "shipped" or "catalog" the best universal scheme there is the first one. The scheme goes to
    ``out`` through ``catalog.add``. The journal of the run lies there too, so that an interrupted search goes on when
    it is called again with the same data; ``fresh`` starts anew.

    Raises UsageError for what makes no sense and for data that do not fit.
    """
    shape = parse_shape(shape)
    m, k, n = shape
    score.check_dtype(dtype)
    if not 1 <= rank <= m * k * n:
        raise UsageError(f"rank is {rank}, must be 1 to {m * k * n}")
    if steps is not None and steps < 1:
        raise UsageError(f"steps is {steps}, must be >= 1")
    if time is not None and not (time > 0 and math.isfinite(time)):
        raise UsageError(f"time is {time}, must be a positive number of seconds")
    if starts not in STARTS:
        raise UsageError(f"unknown starts {starts!r:.40}; known: {', '.join(STARTS)}")
    lam = 2 * score.relative_rounding(dtype) ** 2
    half = a.shape[0] // (2 * m) * m
    if half < m or a.shape[1] < k or b.shape[1] < n:
        raise UsageError(f"A {a.shape} and B {b.shape} are too small for tiles of <{m},{k},{n}>, with half kept back")
    calibration = Calibration.of(shape, a[:half], b, layout)
    universal = _universal(shape, rank, dtype, None)
    start = universal
    if starts != "catalog":
        start = None if starts == "none" else _universal(shape, rank, dtype, [store.shipped_dir()])
    folder = Path(out) if out is not None else store.user_dir()
    digests = {"A": _digest(a), "B": _digest(b)}
    begun = None if start is None else start.id
    header = {"calibrated": [shape, rank, dtype, seed, layout, begun, *digests.values(), __version__]}
    name = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]
    with Journal(folder / ".journal" / f"calibrated-{name}", json.loads(json.dumps(header)), fresh) as journal:
        run = _Run(calibration, rank, lam, seed, start, journal, steps)
        while (steps is not None and run.tried < steps) or (
            steps is None and (not run.tried or run.elapsed() < (time or 60))
        ):
            run.go()
            if progress is not None:
                progress(run.tried, math.sqrt(run.value))
        found = _kept(run, calibration, a[half:], b, folder, dtype, layout, digests, command)
        journal.append({"finished": found["id"]})
    held = None if universal is None else measured(universal, a[half:], b, dtype, layout)
    return {**found, "held_out_universal": held, "universal": None if universal is None else universal.id}


class _Run:
    """The starts of one search, one after the other, each with a line in the journal; those of an earlier run count."""

    def __init__(
        self,
        calibration: Calibration,
        rank: int,
        lam: float,
        seed: int,
        start: Scheme | None,
        journal: Journal,
        steps: int | None,
    ) -> None:
        self.calibration, self.rank, self.lam, self.seed = calibration, rank, lam, seed
        self.start, self.journal = start, journal
        self.rng = np.random.default_rng(seed)
        self.best: Scheme | None = None
        self.value, self.tried, self.spent = math.inf, 0, 0.0
        try:
            for line in journal.lines[:steps]:  # a run of fewer steps must find what it finds alone
                self._drawn()  # the generator must stand where it stood
                self.spent = float(line["elapsed"])
                if "scheme" in line:
                    self.best, self.value = decode(line["scheme"]), float(line["cost"])
        except (KeyError, TypeError, ValueError):
            raise CatalogError(f"the journal {journal.path} is not one of this program; use --fresh") from None
        self.began = monotonic()

    def elapsed(self) -> float:
        """Seconds used so far, those of an interrupted run included."""
        return self.spent + monotonic() - self.began

    def go(self) -> None:
        """Fit one start."""
        found = fit(self.calibration, *self._drawn(), self.lam)
        cost = self.calibration.cost(found, self.lam)
        line: dict[str, Any] = {"start": self.tried - 1, "elapsed": round(self.elapsed(), 3)}
        if cost < self.value:
            self.best, self.value = found, cost
            line |= {"cost": cost, "scheme": encode(found)}
        self.journal.append(line)

    def _drawn(self) -> tuple[Floats, Floats]:
        """(u, v) of the next start: the given scheme first, then random ones."""
        m, k, n = self.calibration.shape
        self.tried += 1
        if self.tried == 1 and self.start is not None:
            u, v, _ = (f.reshape(self.start.rank, -1).astype(np.float64) for f in self.start.as_float())
            more = [0.1 * self.rng.standard_normal((self.rank - self.start.rank, f.shape[1])) for f in (u, v)]
            return np.vstack([u, more[0]]), np.vstack([v, more[1]])
        u, v = (
            self.rng.standard_normal((self.rank, size)) @ np.linalg.inv(root)
            for size, root in zip((m * k, k * n), self.calibration.roots, strict=True)
        )
        return u, v


def _kept(
    run: _Run,
    calibration: Calibration,
    rest: Floats,
    b: Floats,
    folder: Path,
    dtype: str,
    layout: str,
    digests: dict[str, str],
    command: str,
) -> dict[str, Any]:
    """Puts the best scheme into the catalog folder; the object for it, measured on the rows ``rest`` kept back."""
    assert run.best is not None
    shape, rank, seconds = calibration.shape, run.rank, run.elapsed()
    provenance: dict[str, Any] = {
        "command": command,
        "strategy": "calibrated",
        "seed": run.seed,
        "steps": run.tried,
        "version": __version__,
        "starts": [] if run.start is None else [run.start.id],
        "calibration": {
            "layout": layout,
            **digests,
            "error": math.sqrt(run.value),
            "held_out": measured(run.best, rest, b, dtype, layout),
        },
    }
    path = store.add(run.best, provenance, folder, dtype)
    kept = store.load(path)
    e, kappa = calibration.figures(kept)
    return {
        "found": e < score.line(shape, rank) - store.TIE,
        "path": str(path),
        "id": kept.id,
        "shape": list(shape),
        "rank": kept.rank,
        "ring": kept.ring.name,
        "dtype": dtype,
        "E": e,
        "error": math.sqrt(e + run.lam * kappa),
        "kappa": kappa,
        "strategy": "calibrated",
        "seconds": round(seconds, 3),
        "layout": layout,
        "line": score.line(shape, rank),
        "held_out": measured(kept, rest, b, dtype, layout),
    }


def _universal(shape: Shape, rank: int, dtype: str, dirs: list[Path] | None) -> Scheme | None:
    """The scheme of at most that rank with least error at the dtype on independent entries, if there is one."""
    with contextlib.suppress(CatalogError):
        return store.scheme_of(store.best(shape, max_rank=rank, dtype=dtype, dirs=dirs), shape)
    return None


def _digest(x: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
