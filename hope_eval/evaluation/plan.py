"""What a run takes, before it starts: tokens, operations, memory, seconds.

    entries x models  ->  forwards            as the loops would make them: windows, batches, copies of contexts
    forwards          ->  operations, bytes   from the shape of the model (see `model/cost.py`)
    forwards          ->  seconds             by a few short forwards on the device, or by a throughput that is stated

Prompts are drawn for a few contexts of each length; the others are taken to be as long as these, in turn.

A budget is kept to in this order: fewer samples of everything, down to a quarter and to five of them; then without the
longest lengths; then without controls. What that makes room for is filled with samples again.
"""

import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hope_eval.analysis import stopping
from hope_eval.analysis.stopping import Until
from hope_eval.errors import OptionError
from hope_eval.evaluation import perplexity as evaluate
from hope_eval.evaluation import questions as ask
from hope_eval.evaluation.cost import Forward, Shape, Speed, benchmark, free_memory
from hope_eval.evaluation.run import Models, Options, with_material
from hope_eval.evaluation.suites import Entry
from hope_eval.lengths import Lengths, lengths_text, resolved, short_length
from hope_eval.model import checkpoint
from hope_eval.model.contexts import branches_of, contexts_copied
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import Protocol
from hope_eval.runs.kinds import PPL
from hope_eval.runs.token_store import TokenizedDocument
from hope_eval.task import Prompt, Task

# Prompts that are drawn of each length and control, at least: as many as have so many tokens. Others are taken to be as
# long as these, in turn.
_N_DRAWN, _TOKENS_DRAWN = 4, 1 << 19

# What a budget leaves of the samples: a quarter, and no fewer than five.
_FLOOR_SHARE = 4
_FEWEST_SAMPLES = 5


@dataclass(frozen=True)
class Subject:
    """A model of which a run is planned.

    free:    bytes that weights and forwards may take; None: nobody told.
    speed:   None: nobody told.
    loading: seconds that it took to load.
    """

    model: LanguageModel
    shape: Shape
    place: str
    free: float | None
    speed: Speed | None
    loading: float = 0.0

    def fits(self, forward: Forward) -> bool:
        """Whether a forward fits into memory."""
        return self.free is None or self.shape.n_bytes + self.shape.memory(forward, self.place) <= self.free


@dataclass
class Cost:
    """What forwards take.

    peak: bytes, of weights and all.
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
        self.peak = max(self.peak, subject.shape.n_bytes + subject.shape.memory(forward, subject.place))


@dataclass(frozen=True)
class Choice:
    """What of an entry is measured: lengths, samples of each, and whether its controls are."""

    lengths: Lengths
    n: int
    controls: bool = True


@dataclass
class Job:
    """An entry on a model: forwards and cost of any choice of lengths, samples and controls."""

    subject: Subject
    entry: Entry
    lengths: tuple[int, ...]
    until: Until | None = None
    notes: list[str] = field(default_factory=list)

    def in_tokens(self, choice: Choice) -> tuple[int, ...]:
        """Return those lengths of a choice that are read."""
        if self.entry.lengths is Entry.lengths:
            # All models are read at the lengths of the first.
            wanted = {self.lengths[self.entry.lengths.index(one)] for one in choice.lengths}
            return tuple(length for length in self.lengths if length in wanted)
        return resolved(choice.lengths, self.subject.model.train_length)

    def forwards(self, choice: Choice) -> Counter[Forward]:
        """Return the forwards of a choice, as the loop would make them."""
        raise NotImplementedError

    def other_seconds(self, choice: Choice) -> float:
        """Return seconds of what is no forward: making prompts."""
        return 0.0

    def cost(self, choice: Choice) -> Cost:
        """Return what a choice takes."""
        cost, forwards = Cost(), self.forwards(choice)
        for forward, n in forwards.items():
            cost.add(self.subject, forward, n)
        if self.subject.speed is not None:
            cost.seconds += self.subject.speed.beforehand(forwards) + self.other_seconds(choice)
        return cost

    def too_long(self, choice: Choice) -> dict[int, int]:
        """Return the lengths that do not fit into memory, and the bytes that they would take."""
        model, shape = self.subject.model, self.subject.shape
        found = {}
        for length in self.in_tokens(choice):
            if model.max_length is None or length <= model.max_length:
                forward = Forward("score", 1, length, n_scored=length)
                if not self.subject.fits(forward):
                    found[length] = shape.n_bytes + shape.memory(forward, self.subject.place)
        return found

    def readable(self, choice: Choice) -> list[int]:
        """Return the lengths that are in the model's positions, and in memory."""
        model = self.subject.model
        model.check_length(min(self.in_tokens(choice)))
        too_long = self.too_long(choice)
        return [
            length
            for length in self.in_tokens(choice)
            if length not in too_long and (model.max_length is None or length <= model.max_length)
        ]

    def score(self, rows: int, n_read: int, n_scored: int) -> Forward:
        """Return a forward that scores so many tokens of all rows; full logits are logits of all that is read."""
        full = self.subject.model.reading.head == "full"
        return Forward("score", rows, n_read, n_scored=rows * n_read if full else n_scored)


