"""Put a position encoding on a loaded model, and read back the frequencies that the model really uses.

In this field, an override often has no effect, or a part of it, without any message. So `attach` rebuilds the rotary
modules of the model from a changed config, gives every module the numbers that a model built anew from that config
has, and then compares the inverse frequencies in them with those of the encoding.
"""

import copy
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hope_eval.encodings import EncodingSpec, PositionEncoding, encoding_class
from hope_eval.errors import EncodingError
from hope_eval.model import layer_rotary, rope_types
from hope_eval.model.configs import ORIGINAL, formula_length, geometry_of, model_type, text_config
from hope_eval.model.in_effect import (
    DECODER,
    effective_inverse_frequencies,
    has_frequencies,
    rotary_modules,
    trained_with,
)
from hope_eval.model.layer_choice import LayerChoice, is_mixture, kinds_of, parse_choice, window_of

# Keys of `rope_parameters` that belong to an encoding. All others (what part of a head is rotated, sections of images,
# the temperature of attention) belong to the architecture, and stay.
_OF_ENCODINGS = {
    "rope_type", "type", "rope_theta", ORIGINAL, "max_position_embeddings", "factor", "attention_factor", "beta_fast",
    "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim",
    "truncate",
}  # fmt: skip

# Keys of a config that name the encoding; the last two belong to this package's own decoder.
ENCODING_KEYS = ("rope_parameters", layer_rotary.KEY, "encoding", "encoding_parameters")

# Tokens of the input that shows whether layers rotate at all.
_PROBE = 24

Rope = dict[str, Any]


def attach(model: nn.Module, encoding: str | LayerChoice, train_length: int | None = None) -> nn.Module:
    """Replace the rotary encoding of a transformers decoder by another, in place, and return the model.

    model:        a transformers model whose config has `rope_parameters` (Llama, Mistral, Qwen, Gemma, OLMo, Phi…).
    encoding:     `hope`, `hope:multiplier=2,theta=50000`, `nope`, the path of a Python file that defines one, or layers
                  and their encodings: `full=yarn:factor=4;sliding=native` (see `layer_choice`).
    train_length: tokens, L_train of the formulas; by default from the config (see `configs.formula_length`). For a
                  layer with a sliding window it is at most the window.

    The base of the frequencies stays as it is in the config unless the encoding says `theta=`; the rotated part of each
    head stays in any case. The config is changed too, so that `save_pretrained` keeps the encoding.

    Raises EncodingError if the model has no rotary encoding, if the encoding needs more than other frequencies, or
    if the model does not end up with the frequencies of the encoding.
    """
    choice = parse_choice(encoding) if isinstance(encoding, str) else encoding
    _check_replaceable(model, choice)
    config = text_config(model)
    own = {key: copy.deepcopy(getattr(config, key, None)) for key in ENCODING_KEYS}
    try:
        _put(model, choice, train_length)
    except EncodingError:
        restore(model, own)
        raise
    return model


def _put(model: nn.Module, choice: LayerChoice, train_length: int | None) -> None:
    config = text_config(model)
    # Single layers get back what all layers have before others are chosen.
    set_rope(model, config.rope_parameters)
    chosen = _Chosen(config, choice, train_length)
    frequencies = effective_inverse_frequencies(model)
    if chosen.is_whole:
        if model_type(model) == DECODER:
            (only,) = choice.specs
            config.encoding, config.encoding_parameters = only.name, dict(only.parameters)
        set_rope(model, chosen.whole)
    else:
        set_rope(model, config.rope_parameters, {"encoding": str(choice), "train_length": train_length})
        _check_effect(model, choice)
    _check_frequencies(model, choice, frequencies | chosen.expected(model))


