"""The loop over tasks: prompts -> scores -> records, in the run of that identity on disk.

    vocabulary_for   a model's tokenizer with what a task needs of it: chat template, texts, examples
    ask              ask what the run does not hold yet, and append every answer as it comes

Prompts are cut into batches before anything is known of what is already done, and a batch is asked whole or not at all.
Lengths ascend, controls come first: a model that fails with nothing else in the context is found out at once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hope_eval.analysis import answers, stopping
from hope_eval.analysis.stopping import Until
from hope_eval.data.corpora import Corpus
from hope_eval.data.labelled import LabelledTexts
from hope_eval.data.vocabulary import Vocabulary
from hope_eval.encodings import facts_of
from hope_eval.errors import ContextTooShortError, TaskError
from hope_eval.evaluation.perplexity import Count, Report, batch_size, identity_of, session
from hope_eval.model.reading import OutOfMemory, Score
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.tokens import PrefixPolicy, prefix_token
from hope_eval.runs.columns import Record
from hope_eval.runs.provenance import origin
from hope_eval.runs.records.answer import ANSWER
from hope_eval.runs.records.infeasible import INFEASIBLE
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.records.until import UNTIL
from hope_eval.runs.shards import ALONE, Ranks
from hope_eval.runs.store import RunStore
from hope_eval.task import Prompt, Question, Task, generator

# Questions of a column, where nobody says how many contexts: an interval then reaches 5 points to either side at most.
N_QUESTIONS = 400

# Controls are asked on a share of the contexts: they are rarely anywhere near the middle.
_CONTROL_SHARE = 4
_FEWEST_CONTROLS = 4

# Where the model writes, so many times as many prompts go together: a step takes as long for many as for few.
_WRITTEN_TOGETHER = 4

# Whose prompts are as short as they go.
_SHORT_CONTROLS = ("ceiling", "last")


@dataclass(frozen=True)
class Material:
    """What a user brings along, or what is taken in its place."""

    corpus: Corpus | None = None
    examples: LabelledTexts | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return next((one.name for one in (self.examples, self.corpus) if one is not None), "generated")

    @property
    def fingerprint(self) -> str:
        """A hash of its contents."""
        return next((one.fingerprint for one in (self.examples, self.corpus) if one is not None), "")


def vocabulary_for(
    tokenizer: Any,
    task: Task,
    material: Material = Material(),
    chat: bool | None = None,
    prefix: PrefixPolicy = "auto",
    seed: int = 0,
) -> Vocabulary:
    """Return the tokenizer of a model as a task sees it.

    chat: whether prompts go into the chat template; None: if there is one, and the task is one to ask in words.

    Raises OptionError if there is no template, or no prefix token of that kind.
    """
    if chat is None:
        chat = task.chat and bool(getattr(tokenizer, "chat_template", None))
    texts = [document.text for document in material.corpus.in_order(seed)] if material.corpus else []
    return Vocabulary(tokenizer, prefix_token(tokenizer, prefix), chat, texts, material.examples)


@dataclass(frozen=True)
class Part:
    """Prompts of one column, or of one of its controls; of the control `ceiling`, of all columns."""

    task: Task
    control: str
    length: int
    n: int

    @property
    def nominal(self) -> int:
        """The length that records go under; that of a ceiling is none, it serves all."""
        return 0 if self.control == "ceiling" else self.length

    @property
    def n_tokens(self) -> int:
        """Tokens of a prompt, as progress counts them; short ones are not counted."""
        return 0 if self.control in _SHORT_CONTROLS else self.length

    def prompt(self, vocabulary: Vocabulary, seed: int, index: int) -> Prompt:
        """Return the prompt of that number."""
        rng = generator("test", str(self.task), seed, index)
        return self.task.prompt(vocabulary, self.length, rng)

    def batches(self, device_type: str, until: Until | None = None) -> Iterator[range]:
        """Yield the numbers of the prompts that are asked together, with no look at what was answered in between."""
        n_read = max(1, self.length // _WRITTEN_TOGETHER) if self.task.n_new else self.length
        size = batch_size(device_type, n_read)
        for begin, end in stopping.stages(self.n, until):
            for start in range(begin, end, size):
                yield range(start, min(start + size, end))


def ask(
    model: LanguageModel,
    task: Task,
    lengths: Sequence[int],
    root: Path,
    vocabulary: Vocabulary,
    *,
    material: Material = Material(),
    n_contexts: int | None = None,
    seed: int = 0,
    controls: bool = True,
    command: str = "",
    report: Report = lambda done, total: None,
    ranks: Ranks = ALONE,
    until: Until | None = None,
) -> tuple[RunStore, int]:
    """Ask a model the questions of a task at all lengths, in the run of that identity below `root`.

    n_contexts: of each length; None: as many as make 400 questions.
    controls:   whether the task's controls are asked too.
    report:     called at the start and after every batch, with tokens.
    ranks:      the processes that share the work out.
    until:      when a length is known well enough; None: when all contexts are asked.

    Returns the run, and the number of contexts at most. Raises TaskError, LengthError or StoreError; a length that is
    too short for the task, or too long for memory, is a hole in the table.
    """
    model.check_length(min(lengths))
    identity = {
        "task": str(task),
        "version": task.version,
        "answers": answers.VERSION,
        **identity_of(model),
        "task_fingerprint": task.fingerprint,
        "prefix_token": vocabulary.start[0] if vocabulary.start else None,
        "chat": vocabulary.chat,
        "data": material.fingerprint,
        "seed": seed,
    }
    start = "".join(map(model.token_text, vocabulary.start)) if vocabulary.start else "none"
    provenance = {
        "family": task.family,
        "metric": task.metric,
        "one_line": task.one_line,
        "source": task.source,
        "controls": list(task.controls),
        "encoding": facts_of(model.encoding),
        "data": material.name,
        "about": f"{model.about}, {'chat template' if vocabulary.chat else f'prefix {start}'}",
        "tokenizer": model.tokenizer_fingerprint,
        **origin(model.device, command),
    }
    readable = [length for length in lengths if model.max_length is None or length <= model.max_length]
    with ranks.writing(root, identity, provenance) as store, session(model, store, command, report) as count:
        n = n_contexts or default_contexts(task, vocabulary, readable, seed)
        needed = tokens_needed(task, vocabulary, n, seed) if readable else 0
        told = {record["length"] for record in store.records if record["kind"] == INFEASIBLE.name}
        for length in readable:
            if length < needed and length not in told:
                store.append(INFEASIBLE.record(length, needed))
        parts = parts_of(task, [length for length in readable if length >= needed], n, controls)
        _ask_all(model, vocabulary, store, parts, seed, count, until)
    return store.whole(), n


def default_contexts(task: Task, vocabulary: Vocabulary, lengths: Sequence[int], seed: int) -> int:
    """Return how many contexts make 400 questions."""
    for length in lengths:
        try:
            prompt = task.prompt(vocabulary, length, generator("test", str(task), seed, 0))
        except ContextTooShortError:
            continue
        return math.ceil(N_QUESTIONS / len(prompt.questions))
    return 1


def tokens_needed(task: Task, vocabulary: Vocabulary, n: int, seed: int) -> int:
    """Return the least length that all of n prompts can be put into."""
    return max((_needed(task, vocabulary, seed, index) for index in range(n)), default=0)


def parts_of(task: Task, lengths: Sequence[int], n: int, controls: bool) -> list[Part]:
    """Return what is asked at lengths that are long enough for the task."""
    n_controls = _n_controls(n)
    parts = []
    if controls and "ceiling" in task.controls and lengths:
        parts.append(Part(_controlled(task, "ceiling"), "ceiling", lengths[-1], n_controls))
    for length in lengths:
        parts.append(Part(task, "", length, n))
        if controls:
            parts += [
                Part(_controlled(task, control), control, length, n_controls)
                for control in task.controls
                if control != "ceiling"
            ]
    return parts


def _n_controls(n: int) -> int:
    """Return on how many of n contexts a control is asked."""
    return min(n, max(_FEWEST_CONTROLS, n // _CONTROL_SHARE))


def _needed(task: Task, vocabulary: Vocabulary, seed: int, index: int) -> int:
    """Return the least length that a sample can be put into: texts and keys differ in length from sample to sample."""
    try:
        task.prompt(vocabulary, 1, generator("test", str(task), seed, index))
    except ContextTooShortError as error:
        return error.needed
    return 1


def _controlled(task: Task, control: str) -> Task:
    return replace(task, control=control)  # type: ignore[call-arg]


def _ask_all(
    model: LanguageModel,
    vocabulary: Vocabulary,
    store: RunStore,
    parts: Sequence[Part],
    seed: int,
    count: Count,
    until: Until | None,
) -> None:
    """Ask all parts, and append what the run does not hold yet."""
    held = {ANSWER.key(record) for record in store.records if record["kind"] == ANSWER.name}
    whole = store.kind.pieces(store.records)
    stops = {*vocabulary.encode("\n"), *vocabulary.start, *model.end_tokens()}
    done, total, limit = 0, sum(part.n_tokens * part.n for part in parts), math.inf
    for batches in _rounds(store, parts, model.device.type, until):
        fresh_batches = [batch for batch in batches if not whole.issuperset(_contexts(batch))]
        mine = store.share(fresh_batches, _contexts)
        done += _n_tokens(batches) - _n_tokens(fresh_batches)
        total -= _n_tokens(fresh_batches) - _n_tokens(mine)
        count(done, total, 0)
        for part, indices in mine:
            if part.n_tokens >= limit:
                continue
            prompts = [part.prompt(vocabulary, seed, index) for index in indices]
            try:
                found = list(_answered(model, vocabulary, part, prompts, stops))
            except OutOfMemory as error:
                limit = part.length
                store.append(OOM.of_length(limit, error.figures, str(error)))
                continue
            for index, records in zip(indices, found, strict=True):
                context = (part.nominal, part.control, index)
                for number, facts in enumerate(records):
                    record = ANSWER.record(context, number, len(records), facts)
                    if ANSWER.key(record) not in held:
                        store.append(record)
            done += part.n_tokens * len(indices)
            count(done, total, sum(len(prompt.context) for prompt in prompts))
    if until is not None:
        count(done, done, 0)


def _rounds(store: RunStore, parts: Sequence[Part], device_type: str, until: Until | None) -> Iterator[list["_Batch"]]:
    """Yield what is asked, all at once; or, of each part, as much as it takes until it is known well enough.

    What was yielded is in the run, but for what did not fit into memory, when the next is asked for. Controls are asked
    on a share of the contexts of their length, that of all lengths on one of all contexts.
    """
    if until is None:
        yield [(part, indices) for part in parts for indices in part.batches(device_type)]
        return
    asked: dict[int, int] = {}
    for whole in parts:
        n = min(whole.n, _n_controls(asked[whole.length])) if whole.length in asked else whole.n
        part, stop, is_met = replace(whole, n=n), 0, False
        for start, stop in stopping.stages(n, until):
            yield [(part, one) for one in part.batches(device_type, until) if start <= one.start < stop]
            answered = answers.clusters_of(store.records, part.nominal, part.control, part.task.metric)
            first = answered.on([name for name in answered.names if int(name) < stop])
            is_met = len(first.names) == stop and until.is_met(first)
            if is_met:
                break
        if not part.control:
            asked[part.length] = stop
        told = [r for r in store.records if r["kind"] == UNTIL.name and _place(r) == (part.nominal, part.control)]
        n_held = sum(int(name) < n for name in answered.names)
        ended = until.ended(n_held, n, is_met, length=part.nominal, control=part.control)
        if n_held >= stop and stopping.is_news(ended, stop, told):
            store.append(ended)


def _place(record: Record) -> tuple[int, str]:
    """Return the column of a record, and which of its controls it is of."""
    return record["length"], record["control"]


_Batch = tuple[Part, range]


def _contexts(batch: _Batch) -> list[tuple[int, str, int]]:
    """Return what the records of each context in a batch go under."""
    part, indices = batch
    return [(part.nominal, part.control, index) for index in indices]


def _n_tokens(batches: Sequence[_Batch]) -> int:
    return sum(part.n_tokens * len(indices) for part, indices in batches)


def _answered(
    model: LanguageModel, vocabulary: Vocabulary, part: Part, prompts: Sequence[Prompt], stops: set[int]
) -> Iterator[list[Record]]:
    """Yield the records of every prompt: one for each of its questions."""
    fills = [_fill(part, prompt) for prompt in prompts]
    if part.task.n_new:
        graded = _graded(model, vocabulary, part.task, prompts)
        for fill, prompt, grades in zip(fills, prompts, graded, strict=True):
            yield [
                {"fill": fill, "meta": _meta(question), **grade}
                for question, grade in zip(prompt.questions, grades, strict=True)
            ]
        return
    scores = _scored(model, prompts)
    for fill, prompt, mine in zip(fills, prompts, scores, strict=True):
        yield [
            {"fill": fill, "meta": _meta(question), **_facts(score, stops)}
            for question, score in zip(prompt.questions, mine, strict=True)
        ]


def _scored(model: LanguageModel, prompts: Sequence[Prompt]) -> list[list[Score]]:
    """Return the scores of all questions; contexts of one length are read side by side."""
    groups: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.context), []).append(number)
    scores: dict[int, list[Score]] = {}
    for numbers in groups.values():
        scores |= zip(numbers, model.score_prompts([prompts[number] for number in numbers]), strict=True)
    return [scores[number] for number in range(len(prompts))]


def _graded(
    model: LanguageModel, vocabulary: Vocabulary, task: Task, prompts: Sequence[Prompt]
) -> list[list[dict[str, Any]]]:
    """Return what the model wrote to every question, and its grades; questions of one length are read side by side."""
    lines = [
        (number, question, np.concatenate([prompt.context, question.query]).astype(np.int64))
        for number, prompt in enumerate(prompts)
        for question in prompt.questions
    ]
    groups: dict[int, list[int]] = {}
    for at, (_, _, ids) in enumerate(lines):
        groups.setdefault(len(ids), []).append(at)
    texts: dict[int, str] = {}
    for members in groups.values():
        written = model.generate([lines[at][2] for at in members], task.n_new)
        texts |= {at: vocabulary.text(ids).strip() for at, ids in zip(members, written, strict=True)}
    grades: list[list[dict[str, Any]]] = [[] for _ in prompts]
    for at, (number, question, _) in enumerate(lines):
        grades[number].append({"text": texts[at], "grade": task.grade(texts[at], question.meta)})
    return grades


def _facts(score: Score, stops: set[int]) -> Record:
    target, greedy = score.target.tolist(), score.greedy.tolist()
    first_error, kind = answers.error_kind(target, greedy, list(stops))
    record: Record = {
        "n_target": len(target),
        "hits": int(score.greedy_hits.sum()),
        "first_error": first_error,
        "error": kind,
        "nll": round(float(score.nll.astype(np.float64).sum()), 5),
    }
    if len(score.others):
        record |= {"best_other": round(float(score.others.min()), 5), "n_answers": 1 + len(score.others)}
    return record


def _meta(question: Question) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in question.meta.items()}


def _fill(part: Part, prompt: Prompt) -> float:
    """Return how much of its nominal length a prompt fills. Raises TaskError if that is too little, or too much."""
    longest = max(len(question) for question in prompt.questions)
    n_read = len(prompt.context) + longest + part.task.n_new
    fill = round(n_read / part.length, 4)
    if part.control in _SHORT_CONTROLS:
        return fill
    if not answers.LEAST_FILL <= fill <= 1:
        raise TaskError(
            f"a prompt of `{part.task}` fills {n_read} of {part.length} tokens",
            "a task has to fill its length; if it is one of this project, please report it",
        )
    return fill
