"""What the benchmarks share: models with random weights, texts of random ids, a stop-watch, reports.

Operations of a forward are counted as

    2 * parameters * L  +  2 * L^2 * d_model * n_layers

the input embedding apart, which is a look-up; attention is causal, so half of L^2 is computed. Tied heads count once.
"""

import contextlib
import gc
import hashlib
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from hope_eval import LanguageModel
from hope_eval.analysis.perplexity import table
from hope_eval.data.corpora import Corpus, Document
from hope_eval.evaluation.loop import measure
from hope_eval.evaluation.perplexity import Perplexity
from hope_eval.lengths import parse_length, parse_lengths, resolved
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.tokens import PrefixPolicy
from hope_eval.protocols import protocol_named
from hope_eval.runs.launch import n_processes
from hope_eval.runs.provenance import installed, origin
from hope_eval.runs.token_store import TokenStore
from hope_eval.show.terminal import print_records

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# The shapes of Llama-3.2-1B and Llama-3.1-8B, and one for tests.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.2,
    },
    "1.2b": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip

# The id of the token that is read before every text.
BOS = 0

OURS = "hope-eval"
FULL_LOGITS = "transformers, full logits"
LM_EVAL = "lm-eval"

# Targets hold for this device only.
TARGET_DEVICE = "H200"

Figure = dict[str, Any]


