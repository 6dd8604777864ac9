"""Names that come from a browser: shown, and written into archives; never used as paths of this machine."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

from effdet_tf.outputs.jobs import output_names

_LONGEST, _DEEPEST = 150, 12
_FORBIDDEN = re.compile(r'[<>:"|?*]')  # by one file system or another


def clean_name(text: str) -> PurePosixPath:
    """Make a relative path out of what a browser calls a file; it leads nowhere above its start.

    Args:
        text: the name, with folders before it or not.

    Returns:
        At least one part; no part is empty, `.` or `..`, or holds a separator, a control character, or one
        that some file system forbids.
    """
    parts = list(filter(None, map(_clean_part, re.split(r"[/\\]", text))))
    return PurePosixPath(*(parts[-_DEEPEST:] or ["image"]))


def _clean_part(part: str) -> str:
    """One folder or file name; empty when nothing is left of it."""
    part = "".join(c for c in part if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    part = _FORBIDDEN.sub("_", part).strip(" ")
    if not part.strip(". "):
        return ""
    if len(part) > _LONGEST:  # the end says what it is
        part = part[: _LONGEST // 2] + "~" + part[-_LONGEST // 2 + 1 :]
    return part


def names_of_outputs(images: Sequence[tuple[PurePosixPath, bool]]) -> list[str]:
    """What `predict` calls the outputs of these images when it is given the same files and folders.

    Args:
        images: for each the cleaned name, and whether that begins with a folder that was chosen.
    """
    below = [PurePosixPath(*(rooted and name.parts[1:] or name.parts[-1:])) for name, rooted in images]
    return output_names([(name.parent.name, path) for (name, _), path in zip(images, below, strict=True)])
