"""Tests of the formats share `store_cases`, also with programs that they start."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

Forbidden = Callable[[], contextlib.AbstractContextManager[pathlib.Path]]


@pytest.fixture
def forbidden() -> Forbidden:
    """Gives a folder that may not be written to; root is somebody else as long as it is used."""

    @contextlib.contextmanager
    def enter() -> Iterator[pathlib.Path]:
        path, root = pathlib.Path(tempfile.mkdtemp()), os.geteuid() == 0
        path.chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            yield path
        finally:
            if root:
                os.seteuid(0)
            path.chmod(0o755)
            shutil.rmtree(path)

    return enter
