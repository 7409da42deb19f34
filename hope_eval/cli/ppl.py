"""`hope-eval ppl`: perplexity against context length."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hope_eval.cli import options
from hope_eval.cli.progress import progress
from hope_eval.errors import LengthError, OptionError
from hope_eval.protocols import PROTOCOLS, Protocol, protocol_named
from hope_eval.results.tables import render

if TYPE_CHECKING:
    from hope_eval.token_store import TokenStore

# Documents, where --samples does not say.
_SAMPLES = 10

_PROTOCOL_HELP = "\n\n".join(f"{name}: {cls.one_line}" for name, cls in PROTOCOLS.items())


@click.command(epilog=f"\b\nProtocols:\n{_PROTOCOL_HELP}".replace("\n\n", "\n"))
@options.checkpoint
@options.evaluation
@click.option(
    "--data",
    default="python",
    show_default=True,
    metavar="TEXTS",
    help="python (the standard library), python:torch,numpy, a .txt, .md, .jsonl[.bz2|.gz|.xz] or .parquet file, a "
    "folder, or hf:name[:config]@revision.",
)
@click.option("--field", default="text", show_default=True, help="Field of a .jsonl or .parquet that holds the text.")
@click.option("--min-documents", type=click.IntRange(1), default=1, show_default=True, help="Fewer are an error.")
@click.option("--protocol", metavar="NAME", help="Which tokens are read and scored, see below.  [default: prefix]")
@click.option("--prefix", type=click.Choice(["auto", "bos", "eos", "none"]), default="auto", show_default=True,
              help="Token read before a document; auto: BOS if there is one, else EOS.")  # fmt: skip
@click.option("--stride", type=int, metavar="S", help="sliding: by how much a window moves.  [default: 256]")
@click.option("--k", type=click.IntRange(1), metavar="K", help="last-k, paired: tokens scored.  [default: 256]")
@click.option("--weighting", type=click.Choice(["token", "window"]), help="sliding: mean over tokens or window means.")
@click.option("--tokens", type=click.IntRange(0), metavar="T",
              help="windows, sliding, rolling: tokens scored of each document, 0 for all.")  # fmt: skip
@click.option("--from", "runs", type=click.Path(path_type=Path), metavar="RUN", multiple=True,
              help="Fill the table from the tokens of a run, without a model. Repeatable.")  # fmt: skip
@click.option("--pool-seeds", is_flag=True,
              help="Models named hope-0, hope-1… (see `train --seed`) make one line: their mean.")  # fmt: skip
@click.pass_context
def ppl(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    encodings: tuple[str, ...],
    lengths: tuple[int, ...] | None,
    samples: int | None,
    seed: int,
    out: Path,
    form: str,
    data: str,
    field: str,
    min_documents: int,
    protocol: str | None,
    prefix: Any,
    stride: int | None,
    k: int | None,
    weighting: str | None,
    tokens: int | None,
    runs: tuple[Path, ...],
    pool_seeds: bool,
    **checkpoint: Any,
) -> None:
    """Perplexity at growing context lengths, beyond the training length too.

    \b
    hope-eval ppl --model path/to/checkpoint --lengths 2k,8k,32k
    hope-eval ppl --model checkpoint --encoding native --encoding hope --data books.jsonl.bz2
    hope-eval ppl --model one --model other --protocol sliding --stride 512 --format csv
    hope-eval ppl --from results/runs/ppl-… --protocol bucket

    Every number carries its protocol, and a 95 % interval from a bootstrap over documents.
    """
    from hope_eval import perplexity

    parameters = {"stride": stride, "k": k, "weighting": weighting, "tokens": tokens}
    if runs:
        if models or encodings:
            raise OptionError("--from reads runs that are there, and takes no --model or --encoding", "leave one out")
        stores = [perplexity.opened(run) for run in runs]
        groups = perplexity.by_seed(stores) if pool_seeds else [[one] for one in stores]
        tables = [perplexity.derived(group, protocol, parameters, lengths, samples) for group in groups]
    else:
        measured = dict(
            _measured(
                models,
                encodings,
                lengths,
                protocol_named(protocol or "prefix", **parameters),
                (data, field),
                checkpoint,
                out,
                n_documents=samples or _SAMPLES,
                minimum=min_documents,
                seed=seed,
                prefix=prefix,
                command=options.command_line(),
            )
        )
        groups = perplexity.by_seed(list(measured)) if pool_seeds else [[one] for one in measured]
        tables = [perplexity.table(group, n_documents=measured[group[0]]) for group in groups]
    rows = [row for table in tables for row in table.rows]
    render(rows, form, perplexity.joint_notes(tables))
    broken = [f"{row['model']} {row['encoding']} at {row['length']}" for row in rows if row["status"] == "nan"]
    if broken:
        click.echo(f"Error: NaN in the scores of {', '.join(dict.fromkeys(broken))}", err=True)
        click.echo("hint: --dtype float32 shows whether it is an overflow", err=True)
        ctx.exit(1)


def _measured(
    names: tuple[str, ...],
    encodings: tuple[str, ...],
    lengths: tuple[int, ...] | None,
    protocol: Protocol,
    data: tuple[str, str],
    how: dict[str, Any],
    out: Path,
    **measuring: Any,
) -> Iterator[tuple["TokenStore", int]]:
    """Yield the run of every encoding of every model, and its number of documents.

    What is misspelt shows before anything is measured.
    """
    from hope_eval import corpora, evaluate, zoo
    from hope_eval.encoding import parse_encoding
    from hope_eval.model import checkpoint

    for encoding in encodings:
        if encoding != checkpoint.NATIVE:
            parse_encoding(encoding)
    corpus = corpora.load_corpus(*data)
    names = names or (("",) if how["loader"] else tuple(zoo.names()))
    if not how["loader"]:
        for name in names:
            checkpoint.check(name, how["revision"])
    for name in names:
        loaded = checkpoint.load_checkpoint(name, **how)
        for encoding in encodings or (checkpoint.NATIVE,):
            model = loaded.with_encoding(encoding)
            if lengths is None:
                lengths = _default_lengths(model.train_length)
            with progress(f"{model.name} {model.encoding}") as report:
                tokens, n = evaluate.perplexity(model, corpus, protocol, lengths, out, report=report, **measuring)
            yield tokens, n


def _default_lengths(train_length: int | None) -> tuple[int, ...]:
    if train_length is None:
        raise LengthError("nothing tells the training length of the model", "give --lengths, such as --lengths 2k,8k")
    return tuple(max(2, length) for length in (train_length // 2, train_length, 2 * train_length, 4 * train_length))
