"""Perplexity of one long text: full logits, as the peers compute them, beside hope-eval's way, in one process.

    python benchmarks/long_forward.py --lengths 32k,128k --out results/benchmarks/long_forward.json

The model is a Llama of 1.2B parameters with random weights and 128,256 tokens of vocabulary (the shape of
Llama-3.2-1B), bfloat16. Memory is the peak above the weights. Operations are counted as

    2 * parameters * L  +  2 * L^2 * d_model * n_layers

the input embedding apart, which is a look-up; attention is causal, so half of L^2 is computed. Tied heads count once.
"""

import gc
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from torch import nn

from hope_eval import LanguageModel, Sample
from hope_eval.lengths import parse_lengths, resolved


@click.command()
@click.option("--lengths", default="32k,128k", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures there as JSON.")
def main(lengths: str, repeats: int, out: Path | None) -> None:
    """Time both ways at every length."""
    model = llama()
    language_model = LanguageModel(name="llama-1.2b-random", module=model, tokenizer=None)
    assert language_model.head == "chunked", language_model.head_reason
    figures = []
    for length in resolved(parse_lengths(lengths), None):
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, length)
        for way, score in (("full logits", full_logits), ("hope-eval", ours)):
            figure = {"way": way, "length": length, **measured(score, language_model, ids, repeats)}
            if "seconds" in figure:
                figure["tflops"] = round(operations(model, length) / figure["seconds"] / 1e12, 1)
            figures.append(figure)
            print(json.dumps(figure), flush=True)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "figures": figures,
    }
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


def llama() -> Any:
    """Return the model, with random weights of the usual size."""
    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def ours(model: LanguageModel, ids: np.ndarray) -> float:
    """Return the mean nll as `hope-eval ppl` computes it."""
    return float(model.score([Sample(ids[:1], ids[1:])])[0].nll.mean(dtype=np.float64))


@torch.inference_mode()
def full_logits(model: LanguageModel, ids: np.ndarray) -> float:
    """Return the mean nll as most scripts compute it."""
    ids_BL = torch.from_numpy(ids)[None].cuda()
    output: Any = model.module(input_ids=ids_BL, labels=ids_BL, use_cache=False)
    loss: float = output.loss.item()
    return loss


def measured(
    score: Callable[[LanguageModel, np.ndarray], float], model: LanguageModel, ids: np.ndarray, repeats: int
) -> dict[str, Any]:
    """Return median seconds, peak memory above the weights and the mean nll; or that it ran out of memory."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        nll = score(model, ids)
        seconds = [timed(score, model, ids) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        gc.collect()
        return {"status": "out of memory"}
    peak = torch.cuda.max_memory_allocated() - before
    return {
        "seconds": round(statistics.median(seconds), 4),
        "all_seconds": [round(second, 4) for second in seconds],
        "peak_gib_above_weights": round(peak / 2**30, 2),
        "nll": round(nll, 5),
    }


def timed(score: Callable[[LanguageModel, np.ndarray], float], model: LanguageModel, ids: np.ndarray) -> float:
    """Return seconds of one call, the GPU's work included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    score(model, ids)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(model: nn.Module, length: int) -> float:
    """Return the floating-point operations of one forward."""
    config: Any = model.config
    parameters = sum(p.numel() for p in model.parameters())
    if not config.tie_word_embeddings:
        parameters -= config.vocab_size * config.hidden_size
    count: float = 2.0 * parameters * length + 2.0 * length**2 * config.hidden_size * config.num_hidden_layers
    return count


if __name__ == "__main__":
    main()
