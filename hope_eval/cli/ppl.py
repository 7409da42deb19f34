"""`hope-eval ppl`: perplexity against context length."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hope_eval.cli import options
from hope_eval.cli.measuring import measured, show
from hope_eval.errors import OptionError
from hope_eval.protocols import (
    DEFAULT_PROTOCOL,
    protocol_class,
    protocol_named,
    protocol_names,
    settings_of,
    split_protocol,
)

if TYPE_CHECKING:
    from hope_eval.analysis.rows import RunTable
    from hope_eval.model.tokens import PrefixPolicy


class _Command(click.Command):
    """A command whose help ends with a list of the protocols and their parameters, from the files that define them."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in protocol_names():
            cls = protocol_class(name)
            rows.append((name, cls.one_line))
            for setting in settings_of(cls):
                default = "" if setting.default is None else f"  [default: {setting.default}]"
                rows.append((f"  {setting.name}=", f"{setting.metadata['about']}{default}"))
        with formatter.section("Protocols, and the parameters of each"):
            formatter.write_dl(rows)


@click.command(cls=_Command)
@options.models
@options.grid
@options.running
@options.texts
@click.option("--min-documents", type=click.IntRange(1), default=1, show_default=True,
              help="Fewer documents are an error.")  # fmt: skip
@click.option("--protocol", metavar="NAME[:PARAMETER=VALUE,...]",
              help="Which tokens are read and scored, see below, or my/file.py.  "
              f"[default: {DEFAULT_PROTOCOL}]")  # fmt: skip
@options.prefix
@click.option("--stride", type=int, metavar="S", help="The same as --protocol sliding:stride=S.")
@click.option("--k", type=click.IntRange(1), metavar="K", help="The same as k=K of last-k and paired.")
@click.option("--weighting", metavar="token|window", help="The same as --protocol sliding:weighting=….")
@click.option("--tokens", type=click.IntRange(0), metavar="T",
              help="The same as tokens=T of windows, sliding and rolling.")  # fmt: skip
@options.from_runs("Make the table from the stored tokens of a run, without a model.")
@options.pool_seeds
def ppl(
    models: options.ModelOptions,
    grid: options.GridOptions,
    run: options.RunOptions,
    texts: options.TextOptions,
    min_documents: int,
    protocol: str | None,
    prefix: "PrefixPolicy",
    stride: int | None,
    k: int | None,
    weighting: str | None,
    tokens: int | None,
    from_runs: tuple[Path, ...],
    pool_seeds: bool,
) -> None:
    """Perplexity at growing context lengths, beyond the training length too.

    \b
    hope-eval ppl --model path/to/checkpoint --lengths 2k,8k,32k
    hope-eval ppl --model checkpoint --encoding native --encoding hope --data books.jsonl.bz2
    hope-eval ppl --model one --model other --protocol sliding:stride=512 --format csv
    hope-eval ppl --from results/runs/ppl-… --protocol bucket:smallest=64

    Every number carries its protocol, and a 95 % interval over documents.
    """
    name, parameters = _protocol(protocol, {"stride": stride, "k": k, "weighting": weighting, "tokens": tokens})
    if from_runs:
        options.check_from(models, grid, run)
        show(_tables(from_runs, grid, name, parameters, pool_seeds), run.form)
        return
    from hope_eval.evaluation.run import Options
    from hope_eval.evaluation.suites import Entry

    how = Options(
        **asdict(texts),
        min_documents=min_documents,
        prefix=prefix,
        seed=grid.seed,
        until_ci=grid.until_ci,
        pool_seeds=pool_seeds,
        command=options.command_line(),
    )
    entry = Entry(protocol_named(name or DEFAULT_PROTOCOL, **parameters), grid.lengths, grid.samples)
    show(measured([entry], models, run, how), run.form)


def _tables(
    runs: Sequence[Path], grid: options.GridOptions, name: str | None, parameters: Mapping[str, object], pool: bool
) -> list["RunTable"]:
    """The tables of runs on disk, by their own protocol or another."""
    from hope_eval.analysis import perplexity
    from hope_eval.analysis.rows import by_seed

    stores = [perplexity.tokens_of(run) for run in runs]
    groups = by_seed(stores) if pool else [[store] for store in stores]
    return [
        perplexity.other_table(group, name, parameters, options.in_tokens(grid.lengths, group[0].header), grid.samples)
        for group in groups
    ]


def _protocol(text: str | None, apart: Mapping[str, object]) -> tuple[str | None, dict[str, object]]:
    """Name and parameters of the protocol: those of `--protocol`, and those that have an option of their own."""
    given = {key: value for key, value in apart.items() if value is not None}
    if text is None:
        return None, given
    name, parameters = split_protocol(text)
    for key in parameters.keys() & given.keys():
        raise OptionError(f"--{key} and `{key}` of `--protocol {text}` set the same parameter", "leave one out")
    return name, {**parameters, **given}
