"""`python -m benchmarks`: one subcommand a thing measured; each appends JSON lines to a record.

Without a subcommand all are measured, with their defaults, as the local system's.
"""

from __future__ import annotations

import importlib

import click

from kerass2 import cli

# Subcommand -> one line of help; its module is imported when it is called.
COMMANDS = {
    "all": "Every measurement of a system, into its folder.",
    "allreduce": "Sums over ranks by every path, against peers and the bound of a ring.",
    "backends": "A training step on TensorFlow, JAX and PyTorch.",
    "classification": "A small ResNet on a made-up BigEarthNet: bands and remedies; a table.",
    "faults": "What checkpoints and comparisons of weights cost.",
    "harness": "What measuring costs.",
    "large_batch": "How large a global batch labels bear, by rule; a figure.",
    "learning_rate": "The plain and the modified rule by batch size; a figure.",
    "networks": "ResNet-50 against a cheaper network: scores and operations; a table.",
    "pipeline": "Cutting, reading every format, preparing whole tiles, memory.",
    "predict": "How fast models sharpen, by precision.",
    "project": "A system's training with more ranks than were measured.",
    "quality": "Metrics against ranks, batch size and training time.",
    "report": "Records, published figures and the projection as a page and as markdown.",
    "scaling": "Training on 1 to N ranks, weak and strong, by each strategy.",
    "shares": "What a training step spends its time on: compute, communication, input.",
    "short": "Minutes: ratios against those that are kept; make bench-short.",
    "startup": "From the command to the first step, 2 ranks against 1.",
    "step": "Training step: loop against bare step, 1 rank against 2, bfloat16 against float32.",
    "superres": "Whole tiles and training against the matrix product's rate and plain Keras.",
    "table": "The README's table from kept records.",
}


def _load(name: str) -> click.Command:
    command: click.Command = importlib.import_module(f"benchmarks.{name}").main
    return command


class _Benchmarks(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return _load(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benchmarks"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Benchmarks,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def group(context: click.Context) -> None:
    """Measure kerass2 on this machine: the benchmark named, or all of them."""
    if context.invoked_subcommand is None:
        _load("all").main([], prog_name="python -m benchmarks all", standalone_mode=False)


if __name__ == "__main__":
    cli.run(group)
