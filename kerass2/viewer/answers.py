"""What the server and the pages behind it say to each other."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Query = Mapping[str, str]


class BadRequest(Exception):
    """A parameter is missing or senseless; the message says which and what is expected."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The body of a response."""

    content: bytes
    """As it is sent."""
    media_type: str
    """Its Content-Type."""


class Page(Protocol):
    """What a path that kerass2.view was given shows."""

    name: str
    """Key of server.FILES."""

    def answer(self, parts: tuple[str, ...], query: Query) -> Answer | None:
        """The answer to an address below the page; called from several threads.

        Args:
            parts: the address between slashes, as it came: looked up, never joined to a path.
            query: its parameters.

        Returns:
            None where there is nothing of that address.

        Raises:
            BadRequest: a parameter is missing or senseless.
            DataError: what is shown cannot be read.
        """
        ...


def to_json(value: Any) -> Answer:
    """JSON; numbers that it does not have, NaN and infinite, become null."""
    return Answer(json.dumps(_plain(value), allow_nan=False).encode(), "application/json")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_png(image: NDArray[np.uint8]) -> Answer:
    """A picture (y, x, colour) of 8 bit, with or without alpha."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    # Fast, not small: it goes no further than this machine.
    imsave(buffer, image, format="png", pil_kwargs={"compress_level": 1})
    return Answer(buffer.getvalue(), "image/png")


def read_numbers(
    query: Query, name: str, count: int, kind: type[int] | type[float] = int
) -> list[Any]:
    """Numbers with commas between them.

    Raises:
        BadRequest: another number of them, or one that is none.
    """
    text = query.get(name, "")
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        what = "whole number" if kind is int else "number"
        raise BadRequest(f"{name}={text}: expected {count} {what}{'s' if count > 1 else ''}")
    return numbers


def find_index(text: str, there: Sequence[Any]) -> int | None:
    """The position in a list that plain digits name; None for any other text."""
    # isdecimal alone takes digits of other scripts.
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        return None
    return int(text) if int(text) < len(there) else None
