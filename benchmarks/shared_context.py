"""What many questions on one context cost, beside reading the context once, and reading it for each question.

    python benchmarks/shared_context.py --model SmolLM2-135M-Instruct.Q4_1.gguf --lengths 1k,2k

16 needles in generated sentences, each asked for, and compared with a word that is not there.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from hope_eval import Sample, load
from hope_eval.ask import vocabulary_for
from hope_eval.lengths import parse_lengths, resolved
from hope_eval.task import generator, parse_task


@click.command()
@click.option("--model", required=True)
@click.option("--lengths", default="1k,2k", show_default=True)
@click.option("--questions", default=16, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures there as JSON.")
def main(model: str, lengths: str, questions: int, repeats: int, out: Path | None) -> None:
    language_model = load(model)
    task = parse_task(f"needle:n_needles={questions}")
    vocabulary = vocabulary_for(language_model.tokenizer, task, chat=False)
    figures = []
    for length in resolved(parse_lengths(lengths), language_model.train_length):
        prompt = task.prompt(vocabulary, length, generator("benchmark", length))
        context = np.asarray(prompt.context)
        once = _seconds(partial(language_model.score, [Sample(context[:-1], context[-1:])]), repeats)
        together = _seconds(partial(language_model.score_prompts, [prompt]), repeats)
        alone = _seconds(partial(language_model.score, prompt.samples()[:1]), repeats)
        figures.append(
            {
                "length": length,
                "questions": questions,
                "context_once_seconds": round(once, 3),
                "all_questions_seconds": round(together, 3),
                "ratio": round(together / once, 2),
                "one_by_one_ratio": round(questions * alone / once, 2),
            }
        )
        print(figures[-1])
    if out:
        machine = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
        )
        out.write_text(
            json.dumps({"machine": machine, "torch": torch.__version__, "figures": figures}, indent=1) + "\n"
        )


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a piece of work, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    main()
