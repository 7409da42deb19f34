import copy
import itertools
import math
import re
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import VOCAB_SIZE, tiny_config, tiny_module
from references import below_hope, clipped_logit, hope_logit, nope_logit, rope_logit

import hope_eval
from hope_eval import api
from hope_eval.encodings import (
    EncodingSpec,
    Geometry,
    encoding_class,
    encoding_names,
    facts_of,
    hyper_parameters,
    parse_encoding,
)
from hope_eval.errors import EncodingError, OptionError
from hope_eval.model.attach import attach
from hope_eval.model.configs import geometry_of, training_length
from hope_eval.model.in_effect import effective_inverse_frequencies, encoding_label, is_nested_safe

# Before the training length of 64, across it, far past it.
PLACES = [(5, 3), (63, 0), (64, 1), (70, 60), (1000, 17), (100_000, 3), (100_000, 99_999)]

REFERENCES = {
    "rope": lambda q, k, m, n: rope_logit(q, k, m, n),
    "hope": lambda q, k, m, n: hope_logit(q, k, m, n, 64),
    "hope:multiplier=2": lambda q, k, m, n: hope_logit(q, k, m, n, 64, 2.0),
    "hope:train_length=512": lambda q, k, m, n: hope_logit(q, k, m, n, 512),
    "nope": lambda q, k, m, n: nope_logit(q, k, m, n),
    "clipped": lambda q, k, m, n: clipped_logit(q, k, m, n, below_hope(16, 64)),
    "clipped:pairs=3": lambda q, k, m, n: clipped_logit(q, k, m, n, 3),
    "rope:theta=50000": lambda q, k, m, n: rope_logit(q, k, m, n, 50_000),
    "hope:theta=500": lambda q, k, m, n: hope_logit(q, k, m, n, 64, base=500),
    "clipped:theta=500": lambda q, k, m, n: clipped_logit(q, k, m, n, below_hope(16, 64, 500), 500),
}


def logit_of_model(spec: str, q, k, query_position: int, key_position: int) -> float:
    """q . k as transformers' Llama computes it with that encoding attached."""
    model = attach(tiny_module(), spec)
    rotary = model.model.rotary_emb
    positions = torch.tensor([[key_position, query_position]])
    cos, sin = rotary(torch.zeros(1, 2, 16), positions)
    rotate = transformers.models.llama.modeling_llama.apply_rotary_pos_emb
    q_BHLE, k_BHLE = (torch.tensor(v, dtype=torch.float32).expand(1, 1, 2, 16) for v in (q, k))
    q_turned, k_turned = rotate(q_BHLE, k_BHLE, cos, sin)
    return float((q_turned[0, 0, 1].double() * k_turned[0, 0, 0].double()).sum())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spec", REFERENCES)
def test_logits_are_those_of_the_paper(spec, place):
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 16, generator=generator).tolist()
    # Angles are in float32: position 100,000 times theta is exact to about 0.01 radians.
    tolerance = 1e-4 if max(place) < 2000 else 0.15
    assert logit_of_model(spec, q, k, *place) == pytest.approx(REFERENCES[spec](q, k, *place), abs=tolerance)


@pytest.mark.parametrize(("train_length", "kept"), [(256, 13), (512, 16), (2048, 21)])
def test_hope_keeps_the_pairs_that_turn_once_within_the_training_length(train_length, kept):
    frequencies = encoding_class("hope")(Geometry(64, 1, train_length)).inverse_frequencies()
    assert int((frequencies > 0).sum()) == kept
    assert bool((frequencies[:kept] > 0).all()), "the fast pairs are kept"


def test_rope_is_transformers_own_to_the_last_bit():
    for head_dim, theta in ((16, 10_000.0), (64, 500_000.0), (128, 1e6)):
        config = tiny_config(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta})
        own = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq
        assert torch.equal(encoding_class("rope")(geometry_of(config)).inverse_frequencies(), own)


def test_attached_rope_leaves_the_logits_of_llama_as_they_were():
    ids = torch.arange(100)[None] % VOCAB_SIZE
    before = tiny_module()(ids).logits
    assert torch.equal(attach(tiny_module(), "rope")(ids).logits, before)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "olmo2"])