@dataclass
class PerplexityJob(Job):
    """Perplexity of documents.

    documents: as many as are read at most.
    """

    protocol: Protocol = field(kw_only=True)
    documents: list[TokenizedDocument] = field(kw_only=True)

    def forwards(self, choice: Choice) -> Counter[Forward]:  # noqa: D102
        subject = self.subject
        readable = self.readable(choice)
        if not readable:
            return Counter()
        cells = self.protocol.cells(self.in_tokens(choice))
        cells = [cell for cell in cells if subject.model.max_length is None or cell.length <= subject.model.max_length]
        limit = min(self.too_long(choice), default=math.inf)
        documents = self.documents[: choice.n]
        batches = itertools.chain.from_iterable(
            evaluate.read_side_by_side(subject.place, subject.model.nested_safe, documents[start:stop], cells, limit)
            for start, stop in stopping.stages(len(documents), self.until)
        )
        return Counter(
            self.score(len(batch), batch[0][1].n_read, sum(window.n_scored for _, window in batch)) for batch in batches
        )


@dataclass
class Drawn:
    """What was drawn of a task, for all models of one tokenizer.

    needed:  the least length of the task.
    setup:   seconds until then.
    prompts: by control and length, some of them, and the seconds that one takes.
    """

    needed: int
    setup: float
    prompts: dict[tuple[str, int], tuple[list[Prompt], float]] = field(default_factory=dict)


@dataclass
class TaskJob(Job):
    """Questions of a task."""

    task: Task = field(kw_only=True)
    drawn: Drawn = field(kw_only=True)
    draw: Callable[[ask.Part], tuple[list[Prompt], float]] = field(kw_only=True)

    def parts(self, choice: Choice) -> list[ask.Part]:
        """Return what is asked."""
        lengths = [length for length in self.readable(choice) if length >= self.drawn.needed]
        return ask.parts_of(self.task, lengths, choice.n, choice.controls)

    def prompts_of(self, part: ask.Part) -> tuple[list[Prompt], float]:
        """Return some prompts of a part, and the seconds that one takes."""
        key = (part.control, part.length)
        if key not in self.drawn.prompts:
            self.drawn.prompts[key] = self.draw(part)
        return self.drawn.prompts[key]

    def other_seconds(self, choice: Choice) -> float:  # noqa: D102
        return self.drawn.setup + sum(part.n * self.prompts_of(part)[1] for part in self.parts(choice))

    def forwards(self, choice: Choice) -> Counter[Forward]:  # noqa: D102
        found: Counter[Forward] = Counter()
        for part in self.parts(choice):
            prompts, _ = self.prompts_of(part)
            # Many batches are alike: they are looked at once.
            alike = Counter(
                tuple(i % len(prompts) for i in batch) for batch in part.batches(self.subject.place, self.until)
            )
            for numbers, n in alike.items():
                for forward, k in Counter(self._asked([prompts[number] for number in numbers])).items():
                    found[forward] += n * k
        return found

    def _asked(self, prompts: Sequence[Prompt]) -> Iterator[Forward]:
        """Yield the forwards of a batch."""
        if self.task.n_new:
            lines = Counter(len(p.context) + len(question.query) for p in prompts for question in p.questions)
            for length, rows in lines.items():
                yield Forward("context", rows, length, n_scored=rows)
                for step in range(1, self.task.n_new):
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
        one = Forward("answers", 1, 1, length - 1, n_scored=1, n_beside=length - 1)
        if not (subject.model.reading.keeps_contexts and length > 1 and subject.fits(one)):
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
            some = branches[start : start + size]
            yield Forward(
                "answers",
                len(some),
                max(len(branch.query) + len(branch.answer) for branch in some),
                length - 1,
                n_scored=sum(len(branch.answer) + len(branch.others) for branch in some),
                n_beside=context.n_tokens,
            )


