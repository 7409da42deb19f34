"""The models that ship: they are all there, they load anywhere, and they show what they are there to show."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import hope_eval
from transformers import AutoModelForCausalLM, AutoTokenizer

from hope_eval import zoo
from hope_eval.data.corpora import load_corpus
from hope_eval.errors import CheckpointError, EncodingError, LengthError
from hope_eval.model.checkpoint import load, load_checkpoint
from hope_eval.task import Sample, Vocabulary, generator, task_class


@pytest.fixture(scope="module")
def models():
    return {name.removeprefix(zoo.PREFIX): load(name, device="cpu") for name in zoo.names()}


def nll(model, length, n=6):
    """Return the nll of as many documents of the standard library, the first tokens of each [N, T]."""
    documents = load_corpus("python").in_order(0)[:n]
    ids = [ids[: length - 1] for ids, _ in model.encode([document.text[:8000] for document in documents])]
    return np.stack([score.nll for score in model.score([Sample([0], one) for one in ids])])


def test_every_model_is_there_and_they_are_small_enough_to_ship():
    assert len(zoo.names()) == 12
    folder = zoo.folder("zoo:rope").parent
    assert {path.name for path in folder.iterdir() if path.is_dir()} - {"__pycache__"} == {
        name.removeprefix("zoo:") for name in zoo.names()
    }
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 90e6


def test_they_were_trained_alike():
    facts = [zoo.facts(name) for name in zoo.names()]
    for key in ("size", "train_length", "tokens", "seed", "corpora", "mix", "tasks", "n_steps", "learning_rate"):
        assert len({json.dumps(one[key]) for one in facts}) == 1, key
    assert [one["encoding"] for one in facts] == [name.removeprefix("zoo:") for name in zoo.names()]
    assert facts[0]["seed"] == 0
    tokenizers = {(zoo.folder(name) / "tokenizer.json").read_bytes() for name in zoo.names()}
    assert len(tokenizers) == 1


def test_a_model_of_the_zoo_loads_in_plain_transformers_in_another_process():
    """Beyond its window, and where its decoder was imported before."""
    code = """
import sys, hope_eval, torch
torch.set_num_threads(1)
from transformers import LlamaForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])("import os\\n" * 90, return_tensors="pt").input_ids
assert 240 < ids.shape[1] < 400, ids.shape
written = model.generate(ids, min_new_tokens=30, max_new_tokens=30, do_sample=False, pad_token_id=0)
print(written.shape[1] - ids.shape[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(zoo.folder("zoo:fire"))], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) == 30


def test_an_unknown_model_gets_a_hint():
    with pytest.raises(CheckpointError, match="no `zoo:hpoe`") as caught:
        zoo.folder("zoo:hpoe")
    assert "`zoo:hope`" in caught.value.hint


def test_the_zoo_is_listed():
    listed = hope_eval("zoo").stdout
    assert all(name in listed for name in zoo.names())


def test_within_the_window_all_are_close(models):
    means = {name: nll(model, 256)[:, 127:].mean() for name, model in models.items()}
    assert abs(means["hope"] - means["rope"]) < 0.15
    assert all(mean < means["rope"] + 0.3 for mean in means.values()), means


def test_beyond_the_window_rope_fails_and_hope_goes_on(models):
    means = {name: nll(models[name], 1024)[:, 511:].mean() for name in ("rope", "hope", "alibi")}
    assert means["rope"] > means["hope"] + 1
    assert means["alibi"] < means["hope"], "and perplexity alone would have ALiBi win"


def copied(model, length, n=4):
    """Return the share of tokens of random strings that are copied."""
    vocabulary = Vocabulary(model.tokenizer, 0)
    prompts = [task_class("copy")().prompt(vocabulary, length, generator("zoo", index)) for index in range(n)]
    return np.mean([score.greedy_hits.mean() for score in model.score([p.samples()[0] for p in prompts])])


def test_they_copy_by_content_at_every_length_of_the_window(models):
    """Once they copied by distance, 127 tokens back whatever was asked: all right at 256 tokens, all wrong at 250."""
    for name in ("rope", "hope", "kerple"):
        for length in (64, 101, 250, 256):
            assert copied(models[name], length) > 0.95, (name, length)


def test_beyond_the_window_hope_copies_and_rope_does_not(models):
    # Seed 0, which is bundled, is the worst of three: 0.86 of the tokens over 50 strings, where the others have 0.99.
    assert copied(models["hope"], 512) > 0.8
    assert copied(models["rope"], 1024) < 0.2


