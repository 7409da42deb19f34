"""Train a small model with a given encoding, so that encodings can be compared with everything else equal.

    recipe (recipe.py)  ->  rows (rows.py)  ->  one plain loop  ->  checkpoint folder (plain transformers format)

Matched control: for all encodings of one seed, the initial weights, data, order, tokens and optimiser are the same.
bf16 autocast on CUDA, torch.compile, and any number of GPUs by torchrun (batches are shared out, results are the same).

The loop is our own and not transformers' Trainer. For the 3.4M model and steps of 32,768 tokens on an H200 it takes
9.96 ms a step, compiled, where the Trainer takes 12.67 (benchmarks/training_speed.py). And everything that decides a
comparison (the order of rows, the schedule, what decays) stands in this file and does not change with a library's
version.

    OUT/model.safetensors, config.json, tokenizer…   the model, in bfloat16, when it is done
    OUT/training.json                                recipe, facts and cost of the training
    OUT/training.jsonl                               every few steps: the loss; less often: nll at 1x, 2x, 4x
    OUT/.work/                                       the rows and the last checkpoint, until the training is done

Rerun the command to resume an interrupted training: it starts at its last checkpoint and reaches the same losses.

Shape letters: B rows of a batch, L tokens of a row, N texts.
"""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from hope_eval.encodings import parse_encoding
from hope_eval.errors import OptionError, TrainingError
from hope_eval.files import explained, whole_file
from hope_eval.model.checkpoint import quiet
from hope_eval.model.decoder import HopeEvalConfig, HopeEvalForCausalLM
from hope_eval.model.device import device_named
from hope_eval.model.layer_choice import is_mixture
from hope_eval.model.scoring import LanguageModel
from hope_eval.runs.columns import Progress
from hope_eval.runs.provenance import origin
from hope_eval.task import Sample, task_class
from hope_eval.train.prepare import Prepared, prepare
from hope_eval.train.recipe import Recipe, claim, held, parse_size
from hope_eval.train.rows import check_disk

# Compiling pays from this many steps on.
_COMPILED_FROM = 1000


