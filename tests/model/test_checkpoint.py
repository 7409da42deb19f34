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


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


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

    def write(name, text):
        return lambda folder: (folder / name).write_text(text)

    def index(shard):
        def by_index(folder):
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors.index.json").write_text(shard)

        return by_index

    def configured(**changes):
        return lambda folder: configure(folder, **changes)

    return {
        "truncated": truncate,
        "corrupt": corrupt,
        "no tokenizer": no_tokenizer,
        "no config": lambda folder: (folder / "config.json").unlink(),
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "config is no JSON": lambda folder: (folder / "config.json").write_text("{"),
        "unknown architecture": lambda folder: (folder / "config.json").write_text('{"model_type": "unheard_of"}'),
        "lacks weights": lacks_weights,
        "a git-lfs pointer": write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "an adapter": write("adapter_config.json", '{"base_model_name_or_path": "org/base"}'),
        "config is a list": write("config.json", "[1]"),
        "NaN": configured(rms_norm_eps=float("nan")),
        "infinity": configured(rope_parameters={"rope_type": "default", "rope_theta": float("inf")}),
        "base of zero": configured(rope_parameters={"rope_type": "default", "rope_theta": 0.0}),
        "index is a list": index("[]"),
        "index without a map": index("{}"),
        "index of numbers": index('{"weight_map": {"a": 1}}'),
        "index out of the folder": index('{"weight_map": {"a": "../model.safetensors"}}'),
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
        ("a git-lfs pointer", "is a pointer of git-lfs"),
        ("an adapter", "holds an adapter of org/base"),
        ("config is a list", "holds list, and not an object"),
        ("NaN", "rms_norm_eps is nan"),
        ("infinity", "rope_parameters.rope_theta is inf"),
        ("base of zero", "the rotary frequencies are not finite"),
        ("index is a list", "holds list"),
        ("index without a map", "has no `weight_map`"),
        ("index of numbers", "has no `weight_map`"),
        ("index out of the folder", "is not a file of its folder"),
        ("other shapes", "has the shape .257, 32., and config.json asks for .257, 48."),
    ],
)
def test_a_broken_checkpoint_is_an_error(how, message, copy):
    spoil(how)(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(str(copy), device="cpu")
    assert caught.value.hint


def test_a_length_without_end_is_no_training_length(copy):
    configure(copy, max_position_embeddings=10**9)
    model = load(str(copy), device="cpu")
    assert (model.train_length, model.max_length) == (None, None)


def test_a_model_that_sees_what_follows_is_refused(tmp_path):
    bert = {"architectures": ["BertLMHeadModel"], "max_position_embeddings": 128}
    tiny_module("bert", is_decoder=True, **bert).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = load(str(tmp_path), device="cpu")
    assert model.nested_safe
    configure(tmp_path, is_decoder=False)
    with pytest.raises(CheckpointError, match="sees the tokens that follow") as caught:
        load(str(tmp_path), device="cpu")
    assert "is_decoder" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/path", "no checkpoint at"),
        ("./nowhere", "no checkpoint at"),
        ("model.gguf", "no checkpoint at"),
        ("smollm2-135m", "no checkpoint at"),
        ("tests/nothing", "no checkpoint at"),
        ("hub:no:such", "no checkpoint at"),
        ("x\0y", "no checkpoint at"),
        ("a" * 5000, "cannot read|no checkpoint at"),
        ("zoo:hpoe", "the zoo has no `zoo:hpoe`"),
    ],
)
def test_an_unknown_checkpoint_is_an_error(name, message):
    with pytest.raises(CheckpointError, match=message):
        load(name)


def test_a_mistyped_path_names_those_like_it(copy):
    with pytest.raises(CheckpointError) as caught:
        load(f"{copy}y")
    assert f"did you mean `{copy}`?" in caught.value.hint


def test_a_name_without_a_slash_asks_the_hub_only_if_it_says_so():
    with pytest.raises(CheckpointError, match="no checkpoint at `gpt2`") as caught:
        load("gpt2")
    assert "hub:gpt2" in caught.value.hint
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        load("hub:gpt2")


def test_the_hub_is_asked_once(monkeypatch, capsys):
    from huggingface_hub import HfApi, constants

    asked = []

    def unreachable(self, name, **options):
        asked.append((name, options["timeout"]))
        raise ConnectionError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    with pytest.raises(CheckpointError, match=r"no checkpoint called `org/name`.*no route to host") as caught:
        load("org/name")
    assert asked == [("org/name", 5.0)]
    assert "spelling" in caught.value.hint
    assert "asking the hub" in capsys.readouterr().err


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
