"""The processes that share an evaluation: how they meet, where each writes, and how they notice that another has ended.

    OUT/.sessions/SESSION/     RANK.lock is held as long as a process lives, RANK.done or RANK.failed says how it ended

They agree on the name of their session at the start, and exchange nothing from then on.

With tensor parallel, T processes in a row hold one model together; with context parallel, they read one sequence
together: a group, which is dealt batches as one process is. All of a group do the same, and the first of them writes.
None of them can continue without the others: each watches them, and ends when one has died, so that no process waits
forever.
"""

import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import filelock

from hope_eval.errors import HopeEvalError, OptionError, StoreError
from hope_eval.files import explained
from hope_eval.runs.launch import JOBS, PIPE, RESUME, check_groups, n_processes
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.shards import LOOK, Echo, Rank, Shard, is_free, merge, remove_empty, session_of, shards_in
from hope_eval.runs.store import (
    SHARDS,
    RunStore,
    check_links,
    claimed,
    header_of,
    locked,
    run_id,
    shards_of,
    write_header,
)

# Seconds between two checks of the others, and until a message says that this process waits.
_EVERY = 0.2
_SAID_AFTER = 10.0

# How long others may take to start.
_PATIENCE = timedelta(minutes=5)

# Files in the folder of a session: one of each kind for each process.
_SESSION_FILES = (".lock", ".done", ".failed")

# Seconds that a process has to write why it ends, after another of its group has ended.
_GRACE = 5.0


