"""Encodings of some layers only: the form of `--encoding`, and that exactly those layers get it."""

import math

import pytest
import torch
import transformers
from conftest import VOCAB_SIZE, tiny_model, tiny_module

from hope_eval.errors import EncodingError
from hope_eval.model.attach import attach
from hope_eval.model.checkpoint import Checkpoint
from hope_eval.model.decoder import HopeEvalConfig, HopeEvalForCausalLM
from hope_eval.model.in_effect import effective_inverse_frequencies, encoding_label
from hope_eval.model.layer_choice import kinds_of, parse_choice
from hope_eval.task import Sample

IDS = torch.arange(60)[None] % VOCAB_SIZE

MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def rotated_by_hand(model, thetas):
    """Let the attention of layer i be rotated by frequencies thetas[i], computed in float64; None: as it is."""

    def wrapped(forward, theta):
        def run(*inputs, **options):
            cos, sin = options["position_embeddings"]
            angles = [[position * t for t in theta] for position in range(cos.shape[1])]
            table = torch.tensor(angles, dtype=torch.float64).repeat(1, 2)[None]
            options["position_embeddings"] = (table.cos().to(cos), table.sin().to(sin))
            return forward(*inputs, **options)

        return run

    for layer, theta in zip(model.model.layers, thetas, strict=True):
        if theta is not None:
            layer.self_attn.forward = wrapped(layer.self_attn.forward, theta)
    return model


def hope(head_dim, theta, train_length):
    frequencies = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    return [f if f >= 2 * math.pi / train_length else 0.0 for f in frequencies]


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "olmo3"])
@pytest.mark.parametrize(
    ("encoding", "layers"),
    [
        ("hope", (None, 64)),
        ("full=hope", (None, 64)),
        ("sliding=hope;full=native", (16, None)),
        ("all=hope", (16, 64)),
        ("0=hope", (16, None)),
        ("all=hope;0=native", (None, 64)),
    ],
)
def test_exactly_the_layers_that_are_named_change(kind, encoding, layers):
    """A sliding layer of 16 tokens was trained at distances to 16, whatever the length of the texts."""
    changes = {**MIXED, "max_position_embeddings": 64}
    plain, model = tiny_module(kind, **changes), tiny_module(kind, **changes)
    rope = plain.config.rope_parameters
    thetas = []
    for layer_type, length in zip(MIXED["layer_types"], layers, strict=True):
        theta = rope.get(layer_type, rope)["rope_theta"]
        thetas.append(hope(plain.config.head_dim, theta, length) if length else None)
    attach(model, encoding)
    assert torch.allclose(logits(model), logits(rotated_by_hand(plain, thetas)), atol=2e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("encoding", ["full=yarn:factor=4;sliding=hope", "0=nope", "1-=nope;0=rope:theta=50"])
def test_a_mixture_is_saved_and_comes_back_with_plain_transformers(kind, encoding, tmp_path):
    model = attach(tiny_module(kind, **MIXED), encoding)
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(back), logits(model))
    assert not torch.equal(logits(back), logits(tiny_module(kind, **MIXED)))


def test_a_checkpoint_gives_all_its_encodings_back():
    module = tiny_module("gemma2", **MIXED)
    before = logits(module)
    checkpoint = Checkpoint("tiny", module, tiny_model().tokenizer, "", 64, "config", 64)
    labels = []
    for encoding in ("hope", "0=nope", "native", "all=hope", "sliding=nope;full=hope", "native"):
        model = checkpoint.with_encoding(encoding)
        labels.append(model.encoding)
        assert torch.equal(logits(module), before) is (encoding == "native")
    swapped = ["full=hope(swap)", "0=nope(swap)", "rope", "hope(swap)", "sliding=nope;full=hope(swap)", "rope"]
    assert labels == swapped
    assert list(effective_inverse_frequencies(module)) == ["rotary_emb.inv_freq"]


def test_kept_contexts_and_whole_reads_agree_under_a_mixture():
    module = attach(tiny_module("gemma2", **MIXED), "full=nope;sliding=hope")
    model = tiny_model()
    model = type(model)("tiny", module, model.tokenizer, 64, "config")
    ids = IDS[0].numpy()
    short, long = (model.score([Sample(ids[:1], ids[1:n])])[0].nll for n in (30, 60))
    assert short == pytest.approx(long[:29], abs=1e-4)


def test_scales_of_the_encoding_before_do_not_stay():
    """DeepSeek scales attention by mscale of YaRN, once, when it is built."""
    shape = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "max_position_embeddings": 2560,
    }  # fmt: skip
    yarn = {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 64,
    }  # fmt: skip

    def model_of(rope):
        config = transformers.DeepseekV3Config(**shape, rope_parameters=rope)
        return transformers.DeepseekV3ForCausalLM(config).eval()

    stretched, plain = model_of(yarn), model_of({"rope_type": "default", "rope_theta": 10_000.0})
    plain.load_state_dict(stretched.state_dict())
    own, scale = logits(stretched), stretched.model.layers[0].self_attn.scaling
    checkpoint = Checkpoint("tiny", stretched, tiny_model().tokenizer, "", 2560, "config", 64)
    checkpoint.with_encoding("rope")
    assert torch.equal(logits(stretched), logits(plain))
    assert stretched.model.layers[0].self_attn.scaling < scale
    checkpoint.with_encoding("1=rope")
    assert stretched.model.layers[0].self_attn.scaling == scale > stretched.model.layers[1].self_attn.scaling
    checkpoint.with_encoding("native")
    assert torch.equal(logits(stretched), own)


