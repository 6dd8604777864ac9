"""Hypothesis strategies that damage sound input: bytes, numbers in text, values deep inside of a document."""

from __future__ import annotations

import copy
import string
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63, 10**30, 1e308, 1e-320, 0.5)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-100, 100),
    st.floats(),
    st.sampled_from(["", "0", "-1", "nan", "\0", "é", "a/../../b", "x" * 5000, "%s", "1e999"]),
    st.text(alphabet=string.printable, max_size=8),
    st.lists(st.integers(-5, 5), max_size=6),
    st.dictionaries(st.sampled_from(["id", "size", "counts", "a"]), st.integers(-5, 5), max_size=3),
)


@st.composite
def damaged_bytes(draw: st.DrawFn, sound: Sequence[bytes]) -> bytes:
    """One of the sound inputs with one to four faults: flipped, cut, doubled, overwritten, put in."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        # Headers decide most: every second fault is among the first bytes.
        last = len(data) - 1 if draw(st.booleans()) else min(len(data) - 1, 64)
        place = draw(st.integers(0, last))
        kind = draw(st.sampled_from(["flip", "number", "cut", "drop", "double", "put"]))
        length = draw(st.sampled_from([1, 2, 4, 16, 300]))
        if kind == "flip":
            data[place] ^= draw(st.integers(1, 255))
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]))
            order = draw(st.sampled_from(["little", "big"]))
            data[place : place + 4] = number.to_bytes(4, order)
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "double":
            data[place:place] = data[place : place + length]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


@st.composite
def damaged_text(draw: st.DrawFn, sound: Sequence[str]) -> str:
    """One of the sound texts with a word replaced, left out or doubled, or with faults in its bytes."""
    text = draw(st.sampled_from(sound))
    if draw(st.booleans()):
        return draw(damaged_bytes([text.encode()])).decode("utf-8", "replace")
    lines = [line.split(" ") for line in text.split("\n")]
    line = lines[draw(st.integers(0, len(lines) - 1))]
    place = draw(st.integers(0, len(line) - 1))
    line[place : place + 1] = draw(
        st.sampled_from([[], [line[place]] * 2, [str(draw(ODD))], [line[place] + ",,"], ['"' + line[place]]])
    )
    return "\n".join(" ".join(line) for line in lines)


def _places(value: Any, where: tuple = ()) -> list[tuple]:
    """Paths to all values inside of a document."""
    found = [where]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*where, key))
    return found


@st.composite
def damaged_document(draw: st.DrawFn, sound: Any) -> Any:
    """A document of dicts and lists in which one to three values were replaced, left out or doubled."""
    document = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(document)))
        if not path:
            if draw(st.integers(0, 20)) == 0:
                return draw(ODD)
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "leave out", "double"]))
        if kind == "replace":
            parent[path[-1]] = draw(ODD)
        elif kind == "leave out":
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
        else:
            parent[str(path[-1]) + draw(st.sampled_from(["", "x", " "]))] = parent[path[-1]]
    return document
