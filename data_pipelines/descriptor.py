"""Files that threads and forks may share: read by position, without a cursor."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines.spec import DataError

# Files that a reader keeps open: a BigEarthNet has 1500, a process usually 1024 descriptors.
MAX_OPEN = 128
# Buffers that Linux fills in one call (IOV_MAX).
MAX_BUFFERS = 1024


class Descriptor:
    """A file open for reading by position, without a cursor that threads or forks would share."""

    def __init__(self, path: pathlib.Path) -> None:
        """Open the file.

        Raises:
            DataError: it cannot be opened.
        """
        try:
            self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        self._path = path

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._number).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        try:
            data = os.pread(self._number, size, offset)
            while len(data) < size:  # one call returns at most 2 GiB
                more = os.pread(self._number, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise DataError(f"{self._path}: {error.strerror}") from None
        return data

    def read_all(self, offset: int, size: int, where: str) -> bytes:
        """Exactly `size` bytes.

        Raises:
            DataError: the file ends before; begins with `where`.
        """
        data = self.read(offset, size)
        if len(data) != size:
            raise DataError(f"{where}: truncated: {len(data)} bytes, expected {size}")
        return data

    def read_into(self, buffers: Sequence[Any], offset: int) -> int:
        """Fill writable buffers one after the other, from `offset` on.

        The system copies from its cache to where the bytes belong: no other copy, and no memory to
        allocate.

        Returns:
            Bytes read; fewer than the buffers have only at the end of the file.
        """
        try:
            done = os.preadv(self._number, buffers[:MAX_BUFFERS], offset)
            for start in range(MAX_BUFFERS, len(buffers), MAX_BUFFERS):
                done += os.preadv(self._number, buffers[start : start + MAX_BUFFERS], offset + done)
        except OSError as error:
            raise DataError(f"{self._path}: {error.strerror}") from None
        return done


def sync(path: pathlib.Path) -> None:
    """Return when the file, which some library wrote and closed, is on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
