"""The documentation: the site builds without a warning, and its pages' commands run as they stand.

`make docs` runs it. Blocks of `sh` are commands, one a line, of `python` scripts, run one after the
other in one folder a page; `text` is for what only a reader's machine can do.
"""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "generated" not in page.parts]
BLOCK = re.compile(
    r"^```(?:\{code-block\} )?(sh|python)\n(?::caption: (\S+)\n)?(.+?)^```", re.M | re.S
)
RUN = [page for page in PAGES if BLOCK.search(page.read_text())]


def run(words: list[str], folder: pathlib.Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page, tmp_path):
    for kind, caption, text in BLOCK.findall(page.read_text()):
        if caption:
            (tmp_path / caption).write_text(text)
        elif kind == "python":
            run([sys.executable, "-c", text], tmp_path)
        else:
            for line in text.splitlines():
                words = [sys.executable if w == "python" else w for w in shlex.split(line)]
                run(words, tmp_path)


def test_every_tutorial_runs_something():
    assert {page.stem for page in RUN} >= {page.stem for page in (DOCS / "tutorials").glob("*.md")}


def test_the_site_builds_without_a_warning(tmp_path):
    """Links between pages, and names in the code that a page shows, are checked by that."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed here")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    run([*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")], ROOT)
    built = {page.relative_to(tmp_path / "html").with_suffix(".md") for page in
             (tmp_path / "html").rglob("*.html")}  # fmt: skip
    assert {page.relative_to(DOCS) for page in PAGES} <= built
