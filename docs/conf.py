"""The documentation site: `make docs` builds it into docs/_build, and a warning is an error.

Sphinx reads the pages (MyST markdown), the docstrings and the commands' own --help. Tables that the
code holds, metrics among them, are taken from it, so that no page says otherwise.
"""

from __future__ import annotations

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import kerass2  # noqa: E402
from kerass2 import cli, label_scores, metrics  # noqa: E402

project = "kerass2"
author = "The kerass2 developers"
copyright = "The kerass2 developers, Apache-2.0"
version = release = kerass2.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
exclude_patterns = ["_build", "generated"]
myst_enable_extensions = ["colon_fence", "substitution"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
html_theme = "furo"
html_title = f"kerass2 {version}"
html_copy_source = False


def _metrics() -> str:
    """kerass2.metrics.DEFINITIONS as a table."""
    rows = [f"| `{n}` | {metrics.UNITS[n]} | {text} |" for n, text in metrics.DEFINITIONS.items()]
    return "\n".join(["| metric | unit | definition |", "|---|---|---|", *rows])


def _label_scores() -> str:
    """kerass2.label_scores.DEFINITIONS as a table."""
    rows = [f"| `{name}` | {text} |" for name, text in label_scores.DEFINITIONS.items()]
    return "\n".join(["| score | definition |", "|---|---|", *rows])


def _commands() -> str:
    """A section for each command of cli.COMMANDS, from its own help."""
    parts = []
    for name in cli.COMMANDS:
        parts += [
            "```{eval-rst}",
            f".. click:: kerass2.{cli.MODULES.get(name, name)}:main",
            f"   :prog: kerass2 {name}",
            "   :nested: full",
            "```\n",
        ]
    return "\n".join(parts)


def _write(name: str, text: str) -> None:
    """A page's generated part; left alone where it is the same, so that builds stay short."""
    path = HERE / "generated" / name
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


_write("metrics.md", _metrics())
_write("label_scores.md", _label_scores())
_write("commands.md", _commands())
