"""Load any checkpoint: a folder, a GGUF file, a hub id, or a model of your own.

    path/to/folder        transformers format: config.json, weights (safetensors first), tokenizer files
    path/to/model.gguf    single-file GGUF; weights are de-quantised
    org/name              hub id: the local cache first, then the hub
    zoo:hope              a bundled checkpoint
    --loader my.py:load   `load(name)` returns (model, tokenizer); the model maps ids [B, L] to logits [B, L, V]

`checkpoint_files.py` finds and checks the files. A pickle is loaded with weights_only, or not at all. A missing weight
is an error: a model whose weights are partly random still gives numbers.
"""

import contextlib
import copy
import hashlib
import io
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hope_eval.errors import CheckpointError, HopeEvalError, OptionError, first_line
from hope_eval.model import checks, gguf_files, limits
from hope_eval.model.attach import ENCODING_KEYS, attach, restore
from hope_eval.model.checkpoint_files import Location, fingerprint, located, n_bytes, read_json
from hope_eval.model.configs import ORIGINAL, formula_length, text_config, training_length
from hope_eval.model.device import device_named, planned_device
from hope_eval.model.in_effect import effective_inverse_frequencies, encoding_label, is_nested_safe, rotary_modules
from hope_eval.model.kernels.chunked_layers import Compile
from hope_eval.model.layer_choice import NATIVE, kinds_of, parse_choice
from hope_eval.model.parallel import sequence
from hope_eval.model.parallel.group import INSTEAD, Group, check_shardable, sharded
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.weights import check_weights
from hope_eval.plugins import fault_of_file, module_from_file
from hope_eval.task import Sample

