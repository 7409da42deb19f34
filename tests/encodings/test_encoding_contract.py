"""What every encoding must do, whatever it is, and what each of them is, by its paper's equation."""

import math
import subprocess
import sys

import pytest
import references
import torch
import transformers
from conftest import VOCAB_SIZE

from hope_eval.encodings import (
    Geometry,
    RopeExtension,
    encoding_class,
    encoding_names,
    parameters_of,
    parse_encoding,
)
from hope_eval.errors import EncodingError
from hope_eval.model.decoder import HopeEvalConfig
from hope_eval.model.kernels import attention, attention_bias, attention_blocks
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Sample

TRAIN_LENGTH = 64
SPECS = [*encoding_names(), "kerple:power=1", "hope:theta=50000"]
# What can be trained from scratch; extensions of RoPE stretch a checkpoint that was.
TRAINABLE = [spec for spec in SPECS if not issubclass(encoding_class(spec.split(":")[0]), RopeExtension)]
ENDLESS = [spec for spec in SPECS if spec != "learned"]

IDS = torch.randint(1, VOCAB_SIZE, (1, 60), generator=torch.Generator().manual_seed(0))


def decoder(spec: str, dtype=torch.float32, **changes):
    """Return a tiny decoder with that encoding, in evaluation."""
    parsed = parse_encoding(spec)
    options = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 3, "max_position_embeddings": TRAIN_LENGTH,
        "initializer_range": 0.2, "encoding": parsed.name, "encoding_parameters": dict(parsed.parameters), **changes,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(HopeEvalConfig(**options), dtype=dtype).eval()
    with torch.no_grad():
        # T5's scalars start at zero; tests need an encoding that does something.
        for name, parameter in model.named_parameters():
            if "scalars" in name:
                parameter.copy_(torch.linspace(-2, 2, parameter.numel()).reshape(parameter.shape).sin())
    return model


def layer_encoding(model):
    return model.model.layers[0].self_attn.encoding


