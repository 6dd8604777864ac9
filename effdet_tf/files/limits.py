"""What a file from elsewhere may ask for: held to it before memory or time is taken.

The environment variable `EFFDET_LIMITS` changes limits, also those of workers: `EFFDET_LIMITS="pages=50000"`.
"""

from __future__ import annotations

import functools
import os

from effdet_tf.errors import UserError

_VARIABLE = "EFFDET_LIMITS"
_MEANING = {
    "pixels": (2**29, "pixels of an image: as 16 bit gray they take one GiB"),
    "values": (2**30, "pixels x samples of an image, or of one of its tiles"),
    "pages": (10_000, "pages of a file"),
    "points": (100_000, "corners of a polygon"),
    "bytes": (2**30, "bytes that a file expands to beyond its own size"),
    "depth": (100, "levels of nested lists and objects"),
    "names": (100_000, "entries of an archive, tensors of a network"),
}


@functools.cache
def _limits(settings: str) -> dict[str, int]:
    found = {kind: limit for kind, (limit, _) in _MEANING.items()}
    for setting in filter(None, (part.strip() for part in settings.split(","))):
        kind, _, value = setting.partition("=")
        if kind not in found or not value.isdecimal() or int(value) < 1:
            raise UserError(f"{_VARIABLE}={settings!r}: write kind=number, with {', '.join(found)}")
        found[kind] = int(value)
    return found


def limit(kind: str) -> int:
    """A limit: "pixels", "values", "pages", "points", "bytes", "depth" or "names".

    Raises:
        UserError: when `EFFDET_LIMITS` cannot be read.
    """
    return _limits(os.environ.get(_VARIABLE, ""))[kind]


def allow(kind: str, asked: int, what: object) -> None:
    """Hold what something asks for to its limit.

    Args:
        kind: of `limit`.
        asked: how much it is.
        what: that asks, for the message: a path.

    Raises:
        UserError: when it is more; says how to raise the limit.
    """
    if asked > (most := limit(kind)):
        meaning = _MEANING[kind][1].split(":")[0]
        raise UserError(
            f"{what}: {asked:,} {meaning}, more than {most:,}; {_VARIABLE}={kind}=N with a larger N takes "
            "it, where it is to be trusted"
        )
