"""One evaluation shared out over the processes that torchrun, or `--jobs`, started.

    RUN/shards/SESSION-RANK/   what one process has measured: the files of a run; locked as long as it lives
    OUT/.sessions/SESSION/     RANK.lock is held as long as a process lives, RANK.done or RANK.failed says how it ended

All processes cut the same work into the same batches, and leave out what the run and the shards of earlier sessions
hold; the rest is dealt out like cards. They agree on the name of their session at the
start, and exchange nothing from then on. When all have ended, the first one merges: it appends what the shards hold to
the run, in the order in which one process would have written it. As long as anything is missing, shards stay what they
are; the same command, with any number of processes, leaves out what they hold, and merges them.

torchrun ends all processes when one of them has died. So what it starts only watches over the process that does the
work, and tells of its end when the others have ended too.

With tensor parallel, T processes in a row hold one model together; with context parallel, they read one sequence
together: a group, which is dealt batches as one process is. All of a group do the same, and the first of them writes.
None of them can go on without the others: each watches over them, and ends when one has died, so that nobody waits for
the dead.
"""

import contextlib
import logging
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import filelock
import numpy as np

from hope_eval.errors import HopeEvalError, OptionError, StoreError
from hope_eval.runs.columns import Record
from hope_eval.runs.records import Layout
from hope_eval.runs.records.document import DOCUMENT
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.store import (
    FILES,
    SHARDS,
    RunStore,
    claimed,
    explained,
    header_of,
    locked,
    run_id,
    shards_of,
    write_header,
)

# Seconds between two looks at the others, and until something is said of waiting.
_EVERY = 0.2
_SAID_AFTER = 10.0

# How long others may take to start.
_PATIENCE = timedelta(minutes=5)

# Seconds for which a lock may be held by someone who only looks whether it is free.
_LOOK = 2.0

# Tells the process that does the work where to write the folder of its session.
_PIPE = "HOPE_EVAL_WATCHED_BY"

# Tells a process that it is one of so many that `--jobs` has started on one machine.
_JOBS = "HOPE_EVAL_JOBS"

_THREADS = "OMP_NUM_THREADS"

# Seconds for which a process may still say itself why it ends, when another of its group has ended.
_GRACE = 5.0

GO_ON = "the same command goes on with it, with any number of processes; nothing that was measured is lost"

T = TypeVar("T")


class Shard(RunStore):
    """What one of several processes has measured, and before it, what was there when it began."""

    def __init__(self, path: Path, header: dict[str, Any], run: Path, ranks: "Ranks") -> None:
        super().__init__(path, header)
        self.run = run
        self.given: set[Hashable] = set()
        self.is_merged = False
        self._ranks = ranks
        self._owners: dict[int, RunStore] = {}
        self._earlier = [RunStore(run, header), *_shards(run, header, but=ranks.session)]

    def _load(self) -> int:
        used = super()._load()
        assert self._records is not None
        self._owners = {id(record): store for store in self._earlier for record in store.records}
        self._records[:0] = [record for store in self._earlier for record in store.records]
        return used

    def array(self, record: Record, name: str) -> np.ndarray:
        """Return an array of a record, be it one of what was there before."""
        owner = self._owners.get(id(record))
        return super().array(record, name) if owner is None else owner.array(record, name)

    def append(self, record: Record, **arrays: np.ndarray) -> None:
        """Add a record; what all processes know is kept in memory only, but by the first."""
        if self._ranks.rank and self.kind.record_kind(record).is_common:
            self.records.append(record)
        else:
            super().append(record, **arrays)

    def share(self, todo: Sequence[T], pieces: Callable[[T], Iterable[Hashable]]) -> list[T]:
        """Return every n-th batch of those that were not shared out before in this session.

        Dealing goes on where that of the run before has ended: over many runs, all get equally many.

        pieces: what a batch is made of, as `RunKind.pieces` finds them in records.
        """
        fresh = [batch for batch in todo if not self.given.issuperset(pieces(batch))]
        self.given.update(piece for batch in fresh for piece in pieces(batch))
        first = (self._ranks.group - self._ranks.n_dealt) % self._ranks.n_groups
        self._ranks.n_dealt += len(fresh)
        return fresh[first :: self._ranks.n_groups]

    def whole(self) -> RunStore:
        """Return the run that it was merged into, or itself."""
        return RunStore.reading(self.run) if self.is_merged else self

    def log_session(self, session: Mapping[str, Any]) -> None:
        """Note when and with what it was worked on, and by which process."""
        ranks = self._ranks
        super().log_session({**session, "rank": ranks.rank, "ranks": ranks.world, **ranks.together})

    def n_missing(self) -> int:
        """Return how much of what was shared out no process has measured; less, where memory did not suffice."""
        stores = [RunStore(self.run, self.header), *_shards(self.run, self.header)]
        return len(self.given - self.kind.pieces(record for store in stores for record in store.records))


