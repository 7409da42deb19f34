"""The command line of the benchmarks.

A command for each row of the table of targets; `all` runs all of these; `coverage` simulates how often intervals hold
the truth.
"""

import click

from benchmarks import (
    attention,
    checkpoint,
    coverage,
    everything,
    long_forward,
    nested_lengths,
    plan_truth,
    shared_context,
    short_lengths,
    table,
    tensor_parallel,
    training_speed,
    zoo_suite,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True})
def main() -> None:
    """Speed and memory, ours beside the peers in one run; how often intervals hold the truth."""


for command in (
    everything.all_, long_forward.long_forward, nested_lengths.nested_lengths, shared_context.shared_context,
    short_lengths.short_lengths, attention.attention, zoo_suite.zoo_suite, checkpoint.checkpoint,
    plan_truth.plan_truth, tensor_parallel.tensor_parallel, training_speed.training_speed, table.table,
    coverage.coverage,
):  # fmt: skip
    main.add_command(command)


if __name__ == "__main__":
    main()
