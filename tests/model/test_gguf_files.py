import gguf
import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, tiny_module

from hope_eval.errors import CheckpointError
from hope_eval.model.checkpoint import load
from hope_eval.task import Sample

SAMPLE = Sample([0], list(range(1, 100)))


def test_a_gguf_file_scores_as_its_weights(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"not a gguf")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        load(str(path))
    module = tiny_module()
    write_gguf(path, module)
    model = load(str(path), device="cpu")
    assert (model.name, model.train_length) == ("tiny", 64)
    ids = torch.tensor([[0, *range(1, 100)]])
    logits = module(ids).logits[0]
    wanted = -torch.log_softmax(logits, -1)[:-1].gather(-1, ids[0, 1:, None])[:, 0].detach().numpy()
    np.testing.assert_allclose(model.score([SAMPLE])[0].nll, wanted, atol=1e-4)


def write_gguf(path, module, **extra):
    """Write a tiny Llama as GGUF, float32, in the layout of llama.cpp, with extra tensors."""
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
    for name, data in extra.items():
        writer.add_tensor(name, np.asarray(data, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_module())
    read = []
    original = gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda path, *mode: read.append(path) or original(path, *mode))
    load(str(path), device="cpu")
    assert len(read) == 1


def test_the_scaling_of_llama_3_is_kept(tmp_path):
    path = tmp_path / "tiny.gguf"
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    stretched = tiny_module(rope_parameters={**rope, "original_max_position_embeddings": 8192}, head_dim=64)
    plain = tiny_module(head_dim=64)
    divisors = plain.model.rotary_emb.inv_freq / stretched.model.rotary_emb.inv_freq
    assert divisors.max() == 8
    write_gguf(path, stretched, **{"rope_freqs.weight": divisors})
    model = load(str(path), device="cpu")
    assert model.encoding == "llama3"
    torch.testing.assert_close(model.module.model.rotary_emb.inv_freq, stretched.model.rotary_emb.inv_freq)
    write_gguf(path, stretched, **{"rope_freqs.weight": 1 + np.arange(32)})
    with pytest.raises(CheckpointError, match="scales its frequencies"):
        load(str(path), device="cpu")


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.2.attn_norm.weight"])
def test_a_tensor_that_would_be_skipped_is_an_error(name, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_module(), **{name: np.ones(32)})
    with pytest.raises(CheckpointError, match=name):
        load(str(path), device="cpu")
