"""Many questions on one context: one read of it, against one read for each question, and against the peers.

With --size, contexts, questions and answers are random ids, of the lengths of a needle; with --model, needles in
sentences, each compared with a word that is not there. Of work that is repeated for each question, two
questions are timed, and the time is multiplied.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks import common, peers
from benchmarks.common import FULL_LOGITS, LM_EVAL, OURS, Figure, Work
from hope_eval import LanguageModel, Sample, load
from hope_eval.evaluation.material import vocabulary_for
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
    """Ask many questions on one context."""
    model = load(path) if path else common.language_model(size)
    figures: list[Figure] = []
    targets = []
    for length in lengths:
        prompt = _needles(model, length, questions) if path else _random(model, length, questions)
        at_length = [
            common.measured(work, repeats) if isinstance(work, Work) else work for work in _works(model, prompt, length)
        ]
        once, together, alone = (common.seconds_of(at_length, way) for way in (f"{OURS}, no question", OURS, _ALONE))
        applies = (size, length, questions) == ("8b", 32_768, 16) and not path
        name = f"{questions} questions on {length:,} tokens"
        what = f"{name}: a read for each / one read for all"
        targets.append(common.target(what, common.ratio(alone, together), ">= 8", applies))
        targets.append(common.target(f"{name}: all of them / the context alone", common.ratio(together, once)))
        figures += at_length
    what = Path(path).name if path else size
    common.report(f"{questions} questions on one context, {what}", figures, out, targets, model=what)


_ALONE = f"{OURS}, a read for each"


def _works(model: LanguageModel, prompt: Prompt, length: int) -> list[Work | Figure]:
    context = np.asarray(prompt.context, np.int64)
    plain = peers.plain(model)
    few = prompt.questions[:N_TIMED]
    pairs = [
        (np.concatenate([context, np.asarray(q.query, np.int64)]), np.asarray(answer, np.int64))
        for q in few
        for answer in q.answers
    ]
    # Answers that are right.
    firsts = np.cumsum([0, *(len(question.answers) for question in few)])[:-1]
    n_answers = sum(len(question.answers) for question in prompt.questions)
    once = common.operations(model.module, length)
    facts: Figure = {"length": length, "scored": f"the first {N_TIMED} answers"}

    def mean_of(nll: Sequence[float]) -> float:
        """Mean nll of a token, from the nll of each right answer."""
        return float(sum(nll) / sum(len(question.target) for question in few))

    def each(way: str, call: Callable[[], Sequence[float]]) -> Work:
        return Work(
            way, call, n_answers * length, n_answers * once,
            times=n_answers / len(pairs), facts=facts, finish=lambda nll: mean_of([nll[first] for first in firsts]),
        )  # fmt: skip

    def alone(before: np.ndarray, answer: np.ndarray) -> float:
        return float(model.score([Sample(before, answer)])[0].nll.sum())

    context_alone = partial(model.score, [Sample(context[:-1], context[-1:])])
    works: list[Work | Figure] = [
        Work(f"{OURS}, no question", context_alone, length, once, facts={"length": length}, finish=lambda _: None),
        Work(
            OURS, partial(model.score_prompts, [prompt]), length, once,
            facts=facts, finish=lambda scores: mean_of([score.nll.sum() for score in scores[0][:N_TIMED]]),
        ),
        each(_ALONE, lambda: [alone(*pair) for pair in pairs]),
        each(FULL_LOGITS, lambda: [peers.full_logits_of_answer(plain, *pair) for pair in pairs]),
    ]  # fmt: skip
    if not peers.INSTALLED:
        return [*works, peers.lm_eval_missing(**facts)]
    return [*works, each(LM_EVAL, partial(peers.LmEval(plain, model.tokenizer).answers, pairs))]


def _random(model: LanguageModel, length: int, n: int) -> Prompt:
    context = common.random_ids(model, length)
    ids = common.random_ids(model, 1 + n * (N_QUERY + N_ANSWER), seed=1)[1:].reshape(n, -1)
    return Prompt(context, tuple(Question(row[:N_QUERY], row[N_QUERY:]) for row in ids))


def _needles(model: LanguageModel, length: int, n: int) -> Prompt:
    task = parse_task(f"needle:n_needles={n}")
    vocabulary = vocabulary_for(model.tokenizer, task, chat=False)
    return task.prompt(vocabulary, length, generator("benchmark", length))
