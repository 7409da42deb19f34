"""All benchmarks, one after the other, each in a process of its own; then the page of their figures."""

import shlex
import subprocess
import sys
from pathlib import Path

import click

from benchmarks import table

# Arguments of each benchmark, by the name of its file.
COMMANDS = {
    "long_forward_8b": "long-forward --size 8b --lengths 32k,128k --profile",
    "long_forward_1.2b": "long-forward --size 1.2b --lengths 32k,128k --profile",
    # Peers would take minutes to run out of memory.
    "long_forward_1m": "long-forward --size 1.2b --lengths 1000000 --repeats 1 --warm-up 32k --peers-up-to 128k",
    "nested_lengths": "nested-lengths --size 1.2b --lengths 2k,4k,8k,16k,32k --documents 4",
    "shared_context": "shared-context --size 8b --lengths 32k --questions 16",
    "short_lengths": "short-lengths --size 1.2b --short 512 --long 32k --samples 1000 --repeats 2",
    "attention": "attention --length 32k --head-dims 64,128",
    "attention_128k": "attention --length 128k --head-dims 64,128 --encodings rope",
    "zoo_suite": "zoo-suite --suite standard --jobs 6",
    "plan_truth": "plan-truth --size 1.2b --lengths 1k,8k,32k --samples 8",
}

# With a checkpoint at hand.
OF_A_CHECKPOINT = {
    "checkpoint": "checkpoint --lengths 2k,8k,32k --documents 50 --repeats 1",
    "plan_truth_checkpoint": "plan-truth --lengths 512,2k,8k --samples 16",
}

# The same on a CPU, in a minute, to check that everything works.
TINY = {
    "long_forward_8b": "long-forward --size tiny --lengths 64,128 --repeats 1 --profile",
    "nested_lengths": "nested-lengths --size tiny --lengths 32,64,128 --documents 2 --repeats 1",
    "shared_context": "shared-context --size tiny --lengths 64 --questions 4 --repeats 1",
    "short_lengths": "short-lengths --size tiny --short 16 --long 64 --samples 8 --repeats 1",
    "attention": "attention --length 64 --head-dims 16 --heads 4 --kv-heads 2 --repeats 1",
    "zoo_suite": "zoo-suite --suite quick --samples 1 --lengths 256 --model zoo:rope",
    "plan_truth": "plan-truth --model zoo:rope --lengths 256,512 --samples 2 --measures ppl,needle",
    "checkpoint": "checkpoint --model zoo:rope --lengths 64,128 --documents 2 --repeats 1",
}


@click.command("all")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/benchmarks"), help="A folder.")
@click.option("--model", help="A checkpoint, for the benchmarks of real checkpoints.")
@click.option("--data", help="Texts for it.  [default: the sources of the standard library]")
@click.option("--only", default="", help="Run only these: names of files, separated by commas.")
@click.option("--tiny", is_flag=True, help="Small models and lengths, to check that everything works.")
@click.option("--list", "listed", is_flag=True, help="Print the commands without running them.")
@click.option("--timeout", default=0.0, help="Time limit of each benchmark in seconds; 0: no limit.")
def all_(out: Path, model: str | None, data: str | None, only: str, tiny: bool, listed: bool, timeout: float) -> None:
    """Run all benchmarks, each in a process of its own, and make the page of them."""
    names = only.split(",") if only else None
    failed = []
    for name, words in commands(model, data, tiny).items():
        if names is not None and name not in names:
            continue
        words = ["-m", "benchmarks", *words, "--out", str(out / f"{name}.json")]
        click.echo(shlex.join(["python", *words]))
        if listed:
            continue
        sys.stdout.flush()
        try:
            done = subprocess.run([sys.executable, *words], check=False, timeout=timeout or None)
        except subprocess.TimeoutExpired:
            failed.append(f"{name} (not within {timeout:g} s)")
        else:
            failed += [name] if done.returncode else []
    if not listed and (out / table.SOURCE).exists():
        table.write(out)
    if failed:
        raise click.ClickException(f"without figures: {', '.join(failed)}")


def commands(model: str | None = None, data: str | None = None, tiny: bool = False) -> dict[str, list[str]]:
    """Words of each command, by the name of its file."""
    commands_by_name = {name: shlex.split(line) for name, line in (TINY if tiny else COMMANDS).items()}
    if model and not tiny:
        further = ["--model", model, *(["--data", data] if data else [])]
        commands_by_name |= {name: [*shlex.split(line), *further] for name, line in OF_A_CHECKPOINT.items()}
    return commands_by_name
