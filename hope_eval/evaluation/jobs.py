"""Jobs: a measurement on a model, and the cost of any choice of its lengths, samples and controls.

    batches    those of the loop
    forwards   of a batch, as the model makes them: windows side by side, copies of contexts, steps of generation
    cost       tokens, operations, memory and seconds of forwards

A few prompts of each length are drawn; the others are assumed to have the same lengths, in turn.
"""

import itertools
import statistics
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hope_eval.analysis.stopping import Until
from hope_eval.evaluation.cost import Forward, Shape
from hope_eval.evaluation.loop import Measurement
from hope_eval.evaluation.perplexity import Perplexity
from hope_eval.evaluation.questions import Contexts, Questions
from hope_eval.evaluation.speed import Speed
from hope_eval.evaluation.suites import Entry
from hope_eval.lengths import Lengths, resolved, short_length
from hope_eval.model.contexts import branches_of, contexts_copied
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Prompt

# Prompts of each length and control that are drawn, at least, and their tokens.
_N_DRAWN, _TOKENS_DRAWN = 4, 1 << 19


@dataclass(frozen=True)
class Subject:
    """A model in a plan.

    place:   the type of its device, or of the device in the plan.
    free:    bytes that weights and forwards may take; None: unknown.
    speed:   None: unknown.
    loading: seconds of loading it.
    """

    model: LanguageModel
    shape: Shape
    place: str
    free: float | None
    speed: Speed | None
    loading: float = 0.0

    def fits(self, forward: Forward) -> bool:
        """Whether a forward fits in memory."""
        return self.free is None or self.n_bytes(forward) <= self.free

    def n_bytes(self, forward: Forward) -> int:
        """Bytes of the weights and of a forward."""
        return self.shape.n_bytes + self.shape.memory(forward, self.place)


