"""`hope-eval tasks`: which tasks there are, and what one of them asks."""

from typing import Any

import click

from hope_eval.cli import options


@click.command()
@click.argument("name", required=False)
@click.option("--length", callback=options.read_length, default="256", show_default=True, metavar="LENGTH")
@click.option("--model", default="zoo:hope", show_default=True, metavar="CHECKPOINT", help="Whose tokenizer.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which samples.")
@click.option("--index", type=click.IntRange(0), default=0, show_default=True, help="Which of the samples.")
@options.texts
@options.chat
def tasks(name: str | None, length: int, model: str, seed: int, index: int, **rest: Any) -> None:
    """List the tasks, or show a sample of NAME with what is asked for marked.

    \b
    hope-eval tasks
    hope-eval tasks needle --length 512
    hope-eval tasks label_map:n_classes=3 --data banking77/ --label category --length 1k --model ckpt
    """
    from hope_eval.evaluation import preview as samples
    from hope_eval.show.tables import print_records

    if name is None:
        print_records(samples.describe_all())
        return
    shown = samples.sample(name, model, length, seed, index, **rest)
    click.echo(f"{shown.task}: {shown.one_line}")
    click.echo(f"{shown.facts}\n")
    click.echo(shown.context, nl=False)
    for question in shown.questions:
        click.echo(f"\n{'─' * 20} {question.facts}")
        click.echo(question.query.strip("\n"), nl=False)
        click.secho(f"⟦{question.target}⟧", bold=True)
        for choice in question.choices:
            click.secho(f"   against ⟦{choice}⟧", dim=True)
