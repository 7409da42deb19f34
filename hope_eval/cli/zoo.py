"""`hope-eval zoo`: the models that ship with this package."""

import click

from hope_eval.cli import options


@click.command()
@options.list_format
def zoo(form: str) -> None:
    """List the small models that ship with this package, one for each position encoding.

    \b
    hope-eval zoo
    hope-eval zoo --format json
    hope-eval ppl --model zoo:rope --model zoo:hope --lengths 256,1k

    nll is measured on the second half of 256, 512 and 1,024 tokens of held-out text, at the end of training.
    """
    from hope_eval import zoo
    from hope_eval.show.tables import print_list

    print_list(zoo.describe(), form)
