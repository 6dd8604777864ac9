"""Cellpose's `_seg.npy`: the masks in its pickle, read without running what a pickle asks for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.errors import UserError
from effdet_tf.files.untrusted import ForbiddenNameError, PlainUnpickler

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_FAULTS: tuple[type[Exception], ...] = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError)
_FAULTS += (AttributeError, MemoryError, RecursionError, OverflowError)


class _Type:
    """A numpy dtype as a pickle describes it."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """A numpy array as a pickle describes it; it becomes one when it is asked for."""

    def __init__(self, *_: Any) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def values(self) -> np.ndarray:
        """The array; ValueError for one that holds no whole numbers."""
        _, shape, kind, by_columns, data = self._state
        dtype = np.dtype(kind.name).newbyteorder(kind.order)
        if dtype.kind not in "iu" or not isinstance(data, bytes):
            raise ValueError("its masks are no label map")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")

    def content(self) -> Any:
        """What an array without axes holds."""
        (content,) = self._state[4]
        return content


def _nothing(*_: Any) -> None:
    """Stand for what is not wanted."""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),
    ("pathlib", "PosixPath"): _nothing,
    ("pathlib", "WindowsPath"): _nothing,
}
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _KNOWN |= {(_core, "_reconstruct"): _Array, (_core, "scalar"): _nothing}


def read_seg_npy(path: Path) -> np.ndarray:
    """The label map in a file of Cellpose, integers `[H, W]`, or `[pages, H, W]` of a stack.

    Raises:
        UserError: when the file cannot be read, is no such file, or asks for anything but arrays.
    """
    try:
        with path.open("rb") as stream:
            shape, _, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
            if shape != () or dtype != np.dtype(object):
                raise ValueError("it holds an array, no dictionary")
            masks = PlainUnpickler(stream, _KNOWN).load().content()["masks"].values()
        if masks.ndim not in (2, 3):
            raise ValueError(f"its masks have {masks.ndim} axes")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except ForbiddenNameError as error:
        raise UserError(
            f"{path}: its pickle asks for {error}, which masks do not need and which could run code; "
            "in Cellpose save them as PNG or tif (File > Save masks as PNG/tif)"
        ) from None
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is no _seg.npy of Cellpose ({reason[:200]}); save it again") from None
    return masks