@pytest.mark.parametrize("spec", SPECS)
def test_what_follows_does_not_matter(spec):
    if not encoding_class(spec.split(":")[0]).nested_safe:
        pytest.skip("changes with the length read, and says so")
    model = decoder(spec)
    with torch.no_grad():
        whole, part = model(IDS).logits, model(IDS[:, :37]).logits
    torch.testing.assert_close(whole[:, :37], part, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_the_order_of_tokens_matters(spec):
    model = decoder(spec, num_hidden_layers=1)
    swapped = IDS.clone()
    swapped[:, [3, 30]] = swapped[:, [30, 3]]
    with torch.no_grad():
        gap = (model(IDS).logits[:, -1] - model(swapped).logits[:, -1]).abs().max()
    # In one layer without position information, the last token cannot tell in which order the others came.
    assert (gap < 1e-4) == (spec == "nope")


@pytest.mark.parametrize("spec", SPECS)
def test_one_token_at_a_time_with_a_cache_equals_all_at_once(spec):
    if not encoding_class(spec.split(":")[0]).nested_safe:
        pytest.skip("transformers keeps keys that were rotated by other angles")
    model = decoder(spec)
    with torch.no_grad():
        whole = model(IDS).logits
        cache, steps = None, []
        for start, stop in [(0, 20), *((t, t + 1) for t in range(20, 50)), (50, 60)]:
            output = model(IDS[:, start:stop], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", ENDLESS)
def test_generation_goes_on_beyond_the_training_length(spec):
    model = decoder(spec)
    written = model.generate(IDS, max_new_tokens=2 * TRAIN_LENGTH, do_sample=False, eos_token_id=999, pad_token_id=0)
    assert written.shape[1] == 60 + 2 * TRAIN_LENGTH


@pytest.mark.parametrize("spec", ENDLESS)
def test_scores_are_finite_at_16_times_the_training_length(spec):
    ids = IDS.repeat(1, 18)[0, : 16 * TRAIN_LENGTH].numpy()
    model = LanguageModel("tiny", decoder(spec), None)
    assert (model.reading.head, model.reading.head_reason) == ("chunked", "")
    score = model.score([Sample(ids[:1], ids[1:])])[0]
    assert bool(torch.isfinite(torch.from_numpy(score.nll)).all())


def test_the_learned_table_ends():
    model = LanguageModel("tiny", decoder("learned"), None)
    assert model.max_length == TRAIN_LENGTH


@pytest.mark.parametrize("spec", SPECS)
def test_attention_is_that_of_one_query_and_one_key_at_a_time(spec, monkeypatch):
    # Blocks of 16 queries, so that there are several.
    monkeypatch.setattr(attention_blocks, "BLOCK_NUMBERS", 0)
    layer = decoder(spec).model.layers[0].self_attn
    generator = torch.Generator().manual_seed(1)
    for n_queries, n_keys in ((40, 40), (1, 40), (7, 40)):
        q = torch.randn(2, 3, n_queries, 16, generator=generator)
        k, v = torch.randn(2, 2, 3, n_keys, 16, generator=generator)
        fast = attention.attention(layer, q, k, v, None)[0].transpose(1, 2)
        slow = attention_bias.reference(layer.encoding, q, k, v, 0.25)
        torch.testing.assert_close(fast.double(), slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("n_keys", [300, 70_000])
def test_alibi_without_a_bias_is_alibi_far_out_too(n_keys, dtype, tolerance):
    layer = decoder("alibi", num_attention_heads=6, num_key_value_heads=6, hidden_size=96).model.layers[0].self_attn
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 6, n, 16, generator=generator).to(dtype) for n in (1, n_keys, n_keys))
    found = attention.attention(layer, q, k, v, None)[0].transpose(1, 2)
    bias_HN = layer.encoding.distance_bias(torch.arange(n_keys).flip(0))
    weights = torch.softmax(q.double() @ k.double().transpose(-1, -2) / 4 + bias_HN[None, :, None].double(), -1)
    wanted = weights @ v.double()
    assert float((found.double() - wanted).norm() / wanted.norm()) < tolerance


def test_half_precision_cannot_hold_positions_past_65536_and_takes_the_bias():
    assert attention_blocks.slopes_fit(torch.float16, 65_536)
    assert not attention_blocks.slopes_fit(torch.float16, 65_537)


@pytest.mark.parametrize("spec", [s if s == "hope" else pytest.param(s, marks=pytest.mark.slow) for s in TRAINABLE])
def test_compiled_gradients_are_the_same(spec):
    plain, other = decoder(spec).train(), decoder(spec).train()
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, dynamic=False, backend="aot_eager")
    for model in (plain, compiled):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


@pytest.mark.parametrize("spec", SPECS)
def test_shifting_all_positions_changes_nothing_if_relative(spec):
    cls = encoding_class(spec.split(":")[0])
    model = decoder(spec)
    if not layer_encoding(model).bias_form() and layer_encoding(model).log_scales(torch.arange(3)) is None:
        ids = IDS[:, :20]
        with torch.no_grad():
            here = model(ids).logits
            there = model(ids, position_ids=torch.arange(30, 50)[None]).logits
        assert torch.allclose(here, there, atol=1e-3) == cls.relative
        return
    own = layer_encoding(model)
    queries, keys = torch.arange(10, 20), torch.arange(5, 10)
    if own.bias(queries, keys) is not None:
        same = torch.allclose(own.bias(queries, keys), own.bias(queries + 700, keys + 700), atol=1e-5)
        assert same == cls.relative
    else:
        assert cls.relative, "a function of distance is relative"


@pytest.mark.parametrize("spec", TRAINABLE)
def test_gradients_reach_every_parameter(spec):
    model = decoder(spec).train()
    model(IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


# The name that works in all versions of transformers that we support.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("spec", ["rope", "fire", "t5", "xpos"])
def test_checkpointed_gradients_are_the_same(spec):
    plain, saving = decoder(spec).train(), decoder(spec).train()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, saving):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


