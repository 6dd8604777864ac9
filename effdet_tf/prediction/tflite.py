"""Find cells with a TFLite file, without TensorFlow."""

from __future__ import annotations

import functools
import os
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from effdet_tf.config import Config
from effdet_tf.errors import UserError, needs
from effdet_tf.files import usable_cores
from effdet_tf.model.detections import Detections
from effdet_tf.prediction.fixed_size import FixedSizePredictor
from effdet_tf.prediction.metadata import METADATA_FILE, read_metadata
from effdet_tf.prediction.model_check import check_tflite

SIGNATURE = "serving_default"
_IDENTIFIER = b"TFL3"  # at byte 4 of every TFLite file
_MAX_METADATA = 2**22  # bytes; that of 1,000 classes has 100,000


class TFLitePredictor(FixedSizePredictor):
    """A TFLite file that `python -m export.main` wrote, with all that turns images of any size into cells.

    Attributes:
        metadata: what the file says of itself, see `effdet_tf.prediction.metadata.describe`.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        """Open a file.

        Args:
            path: of the file.
            threads: CPU threads to use; None for all cores that this process may use.

        Raises:
            UserError: when the file is missing, damaged or not ours, or the runtime is not installed.
        """
        path, threads = Path(path), threads or usable_cores()
        self.metadata, config = read_description(path)
        self._runner = _open(path, threads)
        self._careful = functools.cache(lambda: _open(path, threads, fast=False))
        self._lock = threading.Lock()  # an interpreter has one set of tensors
        super().__init__(config, _input_size(self._runner, config, path), self._invoke)

    def _invoke(self, image: np.ndarray, shown: tuple[int, int]) -> Detections:
        inputs = {"image": image[None], "frame": np.array(shown, np.int32)}
        with self._lock:
            try:
                outputs = self._runner(**inputs)
            except RuntimeError:  # of an earlier export: its fast matrix product wants a candidate
                try:
                    outputs = self._careful()(**inputs)
                except (RuntimeError, ValueError, MemoryError) as error:
                    raise UserError(f"the network fails on this image ({_reason(error)})") from error
        return Detections.from_outputs(outputs)


def read_description(path: Path) -> tuple[dict[str, Any], Config]:
    """What a TFLite file says of itself, and the configuration in it; the runtime is not needed.

    Raises:
        UserError: when it cannot be read or says nothing.
    """
    again = "export it again with `python -m export.main`"
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head[4:] != _IDENTIFIER:
            raise UserError(f"{path}: is no TFLite file; {again}")
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(METADATA_FILE)
            if entry.file_size > _MAX_METADATA:
                raise UserError(f"{path}: {METADATA_FILE} in it is far too large; {again}")
            text = archive.read(entry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot be read ({reason}); check the name and the rights") from error
    except KeyError as error:
        raise UserError(f"{path}: holds no {METADATA_FILE}; {again}") from error
    # What zipfile raises for a damaged, encrypted or unusual archive.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: was not made by effdet_tf, or is cut short; {again}") from error
    return read_metadata(text, str(path))


def _open(path: Path, threads: int, fast: bool = True) -> Any:
    """The signature of a file, ready to run; without the `fast` XNNPACK kernels by the reference's alone.

    Raises:
        UserError: when the runtime is not installed, or refuses the file.
    """
    with needs("tflite", f"{path}: a TFLite file"):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    kernels = OpResolverType.AUTO if fast else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        data = path.read_bytes()
        check_tflite(path, data)  # and these bytes are run, not what the file holds by then
        interpreter = Interpreter(
            model_content=data, num_threads=threads, experimental_op_resolver_type=kernels
        )
        return interpreter.get_signature_runner(SIGNATURE)
    except UserError:
        raise
    except Exception as error:  # whatever the runtime makes of it
        raise UserError(f"{path}: is damaged ({_reason(error)}); copy it again or export it again") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _input_size(runner: Any, config: Config, path: Path) -> tuple[int, int]:
    """Height, width of the input, px.

    Raises:
        UserError: when inputs and outputs are not those of an exported network.
    """
    inputs = {name: list(detail["shape"]) for name, detail in runner.get_input_details().items()}
    image = inputs.get("image", [])
    expected = {"boxes", "scores", "classes", "count"}
    if config.model.mask.enabled:
        expected |= {"masks", "mask_boxes"}
    if (
        set(inputs) != {"image", "frame"}
        or len(image) != 4
        or image[3] != config.data.channels
        or not expected <= set(runner.get_output_details())
    ):
        raise UserError(f"{path}: its inputs and outputs are not those that its {METADATA_FILE} tells of")
    return int(image[1]), int(image[2])