# Bytes of weights whose loading is announced.
_LARGE = 50_000_000

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Checkpoint:
    """Weights and tokenizer, from which language models are made: one for each encoding.

    name:                for tables.
    fingerprint:         of weights, config and tokenizer, 16 hexadecimal digits.
    train_length:        tokens; None if unknown.
    train_length_source: the key of the config, or the option, that gives it.
    formula_length:      tokens, L_train in formulas of other encodings: the length before the model was stretched,
                         or the option; None if unknown.
    compiling:           whether the token-wise layers are compiled for long inputs; `auto`: where it pays.
    group:               the processes that share the model or the texts; None: this process works alone.
    notes:               on loading, for tables.
    max_length:          tokens, the end of what the model can read; None: no end is known.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    fingerprint: str
    train_length: int | None
    train_length_source: str
    formula_length: int | None = None
    compiling: Compile = "auto"
    group: Group | None = None
    notes: tuple[str, ...] = ()
    max_length: int | None = None

    def __post_init__(self) -> None:
        self._own_frequencies = effective_inverse_frequencies(self.module)
        config = text_config(self.module)
        self._own_formula_length = formula_length(config)
        self._own: dict[str, Any] = {key: copy.deepcopy(getattr(config, key, None)) for key in ENCODING_KEYS}
        self._own_encoding = encoding_label(self.module)
        self._own_nested_safe = is_nested_safe(self.module)
        self._encoding = NATIVE

    def with_encoding(self, encoding: str = NATIVE) -> LanguageModel:
        """Make a language model with that position encoding, or with that of the checkpoint.

        All models of a checkpoint share its weights: only the last one can be used.
        """
        # An encoding takes from the checkpoint what it does not say itself, and nothing from the one before it.
        if self._encoding != NATIVE:
            self._restore()
        if encoding == NATIVE:
            label = self._own_encoding
        else:
            choice = parse_choice(encoding)
            attach(self.module, choice, self.formula_length)
            # At the training length, dynamic NTK and LongRoPE are plain RoPE; their frequencies change later.
            same = self._same_frequencies() and is_nested_safe(self.module) == self._own_nested_safe
            name = choice.label(kinds_of(text_config(self.module)))
            label = name if same else f"{name}(swap)"
        self._encoding = encoding
        with self.group.explained(self.name) if self.group else contextlib.nullcontext():
            model = LanguageModel(
                name=self.name,
                module=self.module,
                tokenizer=self.tokenizer,
                train_length=self.train_length,
                train_length_source=self._source(encoding),
                encoding=label,
                fingerprint=self.fingerprint,
                compiling=self.compiling,
                group=self.group,
                notes=self.notes,
                max_length=self.max_length,
            )
            if self.group:
                _check_group(model, self.group)
        return model

    def _restore(self) -> None:
        """Put the encoding of the checkpoint back."""
        restore(self.module, self._own)
        assert self._same_frequencies()

    def _source(self, encoding: str) -> str:
        """Where the training length comes from, and the length in formulas if it is another one."""
        length, key = self._own_formula_length or (0, "")
        # Another encoding uses what --train-length says.
        in_use = encoding == NATIVE or length == self.formula_length
        if not (key.endswith(ORIGINAL) and in_use) or length == self.train_length:
            return self.train_length_source
        return f"{self.train_length_source}; formulas use {length:,}: {key}"

    def _same_frequencies(self) -> bool:
        original, now = self._own_frequencies, effective_inverse_frequencies(self.module)
        return original.keys() == now.keys() and all(torch.equal(original[key], now[key]) for key in original)


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

    name:         folder, GGUF file, hub id or zoo:NAME, see the docstring of this module.
    dtype:        auto (the checkpoint's own on an accelerator, float32 on a CPU), float32, bfloat16, float16.
    device:       auto (cuda, else mps, else cpu), or a torch device.
    device_map:   `auto` spreads a checkpoint that is larger than one GPU over all of them.
    compiling:    auto (on a GPU, for inputs of 64k tokens and more), on, off: compile the token-wise layers.
    train_length: tokens; by default what the config says.
    loader:       `my.py:load`, for models that transformers does not know.
    outline:      shapes without weights: enough for a plan, also for a device of another machine.
    group:        the processes that share the model, a shard each, or the texts, each with the whole model.

    Raises CheckpointError or OptionError with a remedy.
    """
    place = planned_device(device) if outline else device_named(device)
    sharing = group if group and group.shares == "model" else None
    _check_options(name, loader, outline, sharing)
    notes: tuple[str, ...] = ()
    if loader:
        module, tokenizer, label, digest = _from_loader(loader, name, place, dtype)
    else:
        location = located(name, revision, outline)
        label, numbers = location.name, _dtype(dtype, place, location)
        if outline:
            module, tokenizer = _outline(location, numbers, trust_remote_code)
        else:
            if group:
                planned, _ = _outline(location, numbers, trust_remote_code)
                if sharing:
                    check_shardable(label, planned, sharing.size)
                else:
                    sequence.check_readable(label, planned)
            where = sharded(sharing.size) if sharing else {"device_map": device_map or {"": place}}
            module, tokenizer, notes = _from_folder(location, numbers, where, trust_remote_code)
        digest = "" if outline else fingerprint(location, group)
    config = text_config(module)
    length, source = training_length(config) or (None, "")
    in_formulas, _ = formula_length(config) or (None, "")
    if train_length:
        length, source, in_formulas = train_length, "--train-length", train_length
    if not outline and not sharing:
        # Architectures that are shared out have a plan for it, and are causal.
        checks.check_causal(label, module)
    end = limits.end_of(label, module, tries=group is None)
    return Checkpoint(label, module, tokenizer, digest, length, source, in_formulas, compiling, group, notes, end)


def _check_options(name: str, loader: str | None, outline: bool, sharing: Group | None) -> None:
    if loader and outline:
        raise CheckpointError(
            f"`--loader {loader}` has no config with the shape of the model", "leave --no-benchmark out"
        )
    if sharing and (loader or name.endswith(".gguf")):
        raise OptionError(
            f"--tensor-parallel takes checkpoints in transformers' format, and not `{loader or name}`",
            "leave it out, or convert the checkpoint",
        )


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a checkpoint, without its weights. Raises CheckpointError."""
    return _tokenizer(located(name, revision), trust_remote_code)


def _dtype(name: str, device: torch.device, location: Location) -> torch.dtype:
    if name != "auto":
        return _named_dtype(name)
    if device.type == "cpu":
        return torch.float32
    config = {} if location.gguf else read_json(location.folder / "config.json")
    return _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)


def _named_dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise OptionError(f"no dtype is called `{name}`", f"one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _from_folder(
    location: Location, dtype: torch.dtype, where: dict[str, Any], trust_remote_code: bool
) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """The model, its tokenizer, and notes."""
    _announce(location)
    try:
        with gguf_files.read_once() if location.gguf else contextlib.nullcontext():
            tokenizer = _tokenizer(location, trust_remote_code)
            module, info = _loaded(location, dtype, where, trust_remote_code)
            notes = check_weights(location.path, module, info)
            if location.gguf:
                gguf_files.check_used(location.path, module)
    except HopeEvalError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"`{location.folder}` holds a pickle with more than weights: opening it may run code",
            "convert it to safetensors on a machine where you trust it",
        ) from error
    except Exception as error:
        refused = _refused(location.path, error)
        if "distributed_config" in where:
            refused.hint = f"another --tensor-parallel may do; {INSTEAD}"
        raise refused from error
    return module, tokenizer, notes


def _loaded(
    location: Location, dtype: torch.dtype, where: dict[str, Any], trust_remote_code: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and what transformers says of its weights."""
    import transformers

    options = _options(location, trust_remote_code)
    with quiet():
        config = transformers.AutoConfig.from_pretrained(location.folder, **options)
        if location.gguf:
            gguf_files.add_scaling(location.path, config.get_text_config())
        # Weights of other shapes are reported with all others. Processes that share a model hold parts of them.
        tolerant = "distributed_config" not in where
        module, info = transformers.AutoModelForCausalLM.from_pretrained(
            location.folder,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=tolerant,
            **where,
            **options,
        )
    return module, info