def _read_lengths(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    return resolved(parse_lengths(value), None)


def _read_length(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_length(value)


def size_option(default: str) -> Callable[[Any], Any]:
    """The option for the size of a model with random weights."""
    return click.option("--size", default=default, type=click.Choice(list(SIZES)), help="Random weights of that shape.")


def lengths_option(default: str) -> Callable[[Any], Any]:
    """The option for lengths in tokens."""
    return click.option("--lengths", default=default, callback=_read_lengths)


def length_option(name: str, default: str | None, text: str = "") -> Callable[[Any], Any]:
    """An option for one length in tokens."""
    return click.option(name, default=default, callback=_read_length, help=text)


def out_option(command: Any) -> Any:
    """Add the option for the file of a report."""
    return click.option("--out", type=click.Path(path_type=Path), help="Write the figures there as JSON.")(command)


def repeats_option(command: Any) -> Any:
    """Add the option for the number of timed calls."""
    return click.option("--repeats", default=3, help="Timed calls, after one untimed call; the median counts.")(command)


@cache
def number_tokenizer(vocab_size: int) -> Any:
    """A tokenizer that reads ids written as decimal numbers, and `<s>` as BOS, which is 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # A special token is found within words, too.
    words = {"<s>": BOS} | {str(i): i for i in range(BOS + 1, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def language_model(size: str, tokenizer: Any = None, seed: int = 0) -> LanguageModel:
    """A Llama with random weights: bfloat16 on a GPU, float32 elsewhere."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=1 << 20,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=BOS,
        eos_token_id=BOS,
        pad_token_id=None,
    )
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    torch.manual_seed(seed)
    with torch.device(DEVICE):
        module: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = LanguageModel(f"llama-{size}-random", module, tokenizer or number_tokenizer(config.vocab_size))
    assert model.reading.head == "chunked", model.reading.head_reason
    return model


def random_ids(model: LanguageModel, n: int, seed: int = 0) -> np.ndarray:
    """BOS and n - 1 random ids."""
    config: Any = model.module.config
    return np.concatenate([[BOS], np.random.default_rng(seed).integers(BOS + 1, config.vocab_size, n - 1)])


def corpus_of(texts: Sequence[np.ndarray]) -> Corpus:
    """Texts of ids, without their BOS, as a corpus for the tokenizer above."""
    documents = tuple(Document(str(n), " ".join(map(str, ids[1:].tolist()))) for n, ids in enumerate(texts))
    digest = hashlib.sha256("\n".join(document.text for document in documents).encode())
    return Corpus("random ids", documents, digest.hexdigest()[:16])


class Run:
    """A perplexity run on disk, which is deleted at the end."""

    def __init__(
        self,
        model: LanguageModel,
        corpus: Corpus,
        n: int,
        prefix: PrefixPolicy,
        protocol: str,
        lengths: Sequence[int],
    ) -> None:
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        perplexity = Perplexity.of(model, protocol_named(protocol), lengths, corpus, n_documents=n, prefix=prefix)
        self._tokens = TokenStore(measure(perplexity, model, Path(folder)))
        # A run records it, and continues with shorter reads.
        for record in self._tokens.out_of_memory:
            raise OutOfMemory(record["n_read"], record["memory"], record["message"])

    def nll(self) -> dict[int, float]:
        """Mean nll of each length."""
        rows = table([self._tokens]).rows
        return {row["length"]: float(row["value"]) for row in rows if row["metric"] == "nll"}


def operations(module: nn.Module, length: int) -> float:
    """Operations of one forward of that many tokens."""
    config: Any = module.config
    parameters = sum(p.numel() for p in module.parameters())
    if not config.tie_word_embeddings:
        parameters -= config.vocab_size * config.hidden_size
    count: float = 2.0 * parameters * length + 2.0 * length**2 * config.hidden_size * config.num_hidden_layers
    return count


@dataclass(frozen=True)
class Work:
    """Work to time.

    way:        who does it, and how.
    call:       does the work. Its result is the mean nll, or the mean nll by length, after `finish`.
    finish:     turns the result of the call into a mean nll; its time does not count.
    n_tokens:   tokens that are scored or read, whichever way it is done.
    operations: of that work, by the formula above.
    times:      the work is this many times the call. The call is made once, and its time multiplied.
    warm_up:    called once before; by default `call`.
    facts:      further columns.
    """

    way: str
    call: Callable[[], Any]
    n_tokens: int
    operations: float = 0.0
    times: float = 1.0
    warm_up: Callable[[], Any] | None = None
    finish: Callable[[Any], Any] = lambda result: result
    facts: Figure = field(default_factory=dict)


def measured(work: Work, repeats: int) -> Figure:
    """Figures of a piece of work: time, throughput, the peak of memory above the weights, nll."""
    figure: Figure = {"way": work.way, **work.facts}
    result = None
    free_cache()
    before = _allocated()
    try:
        (work.warm_up or work.call)()
        reset_peak()
        seconds = []
        for _ in range(repeats):
            taken, result = timed(work.call)
            seconds.append(taken)
    except (torch.OutOfMemoryError, OutOfMemory):
        figure |= {"status": "out of memory"}
    except Exception as error:
        # A peer that fails does not end the benchmark.
        if not work.way.startswith((FULL_LOGITS, LM_EVAL)):
            raise
        figure |= {
            "status": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:150]
        }
    else:
        whole = work.times * statistics.median(seconds)
        figure |= {"status": "ok", "seconds": _rounded(whole), "all_seconds": [_rounded(s) for s in seconds]}
        figure["tokens_per_second"] = round(work.n_tokens / whole)
        if work.operations:
            figure["tflops"] = _rounded(work.operations / whole / 1e12)
        if DEVICE.type == "cuda":
            figure["peak_gib_above_weights"] = round((peak() - before) / 2**30, 2)
        if work.times != 1:
            figure["seconds_are"] = f"{work.times:g} times what was timed"
        result = work.finish(result)
        if isinstance(result, dict):
            figure["nll"] = {str(length): round(float(value), 5) for length, value in result.items()}
        elif result is not None:
            figure["nll"] = round(float(result), 5)
    # Until here, the traceback kept the tensors that did not fit.
    free_cache()
    click.echo(json.dumps(figure), err=True)
    return figure


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, the GPU's work included, and its result."""
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - start, result


