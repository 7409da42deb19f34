"""GGUF files: read once, and nothing in them left out in silence.

transformers opens a GGUF file anew for the config, the tokenizer and the weights, and skips tensors that it does not
know. llama.cpp keeps the frequency scaling of Llama 3 in such a tensor, `rope_freqs`: each frequency is divided by it.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hope_eval.encodings import EncodingSpec
from hope_eval.errors import CheckpointError
from hope_eval.model.configs import geometry_of, number_of

# L_train of the models before Llama 3 stretched them, tokens.
_LLAMA3_LENGTH = 8192

# Tensors without which a used layer gives other numbers.
_CHANGES_LAYERS = re.compile(r"(\.bias|norm\.weight|_scale|\.scale)$")


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Let all that transformers reads from a GGUF file in this context share one reader, and one table of names."""
    import gguf

    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    readers = functools.cache(gguf.GGUFReader)
    gguf.GGUFReader = lambda path, *mode: readers(os.path.realpath(path), *mode)
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        for name, original in kept.items():
            setattr(gguf, name, original)


def add_scaling(path: Path, config: Any) -> None:
    """Give a config the frequency scaling that a GGUF file holds as a tensor.

    Raises CheckpointError for a scaling that is not Llama 3's.
    """
    tensors = {tensor.name: tensor for tensor in _reader(path).tensors}
    if "rope_freqs.weight" not in tensors:
        return
    divisors_E = np.asarray(tensors["rope_freqs.weight"].data, np.float32)
    if (divisors_E == 1).all():
        return
    spec = EncodingSpec("llama3", (("factor", float(divisors_E.max())),))
    geometry = replace(geometry_of(config), train_length=_LLAMA3_LENGTH)
    encoding = spec.build(geometry)
    plain_E = EncodingSpec("rope").build(geometry).inverse_frequencies().numpy()
    wanted_E = encoding.inverse_frequencies().numpy()
    if wanted_E.shape != divisors_E.shape or not np.allclose(plain_E / divisors_E, wanted_E, rtol=1e-3):
        raise CheckpointError(
            f"`{path}` scales its frequencies by `rope_freqs`, in a way that transformers cannot read",
            "give the checkpoint in transformers' format",
        )
    config.rope_parameters = encoding.rope_parameters()


def check_used(path: Path, module: nn.Module) -> None:
    """Raise CheckpointError for tensors that are not used: of layers that the model lacks, or that change a layer."""
    from transformers import modeling_gguf_pytorch_utils as loading

    reader, config = _reader(path), module.config
    architecture = str(bytes(reader.fields["general.architecture"].parts[-1]), "utf-8")
    n_layers = number_of(config, "num_hidden_layers") or 0
    n_layers += int(next((field.parts[-1][0] for key, field in reader.fields.items() if "nextn_predict" in key), 0))
    names = [tensor.name for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]
    wrong = [name for name in names if (match := re.match(r"blk\.(\d+)\.", name)) and int(match[1]) >= n_layers]
    unused: list[str] = []
    with contextlib.suppress(AttributeError, NotImplementedError, TypeError):
        # Architectures that transformers reads in its newer way have no such table, and report what is not used.
        processor = loading.TENSOR_PROCESSORS.get(architecture, loading.TensorProcessor)(config={})
        known = loading.get_gguf_hf_weights_map(module, processor)
        unused = [name for name in names if name not in known and _CHANGES_LAYERS.search(name)]
    wrong += [name for name in unused if name not in wrong]
    if wrong:
        raise CheckpointError(
            f"transformers skips {len(wrong)} tensors of `{path}`, such as {wrong[0]}: its numbers would be wrong",
            "give the checkpoint in transformers' format",
        )


def _reader(path: Path) -> Any:
    import gguf

    return gguf.GGUFReader(str(path))
