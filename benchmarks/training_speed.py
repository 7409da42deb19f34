"""Training speed and memory of every encoding, alone on the device, one after the other; and of a plain loop.

python benchmarks/training_speed.py --steps 120 --out results/benchmarks/training_speed.json

The plain loop does what transformers' Trainer does for us at each step (batch, autocast, loss, clipping, AdamW,
schedule) and nothing else: its lead is the price of the Trainer.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from hope_eval import train
from hope_eval.provenance import origin

ENCODINGS = "rope,hope,nope,prope,xpos,alibi,kerple,fire,t5,sinusoidal,learned"

# Steps that are not timed: kernels are chosen, memory is found.
WARM_UP = 20


@click.command()
@click.option("--encodings", default=ENCODINGS, show_default=True)
@click.option("--size", default="3m", show_default=True)
@click.option("--train-length", default=256, show_default=True)
@click.option("--batch-tokens", default=32_768, show_default=True)
@click.option("--steps", default=120, show_default=True)
@click.option("--data", default="python:numpy,pandas", show_default=True)
@click.option("--compile/--no-compile", "compiled", default=False, show_default=True)
@click.option("--plain", default="rope", show_default=True, help="Encodings to run the plain loop with.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    encodings: str,
    size: str,
    train_length: int,
    batch_tokens: int,
    steps: int,
    data: str,
    compiled: bool,
    plain: str,
    out: Path | None,
) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def recipe_of(encoding: str) -> train.Recipe:
            return train.Recipe(
                encoding, size, train_length, batch_tokens * steps, texts=(data,), batch_tokens=batch_tokens
            )

        prepared = train.prepare(recipe_of("rope"), Path(folder) / "work")
        runs = [(name, way) for name in encodings.split(",") for way in ("trainer", "plain")]
        for name, way in runs:
            if way == "plain" and name not in plain.split(","):
                continue
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            run = _with_trainer if way == "trainer" else _plain_loop
            seconds = run(recipe_of(name), prepared, Path(folder) / name, compiled)
            row = {
                "encoding": name,
                "way": way + (", compiled" if compiled else ""),
                "step [ms]": round(1000 * seconds, 2),
                "tokens/s": round(batch_tokens / seconds),
            }
            if torch.cuda.is_available():
                row["peak memory [GiB]"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            rows.append(row)
            click.echo(row)
    if out:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        out.parent.mkdir(parents=True, exist_ok=True)
        facts = origin(device, f"python benchmarks/training_speed.py --steps {steps}")
        out.write_text(json.dumps({"rows": rows, "size": size, **facts}, indent=1) + "\n")


def _wait() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _with_trainer(recipe: train.Recipe, prepared: train.Prepared, out: Path, compiled: bool) -> float:
    """Return the seconds of a step."""
    times: dict[int, float] = {}

    def report(done: int, total: int) -> None:
        step = done // recipe.batch_tokens
        if step in (WARM_UP, recipe.n_steps - 1):
            times[step] = _wait()

    out.mkdir()
    trainer, log = train._trainer(recipe, prepared, out, "auto", compiled, recipe.n_steps, report)
    log.start(0)
    trainer.train()
    return (times[recipe.n_steps - 1] - times[WARM_UP]) / (recipe.n_steps - 1 - WARM_UP)


def _plain_loop(recipe: train.Recipe, prepared: train.Prepared, out: Path, compiled: bool) -> float:
    """Return the seconds of a step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = train.new_model(recipe, len(prepared.tokenizer)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.n_steps)
    forward = torch.compile(model) if compiled else model
    dataset = train.LineDataset(prepared.lines)
    start = 0.0
    for step in range(recipe.n_steps - 1):
        if step == WARM_UP:
            start = _wait()
        batch = dataset.__getitems__(range(step * recipe.batch_lines, (step + 1) * recipe.batch_lines))
        batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = forward(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return (_wait() - start) / (recipe.n_steps - 1 - WARM_UP)


if __name__ == "__main__":
    main()
