"""What a conversion left out, and what it survived: counted and named, never silent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 20  # names kept per reason


@dataclass
class Faults:
    """Faults by reason: `{reason: {"count": n, "examples": [first names]}}`."""

    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)  # what is not in the output
    # what is in the output although something was wrong with it
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    # annotated cells among what was left out against the user's wish, by reason
    lost: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, name: str, count: int = 1, cells: int | None = None) -> None:
        """Count something that was left out: `count` annotated cells, or something of which `cells` are."""
        _add(self.dropped, reason, [name], count)
        cells = count if cells is None else cells
        if cells:
            self.lost[reason] = self.lost.get(reason, 0) + cells

    def note(self, reason: str, name: str, count: int = 1) -> None:
        """Count a fault that was survived."""
        _add(self.notes, reason, [name], count)

    def merge(self, other: Faults) -> None:
        """Add the faults of `other` behind those that are here."""
        for mine, theirs in ((self.dropped, other.dropped), (self.notes, other.notes)):
            for reason, entry in theirs.items():
                _add(mine, reason, entry["examples"], entry["count"])
        for reason, cells in other.lost.items():
            self.lost[reason] = self.lost.get(reason, 0) + cells

    def lines(self) -> list[str]:
        """One line per reason, drops first: kind, count, reason, and the first names."""
        lines = []
        for kind, reasons in (("dropped", self.dropped), ("note", self.notes)):
            for reason, entry in sorted(reasons.items()):
                shown = ", ".join(entry["examples"][:3]) + (", ..." if entry["count"] > 3 else "")
                lines.append(f"{kind:8}{entry['count']:>8}  {reason}: {shown}")
        return lines

    def __bool__(self) -> bool:
        return bool(self.dropped or self.notes)


def _add(reasons: dict[str, dict[str, Any]], reason: str, names: list[str], count: int) -> None:
    entry = reasons.setdefault(reason, {"count": 0, "examples": []})
    entry["count"] += count
    entry["examples"].extend(names[: EXAMPLES - len(entry["examples"])])