class _Chosen:
    """What a choice means for a model: `rope_parameters` for each layer.

    whole:    `rope_parameters` of the config, if that says it all.
    is_whole: whether it does. Otherwise layers of one type, or layers that share one rotary module, differ.
    """

    def __init__(self, config: Any, choice: LayerChoice, train_length: int | None) -> None:
        from transformers import modeling_rope_utils

        for asked in choice.specs:
            rope_types.register(modeling_rope_utils, encoding_class(asked.name))
        rope, kinds = config.rope_parameters, kinds_of(config)
        types = [key for key, value in rope.items() if isinstance(value, dict)]
        names = [f"{kind}_attention" if f"{kind}_attention" in types else "" for kind in kinds]
        self.types = names
        self.built: list[PositionEncoding | None] = []
        self.ropes: list[Rope | None] = []
        made: dict[tuple[str, str, str], tuple[PositionEncoding, Rope]] = {}
        for spec, kind, layer_type in zip(choice.of_layers(kinds), kinds, names, strict=True):
            if spec is None or (types and not layer_type):
                # Layers without an entry do not rotate.
                self.built.append(None)
                self.ropes.append(None)
                continue
            key = (str(spec), kind, layer_type)
            if key not in made:
                made[key] = _changed(config, spec, kind, layer_type, train_length)
            self.built.append(made[key][0])
            self.ropes.append(made[key][1])
        by_type = {name: self._of(name) for name in (types or [""])}
        self.is_whole = all(len(ropes) <= 1 for ropes in by_type.values())
        if self.is_whole:
            news = {name: next(iter(ropes.values()), None) for name, ropes in by_type.items()}
            if types:
                self.whole: Rope = {**rope, **{name: new or rope[name] for name, new in news.items()}}
            else:
                self.whole = news[""] or rope

    def _of(self, layer_type: str) -> dict[str, Rope | None]:
        """The different `rope_parameters` of the layers of a type."""
        ropes = [rope for rope, name in zip(self.ropes, self.types, strict=True) if name == layer_type]
        return {json.dumps(rope, sort_keys=True, default=str): rope for rope in ropes}

    def expected(self, model: nn.Module) -> dict[str, Tensor]:
        """Frequencies that the model must have, by path of the buffer."""
        found: dict[str, Tensor] = {}
        paths = effective_inverse_frequencies(model)
        names = layer_rotary.names_of(model)
        for index, (encoding, layer_type) in enumerate(zip(self.built, self.types, strict=True)):
            if encoding is None:
                continue
            leaf = f"{layer_type}_inv_freq" if layer_type else "inv_freq"
            for path in paths:
                if path.endswith(f".{leaf}") and (not names or path.startswith(f"{names[index]}.")):
                    found[path] = encoding.inverse_frequencies()
        return found


def _changed(
    config: Any, spec: EncodingSpec, kind: str, layer_type: str, train_length: int | None
) -> tuple[PositionEncoding, Rope]:
    """An encoding for the layers of a kind, and their `rope_parameters`."""
    length, window = train_length or (formula_length(config, layer_type or None) or (0, ""))[0], window_of(config, kind)
    length = min(length, window) if window and length else length
    encoding = spec.build(replace(geometry_of(config, layer_type or None), train_length=length))
    before = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    kept = {key: value for key, value in before.items() if key not in _OF_ENCODINGS}
    own = encoding_keys(before)
    return encoding, {**{key: value for key, value in kept.items() if key not in own}, **encoding.rope_parameters()}


def encoding_keys(rope: Rope) -> set[str]:
    """Keys of `rope_parameters` that are parameters of the encoding which they name."""
    from hope_eval.encodings import hyper_parameters

    cls = rope_types.encoding_of(str(rope.get("rope_type")))
    return set(hyper_parameters(cls)) if cls else set()


def _check_replaceable(model: nn.Module, choice: LayerChoice) -> None:
    """Raise EncodingError unless both the encoding of the model and those asked for are rotary frequencies."""
    for spec in choice.specs:
        if not encoding_class(spec.name).is_rope_type():
            raise EncodingError(
                f"`{spec.name}` cannot be put on a trained checkpoint: it changes more than rotary frequencies",
                "train a model with it",
            )
    own = trained_with(model)
    if is_mixture(own):
        raise EncodingError(
            f"this model was trained with `{own}`, and no encoding can replace a mixture",
            "leave --encoding out",
        )
    if own and not encoding_class(own.partition(":")[0]).is_rope_type():
        raise EncodingError(
            f"`{own}` of this model is not only rotary frequencies, so `{choice.specs[0]}` cannot replace it",
            "leave --encoding out",
        )
    if not getattr(text_config(model), "rope_parameters", None) or not rotary_modules(model):
        raise EncodingError(
            f"`{model_type(model)}` has no rotary encoding that `{choice.specs[0]}` could replace",
            "choose a checkpoint with RoPE, or leave --encoding out",
        )