class _Echo(Shard):
    """What the others of a group know of the shard that their first process writes."""

    @contextlib.contextmanager
    def appending(self) -> Iterator[Self]:
        """Read what was there before, once: what came since is nowhere else."""
        if self._records is None:
            self._load()
        yield self

    def append(self, record: Record, **arrays: np.ndarray) -> None:
        """Keep a record in memory."""
        self.records.append(record)

    def log_session(self, session: Mapping[str, Any]) -> None:
        """Leave that to the first."""


@dataclass
class Ranks:
    """Processes that share out an evaluation, seen by one of them; by default, it is alone.

    rank:    which of them this is. The first, 0, speaks for all, and merges.
    world:   how many there are.
    session: what tells their shards from those of others.
    folder:  where they say how they ended.
    say:     tells people something.
    tensor_parallel:  how many of them hold one model together.
    context_parallel: how many of them read one sequence together; one of the two is 1.
    store:   of torch.distributed, through which they have found each other.
    """

    rank: int = 0
    world: int = 1
    session: str = ""
    folder: Path = Path()
    say: Callable[[str], None] = lambda text: None
    tensor_parallel: int = 1
    context_parallel: int = 1
    store: Any = None

    def __post_init__(self) -> None:
        self.n_dealt = 0
        # What ends when nothing is left to measure.
        self.while_measuring = contextlib.ExitStack()
        self._shards: dict[Path, Shard] = {}
        self._locks = contextlib.ExitStack()

    @property
    def group_size(self) -> int:
        """How many processes do one thing together."""
        return self.tensor_parallel * self.context_parallel

    @property
    def together(self) -> dict[str, int]:
        """What sessions tell of it."""
        kinds = {"tensor_parallel": self.tensor_parallel, "context_parallel": self.context_parallel}
        return {kind: n for kind, n in kinds.items() if n > 1}

    @property
    def n_groups(self) -> int:
        """Into how many shares the work is cut."""
        return self.world // self.group_size

    @property
    def group(self) -> int:
        """Whose share is that of this process."""
        return self.rank // self.group_size

    @property
    def member(self) -> int:
        """Which of its group this process is; the first, 0, writes what they measure."""
        return self.rank % self.group_size

    @property
    def partners(self) -> list[int]:
        """The other processes of the group."""
        first = self.rank - self.member
        return [rank for rank in range(first, first + self.group_size) if rank != self.rank]

    @contextlib.contextmanager
    def writing(self, root: Path, identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[RunStore]:
        """Open the run of that identity below `root` for this process: a shard of it, if it is one of several.

        Alone, too, it is a shard if others are left, which are merged in the end: what they lack comes in between.

        Raises StoreError as `RunStore.writing` does, and if a process of another session is at work on it.
        """
        if self.world > 1:
            header = header_of(identity, {**provenance, **self.together})
            with self._shard(root / run_id(identity), header).appending() as shard:
                yield shard
            return
        with RunStore.writing(root, identity, provenance) as run:
            if not shards_of(run.path):
                _remove_folder(run.path)
                yield run
                return
            alone = Ranks(session=_new_session())
            try:
                with alone._shard(run.path, run.header).appending() as shard:
                    yield shard
                merge(run, _shards(run.path, run.header))
                shard.is_merged = True
            finally:
                alone.close()

    def _shard(self, run: Path, header: dict[str, Any]) -> Shard:
        """Return the shard of this process of a run; both are locked until `close`."""
        if run not in self._shards:
            if self.rank == 0 and self.world > 1:
                header = self._locks.enter_context(claimed(run, header))
            for shard in shards_of(run):
                if _session_of(shard) != self.session and not _is_free(shard / "run.lock"):
                    raise StoreError(f"another process is writing the run {run}", "wait for it, or give another --out")
            path = run / SHARDS / f"{self.session}-{self.rank}"
            if self.member:
                self._shards[run] = _Echo(path, header, run, self)
                return self._shards[run]
            with explained(path):
                path.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(locked(path))
            # The first process may have died before it came here.
            write_header(run, header, path)
            self._shards[run] = Shard(path, header, run, self)
        return self._shards[run]

    def finish(self) -> bool:
        """Return whether this process goes on alone: the first one, when the others have ended and all is merged.

        Raises StoreError if one of them died before it was done; every run of which nothing is missing is merged.
        """
        if self.world == 1:
            return True
        self.while_measuring.close()
        self._tell("done")
        if self.rank:
            return False
        ended = self._others()
        missing = []
        for run, shard in self._shards.items():
            shards = _shards(run, shard.header)
            # What is shorter than what did not fit was shared out anew, and only those who did it know.
            oom = any(record["kind"] == OOM.name for one in shards for record in one.records)
            n = shard.n_missing()
            if n and not (oom and not any(ended.values())):
                missing.append(f"{n:,} {shard.kind.piece}s of {run.name}")
                continue
            with RunStore(run, shard.header).appending() as main:
                merge(main, shards)
            shard.is_merged = True
        if missing:
            died = [f"process {rank} of {self.world} ended early: {why}" for rank, why in ended.items() if why]
            raise StoreError("; ".join([*died, f"missing: {', '.join(missing)}"]), GO_ON)
        return True

    def device(self, name: str) -> str:
        """Return the device of this process: of several, each has a GPU of its own, but for those of `--jobs`.

        Raises OptionError if there is none left for it.
        """
        if self.world == 1 or name not in ("auto", "cuda"):
            return name
        import torch

        if not torch.cuda.is_available():
            return name
        local, n = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        shared = _JOBS in os.environ and self.group_size == 1
        if local >= n and not shared:
            share = f"--nproc-per-node {n}; small models share a GPU with --jobs, without torchrun"
            remedy = f"--jobs {n}" if _JOBS in os.environ else share
            raise OptionError(f"process {local + 1} of this machine has no GPU, there are {n}", remedy)
        local %= n
        torch.cuda.set_device(local)
        return f"cuda:{local}"

    def close(self) -> None:
        """Release all locks."""
        self._locks.close()

    def watch_partners(self) -> None:
        """From now on, end this process soon after another of its group has died, wherever it waits for it."""
        assert self.partners
        threading.Thread(target=self._watch_partners, daemon=True).start()

    def lost_partner(self) -> str:
        """Return which process of the group ended early, and why, in words; empty if all are well."""
        for rank in self.partners:
            why = self._end_of(rank, look=0.0)
            if why:
                share = (
                    "reads a part of the same text" if self.context_parallel > 1 else "holds a part of the same model"
                )
                return f"process {rank} of {self.world}, which {share}, ended early: {why}"
        return ""

    def _watch_partners(self) -> None:
        while not (lost := self.lost_partner()):
            time.sleep(5 * _EVERY)
            if (self.folder / f"{self.rank}.done").exists():
                return
        time.sleep(_GRACE)
        if not (self.folder / f"{self.rank}.failed").exists():
            self._tell("failed", lost)
            if self.rank == 0:
                # Standard error is turned away while a model is loaded.
                print(f"Error: {lost}\nhint: {GO_ON}", file=sys.__stderr__, flush=True)
        # The main thread waits for the dead, and nothing else gets it out of there.
        os._exit(1)

    def _tell(self, how: str, why: str = "") -> None:
        with contextlib.suppress(OSError):
            (self.folder / f"{self.rank}.{how}").write_text(why, "utf-8")

    def _others(self) -> dict[int, str]:
        """Wait until all others have ended; return why they ended early, or nothing."""
        ended: dict[int, str] = {}
        start, said = time.monotonic(), False
        while len(ended) < self.world - 1:
            for rank in range(1, self.world):
                why = ended.get(rank, self._end_of(rank))
                if why is not None:
                    ended[rank] = why
            if not said and time.monotonic() - start > _SAID_AFTER:
                said = True
                left = ", ".join(str(rank) for rank in range(1, self.world) if rank not in ended)
                self.say(f"done, and waiting for process {left} of {self.world}")
            time.sleep(_EVERY)
        return dict(sorted(ended.items()))

    def _end_of(self, rank: int, look: float = _LOOK) -> str | None:
        """Return why a process ended early, nothing if it is done, None if it is at work."""
        done, failed = self.folder / f"{rank}.done", self.folder / f"{rank}.failed"
        if done.exists():
            return ""
        if not _is_free(self.folder / f"{rank}.lock", look):
            return None
        if done.exists():
            return ""
        return failed.read_text("utf-8") if failed.exists() else "it was killed"


ALONE = Ranks()


def n_processes() -> int:
    """Return how many processes torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined(
    root: Path,
    say: Callable[[str], None] = lambda text: None,
    tensor_parallel: int = 1,
    context_parallel: int = 1,
) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, which keep runs below `root`; without it, there is one.

    tensor_parallel:  how many of them hold one model together.
    context_parallel: how many of them read one sequence together.

    Raises OptionError if they do not make whole groups, StoreError if they do not find each other.
    """
    _check_groups(n_processes(), tensor_parallel, context_parallel)
    if n_processes() == 1:
        yield Ranks()
        return
    from torch.distributed.rendezvous import rendezvous

    try:
        kept, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
        key = f"hope_eval-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        if rank == 0:
            kept.set(key, _new_session())
        session = kept.get(key).decode()
        folder = root / ".sessions" / session
        with explained(folder):
            if rank == 0:
                _sweep(folder.parent)
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / f"{rank}.lock")
            lock.acquire(timeout=_LOOK)
        kept.set(f"{key}-{rank}", "ready")
        kept.wait([f"{key}-{other}" for other in range(world)], _PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise StoreError(
            f"the {n_processes()} processes that WORLD_SIZE tells of did not find each other: "
            f"{str(error).splitlines()[0]}",
            "start them with torchrun, all with one --out that all of them see; unset WORLD_SIZE for one process",
        ) from error
    if _PIPE in os.environ:
        with os.fdopen(int(os.environ[_PIPE]), "wb") as stream:
            stream.write(str(folder.resolve()).encode())
    ranks = Ranks(rank, world, session, folder, say, tensor_parallel, context_parallel, kept)
    try:
        yield ranks
    except BaseException as error:
        ranks._tell("failed", error.message if isinstance(error, HopeEvalError) else f"{type(error).__name__}: {error}")
        raise
    finally:
        ranks.close()
        lock.release()
        if rank == 0:
            _sweep(folder.parent)


def _torchrun(n: int) -> str:
    return f"torchrun --nproc-per-node {n} {shlex.join(['-m', 'hope_eval', *sys.argv[1:]])}"


def _check_groups(
    n: int, tensor_parallel: int, context_parallel: int, remedy: Callable[[int], str] = _torchrun
) -> None:
    """Raise OptionError if n processes do not make whole groups of that many.

    remedy: what starts so many.
    """
    if tensor_parallel > 1 and context_parallel > 1:
        raise OptionError(
            "processes hold one model together (--tensor-parallel) or read one sequence together (--context-parallel)",
            "leave one out: the first where the model is too large for a GPU, the other where the length is",
        )
    size = tensor_parallel * context_parallel
    option = "--context-parallel" if context_parallel > 1 else "--tensor-parallel"
    if n % size == 0:
        return
    needed = -(-n // size) * size
    raise OptionError(
        f"{option} {size} needs a multiple of {size} processes, and there {'is' if n == 1 else 'are'} {n}",
        remedy(needed),
    )


def watch() -> None:
    """Under torchrun, start this command again to do the work, and watch over it; exits when all have ended.

    A process that ended early is told of to torchrun, which then ends all others, no sooner than these have ended.
    """
    if n_processes() == 1 or _PIPE in os.environ:
        return
    first = os.environ.get("RANK", "0") == "0"
    reading, writing = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, _PIPE: str(writing)},
        pass_fds=[writing],
        stdout=None if first else subprocess.DEVNULL,
    )
    os.close(writing)
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        worker.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = worker.wait()
    with os.fdopen(reading, "rb") as stream:
        folder = stream.read().decode()
    if code and folder and not stopped:
        mine = f"{os.environ['RANK']}.lock"
        while any(file.name != mine and not _is_free(file) for file in Path(folder).glob("*.lock")) and not stopped:
            time.sleep(5 * _EVERY)
        if first and code < 0:
            print(f"Error: the first process was killed, and nothing is merged\nhint: {GO_ON}", file=sys.stderr)
    sys.exit(code if code >= 0 else 1)


