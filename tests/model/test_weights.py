"""Weights that a model does not use: an error, a note, or harmless."""

import json
import shutil

import pytest
import torch
from conftest import byte_tokenizer, tiny_module
from safetensors.torch import load_file, save_file

from hope_eval import zoo
from hope_eval.errors import CheckpointError
from hope_eval.model.checkpoint import load


def checkpoint_with(folder, kind="llama", names=(), rename=str, **changes):
    """Save a tiny model with more weights than it uses."""
    tiny_module(kind, **changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {rename(name): value for name, value in weights.items()} | {name: torch.ones(4) for name in names}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.up_proj.weight_scale",
        "model.layers.1.self_attn.q_proj.lora_A.weight",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.embed_norm.weight",
        "model.embed_tokens.weight_scale",
        "lm_head.bias",
    ],
)
def test_a_weight_of_a_used_module_or_layer_is_an_error(name, tmp_path):
    with pytest.raises(CheckpointError, match=f"does not use 1 weights of .*{name}"):
        load(checkpoint_with(tmp_path, names=[name]), device="cpu")


@pytest.mark.parametrize("name", ["vision_tower.layers.0.mlp.fc1.weight", "v_head.summary.weight", "score.weight"])
def test_a_weight_beside_the_decoder_is_a_note(name, tmp_path):
    model = load(checkpoint_with(tmp_path, names=[name]), device="cpu")
    assert model.notes == (f"1 weights of the checkpoint are not used: {name}",)


HARMLESS = [
    ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", {}),
    ("llama", "model.mtp.layers.0.self_attn.q_proj.weight", {}),
    ("llama", "model.layers.0.self_attn.k_proj.k_scale", {}),
    ("gpt2", "h.0.attn.bias", {"n_positions": 64}),
    ("gpt2", "transformer.h.1.attn.masked_bias", {"n_positions": 64}),
]


@pytest.mark.parametrize(("kind", "name", "changes"), HARMLESS)
def test_buffers_and_heads_that_no_score_needs_are_harmless(kind, name, changes, tmp_path):
    assert load(checkpoint_with(tmp_path, kind, [name], **changes), device="cpu").notes == ()


def test_a_layer_that_predicts_further_ahead_is_harmless(tmp_path):
    names = ["model.layers.2.eh_proj.weight", "model.layers.2.self_attn.q_proj.weight"]
    assert load(checkpoint_with(tmp_path, names=names), device="cpu").notes == ()


@pytest.mark.parametrize(
    ("prefix", "writer"), [("_orig_mod.", "torch.compile"), ("module.", "DistributedDataParallel")]
)
def test_the_prefix_of_a_wrapper_is_named(prefix, writer, tmp_path):
    with pytest.raises(CheckpointError, match=f"names with `{prefix}`, as {writer} writes them"):
        load(checkpoint_with(tmp_path, rename=prefix.__add__), device="cpu")


def test_a_tied_head_that_was_saved_is_harmless(tmp_path):
    folder = checkpoint_with(tmp_path, tie_word_embeddings=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert load(folder, device="cpu").notes == ()


def test_more_layers_than_the_config_says_are_an_error(tmp_path):
    folder = shutil.copytree(zoo.folder("zoo:hope"), tmp_path / "hope")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match="does not use 27 weights"):
        load(str(folder), device="cpu")