def set_rope(model: nn.Module, rope: Rope, layers: dict[str, Any] | None = None) -> None:
    """Give a model other `rope_parameters`, in its config and in its modules; rotary modules are built anew.

    layers: encodings of single layers and the training length in their formulas, as the config keeps them; None: none.

    Raises EncodingError if the architecture cannot be built with them.
    """
    config = text_config(model)
    layer_rotary.remove(model)
    if hasattr(config, layer_rotary.KEY):
        delattr(config, layer_rotary.KEY)
    before, config.rope_parameters = config.rope_parameters, rope
    _take_scalars(model, before, rope)
    for parent, child, module in rotary_modules(model):
        setattr(parent, child, _rebuilt(module, config))
    if layers:
        setattr(config, layer_rotary.KEY, layers)
        put_on_layers(model)


def put_on_layers(model: nn.Module) -> None:
    """Give single layers the encodings that the config asks for, if this module has the layers."""
    config = text_config(model)
    asked = getattr(config, layer_rotary.KEY)
    choice = parse_choice(asked["encoding"])
    found = _layers_of(model)
    if found is None or layer_rotary.names_of(model):
        return
    decoder, layers = found
    rotary = [module for parent, _, module in rotary_modules(decoder) if parent is decoder]
    if len(rotary) != 1:
        raise EncodingError(
            f"the layers of `{model_type(model)}` share {len(rotary) or 'no'} rotary modules, so that single layers "
            "cannot get another encoding",
            f'--encoding "all={choice.specs[0]}"',
        )
    chosen = _Chosen(config, choice, asked["train_length"])
    variants: dict[str, Any] = {}
    configs: list[tuple[Any, str] | None] = []
    for rope, layer_type in zip(chosen.ropes, chosen.types, strict=True):
        if rope is None:
            configs.append(None)
            continue
        whole = {**config.rope_parameters, layer_type: rope} if layer_type else rope
        key = json.dumps(whole, sort_keys=True, default=str)
        if key not in variants:
            variants[key] = layer_rotary.variant(config, rope_parameters=whole)
        configs.append((variants[key], layer_type))
    undo = layer_rotary.put(decoder, layers, rotary[0], configs)
    for variant in variants.values():
        indices = {index for index, one in enumerate(configs) if one and one[0] is variant}
        is_chosen = functools.partial(_is_of_layers, indices)
        undo.values.extend(_take_scalars(model, config.rope_parameters, variant.rope_parameters, is_chosen))


