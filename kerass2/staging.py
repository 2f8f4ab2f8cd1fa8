"""A copy of a data set on each node's own storage, which ranks read faster than a shared one."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING

from kerass2 import messages
from kerass2.config import ConfigError

if TYPE_CHECKING:
    from kerass2.inputs import Data
    from strategies.base import Strategy


def stage(data: Data, folder: pathlib.Path, strategy: Strategy) -> Data:
    """The same data, read from a copy in `folder`. Every rank calls it.

    The first rank of each node copies, once for all later runs too, and compares every checksum of
    the manifest.

    Raises:
        ConfigError: a product, which is cut as it is read, cannot be copied.
        DataError: data or copy are damaged, or there is no room.
    """
    import numpy as np

    from data_pipelines import store
    from data_pipelines.manifest import MANIFEST
    from data_pipelines.spec import DataError

    if not (data.path / MANIFEST).is_file():
        raise ConfigError(f"--stage copies what kerass2.prepare has made; {data.path} is a product")
    copy = folder.resolve() / f"kerass2-{data.digest}"
    if strategy.local_rank == 0:
        try:
            _copy(data.path, copy)
        except OSError as error:
            raise DataError(f"{copy}: {error.strerror or error}") from None
        try:
            store.verify(copy)
        except DataError as error:
            raise DataError(
                f"{error}: {copy} is no whole copy; delete it to have it copied again"
            ) from None
    strategy.sum(np.zeros(1))  # no rank reads before all copies are there
    if strategy.is_chief:
        messages.note(f"reading {data.path} from its copy {copy} on each node")
    return dataclasses.replace(data, open=functools.partial(store.open_source, copy))


def _copy(path: pathlib.Path, copy: pathlib.Path) -> None:
    """Copy a folder; nothing of that name is there before it is whole."""
    if copy.is_dir():
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=f"{copy.name}-") as part:
        whole = pathlib.Path(part) / copy.name
        shutil.copytree(path, whole)
        whole.rename(copy)