def start(n: int, tensor_parallel: int = 1, context_parallel: int = 1) -> None:
    """Start this command again in n processes, unless that has been done; exits when all have ended.

    Raises OptionError if they do not make whole groups, and within torchrun, which starts processes itself.
    """
    if n == 1 or _JOBS in os.environ:
        return
    if n_processes() > 1:
        raise OptionError("torchrun has started several processes already", "leave --jobs out, or torchrun")
    _check_groups(n, tensor_parallel, context_parallel, lambda needed: f"--jobs {needed}")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # They share the processor, too.
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = {_JOBS: str(n)} | ({} if _THREADS in os.environ else {_THREADS: str(max(1, n_cores // n))})
    arguments = ["--standalone", f"--nproc-per-node={n}", "--no-python", sys.executable, *sys.orig_argv[1:]]
    # Each process says itself what went wrong.
    logging.disable(logging.CRITICAL)
    os.environ.update(told)
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        # Others were ended because of one that failed.
        sys.exit(max((failure.exitcode for failure in error.failures.values() if failure.exitcode > 0), default=1))
    except SignalException as error:
        print(f"Error: ended by {error.sigval.name}\nhint: {GO_ON}", file=sys.stderr)
        sys.exit(128 + error.sigval)
    finally:
        logging.disable(logging.NOTSET)
        for key in told:
            del os.environ[key]
    sys.exit()


def n_jobs() -> int:
    """Return how many processes `--jobs` has started, 1 if it has not."""
    return int(os.environ.get(_JOBS, "1"))


def merge(run: RunStore, shards: Sequence[RunStore]) -> None:
    """Append to a run what its shards hold, in the order in which one process would have written it; remove them.

    What is killed on the way is done again by the next merge: what the run holds is passed over, and shards are removed
    when it is on the disk. Raises StoreError for a shard that is damaged.
    """
    kind_of, key_of = run.kind.record_kind, run.kind.key
    held = {key_of(record) for record in run.records}
    fresh: dict[tuple[Hashable, ...], tuple[Record, RunStore]] = {}
    for shard in shards:
        for record in shard.records:
            if key_of(record) not in held:
                fresh.setdefault(key_of(record), (record, shard))
    records = [*run.records, *(record for record, _ in fresh.values())]
    documents = {record["document"]: record for record in records if record["kind"] == DOCUMENT.name}
    layout = Layout(run.header, documents)
    for record, shard in sorted(fresh.values(), key=lambda pair: kind_of(pair[0]).order(pair[0], layout)):
        arrays = {name: shard.array(record, name) for name in record.get("arrays", {})}
        run.append({key: value for key, value in record.items() if key != "arrays"}, **arrays)
    run.sync()
    told = [_bare(session) for session in run.sessions()]
    for session in sorted((one for shard in shards for one in shard.sessions()), key=lambda one: one["started"]):
        if _bare(session) not in told:
            run.log_session(session)
    for shard in shards:
        _remove(shard.path)
    _remove_folder(run.path)


def _shards(run: Path, header: dict[str, Any], but: str = "") -> list[RunStore]:
    """Return the shards of a run, without those of one session."""
    return [RunStore(path, header) for path in shards_of(run) if not but or _session_of(path) != but]


def _session_of(shard: Path) -> str:
    return shard.name.rpartition("-")[0]


def _new_session() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def _is_free(lock: Path, look: float = _LOOK) -> bool:
    """Whether no process holds a lock; others may look at the same time."""
    try:
        with filelock.FileLock(lock).acquire(timeout=look):
            return True
    except filelock.Timeout:
        return False
    except OSError:
        # It was removed together with its folder.
        return True


def _sweep(folder: Path) -> None:
    """Remove what is left of sessions of which no process lives."""
    for session in folder.iterdir() if folder.is_dir() else ():
        locks = list(session.glob("*.lock"))
        if locks and all(map(_is_free, locks)):
            shutil.rmtree(session, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _bare(session: Mapping[str, Any]) -> dict[str, Any]:
    """Return a session without the checksum of the records, which are others in a shard."""
    return {key: value for key, value in session.items() if key != "records"}


def _remove_folder(run: Path) -> None:
    """Remove the folder of shards, if it is empty."""
    with contextlib.suppress(OSError):
        (run / SHARDS).rmdir()


def _remove(shard: Path) -> None:
    """Remove a shard; its records first: what is left by a kill is an empty one."""
    with explained(shard, "remove"):
        for name in FILES:
            (shard / name).unlink(missing_ok=True)
        shard.rmdir()
