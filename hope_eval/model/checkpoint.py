"""Load any checkpoint: a folder, a GGUF file, a hub id, or a model of one's own.

    path/to/folder        transformers format: config.json, weights (safetensors first), tokenizer files
    path/to/model.gguf    single-file GGUF; weights are de-quantised
    org/name              hub id: the local cache first, then the hub
    zoo:hope              a bundled checkpoint
    --loader my.py:load   `load(name)` returns (model, tokenizer); the model maps ids [B, L] to logits [B, L, V]

Nothing is fetched for a path, and nothing is asked of the network for a hub id that is in the cache. A pickle is
loaded with weights_only, or not at all. Weights that are missing from a checkpoint are an error: a model that was
half initialised at random still gives numbers.
"""

import contextlib
import copy
import hashlib
import io
import json
import pickle
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hope_eval import zoo
from hope_eval.encodings import parse_encoding
from hope_eval.errors import CheckpointError, HopeEvalError, OptionError, require
from hope_eval.model.attach import (
    attach,
    effective_inverse_frequencies,
    encoding_label,
    is_nested_safe,
    rotary_modules,
    set_rope_parameters,
)
from hope_eval.model.configs import text_config, training_length
from hope_eval.model.device import device_named, planned_device
from hope_eval.model.kernels.chunked_layers import Compile
from hope_eval.model.parallel import sequence
from hope_eval.model.parallel.group import INSTEAD, Group, check_shardable, sharded
from hope_eval.model.scoring import LanguageModel
from hope_eval.plugins import module_from_file
from hope_eval.task import Sample

# The name of the encoding that a checkpoint comes with.
NATIVE = "native"

