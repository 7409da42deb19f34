"""`hope-eval doctor`: every planted fault is found and named, and sound models pass."""

import shutil

import pytest
import torch
from click.testing import CliRunner
from conftest import tiny_model, tiny_module

from hope_eval import zoo
from hope_eval.cli import main
from hope_eval.data.corpora import load_corpus
from hope_eval.inspection import behaviour, claims
from hope_eval.inspection.doctor import CHECKS, config_as_written, examined
from hope_eval.model.checkpoint import load
from hope_eval.model.in_effect import rotary_modules
from hope_eval.model.scoring import LanguageModel


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("python")


def found(model, corpus, raw=None, *checks, seconds=60, status="wrong"):
    """Return {check: text} of what has that status."""
    findings = examined(model, raw or {}, corpus, seconds, checks=checks or CHECKS)
    return {one.check: one.text for one in findings if one.status == status}


@pytest.mark.parametrize("name", ["zoo:rope", "zoo:hope", "zoo:learned"])
def test_sound_models_pass(name, corpus):
    assert found(load(name), corpus, config_as_written(name)) == {}


def test_a_wrong_base_is_found_by_reading(corpus):
    """The config says 500,000 and all of transformers believes it: only the text tells."""
    model = load("zoo:rope", encoding="rope:theta=500000")
    wrong = found(model, corpus, None, *claims.CHECKS, behaviour.base)
    assert set(wrong) == {"base"}
    assert wrong["base"].startswith("base 10,000 reads text")


def test_a_base_that_is_not_read_is_found_in_the_config(corpus):
    raw = {"rope_scaling": {"rope_theta": 500000}, "vision_config": {"rope_theta": 3.0}}
    wrong = found(load("zoo:rope"), corpus, raw, seconds=0)
    assert wrong == {"frequencies": "config.json says rope_scaling.rope_theta 500,000, and 10,000 is in effect"}


def test_a_rotated_part_that_is_not_read_is_found(corpus):
    model = tiny_model("phi", num_key_value_heads=1)
    wrong = found(model, corpus, {"rotary_pct": 0.25}, seconds=0)
    assert "config.json says rotary_pct 0.25, which is 4 of 16 dimensions" in wrong["frequencies"]


def test_frequencies_in_bfloat16_are_found(corpus):
    model = load("zoo:rope")
    for _, _, module in rotary_modules(model.module):
        module.inv_freq = module.inv_freq.to(torch.bfloat16).float()
    assert "rounded to bfloat16: at position 32,768 angles are off by" in found(model, corpus, seconds=0)["frequencies"]


def test_weights_for_the_other_pairs_are_found(corpus):
    """As after a conversion that forgets to permute queries and keys."""
    model = load("zoo:rope")
    for layer in model.module.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            heads = part.weight.data.reshape(3, 64, -1)
            part.weight.data = heads.reshape(3, 2, 32, -1).transpose(1, 2).reshape(192, -1).clone()
    wrong = found(model, corpus, None, behaviour.layout)
    assert "stored for the other rotation" in wrong["pairs"]
    assert "with neighbouring dimensions as pairs" in wrong["pairs"]


def test_a_scale_that_was_left_over_is_found(corpus):
    module = tiny_module()
    module.model.layers[1].self_attn.scaling *= 1.5
    model = LanguageModel("tiny", module, tiny_model().tokenizer, 64, "config")
    assert "such as model.layers.1.self_attn.scaling: " in found(model, corpus, seconds=0)["scales"]


def test_stretched_sliding_layers_are_found(corpus):
    stretched = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    rope = {"full_attention": stretched, "sliding_attention": stretched}
    kinds = ["sliding_attention", "full_attention"]
    model = tiny_model("gemma3_text", layer_types=kinds, sliding_window=16, rope_parameters=rope)
    assert "yarn stretches layers with a sliding window" in found(model, corpus, seconds=0)["stretching"]


def test_a_table_that_is_read_at_other_rows_is_found(corpus):
    """Positions that begin at 1 where the model was trained from 0."""
    model = load("zoo:learned")
    (table,) = model.module.model.encoding.parameters()
    with torch.no_grad():
        table.copy_(table.roll(1, 0))
    assert "if positions begin at 1" in found(model, corpus, None, behaviour.shifted)["offsets"]


def test_a_first_token_that_is_written_twice_is_found(corpus):
    model = load("zoo:rope")
    model.tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    wrong = found(model, corpus, seconds=0)
    own = model.tokenizer.encode("text")[:1] == [model.tokenizer.bos_token_id]
    assert ("beginning" in wrong) is own
    model.tokenizer.encode = lambda text: [0, 0, 5]
    assert "the tokenizer writes the first token twice" in found(model, corpus, seconds=0)["beginning"]


def test_untrained_weights_nan_and_ids_without_embedding_are_found(corpus):
    assert "a uniform guess has" in found(tiny_model(), corpus, seconds=0)["text"]
    model = load("zoo:rope")
    model.module.model.norm.weight.data[3] = torch.nan
    assert "NaN or infinite" in found(model, corpus, seconds=0)["text"]
    model = load("zoo:rope")
    model.tokenizer.get_vocab = lambda: {"a": 3, "b": 4096, "c": 5000}
    assert "2 of its ids have no embedding: 4,096 rows, ids to 5,000" in found(model, corpus, seconds=0)["tokenizer"]


def test_where_it_degrades_is_said_and_what_time_does_not_carry_too(corpus):
    looked = found(load("zoo:rope"), corpus, None, behaviour.reach, status="look")
    assert "at 256 to 512" in looked["length"]
    left = found(load("zoo:rope"), corpus, seconds=0, status="not measured")
    assert {"base", "length"} <= set(left)


def test_the_command_ends_with_1_if_something_is_wrong(tmp_path):
    done = CliRunner().invoke(main, ["doctor", "--model", "zoo:rope", "--seconds", "1"])
    assert done.exit_code == 0, done.output
    shutil.copytree(zoo.folder("zoo:rope"), tmp_path / "wrong")
    config = tmp_path / "wrong" / "config.json"
    text = config.read_text("utf-8")
    config.write_text(text.replace('"rope_theta": 10000.0', '"rope_theta": 300000.0'), "utf-8")
    assert config.read_text("utf-8") != text
    done = CliRunner().invoke(main, ["doctor", "--model", str(tmp_path / "wrong"), "--seconds", "20"])
    assert done.exit_code == 1, done.output
    assert "base" in done.output