@dataclass
class Ranks(Rank):
    """The processes that share an evaluation, seen by one of them; by default, it is alone.

    folder: of their session, where they write how they ended.
    say:    prints a line for people, in the first process.
    store:  of torch.distributed, through which they have found each other.
    """

    folder: Path = Path()
    say: Callable[[str], None] = lambda text: None
    store: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Contexts that close when nothing is left to measure.
        self.while_measuring = contextlib.ExitStack()
        self._shards: dict[Path, Shard] = {}
        self._locks = contextlib.ExitStack()

    @contextlib.contextmanager
    def writing(self, root: Path, identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[RunStore]:
        """Open the run of that identity below `root` for this process: a shard of the run, if there are several.

        A single process writes a shard too if an earlier session left some: all are merged when it is done, so that
        records come out in order.

        Raises StoreError as `RunStore.writing` does, and if a process of another session is writing the run.
        """
        if self.world > 1:
            header = header_of(identity, {**provenance, **self.together})
            with self._shard(root / run_id(identity), header).appending() as shard:
                yield shard
            return
        with RunStore.writing(root, identity, provenance) as run:
            if not shards_of(run.path):
                remove_empty(run.path)
                yield run
                return
            alone = Ranks(session=_new_session())
            try:
                with alone._shard(run.path, run.header).appending() as shard:
                    yield shard
                merge(run, shards_in(run.path, run.header))
                shard.is_merged = True
            finally:
                alone.close()

    def _shard(self, run: Path, header: dict[str, Any]) -> Shard:
        """The shard of this process of a run. The shard is locked until `close`; rank 0 locks the run too."""
        if run not in self._shards:
            check_links(run)
            if self.rank == 0 and self.world > 1:
                header = self._locks.enter_context(claimed(run, header))
            for shard in shards_of(run):
                if session_of(shard) != self.session and not is_free(shard / "run.lock"):
                    raise StoreError(f"another process is writing the run {run}", "wait for it, or give another --out")
            path = run / SHARDS / f"{self.session}-{self.rank}"
            if self.member:
                self._shards[run] = Echo(path, header, run, self)
                return self._shards[run]
            with explained(path):
                path.mkdir(parents=True, exist_ok=True)
            self._locks.enter_context(locked(path))
            # The first process may have died before it came here.
            write_header(run, header, path)
            self._shards[run] = Shard(path, header, run, self)
        return self._shards[run]

    def finish(self) -> bool:
        """Wait for the others and merge all runs; True in the first process, which then prints the tables.

        Raises StoreError if a process died and something is missing; runs of which nothing is missing are merged.
        """
        if self.world == 1:
            return True
        self.while_measuring.close()
        self._note("done")
        if self.rank:
            return False
        ended = self._others()
        missing = []
        for run, shard in self._shards.items():
            shards = shards_in(run, shard.header)
            # A process whose read did not fit shares out shorter ones anew, and the first process does not know which.
            is_oom = any(record["kind"] == OOM.name for store in shards for record in store.records)
            n = shard.n_missing()
            if n and (any(ended.values()) or not is_oom):
                missing.append(f"{n:,} {shard.kind.piece}s of {run.name}")
                continue
            with RunStore(run, shard.header).appending() as store:
                merge(store, shards)
            shard.is_merged = True
        if missing:
            died = [f"process {rank} of {self.world} ended early: {why}" for rank, why in ended.items() if why]
            raise StoreError("; ".join([*died, f"missing: {', '.join(missing)}"]), RESUME)
        return True

    def device(self, name: str) -> str:
        """The device of this process. Each of several processes has its own GPU; those of `--jobs` may share one.

        Raises OptionError if there are fewer GPUs than processes.
        """
        if self.world == 1 or name not in ("auto", "cuda"):
            return name
        import torch

        if not torch.cuda.is_available():
            return name
        local, n = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        may_share = JOBS in os.environ and self.group_size == 1
        if local >= n and not may_share:
            without_jobs = f"--nproc-per-node {n}; small models share a GPU with --jobs, without torchrun"
            remedy = f"--jobs {n}" if JOBS in os.environ else without_jobs
            raise OptionError(f"process {local + 1} of this machine has no GPU, there are {n}", remedy)
        local %= n
        torch.cuda.set_device(local)
        return f"cuda:{local}"

    def close(self) -> None:
        """Release all locks."""
        self._locks.close()

    def watch_partners(self) -> None:
        """From now on, end this process soon after another of its group has died, even in the middle of a wait."""
        assert self.partners
        threading.Thread(target=self._watch_partners, daemon=True).start()

    def lost_partner(self) -> str:
        """The process of the group that ended early, and the reason, in words; empty if none did."""
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
            self._note("failed", lost)
            if self.rank == 0:
                # sys.stderr is redirected while a model is loaded.
                print(f"Error: {lost}\nhint: {RESUME}", file=sys.__stderr__, flush=True)
        # The main thread waits for the dead process in a collective operation; only the end of the process ends that.
        os._exit(1)

    def _note(self, how: str, why: str = "") -> None:
        with contextlib.suppress(OSError):
            (self.folder / f"{self.rank}.{how}").write_text(why, "utf-8")

    def _others(self) -> dict[int, str]:
        """Wait until all others have ended; give for each the reason why it ended early, or an empty text."""
        ended: dict[int, str] = {}
        start, is_said = time.monotonic(), False
        while len(ended) < self.world - 1:
            for rank in range(1, self.world):
                why = ended.get(rank, self._end_of(rank))
                if why is not None:
                    ended[rank] = why
            if not is_said and time.monotonic() - start > _SAID_AFTER:
                is_said = True
                waiting_for = ", ".join(str(rank) for rank in range(1, self.world) if rank not in ended)
                self.say(f"done, waiting for process {waiting_for} of {self.world}")
            time.sleep(_EVERY)
        return dict(sorted(ended.items()))

    def _end_of(self, rank: int, look: float = LOOK) -> str | None:
        """Reason why a process ended early; empty if it is done, None if it is still at work."""
        done, failed = self.folder / f"{rank}.done", self.folder / f"{rank}.failed"
        if done.exists():
            return ""
        if not is_free(self.folder / f"{rank}.lock", look):
            return None
        if done.exists():
            return ""
        return failed.read_text("utf-8") if failed.exists() else "it was killed"


ALONE = Ranks()


@contextlib.contextmanager
def joined(
    root: Path,
    say: Callable[[str], None] = lambda text: None,
    tensor_parallel: int = 1,
    context_parallel: int = 1,
) -> Iterator[Ranks]:
    """Join the processes that torchrun has started for runs below `root`; without torchrun there is one.

    tensor_parallel:  number of processes that hold one model together.
    context_parallel: number of processes that read one sequence together.

    Raises OptionError if they cannot be divided into groups, StoreError if they do not find each other.
    """
    check_groups(n_processes(), tensor_parallel, context_parallel)
    if n_processes() == 1:
        yield Ranks()
        return
    ranks, lock = _met(root, say, tensor_parallel, context_parallel)
    if PIPE in os.environ:
        with os.fdopen(int(os.environ[PIPE]), "wb") as stream:
            stream.write(str(ranks.folder.resolve()).encode())
    try:
        yield ranks
    except BaseException as error:
        ranks._note("failed", error.message if isinstance(error, HopeEvalError) else f"{type(error).__name__}: {error}")
        raise
    finally:
        ranks.close()
        lock.release()
        if ranks.rank == 0:
            _sweep(ranks.folder.parent)


def _met(
    root: Path, say: Callable[[str], None], tensor_parallel: int, context_parallel: int
) -> tuple[Ranks, filelock.BaseFileLock]:
    """This process among those that torchrun has started, when all have joined, and the lock that it holds.

    Raises StoreError if they do not find each other.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
        key = f"hope_eval-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        if rank == 0:
            store.set(key, _new_session())
        session = store.get(key).decode()
        folder = root / ".sessions" / session
        with explained(folder):
            if rank == 0:
                _sweep(folder.parent)
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / f"{rank}.lock")
            lock.acquire(timeout=LOOK)
        store.set(f"{key}-{rank}", "ready")
        store.wait([f"{key}-{other}" for other in range(world)], _PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise StoreError(
            f"WORLD_SIZE says {n_processes()} processes, but they did not find each other: "
            f"{str(error).splitlines()[0]}",
            "start them with torchrun, all with one --out that all of them see; unset WORLD_SIZE for one process",
        ) from error
    sizes = {"tensor_parallel": tensor_parallel, "context_parallel": context_parallel}
    return Ranks(rank, world, session, folder, say, store, **sizes), lock


def _new_session() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


def _sweep(folder: Path) -> None:
    """Remove the folders of sessions without a living process. Links are not followed."""
    sessions = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()
    for session in sessions:
        locks = [] if session.is_symlink() else list(session.glob("*.lock"))
        if locks and all(map(is_free, locks)):
            with contextlib.suppress(OSError):
                for file in session.iterdir():
                    if file.suffix in _SESSION_FILES:
                        file.unlink()
                session.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
