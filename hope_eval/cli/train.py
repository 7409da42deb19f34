"""`hope-eval train`: small models that differ in their position encoding and in nothing else."""

from pathlib import Path
from typing import Any

import click

from hope_eval.cli import options
from hope_eval.cli.progress import is_first_process, progress
from hope_eval.errors import OptionError
from hope_eval.lengths import parse_count


def _count(ctx: click.Context, param: click.Parameter, value: str) -> int:
    return parse_count(value)


def _seeds(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise OptionError(f"`--seed {value}` is not a list of whole numbers", "--seed 0,1,2") from None


def _mix(ctx: click.Context, param: click.Parameter, value: str) -> tuple[tuple[str, float], ...]:
    from hope_eval.train.recipe import parse_mix

    return tuple(parse_mix(value).items())


@click.command()
@click.argument("encodings", nargs=-1, required=True, metavar="ENCODING...")
@click.option("--out", type=options.UserPath(file_okay=False, path_type=Path), required=True,
              help="Folder of the checkpoint. Several models go to OUT/ENCODING-SEED.")  # fmt: skip
@click.option("--size", default="3m", show_default=True, metavar="SIZE",
              help="1m, 3m, 12m, 35m, 125m, 350m, 1b, 3b, or width x layers x heads: 192x6x3.")  # fmt: skip
@click.option("--train-length", callback=options.read_length, default="256", show_default=True, metavar="LENGTH",
              help="Tokens of a training row: the length the model is trained at.")  # fmt: skip
@click.option("--tokens", callback=_count, default="100M", show_default=True, metavar="N",
              help="Tokens to train on in all.")  # fmt: skip
@click.option("--seed", "seeds", callback=_seeds, default="0", show_default=True, metavar="N[,N...]",
              help="Seed of the initial weights and the data. Several seeds train one model each.")  # fmt: skip
@click.option("--data", "texts", multiple=True, metavar="TEXTS",
              help="Texts to train on, as for `ppl`. Repeatable.  [default: installed packages]")  # fmt: skip
@click.option("--tokenizer", default="new", show_default=True, metavar="CHECKPOINT",
              help="Folder to take the tokenizer from; new: train one of 4,096 tokens on the texts.")  # fmt: skip
@click.option("--mix", callback=_mix, default="default", show_default=True, metavar="TASK=SHARE,...",
              help="Shares of the rows that are prompts of tasks, copy=0.2,passkey=0.05; the rest is text. "
                   "text: no prompts. default: twelve tasks, 40 % of the rows.")  # fmt: skip
@click.option("--batch-tokens", callback=_count, default="32768", show_default=True, metavar="N",
              help="Tokens of one step, over all GPUs.")  # fmt: skip
@click.option("--learning-rate", type=float, default=0.0, metavar="X",
              help="Highest learning rate.  [default: by size]")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="cuda, mps, cpu; auto: the fastest here.")
@click.option("--compile/--no-compile", "compile_model", default=None,
              help="Use torch.compile.  [default: on a GPU, from 1,000 steps on]")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Number of models trained at the same time, spread over the GPUs.")  # fmt: skip
@click.option("--save-steps", type=click.IntRange(0), default=0, metavar="N",
              help="Steps between checkpoints.  [default: a tenth of the training]")  # fmt: skip
@click.option("--force", is_flag=True, help="Delete another training in the folder.")
def train(
    encodings: tuple[str, ...],
    out: Path,
    seeds: tuple[int, ...],
    texts: tuple[str, ...],
    device: str,
    compile_model: bool | None,
    jobs: int,
    save_steps: int,
    force: bool,
    **recipe_options: Any,
) -> None:
    """Train a small model with a position encoding, or several that differ in nothing else.

    \b
    hope-eval train hope --out runs/hope
    hope-eval train rope hope alibi --seed 0,1,2 --jobs 6 --out runs/mine
    hope-eval train rope hope --mix text --out runs/text
    hope-eval train rope "0-2=rope;3-=nope" --out runs/layers
    hope-eval train hope:multiplier=2 --size 12m --train-length 512 --tokens 500M --data books.jsonl --out runs/books
    torchrun --nproc-per-node 8 -m hope_eval train hope --size 125m --train-length 1k --tokens 2.5B --out runs/125m

    All models of one seed start from the same weights and read the same tokens in the same order: text, mixed with
    prompts of the tasks. If a training was interrupted, rerun the command to resume.
    """
    from hope_eval.files import explained
    from hope_eval.train import loop
    from hope_eval.train.jobs import prepare_all, train_all
    from hope_eval.train.recipe import Recipe, held

    if texts:
        recipe_options["texts"] = texts
    models = [(encoding, seed) for seed in seeds for encoding in encodings]
    alone = len(set(models)) == 1
    recipes = {
        out if alone else out / f"{encoding.replace(':', ',')}-{seed}": Recipe(
            encoding=encoding, seed=seed, **recipe_options
        )
        for encoding, seed in models
    }
    how: dict[str, Any] = {
        "device": device,
        "compile_model": compile_model,
        "save_steps": save_steps,
        "command": options.command_line(),
    }
    recipe = next(iter(recipes.values()))
    if recipe.n_tokens > recipe.tokens and is_first_process():
        click.echo(
            f"--tokens {recipe.tokens:,} is less than one step of the optimiser: {recipe.n_tokens:,} tokens are read; "
            "--batch-tokens makes steps smaller",
            err=True,
        )
    with held(out), explained(out):
        prepare_all(recipes, out / ".work", force, progress)
        with progress(f"training {encodings[0]}" if alone else f"training {len(recipes)} models") as bar:
            if alone:
                loop.train(recipes[out], out, progress=bar, **how)
            else:
                train_all(recipes, out / ".work", jobs, progress=bar, **how)
    if is_first_process():
        for folder in recipes:
            click.echo(folder)