@dataclass(frozen=True)
class Plan:
    """Jobs and what is chosen of each entry.

    choices: None for an entry that a budget dropped.
    """

    entries: tuple[Entry, ...]
    jobs: list[list[Job]]
    choices: list[Choice | None]
    dropped: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for loading each model, and one for each entry on it."""
        rows = []
        for job in self.jobs[0] if self.jobs else []:
            subject = job.subject
            if subject.loading:
                cost = Cost(peak=subject.shape.n_bytes, seconds=subject.loading)
                rows.append(_row(subject, "loading", "", 0, cost))
        for jobs, choice in zip(self.jobs, self.choices, strict=True):
            for job in jobs if choice else []:
                assert choice is not None
                lengths = ",".join(map(short_length, job.in_tokens(choice)))
                rows.append(_row(job.subject, _name(job.entry), lengths, choice.n, job.cost(choice)))
                rows[-1]["too_long"] = ",".join(map(short_length, job.too_long(choice)))
        return rows

    def seconds(self, choices: Sequence[Choice | None] | None = None) -> float:
        """Return the seconds of all, or of another choice."""
        chosen = self.choices if choices is None else choices
        loading = sum(job.subject.loading for job in self.jobs[0]) if self.jobs else 0.0
        return loading + sum(
            job.cost(choice).seconds
            for jobs, choice in zip(self.jobs, chosen, strict=True)
            if choice is not None
            for job in jobs
        )

    def notes(self) -> list[str]:
        """Return what a reader must know, one fact a line."""
        notes = []
        for job in self.jobs[0] if self.jobs else []:
            model, speed = job.subject.model, job.subject.speed
            notes.append(f"{model.name} {model.encoding}: {speed.about if speed else 'no throughput is stated'}")
        for jobs, choice in zip(self.jobs, self.choices, strict=True):
            for job in jobs if choice else []:
                assert choice is not None
                notes += [*job.notes, *_holes(job, choice)]
        if any(job.until for jobs in self.jobs for job in jobs):
            notes.append("upper bounds: with --until-ci, a length ends as soon as its interval is narrow enough")
        notes += self.dropped
        return list(dict.fromkeys(notes))

    def within(self, budget: float) -> "Plan":
        """Return what of the plan takes at most `budget` seconds.

        First there are fewer samples of everything, down to a quarter and to five of them; then the longest lengths
        go, of all entries alike and with the entries that are left without any; then the controls. What that makes room
        for is filled with samples again. Raises OptionError if the least of it takes longer.
        """
        if any(job.subject.speed is None for jobs in self.jobs for job in jobs):
            raise OptionError("a budget needs a speed", "state it with --tflops, or leave --no-benchmark out")
        if self.seconds() <= budget:
            return self
        least = math.inf
        for choices, words in self._smaller():
            at_floor = [_with_share(choice, 0) for choice in choices]
            least = self.seconds(at_floor)
            if least > budget:
                continue
            low, high = 0.0, 1.0
            if self.seconds(choices) <= budget:
                low = 1.0
            while high - low > 1 / 128 and low < 1:
                middle = (low + high) / 2
                fits = self.seconds([_with_share(choice, middle) for choice in choices]) <= budget
                low, high = (middle, high) if fits else (low, middle)
            chosen = [_with_share(choice, low) for choice in choices]
            fewer: dict[str, list[str]] = {}
            for entry, before, after in zip(self.entries, self.choices, chosen, strict=True):
                if before and after and after.n < before.n:
                    fewer.setdefault(f"{after.n} of {before.n} samples are left of ", []).append(_name(entry))
            words += [what + ", ".join(names) for what, names in fewer.items()]
            return replace(self, choices=chosen, dropped=[f"dropped for the budget: {'; '.join(words)}"])
        raise OptionError(
            f"the least of this plan takes {duration(least)}, and the budget is {duration(budget)}",
            "raise --budget, or name fewer models or tasks",
        )

    def _smaller(self) -> Iterator[tuple[list[Choice | None], list[str]]]:
        """Yield choices that take less and less, samples apart, and what they lack."""
        choices = list(self.choices)
        words: list[str] = []
        yield list(choices), []
        while True:
            lengths = [
                jobs[0].in_tokens(choice) if choice else () for jobs, choice in zip(self.jobs, choices, strict=True)
            ]
            if len(set(itertools.chain(*lengths))) < 2:
                break
            longest = max(itertools.chain(*lengths))
            for number, choice in enumerate(choices):
                if choice is not None and lengths[number][-1] == longest:
                    rest: Any = choice.lengths[:-1]
                    choices[number] = replace(choice, lengths=rest) if rest else None
                    if not rest:
                        words.append(f"{_name(self.entries[number])} at {short_length(longest)}, its only length")
            words.append(f"length {short_length(longest)}")
            yield list(choices), list(words)
        if any(choice is not None and choice.controls for choice in choices):
            yield [choice and replace(choice, controls=False) for choice in choices], [*words, "controls"]


def planned(
    entries: Sequence[Entry], models: Models, options: Options, tflops: float | None = None, memory: float | None = None
) -> Plan:
    """Return the plan of measuring entries on models.

    models: loaded, and timed by a few short forwards; with `outline` among how they are loaded, neither.
    tflops: of a device that is not timed; None: then seconds are not told.
    memory: bytes of the device; None: what is free on it, if it is there.

    Raises any of the errors of this project.
    """
    stopping.check(options.until, [entry.samples for entry in entries])
    models.check()
    outline = bool(models.how.get("outline"))
    prepared = [with_material(entry, options, strict=len(entries) == 1) for entry in entries]
    jobs: list[list[Job]] = [[] for _ in entries]
    counts = [0] * len(entries)
    lengths_of: dict[int, tuple[int, ...]] = {}
    drawn: dict[Any, Drawn] = {}
    start = time.perf_counter()
    for model in models.load():
        loading = 0.0 if outline else time.perf_counter() - start
        place = checkpoint.planned_device(models.how.get("device", "auto")) if outline else model.device
        lengths = []
        for number, (entry, _) in enumerate(prepared):
            lengths.append(resolved(entry.lengths, model.train_length))
            if entry.lengths is Entry.lengths:
                lengths[-1] = lengths_of.setdefault(number, lengths[-1])
        shape = replace(Shape.of(model.module), full_logits=model.reading.head == "full")
        free = memory or free_memory(place, 0 if outline else shape.n_bytes)
        speed = Speed.stated(tflops * 1e12) if tflops else None
        if not outline:
            writes = any(_writes(entry.what) for entry in entries)
            rows_of = partial(evaluate.batch_size, place.type)
            speed = benchmark(model, shape, max(itertools.chain(*lengths)), writes, rows_of)
        subject = Subject(model, shape, place.type, free, speed, loading)
        for number, (entry, material) in enumerate(prepared):
            key = (number, lengths[number], model.tokenizer_fingerprint or id(model))
            job, n = _job(subject, entry, material, lengths[number], options, drawn, key)
            jobs[number].append(job)
            counts[number] = max(counts[number], n)
        start = time.perf_counter()
    choices = [
        Choice(entry.lengths, n, entry.controls and options.controls)
        for (entry, _), n in zip(prepared, counts, strict=True)
    ]
    return Plan(tuple(entry for entry, _ in prepared), jobs, list(choices))


def _job(
    subject: Subject,
    entry: Entry,
    material: ask.Material,
    lengths: tuple[int, ...],
    options: Options,
    drawn: dict[Any, Drawn],
    key: Any,
) -> tuple[Job, int]:
    """Return the job of an entry on a model, and how many samples it has."""
    model = subject.model
    if isinstance(entry.what, Protocol):
        assert material.corpus is not None
        protocol = replace(entry.what, prefixed=model.prefix_token(options.prefix) is not None)
        needed = protocol.document_tokens(lengths)
        n = options.n_documents(entry)
        whole, least = protocol.reads_whole(lengths), options.min_documents
        chosen = evaluate.choose(model, material.corpus, needed, n, least, options.seed, whole=whole)
        job: Job = PerplexityJob(subject, entry, lengths, options.until, protocol=protocol, documents=chosen.documents)
        return job, len(chosen.documents)
    task, start = entry.what, time.perf_counter()
    vocabulary = ask.vocabulary_for(model.tokenizer, task, material, options.chat, options.prefix, options.seed)
    n = entry.samples or ask.default_contexts(task, vocabulary, lengths, options.seed)
    if key not in drawn:
        needed = ask.tokens_needed(task, vocabulary, n, options.seed)
        drawn[key] = Drawn(needed, time.perf_counter() - start)

    def draw(part: ask.Part) -> tuple[list[Prompt], float]:
        prompts, seconds = [], []
        for index in range(min(part.n, max(_N_DRAWN, _TOKENS_DRAWN // part.length))):
            begun = time.perf_counter()
            prompts.append(part.prompt(vocabulary, options.seed, index))
            seconds.append(time.perf_counter() - begun)
        return prompts, statistics.median(seconds)

    return TaskJob(subject, entry, lengths, options.until, task=task, drawn=drawn[key], draw=draw), n


def _writes(what: Task | Protocol) -> bool:
    return isinstance(what, Task) and what.n_new > 0


def _row(subject: Subject, what: str, lengths: str, n: int, cost: Cost) -> dict[str, Any]:
    known = subject.speed is not None
    return {
        "model": subject.model.name,
        "encoding": subject.model.encoding,
        "what": what,
        "lengths": lengths,
        "samples": n,
        "forwards": round(cost.n_forwards),
        "tokens": round(cost.n_tokens),
        "flops": cost.operations,
        "weight_bytes": subject.shape.n_bytes,
        "peak_bytes": cost.peak,
        "free_bytes": subject.free,
        "too_long": "",
        "seconds": round(cost.seconds, 3) if known else None,
    }


def _holes(job: Job, choice: Choice) -> Iterator[str]:
    """Yield what of a choice is not measured: too long for memory, too long for the model, too short for the task."""
    model, free = job.subject.model, job.subject.free
    for length, n_bytes in job.too_long(choice).items():
        yield (
            f"{model.name} does not fit at {short_length(length)}: it takes {n_bytes / 2**30:,.1f} GiB of "
            f"{(free or 0) / 2**30:,.1f}; left out"
        )
    for length in job.in_tokens(choice):
        if model.max_length is not None and length > model.max_length:
            yield f"{model.name} has {model.max_length} positions: {short_length(length)} is left out"
        elif isinstance(job, TaskJob) and length < job.drawn.needed:
            yield f"{_name(job.entry)} needs {job.drawn.needed} tokens: {short_length(length)} is left out"
    if isinstance(job, TaskJob) and job.task.n_new:
        yield f"{_name(job.entry)}: a model that writes fewer than {job.task.n_new} tokens takes less"


def _name(entry: Entry) -> str:
    return f"{PPL}:{entry.what}" if isinstance(entry.what, Protocol) else str(entry.what)


def _with_share(choice: Choice | None, share: float) -> Choice | None:
    """Return a choice with fewer samples: from the floor, at 0, to all of them, at 1."""
    if choice is None:
        return None
    floor = min(choice.n, max(_FEWEST_SAMPLES, math.ceil(choice.n / _FLOOR_SHARE)))
    return replace(choice, n=floor + math.floor(share * (choice.n - floor)))


def duration(seconds: float) -> str:
    """Return seconds as people write them: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def commands(plan: Plan) -> list[tuple[list[str], bool]]:
    """Return the commands that measure what is left of a plan, and whether each is given the texts of a user.

    They are words, without models, and without how those are read. Of several entries, each uses what texts it can;
    a command by itself refuses those that it cannot use.
    """
    groups: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
    for entry, choice in zip(plan.entries, plan.choices, strict=True):
        if choice is None:
            continue
        grid = ("--lengths", lengths_text(choice.lengths), "--samples", str(choice.n))
        if isinstance(entry.what, Protocol):
            groups[True, ("ppl", "--protocol", str(entry.what), *grid)] = []
        else:
            takes_texts = len(plan.entries) == 1 or entry.what.uses == "text"
            controls = () if choice.controls else ("--no-controls",)
            groups.setdefault((takes_texts, (entry.what.family, *grid, *controls)), []).append(str(entry.what))
    return [
        ([head[0], *itertools.chain(*(("--task", task) for task in tasks)), *head[1:]], takes_texts)
        for (takes_texts, head), tasks in groups.items()
    ]