def train(
    recipe: Recipe,
    out: Path,
    *,
    work: Path | None = None,
    device: str = "auto",
    compile_model: bool | None = None,
    save_steps: int = 0,
    command: str = "",
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Train the model of a recipe into the folder `out`, or resume its training; gives the folder.

    work:          folder of the rows; trainings side by side share it. By default below `out`.
    device:        auto, or a torch device.
    compile_model: torch.compile; None: on CUDA, for enough steps to pay.
    save_steps:    steps between checkpoints; 0: a tenth of the training.
    force:         delete another training in `out`.
    progress:      called with the tokens trained on so far, and their total.

    Raises TrainingError, EncodingError, OptionError or CorpusError; StoreError on a full disk.
    """
    recipe.check()
    with held(out), explained(out):
        if not claim(recipe, out, force):
            _train(recipe, out, work, device, compile_model, save_steps, command, progress)
        else:
            # A kill at the very end leaves it.
            shutil.rmtree(out / ".work", ignore_errors=True)
            progress(recipe.n_tokens, recipe.n_tokens)
    return out


def _train(
    recipe: Recipe,
    out: Path,
    work: Path | None,
    device: str,
    compile_model: bool | None,
    save_steps: int,
    command: str,
    progress: Progress,
) -> None:
    """Train the model, or resume, in a folder that is claimed for it."""
    with _processes(device) as processes:
        prepared = prepare(recipe, work or out / ".work")
        if compile_model is None:
            compile_model = processes.device.type == "cuda" and recipe.n_steps >= _COMPILED_FROM
        loop = Loop(recipe, prepared, processes, compile_model)
        log = _Log(out / "training.jsonl", processes.rank == 0)
        _run(loop, log, out, save_steps or max(1, recipe.n_steps // 10), progress)
        if processes.rank == 0:
            _finish(loop, log, out, command)


def new_model(recipe: Recipe, vocab_size: int) -> HopeEvalForCausalLM:
    """Untrained model of a recipe; everything but the encoding follows from size, length and seed."""
    size, mixture = parse_size(recipe.size), is_mixture(recipe.encoding)
    spec = None if mixture else parse_encoding(recipe.encoding)
    config = HopeEvalConfig(
        vocab_size=vocab_size,
        hidden_size=size.d_model,
        intermediate_size=size.d_ff,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        num_key_value_heads=size.n_heads,
        max_position_embeddings=recipe.train_length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        encoding=spec.name if spec else recipe.encoding,
        encoding_parameters=dict(spec.parameters) if spec else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return HopeEvalForCausalLM(config)


@dataclass(frozen=True)
class Processes:
    """This process among those that train a model together, each on its own device."""

    device: torch.device
    rank: int = 0
    world: int = 1


@contextlib.contextmanager
def _processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun there is one process."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = device_named(device, int(os.environ.get("LOCAL_RANK", "0")) if world > 1 else None)
    if world == 1:
        yield Processes(place)
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(place, distributed.get_rank(), world)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


class Loop:
    """A training: weights, optimiser, and the number of steps made. It makes one step at a time."""

    def __init__(self, recipe: Recipe, prepared: Prepared, processes: Processes, compiled: bool, step: int = 0) -> None:
        if recipe.batch_rows % processes.world:
            raise OptionError(
                f"a batch has {recipe.batch_rows} rows, which do not divide among {processes.world} processes",
                "change --batch-tokens",
            )
        self.recipe, self.prepared, self.processes, self.step = recipe, prepared, processes, step
        self.model = new_model(recipe, len(prepared.tokenizer)).to(processes.device)
        self.learning_rate = recipe.learning_rate or parse_size(recipe.size).learning_rate
        # Matrices decay. Parameters of an encoding never do: 0 means something else in each encoding.
        decays = {n: p.ndim > 1 and "encoding." not in n for n, p in self.model.named_parameters()}
        groups = [
            {"params": [p for n, p in self.model.named_parameters() if decays[n] is kind], "weight_decay": decay}
            for kind, decay in ((True, 0.1), (False, 0.0))
        ]
        fused = processes.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95), fused=fused)
        forward: Any = self.model
        if processes.world > 1:
            forward = nn.parallel.DistributedDataParallel(forward)
        self._forward = torch.compile(forward, dynamic=False) if compiled else forward

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear warm-up, then half a cosine down to zero."""
        warm_up = max(1, self.recipe.n_steps // 30)
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        done = (step - warm_up) / max(1, self.recipe.n_steps - warm_up)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def batch(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Ids and labels [B, L] of a step for this process, and the number of tokens that all processes train on.

        Labels are -100 where nothing is trained on.
        """
        n, rows, processes = self.recipe.batch_rows, self.prepared.rows, self.processes
        first, share = step * n, n // processes.world
        n_scored = int(rows.scored[first : first + n].sum())
        ours = slice(first + processes.rank * share, first + (processes.rank + 1) * share)
        ids_BL = torch.from_numpy(rows.ids[ours].astype(np.int64))
        labels_BL = torch.where(torch.from_numpy(np.array(rows.scored[ours])), ids_BL, -100)
        if processes.device.type == "cuda":
            ids_BL, labels_BL = ids_BL.pin_memory(), labels_BL.pin_memory()
        return (
            ids_BL.to(processes.device, non_blocking=True),
            labels_BL.to(processes.device, non_blocking=True),
            n_scored,
        )

    def make_step(self) -> tuple[Tensor, Tensor]:
        """Make one step of the optimiser; gives the loss [nats] and the norm of the gradient before the step."""
        self.model.train()
        ids_BL, labels_BL, n_scored = self.batch(self.step)
        device = self.processes.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            items = torch.tensor(n_scored, device=device)
            loss = self._forward(input_ids=ids_BL, labels=labels_BL, num_items_in_batch=items, use_cache=False).loss
        # DistributedDataParallel averages gradients over processes, and each process summed over its own share only.
        (loss * self.processes.world).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.detach(), norm

    def save(self, path: Path) -> None:
        """Write weights and optimiser; a kill at any time leaves the old file or the new one, whole."""
        with whole_file(path) as part:
            torch.save(
                {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, part
            )

    def load(self, path: Path) -> None:
        """Resume where `save` was called."""
        state = torch.load(path, map_location=self.processes.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


class _Log:
    """training.jsonl, and the seconds that all sessions of the training took."""

    def __init__(self, path: Path, main: bool) -> None:
        self.path, self.main = path, main
        self.evaluations: list[dict[str, Any]] = []
        self.seconds = 0.0

    def start(self, step: int) -> None:
        """Delete what an interrupted training logged after the checkpoint of that step."""
        kept = []
        if self.path.is_file() and step:
            for text in self.path.read_text().splitlines():
                try:
                    entry = json.loads(text)
                except ValueError:
                    break
                if entry["step"] > step:
                    break
                kept.append(text + "\n")
                self.seconds = entry.get("seconds", self.seconds)
                self.evaluations += [entry] if "nll" in entry else []
        if self.main:
            self.path.write_text("".join(kept))
        self._start = time.perf_counter() - self.seconds

    def write(self, entry: dict[str, Any]) -> None:
        self.seconds = round(time.perf_counter() - self._start, 2)
        entry = {**entry, "seconds": self.seconds}
        if "nll" in entry:
            self.evaluations.append(entry)
        if self.main:
            with self.path.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")


def _run(loop: Loop, log: _Log, out: Path, save_steps: int, progress: Progress) -> None:
    """Make the remaining steps, and log, evaluate and save on the way."""
    recipe, main = loop.recipe, loop.processes.rank == 0
    checkpoint = out / ".work" / "checkpoint.pt"
    if main:
        checkpoint.parent.mkdir(exist_ok=True)
        check_disk(out, 3 * 12 * sum(p.numel() for p in loop.model.parameters()), "checkpoints")
    if checkpoint.is_file():
        loop.load(checkpoint)
    log.start(loop.step)
    tokens = recipe.batch_rows * recipe.train_length
    log_steps, evaluation_steps = max(1, min(10, recipe.n_steps // 10)), max(1, recipe.n_steps // 10)
    # A checkpoint between two entries of the log would lose the losses since the last entry.
    save_steps = math.ceil(save_steps / log_steps) * log_steps
    losses: list[Tensor] = []
    progress(loop.step * tokens, recipe.n_tokens)
    while loop.step < recipe.n_steps:
        loss, norm = loop.make_step()
        losses.append(loss)
        at = {"step": loop.step, "tokens": loop.step * tokens}
        if loop.step % log_steps == 0 or loop.step == recipe.n_steps:
            mean = torch.stack(losses).mean()
            losses.clear()
            if loop.processes.world > 1:
                distributed.all_reduce(mean)
            _check_loss(float(mean), loop)
            rate = loop.rate(loop.step - 1)
            log.write({**at, "loss": float(mean), "learning_rate": rate, "grad_norm": float(norm)})
        if main and (loop.step % evaluation_steps == 0 or loop.step == recipe.n_steps):
            log.write({**at, "nll": _held_out_nll(loop.model, loop.prepared, recipe.train_length)})
        if main and loop.step % save_steps == 0:
            loop.save(checkpoint)
        progress(loop.step * tokens, recipe.n_tokens)


def _check_loss(loss: float, loop: Loop) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss of `{loop.recipe.encoding}` is {loss} at step {loop.step}",
            f"--learning-rate {loop.learning_rate / 2:g}",
        )


def _held_out_nll(module: nn.Module, prepared: Prepared, train_length: int) -> dict[str, float]:
    """Nll [nats] of held-out text at 1, 2 and 4 training lengths: mean over the second half of that length."""
    model = LanguageModel("", module, prepared.tokenizer, train_length)
    longest = min(4 * train_length, model.max_length or 4 * train_length)
    start = prepared.tokenizer.bos_token_id
    samples = [Sample([start], ids[: longest - 1]) for ids in prepared.evaluated if len(ids) >= longest - 1]
    if not samples:
        return {}
    nll_NL = np.stack([score.nll for score in model.score(samples)])
    return {
        f"{times}x": round(float(nll_NL[:, times * train_length // 2 - 1 : times * train_length - 1].mean()), 4)
        for times in (1, 2, 4)
        if times * train_length <= longest
    }


def _finish(loop: Loop, log: _Log, out: Path, command: str) -> None:
    """Write model, tokenizer and facts, and delete the work folder."""
    recipe, prepared, model, device = loop.recipe, loop.prepared, loop.model, loop.processes.device
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    facts = {
        **asdict(recipe),
        "n_steps": recipe.n_steps,
        "tokens": recipe.n_tokens,
        "learning_rate": loop.learning_rate,
        "n_parameters": sum(sizes.values()),
        "n_encoding_parameters": sum(n for name, n in sizes.items() if "encoding." in name),
        "corpora": {corpus.name: corpus.fingerprint for corpus in prepared.corpora},
        "mix": dict(recipe.mix),
        "tasks": {name: task_class(name)().fingerprint for name, _ in recipe.mix},
        "nll": log.evaluations[-1]["nll"] if log.evaluations else {},
        "seconds": log.seconds,
        **origin(device, command),
    }
    if device.type == "cuda":
        facts["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    with quiet():
        model.to(torch.bfloat16).save_pretrained(out)
        prepared.tokenizer.save_pretrained(out)
    with whole_file(out / "training.json") as part:
        part.write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(out / ".work", ignore_errors=True)
