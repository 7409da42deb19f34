"""`hope-eval doctor`: is a checkpoint's position encoding what it claims, and do its numbers hold?"""

from dataclasses import replace

import click

from hope_eval.cli import options
from hope_eval.cli.progress import progress

_COLOURS = {"ok": "green", "look": "yellow", "wrong": "red", "not measured": "cyan"}


@click.command()
@options.models
@click.option("--data", "data", metavar="TEXTS", help="Texts to read, as for `ppl`.  [default: Python's sources]")
@click.option("--seconds", type=click.FloatRange(1), default=120, show_default=True, metavar="N",
              help="Time after which no further reading begins; what is left out is said.")  # fmt: skip
@click.pass_context
def doctor(ctx: click.Context, models: options.ModelOptions, data: str | None, seconds: float) -> None:
    """Examine a checkpoint: is its position encoding what it claims, and do its numbers hold?

    \b
    hope-eval doctor --model path/to/checkpoint
    hope-eval doctor --model model.gguf --data books.jsonl --seconds 60
    hope-eval doctor --model ckpt --encoding yarn:factor=4

    It compares the config with what is in effect, and reads text: at other positions, with another base, in other
    ways, at growing lengths. Exit code 1 if something is wrong.
    """
    from hope_eval.data.corpora import load_corpus
    from hope_eval.inspection.doctor import config_as_written, examined

    to_load = models.to_load()
    corpus = load_corpus(data or "python")
    wrong = False
    loads = ((name, model) for name in to_load.all_names for model in replace(to_load, names=(name,)).load())
    for name, model in loads:
        click.echo(click.style(f"{model.name} {model.encoding}", bold=True))
        raw = {} if models.loader else config_as_written(name, models.revision)
        with progress(f"examining {model.name}", "checks") as bar:
            findings = list(examined(model, raw, corpus, seconds, bar))
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            mark = click.style(f"{finding.status:>12}", fg=_COLOURS[finding.status])
            click.echo(f"{mark}  {finding.check:<{width}}  {finding.text}")
            if finding.hint:
                click.echo(f"{'':>12}  {'':<{width}}  hint: {finding.hint}")
        counts = {status: sum(one.status == status for one in findings) for status in _COLOURS}
        click.echo(", ".join(f"{n} {status}" for status, n in counts.items() if n) + "\n")
        wrong |= counts["wrong"] > 0
    if wrong:
        ctx.exit(1)
