"""Training and evaluation commands."""

from __future__ import annotations

import os

# Before TensorFlow is loaded: its start-up chatter hides a command's own messages.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
