"""Page chains, samples, aliases, depth, far polygons, regions, pickles, TFLite and answers of servers.

`python -m benchmarks.hostile` makes 200,000 of the same inputs, with limits of memory.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.hostile import SECONDS, makers, one

PER_KIND = int(os.environ.get("EFFDET_FUZZ", "200")) // 2


def test_every_input_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    kinds = makers()
    counts: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(PER_KIND * len(kinds)):
            kind, outcome, seconds = one(number, kinds, tmp_path)
            assert outcome in ("read", "one line"), (number, kind, outcome)
            assert seconds < SECONDS
            counts[outcome] += 1
    assert counts["read"] > 50 and counts["one line"] > 50


@pytest.mark.parametrize("kind", sorted(makers()))
def test_sound_inputs_of_each_kind_are_among_them(tmp_path: Path, kind: str) -> None:
    """Else nothing would be shown by refusing all."""
    kinds = makers()
    place, step = sorted(kinds).index(kind), len(kinds)
    if kind in ("pickle", "answer"):
        pytest.skip("made of random parts: sound ones have tests of their own")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert any(one(place + step * k, kinds, tmp_path)[1] == "read" for k in range(400))
