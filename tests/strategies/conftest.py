"""The ranks' scripts in this folder are programs of their own; tests share `cases` with them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