def test_what_an_architecture_keeps_in_rope_parameters_stays():
    model = tiny_module("ministral3")
    beta = model.config.rope_parameters["llama_4_scaling_beta"]
    attach(model, "rope")
    assert model.config.rope_parameters["llama_4_scaling_beta"] == beta
    assert "factor" not in model.config.rope_parameters
    assert logits(model).isfinite().all()


def test_layers_that_do_not_rotate_are_an_error_and_nothing_changes():
    model = tiny_module("cohere2", **MIXED)
    before = logits(model)
    with pytest.raises(EncodingError, match="the layers that it names do not rotate") as caught:
        attach(model, "hope")
    assert "sliding=hope" in caught.value.hint
    assert torch.equal(logits(model), before)


def test_a_decoder_that_get_decoder_does_not_give_is_found():
    model = tiny_module()
    model.get_decoder = lambda: model.lm_head
    assert encoding_label(model) == "rope"
    before = logits(model)
    assert not torch.equal(logits(attach(model, "hope")), before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("full=", "no position encoding is called ``"),
        ("full=native", "changes no layer"),
        ("0-1=rope;2", "`2` of `--encoding 0-1=rope;2` is not layers and their encoding"),
        ("5-3=rope", "names the layers `5-3`, and this model has layers 0 to 1"),
        ("7=rope", "this model has layers 0 to 1"),
        ("global=rope", "names `global` layers, and the layers of this model are: full, sliding"),
        (";", "changes no layer"),
        ("--=rope", "is not layers and their encoding"),
    ],
)
def test_wrong_forms_are_errors(text, message):
    with pytest.raises(EncodingError, match=message):
        attach(tiny_module("gemma2", **MIXED), text)


def test_the_form():
    choice = parse_choice(" full = yarn:factor=4 ; 0-1,3=nope;-2=native")
    assert str(choice) == "full=yarn:factor=4;0-1,3=nope;-2=native"
    assert [str(spec) for spec in choice.of_layers(["full"] * 5)] == ["None"] * 3 + ["nope", "yarn:factor=4"]
    assert parse_choice("hope").label(["sliding", "full"]) == "full=hope"
    assert parse_choice("hope").label(["sliding"] * 2) == "hope"
    assert kinds_of(tiny_module("mistral", sliding_window=8).config) == ["sliding", "sliding"]


def decoder(encoding, seed=0, **parameters):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = HopeEvalConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, encoding=encoding, **parameters,
        )  # fmt: skip
        return HopeEvalForCausalLM(config).eval()


@pytest.mark.parametrize("encoding", ["0=hope;1-=nope", "all=rope;1=hope:multiplier=2"])
def test_a_trained_mixture_computes_what_the_same_swap_computes(encoding):
    mixture, swapped = decoder(encoding), attach(decoder("rope"), encoding)
    assert torch.equal(logits(mixture), logits(swapped))
    assert encoding_label(mixture) == encoding


@pytest.mark.parametrize("encoding", ["0-1=rope;2=alibi", "all=t5;0=kerple", "0=fire;1-=hope", "0=xpos;1-=nope"])
def test_layers_may_have_encodings_of_all_kinds(encoding, tmp_path):
    model = decoder(encoding)
    with torch.no_grad():
        # Fresh scalars of T5 are zeros: no bias.
        model.model.mixed_encoding.apply(lambda part: [p.normal_() for p in part.parameters(recurse=False)])
    alone = {str(spec): decoder(spec.name) for spec in parse_choice(encoding).specs}
    outputs = [logits(model), *map(logits, alone.values())]
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(outputs) for b in outputs[:i])
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(back), outputs[0])
    names = [name for name, _ in model.named_parameters() if "encoding." in name]
    assert len(names) == len(set(names))
    assert sum("scalars_HB" in name for name in names) == ("t5" in encoding), "layers share the scalars of T5"


def test_a_mixture_cannot_be_replaced():
    with pytest.raises(EncodingError, match="no encoding can replace a mixture"):
        attach(decoder("0=hope;1-=nope"), "rope")


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("0=hope", "gives layer 1 of 3 no encoding"),
        ("0=learned;1-=rope", "is added to the embeddings"),
        ("0=rope;5=nope", "this model has layers 0 to 2"),
    ],
)
def test_mixtures_that_cannot_be_trained_are_errors(encoding, message):
    with pytest.raises(EncodingError, match=message):
        decoder(encoding)
