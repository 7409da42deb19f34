"""Files of a checkpoint: their places, checks and fingerprint. Nothing large is loaded here.

    path/to/folder        transformers format: config.json, weights (safetensors first), tokenizer files
    path/to/model.gguf    single-file GGUF
    org/name              hub id: the local cache first, then the hub
    zoo:hope              a bundled checkpoint

No network for a path, and no network for a hub id that is in the cache.
"""

import contextlib
import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hope_eval import zoo
from hope_eval.errors import CheckpointError, require
from hope_eval.model.parallel.group import Group

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
# Files that are read where there is no tokenizer.json.
_SLOW_TOKENIZER_FILES = ("added_tokens.json", "merges.txt", "special_tokens_map.json")
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_HUB_FILES = ["*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "*.py"]


class Location(NamedTuple):
    """Place of a checkpoint: its folder, its GGUF file if it is one, and its name for tables."""

    folder: Path
    gguf: str
    name: str

    @property
    def path(self) -> Path:
        """The folder, or the GGUF file."""
        return self.folder / self.gguf


def checkpoints_in(name: str) -> tuple[str, ...]:
    """The checkpoints that a name means: those in a folder that is none itself, as `train` writes them; else itself."""
    folder = Path(name)
    try:
        if not folder.is_dir() or (folder / "config.json").exists():
            return (name,)
        inside = sorted(child for child in folder.iterdir() if (child / "config.json").is_file())
    except (OSError, ValueError):
        return (name,)
    return tuple(map(str, inside)) or (name,)


def located(name: str, revision: str | None = None, outline: bool = False) -> Location:
    """The location of a checkpoint whose files are all there.

    outline: the weights may be missing.

    Raises CheckpointError for a missing or broken file, before anything large is read.
    """
    location = _locate(name, revision, outline)
    _check_files(location, outline)
    return location


def _locate(name: str, revision: str | None, outline: bool) -> Location:
    if name.startswith(zoo.PREFIX):
        return Location(zoo.folder(name), "", name)
    path = Path(name).expanduser()
    if path.is_dir():
        return Location(path, "", path.resolve().name)
    if path.is_file():
        _check_gguf(path)
        return Location(path.parent, path.name, path.stem)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith(".") or path.suffix == ".gguf":
        raise CheckpointError(f"no checkpoint at `{name}`", "give a folder, a .gguf file, or a hub id like org/name")
    return Location(_from_hub(name, revision, outline), "", name.rpartition("/")[2])


def _check_gguf(path: Path) -> None:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise CheckpointError(
            f"`{path}` is not a GGUF file: it begins with {magic!r}",
            "give the folder of a transformers checkpoint, or a single-file GGUF",
        )


def _from_hub(name: str, revision: str | None, outline: bool) -> Path:
    """The folder of a hub snapshot, from the cache if all of it is there; for an outline, without weights."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, OSError, ValueError):
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if _has_weights(folder) or (outline and (folder / "config.json").is_file()):
            return folder
    print(f"{name} is neither a path nor in the cache: asking the hub", file=sys.stderr)
    try:
        files = HfApi().list_repo_files(name, revision=revision)
        weights = "*.safetensors" if any(file.endswith(".safetensors") for file in files) else "*.bin"
        wanted = _HUB_FILES if outline else [*_HUB_FILES, weights]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:
        # The hub's client raises dozens of kinds of errors.
        raise CheckpointError(
            f"no checkpoint called `{name}`: no such path, not in the cache, and the hub says "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'nothing'}",
            "check the spelling and the connection; a private checkpoint needs `hf auth login`",
        ) from error


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHT_FILES)


def _check_files(location: Location, outline: bool) -> None:
    folder = location.folder
    if location.gguf:
        require("gguf", "reading GGUF")
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"`{folder}` has no config.json", "give a folder that `save_pretrained` wrote")
    read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(f"`{folder}` has no tokenizer", "save it there too: tokenizer.save_pretrained(folder)")
    if outline:
        return
    if not _has_weights(folder):
        raise CheckpointError(f"`{folder}` has no weights", f"one of {', '.join(_WEIGHT_FILES)} is needed")
    for file in _weight_files(folder):
        if not file.is_file():
            raise CheckpointError(f"`{folder}` lacks {file.name}, which its index names", "copy the checkpoint again")
        if file.suffix == ".safetensors":
            _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"`{file}` is truncated or corrupt: {error}", "copy or download it again") from error


def _weight_files(folder: Path) -> list[Path]:
    """Files of the weights: safetensors before pickles, shards by their index."""
    for name in _WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            if "index" not in name:
                return [path]
            return sorted({folder / shard for shard in read_json(path)["weight_map"].values()})
    return []


def _content_files(folder: Path) -> list[Path]:
    others = [folder / name for name in ("config.json", *_TOKENIZER_FILES)]
    if not (folder / "tokenizer.json").is_file():
        others += [*(folder / name for name in _SLOW_TOKENIZER_FILES), *sorted(folder.glob("*.tiktoken"))]
    # Code of the checkpoint.
    others += sorted(folder.glob("*.py"))
    return [*_weight_files(folder), *(path for path in others if path.is_file())]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a checkpoint. Raises CheckpointError if it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read `{path}`: {error}", "copy the checkpoint again") from error
    return content


def fingerprint(location: Location, group: Group | None = None) -> str:
    """Hash of names and contents of files; large files are read in parallel, and shared out in a group."""
    files = [location.path] if location.gguf else _content_files(location.folder)

    def digest(file: Path) -> bytes:
        # Files of the hub's cache are links to blobs, whose names are their hashes.
        blob = file.resolve().name
        if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
            return bytes.fromhex(blob)
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    member, n = (group.member, group.size) if group else (0, 1)
    with ThreadPoolExecutor(8) as pool:
        digests = [content.hex() for content in pool.map(digest, files[member::n])]
    shares = [text.split() for text in group.gathered(" ".join(digests))] if group else [digests]
    total = hashlib.sha256()
    for number, file in enumerate(files):
        total.update(file.name.encode() + bytes.fromhex(shares[number % n][number // n]))
    return total.hexdigest()[:16]