# What a config says of it; all but the first are of this package's own decoder.
_ENCODING_KEYS = ("rope_parameters", "encoding", "encoding_parameters")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_HUB_FILES = ["*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "*.py"]


@dataclass
class Checkpoint:
    """Weights and tokenizer, from which language models are made: one an encoding.

    name:                what tables call it.
    fingerprint:         of weights, config and tokenizer, 16 hexadecimal digits.
    train_length:        tokens; None if nobody told.
    train_length_source: which key of the config, or which option, told it.
    compiling:           of long inputs: what is around attention; `auto` where it pays.
    group:               the processes that hold it, or read, together; None: this one does all by itself.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    fingerprint: str
    train_length: int | None
    train_length_source: str
    compiling: Compile = "auto"
    group: Group | None = None

    def __post_init__(self) -> None:
        self._own_frequencies = effective_inverse_frequencies(self.module)
        config = text_config(self.module)
        self._own: dict[str, Any] = {key: copy.deepcopy(getattr(config, key, None)) for key in _ENCODING_KEYS}
        self._own_encoding = encoding_label(self.module)
        self._own_nested_safe = is_nested_safe(self.module)
        self._encoding = NATIVE

    def with_encoding(self, encoding: str = NATIVE) -> LanguageModel:
        """Return the checkpoint as a language model with that position encoding, or with its own.

        All models of a checkpoint share its weights: of several, use the one that was made last.
        """
        if encoding == NATIVE:
            if self._encoding != NATIVE:
                own = copy.deepcopy(self._own)
                set_rope_parameters(self.module, own.pop("rope_parameters"))
                for key, value in own.items():
                    if hasattr(text_config(self.module), key):
                        setattr(text_config(self.module), key, value)
                assert self._same_frequencies()
            label = self._own_encoding
        else:
            spec = parse_encoding(encoding)
            attach(self.module, spec, self.train_length)
            # At the training length, dynamic NTK and LongRoPE are plain RoPE; their frequencies change later.
            same = self._same_frequencies() and is_nested_safe(self.module) == self._own_nested_safe
            label = str(spec) if same else f"{spec}(swap)"
        self._encoding = encoding
        with self.group.explained(self.name) if self.group else contextlib.nullcontext():
            model = LanguageModel(
                name=self.name,
                module=self.module,
                tokenizer=self.tokenizer,
                train_length=self.train_length,
                train_length_source=self.train_length_source,
                encoding=label,
                fingerprint=self.fingerprint,
                compiling=self.compiling,
                group=self.group,
            )
            if self.group:
                _check_group(model, self.group)
        return model

    def _same_frequencies(self) -> bool:
        own, now = self._own_frequencies, effective_inverse_frequencies(self.module)
        return own.keys() == now.keys() and all(torch.equal(own[key], now[key]) for key in own)


def load(name: str, *, encoding: str = NATIVE, **options: Any) -> LanguageModel:
    """Load a checkpoint as a language model that scores tokens.

    encoding: a position encoding to put in place of the checkpoint's own; `native` leaves it as it is.
    options:  as for `load_checkpoint`.
    """
    return load_checkpoint(name, **options).with_encoding(encoding)


def load_checkpoint(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    compiling: Compile = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    train_length: int | None = None,
    loader: str | None = None,
    outline: bool = False,
    group: Group | None = None,
) -> Checkpoint:
    """Load weights and tokenizer.

    name:         what to load, see the docstring of this module.
    dtype:        auto (the checkpoint's own on an accelerator, float32 on a CPU), float32, bfloat16, float16.
    device:       auto (cuda, else mps, else cpu), or a torch device.
    device_map:   `auto` spreads a checkpoint that is larger than one GPU over all of them.
    compiling:    auto (on a GPU, for inputs of 64k tokens and more), on, off: compile what is around attention.
    train_length: tokens; by default what the config says.
    loader:       `my.py:load`, for models that transformers does not know.
    outline:      shapes without weights, of a device that need not be there; what is planned needs no more.
    group:        the processes that hold it together, each a shard, or read together, each with all of it.

    Raises CheckpointError or OptionError, with what to do about it.
    """
    place = planned_device(device) if outline else device_named(device)
    if loader and outline:
        raise CheckpointError(
            f"`--loader {loader}` has no config that tells the shape of the model", "leave --no-benchmark out"
        )
    sharing = group if group and group.shares == "model" else None
    if sharing and (loader or name.endswith(".gguf")):
        raise OptionError(
            f"--tensor-parallel takes checkpoints in transformers' format, and not `{loader or name}`",
            "leave it out, or convert the checkpoint",
        )
    if loader:
        module, tokenizer, label, fingerprint = _from_loader(loader, name, place, dtype)
    else:
        folder, gguf, label = check(name, revision, outline)
        numbers = _dtype(dtype, place, folder, gguf)
        if outline:
            module, tokenizer = _outline(folder, gguf, numbers, trust_remote_code)
        else:
            if group:
                planned, _ = _outline(folder, gguf, numbers, trust_remote_code)
                if sharing:
                    check_shardable(label, planned, sharing.size)
                else:
                    sequence.check_readable(label, planned)
            where = sharded(sharing.size) if sharing else {"device_map": device_map or {"": place}}
            module, tokenizer = _from_folder(folder, gguf, numbers, where, trust_remote_code)
        fingerprint = "" if outline else _fingerprint([folder / gguf] if gguf else _content_files(folder), group)
    told = training_length(text_config(module)) if text_config(module) is not None else None
    length, source = (train_length, "--train-length") if train_length else (told or (None, ""))
    return Checkpoint(label, module, tokenizer, fingerprint, length, source, compiling, group)


def check(name: str, revision: str | None = None, outline: bool = False) -> tuple[Path, str, str]:
    """Return the folder of a checkpoint, the GGUF file in it if it is one, and its name for tables.

    outline: it need not have weights.

    Raises CheckpointError for what is missing or broken, before anything large is read.
    """
    folder, gguf, label = _locate(name, revision, outline)
    _check_folder(folder, gguf, outline)
    return folder, gguf, label


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a checkpoint, without its weights. Raises CheckpointError."""
    folder, gguf, _ = check(name, revision)
    return _tokenizer(folder, gguf, trust_remote_code)


def _dtype(name: str, device: torch.device, folder: Path, gguf: str) -> torch.dtype:
    if name != "auto":
        return _named_dtype(name)
    if device.type == "cpu":
        return torch.float32
    config = {} if gguf else _json(folder / "config.json")
    own = config.get("dtype") or config.get("torch_dtype")
    return _DTYPES.get(str(own), torch.bfloat16)


def _named_dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise OptionError(f"no dtype is called `{name}`", f"one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _locate(name: str, revision: str | None, outline: bool) -> tuple[Path, str, str]:
    if name.startswith(zoo.PREFIX):
        return zoo.folder(name), "", name
    path = Path(name).expanduser()
    if path.is_dir():
        return path, "", path.resolve().name
    if path.is_file():
        _check_gguf(path)
        return path.parent, path.name, path.stem
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith(".") or path.suffix == ".gguf":
        raise CheckpointError(f"no checkpoint at `{name}`", "give a folder, a .gguf file, or a hub id like org/name")
    return _from_hub(name, revision, outline), "", name.rpartition("/")[2]


def _check_gguf(path: Path) -> None:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise CheckpointError(
            f"`{path}` is no GGUF file: it begins with {magic!r}",
            "give the folder of a transformers checkpoint, or a single-file GGUF",
        )


def _from_hub(name: str, revision: str | None, outline: bool) -> Path:
    """Return the folder of a hub snapshot, from the cache if it is there whole; of an outline, without weights."""
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
        # The hub's client raises dozens of kinds of its own and of its transport.
        raise CheckpointError(
            f"no checkpoint called `{name}`: no such path, not in the cache, and the hub says "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'nothing'}",
            "check the spelling and the connection; a private checkpoint needs `hf auth login`",
        ) from error


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHT_FILES)


def _check_folder(folder: Path, gguf: str, outline: bool) -> None:
    if gguf:
        require("gguf", "reading GGUF")
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"`{folder}` has no config.json", "give a folder that `save_pretrained` wrote")
    _json(folder / "config.json")
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
    """Return the files that weights are loaded from: safetensors before pickles, shards by their index."""
    for name in _WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            return (
                sorted({folder / shard for shard in _json(path)["weight_map"].values()}) if "index" in name else [path]
            )
    return []


