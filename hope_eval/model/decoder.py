"""The decoder: transformers' Llama with a position encoding of this package, as a transformers model class.

    config = HopeEvalConfig(encoding="alibi", max_position_embeddings=256, …)   as LlamaConfig, and the encoding
    config = HopeEvalConfig(encoding="0-2=rope;3-=nope", …)                     layers have encodings of their own
    model = AutoModelForCausalLM.from_config(config)

Everything but the encoding is the same for all encodings: layers, initial weights, mask. After `import hope_eval`,
plain `AutoModelForCausalLM.from_pretrained` loads such a checkpoint, `generate` works, and so does Trainer.

The training length is `max_position_embeddings`. Positions are counted from the first token: there is no left padding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    modeling_rope_utils,
)
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from hope_eval.encodings import EncodingSpec, Geometry, PositionEncoding
from hope_eval.encodings.nope import Nope
from hope_eval.errors import EncodingError, LengthError
from hope_eval.model import layer_rotary, rope_types
from hope_eval.model.in_effect import DECODER
from hope_eval.model.kernels import attention
from hope_eval.model.layer_choice import is_mixture, kinds_of, parse_choice


class HopeEvalConfig(LlamaConfig):
    """LlamaConfig with a position encoding.

    encoding:            its name; or layers and their encodings, see `layer_choice`.
    encoding_parameters: its hyper-parameters that are not at their defaults; None for a mixture of encodings.
    """

    model_type = DECODER
    encoding: str = "rope"
    encoding_parameters: dict[str, float] | None = None

    def specs(self) -> list[EncodingSpec]:
        """The encoding of each layer."""
        if is_mixture(self.encoding):
            specs = parse_choice(self.encoding).of_layers(kinds_of(self))
            if all(specs):
                return [spec for spec in specs if spec]
            raise EncodingError(
                f"`{self.encoding}` gives layer {specs.index(None)} of {len(specs)} no encoding",
                f"begin with a rule for all layers: all=rope;{self.encoding}",
            )
        return [EncodingSpec(self.encoding, tuple((self.encoding_parameters or {}).items()))] * self.num_hidden_layers


def _rope_parameters(encoding: PositionEncoding) -> dict[str, Any]:
    """The `rope_parameters` of the config: the rotation of queries and keys."""
    rotates = "rotary" in encoding.kinds()
    if encoding.rope_type == "default" or not (rotates or encoding.is_rope_type()):
        # xPos rotates as RoPE does; a bias or embeddings do not rotate.
        rope_type = encoding.rope_type if rotates else Nope.registered_as()
        return {"rope_type": rope_type, "rope_theta": encoding.geometry.rope_theta}
    rope_types.register(modeling_rope_utils, type(encoding))
    return encoding.rope_parameters()


class _KeepsEncodings:
    """Initialises all weights but those of encodings, which initialise their own."""

    def _init_weights(self, module: nn.Module) -> None:
        encodings = (part for part in self.modules() if isinstance(part, PositionEncoding))
        if not any(module is part for encoding in encodings for part in encoding.modules()):
            super()._init_weights(module)


class HopeEvalModel(_KeepsEncodings, LlamaModel):
    """Layers: Llama's, with the encoding in embeddings, rotary module and attention."""

    config_class = HopeEvalConfig

    def __init__(self, config: HopeEvalConfig) -> None:
        if config.hidden_size % config.num_attention_heads:
            raise EncodingError(
                f"a width of {config.hidden_size} does not divide into {config.num_attention_heads} heads",
                "choose a number of heads that divides it",
            )
        geometry = Geometry(
            head_dim=config.head_dim,
            n_heads=config.num_attention_heads,
            train_length=config.max_position_embeddings,
            rope_theta=float(config.rope_parameters.get("rope_theta", 10_000.0)),
            d_model=config.hidden_size,
        )
        specs = config.specs()
        encodings = {spec: spec.build(geometry) for spec in dict.fromkeys(specs)}
        first = encodings[specs[0]]
        config.rope_parameters = _rope_parameters(first)
        config._attn_implementation = attention.NAME
        super().__init__(config)
        for layer, spec in zip(self.layers, specs, strict=True):
            if encodings[spec].shared:
                # A reference, not a submodule, so that its parameters are stored once.
                object.__setattr__(layer.self_attn, "encoding", encodings[spec])
            else:
                layer.self_attn.encoding = spec.build(geometry)
        self.encoding = first if len(encodings) == 1 and first.shared else None
        if len(encodings) > 1:
            self._mix(specs, encodings)

    def _mix(self, specs: list[EncodingSpec], encodings: dict[EncodingSpec, PositionEncoding]) -> None:
        """Give every layer the rotation of its own encoding."""
        for spec, encoding in encodings.items():
            if "absolute" in encoding.kinds():
                raise EncodingError(
                    f"`{spec}` is added to the embeddings, which all layers share, so that no layer can have another",
                    "choose an encoding that acts in the layers: rope, hope, nope, alibi…",
                )
        self.mixed_encoding = nn.ModuleList(encoding for encoding in encodings.values() if encoding.shared)
        ropes = {spec: _rope_parameters(encoding) for spec, encoding in encodings.items()}
        configs = {spec: layer_rotary.variant(self.config, rope_parameters=rope) for spec, rope in ropes.items()}
        layer_rotary.put(self, self.layers, self.rotary_emb, [(configs[spec], "") for spec in specs])

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **rest: Any) -> Any:
        """Hidden states, as LlamaModel returns them."""
        if inputs_embeds is None and self.encoding is not None:
            assert input_ids is not None
            past = rest.get("past_key_values")
            start = past.get_seq_length() if past is not None else 0
            end = self.encoding.max_length
            if end is not None and start + input_ids.shape[1] > end:
                raise LengthError(
                    f"`{self.encoding.name()}` has a table of {end} positions and cannot read "
                    f"{start + input_ids.shape[1]} tokens",
                    "choose another encoding to read further",
                )
            positions_BL = rest.get("position_ids")
            if positions_BL is None:
                positions_BL = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
            inputs_embeds, input_ids = self.encoding.embed(self.embed_tokens(input_ids), positions_BL), None
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **rest)


class HopeEvalForCausalLM(_KeepsEncodings, LlamaForCausalLM):
    """Layers with a head: a causal language model."""

    config_class = HopeEvalConfig

    def __init__(self, config: HopeEvalConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = HopeEvalModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


attention.register()
# Without exist_ok: a model type of another library is an error of transformers, and not replaced.
AutoConfig.register(HopeEvalConfig.model_type, HopeEvalConfig)
AutoModelForCausalLM.register(HopeEvalConfig, HopeEvalForCausalLM)
