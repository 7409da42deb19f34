import json
import shutil

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, byte_tokenizer, tiny_config, tiny_module

from hope_eval.errors import CheckpointError, EncodingError, OptionError
from hope_eval.model.checkpoint import load, load_checkpoint
from hope_eval.model.configs import formula_length, training_length
from hope_eval.task import Sample

SAMPLE = Sample([0], list(range(1, 100)))


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_a_folder(checkpoint):
    model = load(str(checkpoint), device="cpu")
    assert (model.name, model.encoding, model.reading.head) == ("tiny-llama", "rope", "chunked")
    assert (model.train_length, model.train_length_source) == (64, "max_position_embeddings")
    assert model.dtype == torch.float32
    ids = torch.tensor([[0, *range(1, 100)]])
    logits = tiny_module()(ids).logits[0]
    wanted = -torch.log_softmax(logits, -1)[:-1].gather(-1, ids[0, 1:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(model.score([SAMPLE])[0].nll, wanted, atol=1e-5)


def test_the_training_length_can_be_told(checkpoint):
    model = load(str(checkpoint), device="cpu", train_length=32)
    assert (model.train_length, model.train_length_source) == (32, "--train-length")


STRETCHED = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0},
    "longrope": {"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8},
}


def stretched(kind, folder, **changes):
    """A checkpoint stretched from 16 to 128 tokens, as Llama-3.1 is from 8k to 128k."""
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 16, **STRETCHED[kind]}
    changes = {"rope_parameters": rope, "max_position_embeddings": 128, **changes}
    tiny_module(**changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


BEFORE = "formulas use 16: rope_parameters.original_max_position_embeddings"


@pytest.mark.parametrize("kind", STRETCHED)
def test_a_stretched_checkpoint_was_trained_to_its_stretched_length(kind, tmp_path):
    loaded = load_checkpoint(stretched(kind, tmp_path), device="cpu")
    model = loaded.with_encoding()
    assert (model.encoding, model.train_length) == (kind, 128)
    assert model.train_length_source == f"max_position_embeddings; {BEFORE}"
    # HoPE's threshold follows the length before: 2 pi / 16 keeps one pair of 8; 2 pi / 128 would keep three.
    swapped = loaded.with_encoding("hope")
    assert (swapped.train_length, swapped.train_length_source) == (128, f"max_position_embeddings; {BEFORE}")
    assert int((swapped.module.model.rotary_emb.inv_freq > 0).sum()) == 1
    assert loaded.with_encoding().encoding == kind


@pytest.mark.parametrize("kind", STRETCHED)
def test_the_training_length_of_a_config_stretched_without_training_can_be_told(kind, tmp_path):
    loaded = load_checkpoint(stretched(kind, tmp_path), device="cpu", train_length=64)
    assert loaded.with_encoding().train_length_source == f"--train-length; {BEFORE}"
    swapped = loaded.with_encoding("hope")
    assert (swapped.train_length, swapped.train_length_source) == (64, "--train-length")
    assert swapped.module.config.rope_parameters["original_max_position_embeddings"] == 64


def test_layers_of_a_stretched_checkpoint_may_have_lengths_of_their_own(tmp_path):
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 16, **STRETCHED["yarn"]}
    layers = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = tiny_config("gemma3_text", max_position_embeddings=128, rope_parameters=layers)
    assert training_length(config) == (128, "max_position_embeddings")
    where = "rope_parameters.full_attention.original_max_position_embeddings"
    assert formula_length(config, "full_attention") == (16, where)


def test_a_stretched_length_is_at_least_the_original_one():
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 64, **STRETCHED["yarn"]}
    config = tiny_config(max_position_embeddings=32, rope_parameters=rope)
    assert training_length(config) == (64, "rope_parameters.original_max_position_embeddings")


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_dtype_is_what_was_asked_for(checkpoint, name, dtype):
    assert load(str(checkpoint), device="cpu", dtype=name).dtype == dtype


