"""What all commands share: completion in the shell, and how much they say."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest

from data_pipelines import store
from kerass2 import cli, messages

ROOT = pathlib.Path(__file__).parents[2]
Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """With the console script `kerass2`, as an installed package has it."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "kerass2"
    script.write_text(f"#!{sys.executable}\nfrom kerass2.cli import main\n\nmain()\n")
    script.chmod(0o755)
    return folder


def run(folder: pathlib.Path, *command: str, **environment: str) -> Run:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    told = {"PYTHONPATH": path, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command,
        env={**os.environ, **told, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


# --- completion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("bash", "complete -o nosort -F _kerass2_completion kerass2"),
        ("zsh", "#compdef kerass2"),
        ("fish", "complete --no-files --command kerass2"),
    ],
)
def test_the_script_of_each_shell(folder, shell: str, expected: str) -> None:
    said = run(folder, "kerass2", _KERASS2_COMPLETE=f"{shell}_source").stdout
    assert expected in said and "_KERASS2_COMPLETE" in said


def complete(folder: pathlib.Path, words: str) -> list[str]:
    told = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = run(folder, "kerass2", _KERASS2_COMPLETE="bash_complete", **told)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_words_are_completed(folder) -> None:
    assert set(complete(folder, "kerass2 ")) == set(cli.COMMANDS)
    assert complete(folder, "kerass2 fit --strategy h") == ["horovod"]
    assert complete(folder, "kerass2 export --form") == ["--format"]
    assert complete(folder, "kerass2 data v") == ["verify"]


def test_completion_answers_in_a_second(folder) -> None:
    """The best of some tries, as the machine may be busy with something else."""
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        assert complete(folder, "kerass2 f") == ["fit"]
        best = min(best, time.perf_counter() - begin)
        if best < 1:
            break
    assert best < 1


def test_bash_takes_the_line_of_the_documentation(folder) -> None:
    line = 'eval "$(_KERASS2_COMPLETE=bash_source kerass2)"'
    assert line in (ROOT / "docs" / "commands.md").read_text()
    asked = 'COMP_WORDS=(kerass2 f); COMP_CWORD=1; _kerass2_completion kerass2; echo "$COMPREPLY"'
    assert run(folder, "bash", "-c", f"{line}\n{asked}").stdout == "fit\n"


# --- JSON ---------------------------------------------------------------------------------------


def test_prepare_says_what_it_wrote_as_json(run_command, granule_folder, tmp_path) -> None:
    done = run_command("prepare", granule_folder, "-o", tmp_path / "images", "--json")
    assert done.returncode == 0, done.stderr
    told, manifest = json.loads(done.stdout), store.read_manifest(tmp_path / "images")
    assert told["counts"] == {split: manifest.num_examples(split) for split in manifest.splits}
    assert pathlib.Path(told["folder"]) == tmp_path / "images" and told["failed"] == {}


# --- how much is said ---------------------------------------------------------------------------


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def test_every_command_has_the_level() -> None:
    found = dict(commands(cli.group, "kerass2"))
    assert {"kerass2 fit", "kerass2 data verify", "kerass2 config list"} < found.keys()
    for name, command in found.items():
        assert any("--log-level" in parameter.opts for parameter in command.params), name


@pytest.mark.parametrize(
    ("level", "warnings", "notes"),
    [("error", 0, 0), ("warning", 1, 0), ("info", 1, 1), ("debug", 1, 1)],
)
def test_levels(monkeypatch, capsys, level: str, warnings: int, notes: int) -> None:
    @click.command(cls=cli.Command)
    def main() -> None:
        messages.warn("it is late")
        messages.note("it is dark")
        click.echo("result")

    monkeypatch.setenv(messages.VARIABLE, "info")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setattr(logging, "basicConfig", lambda level: None)
    main(["--log-level", level], standalone_mode=False)
    said = capsys.readouterr()
    assert said.out == "result\n"
    assert said.err == warnings * "warning: it is late\n" + notes * "it is dark\n"
    assert os.environ[messages.VARIABLE] == level  # what is started here has it too


def test_the_environment_has_the_level_for_all(run_command) -> None:
    done = run_command("config", "list", KERASS2_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert "'loud' is not one of 'debug', 'info', 'warning', 'error'" in done.stderr


def test_debug_tells_where_an_error_came_from(run_command, tmp_path) -> None:
    quiet, loud = (
        run_command("data", "info", tmp_path / "gone", "--log-level", level)
        for level in ("info", "debug")
    )
    assert quiet.returncode == loud.returncode == 1
    assert len(quiet.stderr.splitlines()) == 1
    assert loud.stderr.splitlines()[-1] == quiet.stderr.strip()
    assert "Traceback" in loud.stderr and "read_manifest" in loud.stderr


def draw_bar(*, terminal: bool, **environment: str) -> str:
    """What a process that shows a bar writes to its error output."""
    script = "from kerass2 import messages\nwith messages.progress('cutting') as advance:\n"
    command = [sys.executable, "-c", script + "    advance(3, 7)\n"]
    told = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", **environment}
    if not terminal:
        return subprocess.run(
            command, check=True, env=told, stderr=subprocess.PIPE, text=True, timeout=60
        ).stderr
    ours, theirs = pty.openpty()
    try:
        subprocess.run(command, check=True, env=told, stderr=theirs, timeout=60)
        os.write(theirs, b"END")  # a terminal to which nothing was written would wait
        drawn = b""
        while not drawn.endswith(b"END"):
            drawn += os.read(ours, 2**16)
        return drawn.removesuffix(b"END").decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_bars_are_for_terminals_and_colours_for_who_wants_them() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9;]*m")
    drawn = draw_bar(terminal=True)
    assert "cutting" in drawn and "3/7" in drawn and colour.search(drawn)
    plain = draw_bar(terminal=True, NO_COLOR="1")
    assert "cutting" in plain and "3/7" in plain and not colour.search(plain)
    assert draw_bar(terminal=False) == ""
    assert draw_bar(terminal=True, KERASS2_LOG_LEVEL="warning") == ""


def test_training_without_progress(run_command, prepared, tmp_path) -> None:
    """What the run is and what came out stays; lines of its steps go."""
    settings = ("--set=model.options.filters=4", "--set=model.options.blocks=2")
    given = ("--data", prepared, "--steps", 2, "--set=run.global_batch=4", *settings)
    done = run_command("fit", *given, "--workdir", tmp_path / "w", "--log-level", "error")
    assert done.returncode == 0, done.stderr
    assert "2 steps; model: " in done.stdout and "step 2/2" not in done.stdout
    assert done.stderr == ""


def test_gloo_that_gives_up_by_itself_is_another_ranks_failure(capfd) -> None:
    """Seen with a cut cable: not all of Horovod's errors say that they are its own."""
    error = RuntimeError(
        "Graph execution error: [third_party/compatible17_gloo/gloo/transport/tcp/"
        "unbound_buffer.cc:81] Timed out waiting 20000ms for recv operation to complete"
    )
    assert cli._explain(error) == 1
    last = capfd.readouterr().err.rstrip().splitlines()[-1]
    assert last.startswith("error: another rank has failed")
