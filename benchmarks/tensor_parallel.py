"""One long text scored by one GPU, and by several that hold the model, or read the text, together, in one run.

    torchrun --nproc-per-node 2 -m benchmarks tensor-parallel --out results/benchmarks/tensor_parallel.json
    torchrun --nproc-per-node 2 -m benchmarks tensor-parallel --share text --length 128k

The model has random weights in bfloat16, and is written to --folder first (16 GB of 8B), since shards are read from
files. The first process scores with all of it while the others wait; then all score together. Operations are those of
the whole model. `sent_seconds` are the seconds of the sums of one forward alone: two a layer, and one for
the embeddings; with --share text, of the gathers of keys and values. Memory is that of the GPU with the highest peak.

--size tiny runs anywhere, as a check that it works.
"""

import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
import transformers

from benchmarks import common
from hope_eval import LanguageModel, Sample, zoo
from hope_eval.lengths import short_length
from hope_eval.model import checkpoint
from hope_eval.model.parallel.group import Group, held_together
from hope_eval.runs.launch import n_processes
from hope_eval.runs.processes import joined


@click.command()
@common.size_option("8b")
@common.length_option("--length", "32k")
@click.option("--share", type=click.Choice(["model", "text"]), default="model")
@common.repeats_option
@click.option("--folder", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "tensor-parallel",
              help="Where the model is written, and removed again.")  # fmt: skip
@common.out_option
def tensor_parallel(size: str, length: int, share: str, repeats: int, folder: Path, out: Path | None) -> None:
    """Time both ways."""
    n = n_processes()
    ids = np.random.default_rng(0).integers(0, common.SIZES[size]["vocab_size"], length)
    sizes = (n, 1) if share == "model" else (1, n)
    with joined(folder, lambda text: None, *sizes) as ranks:
        device = ranks.device("auto")
        with held_together(ranks, device) as group:
            assert group is not None, "start it with torchrun, in two processes or more"
            if ranks.rank == 0:
                write(folder / size, size, device)
                alone, alone_nll = measured(folder / size, device, ids, repeats, None)
            group.gathered("the first is done")
            shared, shared_nll = measured(folder / size, device, ids, repeats, group)
            sent = sums(size, length, device) if share == "model" else gathers(size, length, device, group)
            sent()
            shared["sent_seconds"] = round(statistics.median(common.timed(sent)[0] for _ in range(repeats)), 4)
            peaks = [float(text) for text in group.gathered(str(shared.get("peak_gib", 0.0)))]
        if not ranks.finish():
            return
        shutil.rmtree(folder / size)
    gap_T = np.abs(alone_nll - shared_nll)
    together = "hold the model" if share == "model" else "read the text"
    common.report(
        f"One long text by {n} GPUs that {together} together, {size}, {short_length(length)} tokens",
        [alone, shared | ({"peak_gib": max(peaks)} if any(peaks) else {})], out,
        [
            common.target(f"times as fast as one, {n} processes", common.ratio(alone["seconds"], shared["seconds"])),
            common.target("largest difference of the nll of a token", round(float(gap_T.max()), 4)),
            common.target("mean difference of the nll of a token, without its sign", round(float(gap_T.mean()), 4)),
        ],
        length=length, shared=share,
    )  # fmt: skip


def write(folder: Path, size: str, device: str) -> None:
    """Write the model, with random weights of the usual size, and a tokenizer, which is not used."""
    config = transformers.LlamaConfig(**common.SIZES[size], max_position_embeddings=131_072)
    torch.manual_seed(0)
    with torch.device("cpu" if device == "auto" else device):
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    module.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(zoo.folder("zoo:hope")).save_pretrained(folder)


def measured(
    folder: Path, device: str, ids: np.ndarray, repeats: int, group: Group | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Median seconds, memory, and the nll of each token."""
    # The model loaded before refers to itself.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    start = time.perf_counter()
    model = checkpoint.load(str(folder), device=device, dtype="bfloat16", group=group)
    figure: dict[str, Any] = {"gpus": group.size if group else 1, "head": model.reading.head}
    figure["loading_seconds"] = round(time.perf_counter() - start, 2)
    if model.device.type == "cuda":
        figure["weights_gib"] = round(torch.cuda.memory_allocated() / 2**30, 2)
        torch.cuda.reset_peak_memory_stats()
    nll = score(model, ids)
    seconds = [common.timed(lambda: score(model, ids))[0] for _ in range(repeats)]
    if model.device.type == "cuda":
        figure["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    figure |= {
        "seconds": round(statistics.median(seconds), 4),
        "all_seconds": [round(second, 4) for second in seconds],
        "nll": round(float(nll.mean(dtype=np.float64)), 5),
    }
    with torch.device("meta"):
        outline = transformers.AutoModelForCausalLM.from_config(model.module.config)
    figure["tflops"] = round(common.operations(outline, len(ids)) / figure["seconds"] / 1e12, 3)
    figure["tflops_of_each"] = round(figure["tflops"] / figure["gpus"], 3)
    return figure, nll


def score(model: LanguageModel, ids: np.ndarray) -> np.ndarray:
    """Nll of each token, as `hope-eval ppl` computes it."""
    nll: np.ndarray = model.score([Sample(ids[:1], ids[1:])])[0].nll
    return nll


def sums(size: str, length: int, device: str) -> Callable[[], None]:
    """A function that does the sums of one forward."""
    shape = common.SIZES[size]
    place = "cpu" if device == "auto" else device
    states_LD = torch.zeros(length, shape["hidden_size"], dtype=torch.bfloat16, device=place)

    def work() -> None:
        for _ in range(2 * shape["num_hidden_layers"] + 1):
            dist.all_reduce(states_LD)

    return work


def gathers(size: str, length: int, device: str, group: Group) -> Callable[[], None]:
    """A function that gathers the keys and values of one forward."""
    shape = common.SIZES[size]
    head_dim = shape["hidden_size"] // shape["num_attention_heads"]
    place = "cpu" if device == "auto" else device
    cut = group.cut(length)
    own_BGPE = torch.zeros(
        1, shape["num_key_value_heads"], len(cut.positions()), head_dim, dtype=torch.bfloat16, device=place
    )

    def work() -> None:
        for _ in range(2 * shape["num_hidden_layers"]):
            cut.whole(own_BGPE)

    return work
