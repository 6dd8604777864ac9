"""Put a report together and write it: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from effdet_tf.data.annotated import Folders, folder_text
from effdet_tf.files import atomic_write
from effdet_tf.metrics.scores import format_table, headline, percent, score_text
from effdet_tf.report import sections
from effdet_tf.report.collect import Material, from_evaluation, from_run
from effdet_tf.report.tables import number
from effdet_tf.runs import REPORT_FILE

PAGE = Path(__file__).resolve().parent / "template"


def report_on_run(folder: Path, out: Path | None = None, data: Folders | None = None) -> Path:
    """Write the report of a run folder; gives the file.

    Args:
        folder: the run.
        out: HTML to write; None for `report.html` in the folder.
        data: the converted images that it was validated on, where they lie elsewhere by now.

    Raises:
        UserError: when this is no run folder, or a file of it is damaged.
    """
    return _write(out or folder / REPORT_FILE, from_run(folder), "training", data)


def report_on_evaluation(figures: Path, out: Path | None = None, data: Folders | None = None) -> Path:
    """Write the report of an evaluation; gives the file.

    Args:
        figures: JSON that the evaluation wrote.
        out: HTML to write; None for one of the same name beside it.
        data: the converted images, where they lie elsewhere by now.

    Raises:
        UserError: when this is no evaluation, or a file beside it is damaged.
    """
    return _write(out or figures.with_suffix(".html"), from_evaluation(figures), "evaluation", data)


def _write(out: Path, material: Material, kind: str, data: Folders | None) -> Path:
    if data is not None and material.examples is not None:
        material.examples["data"] = folder_text(data)
    text = render(material, kind)
    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out


def render(material: Material, kind: str) -> str:
    """The page that shows some material; `kind` is "training" or "evaluation"."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # Names of classes, cell types and files come from users: everything is escaped but what is made here.
    rules: dict[str, Any] = {
        "autoescape": True,
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    environment = Environment(loader=FileSystemLoader(PAGE), **rules)  # noqa: S701 (in the rules)
    report = material.report
    parts = {
        "gallery": sections.gallery(material),
        "precision": sections.precision(report),
        "cells": sections.cells(report),
        "calibration": sections.calibration(report),
        "compared": sections.compared(report),
        "confusion": sections.confusion(report),
        "learning": sections.learning(material.history),
        "images": sections.images(report),
    }
    text = environment.get_template("page.html").render(
        kind=kind,
        title=material.name,
        subtitle=_subtitle(material),
        tiles=_tiles(material),
        facts=_facts(material),
        printed=format_table(report) if report else "",
        configuration=material.config_text,
        work=_work(material),
        style=Markup((PAGE / "style.css").read_text(encoding="utf-8")),  # noqa: S704 (our own)
        script=Markup((PAGE / "script.js").read_text(encoding="utf-8")),  # noqa: S704 (our own)
        **{name: {"missing": "", "pictures": [], **part} for name, part in parts.items()},
    )
    return text.lstrip()


def _subtitle(material: Material) -> str:
    date = material.about.get("date")
    parts = [f"{datetime.fromisoformat(date):%d %B %Y, %H:%M}"] if date else []
    if material.report is None:
        return ", ".join([*parts, "not evaluated: the training had no validation images"])
    group = material.report["livecell"]["all"]
    on = f"evaluated on {material.data}:" if material.data else "evaluated on"
    limited = bool((material.report.get("evaluated") or {}).get("limit"))
    images = f"{group['images']:,} images" if group["images"] != 1 else "image" if limited else "one image"
    first = "the first " if limited else ""
    return ", ".join([*parts, f"{on} {first}{images} with {group['cells']:,} cells"])


def _tiles(material: Material) -> list[dict[str, str]]:
    """The headline, large."""
    if material.report is None:
        return _training_tiles(material.history)
    report, figures = material.report, headline(material.report)
    group = report["livecell"]["all"]
    kind, name = ("segm", "mask") if "segm" in group else ("bbox", "box")
    shown = [
        (f"{name}_AP", f"{name} AP", percent(figures[f"{name}_AP"]), "mean over IoU .50 to .95, %"),
        (f"{name}_AP50", f"{name} AP50", percent(figures[f"{name}_AP50"]), "at IoU .50, %"),
        ("AFNR", "AFNR", percent(group[kind].get("AFNR")), "mean share of missed cells, %"),
    ]
    if figures.get(f"coco_{name}_AP") is not None:
        value = percent(figures[f"coco_{name}_AP"])
        shown.insert(0, (f"coco_{name}_AP", f"COCO {name} AP", value, "mean over classes, %"))
    if figures["sartorius"] is not None:
        note = "mean TP/(TP+FP+FN) of images"
        shown.append(("sartorius", "Sartorius metric", number(figures["sartorius"]), note))
    shown += [
        ("f1", "F1", number(figures["f1"]), "at IoU .5"),
        ("count_mean_error", "count error", number(figures["count_mean_error"], 1), "cells an image"),
    ]
    return [dict(zip(("key", "label", "value", "note"), tile, strict=True)) for tile in shown]


def _training_tiles(history: list[dict[str, float]]) -> list[dict[str, str]]:
    last = history[-1] if history else {}
    shown = [(key, label) for key, label in (("step", "steps"), ("epoch", "epochs")) if key in last]
    tiles = [{"key": key, "label": label, "value": f"{last[key]:,.0f}", "note": ""} for key, label in shown]
    if "total" in last:
        note = "mean of the last epoch"
        tiles.append({"key": "total", "label": "loss", "value": number(last["total"]), "note": note})
    return tiles


def _facts(material: Material) -> list[tuple[str, str]]:
    config, last = material.config, material.history[-1] if material.history else {}
    facts: dict[str, Any] = {
        "preset": config and config.preset,
        "classes": config and ", ".join(config.class_names),
        "cells from score": config and score_text(config.postprocess.report_score),
        "parameters": None if material.parameters is None else f"{material.parameters:,}",
        "steps": f"{last['step']:,.0f}" if "step" in last else None,
        "trained for": f"{last['minutes']:.1f} minutes" if "minutes" in last else None,
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _work(material: Material) -> list[tuple[str, str]]:
    """Command, time and environment."""
    about: Mapping[str, Any] = material.about
    if not about:
        return []
    environment = about.get("environment") or {}
    packages = environment.get("packages") or {}
    devices = environment.get("devices") or ["none in use"]
    rows = {
        "command": about.get("command"),
        "date": about.get("date"),
        "time taken": f"{about['seconds']:,.0f} s" if "seconds" in about else None,
        "training data": ", ".join(map(str, about.get("data") or [])),
        "effdet_tf": environment.get("effdet_tf"),
        "Python": environment.get("python"),
        "system": f"{environment.get('system')}, {environment.get('cores')} cores" if environment else None,
        "packages": ", ".join(f"{name} {value}" for name, value in packages.items()),
        "devices": ", ".join(map(str, devices)) if environment else None,
    }
    return [(name, str(value)) for name, value in rows.items() if value]