def test_the_learned_table_ends(models):
    with pytest.raises(LengthError, match="table of 256"):
        models["learned"].check_length(257)
    with pytest.raises(LengthError, match="table of 256 positions and cannot read 300"):
        models["learned"].module(torch.zeros(1, 300, dtype=torch.long))


@pytest.mark.parametrize(
    "name", ["copy", "associative_recall", "passkey", "needle", "key_value", "label_map", "rule_induction"]
)
def test_every_task_has_been_learned_within_the_window(name, models):
    model = models["hope"]
    vocabulary = Vocabulary(model.tokenizer, 0)
    hits = []
    for index in range(6):
        prompt = task_class(name)().prompt(vocabulary, 256, generator("test", name, 0, 256, index))
        hits += [model.score([sample])[0].greedy_hits.mean() for sample in prompt.samples()[:3]]
    # The labels and rules of a prompt are its own, and 3.4M parameters are few.
    assert np.mean(hits) > (0.7 if name in ("label_map", "rule_induction") else 0.95)


@pytest.mark.parametrize(
    "name", ["hope", "alibi", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rope", "t5", "fire", "xpos"))]
)
def test_cached_generation_equals_the_whole_pass_beyond_the_window(name, models):
    model = models[name].module
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder(f"zoo:{name}"))
    (document,) = load_corpus("python").in_order(0)[:1]
    ids = tokenizer(document.text[:5000], return_tensors="pt").input_ids[:, :230]
    options = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0, "eos_token_id": 4095}
    written = model.generate(ids, **options)
    with torch.no_grad():
        likeliest = model(written).logits.argmax(-1)
    agree = (likeliest[:, ids.shape[1] - 1 : -1] == written[:, ids.shape[1] :]).float().mean()
    assert agree > 0.99


def test_a_model_of_the_zoo_may_be_given_another_rotary_encoding(tmp_path):
    swapped = load("zoo:rope", encoding="yarn:factor=4", device="cpu")
    assert swapped.encoding == "yarn:factor=4(swap)"
    assert load("zoo:rope", encoding="longrope", device="cpu").encoding == "longrope(swap)"
    assert load("zoo:rope", encoding="rope", device="cpu").encoding == "rope"
    with pytest.raises(EncodingError, match="`alibi` of this model is not only rotary"):
        load("zoo:alibi", encoding="hope", device="cpu")
    checkpoint = load_checkpoint("zoo:rope", device="cpu")
    for encoding, label in (("hope", "hope(swap)"), ("native", "rope")):
        model = checkpoint.with_encoding(encoding)
        assert model.encoding == label
        model.module.save_pretrained(tmp_path / label)
        back = AutoModelForCausalLM.from_pretrained(tmp_path / label)
        assert back.config.encoding == label.removesuffix("(swap)")
        assert torch.equal(back.model.rotary_emb.inv_freq, model.module.model.rotary_emb.inv_freq)


def test_the_learned_model_is_read_as_far_as_it_goes(tmp_path):
    result = hope_eval(
        "ppl", "--model", "zoo:learned", "--protocol", "bucket", "--lengths", "1k", "--samples", "2", "--out", tmp_path,
        "--format", "json", "--device", "cpu",
    )  # fmt: skip
    status = {row["length"]: row["status"] for row in json.loads(result.stdout)}
    assert status == {64: "ok", 128: "ok", 256: "ok", 512: "-", 1024: "-"}


@pytest.mark.parametrize("name", ["rope", "hope", "alibi", "t5", "fire", "xpos", "nope", "kerple", "sinusoidal"])
def test_a_context_read_once_gives_the_scores_of_one_read_for_each_question(name, models):
    model = models[name]
    vocabulary = Vocabulary(model.tokenizer, 0)
    for task in ("copy", "label_map", "rule_induction"):
        prompt = task_class(task)().prompt(vocabulary, 200, generator(task))
        together = model.score_prompts([prompt, prompt])
        assert len(together) == 2
        for sample, *found in zip(prompt.samples()[:2], *together, strict=False):
            wanted = model.score([sample])[0]
            for score in found:
                np.testing.assert_allclose(score.nll, wanted.nll, atol=5e-4)
                assert np.array_equal(score.greedy_hits, wanted.greedy_hits)
