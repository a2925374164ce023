"""The command `stl-search`: parses, calls the library, prints. No mathematics here, and nothing heavy at the top."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stl_search import __version__, rings
from stl_search.errors import FormatError, SchemeError, StlError, UsageError
from stl_search.scheme import parse_shape
from stl_search.score import DTYPES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from stl_search.catalog.store import Entry
    from stl_search.groups import Group
    from stl_search.scheme import Scheme, Shape
    from stl_search.search.campaign import Campaign
    from stl_search.search.frontier import Frontier
    from stl_search.search.portfolio import Progress

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
NOT_ON_A_TERMINAL = 160  # columns: what is piped on should not be cut to a window

Command = TypeVar("Command", bound=Callable[..., Any])
Item = TypeVar("Item")


# -- what a command is given -------------------------------------------------------------------------------------------


def duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``30m`` or ``6h``."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text)
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise click.BadParameter(f"{text!r} is not a duration: write 90, 90s, 30m or 6h")
    return seconds


def sides(text: str) -> Shape:
    """A shape (m, k, n) from ``4,4,4`` or ``4x4x4``."""
    if not re.fullmatch(r"[0-9]{1,4}([,x][0-9]{1,4}){2}", text):
        raise click.BadParameter(f"{text!r} is not a shape: write M,K,N, for example 2,3,4")
    try:
        return parse_shape([int(side) for side in re.split("[,x]", text)])
    except SchemeError as error:
        raise click.BadParameter(str(error)) from None


def shape_options(command: Command) -> Command:
    """--shape M,K,N and --tile T; ``_shape`` makes one shape of them."""
    for option in (
        click.option("--tile", type=click.IntRange(1, 64), metavar="T", help="Short for --shape T,T,T."),
        click.option("--shape", type=sides, metavar="M,K,N", help="Sides of A (M x K) and B (K x N)."),
    ):
        command = option(command)
    return command


def _shape(shape: Shape | None, tile: int | None, required: bool = True) -> Shape | None:
    if shape is not None and tile is not None:
        raise click.UsageError("give --shape or --tile, not both")
    if shape is None and tile is None and required:
        raise click.UsageError("give the shape: --shape M,K,N or --tile T")
    return (tile, tile, tile) if tile is not None else shape


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
dtype_choice = click.Choice(list(DTYPES))
ring_choice = click.Choice(rings.NAMES)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="cuda: thousands of starts at once on a GPU; auto: where there is one and it serves.",
)  # fmt: skip
dir_type = click.Path(file_okay=False, path_type=str)


# -- what a command prints ---------------------------------------------------------------------------------------------


def _console() -> Console:
    """Where tables go: stdout, cut to the window on a terminal only."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else NOT_ON_A_TERMINAL
    return Console(highlight=False, markup=False, width=width)


def _table(title: str, columns: Iterable[tuple[str, str]], rows: Iterable[Sequence[Any]]) -> Table:
    """A table; ``columns`` are (heading, "left" or "right"), cells are shown as they are."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, side in columns:
        table.add_column(Text(heading), justify="right" if side == "right" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_cell(x)) for x in row))
    return table


def _cell(x: Any) -> str:
    if x is None:
        return "-"
    return f"{x:.4g}" if isinstance(x, float) else _one_line(x)  # files may hold control characters


def _print_json(obj: dict[str, Any]) -> None:
    click.echo(json.dumps(obj, allow_nan=False))


def _finite(x: float) -> float | None:
    """A number as JSON and tables have it: NaN and infinity are None."""
    return x if math.isfinite(x) else None


def _say(text: str) -> None:
    """A message to the user, on stderr, so that stdout holds results alone."""
    click.echo(text, err=True)


def _one_line(text: object) -> str:
    from stl_search.catalog.record import one_line

    return one_line(text)


def _name(shape: Sequence[int]) -> str:
    return f"<{','.join(map(str, shape))}>"


class _Main(click.Group):
    """The top group: turns library errors, Ctrl-C and an output that cannot be written into one line and a code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            with suppress(OSError):  # what is left in the buffer is not tried again when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _say(f"error: {_one_line(error.filename or 'the output')}: {error.strerror or error}")
            sys.exit(UsageError.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StlError as error:
            _say(f"error: {_one_line(error)}")
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            _say("interrupted")
            ctx.exit(INTERRUPTED)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="stl-search")
def main() -> None:
    """Find, prove, keep and run bilinear schemes for fast and approximate matrix multiplication.

    Exit codes: 0 done; 1 a claim fails; 2 bad usage or a bad file; 3 not found.
    """


# -- discover ----------------------------------------------------------------------------------------------------------


