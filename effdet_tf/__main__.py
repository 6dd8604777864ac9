"""`python -m effdet_tf`."""

from __future__ import annotations

import sys

from effdet_tf.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m effdet_tf"))