def _announce(location: Location) -> None:
    """Say what is loaded if it takes a while."""
    size = n_bytes(location)
    if size >= _LARGE:
        print(f"loading {location.path.name}, {size / 1e6:,.0f} MB", file=sys.stderr)


def _outline(location: Location, dtype: torch.dtype, trust_remote_code: bool) -> tuple[nn.Module, Any]:
    """A model whose weights take no memory; only the frequencies, which identify its encoding, are loaded."""
    import transformers

    tokenizer = _tokenizer(location, trust_remote_code)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(location.folder, **_options(location, trust_remote_code))
            with torch.device("meta"):
                module = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=dtype, trust_remote_code=trust_remote_code
                )
            for parent, name, rotary in rotary_modules(module):
                setattr(parent, name, type(rotary)(config=getattr(rotary, "config", text_config(module))))
    except Exception as error:
        raise _refused(location.path, error) from error
    return module, tokenizer


def _options(location: Location, trust_remote_code: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    return {**options, "gguf_file": location.gguf} if location.gguf else options


def _tokenizer(location: Location, trust_remote_code: bool) -> Any:
    import transformers

    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(location.folder, **_options(location, trust_remote_code))
    except Exception as error:
        raise _refused(location.path, error) from error


def _refused(path: Path, error: Exception) -> CheckpointError:
    """The error for a checkpoint that transformers cannot load: each architecture raises other errors."""
    return CheckpointError(
        f"transformers cannot load `{path}`: {type(error).__name__}: {first_line(error)}",
        "if it runs code of its own: --trust-remote-code; if it is not in transformers' format: --loader",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the screen; errors are checked and raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Some bars (GGUF's) cannot be switched off.
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
        raise CheckpointError(f"`--loader {loader}` does not name a file and a function", "--loader my_model.py:load")
    code = module_from_file(path, "hope_eval_loaders")
    if not callable(getattr(code, function, None)):
        raise CheckpointError(f"`{path}` has no function `{function}`", "--loader my_model.py:load")
    try:
        loaded = getattr(code, function)(name)
    except HopeEvalError:
        raise
    except Exception as error:
        raise fault_of_file(error) or CheckpointError(
            f"`{loader}` fails: {type(error).__name__}: {first_line(error)}", "mend the file"
        ) from error
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
    """Raise CheckpointError unless all processes of a group read the model in the same way, with the same scores."""
    group.check_same(
        "how it is read",
        [model.reading.head, model.reading.head_reason, model.reading.keeps_contexts, model.fingerprint],
    )
    n = min(48, model.max_length or 48)
    ids = np.random.default_rng(2).integers(0, int(text_config(model.module).vocab_size), n)
    (score,) = model.score([Sample(ids[:1], ids[1:])])
    group.check_close("the scores of a short input", np.nan_to_num(score.nll), model.dtype)
    # Logits are gathered, and so the same for all even if sums are missing; hidden states would differ.
    with torch.inference_mode():
        ids_BL = torch.as_tensor(ids, device=model.device)[None]
        states = model.module(input_ids=ids_BL, use_cache=False, output_hidden_states=True).hidden_states
    group.check_close("the states of a short input", states[-1][0, -1, :64].float().cpu().numpy(), model.dtype)
