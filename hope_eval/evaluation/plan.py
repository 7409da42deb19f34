"""Plan: tokens, operations, memory and seconds of a run before it starts.

entries x models  ->  jobs                the measurements of the run, and their batches
batches           ->  forwards            as the model makes them, see `jobs.py`
forwards          ->  operations, bytes   from the shape of the model, see `cost.py`
forwards          ->  seconds             by a few short forwards on the device, or a stated throughput, see `speed.py`
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hope_eval.analysis import stopping
from hope_eval.evaluation import loop
from hope_eval.evaluation.cost import Shape, free_memory
from hope_eval.evaluation.jobs import JOBS, Choice, Cost, Drawn, Job, QuestionsJob, Subject
from hope_eval.evaluation.run import CommonLengths, Models, Options, measurement_of, prepare
from hope_eval.evaluation.speed import Speed, benchmark
from hope_eval.evaluation.suites import Entry
from hope_eval.lengths import lengths_text, short_length
from hope_eval.model.device import planned_device
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import Protocol
from hope_eval.runs.kinds import PPL


@dataclass(frozen=True)
class Plan:
    """Jobs, and the choice of each entry.

    jobs:    of each entry, one for each model.
    choices: None for an entry that a budget dropped.
    dropped: parts that a budget dropped, in words.
    """

    entries: tuple[Entry, ...]
    jobs: list[list[Job]]
    choices: list[Choice | None]
    dropped: list[str] = field(default_factory=list)

    @property
    def subjects(self) -> list[Subject]:
        """Models, each with its encoding."""
        return [job.subject for job in self.jobs[0]] if self.jobs else []

    def chosen_jobs(self) -> list[tuple[Job, Choice]]:
        """All jobs that were not dropped, entries first."""
        return [
            (job, choice)
            for jobs, choice in zip(self.jobs, self.choices, strict=True)
            if choice is not None
            for job in jobs
        ]

    def rows(self) -> list[dict[str, Any]]:
        """A row for loading each model, and one for each entry on it."""
        rows = []
        for subject in self.subjects:
            if subject.loading:
                cost = Cost(peak=subject.shape.n_bytes, seconds=subject.loading)
                rows.append(_row(subject, "loading", 0, cost))
        for job, choice in self.chosen_jobs():
            lengths, too_long = (
                ",".join(map(short_length, lengths)) for lengths in (job.in_tokens(choice), job.too_long(choice))
            )
            cost = job.cost(choice)
            rows.append(_row(job.subject, job.measurement.name, choice.n, cost, lengths, too_long))
        return rows

    def seconds(self, choices: Sequence[Choice | None] | None = None) -> float:
        """Seconds of all, or of another choice."""
        plan = self if choices is None else replace(self, choices=list(choices))
        loading = sum(subject.loading for subject in self.subjects)
        return loading + sum(job.cost(choice).seconds for job, choice in plan.chosen_jobs())

    def notes(self) -> list[str]:
        """Notes for the reader, one a line."""
        notes = []
        for subject in self.subjects:
            model, speed = subject.model, subject.speed
            notes.append(f"{model.name} {model.encoding}: {speed.about if speed else 'no throughput is stated'}")
        for job, choice in self.chosen_jobs():
            notes += job.holes(choice)
        if any(job.until for jobs in self.jobs for job in jobs):
            notes.append("upper bounds: with --until-ci, a length ends as soon as its interval is narrow enough")
        notes += self.dropped
        return list(dict.fromkeys(notes))


def planned(
    entries: Sequence[Entry], models: Models, options: Options, tflops: float | None = None, memory: float | None = None
) -> Plan:
    """The plan of measuring entries on models.

    models: loaded, and timed by a few short forwards; with the option `outline`, neither.
    tflops: of a device that is not timed; None: seconds are unknown.
    memory: bytes of the device; None: its free memory, if this machine has it.

    Raises any of the errors of this project.
    """
    stopping.check(options.until, [entry.samples for entry in entries])
    models.check()
    prepared = prepare(entries, options)
    common = CommonLengths()
    jobs: list[list[Job]] = [[] for _ in entries]
    drawn: dict[Any, Drawn] = {}
    start = time.perf_counter()
    for model in models.load():
        loading = 0.0 if models.is_outline else time.perf_counter() - start
        lengths = [common.of(entry, number, model.train_length) for number, (entry, _) in enumerate(prepared)]
        speed = Speed.stated(tflops * 1e12) if tflops else None
        subject = _subject(model, models, memory, speed, loading)
        if not models.is_outline:
            writes = any(getattr(entry.what, "n_new", 0) for entry in entries)
            rows_of = partial(loop.batch_size, subject.place)
            speed = benchmark(model, subject.shape, max(itertools.chain(*lengths)), writes, rows_of)
            subject = replace(subject, speed=speed)
        for number, (entry, material) in enumerate(prepared):
            begun = time.perf_counter()
            measurement = measurement_of(entry, material, model, lengths[number], options)
            job = JOBS[type(measurement)](subject, entry, measurement, options.until, setup=time.perf_counter() - begun)
            if isinstance(job, QuestionsJob):
                key = (number, lengths[number], model.tokenizer_fingerprint or id(model))
                job.drawn = drawn.setdefault(key, {})
            jobs[number].append(job)
        start = time.perf_counter()
    choices = [
        Choice(
            entry.all_lengths, max(job.measurement.n_samples for job in of_entry), entry.controls and options.controls
        )
        for (entry, _), of_entry in zip(prepared, jobs, strict=True)
    ]
    return Plan(tuple(entry for entry, _ in prepared), jobs, list(choices))


def _subject(
    model: LanguageModel, models: Models, memory: float | None, speed: Speed | None, loading: float
) -> Subject:
    """A model with its shape and memory, on the device of the plan."""
    outline = models.is_outline
    place = planned_device(models.how.get("device", "auto")) if outline else model.device
    shape = replace(Shape.of(model.module), full_logits=model.reading.head == "full")
    free = memory or free_memory(place, 0 if outline else shape.n_bytes)
    return Subject(model, shape, place.type, free, speed, loading)


def _row(
    subject: Subject, what: str, n_samples: int, cost: Cost, lengths: str = "", too_long: str = ""
) -> dict[str, Any]:
    return {
        "model": subject.model.name,
        "encoding": subject.model.encoding,
        "what": what,
        "lengths": lengths,
        "samples": n_samples,
        "forwards": round(cost.n_forwards),
        "tokens": round(cost.n_tokens),
        "flops": cost.operations,
        "weight_bytes": subject.shape.n_bytes,
        "peak_bytes": cost.peak,
        "free_bytes": subject.free,
        "too_long": too_long,
        "seconds": None if subject.speed is None else round(cost.seconds, 3),
    }


def commands(plan: Plan) -> list[tuple[list[str], bool]]:
    """Commands that measure a plan, and whether each takes the texts of a user.

    A command is a list of words, without models and their options. Of several entries, each uses the texts that it can;
    a command with one task refuses texts that it cannot use.
    """
    groups: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
    for entry, choice in zip(plan.entries, plan.choices, strict=True):
        if choice is None:
            continue
        grid = ("--lengths", lengths_text(choice.lengths), "--samples", str(choice.n))
        if isinstance(entry.what, Protocol):
            groups[True, (PPL, "--protocol", str(entry.what), *grid)] = []
        else:
            takes_texts = len(plan.entries) == 1 or entry.what.uses == "text"
            controls = () if choice.controls else ("--no-controls",)
            groups.setdefault((takes_texts, (entry.what.family, *grid, *controls)), []).append(str(entry))
    return [
        ([head[0], *itertools.chain(*(("--task", task) for task in tasks)), *head[1:]], takes_texts)
        for (takes_texts, head), tasks in groups.items()
    ]
