"""`hope-eval ppl`: perplexity against context length."""

from pathlib import Path
from typing import Any

import click

from hope_eval.cli import options
from hope_eval.lengths import DEFAULT, Lengths
from hope_eval.protocols import PROTOCOLS, protocol_named

_PROTOCOL_HELP = "\n\n".join(f"{name}: {cls.one_line}" for name, cls in PROTOCOLS.items())


@click.command(epilog=f"\b\nProtocols:\n{_PROTOCOL_HELP}".replace("\n\n", "\n"))
@options.checkpoint
@options.evaluation
@options.texts
@click.option("--min-documents", type=click.IntRange(1), default=1, show_default=True, help="Fewer are an error.")
@click.option("--protocol", metavar="NAME", help="Which tokens are read and scored, see below.  [default: prefix]")
@options.prefix
@click.option("--stride", type=int, metavar="S", help="sliding: by how much a window moves.  [default: 256]")
@click.option("--k", type=click.IntRange(1), metavar="K", help="last-k, paired: tokens scored.  [default: 256]")
@click.option("--weighting", type=click.Choice(["token", "window"]), help="sliding: mean over tokens or window means.")
@click.option("--tokens", type=click.IntRange(0), metavar="T",
              help="windows, sliding, rolling: tokens scored of each document, 0 for all.")  # fmt: skip
@click.option("--from", "runs", type=click.Path(path_type=Path), metavar="RUN", multiple=True,
              help="Fill the table from the tokens of a run, without a model. Repeatable.")  # fmt: skip
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
    hope-eval ppl --model one --model other --protocol sliding --stride 512 --format csv
    hope-eval ppl --from results/runs/ppl-… --protocol bucket

    Every number carries its protocol, and a 95 % interval from a bootstrap over documents.
    """
    from hope_eval.analysis import perplexity
    from hope_eval.analysis.rows import by_seed
    from hope_eval.evaluation.suites import Entry

    parameters = {"stride": stride, "k": k, "weighting": weighting, "tokens": tokens}
    if not runs:
        entry = Entry(protocol_named(protocol or "prefix", **parameters), lengths or DEFAULT, samples)
        options.show(options.measured([entry], out, **rest), form)
        return
    options.check_from(rest)
    stores = [perplexity.opened(run) for run in runs]
    groups = by_seed(stores) if rest["pool_seeds"] else [[one] for one in stores]
    tables = [
        perplexity.derived(
            group,
            protocol,
            parameters,
            options.in_tokens(lengths, group[0].store.header),
            samples,
        )
        for group in groups
    ]
    options.show(tables, form)
