"""Shards of a run: the results of several processes, one shard each, merged when nothing is missing.

    RUN/shards/SESSION-RANK/   results of one process: the files of a run; locked as long as the process lives

All processes cut the same work into the same batches, and leave out those that the run and the shards of earlier
sessions hold; the rest is dealt out like cards. When all have ended, the first one merges: it appends the shards to the
run, in the order in which one process would have written it. As long as anything is missing, shards stay; rerun the
command to resume, with any number of processes: it measures the rest, and merges.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import filelock
import numpy as np

from hope_eval.runs.columns import Record
from hope_eval.runs.records import Layout
from hope_eval.runs.records.document import DOCUMENT
from hope_eval.runs.store import SHARDS, RunStore, remove_folder, shards_of

# Seconds for which a process may hold a lock only to check whether it is free.
LOOK = 2.0

T = TypeVar("T")


@dataclass
class Rank:
    """One of several processes that share an evaluation.

    rank:    number of this process. The first, 0, merges.
    world:   number of processes.
    session: name of their session, in the names of their shards.
    tensor_parallel:  number of processes that hold one model together.
    context_parallel: number of processes that read one sequence together; one of the two is 1.
    """

    rank: int = 0
    world: int = 1
    session: str = ""
    tensor_parallel: int = field(default=1, kw_only=True)
    context_parallel: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        self.n_dealt = 0

    @property
    def group_size(self) -> int:
        """Number of processes that do one thing together."""
        return self.tensor_parallel * self.context_parallel

    @property
    def together(self) -> dict[str, int]:
        """Number of processes that work together, for a run's provenance and sessions; empty if each works alone."""
        kinds = {"tensor_parallel": self.tensor_parallel, "context_parallel": self.context_parallel}
        return {kind: n for kind, n in kinds.items() if n > 1}

    @property
    def n_groups(self) -> int:
        """Number of shares that the work is cut into."""
        return self.world // self.group_size

    @property
    def group(self) -> int:
        """Number of the share of this process."""
        return self.rank // self.group_size

    @property
    def member(self) -> int:
        """Number of this process within its group; 0 writes what the group measures."""
        return self.rank % self.group_size

    @property
    def partners(self) -> list[int]:
        """The other processes of the group."""
        first = self.rank - self.member
        return [rank for rank in range(first, first + self.group_size) if rank != self.rank]


class Shard(RunStore):
    """Results of one of several processes; its records begin with those of earlier sessions.

    run:       the folder of the run.
    given:     pieces that were shared out in this session, to any process.
    is_merged: whether the run holds its records.
    """

    def __init__(self, path: Path, header: dict[str, Any], run: Path, rank: Rank) -> None:
        super().__init__(path, header)
        self.run = run
        self.given: set[Hashable] = set()
        self.is_merged = False
        self._rank = rank
        self._owners: dict[int, RunStore] = {}
        self._spoilt: dict[int, dict[str, np.ndarray]] = {}
        self._earlier = [RunStore(run, header), *shards_in(run, header, but=rank.session)]

    def _load(self) -> int:
        used = super()._load()
        assert self._records is not None
        self._owners = {id(record): store for store in self._earlier for record in store.records}
        self._records[:0] = [record for store in self._earlier for record in store.records]
        return used

    def array(self, record: Record, name: str) -> np.ndarray:
        """An array of a record, also of an earlier session."""
        owner = self._owners.get(id(record))
        return super().array(record, name) if owner is None else owner.array(record, name)

    def append(self, record: Record, **arrays: np.ndarray) -> None:
        """Add a record; only the first process writes records that all processes have."""
        if self._rank.rank and self.kind.record_kind(record).is_common:
            self.records.append(record)
        else:
            super().append(record, **arrays)

    def share(self, todo: Sequence[T], pieces: Callable[[T], Iterable[Hashable]]) -> list[T]:
        """Every n-th batch of those that were not shared out before in this session.

        Dealing continues where the previous run ended, so that over many runs all processes get equally many.

        pieces: of a batch, as `RunKind.pieces` gives those of records.
        """
        fresh = [batch for batch in todo if not self.given.issuperset(pieces(batch))]
        self.given.update(piece for batch in fresh for piece in pieces(batch))
        first = (self._rank.group - self._rank.n_dealt) % self._rank.n_groups
        self._rank.n_dealt += len(fresh)
        return fresh[first :: self._rank.n_groups]

    def whole(self) -> RunStore:
        """The run that it was merged into, or itself."""
        return RunStore.reading(self.run).completed() if self.is_merged else self

    def log_session(self, session: Mapping[str, Any]) -> None:
        """Record a session with the numbers of its process."""
        rank = self._rank
        super().log_session({**session, "rank": rank.rank, "ranks": rank.world, **rank.together})

    def n_missing(self) -> int:
        """Number of pieces that were shared out and that no process has measured."""
        stores = [RunStore(self.run, self.header), *shards_in(self.run, self.header)]
        return len(self.given - self.kind.pieces(record for store in stores for record in store.records))