@pytest.mark.parametrize("name", encoding_names())
def test_every_hyper_parameter_changes_the_scores(name):
    plain = decoder(name)
    ids = IDS.repeat(1, 5)
    others = {"fraction": 0.5, "buckets": 16, "power": 1, "train_length": 512, "pairs": 3, "theta": 50_000}
    for key, value in parameters_of(encoding_class(name)).items():
        other = others[key] if key in others else 3 * value
        spec = parse_encoding(f"{name}:{key}={other}")
        if encoding_class(name).is_rope_type():
            # At a length and head_dim where every number counts.
            geometry = Geometry(64, 2, 4096)
            mine, its = (one.build(geometry).inverse_frequencies() for one in (parse_encoding(name), spec))
            differ = not torch.equal(mine, its)
        else:
            with torch.no_grad():
                differ = not torch.equal(plain(ids).logits, decoder(str(spec))(ids).logits)
        assert differ or not encoding_class(name).nested_safe, key


@pytest.mark.parametrize("spec", SPECS)
def test_all_else_is_equal(spec):
    own, reference = decoder(spec).state_dict(), decoder("nope").state_dict()
    for name, value in reference.items():
        assert torch.equal(own[name], value), name
    assert all("encoding" in name for name in own.keys() - reference.keys())


@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16_keeps_angles_and_biases_in_float32(spec):
    distances = torch.arange(1000)
    exact = layer_encoding(decoder(spec)).distance_bias(distances)
    model = decoder(spec, dtype=torch.bfloat16)
    own = layer_encoding(model)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    if exact is not None:
        found = own.distance_bias(distances)
        assert found.dtype == torch.float32
        # Learned numbers are rounded with the weights; distances must not be.
        assert len(found[0].unique()) >= len(exact[0].unique()) - 5


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_decoder_comes_back_whole(spec, tmp_path):
    model = decoder(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoding" in name:
                parameter += 0.1
    model.save_pretrained(tmp_path)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(back(IDS).logits, model(IDS).logits)


@pytest.mark.slow
def test_a_saved_decoder_comes_back_in_another_process(tmp_path):
    model = decoder("fire")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.save(model(IDS).logits, tmp_path / "logits.pt")
    torch.save(IDS, tmp_path / "ids.pt")
    code = """
import sys, hope_eval, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    assert torch.equal(model(torch.load(f"{sys.argv[1]}/ids.pt")).logits, torch.load(f"{sys.argv[1]}/logits.pt"))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(EncodingError, match="does not divide"):
        decoder("rope", num_attention_heads=5, num_key_value_heads=5, head_dim=None)


# Before the training length, across it, far past it.
DISTANCES = [0, 1, 15, 16, 63, 64, 127, 128, 1000, 100_000]


def theta(name: str, parameters: dict[str, float], i: int) -> float:
    base, factor = parameters.get("theta", 1e4), parameters.get("factor", 4.0)
    rope, slow = base ** (-2 * i / 64), references.below_hope(64, 512, base)
    return {
        "rope": lambda: rope,
        "hope": lambda: rope if i < 32 - slow else 0.0,
        "prope": lambda: references.prope_theta(i, 64, parameters.get("fraction", 0.75), base),
        "clipped": lambda: references.clipped_theta(i, 64, int(parameters.get("pairs", slow)), base),
        "xpos": lambda: rope,
        "pi": lambda: references.pi_theta(i, 64, factor, base),
        "ntk": lambda: references.ntk_theta(i, 64, factor, base),
        "dynamic_ntk": lambda: references.dynamic_ntk_theta(i, 64, factor, 512, 512, base),
        "longrope": lambda: rope,
        "llama3": lambda: references.llama3_theta(i, 64, 8.0, 1.0, 4.0, 512, base),
        "yarn": lambda: references.yarn_theta(i, 64, factor, 32.0, 1.0, 512, base),
    }[name]()


ROTARY = [name for name in encoding_names() if "rotary" in encoding_class(name).kinds()]


@pytest.mark.parametrize(
    "spec",
    [
        *ROTARY, *(f"{name}:theta={base}" for name in ROTARY for base in (2, 50_000, 5e8)),
        "prope:fraction=0.3", "clipped:pairs=0", "clipped:pairs=1", "clipped:pairs=2", "clipped:pairs=20",
        "clipped:pairs=32", "clipped:pairs=20,theta=500000", "pi:factor=7", "yarn:factor=16",
    ],
)  # fmt: skip
def test_frequencies_are_those_of_the_paper(spec):
    parsed = parse_encoding(spec)
    found = parsed.build(Geometry(64, 4, 512)).inverse_frequencies()
    wanted = [theta(parsed.name, dict(parsed.parameters), i) for i in range(32)]
    torch.testing.assert_close(found.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-12)


def test_clipped_fades_the_pairs_that_hope_cuts():
    rope, hope, clipped = (
        encoding_class(name)(Geometry(64, 4, 256)).inverse_frequencies() for name in ("rope", "hope", "clipped")
    )
    # HoPE rotates 13 of 32. Of the 19 others the first turns as in RoPE, the middle one half as fast, the last not.
    assert int((hope > 0).sum()) == 13
    assert torch.equal(clipped[:14], rope[:14])
    assert bool((clipped[14:] < rope[14:]).all())
    assert float(clipped[22]) == pytest.approx(10_000 ** (-44 / 64) / 2, rel=1e-6)
    assert float(clipped[31]) == 0.0
    for pairs in (0, 1):
        same = parse_encoding(f"clipped:pairs={pairs}").build(Geometry(64, 4, 256))
        assert torch.equal(same.inverse_frequencies(), rope)


def test_clipped_is_read_as_rope_is():
    readings = [
        LanguageModel("tiny", decoder(name, num_key_value_heads=1), None).reading for name in ("rope", "clipped")
    ]
    assert [str(reading) for reading in readings] == [str(readings[0])] * 2


def test_dynamic_ntk_follows_the_length():
    model = decoder("dynamic_ntk", head_dim=16)
    rotary = model.model.rotary_emb
    for length in (50, 100, 1000):
        rotary(torch.zeros(1, length, 48), torch.arange(length)[None])
        wanted = [references.dynamic_ntk_theta(i, 16, 4.0, length, TRAIN_LENGTH) for i in range(8)]
        torch.testing.assert_close(rotary.inv_freq.tolist(), wanted, rtol=1e-4, atol=1e-9)


def test_longrope_interpolates_longer_inputs_only_and_sharpens_all():
    model = decoder("longrope:factor=8", head_dim=16)
    rotary = model.model.rotary_emb
    for length in (50, 64, 65, 1000, 60):
        rotary(torch.zeros(1, length, 48), torch.arange(length)[None])
        factor = 8 if length > TRAIN_LENGTH else 1
        wanted = [10_000 ** (-2 * i / 16) / factor for i in range(8)]
        torch.testing.assert_close(rotary.inv_freq.tolist(), wanted, rtol=1e-5, atol=1e-9)
        assert rotary.attention_scaling**2 == pytest.approx(1 + math.log(8) / math.log(TRAIN_LENGTH))


def test_yarn_sharpens_attention():
    assert decoder("yarn:factor=4").model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("base", [10_000, 50_000])
@pytest.mark.parametrize("distance", [0, 1, 63, 64, 500, 2000])
def test_xpos_is_the_paper(distance, base):
    encoding = parse_encoding(f"xpos:theta={base}").build(Geometry(16, 1, 64))
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    angles = torch.outer(torch.tensor([float(distance), 0.0]), encoding.inverse_frequencies()).double()

    def turned(x, angle):
        half = len(x) // 2
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])

    q_11LE = torch.stack([turned(k, angles[1])] * distance + [turned(q, angles[0])])[None, None]
    k_11LE = torch.stack([turned(k, angles[1])] * (distance + 1))[None, None]
    q_11LE, k_11LE = attention_bias.scaled(encoding, q_11LE, k_11LE)
    found = float(q_11LE[0, 0, -1] @ k_11LE[0, 0, 0])
    wanted = references.xpos_logit(q.tolist(), k.tolist(), distance, 0, base=base)
    assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("n_heads", range(1, 21))
def test_alibi_slopes_are_those_of_bloom(n_heads):
    encoding = encoding_class("alibi")(Geometry(16, n_heads, 64))
    for distance in DISTANCES:
        for head in range(n_heads):
            found = float(encoding.distance_bias(torch.tensor([distance]))[head, 0])
            assert found == pytest.approx(references.alibi_bias(head, n_heads, distance), rel=1e-6)
    bloom = transformers.models.bloom.modeling_bloom.build_alibi_tensor
    positions_HK = bloom(torch.ones(1, 5), n_heads, torch.float32).reshape(n_heads, 5)
    torch.testing.assert_close(-encoding.distance_bias(torch.arange(5)), positions_HK)


@pytest.mark.parametrize("power", [0, 1])
def test_kerple_is_the_paper(power):
    encoding = encoding_class("kerple")(Geometry(16, 4, 64), power=power).requires_grad_(False)
    r1 = torch.nn.functional.softplus(encoding.raw_r1_H)
    r2 = 2 * torch.sigmoid(encoding.raw_r2_H) if power else torch.nn.functional.softplus(encoding.raw_r2_H)
    for distance in DISTANCES:
        found = encoding.distance_bias(torch.tensor([distance]))[:, 0]
        wanted = [references.kerple_bias(float(a), float(b), distance, power) for a, b in zip(r1, r2, strict=True)]
        assert found.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("query", "key"), [(5, 3), (63, 0), (512, 0), (513, 2), (5000, 17), (100_000, 99_990)])
def test_fire_is_the_paper(query, key):
    encoding = parse_encoding("fire").build(Geometry(16, 4, 64)).requires_grad_(False)
    with torch.no_grad():
        encoding.multiplier.fill_(0.7)
    found = encoding.bias(torch.tensor([query]), torch.tensor([key]))[:, 0, 0]
    first, last = encoding.first, encoding.last
    for head in range(4):
        wanted = references.fire_bias(
            first.weight[:, 0].tolist(), first.bias.tolist(), last.weight[head].tolist(), float(last.bias[head]),
            float(encoding.c), 0.7 * 512, query, key,
        )  # fmt: skip
        assert float(found[head]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_t5_buckets_are_those_of_t5():
    encoding = encoding_class("t5")(Geometry(16, 4, 64))
    distances = torch.arange(1000)
    own = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    assert torch.equal(
        encoding.bucket(distances), own(-distances, bidirectional=False, num_buckets=32, max_distance=128)
    )
    # Where the logarithm is a whole number, its rounding decides; everywhere else the equation does.
    for distance in [*DISTANCES[:4], 17, 63, 100, 127, 128, 1000]:
        assert int(encoding.bucket(torch.tensor([distance]))) == references.t5_bucket(distance)


def test_sinusoids_are_those_of_the_paper():
    encoding = encoding_class("sinusoidal")(Geometry(16, 4, 64))
    positions = [0, 3, 63, 64, 5000]
    found = encoding.embed(torch.zeros(1, 5, 12), torch.tensor([positions]))[0]
    for row, position in enumerate(positions):
        wanted = [references.sinusoid(position, dimension, 12) for dimension in range(12)]
        assert found[row].tolist() == pytest.approx(wanted, abs=2e-3)
    tokens = torch.full((1, 1, 12), 0.5)
    there = encoding.embed(tokens, torch.tensor([[7]])) - encoding.embed(torch.zeros(1, 1, 12), torch.tensor([[7]]))
    torch.testing.assert_close(there, tokens * math.sqrt(12))
