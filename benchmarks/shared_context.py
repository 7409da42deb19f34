"""Many questions on one context: reading it once, against once for each question, and against the peers.

With --size, contexts, questions and answers are random ids, of the lengths of a needle; with --model, needles in
sentences, each compared with a word that is not there. Of what is done for each question, two are timed, and the time
is multiplied.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks import common, peers
from benchmarks.common import FULL_LOGITS, LM_EVAL, OURS, Figure, Work
from hope_eval import LanguageModel, Sample, load
from hope_eval.ask import vocabulary_for
from hope_eval.task import Prompt, Question, generator, parse_task

# Tokens of a question and its answer, as of a needle.
N_QUERY, N_ANSWER = 10, 4

# Questions that are read by themselves; the time of all follows from these.
N_TIMED = 2


@click.command()
@common.size_option("8b")
@click.option("--model", "path", help="A checkpoint, in place of random weights.")
@common.lengths_option("32k")
@click.option("--questions", default=16)
@common.repeats_option
@common.out_option
def shared_context(
    size: str, path: str | None, lengths: tuple[int, ...], questions: int, repeats: int, out: Path | None
) -> None:
    """Many questions on one context."""
    model = load(path) if path else common.language_model(size)
    figures: list[Figure] = []
    targets = []
    for length in lengths:
        prompt = _needles(model, length, questions) if path else _random(model, length, questions)
        some = [
            common.measured(work, repeats) if isinstance(work, Work) else work for work in _works(model, prompt, length)
        ]
        once, together, alone = (common.seconds_of(some, way) for way in (f"{OURS}, no question", OURS, _ALONE))
        applies = (size, length, questions) == ("8b", 32_768, 16) and not path
        name = f"{questions} questions on {length:,} tokens"
        targets += [
            common.target(
                f"{name}: a read for each / one read for all", common.ratio(alone, together), ">= 8", applies
            ),
            common.target(f"{name}: all of them / the context alone", common.ratio(together, once), "<= 1.5", False),
        ]
        figures += some
    what = Path(path).name if path else size
    common.report(f"{questions} questions on one context, {what}", figures, out, targets, model=what)


_ALONE = f"{OURS}, a read for each"


def _works(model: LanguageModel, prompt: Prompt, length: int) -> list[Work | Figure]:
    context = np.asarray(prompt.context, np.int64)
    n = len(prompt.questions)
    few = prompt.questions[:N_TIMED]
    once = common.operations(model.module, length)
    facts: Figure = {"length": length, "scored": f"the first {N_TIMED} answers"}
    pairs = [
        (np.concatenate([context, np.asarray(q.query, np.int64)]), np.asarray(answer, np.int64))
        for q in few
        for answer in q.answers
    ]
    n_answers = sum(len(question.answers) for question in prompt.questions)
    each = {"times": n_answers / len(pairs), "facts": facts}

    def targets_of(values: Sequence[float]) -> float:
        """Return the mean nll of the answers that are right, of those that were timed."""
        firsts = np.cumsum([0, *(len(question.answers) for question in few)])[:-1]
        return float(sum(values[first] for first in firsts) / sum(len(question.target) for question in few))

    def work(way: str, one: Callable[[np.ndarray, np.ndarray], float]) -> Work:
        return Work(way, lambda: [one(*pair) for pair in pairs], n_answers * length, n_answers * once,
                    finish=targets_of, **each)  # fmt: skip

    def alone(before: np.ndarray, answer: np.ndarray) -> float:
        return float(model.score([Sample(before, answer)])[0].nll.sum())

    together = partial(model.score_prompts, [prompt])
    found: list[Work | Figure] = [
        Work(f"{OURS}, no question", partial(model.score, [Sample(context[:-1], context[-1:])]), length, once,
             facts={"length": length}, finish=lambda _: None),
        Work(OURS, together, length, once, facts=facts,
             finish=lambda scores: targets_of([s.nll.sum() for s, q in zip(scores[0], few, strict=False)
                                               for _ in q.answers])),
        work(_ALONE, alone),
        work(FULL_LOGITS, partial(peers.full_logits_of_answer, model)),
    ]  # fmt: skip
    if not peers.INSTALLED:
        return [*found, peers.lm_eval_missing(**facts)]
    peer = peers.LmEval(model)
    return [
        *found,
        Work(LM_EVAL, partial(peer.answers, pairs), n_answers * length, n_answers * once, finish=targets_of, **each),
    ]


def _random(model: LanguageModel, length: int, n: int) -> Prompt:
    context = common.random_ids(model, length)
    ids = common.random_ids(model, 1 + n * (N_QUERY + N_ANSWER), seed=1)[1:].reshape(n, -1)
    return Prompt(context, tuple(Question(row[:N_QUERY], row[N_QUERY:]) for row in ids))


def _needles(model: LanguageModel, length: int, n: int) -> Prompt:
    task = parse_task(f"needle:n_needles={n}")
    vocabulary = vocabulary_for(model.tokenizer, task, chat=False)
    return task.prompt(vocabulary, length, generator("benchmark", length))
