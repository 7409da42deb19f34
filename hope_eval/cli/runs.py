"""`hope-eval runs`: which runs are on disk, what they are, whether they are sound."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hope_eval.cli import options
from hope_eval.cli.progress import Advance, progress
from hope_eval.errors import StoreError
from hope_eval.lengths import short_length

if TYPE_CHECKING:
    from hope_eval.runs.manage import Outline

# Bytes of a run whose check takes long enough to tell how far it is.
_LARGE = 64 << 20

# Of a longer list, as many are shown.
_SHOWN = 4


class _Group(click.Group):
    """A group whose first command need not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


_out = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=options.RUNS,
    show_default=True,
    help="Where runs are kept.",
)
_form = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)


@click.group(cls=_Group)
def runs() -> None:
    """List the runs on disk, show one, verify them, remove some.

    \b
    hope-eval runs
    hope-eval runs --out runs/mine
    hope-eval runs show ppl-ckpt
    hope-eval runs verify
    hope-eval runs rm copy-ckpt-rope-0123456789

    RUN is a folder, the id of a run below --out, or the beginning of an id that no other has.
    """


@runs.command("list")
@_out
@_form
def list_(out: Path, form: str) -> None:
    """List the runs below a folder, the one last worked on at the end.

    \b
    hope-eval runs list
    hope-eval runs list --out runs/mine --format json

    State: ok; cut, where the last record is half-written; split, where what several processes have measured waits to be
    merged; empty; bad, where `runs show` tells why.
    """
    from hope_eval.runs import manage as known
    from hope_eval.show.tables import plain_console, print_records

    outlines = [known.outline(path) for path in known.runs_in(out)]
    if form == "json":
        click.echo(json.dumps([_facts(one) for one in outlines], indent=1, ensure_ascii=False))
        return
    if not outlines:
        click.echo(f"no runs below {out}; `hope-eval run --suite quick` makes some", err=True)
        return
    lines = [_line(one) for one in outlines]
    widths = [max(len(str(line[key])) for line in (*lines, {key: key})) + 3 for key in lines[0]]
    if sum(widths) <= plain_console().width:
        print_records(lines)
        return
    # An id names task, model and encoding too, and is of no use if it is cut.
    for line in lines:
        size = f"{line['records']:>9,} records  {line['size']:>8}"
        click.echo(f"{line['last worked on']}  {line['state']:5}  {size}  {line['id']}")


def _facts(one: "Outline") -> dict[str, Any]:
    identity = {key: one.identity.get(key) for key in ("task", "model", "encoding")}
    return {
        "id": one.path.name,
        "path": str(one.path),
        **identity,
        "lengths": list(one.lengths) or None,
        "records": one.n_records,
        "bytes": one.n_bytes,
        "worked_on": one.worked_on.isoformat(timespec="seconds"),
        "state": one.state,
    }


def _line(one: "Outline") -> dict[str, Any]:
    facts = _facts(one)
    return {
        "id": facts["id"],
        **{key: facts[key] or "?" for key in ("task", "model", "encoding")},
        "lengths": ",".join(map(short_length, one.lengths)),
        "records": one.n_records,
        "size": _size(one.n_bytes),
        "last worked on": one.worked_on.strftime("%Y-%m-%d %H:%M"),
        "state": one.state,
    }


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}" if n_bytes < 1000 else f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


@runs.command()
@click.argument("run", metavar="RUN")
@_out
@_form
def show(run: str, out: Path, form: str) -> None:
    """Show what a run is, how it came to be, and what it holds.

    \b
    hope-eval runs show ppl-ckpt-rope-0123456789
    hope-eval runs show results/runs/ppl-ckpt-rope-0123456789 --format json
    """
    from hope_eval.runs import manage as known

    found = known.described(known.find(run, out))
    if form == "json":
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    click.secho(found["id"], bold=True)
    cut = f" ({found['bytes_cut']} bytes of a half-written record)" if found["bytes_cut"] else ""
    click.echo(f"{found['path']}, {_size(found['bytes'])}, last worked on {found['worked_on']}, {found['state']}{cut}")
    if found["waiting"]:
        click.echo(f"{found['waiting']}: the same command again does it")
    for name in ("identity", "provenance", "records"):
        _show(name, found[name])
    for session in found["sessions"]:
        _show(f"session of {session.get('started', '?')}", {key: session[key] for key in session if key != "started"})


def _show(title: str, facts: Mapping[str, Any]) -> None:
    click.echo()
    click.secho(title, bold=True)
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        click.echo(f"  {key:{width}}  {_short(value)}")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(own)}" for key, own in value.items())
    if isinstance(value, list):
        more = [f"… ({len(value)})"] if len(value) > 2 * _SHOWN else []
        return ", ".join([*map(_short, value[:_SHOWN] if more else value), *more])
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


@runs.command()
@click.argument("names", nargs=-1, metavar="[RUN]...")
@_out
def verify(names: tuple[str, ...], out: Path) -> None:
    """Read runs from end to end, and tell which of them are not as they were written; all runs, if none is named.

    \b
    hope-eval runs verify
    hope-eval runs verify ppl-ckpt copy-ckpt --out runs/mine

    Folder and identity agree, every line is a record, every array has its checksum, nothing is there twice or missing
    in the middle. A half-written last record is no fault: the run's own command writes it again. Nor are shards that
    wait to be merged: the same command, with any number of processes, goes on with them.
    """
    from hope_eval.runs import manage as known

    paths = _named(names, out) if names else known.runs_in(out)
    bad: list[StoreError] = []
    for path in paths:
        try:
            with _progress(path.name, known.size(path)) as report:
                store = known.check(path, report)
        except StoreError as error:
            bad.append(error)
            click.echo(f"{'bad':5}  {path.name}: {error.message}")
            continue
        n = store.n_records
        cut = f", and {store.cut} bytes of a half-written one: its command goes on with it" if store.cut else ""
        waiting = f"; {store.waiting}: its command does it" if store.waiting else ""
        click.echo(f"{known.state(store):5}  {path.name}: {n:,} record{'s' * (n != 1)}{cut}{waiting}")
    if bad:
        hints = "\n      ".join(dict.fromkeys(error.hint for error in bad))
        raise StoreError(f"{len(bad)} of {len(paths)} runs {'is' if len(bad) == 1 else 'are'} bad", hints)


def _named(names: tuple[str, ...], out: Path) -> list[Path]:
    """Return the runs of these names, each once."""
    from hope_eval.runs import manage as known

    found = [known.find(name, out) for name in names]
    return list({path.resolve(): path for path in found}.values())


@contextlib.contextmanager
def _progress(title: str, n_bytes: int) -> Iterator[Advance]:
    if n_bytes < _LARGE:
        yield lambda done, total: None
        return
    with progress(title, "bytes") as report:
        yield report


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@_out
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], out: Path, yes: bool) -> None:
    """Remove runs. A folder that holds anything else, or that is being written, is left as it is.

    \b
    hope-eval runs rm ppl-ckpt-rope-0123456789
    hope-eval runs rm ppl-ckpt copy-ckpt --out runs/mine --yes
    """
    from hope_eval.runs import manage as known

    paths = _named(names, out)
    for path in paths:
        known.check_removable(path)
    if not yes:
        for one in map(known.outline, paths):
            click.echo(f"{one.path}: {one.n_records:,} records, {_size(one.n_bytes)}")
        click.confirm(f"Remove {'this run' if len(paths) == 1 else f'these {len(paths)} runs'}?", abort=True)
    for path in paths:
        known.remove(path)
        click.echo(f"removed {path}")