def _is_of_layers(indices: set[int], path: str) -> bool:
    """Whether a module belongs to one of these layers."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None) in indices


def _layers_of(model: nn.Module) -> tuple[nn.Module, nn.ModuleList] | None:
    """The decoder and its list of layers."""
    n = int(getattr(text_config(model), "num_hidden_layers", 0) or 0)
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == n and _rotates(module):
                return module, child
    return None


def _rotates(module: nn.Module) -> bool:
    return any(has_frequencies(child) for child in module.children())


def _rebuilt(module: nn.Module, config: Any) -> nn.Module:
    device = next(buffer.device for buffer in module.buffers())
    try:
        rebuilt = type(module)(config=_of_formulas(config))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise EncodingError(
            f"the rotary module {type(module).__name__} cannot be rebuilt: {type(error).__name__}: {error}",
            "leave --encoding out",
        ) from error
    return rebuilt.to(device)


def _of_formulas(config: Any) -> Any:
    """The config; for dynamic NTK a copy in which `max_position_embeddings`, which it reads, is the training length."""
    rope = config.rope_parameters
    length = rope.get(ORIGINAL) if rope.get("rope_type") == "dynamic" else None
    if not length or length == getattr(config, "max_position_embeddings", None):
        return config
    return layer_rotary.variant(config, max_position_embeddings=int(length))


def _take_scalars(
    model: nn.Module, before: Rope, after: Rope, of: Callable[[str], bool] = lambda path: True
) -> list[tuple[nn.Module, str, Any]]:
    """Give modules the plain values that differ between models built with the one `rope_parameters` and the other.

    Attention may be scaled by what the encoding says (mscale of YaRN): a module computes that once, when it is built.

    of: whether a module gets them, by its path.

    Returns (module, attribute, value before) of all that has changed.
    """
    if before == after:
        return []
    old, new = _outline(model, before), _outline(model, after)
    ours, changed = dict(model.named_modules()), []
    for path, module in new.items():
        if path not in ours or path not in old or not of(path) or has_frequencies(ours[path]):
            continue
        for key, value in vars(module).items():
            is_plain = not key.startswith("_") and isinstance(value, int | float | str | None)
            if is_plain and vars(old[path]).get(key) != value:
                changed.append((ours[path], key, vars(ours[path]).get(key)))
                setattr(ours[path], key, value)
    return changed


def _outline(model: nn.Module, rope: Rope) -> dict[str, nn.Module]:
    """The modules of a model of the same architecture with these `rope_parameters`, by path, without weights."""
    whole: Any = copy.deepcopy(model.config)
    config = whole.get_text_config()
    config.rope_parameters = rope
    if hasattr(config, layer_rotary.KEY):
        delattr(config, layer_rotary.KEY)
    try:
        with torch.device("meta"):
            return dict(type(model)(whole).named_modules())
    except EncodingError:
        raise
    except Exception as error:
        # Each architecture raises other errors for parameters that it does not expect.
        raise EncodingError(
            f"`{model_type(model)}` cannot be built with rope_parameters {rope}: {type(error).__name__}: {error}",
            "leave --encoding out",
        ) from error


def restore(model: nn.Module, own: Mapping[str, Any]) -> None:
    """Put an encoding back.

    own: values of ENCODING_KEYS in the config, None for those that it lacked.
    """
    config = text_config(model)
    for key in ENCODING_KEYS[2:]:
        if hasattr(config, key):
            setattr(config, key, copy.deepcopy(own[key]))
    set_rope(model, copy.deepcopy(own["rope_parameters"]), own[layer_rotary.KEY])


def _check_effect(model: nn.Module, choice: LayerChoice) -> None:
    """Raise EncodingError if other frequencies for single layers change nothing: those layers do not rotate."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    config = text_config(model)
    rope, asked = config.rope_parameters, getattr(config, layer_rotary.KEY)
    n = min(_PROBE, int(getattr(config, "vocab_size", _PROBE)))
    ids_BL = torch.arange(n, device=device)[None]
    with torch.inference_mode():
        swapped = model(input_ids=ids_BL, use_cache=False).logits
        own = {str(value.tolist()) for value in effective_inverse_frequencies(model).values()}
        set_rope(model, rope)
        same = torch.equal(swapped, model(input_ids=ids_BL, use_cache=False).logits)
        set_rope(model, rope, asked)
    if same and len(own) > 1:
        raise EncodingError(
            f"`{choice}` changes nothing in `{model_type(model)}`: the layers that it names do not rotate",
            f'--encoding "all={choice.specs[0]}", or "sliding={choice.specs[0]}"',
        )


def _check_frequencies(model: nn.Module, choice: LayerChoice, expected: dict[str, Tensor]) -> None:
    """Raise EncodingError unless the model holds these frequencies, by path of the buffer."""
    for path, frequencies in effective_inverse_frequencies(model).items():
        wanted = expected.get(path)
        if wanted is None or wanted.shape != frequencies.shape or not torch.equal(wanted, frequencies):
            raise EncodingError(
                f"`{choice.specs[0]}` was asked for, but {path} of {type(model).__name__} does not hold its "
                "frequencies",
                "this architecture ignores rope_parameters; leave --encoding out",
            )
        if not torch.isfinite(frequencies).all():
            raise EncodingError(f"{path} of {type(model).__name__} is not finite with `{choice}`", "another parameter")


def differing_scalars(model: nn.Module) -> list[tuple[str, str, float, float]] | None:
    """(path, attribute, own number, right number) of modules that differ from those of a model built anew.

    None: the architecture cannot be built anew. Numbers of single layers with other encodings are left out.
    """
    if getattr(text_config(model), "rope_parameters", None) is None or layer_rotary.names_of(model):
        return None
    try:
        anew = _outline(model, text_config(model).rope_parameters)
    except EncodingError:
        return None
    found: list[tuple[str, str, float, float]] = []
    for path, module in model.named_modules():
        right = vars(anew[path]) if path in anew else {}
        for key, value in vars(module).items():
            wanted: Any = right.get(key)
            numbers = isinstance(value, float) and isinstance(wanted, float) and not key.startswith("_")
            if numbers and value != wanted:
                found.append((path, key, value, wanted))
    return found