@main.command()
@shape_options
@click.option("--rank", type=click.IntRange(min=1), required=True, metavar="R", help="Number of products, at most.")
@click.option(
    "--ring", type=click.Choice([r for r in rings.NAMES if r != "C"]), default="R", show_default=True,
    help="R: approximate schemes; all others: exact ones.",
)  # fmt: skip
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Precision whose error counts.")
@click.option("--time", "time_", type=duration, metavar="T", help="Time to search: 90, 90s, 30m, 6h.  [default: 60s]")
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="Work to do, instead of a time; repeats exactly."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one a core]")
@click.option("--strategy", "strategies", multiple=True, metavar="NAME", help="Only these; may be repeated.")
@click.option(
    "--symmetry",
    metavar="NAME",
    help="Invariant schemes only: cyclic, transpose, a group, or a + of them; over exact rings also reverse, "
    "permute:(1,2), linear:01/11.",
)
@click.option(
    "--coefficients", type=click.Choice(["any", "sparse", "grid", "sparse+w", "grid+w"]), default="any",
    show_default=True, help="Encoders with few non-zeros, or of 0, +-1/4, +-1/2, +-1, +-2; +w: decoders too.",
)  # fmt: skip
@click.option(
    "--starts", type=click.Choice(["none", "shipped", "catalog"]), default="none", show_default=True,
    help="Which catalog entries to start from.",
)  # fmt: skip
@click.option("--start", "given", multiple=True, metavar="ENTRY", help="Start from this id or file; may be repeated.")
@click.option(
    "--calibrate", nargs=2, type=click.Path(dir_okay=False), metavar="A B",
    help="Fit to the tiles of these matrices (.npy or .safetensors); half of A's rows are kept back.",
)  # fmt: skip
@click.option(
    "--layout", type=click.Choice(["block", "tile"]), default="block", show_default=True,
    help="How --calibrate cuts matrices into tiles.",
)  # fmt: skip
@device_option
@click.option("--out", type=dir_type, metavar="DIR", help="Catalog folder for the winner.  [default: yours]")
@click.option("--fresh", is_flag=True, help="Ignore the journal of an unfinished run.")
@json_option
@click.pass_context
def discover(
    ctx: click.Context,
    /,
    shape: Shape | None,
    tile: int | None,
    time_: float | None,
    steps: int | None,
    calibrate: tuple[str, str] | None,
    layout: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for a scheme of a shape and rank, and write the best to the catalog.

    Exit 0: found, below the line 1 - r/mkn or exact. Exit 3: not found.
    """
    if time_ is not None and steps is not None:
        raise click.UsageError("give --time or --steps, not both")
    wanted = _shape(shape, tile)
    assert wanted is not None
    rank = options.pop("rank")
    if calibrate is not None:
        _calibrated(ctx, wanted, rank, calibrate, layout, time_, steps, as_json, options)
    given = [_scheme(entry, options["out"])[0] for entry in options.pop("given")]
    from stl_search.search.portfolio import discover as search

    with _progress(f"{_name(wanted)} rank {rank}") as progress:
        result = search(
            wanted,
            rank,
            time=60.0 if time_ is None and steps is None else time_,
            steps=steps,
            given=given,
            progress=progress,
            **options,
        )
    found = result.to_json()
    if as_json:
        _print_json(found)
    else:
        _show_result(found)
    ctx.exit(result.exit_code)


def _calibrated(
    ctx: click.Context,
    shape: Shape,
    rank: int,
    files: tuple[str, str],
    layout: str,
    time_: float | None,
    steps: int | None,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    """``discover --calibrate``: one process, its own search; ends the command."""
    from stl_search.search.calibrated import calibrated, read_matrix

    others = {"strategies": "--strategy", "symmetry": "--symmetry", "given": "--start", "workers": "--workers"}
    unfit = [flag for name, flag in others.items() if options[name]]
    unfit += ["--ring"] if options["ring"] != "R" else []
    unfit += ["--device"] if options["device"] == "cuda" else []
    unfit += ["--coefficients"] if options["coefficients"] != "any" else []
    if unfit:
        raise UsageError(
            f"--calibrate is a search of its own, over R, in one process, on the CPU: leave out {', '.join(unfit)}"
        )
    words = ["stl-search", "discover", "--shape", ",".join(map(str, shape)), "--rank", str(rank)]
    words += ["--dtype", options["dtype"], "--seed", str(options["seed"]), "--layout", layout]
    words += ["--starts", options["starts"]] if options["starts"] != "none" else []
    words += ["--steps", str(steps)] if steps is not None else ["--time", str(time_ or 60.0)]
    found = calibrated(
        shape, rank, *map(read_matrix, files), dtype=options["dtype"], time=time_, steps=steps, seed=options["seed"],
        layout=layout, starts=options["starts"], out=options["out"], fresh=options["fresh"],
        command=shlex.join([*words, "--calibrate", *map(os.path.basename, files)]),
    )  # fmt: skip
    if as_json:
        _print_json(found)
    else:
        click.echo(f"{_name(shape)} rank {found['rank']}, {found['dtype']}: error {found['error']:.4g} on such data")
        universal = found["held_out_universal"]
        beside = "" if universal is None else f", the universal scheme {universal:.4g}"
        click.echo(f"measured on the rows kept back: {found['held_out']:.4g}{beside}")
        click.echo(found["path"])
    ctx.exit(0 if found["found"] else 3)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[Progress], None] | None]:
    """A progress bar on a terminal's stderr for as long as the block runs; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.progress import TextColumn

    columns: tuple[Any, ...] = (rich_progress.SpinnerColumn(), TextColumn("{task.description}", markup=False))
    columns += (rich_progress.BarColumn(), rich_progress.TimeElapsedColumn())
    with rich_progress.Progress(
        *columns, TextColumn("{task.fields[note]}", markup=False), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(state: Progress) -> None:
            best = "" if state.best_error is None else f"best error {state.best_error:.4g}  "
            best += "" if state.best_rank is None else f"best rank {state.best_rank}  "
            total, done = state.seconds, state.elapsed
            if total is None and state.steps is not None:
                total, done = float(state.steps), float(state.jobs)
            done = done if total is None else min(done, total)
            bar.update(task, total=total, completed=done, note=f"{state.jobs} jobs  {best}{state.note}")

        yield update


def _show_result(found: dict[str, Any]) -> None:
    """What a search found; of an approximate scheme in a table, beside the floor and the line."""
    title = f"{_name(found['shape'])} rank {found['rank']} over {found['ring']}"
    origin, time = found["strategy"], f"{found['seconds']:.1f} s"
    if found["E"] is None:
        click.echo(f"{title}, exact: {origin}, {time}" if found["found"] else title)
    else:
        rows = [
            [origin, found["E"], found["error"], found["kappa"], time],
            ["line: keep r of mkn products", found["line"], math.sqrt(found["line"]), None, None],
            ["floor: no scheme is below", found["floor"], math.sqrt(found["floor"]), None, None],
        ]
        columns = [("", "left"), ("E", "right"), ("error", "right"), ("kappa", "right"), ("time", "right")]
        _console().print(_table(f"{title}, {found['dtype']}", columns, rows))
        free = found["unrestricted"]
        if free is not None:
            columns = [("", "left"), ("error^2", "right"), ("additions", "right"), ("non-zeros u v w", "right")]
            rows = [
                [what, one["error"] ** 2, one["additions"], " ".join(map(str, one["nonzeros"])), _bytes(one["bytes"])]
                for what, one in ((found["coefficients"], found), (f"any, rank {free['rank']}", free))
            ]
            _console().print(_table("coefficients", [*columns, ("bytes A B C", "right")], rows))
    verdict = "found" if found["found"] else "not found"
    marks = ["a truncation: it ties the line"] if found["truncation"] else []
    marks += [found["reason"]] if found["reason"] else []
    click.echo(verdict + (f": {'; '.join(marks)}" if marks else ""))
    if found["measured"] is not None:
        click.echo(f"measured on the GPU: error {found['measured']:.4g}")
    if found["path"] is not None:
        click.echo(found["path"])
    better = found["catalog_better"]
    if better is not None:
        click.echo(f"the catalog already holds better: error {better['error']:.4g}: {better['path']}")


# -- campaign ----------------------------------------------------------------------------------------------------------


def shape_list(text: str) -> list[Shape]:
    """Shapes from ``2-4`` (all with sides 2 to 4), ``2,3,4;3,3,3``, or ``all`` (``2-5``)."""
    from stl_search.search.standing import sorted_shapes

    match = re.fullmatch(r"([1-9])-([1-9])", "2-5" if text == "all" else text)
    found = sorted_shapes(int(match[1]), int(match[2])) if match else [sides(one) for one in text.split(";")]
    if not found:
        raise click.BadParameter(f"{text!r} holds no shape: write 2-4, 2,3,4;3,3,3 or all")
    return found


@main.command("campaign")
@click.option("--shapes", type=shape_list, required=True, metavar="LIST", help="2-4, or 2,3,4;3,3,3, or all (2-5).")
@click.option("--ring", type=click.Choice(["Z2", "ZT", "Z", "Q"]), default="ZT", show_default=True)
@click.option("--time", "time_", type=duration, required=True, metavar="T", help="Time to search: 90s, 30m, 8h.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one a core]")
@click.option("--out", type=dir_type, metavar="DIR", help="Catalog folder for the finds.  [default: yours]")
@click.option("--fresh", is_flag=True, help="Forget what the journal tells of earlier runs.")
@json_option
@click.pass_context
def campaign_(
    ctx: click.Context,
    /,
    shapes: list[Shape],
    ring: str,
    time_: float,
    seed: int,
    workers: int | None,
    out: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Search many shapes for long, each find serving its neighbours; every find is kept at once.

    Ctrl-C or a crash loses nothing: the same command goes on for the rest of the time.
    """
    from stl_search.search.campaign import campaign

    done = None
    with _watched(_campaign_find, _campaign_table) as watch:
        try:
            options = {"ring": ring, "time": time_, "seed": seed, "workers": workers, "out": out, "fresh": fresh}
            done = campaign(shapes, progress=watch, **options)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            _say("interrupted: the same command goes on from here")
            ctx.exit(INTERRUPTED)
    if as_json:
        _print_json(done.to_json())
    else:
        _console().print(_campaign_table(done))


@contextmanager
def _watched(
    line: Callable[[Any, dict[str, Any]], str], table: Callable[[Any], Table]
) -> Iterator[Callable[[Any], None]]:
    """Shows a long search as it goes: a live table on a terminal's stderr, elsewhere a line for each find."""
    shown: int | None = None  # finds of earlier runs are not told again

    def tell(state: Any) -> None:
        nonlocal shown
        for find in state.finds[len(state.finds) if shown is None else shown :]:
            _say(line(state, find))
        shown = len(state.finds)

    if not sys.stderr.isatty():
        yield tell
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda state: live.update(table(state), refresh=True)


def _campaign_find(state: Campaign, find: dict[str, Any]) -> str:
    before = "" if find["from"] is None else f", from {find['from']}"
    return f"{_name(find['shape'])} rank {find['rank']} over {state.ring}{before}, at {find['at']:.0f} s"


def _campaign_table(state: Campaign) -> Table:
    """The shapes of a campaign: best so far, best known, time spent, last improvement."""
    headings = ("began with", "best", "known", "gap", "seconds", "slices", "improved at")
    columns = [("shape", "left"), *((heading, "right") for heading in headings)]
    rows = [
        [
            _name(row.shape) + (" (proved)" if row.settled else ""),
            row.began,
            row.best,
            row.known,
            None if row.gap is None else f"{row.gap:+}" if row.gap else "0",
            f"{row.seconds:.0f}",
            row.slices,
            None if row.last is None else f"{row.last:.0f} s",
        ]
        for row in state.rows.values()
    ]
    title = f"campaign over {state.ring}: {state.slices} slices, {state.seconds:.0f} s, {len(state.finds)} finds"
    return _table(title + (f"; now {state.now}" if state.now else ""), columns, rows)


# -- frontier ----------------------------------------------------------------------------------------------------------


def rank_range(text: str) -> range:
    """Ranks from ``24`` or ``20-28``."""
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise click.BadParameter(f"{text!r} is no range of ranks: write 24 or 20-28")
    return range(low, high + 1)


@main.command("frontier")
@shape_options
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Precision whose error counts.")
@click.option("--time", "time_", type=duration, required=True, metavar="T", help="Time to search: 90s, 30m, 8h.")
@click.option("--ranks", type=rank_range, metavar="A-B", help="Only these ranks.  [default: 1 to the exact rank]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes.  [default: one a core]")
@device_option
@click.option("--out", type=dir_type, metavar="DIR", help="Catalog folder for the finds.  [default: yours]")
@click.option("--fresh", is_flag=True, help="Forget what the journal tells of earlier runs.")
@json_option
@click.pass_context
def frontier_(
    ctx: click.Context,
    /,
    shape: Shape | None,
    tile: int | None,
    dtype: str,
    time_: float,
    ranks: range | None,
    seed: int,
    workers: int | None,
    device: str,
    out: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Search all ranks of a shape for less error than is held, each rank serving the others.

    Ctrl-C or a crash loses nothing: the same command goes on for the rest of the time.
    """
    from stl_search.search.frontier import frontier

    wanted = _shape(shape, tile)
    assert wanted is not None
    done = None
    with _watched(_frontier_find, _frontier_table) as watch:
        try:
            done = frontier(
                wanted, dtype=dtype, time=time_, ranks=ranks, seed=seed, workers=workers, device=device, out=out,
                fresh=fresh, progress=watch,
            )  # fmt: skip
        except KeyboardInterrupt:
            _say("interrupted: the same command goes on from here")
            ctx.exit(INTERRUPTED)
    if as_json:
        _print_json(done.to_json())
    else:
        _console().print(_frontier_table(done))


def _frontier_find(state: Frontier, find: dict[str, Any]) -> str:
    before = "" if find["from"] is None else f", from {find['from']:.5g}"
    return f"rank {find['rank']} error^2 {find['error2']:.5g}{before} by {find['strategy']}, {find['at']:.0f} s"


def _frontier_table(state: Frontier) -> Table:
    """The ranks of a frontier search: error^2 at the beginning and now, the line, time spent, last improvement."""
    from stl_search.score import line

    headings = ("error^2", "began with", "line", "kappa", "seconds", "slices", "improved at")
    columns = [("rank", "right"), *((heading, "right") for heading in headings), ("by", "left")]
    rows = [
        [
            row.rank,
            row.best,
            row.began,
            line(state.shape, row.rank),
            None if row.entry is None else row.entry.kappa,
            f"{row.seconds:.0f}",
            row.slices,
            None if row.last is None else f"{row.last:.0f} s",
            row.strategy,
        ]
        for row in state.rows.values()
    ]
    title = (
        f"{_name(state.shape)} at {state.dtype}: {state.slices} slices, {state.seconds:.0f} s, {len(state.finds)} finds"
    )
    return _table(title + (f"; now {state.now}" if state.now else ""), columns, rows)


# -- verify ------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@json_option
@click.pass_context
def verify(ctx: click.Context, /, files: tuple[str, ...], as_json: bool) -> None:
    """Prove scheme files afresh and compare every claim they make.

    Exit 0: all hold. Exit 1: a claim fails. Exit 2: not a scheme file. The largest code is returned.
    """
    from stl_search.catalog.record import check_file

    checked = []
    for file in files:
        result = check_file(file)
        checked.append(result)
        if as_json:
            continue
        name = _one_line(file)
        if result.ok and result.shape is not None:
            what = f"{_name(result.shape)} rank {result.rank} over {result.ring}"
            how = "exact" if not result.E else f"E = {result.E:.6g}"
            click.echo(f"{name}: holds: {what}, {how}")
        else:
            click.echo(f"{name}: {'FAILS' if result.code == 1 else 'no scheme'}: {result.reason}")
    if as_json:
        _print_json({"files": [result.to_json() for result in checked]})
    ctx.exit(max(result.code for result in checked))


# -- catalog -----------------------------------------------------------------------------------------------------------


@main.group()
def catalog() -> None:
    """The shipped schemes and your own: list, choose, show, add, remove."""


@catalog.command("list")
@shape_options
@click.option("--rank", type=click.IntRange(min=0), metavar="R")
@click.option("--max-rank", type=click.IntRange(min=0), metavar="R")
@click.option("--ring", type=ring_choice, help="Only entries that hold over this ring.")
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Whose error to show.")
@json_option
def catalog_list(
    shape: Shape | None,
    tile: int | None,
    rank: int | None,
    max_rank: int | None,
    ring: str | None,
    dtype: str,
    as_json: bool,
) -> None:
    """List entries, as they describe themselves; a shape stands for all its permutations."""
    from stl_search.catalog.store import candidates

    found = candidates(_shape(shape, tile, required=False), rank, max_rank, ring)
    if as_json:
        _print_json({"entries": [entry.to_json() for entry in found]})
        return
    columns = [("shape", "left"), ("rank", "right"), ("ring", "left"), ("E", "right"), ("kappa", "right")]
    columns += [(f"error {dtype}", "right"), ("additions", "right"), ("bytes A B C", "right"), ("id", "left")]
    columns += [("strategy", "left")]
    _console().print(_table(f"{len(found)} entries", columns, [_row(entry, dtype) for entry in found]))


def _row(entry: Entry, dtype: str) -> list[Any]:
    return [
        _name(entry.shape),
        entry.rank,
        entry.ring,
        entry.E,
        entry.kappa,
        _finite(entry.error(dtype)),
        entry.additions,
        _bytes(entry.bytes),
        entry.id[:8],
        entry.provenance.get("strategy"),
    ]


def _bytes(moved: dict[str, float]) -> str:
    """Bytes moved for each entry of A, B and C."""
    return " ".join(f"{x:.3g}" for x in moved.values())


@catalog.command("best")
@shape_options
@click.option("--rank", type=click.IntRange(min=0), metavar="R", help="Exactly this rank.")
@click.option("--max-rank", type=click.IntRange(min=0), metavar="R", help="This rank or a smaller one.")
@click.option("--ring", type=ring_choice, help="Only entries that hold over this ring.")
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Precision whose error counts.")
@json_option
def catalog_best(
    shape: Shape | None,
    tile: int | None,
    rank: int | None,
    max_rank: int | None,
    ring: str | None,
    dtype: str,
    as_json: bool,
) -> None:
    """Show the most accurate entry of a shape."""
    from stl_search.catalog.store import best

    wanted = _shape(shape, tile)
    assert wanted is not None
    entry = best(wanted, rank, max_rank, dtype, ring)
    if as_json:
        _print_json(entry.to_json() | {"dtype": dtype, "error": entry.error(dtype), "errors": dict(entry.errors)})
        return
    click.echo(
        f"{_name(entry.shape)} rank {entry.rank} over {entry.ring}: error {entry.error(dtype):.4g} at {dtype}, "
        f"E {_cell(entry.E)}, kappa {_cell(entry.kappa)}, id {entry.id[:16]}"
    )
    click.echo(f"additions {_cell(entry.additions)}, bytes for each entry of A, B, C {_bytes(entry.bytes)}")
    click.echo(entry.path)


@catalog.command("frontier")
@shape_options
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Precision whose error counts.")
@json_option
def catalog_frontier(shape: Shape | None, tile: int | None, dtype: str, as_json: bool) -> None:
    """Show the smallest error for every rank of a shape, beside the floor and the line."""
    from stl_search.catalog.store import frontier
    from stl_search.score import floor, line

    wanted = _shape(shape, tile)
    assert wanted is not None
    points = frontier(wanted, dtype)
    if as_json:
        _print_json({"shape": list(wanted), "dtype": dtype, "points": [point.to_json() for point in points]})
        return
    columns = [("rank", "right"), ("E", "right"), ("kappa", "right"), ("error", "right"), ("E: line", "right")]
    columns += [("E: floor", "right"), ("ring", "left"), ("id", "left"), ("", "left")]
    rows = [
        [p.rank, p.E, p.kappa, p.error, line(wanted, p.rank), floor(wanted, p.rank), p.entry.ring, p.entry.id[:8], mark]
        for p in points
        for mark in ("truncation" if p.truncation else "",)
    ]
    _console().print(_table(f"{_name(wanted)} at {dtype}", columns, rows))


@catalog.command("compose")
@shape_options
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Precision whose error counts.")
@click.option("--count", type=click.IntRange(1, 1000), default=40, show_default=True, metavar="N", help="How many.")
@click.option(
    "--replace", is_flag=True, help="Delete earlier compositions for the shape that are no longer among them."
)
@click.option("--out", type=dir_type, metavar="DIR", help="Catalog folder to write to.  [default: yours]")
@json_option
def catalog_compose(
    shape: Shape | None, tile: int | None, dtype: str, count: int, replace: bool, out: str | None, as_json: bool
) -> None:
    """Write the best compositions of entries for a larger shape: less error for each further product."""
    from stl_search.catalog.store import user_dir
    from stl_search.score import relative_rounding
    from stl_search.search.compositions import pareto, replaced, written

    wanted = _shape(shape, tile)
    assert wanted is not None
    command = ["stl-search", "catalog", "compose", "--shape", ",".join(map(str, wanted)), "--dtype", dtype]
    origin = {"command": shlex.join([*command, "--count", str(count)])}
    lam = 2 * relative_rounding(dtype) ** 2
    points = [
        {
            "rank": one.rank,
            "error": math.sqrt(max(0.0, one.cost(lam))),
            "id": written(one, origin, out or user_dir()),
        }
        for one in _each(pareto(wanted, dtype, count))
    ]
    if replace:
        replaced(wanted, [str(point["id"]) for point in points], out or user_dir())
    if as_json:
        _print_json({"shape": list(wanted), "dtype": dtype, "points": points})
        return
    columns = [("rank", "right"), ("error", "right"), ("id", "left")]
    rows = [[point["rank"], point["error"], point["id"]] for point in points]
    _console().print(_table(f"compositions for {_name(wanted)} at {dtype}", columns, rows))


@catalog.command("show")
@click.argument("entry", metavar="ENTRY")
@json_option
def catalog_show(entry: str, as_json: bool) -> None:
    """Show one scheme, proved afresh: a selector ('catalog:best?...'), the start of an id, or a file."""
    from stl_search.catalog.record import Record

    scheme, provenance = _scheme(entry)
    record = Record.prove(scheme, provenance)
    if as_json:
        _print_json(record.to_json())
        return
    rows: list[tuple[str, Any]] = [
        ("shape", _name(scheme.shape)),
        ("rank", scheme.rank),
        ("ring", scheme.ring.name),
        ("id", scheme.id),
        (
            "proved",
            " over ".join([record.certificate.kind, ", ".join(record.certificate.rings)]).removesuffix(" over "),
        ),
    ]
    for name, value in record.figures.items():
        if isinstance(value, dict):
            rows += [(f"{name} {key}", x) for key, x in value.items()]
        else:
            rows.append((name, value))
    rows += [
        (name, value if isinstance(value, str) else json.dumps(value)) for name, value in record.provenance.items()
    ]
    _console().print(_table(scheme.name, [("", "left"), ("", "left")], rows))


def _scheme(text: str, out: str | None = None) -> tuple[Scheme, dict[str, Any]]:
    """(scheme, provenance) of a selector, the start of an id (also of one in the folder ``out``), or a file."""
    from stl_search.catalog.store import by_id, load, scheme_of, shipped_dir, user_dir

    if re.fullmatch(r"[0-9a-f]{4,64}", text) and not os.path.exists(text):
        entry = by_id(text, None if out is None else [shipped_dir(), user_dir(), out])
        return scheme_of(entry), dict(entry.provenance)
    scheme = load(text)
    if text.startswith("catalog:"):
        from stl_search.catalog.store import entries

        held = {entry.id: entry for entry in entries()}
        return scheme, dict(held[scheme.id].provenance) if scheme.id in held else {}
    from stl_search.catalog.record import read_file

    return scheme, read_file(text).get("provenance") or {}


@catalog.command("compare")
@click.option("--markdown", type=click.Path(dir_okay=False), metavar="FILE", help="Write the table of known ranks.")
@json_option
def catalog_compare(markdown: str | None, as_json: bool) -> None:
    """Best exact ranks of the catalogs against the best known, for all sides 2..5 and <6,6,6>.

    A cell shows our rank where it is the best known, else ours (known, difference). Every entry is proved.
    """
    from stl_search.search import standing

    if markdown is not None:
        try:
            with open(markdown, "w", encoding="utf-8") as file:
                file.write(standing.markdown())
        except OSError as error:
            raise UsageError(f"{markdown} cannot be written: {error.strerror or error}") from None
    table = standing.compare()
    cells = [cell for row in table.values() for cell in row.values()]
    better = [cell for cell in cells if cell.gap is not None and cell.gap < 0]
    if as_json:
        rows = [{"shape": list(s), "rings": {r: c.to_json() for r, c in row.items()}} for s, row in table.items()]
        news = [{"shape": list(c.shape), "ring": c.ring, **c.to_json()} for c in better]
        _print_json({"shapes": rows, "improvements": news})
        return
    rings_ = list(next(iter(table.values())))
    columns = [("shape", "left"), *((ring, "right") for ring in rings_)]
    shown = [[_name(shape), *(str(row[ring]) for ring in rings_)] for shape, row in table.items()]
    _console().print(_table("our rank (best known, difference)", columns, shown))
    missing, behind = sum(c.ours is None for c in cells), sum(c.gap is not None and c.gap > 0 for c in cells)
    click.echo(
        f"{len(cells)} ranks: {len(cells) - missing - behind} at the best known, {behind} behind, {missing} none"
    )
    for cell in better:
        assert cell.known is not None
        assert cell.entry is not None
        click.echo(
            f"BETTER THAN KNOWN: {_name(cell.shape)} over {cell.ring} in {cell.ours}, best known {cell.known.rank}: "
            f"{cell.entry.path}"
        )


@catalog.command("add")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option("--dtype", type=dtype_choice, help="What approximate schemes were made for; becomes part of their names.")
@click.option("--out", type=dir_type, metavar="DIR", help="Catalog folder.  [default: yours]")
@json_option
def catalog_add(files: tuple[str, ...], dtype: str | None, out: str | None, as_json: bool) -> None:
    """Prove stl-scheme/1 files and put them into the catalog, with their provenance."""
    from stl_search.catalog.record import read_file
    from stl_search.catalog.store import add, load

    added = []
    for file in files:
        scheme = load(os.path.join(os.curdir, file))
        path = add(scheme, read_file(file).get("provenance") or {}, out, dtype)
        added.append(str(path))
        if not as_json:
            click.echo(path)
    if as_json:
        _print_json({"added": added})


@catalog.command("remove")
@click.argument("id_", metavar="ID")
@json_option
def catalog_remove(id_: str, as_json: bool) -> None:
    """Delete an entry of your own catalog, named by the start of its id."""
    from stl_search.catalog.store import remove

    path = remove(id_)
    if as_json:
        _print_json({"removed": str(path)})
    else:
        click.echo(f"removed {path}")


@catalog.command("path")
@click.option("--shipped", is_flag=True, help="The folder that comes with the package instead of yours.")
@json_option
def catalog_path(shipped: bool, as_json: bool) -> None:
    """Print the folder of your catalog; set STL_CATALOG to choose another."""
    from stl_search.catalog.store import shipped_dir, user_dir

    path = str(shipped_dir() if shipped else user_dir())
    if as_json:
        _print_json({"path": path})
    else:
        click.echo(path)


# -- foreign formats ---------------------------------------------------------------------------------------------------


@main.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option("--format", "format_", metavar="NAME", help="Format of the files.  [default: by their content]")
@click.option("--shape", type=sides, metavar="M,K,N", help="The shape, where a file does not say it.")
@click.option("--x", metavar="X", help="Where to take a border-rank file: a number or a fraction.")
@click.option("--dtype", type=dtype_choice, help="Take a border-rank file at the x best for this precision.")
@click.option("--out", type=dir_type, metavar="DIR", help="Catalog folder.  [default: yours]")
@json_option
def import_(
    files: tuple[str, ...],
    format_: str | None,
    shape: Shape | None,
    x: str | None,
    dtype: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Read scheme files of other projects, prove them and put them into the catalog."""
    from stl_search import formats
    from stl_search.catalog.store import add
    from stl_search.score import relative_rounding

    if x is not None and dtype is not None:
        raise click.UsageError("give --x or --dtype, not both")
    noise = None if dtype is None else relative_rounding(dtype)
    command = shlex.join(["stl-search", *sys.argv[1:]]) if sys.argv[1:2] == ["import"] else "stl-search import"
    imported = []
    for file in files:
        scheme = formats.read(file, format_, shape, x, noise)
        source = os.path.basename(file)
        path = add(scheme, {"command": command, "strategy": "import", "references": [source]}, out, dtype)
        imported.append({"file": file, "path": str(path), "shape": list(scheme.shape), "rank": scheme.rank})
        if not as_json:
            click.echo(f"{source}: {_name(scheme.shape)} rank {scheme.rank} over {scheme.ring.name}: {path}")
    if as_json:
        _print_json({"imported": imported})


@main.group()
def groups() -> None:
    """Finite groups of order up to 63, their representations, and named families beyond."""


def _orders(text: str) -> range:
    """``16`` or ``1-32``, within 1..63."""
    match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", text)
    found = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not found or found[0] < 1 or found[-1] > 63:
        raise click.BadParameter(f"{text!r} is not an order: write 16 or 1-32, within 1..63")
    return found


@groups.command("list")
@click.option("--order", type=_orders, required=True, metavar="N|A-B", help="All groups of this order or these orders.")
@json_option
def groups_list(order: range, as_json: bool) -> None:
    """List all groups of an order up to isomorphism."""
    from stl_search.groups import all_groups

    found = [group for n in order for group in all_groups(n)]
    rows = [_describe_group(group) for group in found]
    if as_json:
        _print_json(
            {"order": order[0] if len(order) == 1 else [order[0], order[-1]], "count": len(rows), "groups": rows}
        )
        return
    columns = [("id", "left"), ("name", "left"), ("abelian", "left"), ("classes", "right"), ("R[G]", "left")]
    cells = [[r["id"], r["name"], "yes" if r["abelian"] else "no", r["class_number"], r["wedderburn"]] for r in rows]
    _console().print(_table(f"{len(rows)} groups", columns, cells))


@groups.command("show")
@click.argument("name")
@click.option("--cayley", type=click.Path(dir_okay=False), metavar="FILE", help="Draw the Cayley table (PNG or SVG).")
@click.option("--characters", type=click.Path(dir_okay=False), metavar="FILE", help="Draw the character table.")
@json_option
def groups_show(name: str, cayley: str | None, characters: str | None, as_json: bool) -> None:
    """Show a group by name (D4, S4, PSL(2,7), C2 x Q8) or number (16.3): invariants and character table."""
    from stl_search.bench.pictures import cayley_picture, character_picture
    from stl_search.groups import character_table, get

    group = get(name)
    table = character_table(group)
    pictures = [str(cayley_picture(group, cayley))] if cayley else []
    pictures += [str(character_picture(group, characters))] if characters else []
    described = _describe_group(group)
    if as_json:
        _print_json({**described, "character_table": table.format().splitlines(), "pictures": pictures})
        return
    for key, value in described.items():
        click.echo(f"{key.replace('_', ' ')}: {value}")
    click.echo(table.format())
    for picture in pictures:
        click.echo(picture)


@groups.command("tpp")
@shape_options
@click.option("--order", type=_orders, required=True, metavar="N|A-B", help="All groups of this order or these orders.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option(
    "--steps", type=click.IntRange(min=1), default=4000, show_default=True, metavar="N",
    help="Proposals of an annealing.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(min=1), default=200_000, show_default=True, metavar="N",
    help="Pairs of sets after which the exact search leaves a group undecided.",
)  # fmt: skip
@json_option
def groups_tpp(
    shape: Shape | None, tile: int | None, order: range, seed: int, steps: int, limit: int, as_json: bool
) -> None:
    """Triples with the triple product property, and maps with few collisions where there are none."""
    from stl_search.groups import all_groups
    from stl_search.search.group_hosts import generator, host

    wanted = _shape(shape, tile)
    assert wanted is not None
    hosts = [group for n in order for group in all_groups(n)]
    rows = [host(g, wanted, generator(seed, g, wanted), steps, limit).to_json() for g in _each(hosts)]
    if as_json:
        _print_json({"shape": list(wanted), "seed": seed, "count": len(rows), "groups": rows})
        return
    columns = [("id", "left"), ("name", "left"), ("rank", "right"), ("TPP", "left"), ("E", "right"), ("line", "right")]
    cells = [[r["id"], r["name"], r["rank"], r["tpp"], r["E"], r["line"], r["triple"]] for r in rows]
    title = f"{_name(wanted)} in {len(rows)} groups"
    _console().print(_table(title, [*columns, ("triple", "left")], cells))


@groups.command("schemes")
@shape_options
@click.option("--max-rank", type=click.IntRange(min=1), required=True, metavar="R", help="Number of products, at most.")
@click.option("--order", type=_orders, metavar="N|A-B", help="Groups of these orders.  [default: 2 to R, at most 32]")
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Precision whose error counts.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option(
    "--starts", type=click.Choice(["none", "shipped", "catalog"]), default="none", show_default=True,
    help="Which catalog entries may multiply the matrix blocks.",
)  # fmt: skip
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="How many to keep.")
@click.option("--out", type=dir_type, metavar="DIR", help="Prove them and write them to this catalog folder.")
@json_option
def groups_schemes(
    shape: Shape | None,
    tile: int | None,
    max_rank: int,
    order: range | None,
    dtype: str,
    seed: int,
    starts: str,
    top: int,
    out: str | None,
    as_json: bool,
) -> None:
    """Approximate schemes out of group algebras, the most accurate first."""
    from stl_search.catalog.store import add, load
    from stl_search.groups import all_groups
    from stl_search.search.group_hosts import candidates

    wanted = _shape(shape, tile)
    assert wanted is not None
    hosts = [group for n in order or range(2, min(max(max_rank, 2), 32) + 1) for group in all_groups(n)]
    found = [
        (candidate.to_json(), candidate.scheme)
        for group in _each(hosts)
        for candidate in candidates(wanted, max_rank, [group], dtype, seed, starts)
    ]
    found = sorted(found, key=lambda x: (x[0]["error"], x[0]["rank"], x[0]["id"]))[:top]
    for row, scheme in found:
        row["path"] = None
        if out is not None:
            command = ["stl-search", "groups", "schemes", "--shape", ",".join(map(str, wanted))]
            command += ["--max-rank", str(max_rank), "--order", str(row["group"].partition(".")[0]), "--dtype", dtype]
            command += ["--seed", str(seed), "--starts", starts]
            origin = {"command": shlex.join(command), "strategy": "group-algebra", "seed": seed, "version": __version__}
            path = add(scheme, {**origin, "references": [f"{row['name']} ({row['group']})"]}, out, dtype)
            row |= {"path": str(path), "id": load(path).id}  # of the coefficients in their short form
    if as_json:
        _print_json({"shape": list(wanted), "dtype": dtype, "seed": seed, "schemes": [row for row, _ in found]})
        return
    keys = ("rank", "E", "kappa", "error", "line", "group", "name", "weights", "blocks")
    columns = [(key, "left" if key in ("group", "name", "weights", "blocks") else "right") for key in keys]
    _console().print(_table(f"{_name(wanted)} at {dtype}", columns, [[row[key] for key in keys] for row, _ in found]))
    for row, _ in found:
        if row["path"] is not None:
            click.echo(row["path"])


@groups.command("atlas")
@click.option(
    "--order", type=_orders, default="1-32", show_default=True, metavar="N|A-B", help="Groups of these orders."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--out", type=click.Path(dir_okay=False), required=True, metavar="FILE", help="Markdown file to write.")
@json_option
def groups_atlas(order: range, seed: int, out: str, as_json: bool) -> None:
    """Write the atlas of groups as hosts of <2,2,2>, <3,3,3> and <4,4,4>; takes minutes for all orders."""
    from stl_search.bench.group_atlas import SHAPES, atlas, row
    from stl_search.groups import all_groups

    hosts = [(group, shape) for shape in SHAPES for n in order for group in all_groups(n)]
    command = f"stl-search groups atlas --order {order[0]}-{order[-1]} --seed {seed} --out {shlex.quote(out)}"
    try:
        with open(out, "a", encoding="utf-8"):  # said before the minutes, not after
            pass
        text = atlas([row(group, shape, seed) for group, shape in _each(hosts)], command)
        with open(out, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror or error}") from None
    if as_json:
        _print_json({"path": out, "rows": len(hosts)})
    else:
        click.echo(out)


def _each(items: Sequence[Item]) -> Iterator[Item]:
    """The items, one after another, with a progress bar on a terminal's stderr."""
    if not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, file=sys.stderr) as bar:
        yield from bar


def _describe_group(group: Group) -> dict[str, Any]:
    """The group as the command line prints it."""
    from dataclasses import asdict

    from stl_search.groups import invariants, wedderburn_text

    known = asdict(invariants(group))
    return {"name": group.name, "id": group.id, "wedderburn": wedderburn_text(group), **known}


@main.command()
@click.argument("entry", metavar="ENTRY")
@click.argument("file", type=click.Path(dir_okay=False), metavar="FILE")
@click.option("--format", "format_", metavar="NAME", help="Format to write.  [default: by the extension of FILE]")
@json_option
def export(entry: str, file: str, format_: str | None, as_json: bool) -> None:
    """Write a scheme (a selector, the start of an id, or a file) in a format of another project."""
    from stl_search import formats

    scheme, _ = _scheme(entry)
    written = [str(path) for path in formats.write(scheme, file, format_)]
    if as_json:
        _print_json({"id": scheme.id, "written": written})
    else:
        click.echo("\n".join(written))


# -- measurements ------------------------------------------------------------------------------------------------------


@main.group()
def bench() -> None:
    """Measure the program on this machine."""


@bench.command("flips")
@shape_options
@click.option("--seconds", type=click.FloatRange(0.01, 600), default=1.0, show_default=True, help="CPU time of a walk.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Walks of each kind.")
@json_option
def bench_flips(shape: Shape | None, tile: int | None, seconds: float, repeats: int, as_json: bool) -> None:
    """Flips a second and core of walks over Z2, plain and symmetric, and ternary.  [default shape: 4,4,4]"""
    from stl_search.bench.flips import flips

    rows = flips(_shape(shape, tile, required=False) or (4, 4, 4), seconds, repeats)
    if as_json:
        _print_json({"flips_per_second": rows})
        return
    columns = [("shape", "left"), ("symmetry", "left"), *((p, "right") for p in ("p20", "p50", "p80", "best rank"))]
    cells = [
        [_name(r["shape"]), r["symmetry"], *(f"{r[p] / 1e6:.1f}" for p in ("p20", "p50", "p80")), r["rank"]]
        for r in rows
    ]
    _console().print(_table("million flips a second, one core", columns, cells))


@bench.command("amm")
@click.option(
    "--sizes", default="256,512,1024,2048,4096,8192", show_default=True, metavar="N,N,..", help="Sides of the products."
)
@click.option("--dtype", type=dtype_choice, default="fp32", show_default=True, help="Precision of the operands.")
@click.option(
    "--schemes", default="winners", show_default=True, metavar="winners|all|none|RANK,ID,..", help="Which shipped ones."
)
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Pairs of runs, at most.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where.")
@click.option("--out", type=click.Path(dir_okay=False), metavar="FILE", help="Append rows, skip those already there.")
@json_option
def bench_amm(sizes: str, dtype: str, schemes: str, repeats: int, device: str, out: str | None, as_json: bool) -> None:
    """Ratio to the fastest dense product, for the open selector and shipped schemes, above 1 where faster.

    Each scheme twice: nothing encoded in advance, and B pre-encoded. Winners are the exact schemes and, for each
    sixteenth of the multiplications, the most accurate approximate one; with all sizes they take half an hour. Rows go
    to --out, one JSON object a line, as soon as they are measured: the same command goes on where it was interrupted,
    and measures anew after a change of machine, versions or commit.
    """
    from stl_search.bench import amm as measure
    from stl_search.kernels import gpu

    known_dtypes = ("bf16", "fp32", "fp64") if device == "cpu" else ("bf16", "fp16", "fp32")
    if dtype not in known_dtypes:
        raise UsageError(f"products on {device} are measured in {', '.join(known_dtypes)}, not {dtype}")
    if device == "cuda" and not gpu.available():
        raise UsageError("--device cuda needs a CUDA GPU and triton: leave it out")
    if not all(part.isdigit() and int(part) for part in sizes.split(",")):
        raise UsageError(f"--sizes is {sizes!r}, must be positive numbers with commas between")
    sides = [int(part) for part in sizes.split(",")]
    ids = [None, *(e.id for e in measure.chosen(schemes, dtype))]
    about = {**measure.environment(device), "dtype": dtype, "repeats": repeats}
    wanted = [{**about, "size": n, "id": id_, "encoded": x} for n in sides for id_ in ids for x in measure.ENCODED]
    known = {measure.key(row): row for row in _rows_of(out)} if out is not None else {}
    rows = [known[k] for k in map(measure.key, wanted) if k in known]
    total = len(wanted) - len(sides)  # the selector has nothing pre-encoded
    for row in measure.rows(sides, dtype, repeats, schemes, known, device):
        rows.append(row)
        if out is not None:
            _append(out, row)
        where = f"[{len(rows)}/{total}] {row['size']} {row['scheme']} {row['encoded']}"
        print(f"{where} {row['ratio']['p50']:.2f}" + ("" if row["ok"] else " WRONG"), file=sys.stderr)
    rows.sort(key=lambda row: sides.index(row["size"]))  # what was there before in its place
    if as_json:
        _print_json({**measure.environment(device), "rows": rows})
        return
    keys = ("size", "scheme", "encoded", "choice", "dense")
    columns = [(key, "left") for key in keys] + [(p, "right") for p in ("p20", "p50", "p80", "error")]
    cells = [
        [*(row[key] for key in keys), *(f"{row['ratio'][p]:.2f}" for p in ("p20", "p50", "p80")),
         f"{row['error']:.2g}" + ("" if row["ok"] else " WRONG")]
        for row in rows
    ]  # fmt: skip
    _console().print(_table("speed relative to the fastest dense product", columns, cells))


def _rows_of(path: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where it is not there yet."""
    try:
        with open(path, encoding="utf-8") as file:
            found = [json.loads(line) for line in file if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is no file of rows, one JSON object a line: {error}") from None
    if not all(isinstance(row, dict) for row in found):
        raise FormatError(f"{path} is no file of rows, one JSON object a line")
    return found


def _append(path: str, row: dict[str, Any]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None


# -- reports -----------------------------------------------------------------------------------------------------------


@main.group()
def report() -> None:
    """Write reports: pictures and tables of what the catalogs hold."""


@report.command("frontier")
@click.option("--shape", "shapes", type=sides, multiple=True, metavar="M,K,N", help="May be repeated.  [default: nine]")
@click.option("--dtype", type=dtype_choice, default="bf16", show_default=True, help="Precision whose error counts.")
@click.option("--out", type=dir_type, required=True, metavar="DIR", help="Folder to write to.")
@click.option("--format", "ending", type=click.Choice(["png", "svg"]), default="png", show_default=True)
@json_option
def report_frontier(shapes: tuple[Shape, ...], dtype: str, out: str, ending: str, as_json: bool) -> None:
    """Draw error against multiplications kept, with reference lines, tables and the command behind every point."""
    from stl_search.bench.frontier_report import SHAPES, frontier_report

    done = frontier_report(out, shapes or SHAPES, dtype, ending)
    if as_json:
        _print_json(done)
        return
    for path in (*done["pictures"], done["path"]):
        click.echo(path)
    click.echo(f"{done['points']} points, {len(done['below_hull'])} below the lower hull of all others")


# -- products ----------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("a_file", type=click.Path(), metavar="A.npy")
@click.argument("b_file", type=click.Path(), metavar="B.npy")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), metavar="C.npy")
@click.option(
    "--encoder",
    default="catalog:best",
    show_default=True,
    metavar="SEL",
    help="A selector ('catalog:best?shape=4,4,4&rank=32', 'catalog:best?rtol=0.1') or a scheme file.",
)
@click.option("--dtype", type=dtype_choice, help="Convert A and B to this precision.  [default: as they are]")
@json_option
def amm(a_file: str, b_file: str, output: str, encoder: str, dtype: str | None, as_json: bool) -> None:
    """Multiply two matrices by a scheme; print the predicted and the measured error.

    The measured one compares C with the product of the converted A and B in float64. A result in bf16 is written as
    float32.
    """
    import numpy as np

    from stl_search.kernels.plan import Plan, dtype_name
    from stl_search.runtime import amm as runtime

    a, b = (_operand(file, dtype) for file in (a_file, b_file))
    if a.shape[1] != b.shape[0]:
        raise UsageError(f"A {tuple(a.shape)} and B {tuple(b.shape)} do not multiply: inner sizes differ")
    sizes = (a.shape[0], a.shape[1], b.shape[1])
    chosen: Any = encoder
    if dtype == "fp8_e4m3":  # no operand has this type: it is what the encoded operands are stored in
        from stl_search.catalog.store import load

        chosen = Plan(load(encoder), dtype, complex=dtype_name(a.dtype)[1])
    how = runtime.explain(sizes, a.dtype, chosen, show=False)
    c = runtime.amm(a, b, chosen)
    measured = runtime.relative_error(c, a, b)
    result = c if isinstance(c, np.ndarray) else c.float().numpy()
    try:
        with open(output, "wb") as file:  # np.save would add an ending to the name
            np.save(file, result, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror or error}") from None
    name = "dense" if how.scheme is None else how.scheme.name
    if as_json:
        found: dict[str, Any] = {"path": output, "scheme": name, "id": how.scheme.id if how.scheme else None}
        found |= {"shape": list(sizes), "dtype": dtype or dtype_name(a.dtype)[0], "reason": how.reason}
        found |= {"predicted_error": _finite(how.predicted_error), "measured_error": _finite(measured)}
        found |= {"assumption": how.assumption}
        _print_json(found)
        return
    click.echo(f"{name}: {how.reason}")
    click.echo(f"predicted error {how.predicted_error:.4g} (for {how.assumption})")
    click.echo(f"measured error  {measured:.4g}")
    click.echo(output)


def _operand(path: str, dtype: str | None) -> Any:
    """The matrix in a .npy file, converted: a numpy array, or for bf16 a torch tensor."""
    import numpy as np

    from stl_search.kernels.plan import numpy_dtype

    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path} is no .npy file of numbers: {error}") from None
    except MemoryError:
        raise FormatError(f"{path} needs more memory than there is") from None
    if array.ndim != 2:
        raise UsageError(f"{path} has {array.ndim} dimensions, must be a matrix")
    if dtype is None:
        return array
    if array.dtype.kind not in "iufc":
        raise FormatError(f"{path} holds {array.dtype}, not numbers")
    complex_ = array.dtype.kind == "c"
    given = numpy_dtype("fp32" if dtype in ("bf16", "fp8_e4m3") else dtype, complex_)
    with np.errstate(all="ignore"):  # what overflows is infinite there, and its error null
        array = array.astype(given)
    if dtype != "bf16":
        return array
    import torch

    from stl_search.kernels.plan import torch_dtype

    return torch.from_numpy(array).to(torch_dtype(dtype, complex_))  # refused for complex numbers