class Echo(Shard):
    """The view of other processes of a group on the shard that their first process writes."""

    @contextlib.contextmanager
    def appending(self) -> Iterator[Self]:
        """Read the records of earlier sessions once; new records are in memory only."""
        if self._records is None:
            self._load()
        yield self

    def append(self, record: Record, **arrays: np.ndarray) -> None:
        """Keep a record in memory, with those of its arrays that hold a NaN: they decide what is read again."""
        self.records.append(record)
        spoilt = {
            name: array for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()
        }
        if spoilt:
            self._spoilt[id(record)] = spoilt

    def check_record(self, record: Record) -> None:
        """Records of this session are in memory, without arrays: the process that writes them checks them."""
        if "arrays" in record:
            super().check_record(record)

    def array(self, record: Record, name: str) -> np.ndarray:
        """An array of a record; empty for one of this session without a NaN."""
        if "arrays" in record:
            return super().array(record, name)
        return self._spoilt.get(id(record), {}).get(name, np.zeros(0, np.float32))

    def log_session(self, session: Mapping[str, Any]) -> None:
        """The first process of the group does this."""


def merge(run: RunStore, shards: Sequence[RunStore]) -> None:
    """Append the shards of a run to it, in the order in which one process would have written them; remove them.

    After a kill, the next merge continues: records that the run holds are passed over, and shards are removed only
    when the records are on the disk. Raises StoreError for a shard that is damaged.
    """
    kind_of, key_of = run.kind.record_kind, run.kind.key
    for record in run.records:
        run.check_record(record)
    held = {key_of(record) for record in run.records}
    fresh: dict[tuple[Hashable, ...], tuple[Record, RunStore]] = {}
    for shard in shards:
        for record in shard.records:
            shard.check_record(record)
            if key_of(record) not in held:
                fresh.setdefault(key_of(record), (record, shard))
    records = [*run.records, *(record for record, _ in fresh.values())]
    documents = {record["document"]: record for record in records if record["kind"] == DOCUMENT.name}
    layout = Layout(run.header, documents)
    for record, shard in sorted(fresh.values(), key=lambda pair: kind_of(pair[0]).order(pair[0], layout)):
        arrays = {name: shard.array(record, name) for name in record.get("arrays", {})}
        run.append({key: value for key, value in record.items() if key != "arrays"}, **arrays)
    run.sync()
    noted = [_bare(session) for session in run.sessions()]
    sessions = [session for shard in shards for session in shard.sessions()]
    for session in sorted(sessions, key=lambda session: str(session.get("started"))):
        if _bare(session) not in noted:
            run.log_session(session)
    for shard in shards:
        remove_folder(shard.path)
    remove_empty(run.path)


def shards_in(run: Path, header: dict[str, Any], but: str = "") -> list[RunStore]:
    """The shards of a run, except those of the session `but`."""
    return [RunStore(path, header) for path in shards_of(run) if not but or session_of(path) != but]


def session_of(shard: Path) -> str:
    """The name of the session that a shard is of."""
    return shard.name.rpartition("-")[0]


def is_free(lock: Path, look: float = LOOK) -> bool:
    """Whether no process holds a lock. Others that look at the same time do not count; a link is no lock."""
    if lock.is_symlink():
        return True
    try:
        with filelock.FileLock(lock).acquire(timeout=look):
            return True
    except filelock.Timeout:
        return False
    except OSError:
        # The lock was removed together with its folder.
        return True


def _bare(session: Mapping[str, Any]) -> dict[str, Any]:
    """A session without the checksum of records: those of a shard differ from those of the run."""
    return {key: value for key, value in session.items() if key != "records"}


def remove_empty(run: Path) -> None:
    """Remove the folder of the shards of a run, if it is empty."""
    with contextlib.suppress(OSError):
        (run / SHARDS).rmdir()
