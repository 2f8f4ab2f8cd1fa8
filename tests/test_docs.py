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
import time

import pytest

pytestmark = pytest.mark.docs

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "generated" not in page.parts]
BLOCK = re.compile(
    r"^```(?:\{code-block\} )?(sh|python)\n(?::caption: (\S+)\n)?(.+?)^```", re.M | re.S
)
QUICKSTART = (DOCS / "quickstart.md").read_text()
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


def test_a_first_picture_in_five_commands(tmp_path):
    """From a clone to a picture, in an environment that is empty before; the time is printed."""
    (text,) = re.findall(r":caption: five commands\n(.+?)^```", QUICKSTART, re.M | re.S)
    assert len(text.splitlines()) == 5
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "KERASS2"))}
    begin = time.monotonic()
    done = subprocess.run(
        ["bash", "-ec", text.replace("URL", shlex.quote(str(ROOT)))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=590,
        env={**variables, "KERASS2_CACHE": str(tmp_path / "cache")},
    )
    print(f"{time.monotonic() - begin:.0f} s from a clone to a picture")
    assert done.returncode == 0, done.stderr
    for name in ("sharp.tif", "sharp.png"):
        assert (tmp_path / "kerass2" / name).stat().st_size > 10_000


def test_every_tutorial_runs_something():
    assert {page.stem for page in RUN} >= {page.stem for page in (DOCS / "tutorials").glob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built without a warning: that checks links between pages, and names in code shown."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed here")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    run([*command, "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")], ROOT)
    return folder / "html"


def test_the_site_has_every_page(site):
    built = {page.relative_to(site).with_suffix(".md") for page in site.rglob("*.html")}
    assert {page.relative_to(DOCS) for page in PAGES} <= built


@pytest.mark.chromium
def test_the_site_on_a_desk_and_on_a_phone(site, browser):
    """Nothing sticks out, no picture is missing, and nothing comes from elsewhere."""
    for width, scheme in ((1280, "light"), (390, "dark")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for page in PAGES:
            browser.get((site / page.relative_to(DOCS).with_suffix(".html")).as_uri())
            seen = browser.execute_script(
                "return [document.documentElement.scrollWidth,"
                " [...document.images].filter(i => !i.naturalWidth).map(i => i.src),"
                " performance.getEntriesByType('resource').map(r => r.name)"
                ".filter(n => !n.startsWith('file:') && !n.startsWith('data:'))]"
            )
            assert seen == [width, [], []], page
