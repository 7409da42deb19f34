"""Rotary modules of some layers only: a decoder whose layers share one rotary module gets further ones.

transformers computes the rotation once and hands it to all layers, as `position_embeddings`. A layer with an encoding
of its own gets those of its own rotary module instead. The config remembers it:

    config.hope_eval_layers = {"encoding": "full=yarn:factor=4;sliding=native", "train_length": 8192}

so that a saved checkpoint comes back with it, after `import hope_eval`, through plain transformers.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hope_eval.errors import EncodingError

# Key of the config.
KEY = "hope_eval_layers"

# Attribute of the decoder: what to undo.
_HOOKS = "_hope_eval_hooks"

PREFIX = "rotary_emb_of_layers_"


@dataclass(frozen=True)
class Undo:
    """What to undo: hooks, and values (module, attribute, value before); names of the rotary modules, by layer."""

    handles: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[tuple[nn.Module, str, Any]] = field(default_factory=list)


def put(decoder: nn.Module, layers: nn.ModuleList, rotary: nn.Module, configs: list[tuple[Any, str] | None]) -> Undo:
    """Give layers rotary modules of their own; gives what `remove` undoes.

    layers:  of the decoder.
    rotary:  the module that they share.
    configs: the config of each layer's rotary module and its layer type, empty where these do not matter; None: the
             layer keeps the shared one. Layers with the same config object share a module.
    """
    names: dict[int, str] = {}
    undo = Undo()
    device = next(buffer.device for buffer in rotary.buffers())
    for layer, chosen in zip(layers, configs, strict=True):
        if chosen is None:
            undo.names.append("")
            continue
        config, layer_type = chosen
        if id(config) not in names:
            names[id(config)] = f"{PREFIX}{len(names)}"
            decoder.add_module(names[id(config)], type(rotary)(config=config).to(device))
        hook = functools.partial(_rotated, decoder, names[id(config)], layer_type)
        undo.handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        undo.names.append(names[id(config)])
    setattr(decoder, _HOOKS, undo)
    return undo


def remove(model: nn.Module) -> None:
    """Take the rotary modules of layers away."""
    for decoder in list(model.modules()):
        undo = vars(decoder).pop(_HOOKS, None)
        for handle in undo.handles if undo else ():
            handle.remove()
        for module, key, value in undo.values if undo else ():
            setattr(module, key, value)
        for name in [name for name, _ in decoder.named_children() if name.startswith(PREFIX)]:
            delattr(decoder, name)


def names_of(model: nn.Module) -> list[str]:
    """Name of the rotary module of each layer, empty for the shared one; no names: all share one."""
    decoder = next((module for module in model.modules() if _HOOKS in vars(module)), None)
    return list(vars(decoder)[_HOOKS].names) if decoder else []


def _rotated(
    decoder: nn.Module, name: str, layer_type: str, layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shared, positions = options.get("position_embeddings"), options.get("position_ids")
    if shared is None or positions is None:
        raise EncodingError(
            f"layers of {type(decoder).__name__} take no rotation from outside, so that single layers cannot get "
            "another encoding",
            '--encoding "all=…"',
        )
    hidden = inputs[0] if inputs else options["hidden_states"]
    own = getattr(decoder, name)(hidden, positions, *([layer_type] if layer_type else []))
    return inputs, {**options, "position_embeddings": own}


def variant(config: Any, **changes: Any) -> Any:
    """A copy of a config with some values changed."""
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        setattr(changed, key, value)
    return changed


def come_back(modeling_utils: Any, put_on: Callable[[nn.Module], None]) -> None:
    """Let models whose config has `hope_eval_layers` get them when they are built.

    modeling_utils: of transformers.
    put_on:         called with a decoder that has just been built.
    """
    base = modeling_utils.PreTrainedModel
    own = base.post_init

    @functools.wraps(own)
    def post_init(self: Any) -> None:
        own(self)
        if getattr(self.config, KEY, None):
            put_on(self)

    base.post_init = post_init
