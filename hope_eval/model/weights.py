"""Weights of a checkpoint beside those of its model: what is not used in both is an error, a note, or harmless.

A weight that is missing, or has another shape, is an error. So is a tensor that is not used although it belongs to a
layer or module of the decoder: a bias, a scale, a norm, a layer too many. A vision tower or a value head is a note.
Rotary and causal buffers, a tied head and the prediction of several tokens are harmless.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hope_eval.errors import CheckpointError
from hope_eval.model.configs import number_of, text_config

# Buffers that the code of a model makes itself: rotary tables, causal masks, positions, traces of quantised caches.
_HARMLESS = re.compile(
    r"(^|\.)(inv_freq|[a-z_]*inv_freq|cos_cached|sin_cached|rope\.freqs|freqs_cis|masked_bias|position_ids|token_type_ids"
    r"|causal_mask|attn_mask|num_batches_tracked|(k|v|kv)_scale|(k|v)_proj\.output_scale|total_ops|total_params|_extra_state)$"
)

# Causal masks, `h.0.attn.bias` of GPT-2: a bias of a projection has another parent.
_MASK = re.compile(r"(^|\.)(attn|attention|self_attention|self_attn)(\.attention)?\.bias$")

# Layers that predict tokens further ahead: they do not take part in the next token. Some stand after the last layer,
# and only their parts tell.
_AHEAD = re.compile(r"(^|\.)mtp(_\w+)?\.")
_PART_AHEAD = re.compile(r"^(.*\.\d+)\.(eh_proj|enorm|hnorm)\.")

# Prefixes of wrappers around a model, and who writes them.
_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel", "_fsdp_wrapped_module.": "FSDP"}

# Tensors that a message names.
_FIRST = 3


def check_weights(path: Path, module: nn.Module, info: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on tensors beside the decoder that are not used.

    info: what transformers says of loading: `missing_keys`, `unexpected_keys`, `mismatched_keys`.

    Raises CheckpointError if weights are missing, of another shape, or not used although they belong to the decoder.
    """
    kind, missing, unused = type(module).__name__, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    for prefix, writer in _WRAPPERS.items():
        if missing and any(name.startswith(prefix) or f".{prefix}" in name for name in unused):
            raise CheckpointError(
                f"the weights in `{path}` have names with `{prefix}`, as {writer} writes them: {_some(unused)}",
                f"save the model that is inside: model.{prefix.rstrip('.')}.save_pretrained(folder)",
            )
    mismatched = sorted(info.get("mismatched_keys", ()))
    if mismatched:
        name, in_file, in_model = mismatched[0][:3]
        raise CheckpointError(
            f"`{path}`: {name} has the shape {list(in_file)}, and config.json asks for {list(in_model)}"
            + (f"; {len(mismatched)} weights differ" if len(mismatched) > 1 else ""),
            "config.json belongs to another model: copy the one that was saved with the weights",
        )
    if missing:
        raise CheckpointError(
            f"`{path}` lacks {len(missing)} weights of {kind}, such as {missing[0]}",
            "the checkpoint is incomplete, or its config belongs to another model",
        )
    wrong, beside = _sorted_out(module, unused)
    if wrong:
        raise CheckpointError(
            f"{kind} does not use {len(wrong)} weights of `{path}`: {_some(wrong)}; without them its numbers are wrong",
            "config.json belongs to another model, or it needs code of its own: --trust-remote-code, or --loader",
        )
    return (f"{len(beside)} weights of the checkpoint are not used: {_some(beside)}",) if beside else ()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_FIRST]) + (" …" if len(names) > _FIRST else "")


def _sorted_out(module: nn.Module, unused: Collection[str]) -> tuple[list[str], list[str]]:
    """Unused tensors that belong to the decoder, and those beside it; harmless ones are in neither."""
    modules = dict(module.named_modules())
    config = text_config(module)
    n_layers, n_ahead = number_of(config, "num_hidden_layers"), number_of(config, "num_nextn_predict_layers") or 0
    ahead = {match[1] for name in unused if (match := _PART_AHEAD.match(name))}
    tied = bool(getattr(config, "tie_word_embeddings", False))
    prefix = getattr(module, "base_model_prefix", "")
    bases = ("", f"{prefix}.") if prefix else ("",)
    lists = [name for name, child in modules.items() if isinstance(child, nn.ModuleList) and len(child) == n_layers]
    layer = re.compile(f"(?:{'|'.join(map(re.escape, lists))})\\.(\\d+)\\." if lists else "(?!)")
    wrong: list[str] = []
    beside: list[str] = []
    for name in unused:
        if _HARMLESS.search(name) or _MASK.search(name) or _AHEAD.search(name):
            continue
        if any(name.startswith(f"{layer}.") for layer in ahead):
            continue
        if tied and name.endswith(("lm_head.weight", "embed_out.weight", "output.weight")):
            continue
        places = [base + name for base in bases]
        number = next((int(match[1]) for match in map(layer.match, places) if match), None)
        if number is not None:
            if not len(modules[lists[0]]) <= number < len(modules[lists[0]]) + n_ahead:
                wrong.append(name)
            continue
        (wrong if any(_is_inside(place, modules, lists) for place in places) else beside).append(name)
    return wrong, beside


def _is_inside(place: str, modules: Mapping[str, nn.Module], lists: Collection[str]) -> bool:
    """Whether a tensor belongs to a module with weights of its own, or stands where the layers of the decoder stand."""
    parents = {of.rpartition(".")[0] for of in lists}
    parent, _, _ = place.rpartition(".")
    # `norm.weight` beside `layers`: it would change every hidden state.
    if parent.rpartition(".")[0] in parents and "norm" in parent.rpartition(".")[2]:
        return True
    while parent:
        if parent in modules and next(iter(modules[parent].parameters(recurse=False)), None) is not None:
            return True
        parent = parent.rpartition(".")[0]
    return False
