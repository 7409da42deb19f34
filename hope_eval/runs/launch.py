"""Starting the processes of an evaluation: by torchrun, or by `--jobs`, which starts torchrun.

torchrun ends all processes when one of them has died. So each process that it starts only watches a working process,
and ends when all others have ended, too.
"""

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hope_eval.errors import OptionError
from hope_eval.runs.shards import is_free

# Environment variable: the pipe to which the working process writes the folder of its session.
PIPE = "HOPE_EVAL_WATCHED_BY"

# Environment variable: number of processes that `--jobs` has started on one machine.
JOBS = "HOPE_EVAL_JOBS"

_THREADS = "OMP_NUM_THREADS"

# Seconds between two checks of the others, and of the process that started this one.
_EVERY = 1.0
_EVERY_PARENT = 0.5

RESUME = "rerun the command to resume, with any number of processes; nothing that was measured is lost"


def n_processes() -> int:
    """Number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def n_jobs() -> int:
    """Number of processes that `--jobs` has started; 1 without it."""
    return int(os.environ.get(JOBS, "1"))


def _torchrun(n: int) -> str:
    return f"torchrun --nproc-per-node {n} {shlex.join(['-m', 'hope_eval', *sys.argv[1:]])}"


def check_groups(n: int, tensor_parallel: int, context_parallel: int, remedy: Callable[[int], str] = _torchrun) -> None:
    """Raise OptionError if n processes cannot be divided into groups of that size.

    remedy: the command that starts n processes.
    """
    if tensor_parallel > 1 and context_parallel > 1:
        raise OptionError(
            "--tensor-parallel and --context-parallel cannot be combined",
            "use --tensor-parallel if the model is too large for one GPU, --context-parallel if the text is too long",
        )
    size = tensor_parallel * context_parallel
    option = "--context-parallel" if context_parallel > 1 else "--tensor-parallel"
    if n % size == 0:
        return
    needed = -(-n // size) * size
    raise OptionError(
        f"{option} {size} needs a multiple of {size} processes, got {n}",
        remedy(needed),
    )


def end_with_parent() -> None:
    """From now on, end this process soon after the process that started it, even if that one was killed."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY_PARENT)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def obey_parent() -> None:
    """Leave Ctrl-C, which reaches all processes, to the process that started this one, and end with that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def watch() -> None:
    """Under torchrun, start this command again to do the work, and wait for it; exits when all processes have ended.

    If the working process failed, this one fails only after all others have ended: torchrun then has none to kill.
    """
    if n_processes() == 1:
        return
    end_with_parent()
    if PIPE in os.environ:
        return
    is_first = os.environ.get("RANK", "0") == "0"
    reading, writing = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, PIPE: str(writing)},
        pass_fds=[writing],
        stdout=None if is_first else subprocess.DEVNULL,
    )
    os.close(writing)
    is_stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_stopped
        is_stopped = True
        worker.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = worker.wait()
    with os.fdopen(reading, "rb") as stream:
        folder = stream.read().decode()
    if code and folder and not is_stopped:
        while not is_stopped and _others_live(Path(folder)):
            time.sleep(_EVERY)
        if is_first and code < 0:
            print(f"Error: the first process was killed, and nothing is merged\nhint: {RESUME}", file=sys.stderr)
    sys.exit(code if code >= 0 else 1)


def _others_live(folder: Path) -> bool:
    """Whether any other process of a session still holds its lock."""
    locks = [file for file in folder.glob("*.lock") if file.name != f"{os.environ['RANK']}.lock"]
    return not all(map(is_free, locks))


def start(n: int, tensor_parallel: int = 1, context_parallel: int = 1) -> None:
    """Start this command again in n processes, unless this is one of them; exits when all have ended.

    Raises OptionError if n cannot be divided into groups, or if torchrun has started processes already.
    """
    if n == 1 or JOBS in os.environ:
        return
    if n_processes() > 1:
        raise OptionError("torchrun has started several processes already", "leave --jobs out, or torchrun")
    check_groups(n, tensor_parallel, context_parallel, lambda needed: f"--jobs {needed}")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The processes share the cores.
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    added = {JOBS: str(n)} | ({} if _THREADS in os.environ else {_THREADS: str(max(1, n_cores // n))})
    arguments = ["--standalone", f"--nproc-per-node={n}", "--no-python", sys.executable, *sys.orig_argv[1:]]
    # Each process has printed its own error.
    logging.disable(logging.CRITICAL)
    os.environ.update(added)
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        # torchrun ended the others because one failed.
        sys.exit(max((failure.exitcode for failure in error.failures.values() if failure.exitcode > 0), default=1))
    except SignalException as error:
        print(f"Error: ended by {error.sigval.name}\nhint: {RESUME}", file=sys.stderr)
        sys.exit(128 + error.sigval)
    finally:
        logging.disable(logging.NOTSET)
        for key in added:
            del os.environ[key]
    sys.exit()
