"""Perplexity of one long text: ours, full logits as most scripts compute them, and lm-eval."""

from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks import common, peers
from benchmarks.common import FULL_LOGITS, LM_EVAL, OURS, Figure, Work
from hope_eval import LanguageModel, Sample
from hope_eval.lengths import short_length

# Targets: TFLOP/s at least, and GiB above the weights at most.
_PROMISED = {
    ("8b", 131_072): (600, 16),
    ("1.2b", 131_072): (475, 8),
    ("1.2b", 1_000_000): (450, 70),
}


@click.command()
@common.size_option("1.2b")
@common.lengths_option("32k,128k")
@common.repeats_option
@common.length_option("--warm-up", None, "Most tokens that the untimed warm-up reads.  [default: all]")
@common.length_option("--peers-up-to", "1m", "Most tokens that peers read.")
@click.option("--profile", is_flag=True, help="List the kernels of our read of the longest text.")
@common.out_option
def long_forward(
    size: str,
    lengths: tuple[int, ...],
    repeats: int,
    warm_up: int | None,
    peers_up_to: int,
    profile: bool,
    out: Path | None,
) -> None:
    """Read one long text."""
    model = common.language_model(size)
    plain = peers.plain(model)
    lm_eval = peers.LmEval(plain, model.tokenizer) if peers.INSTALLED else None
    figures: list[Figure] = []
    for length in lengths:
        ids = common.random_ids(model, length)
        short = ids[: warm_up or length]
        ways = {
            OURS: partial(ours, model),
            FULL_LOGITS: partial(peers.full_logits, plain),
            LM_EVAL: (lambda ids: lm_eval.rolling([ids], len(ids))) if lm_eval else None,
        }
        for way, score in ways.items():
            if score is None:
                figures.append(peers.lm_eval_missing(length=length))
            elif way != OURS and length > peers_up_to:
                gib = length * common.SIZES[size]["vocab_size"] * model.dtype.itemsize / 2**30
                figures.append(common.not_run(way, f"not run: logits alone take {gib:,.0f} GiB", length=length))
            else:
                work = Work(
                    way, partial(score, ids), length, common.operations(model.module, length),
                    warm_up=partial(score, short), facts={"length": length},
                )  # fmt: skip
                figures.append(common.measured(work, repeats))
    targets = []
    for length in lengths:
        tflops, gib = _PROMISED.get((size, length), (0, 0))
        if tflops:
            ours_of = partial(common.value_of, figures, way=OURS, length=length)
            name = f"{size}, {short_length(length)} tokens"
            targets.append(common.target(f"{name}: throughput", ours_of("tflops"), f">= {tflops} TFLOP/s"))
            targets.append(
                common.target(f"{name}: memory above the weights", ours_of("peak_gib_above_weights"), f"<= {gib} GiB")
            )
    facts = {"profile": common.profile_of(partial(ours, model, ids))} if profile else {}
    common.report(f"One long text, {size}", figures, out, targets, size=size, **facts)


def ours(model: LanguageModel, ids: np.ndarray) -> float:
    """Mean nll as `hope-eval ppl` computes it."""
    return float(model.score([Sample(ids[:1], ids[1:])])[0].nll.mean(dtype=np.float64))