def test_attach_changes_the_logits_of_every_family(kind):
    ids = torch.arange(50)[None] % VOCAB_SIZE
    logits = {
        spec: attach(tiny_module(kind), spec)(ids).logits
        for spec in ("rope", "rope:theta=50", "clipped", "hope", "nope")
    }
    for one, other in itertools.combinations(logits.values(), 2):
        assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_effective_frequencies_are_those_that_were_asked_for(kind):
    model = attach(tiny_module(kind), "hope:multiplier=2")
    for path, frequencies in effective_inverse_frequencies(model).items():
        layer_type = path.rpartition(".")[2].removesuffix("inv_freq").rstrip("_") or None
        wanted = parse_encoding("hope:multiplier=2").build(geometry_of(model.config, layer_type))
        assert torch.equal(frequencies, wanted.inverse_frequencies())
        assert 0 < int((frequencies > 0).sum()) < len(frequencies)


@pytest.mark.parametrize("spec", ["hope", "clipped", "clipped:pairs=3", "rope:theta=500", "yarn:theta=500"])
def test_a_partly_rotated_head_stays_partly_rotated(spec):
    model = tiny_module("phi", num_key_value_heads=1)
    half = model.config.rope_parameters["partial_rotary_factor"]
    assert half == 0.5
    attach(model, spec)
    (frequencies,) = effective_inverse_frequencies(model).values()
    assert len(frequencies) == 16 * half / 2
    assert torch.equal(frequencies, parse_encoding(spec).build(Geometry(8, 2, 64)).inverse_frequencies())


@pytest.mark.parametrize(
    "spec",
    ["rope:theta=500", "hope:theta=500", "clipped", "clipped:pairs=3,theta=500", "yarn:theta=500", "pi:theta=500"],
)
def test_a_base_and_a_number_of_pairs_are_saved_with_a_checkpoint(spec, tmp_path):
    model = attach(tiny_module(), spec)
    if "theta" in spec:
        assert model.config.rope_parameters["rope_theta"] == 500
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(200)[None] % VOCAB_SIZE
    assert torch.equal(back(ids).logits, model(ids).logits)


def test_without_theta_the_base_is_that_of_the_checkpoint():
    model = tiny_module(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    for spec in ("rope", "hope", "clipped", "pi", "ntk"):
        plain, given = (attach(copy.deepcopy(model), text) for text in (spec, f"{spec}:theta=500"))
        other = attach(copy.deepcopy(model), f"{spec}:theta=10000")
        assert torch.equal(plain.model.rotary_emb.inv_freq, given.model.rotary_emb.inv_freq)
        assert not torch.equal(plain.model.rotary_emb.inv_freq, other.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("value", ["1", "0.5", "0", "-3", "1e13", "inf", "nan"])
def test_a_base_outside_its_limits_is_an_error_with_a_remedy(value):
    with pytest.raises(EncodingError, match=re.escape("`theta` of `hope` must be from 2 to 1e+12")) as caught:
        parse_encoding(f"hope:theta={value}")
    assert "leave `theta` out" in caught.value.hint


@pytest.mark.parametrize("name", ["nope", "alibi", "kerple", "fire", "t5", "sinusoidal", "learned"])
def test_what_does_not_rotate_has_no_base(name):
    with pytest.raises(EncodingError, match=f"`{name}` has no parameter `theta`"):
        parse_encoding(f"{name}:theta=500")


@pytest.mark.parametrize("pairs", ["2.5", "33"])
def test_clipped_pairs_are_pairs_of_the_model(pairs):
    with pytest.raises(EncodingError, match="a whole number from 0 to 32, the pairs of this model") as caught:
        parse_encoding(f"clipped:pairs={pairs}").build(Geometry(64, 1, 256))
    assert "leave `pairs` out" in caught.value.hint


def test_clipped_needs_a_training_length_or_a_number_of_pairs():
    with pytest.raises(EncodingError, match="needs the training length") as caught:
        parse_encoding("clipped").build(Geometry(64, 1, 0))
    assert "clipped:pairs=8" in caught.value.hint
    assert len(parse_encoding("clipped:pairs=8").build(Geometry(64, 1, 0)).inverse_frequencies()) == 32


def test_an_architecture_that_ignores_rope_parameters_is_an_error(monkeypatch):
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    plain = tiny_config()
    own = rotary.__init__
    monkeypatch.setattr(rotary, "__init__", lambda self, config, **rest: own(self, plain, **rest))
    with pytest.raises(EncodingError, match="does not hold its frequencies"):
        attach(tiny_module(), "hope")


def test_gpt2_has_nothing_to_replace():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11))
    with pytest.raises(EncodingError, match="has no rotary encoding"):
        attach(model, "hope")