def test_one_checkpoint_takes_one_encoding_after_the_other(checkpoint):
    loaded = load_checkpoint(str(checkpoint), device="cpu")
    scores, labels = [], []
    for encoding in ("native", "hope", "nope", "native", "rope"):
        model = loaded.with_encoding(encoding)
        labels.append(model.encoding)
        scores.append(model.score([SAMPLE])[0].nll)
    assert labels == ["rope", "hope(swap)", "nope(swap)", "rope", "rope"]
    np.testing.assert_array_equal(scores[0], scores[4])
    np.testing.assert_array_equal(scores[0], scores[3])
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    assert np.abs(scores[1] - scores[2]).max() > 1e-3


def test_an_encoding_takes_nothing_from_the_one_before_it(checkpoint):
    loaded = load_checkpoint(str(checkpoint), device="cpu")
    for encoding in ("rope:theta=500", "hope", "yarn:factor=2", "clipped", "native"):
        frequencies = loaded.with_encoding(encoding).module.model.rotary_emb.inv_freq
        alone = load(str(checkpoint), encoding=encoding, device="cpu").module.model.rotary_emb.inv_freq
        assert torch.equal(frequencies, alone), encoding


def test_the_base_of_the_frequencies_is_in_the_label_of_a_swap(checkpoint):
    loaded = load_checkpoint(str(checkpoint), device="cpu")
    assert loaded.with_encoding("rope:theta=50000").encoding == "rope:theta=50000(swap)"
    assert loaded.with_encoding("rope:theta=10000").encoding == "rope:theta=10000"


def test_a_checkpoint_trained_with_hope_is_no_swap(tmp_path):
    rope = {"rope_type": "hope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    tiny_module(rope_parameters=rope).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_checkpoint(str(tmp_path), device="cpu")
    assert loaded.with_encoding().encoding == "hope"
    assert loaded.with_encoding("hope").encoding == "hope"
    assert loaded.with_encoding("rope").encoding == "rope(swap)"


def test_fingerprint_follows_weights_and_config(copy):
    first = load(str(copy), device="cpu").fingerprint
    assert load(str(copy), device="cpu").fingerprint == first
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    second = load(str(copy), device="cpu").fingerprint
    tiny_module(seed=1).save_pretrained(copy)
    assert len({first, second, load(str(copy), device="cpu").fingerprint}) == 3


def test_sharded_safetensors(tmp_path, checkpoint):
    tiny_module().save_pretrained(tmp_path, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    np.testing.assert_array_equal(
        load(str(tmp_path), device="cpu").score([SAMPLE])[0].nll,
        load(str(checkpoint), device="cpu").score([SAMPLE])[0].nll,
    )
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match="lacks model-00002"):
        load(str(tmp_path))


def test_a_pickle_of_weights_is_loaded_and_any_other_is_refused(copy):
    (copy / "model.safetensors").unlink()
    torch.save(tiny_module().state_dict(), copy / "pytorch_model.bin")
    assert load(str(copy), device="cpu").reading.head == "chunked"

    class Evil:
        def __reduce__(self):
            return (open, (str(copy / "evil"), "w"))

    torch.save({"lm_head.weight": Evil()}, copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load(str(copy), device="cpu")
    assert not (copy / "evil").exists()


def test_gguf(tmp_path, checkpoint):
    import gguf

    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"not a gguf")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        load(str(path))
    module = tiny_module()
    write_gguf(gguf, path, module)
    model = load(str(path), device="cpu")
    assert (model.name, model.train_length) == ("tiny", 64)
    ids = torch.tensor([[0, *range(1, 100)]])
    logits = module(ids).logits[0]
    wanted = -torch.log_softmax(logits, -1)[:-1].gather(-1, ids[0, 1:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(model.score([SAMPLE])[0].nll, wanted, atol=1e-4)


def write_gguf(gguf, path, module):
    """Write a tiny Llama as GGUF, float32, in the layout of llama.cpp."""
    config = module.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = byte_tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (config.vocab_size - 1))
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for key, value in module.state_dict().items():
        name = key.removesuffix(".weight")
        if name.startswith("model.layers."):
            number, part = name.removeprefix("model.layers.").split(".", 1)
            name = f"blk.{number}.{names[part]}"
        else:
            number, part, name = "", "", names[name]
        data = value.numpy()
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        if part in heads:
            # llama.cpp keeps the two halves of a rotary pair next to each other.
            n = heads[part]
            data = data.reshape(n, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def spoil(name: str):
    """Return what breaks a checkpoint in that way."""

    def truncate(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])

    def corrupt(folder):
        (folder / "model.safetensors").write_bytes(b"\xff" * 1000)

    def no_tokenizer(folder):
        for file in folder.glob("tokenizer*"):
            file.unlink()

    def lacks_weights(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return {
        "truncated": truncate,
        "corrupt": corrupt,
        "no tokenizer": no_tokenizer,
        "no config": lambda folder: (folder / "config.json").unlink(),
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "config is no JSON": lambda folder: (folder / "config.json").write_text("{"),
        "unknown architecture": lambda folder: (folder / "config.json").write_text('{"model_type": "unheard_of"}'),
        "lacks weights": lacks_weights,
        "other shapes": lambda folder: tiny_config(hidden_size=48).save_pretrained(folder),
    }[name]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "truncated or corrupt"),
        ("corrupt", "truncated or corrupt"),
        ("no tokenizer", "has no tokenizer"),
        ("no config", "has no config.json"),
        ("no weights", "has no weights"),
        ("config is no JSON", "cannot read"),
        ("unknown architecture", "transformers cannot load"),
        ("lacks weights", "lacks 1 weights of LlamaForCausalLM, such as model.layers.1.mlp.up_proj.weight"),
        ("other shapes", "has the shape .257, 32., and config.json asks for .257, 48."),
    ],
)
def test_a_broken_checkpoint_is_an_error(how, message, copy):
    spoil(how)(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(str(copy), device="cpu")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/path", "no checkpoint at"),
        ("./nowhere", "no checkpoint at"),
        ("model.gguf", "no checkpoint at"),
        ("zoo:hpoe", "the zoo has no `zoo:hpoe`"),
    ],
)
def test_an_unknown_checkpoint_is_an_error(name, message):
    with pytest.raises(CheckpointError, match=message):
        load(name)


