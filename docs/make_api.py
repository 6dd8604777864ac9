"""Write docs/api.md from the docstrings of the public names: `python docs/make_api.py`."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import effdet_tf

INTRODUCTION = """\
# The Python interface

```python
import effdet_tf

model = effdet_tf.load("cells")  # a network of the package, a run or an export
cells = model.predict("image.tif")  # or an array; score=0.3 for another threshold, score=0 for all
len(cells), cells[0].score, cells.table()  # a pandas DataFrame
cells.label_image()  # numpy; 0 is background, cell k has k + 1
cells.save("results")  # the files that `effdet_tf predict` writes

for cells in model.predict_many("plate1/"):
    print(cells)

effdet_tf.convert("coco", "my_set", "data/train")
effdet_tf.train(data="data/train", val="data/val", init="cells", minutes=60, out="runs/mine")
effdet_tf.evaluate(run="runs/mine", data="data/test")
effdet_tf.export(run="runs/mine", out="exports/mine", formats=["saved_model"], no_parity=True)
```

The last four take the options of their commands by name: `cell_type="A172"` for `--cell-type A172`, True
or False for a switch, a list where a command takes several, a dict for `set`.

In a notebook, `cells` as the last line of a cell shows the outlines. This page is made from the docstrings by
`python docs/make_api.py`.
"""
ORDER = (
    *("load", "Model", "Cells", "DetectedCell", "convert", "train", "evaluate", "export"),
    *("Result", "Predictor", "Config", "UserError"),
)
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_HEADS = "|".join(f"{section}:\n" for section in _SECTIONS)


def page() -> str:
    """The page."""
    names = [*ORDER, *sorted(set(effdet_tf.__all__) - set(ORDER) - {"__version__"})]
    return "\n".join([INTRODUCTION, *(_entry(name, getattr(effdet_tf, name)) for name in names)])


def _entry(name: str, thing: object) -> str:
    if not inspect.isclass(thing):
        return f"## `effdet_tf.{name}`\n\n{_signature(name, thing)}{_prose(thing)}\n"
    lines = [f"## `effdet_tf.{name}`\n\n{_prose(thing)}\n"]
    for inner, member in vars(thing).items():
        if inner.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        shown = "" if isinstance(member, property) else _signature(inner, member)
        lines.append(f"### `{name}.{inner}`\n\n{shown}{_prose(member)}\n")
    return "\n".join(lines)


def _signature(name: str, function: object) -> str:
    """The head of a function as a block of code."""
    signature = inspect.signature(function)
    shown = [str(parameter) for key, parameter in signature.parameters.items() if key != "self"]
    result = f" -> {signature.return_annotation}".replace("'", "")
    line = f"{name}({', '.join(shown)}){result}"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(shown) + f",\n){result}"
    return f"```python\n{line}\n```\n\n"


def _prose(thing: object) -> str:
    """A docstring in Google's form as Markdown."""
    out: list[str] = []
    section = ""
    for block in re.split(rf"\n\n|\n(?={_HEADS})", inspect.getdoc(thing) or ""):
        head, _, rest = block.partition("\n")
        if head.rstrip(":") in _SECTIONS and head.endswith(":"):
            section = head.rstrip(":")
            items = re.split(r"\n(?=\S)", textwrap.dedent(rest))
            if section in ("Returns", "Yields"):
                out.append(_wrapped(f"{section}: {' '.join(items)}"))
            else:
                out.append(f"{section}:\n")
                out += [_wrapped(re.sub(r"^(\w+):", r"`\1`:", " ".join(i.split())), "- ") for i in items]
            out.append("")
        elif block.strip():
            out += [_wrapped(block), ""]
    return "\n".join(out).strip()


def _wrapped(text: str, mark: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        118,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page(), encoding="utf-8")
