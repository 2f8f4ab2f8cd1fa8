"""`python -m benchmarks`: one subcommand a thing measured; each appends JSON lines to a record."""

from __future__ import annotations

import importlib

import click

from kerass2 import cli

# Subcommand -> one line of help; its module is imported when it is called.
COMMANDS = {
    "step": "Training step: loop against bare step, 1 rank against 2, bfloat16 against float32."
}


class _Benchmarks(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"benchmarks.{cmd_name}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benchmarks"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Benchmarks)
def group() -> None:
    """Measure kerass2 on this machine."""


if __name__ == "__main__":
    cli.run(group)
