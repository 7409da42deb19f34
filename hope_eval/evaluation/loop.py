"""The one evaluation loop: measurement -> batches -> model -> records of a run.

    Measurement   perplexity of a protocol, or questions of a task
    Series        samples in random order: documents, or contexts of one length
    Holdings      the part of a measurement that a run holds
    measure       open or make the run, read the batches that it lacks, append their records as they come

Batches are cut before the run is read, and a batch is read whole or not at all. So a resumed run adds up the
same numbers in the same order as a run that was never interrupted.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np

from hope_eval.analysis import stopping
from hope_eval.analysis.rows import RunTable
from hope_eval.analysis.stopping import Until
from hope_eval.model.kernels import nll
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.scoring import LanguageModel
from hope_eval.runs.columns import Progress, Record
from hope_eval.runs.processes import ALONE, Ranks
from hope_eval.runs.provenance import Session, origin
from hope_eval.runs.records.until import UNTIL
from hope_eval.runs.store import RunStore

# A record, and its arrays by name.
NewRecord = tuple[Record, Mapping[str, np.ndarray]]

# Tokens of one forward. On a GPU, short inputs are read side by side; a CPU gains nothing from it.
BATCH_TOKENS = {"cuda": 32_768}


@dataclass(frozen=True)
class Series:
    """Samples in random order: the first n of them are measured, or fewer with `--until-ci`.

    n: samples at most.
    """

    n: int


SeriesT = TypeVar("SeriesT", bound=Series)
BatchT = TypeVar("BatchT")


class Holdings(ABC, Generic[SeriesT, BatchT]):
    """The part of a measurement that a run holds, kept up to date as records are added."""

    store: RunStore

    @abstractmethod
    def missing(self, batch: BatchT) -> list[Hashable]:
        """Pieces of a batch that the run lacks, named as shards name them."""

    @abstractmethod
    def add(self, record: Record, **arrays: np.ndarray) -> None:
        """Append a record, unless the run holds it."""

    def first_records(self) -> Iterable[NewRecord]:
        """Records that come before all others."""
        return ()

    def spoilt(self, batches: Sequence[BatchT], device_type: str, limit: float) -> list[BatchT]:
        """Batches to read besides these: a NaN in what they gave reaches numbers that a shorter read gives."""
        return []

    @abstractmethod
    def is_known(self, series: SeriesT, n: int, until: Until) -> bool:
        """Whether the interval over the first n samples of a series is narrow enough."""

    @abstractmethod
    def n_held(self, series: SeriesT, n: int, n_most: int, limit: float) -> int:
        """Samples of a series that the run holds, at most n_most: n just measured, perhaps more of earlier sessions.

        limit: reads of that many tokens or more do not fit in memory.
        """


class Measurement(ABC, Generic[SeriesT, BatchT]):
    """A measurement in the tokens of one model. It keeps no model: results outlive models.

    lengths:    columns of its table.
    max_length: the end of the model's learned position table; None: it has none. Longer lengths are holes in the table.
    """

    lengths: tuple[int, ...]
    max_length: int | None

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name for `hope-eval plan --task`."""

    @property
    @abstractmethod
    def series(self) -> Sequence[SeriesT]:
        """Series in the order in which they are measured."""

    @property
    @abstractmethod
    def n_samples(self) -> int:
        """Documents, or contexts of each length, at most."""

    @abstractmethod
    def smaller(self, lengths: Sequence[int], n_samples: int, controls: bool) -> Self:
        """The same with fewer lengths or samples, or without controls: the part of it in a plan."""

    @abstractmethod
    def identity(self, model: LanguageModel) -> dict[str, Any]:
        """Everything that decides the records. The run is named by its hash."""

    @abstractmethod
    def provenance(self, model: LanguageModel) -> dict[str, Any]:
        """Facts of the run for people and tables, besides its origin."""

    @abstractmethod
    def holdings(self, store: RunStore) -> Holdings[SeriesT, BatchT]:
        """The part of it that a run holds."""

    @abstractmethod
    def batches(
        self, series: SeriesT, start: int, stop: int, device_type: str, limit: float = math.inf
    ) -> Sequence[BatchT]:
        """Batches of the samples from `start` to `stop`, in the order in which they are read.

        limit: reads of that many tokens or more are left out.
        """

    @abstractmethod
    def n_tokens(self, batch: BatchT) -> int:
        """Tokens that a batch reads, as progress counts them."""

    @abstractmethod
    def read(self, model: LanguageModel, batch: BatchT) -> Iterable[NewRecord]:
        """Read a batch, and make its records. Raises OutOfMemory if it does not fit."""

    def order(self, batch: BatchT) -> tuple[Any, ...]:
        """The place of a batch among others of a stage: such tuples ascend; equal ones stay as they are."""
        return ()

    @abstractmethod
    def lost(self, batch: BatchT, error: OutOfMemory) -> tuple[Record, int]:
        """Record of a batch that did not fit in memory, and the limit that follows from it."""

    @abstractmethod
    def shortened(self, unread: Sequence[BatchT], recut: Sequence[BatchT]) -> list[BatchT]:
        """Batches to read in place of those that this process has not read yet, when the first did not fit.

        recut: all batches that the run lacks, cut anew below the limit. Some may be for other processes.
        """

    def sample_records(self, series: SeriesT, start: int, stop: int) -> Iterable[NewRecord]:
        """Records that come before those of the samples from `start` to `stop`."""
        return ()

    def n_most(self, series: SeriesT, n_measured: Mapping[SeriesT, int]) -> int:
        """Most samples of a series, given the number measured of the series before it."""
        return series.n

    def place(self, series: SeriesT) -> dict[str, Any]:
        """Fields that identify the `until` record of a series."""
        return {}

    @abstractmethod
    def table(self, runs: Sequence[RunStore], by: str = "") -> RunTable:
        """Table of a run, or of one run for each training seed.

        by: a fact of the questions that columns are broken down by, if there are any.
        """

    def all_batches(self, device_type: str, until: Until | None, limit: float = math.inf) -> Iterator[BatchT]:
        """All batches, in order; with `until`, cut at its checks, as if no series ended early."""
        for series in self.series:
            for start, stop in stopping.stages(series.n, until):
                yield from self.batches(series, start, stop, device_type, limit)