def _content_files(folder: Path) -> list[Path]:
    others = [folder / name for name in ("config.json", *_TOKENIZER_FILES)]
    return [*_weight_files(folder), *(path for path in others if path.is_file())]


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read `{path}`: {error}", "copy the checkpoint again") from error
    return content


def _from_folder(
    folder: Path,
    gguf: str,
    dtype: torch.dtype,
    where: dict[str, Any],
    trust_remote_code: bool,
) -> tuple[nn.Module, Any]:
    import transformers

    try:
        tokenizer = _tokenizer(folder, gguf, trust_remote_code)
        with quiet():
            module, told = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                **where,
                **_options(gguf, trust_remote_code),
            )
    except HopeEvalError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"`{folder}` holds a pickle that is more than weights, and it may run code when opened",
            "convert it to safetensors where you trust it",
        ) from error
    except Exception as error:
        refused = _refused(folder / gguf, error)
        if "distributed_config" in where:
            refused.hint = f"another --tensor-parallel may do; {INSTEAD}"
        raise refused from error
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise CheckpointError(
            f"`{folder / gguf}` lacks {len(missing)} weights of {type(module).__name__}, such as {missing[0]}",
            "the checkpoint is incomplete, or its config belongs to another model",
        )
    return module, tokenizer


def _outline(folder: Path, gguf: str, dtype: torch.dtype, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    """Return a model whose weights take no memory; what tells the encoding, its frequencies, is there."""
    import transformers

    tokenizer = _tokenizer(folder, gguf, trust_remote_code)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, **_options(gguf, trust_remote_code))
            with torch.device("meta"):
                module = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=dtype, trust_remote_code=trust_remote_code
                )
            for parent, name, rotary in rotary_modules(module):
                setattr(parent, name, type(rotary)(config=text_config(module)))
    except Exception as error:
        raise _refused(folder / gguf, error) from error
    return module, tokenizer