def test_a_hub_id_that_cannot_be_had_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE") as caught:
        load("org/name")
    assert "spelling" in caught.value.hint


@pytest.mark.parametrize(("option", "value"), [("device", "cuda:99"), ("device", "abacus"), ("dtype", "float8")])
def test_bad_options_are_errors(checkpoint, option, value):
    with pytest.raises(OptionError):
        load(str(checkpoint), **{option: value})


LOADER = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones({vocab}))
    def forward(self, ids):
        return self.weight.expand(*ids.shape, {vocab})

class Tokenizer:
    bos_token_id = 0
    def encode(self, text):
        return list(text.encode())
    def decode(self, ids):
        return bytes(ids).decode()

def load(name):
    return Model(), Tokenizer()

def broken(name):
    return 3
"""


def test_a_loader_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(LOADER.format(vocab=VOCAB_SIZE))
    model = load("big", loader=f"{file}:load", device="cpu")
    assert (model.name, model.reading.head, model.train_length, model.encoding) == ("big", "full", None, "native")
    np.testing.assert_allclose(model.score([SAMPLE])[0].nll, np.log(VOCAB_SIZE), rtol=1e-6)
    assert len(model.fingerprint) == 16
    with pytest.raises(EncodingError, match="has no rotary encoding"):
        load("big", loader=f"{file}:load", device="cpu", encoding="hope")
    for name, message in (("nothing", "no function"), ("broken", "returned int")):
        with pytest.raises(CheckpointError, match=message):
            load("big", loader=f"{file}:{name}", device="cpu")
    with pytest.raises(CheckpointError, match="does not name a file"):
        load("big", loader="nowhere.py:load", device="cpu")
