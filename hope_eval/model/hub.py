"""Checkpoints of the Hugging Face hub: the local cache first, then one quiet question to the hub.

Downloads have no limit of time; the question whether there is such a checkpoint has one.
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from hope_eval.errors import CheckpointError, first_line

PREFIX = "hub:"

# Seconds that the hub may take to say whether it has a checkpoint.
_PATIENCE = 5.0

_FILES = ["*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "*.py"]


def cached(name: str, revision: str | None, is_whole: Callable[[Path], bool]) -> Path | None:
    """The folder of a checkpoint in the local cache; None if it is not there, or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, OSError, ValueError):
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if is_whole(folder):
            return folder
    return None


def downloaded(name: str, revision: str | None, weights: bool) -> Path:
    """The folder of a checkpoint of the hub, with its weights or without. Raises CheckpointError if it has none."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            f"`{name}` is neither a folder nor in the cache, and HF_HUB_OFFLINE forbids to ask the hub",
            "check the spelling, or unset HF_HUB_OFFLINE to download it",
        )
    print(f"{name} is neither a path nor in the cache: asking the hub", file=sys.stderr)
    try:
        files = HfApi().model_info(name, revision=revision, timeout=_PATIENCE).siblings or ()
        pattern = "*.safetensors" if any(file.rfilename.endswith(".safetensors") for file in files) else "*.bin"
        wanted = [*_FILES, pattern] if weights else _FILES
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        # The hub's client raises dozens of kinds of errors.
        raise CheckpointError(
            f"no checkpoint called `{name}`: no such path, not in the cache, and the hub says "
            f"{type(error).__name__}: {first_line(error)}",
            "check the spelling and the connection; a private checkpoint needs `hf auth login`",
        ) from error