def test_saved_encoding_comes_back_with_plain_transformers_in_another_process(tmp_path):
    model = attach(tiny_module(), "hope:multiplier=2")
    model.save_pretrained(tmp_path)
    ids = torch.arange(200)[None] % VOCAB_SIZE
    torch.save(model(ids).logits, tmp_path / "logits.pt")
    code = f"""
import hope_eval, sys
assert "torch" not in sys.modules, "importing hope_eval is cheap"
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()
assert model.config.rope_parameters["rope_type"] == "hope"
assert int((model.model.rotary_emb.inv_freq > 0).sum()) == {int((model.model.rotary_emb.inv_freq > 0).sum())}
assert torch.equal(model(torch.arange(200)[None] % {VOCAB_SIZE}).logits, torch.load({str(tmp_path / "logits.pt")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["hope", "nope"])
def test_frequencies_stay_in_float32_whatever_the_weights_are(name, tmp_path):
    attach(tiny_module(), name).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_hope_import_after_transformers_registers_too():
    code = "import transformers.modeling_rope_utils as r; import hope_eval; assert 'hope' in r.ROPE_INIT_FUNCTIONS"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "first",
    [
        # That it may be LlamaForCausalLM, test_zoo.py sees every time.
        pytest.param(x, marks=pytest.mark.slow)
        for x in ("LlamaForCausalLM", "LlamaConfig", "Trainer", "MistralModel")
    ],
)
def test_whatever_of_transformers_is_imported_first_the_decoder_comes_with_it(first):
    code = f"import hope_eval; from transformers import {first}; from transformers import AutoConfig; "
    subprocess.run([sys.executable, "-c", code + "AutoConfig.for_model('hope_eval')"], check=True)


def test_training_length_and_not_the_evaluated_one_decides():
    config = tiny_config(
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "hope", "rope_theta": 1e4, "original_max_position_embeddings": 64},
    )
    assert training_length(config) == (64, "rope_parameters.original_max_position_embeddings")
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    kept = int((rotary.inv_freq > 0).sum())
    assert kept == int((encoding_class("hope")(Geometry(16, 1, 64)).inverse_frequencies() > 0).sum())
    rotary(torch.zeros(1, 4000, 8), torch.arange(4000)[None])
    assert int((rotary.inv_freq > 0).sum()) == kept


@pytest.mark.parametrize(
    ("rope", "safe", "label"),
    [
        ({"rope_type": "default"}, True, "rope"),
        ({"rope_type": "linear", "factor": 4.0}, True, "pi"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, True, "yarn"),
        ({"rope_type": "dynamic", "factor": 4.0}, False, "dynamic_ntk"),
        (
            {
                "rope_type": "longrope",
                "factor": 4.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 64,
            },
            False,
            "longrope",
        ),
    ],
)
def test_encodings_that_change_with_the_length_read_are_found(rope, safe, label):
    model = tiny_module(rope_parameters={"rope_theta": 1e4, **rope})
    assert is_nested_safe(model) is safe
    assert encoding_label(model) == label


def test_hope_without_a_pair_to_rotate_is_an_error():
    with pytest.raises(EncodingError, match="at least 13"):
        parse_encoding("hope:multiplier=2").build(Geometry(64, 1, 12))
    assert math.isclose(encoding_class("hope")(Geometry(64, 1, 512)).threshold, 2 * math.pi / 512)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("hoep", "no position encoding is called `hoep`", "did you mean `hope`"),
        ("hope:multipler=2", "no parameter `multipler`", "did you mean `multiplier`"),
        ("hope:multiplier=two", "must be a number", "hope:multiplier=2"),
        ("nope:multiplier=2", "no parameter", "it has none"),
        ("nowhere.py", "no file", "path"),
    ],
)
def test_what_is_misspelt_gets_a_hint(text, message, hint):
    with pytest.raises(EncodingError, match=message) as caught:
        parse_encoding(text)
    assert hint in caught.value.hint


def test_an_encoding_of_ones_own_is_one_file(tmp_path):
    file = tmp_path / "halved.py"
    file.write_text(
        "from hope_eval.encodings import rope\n"
        "class Halved(rope.Rope):\n"
        "    formula = 'half the speed'\n"
        "    def inverse_frequencies(self):\n"
        "        return super().inverse_frequencies() / 2\n"
    )
    model = attach(tiny_module(), str(file))
    plain = encoding_class("rope")(Geometry(16, 2, 64)).inverse_frequencies()
    assert torch.equal(model.model.rotary_emb.inv_freq, plain / 2)
    slower = encoding_class("rope")(Geometry(16, 2, 64, 500.0)).inverse_frequencies()
    assert torch.equal(attach(model, f"{file}:theta=500").model.rotary_emb.inv_freq, slower / 2)


def test_an_encoding_of_ones_own_may_have_a_theta_of_its_own(tmp_path):
    file = tmp_path / "fixed.py"
    file.write_text(
        "import torch\n"
        "from hope_eval.encodings import rope\n"
        "class Fixed(rope.Rope):\n"
        "    def __init__(self, geometry, *, theta=0.5):\n"
        "        super().__init__(geometry)\n"
        "        self.theta = theta\n"
        "    def inverse_frequencies(self):\n"
        "        return torch.full_like(super().inverse_frequencies(), self.theta)\n"
    )
    model = attach(tiny_module(), f"{file}:theta=0.25")
    assert model.model.rotary_emb.inv_freq.tolist() == [0.25] * 8
    assert model.config.rope_parameters["rope_theta"] == 10_000


HALVED = (
    "from hope_eval.encodings import rope\n"
    "class Halved(rope.Rope):\n"
    "    def inverse_frequencies(self):\n"
    "        return super().inverse_frequencies() / 2\n"
)


def written(file, text=HALVED):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("yarn.py", "hope-eval"),
        ("hope.py", "hope-eval"),
        ("default.py", "transformers"),
        ("linear.py", "transformers"),
        ("dynamic.py", "transformers"),
        ("proportional.py", "transformers"),
    ],
)
def test_a_file_called_like_an_encoding_that_is_there_is_refused(name, owner, tmp_path):
    file = written(tmp_path / name)
    with pytest.raises(EncodingError, match=f"{owner} already has an encoding called `{name[:-3]}`") as caught:
        parse_encoding(file)
    assert "rename the file" in caught.value.hint


def test_a_file_called_yarn_does_not_change_yarn(tmp_path):
    model = tiny_module(max_position_embeddings=64)
    attach(model, "yarn:factor=8")
    (before,) = effective_inverse_frequencies(model).values()
    with pytest.raises(EncodingError):
        attach(model, written(tmp_path / "yarn.py"))
    attach(model, "yarn:factor=8")
    (after,) = effective_inverse_frequencies(model).values()
    assert torch.equal(before, after)
    assert not torch.equal(before, encoding_class("rope")(Geometry(16, 2, 64)).inverse_frequencies())


def test_a_name_with_a_dot_is_a_name_of_its_own(tmp_path):
    file = written(tmp_path / "my.yarn.py")
    model = attach(tiny_module(), file)
    assert model.config.rope_parameters["rope_type"] == "my_yarn"
    assert encoding_label(model) == "my_yarn"


def test_two_files_of_one_name_cannot_be_used_together(tmp_path):
    first = written(tmp_path / "a" / "mine.py")
    second = written(tmp_path / "b" / "mine.py", HALVED.replace("/ 2", "/ 3"))
    model = attach(tiny_module(), first)
    with pytest.raises(OptionError, match="both are called `mine`"):
        attach(model, second)
    plain = encoding_class("rope")(Geometry(16, 2, 64)).inverse_frequencies()
    attach(model, "rope")
    assert torch.equal(attach(model, first).model.rotary_emb.inv_freq, plain / 2)


def test_a_rope_type_of_another_library_is_not_replaced(tmp_path, monkeypatch):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def theirs(config, device=None, **rest):
        return torch.ones(8), 1.0

    theirs.__module__ = "their_library.rope"
    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "theirs", theirs)
    with pytest.raises(EncodingError, match="their_library already has an encoding called `theirs`"):
        parse_encoding(written(tmp_path / "theirs.py"))


def test_a_file_that_cannot_be_run_is_no_traceback_and_can_be_mended(tmp_path):
    file = written(tmp_path / "broken.py", "from nowhere import nothing\n")
    for _ in range(2):
        with pytest.raises(OptionError, match=r"`broken\.py`, line 1: ModuleNotFoundError: No module named 'nowhere'"):
            parse_encoding(file)
    written(tmp_path / "broken.py")
    assert parse_encoding(file).name == file


@pytest.mark.parametrize(
    "text",
    [
        "prope:fraction=1.5",
        "hope:multiplier=0",
        "yarn:factor=0.5",
        "kerple:power=2",
        "hope:multiplier=nan",
        "t5:buckets=2.5",
    ],
)
def test_a_parameter_outside_its_limits_is_an_error_that_tells_them(text):
    name, _, parameter = text.partition(":")
    least, greatest = encoding_class(name).limits[parameter.partition("=")[0]]
    whole = "a whole number " if parameter.partition("=")[0] in encoding_class(name).whole else ""
    allowed = re.escape(f"must be {whole}from {least:g} to {greatest:g}, got {parameter.partition('=')[2]}")
    with pytest.raises(EncodingError, match=allowed):
        parse_encoding(text)
    # A checkpoint may say it too.
    number = float(parameter.partition("=")[2])
    with pytest.raises(EncodingError, match=allowed):
        EncodingSpec(name, ((parameter.partition("=")[0], number),)).build(Geometry(16, 2, 64))


def test_every_encoding_says_all_of_itself():
    for name in encoding_names():
        cls = encoding_class(name)
        assert cls.name() == name
        assert cls.source
        assert cls.formula
        assert len(cls.style) == 3
        assert set(cls.limits) == set(hyper_parameters(cls)), name
        for key, default in hyper_parameters(cls).items():
            assert default is None or cls.limits[key][0] <= default <= cls.limits[key][1]


def test_kinds_are_asked_of_an_encoding():
    kinds = {name: encoding_class(name).kind() for name in encoding_names()}
    rotary = {"rope", "hope", "prope", "clipped", "pi", "ntk", "dynamic_ntk", "yarn", "longrope", "llama3"}
    assert {name for name, kind in kinds.items() if kind == "rotary"} == rotary
    assert {name for name, kind in kinds.items() if kind == "bias"} == {"alibi", "kerple", "fire", "t5"}
    assert {name for name, kind in kinds.items() if kind == "absolute"} == {"sinusoidal", "learned"}
    assert (kinds["nope"], kinds["xpos"]) == ("none", "rotary+decay")
    forms = {name: encoding_class(name).bias_form() for name in ("alibi", "t5", "kerple", "fire", "rope")}
    assert forms == {"alibi": "slopes", "t5": "table", "kerple": "table", "fire": "curve", "rope": ""}


def test_a_class_does_not_inherit_the_style_of_the_encoding_it_derives_from(tmp_path):
    facts = facts_of(written(tmp_path / "halved.py") + ":x=1(swap)")
    assert facts == {"name": "halved", "kind": "rotary", "style": {}}
    hope = {"name": "hope", "kind": "rotary", "style": {"colour": "#df5516", "dash": "solid", "marker": "s"}}
    assert facts_of("hope:multiplier=2(swap)") == hope
    assert facts_of("native") == {"name": "native"}


def test_public_names_are_there():
    assert {*hope_eval.__all__} == {*api.__all__, "__version__"}
    for name in hope_eval.__all__:
        assert getattr(hope_eval, name) is not None
    with pytest.raises(AttributeError):
        _ = hope_eval.nothing


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("hope:train_length=1048576", "hope:train_length=1048576"),
        ("hope:train_length=1048577", "hope:train_length=1048577"),
        ("hope:train_length=1234567.125", "hope:train_length=1234567.125"),
        ("prope:fraction=0.1234567", "prope:fraction=0.1234567"),
        # As it was always written, since that is exact.
        ("hope:train_length=1048580", "hope:train_length=1.04858e+06"),
        ("hope:multiplier=2.0", "hope:multiplier=2"),
        ("hope:multiplier=1e6", "hope:multiplier=1e+06"),
        ("prope:fraction=0.1", "prope:fraction=0.1"),
    ],
)
def test_no_number_of_an_encoding_is_rounded(given, written):
    spec = parse_encoding(given)
    assert str(spec) == written
    assert parse_encoding(str(spec)) == spec


def test_an_error_tells_the_number_that_was_given():
    with pytest.raises(EncodingError, match=r"got 1000000\.25"):
        parse_encoding("yarn:factor=1000000.25")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hope:multiplier=1,multiplier=2", "gives `multiplier` twice"),
        ("hope:", "ends with a colon"),
        ("fire:width=2.5", "must be a whole number from 1 to 65536, got 2.5"),
    ],
)
def test_what_can_mean_two_things_is_an_error(text, message):
    with pytest.raises(EncodingError, match=message):
        parse_encoding(text)


def test_dynamic_ntk_grows_from_the_training_length_that_was_given():
    ids = torch.arange(60)[None] % VOCAB_SIZE
    given, config = attach(tiny_module(), "dynamic_ntk", 32), tiny_module(max_position_embeddings=32)
    assert torch.equal(given(ids).logits, attach(config, "dynamic_ntk")(ids).logits)
    assert not torch.allclose(given(ids).logits, attach(tiny_module(), "dynamic_ntk")(ids).logits, atol=1e-4)


def test_figures_know_an_encoding_of_one_kind_of_layers():
    assert facts_of("full=hope:multiplier=2(swap)") == facts_of("hope:multiplier=2(swap)")
    assert facts_of("full=hope;sliding=nope(swap)") == {"name": "full=hope;sliding=nope"}
