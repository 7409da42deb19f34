"""`hope-eval encodings`: the list of position encodings, and the effect of one on a model."""

import functools

import click

from hope_eval.cli import options


@click.command()
@click.argument("name", required=False)
@click.option(
    "--length", callback=options.read_length, default="2k", show_default=True, metavar="LENGTH", help="Training length."
)
@click.option("--head-dim", type=click.IntRange(2), default=64, show_default=True, help="Dimensions of a head.")
@click.option("--heads", type=click.IntRange(1), default=8, show_default=True, help="Heads of a layer.")
@click.option("--theta", type=float, default=10_000.0, show_default=True, help="Base of the rotary frequencies.")
@options.list_format
def encodings(name: str | None, length: int, head_dim: int, heads: int, theta: float, form: str) -> None:
    """List the position encodings, or show the effect of NAME on a model.

    \b
    hope-eval encodings
    hope-eval encodings --format json
    hope-eval encodings hope --length 512 --head-dim 64
    hope-eval encodings hope:multiplier=2 --length 8k --head-dim 128 --theta 500000
    """
    from hope_eval.encodings import Geometry, parse_encoding
    from hope_eval.inspection.encodings import biases, listed, rotations
    from hope_eval.show.tables import print_list

    if name is None:
        print_list(listed(), form)
        return
    encoding = parse_encoding(name).build(Geometry(head_dim, heads, length, theta, d_model=head_dim * heads))
    pairs, added = rotations(encoding), biases(encoding)
    n_rotated = sum(pair["rotated"] == "yes" for pair in pairs)
    # Data alone goes to standard output.
    say = functools.partial(click.echo, err=form != "table")
    say(f"{name}: {encoding.formula} (arXiv {encoding.source})")
    if n_rotated:
        say(f"{n_rotated} of {len(pairs)} pairs are rotated, trained at {length:,} tokens, head_dim {head_dim}")
        print_list(pairs, form)
    if added:
        say("added to the logits, at the initial values of its parameters:")
        print_list(added, form)
