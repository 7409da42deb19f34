"""Provenance of a run: versions, machine, state of the code, seconds and memory."""

import contextlib
import functools
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hope_eval

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")

# Optional packages, used if they are installed.
_FURTHER = ("flash-attn-4",)


def origin(device: "torch.device", command: str) -> dict[str, Any]:
    """The command, the machine, and the versions of the packages that compute."""
    import torch

    return {
        "command": command,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": _versions().copy(),
        "commit": _commit(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {
        "hope_eval": hope_eval.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        **installed(*_FURTHER),
    }


def installed(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


class Session:
    """One stretch of work on a run: when it began, and the seconds and memory it took."""

    def __init__(self, device: "torch.device", command: str) -> None:
        self.device = device
        self.facts = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **origin(device, command)}
        self._start = time.perf_counter()
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self.facts["weights_gib"] = _gib(torch.cuda.memory_allocated(device))

    def ended(self, n_read: int) -> dict[str, Any]:
        """The facts of the session, with seconds, tokens read and the peak of GPU memory, weights included."""
        seconds = time.perf_counter() - self._start
        facts = {**self.facts, "seconds": round(seconds, 3), "tokens_read": n_read}
        if self.device.type == "cuda":
            import torch

            facts["peak_memory_gib"] = _gib(torch.cuda.max_memory_allocated(self.device))
        return facts


def _gib(n_bytes: int) -> float:
    return round(n_bytes / 2**30, 2)


@functools.cache
def _commit() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that this code runs from; None if it is installed.

    It is read once: the code of a process does not change later.
    """
    root = Path(hope_eval.__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--quiet", "--verify", "HEAD")
    except FileNotFoundError:
        return None
    return {"id": head, "dirty": bool(git("status", "--porcelain"))} if head else None
