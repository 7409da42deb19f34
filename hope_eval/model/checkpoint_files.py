"""Files of a checkpoint: their places, checks and fingerprint. Nothing large is loaded here.

    path/to/folder        transformers format: config.json, weights (safetensors first), tokenizer files
    path/to/model.gguf    single-file GGUF
    org/name              hub id: the local cache first, then the hub; `hub:gpt2` for one without a slash
    zoo:hope              a bundled checkpoint

No network for a path, and no network for a hub id that is in the cache.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from hope_eval import zoo
from hope_eval.errors import CheckpointError, require
from hope_eval.model import hub
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
_ADAPTER = "adapter_config.json"

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

# How a file begins that git-lfs has not fetched.
_LFS = b"version https://git-lfs"


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
    try:
        if path.is_dir():
            return Location(path, "", path.resolve().name)
        if path.is_file():
            _check_gguf(path)
            return Location(path.parent, path.name, path.stem)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read `{name}`: {error}", "give another path") from error
    hub_id = name.removeprefix(hub.PREFIX)
    asked = hub_id != name
    if not _HUB_ID.fullmatch(hub_id) or not (asked or "/" in name) or path.suffix == ".gguf":
        raise _nowhere(name, path)

    def is_whole(folder: Path) -> bool:
        return _has_weights(folder) or (outline and (folder / "config.json").is_file())

    folder = hub.cached(hub_id, revision, is_whole)
    if folder is None and not asked and path.parent.is_dir():
        # `runs/model` beside a folder `runs` is a path.
        raise _nowhere(name, path)
    return Location(folder or hub.downloaded(hub_id, revision, not outline), "", hub_id.rpartition("/")[2])


def _nowhere(name: str, path: Path) -> CheckpointError:
    """The error for a path that does not exist, with names like it."""
    try:
        beside = [child.name for child in path.parent.iterdir() if child.is_dir() or child.suffix == ".gguf"]
    except (OSError, ValueError):
        beside = []
    known = {**{str(path.parent / each): each for each in beside}, **{each: each for each in zoo.names()}}
    close = difflib.get_close_matches(path.name.lower(), {each.lower() for each in known.values()}, n=3, cutoff=0.7)
    similar = [full for full, each in known.items() if each.lower() in close]
    other = "give a folder, a .gguf file, or a hub id like org/name"
    if _HUB_ID.fullmatch(name):
        other = f"`{hub.PREFIX}{name}` asks the hub for it"
    meant = f"did you mean {' or '.join(f'`{each}`' for each in similar)}? " if similar else ""
    return CheckpointError(f"no checkpoint at `{name}`", meant + other)


def _check_gguf(path: Path) -> None:
    _check_fetched(path)
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise CheckpointError(
            f"`{path}` is not a GGUF file: it begins with {magic!r}",
            "give the folder of a transformers checkpoint, or a single-file GGUF",
        )


def _check_fetched(path: Path) -> None:
    """Raise CheckpointError for a file that git has not fetched, or that cannot be opened."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_LFS))
    except OSError as error:
        raise CheckpointError(f"cannot read `{path}`: {error}", "check that you may read it") from error
    if start == _LFS:
        raise CheckpointError(
            f"`{path}` is a pointer of git-lfs: git has not fetched the file", "run `git lfs pull` in its folder"
        )


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHT_FILES)


def _check_files(location: Location, outline: bool) -> None:
    folder = location.folder
    if location.gguf:
        require("gguf", "reading GGUF")
        return
    _check_adapter(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"`{folder}` has no config.json", "give a folder that `save_pretrained` wrote")
    _check_numbers(folder / "config.json")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(f"`{folder}` has no tokenizer", "save it there too: tokenizer.save_pretrained(folder)")
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            _check_fetched(folder / name)
    if outline:
        return
    if not _has_weights(folder):
        raise CheckpointError(f"`{folder}` has no weights", f"one of {', '.join(_WEIGHT_FILES)} is needed")
    for file in _weight_files(folder):
        if not file.is_file():
            raise CheckpointError(f"`{folder}` lacks {file.name}, which its index names", "copy the checkpoint again")
        _check_fetched(file)
        if file.suffix == ".safetensors":
            _check_safetensors(file)


def _check_adapter(folder: Path) -> None:
    """Raise CheckpointError for a folder with an adapter: its weights alone are no model."""
    if (folder / _ADAPTER).is_file():
        base = read_json(folder / _ADAPTER).get("base_model_name_or_path") or "its base model"
        raise CheckpointError(
            f"`{folder}` holds an adapter of {base}, and not a whole model",
            "merge it: peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(new)",
        )


def _check_numbers(path: Path) -> None:
    """Raise CheckpointError for a number of a config that is not finite; limits of time steps may be infinite."""
    for key, value in _numbers(read_json(path)):
        if math.isnan(value) or (math.isinf(value) and "time_step" not in key):
            raise CheckpointError(f"`{path}`: {key} is {value}", "write a number there, or copy the file again")


def _numbers(content: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a config with decimals, with the path of its key."""
    if isinstance(content, float):
        yield key, content
    elif isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _numbers(value, f"{key}.{name}" if key else str(name))


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"`{file}` is truncated or corrupt: {error}", "copy or download it again") from error


def _weight_files(folder: Path) -> list[Path]:
    """Files of the weights: safetensors before pickles, shards by their index. Raises CheckpointError."""
    for name in _WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            return sorted({folder / shard for shard in _shards(path)}) if "index" in name else [path]
    return []


def _shards(index: Path) -> list[str]:
    """Names of files in an index. Raises CheckpointError unless it names files of its own folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(
            f"`{index}` has no `weight_map` from the names of weights to files", "copy the checkpoint again"
        )
    for shard in shards.values():
        if not shard or "\0" in shard or Path(shard).name != shard:
            raise CheckpointError(
                f"`{index}` names {shard!r}, which is not a file of its folder", "copy the weights into the folder"
            )
    return list(shards.values())


def n_bytes(location: Location) -> int:
    """Bytes of the weights of a checkpoint."""
    files = [location.path] if location.gguf else _weight_files(location.folder)
    return sum(file.stat().st_size for file in files)


def _content_files(folder: Path) -> list[Path]:
    others = [folder / name for name in ("config.json", *_TOKENIZER_FILES)]
    if not (folder / "tokenizer.json").is_file():
        others += [*(folder / name for name in _SLOW_TOKENIZER_FILES), *sorted(folder.glob("*.tiktoken"))]
    code = sorted(folder.glob("*.py")) if "auto_map" in read_json(folder / "config.json") else []
    return [*_weight_files(folder), *(path for path in others if path.is_file()), *code]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a checkpoint. Raises CheckpointError if it cannot be read, or is not an object."""
    _check_fetched(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read `{path}`: {error}", "copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"`{path}` holds {type(content).__name__}, and not an object", "copy the checkpoint again"
        )
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