def _options(gguf: str, trust_remote_code: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    return {**options, "gguf_file": gguf} if gguf else options


def _tokenizer(folder: Path, gguf: str, trust_remote_code: bool) -> Any:
    import transformers

    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(folder, **_options(gguf, trust_remote_code))
    except Exception as error:
        raise _refused(folder / gguf, error) from error


def _refused(path: Path, error: Exception) -> CheckpointError:
    """Return what to tell of a checkpoint that transformers refuses: every architecture has its own ways to do it."""
    return CheckpointError(
        f"transformers cannot load `{path}`: {type(error).__name__}: {_first_line(error)}",
        "if it runs code of its own: --trust-remote-code; if it is no transformers checkpoint: --loader",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and advice off the screen; what is wrong is checked and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Some bars (GGUF's) know no switch.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _from_loader(loader: str, name: str, device: torch.device, dtype: str) -> tuple[nn.Module, Any, str, str]:
    file, _, function = loader.rpartition(":")
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise CheckpointError(f"`--loader {loader}` names no file and function", "--loader my_model.py:load")
    code = module_from_file(path, "hope_eval_loaders")
    if not callable(getattr(code, function, None)):
        raise CheckpointError(f"`{path}` has no function `{function}`", "--loader my_model.py:load")
    loaded = getattr(code, function)(name)
    if not isinstance(loaded, tuple) or len(loaded) != 2 or not isinstance(loaded[0], nn.Module):
        raise CheckpointError(
            f"`{loader}` returned {type(loaded).__name__}", "it must return (torch module, tokenizer)"
        )
    module, tokenizer = loaded
    if not hasattr(tokenizer, "encode"):
        raise CheckpointError(
            f"the tokenizer of `{loader}` has no `encode`", "it needs encode(text) -> ids; transformers' have it"
        )
    module = module.to(device) if dtype == "auto" else module.to(device, _named_dtype(dtype))
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return module, tokenizer, name or function, digest.hexdigest()[:16]


def _check_group(model: LanguageModel, group: Group) -> None:
    """Raise CheckpointError if not all processes that hold a model read it, and score, in the same way."""
    group.check_same(
        "how it is read",
        [model.reading.head, model.reading.head_reason, model.reading.keeps_contexts, model.fingerprint],
    )
    n = min(48, model.max_length or 48)
    ids = np.random.default_rng(2).integers(0, int(text_config(model.module).vocab_size), n)
    (score,) = model.score([Sample(ids[:1], ids[1:])])
    group.check_close("the scores of a short input", np.nan_to_num(score.nll), model.dtype)
    # Logits are gathered, and the same for all even where sums are missing; what they are made of would differ.
    with torch.inference_mode():
        ids_BL = torch.as_tensor(ids, device=model.device)[None]
        states = model.module(input_ids=ids_BL, use_cache=False, output_hidden_states=True).hidden_states
    group.check_close("the states of a short input", states[-1][0, -1, :64].float().cpu().numpy(), model.dtype)


def _fingerprint(files: list[Path], group: Group | None = None) -> str:
    """Return a hash of names and contents; large files are read side by side, and shared out in a group."""

    def digest(file: Path) -> bytes:
        # Files of the hub's cache are links to blobs that are named by their hash.
        blob = file.resolve().name
        if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
            return bytes.fromhex(blob)
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    member, n = (group.member, group.size) if group else (0, 1)
    with ThreadPoolExecutor(8) as pool:
        own = [content.hex() for content in pool.map(digest, files[member::n])]
    shares = [text.split() for text in group.gathered(" ".join(own))] if group else [own]
    total = hashlib.sha256()
    for number, file in enumerate(files):
        total.update(file.name.encode() + bytes.fromhex(shares[number % n][number // n]))
    return total.hexdigest()[:16]
