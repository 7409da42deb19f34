"""Perplexity of a real checkpoint on real texts, in seconds after loading, beside the peers on the same tokens."""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from benchmarks import common
from benchmarks.common import OURS, Work
from benchmarks.nested_lengths import works
from hope_eval import load
from hope_eval.data.corpora import load_corpus
from hope_eval.evaluation.documents import choose


@click.command()
@click.option("--model", "path", required=True, help="A checkpoint, as `hope-eval ppl --model` takes it.")
@click.option("--data", default="python", help="Texts, as `hope-eval ppl --data` takes them.")
@common.lengths_option("2k,8k,32k")
@click.option("--documents", default=50)
@click.option("--peers/--no-peers", "with_peers", default=True)
@common.repeats_option
@common.out_option
def checkpoint(
    path: str, data: str, lengths: tuple[int, ...], documents: int, with_peers: bool, repeats: int, out: Path | None
) -> None:
    """Measure perplexity of a real checkpoint on real texts."""
    loading, model = common.timed(lambda: load(path))
    reading, corpus = common.timed(lambda: load_corpus(data))
    prefix = model.prefix_token("auto")
    assert prefix is not None, "the peers need a token to begin with"
    chosen = choose(model, corpus, max(lengths) - 1, documents, whole=False).documents
    texts = [np.concatenate([[prefix], document.ids[: max(lengths) - 1]]).astype(np.int64) for document in chosen]
    # Our rolling would read documents to their end, where the peers are given the first tokens of each.
    ways = [
        work
        for work in works(model, corpus, texts, lengths, "auto")
        if (work.way if isinstance(work, Work) else work["way"]) != f"{OURS}, rolling"
    ]
    if not with_peers:
        ways = [work for work in ways if isinstance(work, Work) and work.way.startswith(OURS)]
    name = f"{OURS}, prefix, the first time"
    first = next(replace(work, way=name, warm_up=lambda: None) for work in ways
                 if isinstance(work, Work) and work.way == f"{OURS}, prefix")  # fmt: skip
    # The first measurement tokenises the texts: only the last choice of documents is kept, and this call makes another.
    choose(model, corpus, 1, 1)
    figures = [common.measured(first, 1)]
    figures += [common.measured(work, repeats) if isinstance(work, Work) else work for work in ways]
    seconds = common.seconds_of(figures, name)
    what = f"perplexity at {', '.join(map(str, lengths))}, {len(chosen)} documents: seconds after loading"
    applies = (lengths, len(chosen)) == ((2048, 8192, 32_768), 50) and model.train_length == 8192
    common.report(
        f"A real checkpoint: {Path(path).name}", figures, out, [common.target(what, seconds, "<= 20 s", applies)],
        model=Path(path).name, fingerprint=model.fingerprint, texts=f"{corpus.name} ({corpus.fingerprint})",
        documents=len(chosen), seconds_to_load=round(loading, 2), seconds_to_read_texts=round(reading, 2),
    )  # fmt: skip
