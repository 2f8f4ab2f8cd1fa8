"""`python -m benchmarks all --system NAME`: every measurement of a system, into its folder.

Each benchmark is a process of its own; one that fails is named, and the others go on.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

import click

from benchmarks import record

# In this order; `--short` shrinks those that have it, and the others are left to a longer time.
SHORT = ("allreduce", "scaling", "shares", "harness", "predict", "quality")
LONG = ("step", "backends", "startup", "pipeline", "superres", "faults")
LONG += ("learning_rate", "large_batch", "classification", "networks")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--short", is_flag=True, help="Minutes instead of hours, on small models.")
@click.option("--only", multiple=True, type=click.Choice([*SHORT, *LONG]), help="Default: all.")
@record.output_options("")
def main(short: bool, only: tuple[str, ...], output: pathlib.Path) -> None:
    """Run every benchmark for a system; -o: the folder of its records."""
    names = [name for name in (*SHORT, *LONG) if name in only or not only]
    names = [name for name in names if not short or name in SHORT]
    failed = [name for name in names if not run(name, short, output)]
    if failed:
        raise click.ClickException(f"{', '.join(failed)} failed (their errors above)")
    click.echo(f"records: {output}")


def run(name: str, short: bool, folder: pathlib.Path) -> bool:
    """Run a benchmark; True if it came to its end."""
    command = [sys.executable, "-m", "benchmarks", name, "--system", record.system()]
    command += ["-o", str(folder / f"{name}.jsonl"), *(["--short"] if short else [])]
    click.echo(f"== {name}")
    return subprocess.run(command, check=False).returncode == 0
