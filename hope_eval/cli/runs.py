"""`hope-eval runs`: list the runs on disk, show one, verify them, remove some."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hope_eval.cli import options
from hope_eval.cli.progress import progress
from hope_eval.errors import StoreError
from hope_eval.lengths import short_length

if TYPE_CHECKING:
    from hope_eval.runs.columns import Progress
    from hope_eval.runs.manage import Outline

# From this size on (bytes), verifying a run shows its progress.
_LARGE = 64 << 20

# The first values of a long list that are shown.
_SHOWN = 4


class _Group(click.Group):
    """A group that runs `list` if no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


_out = click.option(
    "--out",
    type=options.UserPath(file_okay=False, path_type=Path),
    default=options.RUNS,
    show_default=True,
    help="Folder of the runs.",
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

    RUN is a folder, the id of a run below --out, or the beginning of its id.
    """


@runs.command("list")
@_out
@options.list_format
def list_(out: Path, form: str) -> None:
    """List the runs below a folder, in order of their last change.

    \b
    hope-eval runs list
    hope-eval runs list --out runs/mine --format csv

    \b
    State   ok
            cut     the last record is half-written; rerun the command to resume
            split   results of several processes wait to be merged; rerun the command
            empty
            bad     it cannot be read; `hope-eval runs show` says why
    """
    from hope_eval.runs import manage
    from hope_eval.show.tables import print_list
    from hope_eval.show.terminal import plain_console, print_records, printable

    outlines = [manage.outline(path) for path in manage.runs_in(out)]
    if form != "table":
        print_list([_facts(outline) for outline in outlines], form)
        return
    if not outlines:
        click.echo(f"no runs below {out}; `hope-eval run --suite quick` makes some", err=True)
        return
    lines = [_line(outline) for outline in outlines]
    widths = [max(len(str(line[key])) for line in (*lines, {key: key})) + 3 for key in lines[0]]
    if sum(widths) <= plain_console().width:
        print_records(lines)
        return
    # On a narrow screen, only the id: it names task, model and encoding, and a cut id is useless.
    for line in lines:
        size = f"{line['records']:>9,} records  {line['size']:>8}  {line['lengths']}"
        click.echo(printable(f"{line['last change']}  {line['state']:5}  {size}  {line['id']}"))


def _facts(outline: "Outline") -> dict[str, Any]:
    identity = {key: outline.identity.get(key) for key in ("task", "model", "encoding")}
    return {
        "id": outline.path.name,
        "path": str(outline.path),
        **identity,
        "lengths": list(outline.lengths) or None,
        "records": outline.n_records,
        "bytes": outline.n_bytes,
        "worked_on": outline.worked_on.isoformat(timespec="seconds"),
        "state": outline.state,
    }


def _line(outline: "Outline") -> dict[str, Any]:
    facts = _facts(outline)
    return {
        "id": facts["id"],
        **{key: facts[key] or "?" for key in ("task", "model", "encoding")},
        "lengths": ",".join(map(short_length, outline.lengths)),
        "records": outline.n_records,
        "size": _size(outline.n_bytes),
        "last change": outline.worked_on.strftime("%Y-%m-%d %H:%M"),
        "state": outline.state,
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
    """Show the identity of a run, how it was made, its number of records, and its sessions.

    \b
    hope-eval runs show ppl-ckpt-rope-0123456789
    hope-eval runs show results/runs/ppl-ckpt-rope-0123456789 --format json
    """
    from hope_eval.runs import manage

    facts = manage.described(manage.find(run, out))
    if form == "json":
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    click.secho(facts["id"], bold=True)
    cut = f" ({facts['bytes_cut']} bytes of a half-written record)" if facts["bytes_cut"] else ""
    click.echo(f"{facts['path']}, {_size(facts['bytes'])}, last change {facts['worked_on']}, {facts['state']}{cut}")
    if facts["waiting"]:
        click.echo(f"{facts['waiting']}: rerun its command to merge them")
    for name in ("identity", "provenance", "records"):
        _show(name, facts[name])
    for session in facts["sessions"]:
        _show(f"session of {session.get('started', '?')}", {key: session[key] for key in session if key != "started"})


def _show(title: str, facts: Mapping[str, Any]) -> None:
    click.echo()
    click.secho(title, bold=True)
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        click.echo(f"  {key:{width}}  {_short(value)}")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        more = [f"… ({len(value)})"] if len(value) > 2 * _SHOWN else []
        return ", ".join([*map(_short, value[:_SHOWN] if more else value), *more])
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


@runs.command()
@click.argument("names", nargs=-1, metavar="[RUN]...")
@_out
def verify(names: tuple[str, ...], out: Path) -> None:
    """Read runs from end to end, and list those that are damaged. Without RUN, verify all runs.

    \b
    hope-eval runs verify
    hope-eval runs verify ppl-ckpt copy-ckpt --out runs/mine

    A run is sound if its folder is named after its identity, every line is a record, every array has its checksum, and
    no record occurs twice or is missing in the middle. A half-written last record is not damage, nor are results of
    several processes that wait to be merged: rerun the command to resume.
    """
    from hope_eval.runs import manage, verify

    paths = _named(names, out) if names else manage.runs_in(out)
    bad: list[StoreError] = []
    for path in paths:
        try:
            with _progress(path.name, manage.size(path)) as advance:
                store = verify.verify(path, advance)
        except StoreError as error:
            bad.append(error)
            click.echo(f"{'bad':5}  {path.name}: {error.message}")
            continue
        n = store.n_records
        cut = f", and {store.cut} bytes of a half-written one: rerun its command to resume" if store.cut else ""
        waiting = f"; {store.waiting}: rerun its command to merge them" if store.waiting else ""
        click.echo(f"{manage.state(store):5}  {path.name}: {n:,} record{'s' * (n != 1)}{cut}{waiting}")
    if bad:
        hints = "\n      ".join(dict.fromkeys(error.hint for error in bad))
        raise StoreError(f"{len(bad)} of {len(paths)} runs {'is' if len(bad) == 1 else 'are'} bad", hints)


def _named(names: tuple[str, ...], out: Path) -> list[Path]:
    """The runs of these names, each once."""
    from hope_eval.runs import manage

    paths = [manage.find(name, out) for name in names]
    return list({path.resolve(): path for path in paths}.values())


@contextlib.contextmanager
def _progress(title: str, n_bytes: int) -> Iterator["Progress"]:
    if n_bytes < _LARGE:
        yield lambda done, total: None
        return
    with progress(title, "bytes") as advance:
        yield advance


@runs.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@_out
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def rm(names: tuple[str, ...], out: Path, yes: bool) -> None:
    """Remove runs. A folder that holds other files, is a link, or is being written stays as it is.

    \b
    hope-eval runs rm ppl-ckpt-rope-0123456789
    hope-eval runs rm ppl-ckpt copy-ckpt --out runs/mine --yes
    """
    from hope_eval.runs import manage

    paths = _named(names, out)
    for path in paths:
        manage.check_removable(path)
    if not yes:
        for outline in map(manage.outline, paths):
            click.echo(f"{outline.path}: {outline.n_records:,} records, {_size(outline.n_bytes)}")
        click.confirm(f"Remove {'this run' if len(paths) == 1 else f'these {len(paths)} runs'}?", abort=True)
    for path in paths:
        manage.remove(path)
        click.echo(f"removed {path}")
