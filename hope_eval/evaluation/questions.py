"""Questions of a task on contexts of growing length, as a measurement of the loop.

    lengths -> series of contexts, controls too -> batches of contexts -> answers, scored or written and graded

Lengths ascend, controls come first: a model that fails with nothing else in the context shows it at once.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hope_eval.analysis import answers
from hope_eval.analysis.intervals import Clusters
from hope_eval.analysis.rows import RunTable
from hope_eval.analysis.stopping import Until
from hope_eval.data.vocabulary import Vocabulary
from hope_eval.encodings import facts_of
from hope_eval.errors import ContextTooShortError, TaskError
from hope_eval.evaluation.answering import answered
from hope_eval.evaluation.loop import Holdings, Measurement, NewRecord, Series, batch_size, identity_of
from hope_eval.evaluation.material import NOTHING, Material, vocabulary_for
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.tokens import PrefixPolicy
from hope_eval.runs.columns import Record
from hope_eval.runs.records.answer import ANSWER
from hope_eval.runs.records.infeasible import INFEASIBLE
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.store import RunStore
from hope_eval.task import Prompt, Task, check_prompt, generator

# Questions of a column without --samples: if each is on its own context, its interval reaches at most 5 points to
# either side.
N_QUESTIONS = 400

# Controls are asked on one context in this many: their scores are rarely near 0.5, so their intervals are narrow.
_CONTROL_SHARE = 4
_FEWEST_CONTROLS = 4

# A step of generation takes as long for many prompts as for few, so generation batches are this many times larger.
_WRITTEN_TOGETHER = 4

# Controls with the shortest prompts.
_SHORT_CONTROLS = ("ceiling", "last")


@dataclass(frozen=True)
class Contexts(Series):
    """Contexts of one length, or of one of its controls; the control `ceiling` has one series for all lengths."""

    task: Task
    control: str
    length: int

    @property
    def nominal(self) -> int:
        """The length in its records: 0 for a ceiling, which serves all lengths."""
        return 0 if self.control == "ceiling" else self.length

    @property
    def n_tokens(self) -> int:
        """Tokens of a prompt, as progress counts them; short ones are not counted."""
        return 0 if self.control in _SHORT_CONTROLS else self.length


# The least length of all contexts, by tokenizer, task and texts.
_tokens_needed: dict[tuple[object, ...], int] = {}

# Contexts that are asked about together, by their numbers.
Batch = tuple[Contexts, range]


@dataclass(frozen=True)
class Questions(Measurement[Contexts, Batch]):
    """Questions of a task, in the tokens of a model.

    lengths:    columns of the table.
    n_contexts: most contexts of each length.
    controls:   whether the controls of the task are asked too.
    needed:     tokens that every context fits into; shorter lengths stay empty in the table.
    max_length: the end of the model's learned position table; None: it has none. Longer lengths stay empty, too.
    """

    task: Task
    lengths: tuple[int, ...]
    n_contexts: int
    controls: bool
    needed: int
    vocabulary: Vocabulary
    material: Material
    seed: int
    max_length: int | None

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        task: Task,
        lengths: Sequence[int],
        material: Material = NOTHING,
        *,
        n_contexts: int | None = None,
        controls: bool = True,
        seed: int = 0,
        chat: bool | None = None,
        prefix: PrefixPolicy = "auto",
    ) -> "Questions":
        """Find the number of contexts, and the lengths that are long enough.

        n_contexts: of each length; None: as many as make 400 questions.
        chat:       whether prompts go into the chat template; None: if the task is in words and the tokenizer has one.

        Raises LengthError, OptionError or TaskError.
        """
        model.check_length(min(lengths))
        vocabulary = vocabulary_for(model.tokenizer, task, material, chat, prefix, seed)
        readable = [length for length in lengths if model.max_length is None or length <= model.max_length]
        n = n_contexts or default_contexts(task, vocabulary, readable, seed)
        shared = (model.tokenizer_fingerprint, material.fingerprint) if model.tokenizer_fingerprint else None
        needed = tokens_needed(task, vocabulary, n, seed, shared)
        return cls(task, tuple(lengths), n, controls, needed, vocabulary, material, seed, model.max_length)

    @property
    def name(self) -> str:
        """The task."""
        return str(self.task)

    @property
    def readable(self) -> list[int]:
        """Lengths that the model has positions for."""
        return [length for length in self.lengths if self.max_length is None or length <= self.max_length]

    @cached_property
    def series(self) -> Sequence[Contexts]:
        """Contexts of each length that is long enough, and of its controls; those of the ceiling come first."""
        task, lengths = self.task, [length for length in self.readable if length >= self.needed]
        n = self.n_contexts
        controls = [control for control in task.controls if self.controls or control == task.above]
        series = []
        if "ceiling" in controls and lengths:
            series.append(Contexts(_n_controls(n), _controlled(task, "ceiling"), "ceiling", lengths[-1]))
        for length in lengths:
            series.append(Contexts(n, task, "", length))
            series += [
                Contexts(n if control == task.above else _n_controls(n), _controlled(task, control), control, length)
                for control in controls
                if control != "ceiling"
            ]
        return series

    @property
    def n_samples(self) -> int:
        """Contexts of each length."""
        return self.n_contexts

    def smaller(self, lengths: Sequence[int], n_samples: int, controls: bool) -> "Questions":
        """The same with fewer lengths or contexts, or without controls."""
        return replace(self, lengths=tuple(lengths), n_contexts=n_samples, controls=controls)

    def identity(self, model: LanguageModel) -> dict[str, Any]:
        """Everything that decides the records."""
        return {
            "task": str(self.task),
            "version": self.task.version,
            "answers": answers.VERSION,
            **identity_of(model),
            "task_fingerprint": self.task.fingerprint,
            "prefix_token": self.vocabulary.start[0] if self.vocabulary.start else None,
            "chat": self.vocabulary.chat,
            **self._further(model),
            "data": self.material.fingerprint,
            "seed": self.seed,
        }

    def _further(self, model: LanguageModel) -> dict[str, Any]:
        """Facts that no fingerprint holds: the chat template, and ends of answers besides the tokenizer's EOS."""
        ends = model.end_tokens() if self.task.n_new else []
        has_others = any(token != getattr(model.tokenizer, "eos_token_id", None) for token in ends)
        template = {"template": self.vocabulary.template} if self.vocabulary.chat else {}
        return template | ({"end_tokens": ends} if has_others else {})

    def provenance(self, model: LanguageModel) -> dict[str, Any]:
        """Facts of task, texts and model."""
        task, vocabulary = self.task, self.vocabulary
        start = "".join(map(model.token_text, vocabulary.start)) if vocabulary.start else "none"
        return {
            "family": task.family,
            "metric": task.metric,
            "one_line": task.one_line,
            "source": task.source,
            "controls": list(task.controls),
            "above": task.above,
            "arms": task.arms,
            "readers": list(task.readers),
            "shots_grow": task.shots_grow,
            "encoding": facts_of(model.encoding),
            "data": self.material.name,
            "model_notes": list(model.notes),
            "about": f"{model.about}, {'chat template' if vocabulary.chat else f'prefix {start}'}",
            "tokenizer": model.tokenizer_fingerprint,
        }

    def holdings(self, store: RunStore) -> "HeldAnswers":
        """Answers of a run."""
        return HeldAnswers(store, self)

    def batches(
        self, series: Contexts, start: int, stop: int, device_type: str, limit: float = math.inf
    ) -> Sequence[Batch]:
        """Contexts that are read side by side; short controls are below every limit."""
        if series.n_tokens >= limit:
            return []
        n_read = max(1, series.length // _WRITTEN_TOGETHER) if self.task.n_new else series.length
        size = batch_size(device_type, n_read)
        return [(series, range(at, min(at + size, stop))) for at in range(start, stop, size)]

    def n_tokens(self, batch: Batch) -> int:
        """Nominal lengths of the prompts."""
        series, numbers = batch
        return series.n_tokens * len(numbers)

    def prompt(self, series: Contexts, number: int) -> Prompt:
        """The context of that number, and its questions."""
        rng = generator("test", str(series.task), self.seed, number)
        return check_prompt(series.task, series.task.prompt(self.vocabulary, series.length, rng))

    def read(self, model: LanguageModel, batch: Batch) -> Iterator[NewRecord]:
        """Ask all questions on the contexts."""
        series, numbers = batch
        prompts = [self.prompt(series, number) for number in numbers]
        fills = [_fill(series, prompt) for prompt in prompts]
        answers_of = answered(model, self.vocabulary, series.task, prompts)
        for number, fill, of_context in zip(numbers, fills, answers_of, strict=True):
            context = series.nominal, series.control, number
            for question, facts in enumerate(of_context):
                yield ANSWER.record(context, question, len(of_context), {"fill": fill, **facts}), {}

    def lost(self, batch: Batch, error: OutOfMemory) -> tuple[Record, int]:
        """The length that did not fit."""
        length = batch[0].length
        return OOM.of_length(length, error.figures, str(error)), length

    def shortened(self, unread: Sequence[Batch], recut: Sequence[Batch]) -> list[Batch]:
        """All but the first, if they are short enough; a short control is not asked again."""
        shorter = set(recut)
        return [batch for batch in list(unread)[1:] if batch in shorter]

    def n_most(self, series: Contexts, n_measured: Mapping[Contexts, int]) -> int:
        """Contexts of a control: a share of those that were asked at its length, or all of them."""
        asked = [n for other, n in n_measured.items() if (other.length, other.control) == (series.length, "")]
        wanted = asked if series.control == series.task.above else list(map(_n_controls, asked))
        return min([series.n, *wanted])

    def place(self, series: Contexts) -> dict[str, Any]:
        """Length and control."""
        return {"length": series.nominal, "control": series.control}

    def table(self, runs: Sequence[RunStore], by: str = "") -> RunTable:
        """Table at the lengths of this measurement, over as many contexts."""
        return answers.table(runs, self.lengths, self.n_contexts, by)


class HeldAnswers(Holdings[Contexts, Batch]):
    """Answers that a run holds of a measurement."""

    def __init__(self, store: RunStore, measurement: Questions) -> None:
        self.store = store
        self.measurement = measurement
        self._keys: set[Hashable] = set()
        self._n_answered: Counter[Hashable] = Counter()
        self._whole: set[Hashable] = set()
        for record in store.records:
            store.check_record(record)
            self._index(record)

    def missing(self, batch: Batch) -> list[Hashable]:
        """Contexts with an answer that the run lacks."""
        series, numbers = batch
        contexts = [(series.nominal, series.control, number) for number in numbers]
        return [context for context in contexts if context not in self._whole]

    def add(self, record: Record, **arrays: np.ndarray) -> None:
        """Append a record, unless the run holds it; records that may repeat are always appended."""
        if self.store.kind.key(record) not in self._keys:
            self.store.append(record, **arrays)
            self._index(record)

    def _index(self, record: Record) -> None:
        kind = self.store.kind.record_kind(record)
        key, context = kind.key(record), kind.piece(record)
        if kind.may_repeat or key in self._keys:
            return
        self._keys.add(key)
        if context is not None:
            self._n_answered[context] += 1
            if self._n_answered[context] == kind.n_of_piece(record):
                self._whole.add(context)

    def first_records(self) -> Iterator[NewRecord]:
        """Lengths that are too short for the task."""
        needed = self.measurement.needed
        for length in self.measurement.readable:
            if length < needed:
                yield INFEASIBLE.record(length, needed), {}

    def is_known(self, series: Contexts, n: int, until: Until) -> bool:
        """Whether the run holds the first n contexts, and their interval of the main metric is narrow enough."""
        answered = self._answered(series)
        first = answered.on([name for name in answered.names if int(name) < n])
        return len(first.names) == n and until.is_met(first)

    def n_held(self, series: Contexts, n: int, n_most: int, limit: float) -> int:
        """Contexts below `n_most` that the run holds with all their answers."""
        return sum(int(name) < n_most for name in self._answered(series).names)

    def _answered(self, series: Contexts) -> Clusters:
        return answers.clusters_of(self.store.records, series.nominal, series.control, series.task.metric)


def default_contexts(task: Task, vocabulary: Vocabulary, lengths: Sequence[int], seed: int) -> int:
    """Contexts that make 400 questions."""
    for length in lengths:
        try:
            prompt = task.prompt(vocabulary, length, generator("test", str(task), seed, 0))
        except ContextTooShortError:
            continue
        return math.ceil(N_QUESTIONS / len(prompt.questions))
    return 1


def tokens_needed(task: Task, vocabulary: Vocabulary, n: int, seed: int, shared: Hashable = None) -> int:
    """The least length that all of n prompts can be put into.

    shared: names the tokenizer and the texts; models that share them share the result. None: the result is not kept.
    """
    key = (shared, task, task.n_new, *vocabulary.start, None, *vocabulary.end, n, seed)
    if shared is None or key not in _tokens_needed:
        _tokens_needed[key] = max((_needed(task, vocabulary, seed, index) for index in range(n)), default=0)
    return _tokens_needed[key]


def _n_controls(n: int) -> int:
    """Number of contexts of a control whose length has n."""
    return min(n, max(_FEWEST_CONTROLS, n // _CONTROL_SHARE))


def _needed(task: Task, vocabulary: Vocabulary, seed: int, index: int) -> int:
    """The least length that a sample can be put into: texts and keys differ in length from sample to sample."""
    try:
        task.prompt(vocabulary, 1, generator("test", str(task), seed, index))
    except ContextTooShortError as error:
        return error.needed
    return 1


def _controlled(task: Task, control: str) -> Task:
    return replace(task, control=control)  # type: ignore[call-arg]


def _fill(series: Contexts, prompt: Prompt) -> float:
    """Share of its nominal length that a prompt fills. Raises TaskError if that is too little, or too much."""
    longest = max(len(question) for question in prompt.questions)
    n_read = len(prompt.context) + longest + series.task.n_new
    fill = round(n_read / series.length, 4)
    if series.control in _SHORT_CONTROLS:
        return fill
    if not answers.LEAST_FILL <= fill <= 1:
        raise TaskError(
            f"a prompt of `{series.task}` fills {n_read} of {series.length} tokens",
            "a task must fill its length; please report it if this project has the task",
        )
    return fill
