"""`hope-eval tasks`: the list of tasks, or one sample of a task, exactly as a model reads it."""

from dataclasses import asdict

import click

from hope_eval.cli import options
from hope_eval.errors import OptionError


@click.command()
@click.argument("name", required=False)
@click.option("--length", callback=options.read_length, default="256", show_default=True, metavar="LENGTH",
              help="Tokens of the sample.")  # fmt: skip
@click.option("--model", default="zoo:hope", show_default=True, metavar="CHECKPOINT",
              help="Checkpoint whose tokenizer makes the sample.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the samples.")
@click.option("--index", type=click.IntRange(0), default=0, show_default=True, metavar="I",
              help="Number of the sample: 0, 1, 2…")  # fmt: skip
@options.texts
@options.chat
@options.list_format
def tasks(
    name: str | None,
    length: int,
    model: str,
    seed: int,
    index: int,
    texts: options.TextOptions,
    chat: bool | None,
    form: str,
) -> None:
    """List the tasks, or show one sample of the task NAME, with the right answer in ⟦brackets⟧.

    \b
    hope-eval tasks
    hope-eval tasks --format csv
    hope-eval tasks needle --length 512
    hope-eval tasks label_map:n_classes=3 --data banking77/ --label category --length 1k --model ckpt
    """
    from hope_eval.evaluation import preview
    from hope_eval.show.tables import print_list

    if name is None:
        print_list(preview.describe_all(), form)
        return
    if form != "table":
        raise OptionError(
            f"--format {form} is for the list of tasks, not for a sample", f"leave `{name}` or --format out"
        )
    shown = preview.sample(name, model, length, seed, index, **asdict(texts), chat=chat)
    click.echo(f"{shown.task}: {shown.one_line}")
    click.echo(f"{shown.facts}\n")
    click.echo(shown.context, nl=False)
    for question in shown.questions:
        click.echo(f"\n{'─' * 20} {question.facts}")
        click.echo(question.query.strip("\n"), nl=False)
        click.secho(f"⟦{question.target}⟧", bold=True)
        for choice in question.choices:
            click.secho(f"   against ⟦{choice}⟧", dim=True)
