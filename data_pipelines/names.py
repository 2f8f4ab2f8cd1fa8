"""Many short texts in one piece of memory."""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """Patch ids, in order; as bytes in a row, because a Python object takes 60 more for each.

    No name contains NUL: record.check_example refuses such a patch id.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Take over these names."""
        self._data = bytearray()
        # Where the NUL behind each name stands.
        self._ends = array.array("Q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a name behind the others."""
        self._data += name.encode()
        self._ends.append(len(self._data))
        self._data.append(0)

    def __len__(self) -> int:
        """Number of names."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """One name, or some."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = self._ends[number - 1] + 1 if number else 0
        return self._data[start : self._ends[number]].decode()

    def __eq__(self, other: object) -> bool:
        """Whether the names are the same, in the same order."""
        return isinstance(other, Names) and self._data == other._data

    def to_text(self) -> str:
        """All names, each with a NUL behind it."""
        return self._data.decode()

    @classmethod
    def from_text(cls, text: str) -> Names:
        """The inverse of to_text.

        Raises:
            ValueError: the text does not end with NUL, or cannot be encoded.
        """
        if text and not text.endswith("\0"):
            raise ValueError(f"names end with NUL, this with {text[-10:]!r}")
        names = cls()
        names._data += text.encode()
        ends = np.flatnonzero(np.frombuffer(names._data, np.uint8) == 0)
        names._ends.frombytes(ends.astype(np.uint64).tobytes())
        return names
