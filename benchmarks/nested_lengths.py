"""Perplexity at several lengths of the same texts: one read for all, against a read for each, and against the peers.

    prefix, bucket     `hope-eval ppl` as it is, in a run on disk
    longest alone      the same, at the longest length only
    one by one         the same, a run for each length; and full logits, a forward for each
    rolling            all of each text in disjoint windows of each length: what lm-eval does, and our protocol for it

So lm-eval, and our rolling, read each text whole at every length. lm-eval is run with one window at a time, its
default, and with as many side by side as make 32k tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import common, peers
from benchmarks.common import FULL_LOGITS, LM_EVAL, OURS, Figure, Work
from hope_eval import LanguageModel
from hope_eval.data.corpora import Corpus
from hope_eval.model.tokens import PrefixPolicy

# Tokens that lm-eval reads side by side, in one of its two ways.
BATCH_TOKENS = 32_768


@click.command()
@common.size_option("1.2b")
@common.lengths_option("2k,4k,8k,16k,32k")
@click.option("--documents", default=8)
@common.repeats_option
@common.out_option
def nested_lengths(size: str, lengths: tuple[int, ...], documents: int, repeats: int, out: Path | None) -> None:
    """Measure several lengths of the same texts."""
    model = common.language_model(size)
    texts = [common.random_ids(model, max(lengths), seed) for seed in range(documents)]
    figures = [
        common.measured(work, repeats) if isinstance(work, Work) else work
        for work in works(model, common.corpus_of(texts), texts, lengths)
    ]
    common.report(f"Several lengths of the same texts, {size}", figures, out, _targets(figures, size), size=size)


def works(
    model: LanguageModel,
    corpus: Corpus,
    texts: Sequence[np.ndarray],
    lengths: Sequence[int],
    prefix: PrefixPolicy = "bos",
) -> list[Work | Figure]:
    """All ways to measure perplexity of the texts at these lengths; a figure in place of each that cannot run here.

    texts: BOS and ids, each as long as the longest length.
    """
    n, longest = len(texts), max(lengths)
    plain = peers.plain(model)
    count = partial(common.operations, model.module)
    once, each = n * count(longest), n * sum(map(count, lengths))
    windows = n * sum(longest / length * count(length) for length in lengths)
    n_each, n_rolling = n * sum(lengths), n * longest * len(lengths)
    run = partial(common.Run, model, corpus, n, prefix)

    def one_by_one() -> list[common.Run]:
        return [run("prefix", [length]) for length in lengths]

    def finish(runs: Any) -> dict[int, float]:
        runs = [runs] if isinstance(runs, common.Run) else runs
        return {length: nll for run in runs for length, nll in run.nll().items()}

    def full_logits() -> dict[int, float]:
        return {length: float(np.mean([peers.full_logits(plain, ids[:length]) for ids in texts])) for length in lengths}

    def ours(words: str, call: Callable[[], Any], n_tokens: int, count: float, facts: Figure) -> Work:
        return Work(f"{OURS}, {words}", call, n_tokens, count, finish=finish, facts=facts)

    first, rolling = {"scored": "the first L tokens"}, {"scored": "all, in windows"}
    works: list[Work | Figure] = [
        ours("longest alone", partial(run, "prefix", [longest]), n * longest, once, first),
        ours("prefix", partial(run, "prefix", lengths), n * longest, once, first),
        ours("bucket", partial(run, "bucket", lengths), n * longest, once, {"scored": "buckets"}),
        ours("one by one", one_by_one, n_each, each, first),
        Work(f"{FULL_LOGITS}, one by one", full_logits, n_each, each, facts=first),
        ours("rolling", partial(run, "rolling", lengths), n_rolling, windows, rolling),
    ]
    batches = (("1 window at a time", 1), ("32k tokens at a time", BATCH_TOKENS))
    for words, n_tokens in batches:
        way = f"{LM_EVAL} rolling, {words}"
        if not peers.INSTALLED:
            works.append(peers.lm_eval_missing(way))
            continue
        peer = peers.LmEval(plain, model.tokenizer)

        def roll(peer: peers.LmEval = peer, n_tokens: int = n_tokens) -> dict[int, float]:
            return {length: peer.rolling(texts, length, max(1, n_tokens // length)) for length in lengths}

        works.append(Work(way, roll, n_rolling, windows, facts=rolling))
    return works


def _targets(figures: Sequence[Figure], size: str) -> list[Figure]:
    def seconds(way: str) -> float | None:
        return common.seconds_of(figures, way)

    longest, prefix = seconds(f"{OURS}, longest alone"), seconds(f"{OURS}, prefix")
    seconds_of_lm_eval = [
        figure["seconds"] for figure in figures if figure["way"].startswith(LM_EVAL) and "seconds" in figure
    ]
    fastest = min(seconds_of_lm_eval, default=None)
    applies = size == "1.2b"
    lines = [
        ("prefix at all lengths / the longest alone", common.ratio(prefix, longest), "<= 1.1"),
        ("bucket / the longest alone", common.ratio(seconds(f"{OURS}, bucket"), longest), "<= 1.1"),
        ("our reads one by one / prefix", common.ratio(seconds(f"{OURS}, one by one"), prefix), ">= 1.6"),
        ("full logits one by one / prefix", common.ratio(seconds(f"{FULL_LOGITS}, one by one"), prefix), ">= 1.6"),
        ("the faster lm-eval / prefix", common.ratio(fastest, prefix), ">= 3"),
    ]
    targets = [common.target(*line, applies) for line in lines]
    rolling = common.ratio(fastest, seconds(f"{OURS}, rolling"))
    return [*targets, common.target("the faster lm-eval / our rolling", rolling)]