@dataclass
class Cost:
    """Cost of forwards.

    peak: bytes, including the weights.
    """

    n_forwards: float = 0
    n_tokens: float = 0
    operations: float = 0
    peak: int = 0
    seconds: float = 0

    def add(self, subject: Subject, forward: Forward, n: int) -> None:
        """Add n forwards of a kind."""
        self.n_forwards += n
        self.n_tokens += n * forward.n_tokens
        self.operations += n * sum(subject.shape.operations(forward))
        if subject.speed is not None:
            self.seconds += n * subject.speed.seconds(subject.shape, forward)
        # A batch that does not fit is halved.
        while forward.rows > 1 and not subject.fits(forward):
            rows = forward.rows // 2
            forward = replace(forward, rows=rows, n_scored=forward.n_scored * rows // forward.rows)
        self.peak = max(self.peak, subject.n_bytes(forward))


@dataclass(frozen=True)
class Choice:
    """The part of an entry that is measured: lengths, samples of each, and whether its controls are measured."""

    lengths: Lengths
    n: int
    controls: bool = True


@dataclass
class Job(ABC):
    """An entry on a model.

    setup:  seconds of preparing it.
    """

    subject: Subject
    entry: Entry
    measurement: Measurement[Any, Any]
    until: Until | None = None
    setup: float = 0.0

    def in_tokens(self, choice: Choice) -> tuple[int, ...]:
        """Lengths of a choice that are read."""
        lengths = self.measurement.lengths
        if self.entry.lengths is None:
            # All models are read at the lengths of the first.
            wanted = {lengths[self.entry.all_lengths.index(length)] for length in choice.lengths}
            return tuple(length for length in lengths if length in wanted)
        return resolved(choice.lengths, self.subject.model.train_length)

    def batches(self, choice: Choice) -> Iterator[Any]:
        """Batches of a choice, as the loop reads them when nothing ends early; lengths that do not fit are left out."""
        measurement = self.measurement.smaller(self.in_tokens(choice), choice.n, choice.controls)
        limit = min(self.too_long(choice), default=float("inf"))
        return measurement.all_batches(self.subject.place, self.until, limit)

    @abstractmethod
    def forwards(self, choice: Choice) -> Counter[Forward]:
        """Forwards of a choice, as the loop makes them."""

    def other_seconds(self, choice: Choice) -> float:
        """Seconds besides forwards."""
        return 0.0

    def cost(self, choice: Choice) -> Cost:
        """Cost of a choice."""
        cost, forwards = Cost(), self.forwards(choice)
        for forward, n in forwards.items():
            cost.add(self.subject, forward, n)
        if self.subject.speed is not None:
            cost.seconds += self.subject.speed.beforehand(forwards) + self.other_seconds(choice)
        return cost

    def too_long(self, choice: Choice) -> dict[int, int]:
        """Lengths that do not fit in memory, and the bytes that they need."""
        forwards = {
            length: Forward("score", 1, length, n_scored=length)
            for length in self.in_tokens(choice)
            if self.measurement.max_length is None or length <= self.measurement.max_length
        }
        return {
            length: self.subject.n_bytes(forward)
            for length, forward in forwards.items()
            if not self.subject.fits(forward)
        }

    def holes(self, choice: Choice) -> Iterator[str]:
        """Notes on lengths that are left out: too long for memory, or for the model."""
        model, free = self.subject.model, self.subject.free
        for length, n_bytes in self.too_long(choice).items():
            yield (
                f"{model.name} does not fit at {short_length(length)}: it takes {n_bytes / 2**30:,.1f} GiB of "
                f"{(free or 0) / 2**30:,.1f}; left out"
            )
        for length in self.in_tokens(choice):
            if model.max_length is not None and length > model.max_length:
                yield f"{model.name} has {model.max_length} positions: {short_length(length)} is left out"

    def score(self, rows: int, n_read: int, n_scored: int) -> Forward:
        """A forward that scores so many tokens of all rows; full logits are made of all tokens read."""
        full = self.subject.model.reading.head == "full"
        return Forward("score", rows, n_read, n_scored=rows * n_read if full else n_scored)


@dataclass
class PerplexityJob(Job):
    """Perplexity of documents: a forward for each batch of windows."""

    def forwards(self, choice: Choice) -> Counter[Forward]:  # noqa: D102
        return Counter(
            self.score(len(batch), batch[0][1].n_read, sum(window.n_scored for _, window in batch))
            for batch in self.batches(choice)
        )


# Some prompts of each control and length, and the seconds that one takes.
Drawn = dict[tuple[str, int], tuple[list[Prompt], float]]


@dataclass
class QuestionsJob(Job):
    """Questions of a task: contexts, and answers after them.

    drawn: shared by models of one tokenizer.
    """

    measurement: Questions
    drawn: Drawn = field(default_factory=dict)

    def prompts_of(self, series: Contexts) -> tuple[list[Prompt], float]:
        """Some prompts of a series, and the seconds that one takes."""
        key = (series.control, series.length)
        if key not in self.drawn:
            prompts, seconds = [], []
            for number in range(min(series.n, max(_N_DRAWN, _TOKENS_DRAWN // series.length))):
                start = time.perf_counter()
                prompts.append(self.measurement.prompt(series, number))
                seconds.append(time.perf_counter() - start)
            self.drawn[key] = prompts, statistics.median(seconds)
        return self.drawn[key]

    def other_seconds(self, choice: Choice) -> float:
        """Seconds of making prompts."""
        return self.setup + sum(self.prompts_of(series)[1] * len(numbers) for series, numbers in self.batches(choice))

    def forwards(self, choice: Choice) -> Counter[Forward]:  # noqa: D102
        forwards: Counter[Forward] = Counter()
        for series, batches in itertools.groupby(self.batches(choice), key=lambda batch: batch[0]):
            prompts, _ = self.prompts_of(series)
            # Many batches are alike: each kind is counted once.
            alike = Counter(tuple(number % len(prompts) for number in numbers) for _, numbers in batches)
            for chosen, n in alike.items():
                for forward, k in Counter(self._forwards_of([prompts[number] for number in chosen])).items():
                    forwards[forward] += n * k
        return forwards

    def holes(self, choice: Choice) -> Iterator[str]:
        """Also notes on lengths too short for the task, and on generation: its cost is an upper bound."""
        yield from super().holes(choice)
        name, needed, n_new = self.measurement.name, self.measurement.needed, self.measurement.task.n_new
        for length in self.in_tokens(choice):
            if length < needed and (self.measurement.max_length is None or length <= self.measurement.max_length):
                yield f"{name} needs {needed} tokens: {short_length(length)} is left out"
        if n_new:
            yield f"{name}: a model that writes fewer than {n_new} tokens takes less"

    def _forwards_of(self, prompts: Sequence[Prompt]) -> Iterator[Forward]:
        """Forwards of a batch."""
        n_new = self.measurement.task.n_new
        if n_new:
            lines = Counter(len(p.context) + len(question.query) for p in prompts for question in p.questions)
            for length, rows in lines.items():
                yield Forward("context", rows, length, n_scored=rows)
                for step in range(1, n_new):
                    yield Forward("step", rows, 1, length + step - 1, n_scored=rows)
            return
        groups: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(len(prompt.context), []).append(prompt)
        for length, group in groups.items():
            yield from self._after_contexts(group, length)

    def _after_contexts(self, group: Sequence[Prompt], length: int) -> Iterator[Forward]:
        subject, shape = self.subject, self.subject.shape
        context = Forward("context", len(group), length - 1)
        answer_alone = Forward("answers", 1, 1, length - 1, n_scored=1, n_beside=length - 1)
        if not (subject.model.reading.keeps_contexts and length > 1 and subject.fits(answer_alone)):
            for prompt in group:
                for question in prompt.questions:
                    for answer in question.answers:
                        yield self.score(1, length + len(question.query) + len(answer), len(answer))
            return
        yield context
        kept = context.n_tokens * shape.kept_token_bytes
        free = None
        if subject.place == "cuda" and subject.free is not None:
            free = subject.free - shape.n_bytes - kept
        branches = branches_of(group)
        size = len(group) * contexts_copied(subject.place, kept, free)
        for start in range(0, len(branches), size):
            together = branches[start : start + size]
            yield Forward(
                "answers",
                len(together),
                max(len(branch.query) + len(branch.answer) for branch in together),
                length - 1,
                n_scored=sum(len(branch.answer) + len(branch.others) for branch in together),
                n_beside=context.n_tokens,
            )


# The job of each kind of measurement, which counts its forwards.
JOBS: dict[type[Measurement[Any, Any]], type[Job]] = {Perplexity: PerplexityJob, Questions: QuestionsJob}
