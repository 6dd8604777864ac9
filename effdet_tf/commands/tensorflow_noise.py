"""TensorFlow's start without the lines that it writes about itself, which no setting of its own silences."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_NOISE = re.compile(rb"WARNING: All log messages before absl::InitializeLog|I0000 ")
_NO_GPU = re.compile(rb"E0000 .*failed call to cuInit")  # worth reading where there is a GPU
_GPU = Path("/dev/nvidiactl")


def hush_tensorflow() -> None:
    """When TensorFlow is imported later, hold back what it writes to stderr meanwhile, and drop the noise."""
    if "tensorflow" not in sys.modules and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds TensorFlow as usual, and wraps its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of TensorFlow; of all else nothing."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        if loader:
            execute = loader.exec_module

            def quietly(module: ModuleType) -> None:
                with _held_back():
                    execute(module)
                    module.config.list_physical_devices()  # says at length that there is no GPU

            loader.exec_module = quietly
        return spec


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Collect what is written to the file descriptor of stderr; at the end write what is no noise."""
    try:
        real = os.dup(2)
    except OSError:  # closed: nothing is seen anyway
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held:
                if not _NOISE.match(line) and (_GPU.exists() or not _NO_GPU.match(line)):
                    os.write(2, line)
