"""Many short texts against few long ones: both should run at the speed of the hardware."""

from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks import common, peers
from benchmarks.common import FULL_LOGITS, LM_EVAL, OURS, Figure, Work
from benchmarks.nested_lengths import BATCH_TOKENS


@click.command()
@common.size_option("1.2b")
@common.length_option("--short", "512")
@common.length_option("--long", "32k")
@click.option("--samples", default=1000, help="Short texts; as many tokens of long ones.")
@common.repeats_option
@common.out_option
def short_lengths(size: str, short: int, long: int, samples: int, repeats: int, out: Path | None) -> None:
    """Read many short texts, and few long ones."""
    model = common.language_model(size)
    plain = peers.plain(model)
    figures: list[Figure] = []
    for length, n in ((short, samples), (long, max(1, samples * short // long))):
        texts = [common.random_ids(model, length, seed) for seed in range(n)]
        run = partial(common.Run, model, common.corpus_of(texts), n, "bos", "prefix", [length])

        def full_logits(texts: list[np.ndarray] = texts) -> float:
            return float(np.mean([peers.full_logits(plain, ids) for ids in texts]))

        work = partial(
            Work,
            n_tokens=n * length,
            operations=n * common.operations(model.module, length),
            facts={"length": length, "texts": n},
        )
        figures += [
            common.measured(work(OURS, run, finish=lambda scored: next(iter(scored.nll().values()))), repeats),
            common.measured(work(FULL_LOGITS, full_logits), repeats),
        ]
        for words, at_once in (("1 text at a time", 1), ("32k tokens at a time", max(1, BATCH_TOKENS // length))):
            way = f"{LM_EVAL}, {words}"
            if peers.INSTALLED:
                call = partial(peers.LmEval(plain, model.tokenizer).rolling, texts, length, at_once)
                figures.append(common.measured(work(way, call), repeats))
            else:
                figures.append(peers.lm_eval_missing(way, length=length, texts=n))
    fast, slow = (common.value_of(figures, "tflops", way=OURS, length=length) for length in (long, short))
    applies = (size, short, long) == ("1.2b", 512, 32_768)
    targets = [
        common.target(f"TFLOP/s at {long:,} tokens / at {short:,}, {size}", common.ratio(fast, slow), "<= 1.5", applies)
    ]
    common.report(f"{samples:,} texts of {short} tokens, {size}", figures, out, targets, size=size)