def profile_of(call: Callable[[], Any], n: int = 12) -> list[Figure]:
    """The slowest kernels (GPU) or operations (CPU) of a call, and the share of its time that each takes."""
    from torch.profiler import ProfilerActivity, profile

    cuda = DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        call()
        wait()
    taken = {
        event.key: (event.self_device_time_total if cuda else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    }
    whole = sum(seconds for seconds, _ in taken.values())
    first = sorted(taken.items(), key=lambda item: -item[1][0])[:n]
    return [
        {"kernel": key[:100], "calls": count, "milliseconds": _rounded(us / 1e3), "share": round(us / whole, 3)}
        for key, (us, count) in first
    ]


def wait() -> None:
    """Wait for the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def free_cache() -> None:
    """Return unused memory to the GPU."""
    if DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Reset the peak of memory."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """Most bytes of the GPU in use since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0


def _allocated() -> int:
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def not_run(way: str, why: str, **facts: Any) -> Figure:
    """Figures of work that was not measured."""
    return {"way": way, **facts, "status": why}


def seconds_of(figures: Sequence[Figure], way: str, **facts: Any) -> float | None:
    """Seconds of the figure with that way and these facts; None if no figure has them."""
    return value_of(figures, "seconds", way=way, **facts)


def value_of(figures: Sequence[Figure], key: str, **facts: Any) -> float | None:
    """That value of the figure with these facts; None if no figure has it."""
    for figure in figures:
        if all(figure.get(name) == value for name, value in facts.items()):
            value: float | None = figure.get(key)
            return value
    return None


def ratio(value: float | None, reference: float | None) -> float | None:
    """The value divided by the reference; None if either is missing, or the reference is 0."""
    return _rounded(value / reference) if value is not None and reference else None


def agreement(figures: Sequence[Figure]) -> float | None:
    """Largest relative difference of nll of the same tokens between any two ways; None with fewer than two.

    Figures with the same `scored` and the same length are of the same tokens.
    """
    groups: dict[Any, list[float]] = {}
    for figure in figures:
        nll = figure.get("nll")
        for length, value in nll.items() if isinstance(nll, dict) else [(str(figure.get("length")), nll)]:
            if value is not None:
                groups.setdefault((figure.get("scored"), length), []).append(value)
    gaps = [(max(values) - min(values)) / min(values) for values in groups.values() if len(values) > 1]
    return float(f"{max(gaps):.2g}") if gaps else None


def target(what: str, value: float | None, wanted: str = "", applies: bool = True) -> Figure:
    """A figure and its target: `>= 600 TFLOP/s`, `<= 1.1`.

    wanted:  the target; empty if there is none.
    applies: whether the target is for this setting. On another device than that of the targets, none applies.
    """
    line: Figure = {"what": what, "value": value, "target": wanted}
    if not wanted or not applies or DEVICE.type != "cuda" or TARGET_DEVICE not in torch.cuda.get_device_name():
        return {**line, "target": None, "met": None}
    sign, number = wanted.split()[:2]
    return {**line, "met": value is not None and (value >= float(number) if sign == ">=" else value <= float(number))}


def report(
    title: str, figures: Sequence[Figure], out: Path | None, targets: Sequence[Figure] = (), **facts: Any
) -> dict[str, Any]:
    """Print the figures as a table, and write them to a file with their provenance."""
    content = {
        "title": title,
        "command": command_line(),
        "date": datetime.now(UTC).date().isoformat(),
        **{key: value for key, value in origin(DEVICE, "").items() if key != "command"},
        **facts,
        "agreement_of_nll": agreement(figures),
        "targets": list(targets),
        "figures": list(figures),
    }
    if DEVICE.type == "cpu":
        content["machine"] += f", {torch.get_num_threads()} threads"
    content["versions"] |= installed("lm_eval")
    click.echo(title)
    if figures:
        print_records(filled(figures))
    if targets:
        print_records([{key: "" if value is None else value for key, value in line.items()} for line in targets])
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n")
    return content


def command_line() -> str:
    """The command of this process, without --out."""
    words = sys.argv[1:]
    if "--out" in words:
        place = words.index("--out")
        words = words[:place] + words[place + 2 :]
    start = ["torchrun", "--nproc-per-node", str(n_processes())] if n_processes() > 1 else ["python"]
    return shlex.join([*start, "-m", "benchmarks", *words])


def filled(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Figures as rows with the same columns."""
    keys = [key for key in dict.fromkeys(key for figure in figures for key in figure) if key != "all_seconds"]
    return [{key: _shown(figure.get(key)) for key in keys} for figure in figures]


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return " ".join(f"{key}: {number:.4f}" for key, number in value.items())
    return "" if value is None else value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep output of other libraries off the screen."""
    import logging

    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
