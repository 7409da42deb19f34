"""Training speed and memory of every encoding, alone on the device, one after the other; and of transformers' Trainer.

The Trainer gets the same model, rows, optimiser and precision.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import common
from benchmarks.common import DEVICE, OURS
from hope_eval.train.loop import Loop, Processes
from hope_eval.train.prepare import Prepared, prepare
from hope_eval.train.recipe import Recipe

ENCODINGS = "rope,hope,nope,prope,xpos,alibi,kerple,fire,t5,sinusoidal,learned"

# Steps that are not timed: kernels are chosen, memory is found.
WARM_UP = 20

# Ways to train beside our compiled loop.
PEERS = (("ours", False), ("trainer", True), ("trainer", False))


@click.command()
@click.option("--encodings", default=ENCODINGS)
@click.option("--size", default="3m")
@click.option("--train-length", default=256)
@click.option("--batch-tokens", default=32_768)
@click.option("--steps", default=120)
@click.option("--data", default="python:numpy,pandas")
@click.option("--compile/--no-compile", "compiled", default=True)
@click.option("--peers", default="rope", help="Encodings to run transformers' Trainer with.")
@common.out_option
def training_speed(
    encodings: str,
    size: str,
    train_length: int,
    batch_tokens: int,
    steps: int,
    data: str,
    compiled: bool,
    peers: str,
    out: Path | None,
) -> None:
    """Time a step of training, with our loop and with transformers' Trainer."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:

        def recipe_of(encoding: str) -> Recipe:
            return Recipe(encoding, size, train_length, batch_tokens * steps, texts=(data,), batch_tokens=batch_tokens)

        prepared = prepare(recipe_of("rope"), Path(folder) / "work")
        runs = [("ours", name, compiled) for name in encodings.split(",")]
        runs += [(way, name, how) for name in filter(None, peers.split(",")) for way, how in PEERS]
        for way, name, how in runs:
            # Otherwise earlier encodings count towards the compiler's limit of compiling one function again.
            torch._dynamo.reset()
            common.reset_peak()
            seconds = (_ours if way == "ours" else _trainer)(recipe_of(name), prepared, how, Path(folder) / "peer")
            figure = {
                "way": OURS if way == "ours" else "transformers, Trainer",
                "encoding": name,
                "compiled": how,
                "milliseconds_per_step": round(1000 * seconds, 2),
                "tokens_per_second": round(batch_tokens / seconds),
            }
            if DEVICE.type == "cuda":
                figure["peak_gib"] = round(common.peak() / 2**30, 2)
            figures.append(figure)
            click.echo(figure, err=True)
    common.report(f"Training, {size}", figures, out, size=size)


def _wait() -> float:
    common.wait()
    return time.perf_counter()


def _loop(recipe: Recipe, prepared: Prepared, compiled: bool) -> Loop:
    return Loop(recipe, prepared, Processes(DEVICE), compiled)


def _ours(recipe: Recipe, prepared: Prepared, compiled: bool, out: Path) -> float:
    """Seconds of a step."""
    loop = _loop(recipe, prepared, compiled)
    start = 0.0
    while loop.step < recipe.n_steps:
        if loop.step == WARM_UP:
            start = _wait()
        loop.make_step()
    return (_wait() - start) / (recipe.n_steps - WARM_UP)


class _Batches(torch.utils.data.Dataset[Any]):
    """The same rows as a dataset that hands out a batch at a time."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def __len__(self) -> int:
        return len(self.loop.prepared.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        ids_BL, labels_BL, _ = self.loop.batch(indices[0] // self.loop.recipe.batch_rows)
        return {"input_ids": ids_BL, "labels": labels_BL}


def _trainer(recipe: Recipe, prepared: Prepared, compiled: bool, out: Path) -> float:
    """Seconds of a step of transformers' Trainer on the same model, rows and optimiser."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    times: dict[int, float] = {}

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARM_UP, recipe.n_steps):
                times[state.global_step] = _wait()

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    loop = _loop(recipe, prepared, False)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=recipe.n_steps,
        per_device_train_batch_size=recipe.batch_rows,
        learning_rate=loop.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        bf16=DEVICE.type == "cuda",
        use_cpu=DEVICE.type == "cpu",
        torch_compile=compiled,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=10,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=loop.model,
        args=arguments,
        train_dataset=_Batches(loop),
        data_collator=lambda batch: batch,
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return (times[recipe.n_steps] - times[WARM_UP]) / (recipe.n_steps - WARM_UP)