def measure(
    measurement: Measurement[SeriesT, BatchT],
    model: LanguageModel,
    root: Path,
    progress: Progress = lambda done, total: None,
    *,
    ranks: Ranks = ALONE,
    until: Until | None = None,
    command: str = "",
) -> RunStore:
    """Measure in the run of that identity below `root`, which is new or resumed.

    progress: called at the start and after every batch.
    ranks:    the processes that share the batches out.
    until:    ends a series when its interval is narrow enough; None: all samples are measured.
    command:  resumes the run, for people.

    Raises StoreError if the run cannot be written, and any error of `read` but OutOfMemory: the run records a read that
    does not fit in memory, and shorter reads continue.
    """
    provenance = {**measurement.provenance(model), **origin(model.device, command)}
    with ranks.writing(root, measurement.identity(model), provenance) as store:
        # An earlier version may have made the run.
        loop = _Loop(measurement, model, measurement.holdings(store.completed()), progress)
        with loop.session(command):
            loop.run(until)
    return store.whole()


@dataclass
class _Loop(Generic[SeriesT, BatchT]):
    """The work on one run.

    done:     tokens of batches that the run holds.
    total:    these, and the tokens that this process has yet to read.
    limit:    reads of that many tokens or more do not fit in memory.
    n_read:   tokens that were read in this session, in n_batches.
    """

    measurement: Measurement[SeriesT, BatchT]
    model: LanguageModel
    holdings: Holdings[SeriesT, BatchT]
    progress: Progress
    done: int = field(init=False, default=0)
    total: int = field(init=False, default=0)
    limit: float = field(init=False, default=math.inf)
    n_read: int = field(init=False, default=0)
    n_batches: int = field(init=False, default=0)

    @contextlib.contextmanager
    def session(self, command: str) -> Iterator[None]:
        """At the end, record time and memory of the reads of this process, if there were any."""
        work = Session(self.model.device, command)
        try:
            yield
        finally:
            if self.n_batches:
                self.holdings.store.log_session({**work.ended(self.n_read), **self.model.how})

    def run(self, until: Until | None) -> None:
        """Measure all series."""
        measurement = self.measurement
        self._add(self.holdings.first_records())
        self.total = self._n_tokens(measurement.all_batches(self.model.device.type, until))
        if until is None:
            # Shared out together: every process gets batches of every length.
            self._read([(series, 0, series.n) for series in measurement.series])
            return
        n_measured: dict[SeriesT, int] = {}
        for series in measurement.series:
            n_most = measurement.n_most(series, n_measured)
            n_measured[series] = self._read_until(series, n_most, until)
        self.progress(self.done, self.done)

    def _read_until(self, series: SeriesT, n_most: int, until: Until) -> int:
        """Measure a series until its interval is narrow enough, and record where it ended."""
        measurement, holdings = self.measurement, self.holdings
        stop, is_known = 0, False
        for start, stop in stopping.stages(n_most, until):
            self._read([(series, start, stop)])
            is_known = holdings.is_known(series, stop, until)
            if is_known:
                break
        # Samples of earlier sessions are kept.
        n = holdings.n_held(series, stop, n_most, self.limit)
        place = measurement.place(series)
        ended = until.ended(n, n_most, is_known, **place)
        earlier = [
            record
            for record in holdings.store.records
            if record["kind"] == UNTIL.name and all(record.get(key) == value for key, value in place.items())
        ]
        if n >= stop and stopping.is_news(ended, stop, earlier):
            holdings.add(ended)
        return stop

    def _read(self, stages: Sequence[tuple[SeriesT, int, int]]) -> None:
        """Read the batches of some samples that the run lacks, as far as they are for this process."""
        for stage in stages:
            self._add(self.measurement.sample_records(*stage))
        batches = self._cut(stages, self.limit)
        if self.limit < math.inf:
            self.total -= self._n_tokens(self._cut(stages, math.inf)) - self._n_tokens(batches)
        lacking = sorted([*self._lacking(batches), *self._spoilt(batches)], key=self.measurement.order)
        unread = deque(self.holdings.store.share(lacking, self.holdings.missing))
        self.done += self._n_tokens(batches) - self._n_tokens(self._lacking(batches))
        self.total -= self._n_tokens(self._lacking(batches)) - self._n_tokens(unread)
        self.progress(self.done, self.total)
        while unread:
            try:
                records = list(self.measurement.read(self.model, unread[0]))
            except OutOfMemory as error:
                record, self.limit = self.measurement.lost(unread[0], error)
                self.holdings.add(record)
                recut = self._lacking(self._cut(stages, self.limit))
                shorter = self.measurement.shortened(unread, recut)
                self.total -= self._n_tokens(unread) - self._n_tokens(shorter)
                unread = deque(shorter)
            else:
                self._add(records)
                batch = unread.popleft()
                n_tokens = self.measurement.n_tokens(batch)
                self.n_read, self.n_batches = self.n_read + n_tokens, self.n_batches + 1
                self.done += n_tokens
                anew = self._spoilt([batch])
                if anew:
                    self.total += self._n_tokens(anew)
                    unread = deque(sorted([*unread, *anew], key=self.measurement.order))
            self.progress(self.done, self.total)

    def _add(self, records: Iterable[NewRecord]) -> None:
        for record, arrays in records:
            self.holdings.add(record, **arrays)

    def _cut(self, stages: Sequence[tuple[SeriesT, int, int]], limit: float) -> list[BatchT]:
        device_type = self.model.device.type
        return [batch for stage in stages for batch in self.measurement.batches(*stage, device_type, limit)]

    def _lacking(self, batches: Sequence[BatchT]) -> list[BatchT]:
        return [batch for batch in batches if self.holdings.missing(batch)]

    def _spoilt(self, batches: Sequence[BatchT]) -> list[BatchT]:
        return self.holdings.spoilt(batches, self.model.device.type, self.limit)

    def _n_tokens(self, batches: Iterable[BatchT]) -> int:
        return sum(map(self.measurement.n_tokens, batches))


def batch_size(device_type: str, n_read: int) -> int:
    """Number of inputs of that many tokens that are read side by side."""
    return max(1, BATCH_TOKENS.get(device_type, 0) // n_read)


def identity_of(model: LanguageModel) -> dict[str, Any]:
    """Everything about a model that decides its scores."""
    return {
        "model": model.name,
        "encoding": model.encoding,
        "fingerprint": model.fingerprint,
        "inverse_frequencies": model.inverse_frequencies(),
        "nested_safe": model.nested_safe,
        "train_length": model.train_length,
        "max_length": model.max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "kernel": model.kernel,
        "head": model.reading.head,
        "nll": nll.choose(model.device.type).name,
    }
