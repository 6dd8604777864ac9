"""When, how and on what something was computed."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from effdet_tf._version import __version__
from effdet_tf.report.inventory import PACKAGES, installed


def command_line(program: str, arguments: Sequence[str] | None) -> str:
    """The words that start `program` again, `python -m PROGRAM ...`; None takes those of this process."""
    return shlex.join(["python", "-m", program, *(sys.argv[1:] if arguments is None else arguments)])


def describe_work(command: str, seconds: float) -> dict[str, Any]:
    """What a report tells of the work behind it, ready for JSON.

    Args:
        command: that did it.
        seconds: it took.

    Returns:
        `{"command", "date", "seconds", "environment": {"effdet_tf", "python", "system", "cores", "packages":
        {name: version}, "devices": [name]}}`; the devices are those that TensorFlow sees, where it is in use.
    """
    versions = {names[0]: installed(*names) for names in PACKAGES}
    return {
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "environment": {
            "effdet_tf": __version__,
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "packages": {name: found for name, found in versions.items() if found},
            "devices": _devices(),
        },
    }


def _devices() -> list[str]:
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return []
    names = []
    for device in tensorflow.config.list_physical_devices():
        details = tensorflow.config.experimental.get_device_details(device)
        names.append(details.get("device_name") or device.device_type)
    return names
