"""The `kerass2` command, and how every command ends: one clear error line, and no hanging ranks."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
import warnings
from typing import Any, NoReturn

import click

from kerass2 import messages

# Subcommand -> one line of help. Its module is imported when it is called, so that --help answers
# at once.
COMMANDS = {
    "prepare": "Cut scenes into aligned patches under Wald's protocol.",
    "data": "Look at data sets, check them, copy them to another format.",
    "fit": "Train a model on one process or on many ranks.",
    "evaluate": "Score models beside interpolation, as the paper's tables do.",
    "predict": "Sharpen granules to 10 m: COG, GeoTIFF or Zarr.",
    "report": "Write one HTML page about a training run.",
    "view": "Look at a prediction, a data set or a run in the browser.",
    "export": "Write a model as keras, savedmodel, onnx or tflite, with card and STAC item.",
    "config": "Show, compare and check experiments.",
    "card": "Pack a trained model with its model card.",
    "doctor": "Say what is installed, where the ranks are, and what is wrong.",
    "launch": "Start ranks on hosts that ssh reaches.",
}

# Of a rank that has failed, before it is gone [s].
GRACE = 1.0
# Commands whose module has another name.
MODULES = {"config": "config_command"}


HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


class Command(click.Command):
    """A command with the options that all have."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As click.Command."""
        super().__init__(*arguments, **{"context_settings": HELP, **options})
        level = click.Option(
            ["--log-level"],
            type=click.Choice(messages.LEVELS),
            default=messages.DEFAULT,
            show_default=True,
            envvar=messages.VARIABLE,
            expose_value=False,
            is_eager=True,
            callback=_set_level,
            help="How much is said besides the results.",
        )
        self.params.append(level)


class Group(click.Group):
    """Subcommands that have them."""

    command_class = Command

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As click.Group."""
        super().__init__(*arguments, **{"context_settings": HELP, **options})


def _set_level(context: click.Context, _: click.Parameter, level: str) -> None:
    os.environ[messages.VARIABLE] = level
    # TensorFlow's own levels, read at its import: everything; nothing but what ends the process.
    own = {"debug": "0", "error": "3"}
    if level in own:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = own[level]
    if level == "debug":
        import logging

        logging.basicConfig(level=logging.DEBUG)


class _Commands(Group):
    """Loads a subcommand's module when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = MODULES.get(cmd_name, cmd_name)
        command: click.Command = importlib.import_module(f"kerass2.{module}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands)
@click.version_option(package_name="kerass2")
def group() -> None:
    """Sharpen and label Sentinel-2 images with Keras 3, on one core or on a cluster."""


def main() -> NoReturn:
    """Entry point of the console script."""
    run(group)


def run(command: click.Command) -> NoReturn:
    """Run a command as this process' main job and leave with its exit code.

    0 well; 1 data, strategy or training failed; 2 the command line or an experiment is wrong;
    130 interrupted.
    """
    # TensorFlow's notes on its own build; warnings of that kind go with them, errors stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.showwarning = _build_show_warning()
    try:
        # Rich heeds NO_COLOR by itself; click's colours go when it is told so.
        color = False if os.environ.get("NO_COLOR") else None
        code = command.main(standalone_mode=False, color=color)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except Exception as error:
        code = _explain(error)
    _leave(code if isinstance(code, int) else 0)


def _build_show_warning() -> Any:
    """A function for warnings.showwarning: each text once, on one line, without our source."""
    shown = set[str]()

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        text = str(message)
        if text not in shown:
            shown.add(text)
            messages.warn(text)

    return show


def _explain(error: Exception) -> int:
    """Print an expected error as one line, any other with its traceback."""
    from data_pipelines import batching
    from data_pipelines.spec import DataError
    from kerass2.config import ConfigError
    from kerass2.train import TrainingError
    from strategies import launch, settings
    from strategies.base import StrategyError

    cause = batching.cause(error)  # tf.data wraps what a reader raises
    if isinstance(cause, DataError):
        error = cause
    if isinstance(error, (ConfigError, DataError, StrategyError, TrainingError)):
        if messages.shows("debug"):
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    traceback.print_exc()
    told = f"{type(error).__name__}: {error}"
    if any(sign in told for sign in launch.COLLECTIVE_ERRORS):
        print(
            "error: another rank has failed, or said nothing for KERASS2_STALL_SECONDS "
            f"({settings.read(os.environ).stall_seconds:g} s): this one cannot go on alone",
            file=sys.stderr,
            flush=True,
        )
    return 1


def _leave(code: int) -> NoReturn:
    """Exit; a failed rank does so at once.

    Clean-up at exit would wait for ranks that wait for it.
    """
    from strategies.base import StrategyError
    from strategies.cluster import detect

    sys.stdout.flush()
    sys.stderr.flush()
    try:
        ranks = detect(os.environ).world_size
    except StrategyError:  # which is what the error above has said
        ranks = 1
    if code and ranks > 1:
        # What fails on all ranks does so after the same sum, and another may not have all of it.
        time.sleep(GRACE)
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
