"""`hope-eval ppl`: perplexity against context length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hope_eval.cli import options
from hope_eval.errors import OptionError
from hope_eval.lengths import DEFAULT, Lengths
from hope_eval.protocols import (
    DEFAULT_PROTOCOL,
    protocol_class,
    protocol_named,
    protocol_names,
    settings_of,
    split_protocol,
)


class _Command(click.Command):
    """Ends its help with a list of the protocols and their parameters, from the files that define them."""

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
@options.checkpoint
@options.evaluation
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
@click.option("--from", "runs", type=click.Path(path_type=Path), metavar="RUN", multiple=True,
              help="Make the table from the stored tokens of a run, without a model. Repeatable.")  # fmt: skip
@options.pool_seeds
def ppl(
    lengths: Lengths | None,
    samples: int | None,
    out: Path,
    form: str,
    protocol: str | None,
    stride: int | None,
    k: int | None,
    weighting: str | None,
    tokens: int | None,
    runs: tuple[Path, ...],
    **rest: Any,
) -> None:
    """Perplexity at growing context lengths, beyond the training length too.

    \b
    hope-eval ppl --model path/to/checkpoint --lengths 2k,8k,32k
    hope-eval ppl --model checkpoint --encoding native --encoding hope --data books.jsonl.bz2
    hope-eval ppl --model one --model other --protocol sliding:stride=512 --format csv
    hope-eval ppl --from results/runs/ppl-… --protocol bucket:smallest=64

    Every number carries its protocol, and a 95 % interval from a bootstrap over documents.
    """
    from hope_eval.analysis import perplexity
    from hope_eval.analysis.rows import by_seed
    from hope_eval.evaluation.suites import Entry

    name, parameters = _protocol(protocol, {"stride": stride, "k": k, "weighting": weighting, "tokens": tokens})
    if not runs:
        entry = Entry(protocol_named(name or DEFAULT_PROTOCOL, **parameters), lengths or DEFAULT, samples)
        options.show(options.measured([entry], out, **rest), form)
        return
    options.check_from(rest)
    stores = [perplexity.tokens_of(run) for run in runs]
    groups = by_seed(stores) if rest["pool_seeds"] else [[store] for store in stores]
    tables = [
        perplexity.other_table(group, name, parameters, options.in_tokens(lengths, group[0].header), samples)
        for group in groups
    ]
    options.show(tables, form)


def _protocol(text: str | None, options: Mapping[str, object]) -> tuple[str | None, dict[str, object]]:
    """Name and parameters of the protocol: those of `--protocol`, and those that have an option of their own."""
    given = {key: value for key, value in options.items() if value is not None}
    if text is None:
        return None, given
    name, parameters = split_protocol(text)
    for key in parameters.keys() & given.keys():
        raise OptionError(f"--{key} and `{key}` of `--protocol {text}` set the same parameter", "leave one out")
    return name, {**parameters, **given}
