"""The end of what a model can read."""

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, story, tiny_module

from hope_eval.data.corpora import Corpus, Document
from hope_eval.errors import CheckpointError
from hope_eval.evaluation import loop
from hope_eval.evaluation.perplexity import Perplexity
from hope_eval.model.checkpoint import load
from hope_eval.protocols import protocol_named
from hope_eval.task import Sample

KINDS = {
    "gptj": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
    "ctrl": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "dff": 32},
    "mpt": {"max_seq_len": 64, "d_model": 32, "n_layers": 2, "n_heads": 2},
    "bloom": {"seq_length": 64, "n_layer": 2, "n_head": 2, "hidden_size": 32},
    "llama": {},
}


def saved(folder, kind, **changes):
    tiny_module(kind, **{**KINDS[kind], **changes}).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "end"), [("gptj", 64), ("ctrl", 64), ("mpt", 64 * 64), ("bloom", None), ("llama", None)]
)
def test_the_end_is_found_on_loading(kind, end, tmp_path):
    model = load(saved(tmp_path, kind), device="cpu")
    assert (model.max_length, model.train_length) == (end, 64)


def test_a_number_that_bounds_no_weights_is_raised(tmp_path):
    """As a model whose config says 256 from the beginning."""
    sample = Sample([0], list(range(1, 200)))
    raised = load(saved(tmp_path / "raised", "mpt"), device="cpu").score([sample])[0].nll
    wanted = load(saved(tmp_path / "wanted", "mpt", max_seq_len=256), device="cpu").score([sample])[0].nll
    np.testing.assert_allclose(raised, wanted, atol=1e-4)


def test_a_token_beyond_the_embedding_is_named(tmp_path):
    model = load(saved(tmp_path, "llama"), device="cpu")
    model.tokenizer.add_tokens(["<|begin|>"])
    with pytest.raises(CheckpointError, match=r"cannot read the token `<\|begin\|>`: .* number 257"):
        model.score([Sample([257], [1, 2])])


def test_an_error_of_a_models_own_code_is_no_traceback(tmp_path):
    model = load(saved(tmp_path, "gptj"), device="cpu")
    with pytest.raises(CheckpointError, match=r"cannot read .* tokens: its code raises"):
        model.score([Sample([0], list(range(1, 100)))])


def test_a_hybrid_without_attention_is_read(tmp_path):
    tiny = {"num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2, "hidden_size": 32}
    try:
        module = tiny_module("qwen3_next", **tiny, num_experts=0)
    except (TypeError, ValueError, KeyError) as error:
        pytest.skip(str(error))
    module.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert torch.isfinite(torch.tensor(load(str(tmp_path), device="cpu").score([Sample([0], [1, 2, 3])])[0].nll)).all()


def test_a_length_that_the_code_of_a_model_fails_at_is_a_hole(tmp_path):
    model = load(saved(tmp_path / "llama", "llama"), device="cpu")
    whole = model.module.model.forward

    def forward(input_ids, **options):
        if input_ids.shape[1] > 100:
            raise IndexError("index 100 is out of bounds")
        return whole(input_ids=input_ids, **options)

    model.module.model.forward = forward
    corpus = Corpus("stories", tuple(Document(f"d{number}", story(40, number)) for number in (0, 100)), "f" * 16)
    measurement = Perplexity.of(model, protocol_named("prefix"), (64, 128), corpus)
    store = loop.measure(measurement, model, tmp_path)
    table = measurement.table([store])
    status = {row["length"]: row["status"] for row in table.rows if row["metric"] == "perplexity"}
    assert status == {64: "ok", 128: "fails"}
    assert any("its code raises IndexError: index 100 is out of bounds" in note for note in table.notes)
