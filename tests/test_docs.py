"""The pages: every link leads somewhere, every command of ours is one that the parsers take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from effdet_tf.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^(?:python -m effdet_tf|effdet_tf) (.+)$", re.MULTILINE)


def commands(text: str) -> list[str]:
    """What stands behind our command's name, in blocks of shell code."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in COMMAND.findall(block)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken(page: Path) -> None:
    for line in commands(page.read_text()):
        build_parser().parse_args(shlex.split(line, comments=True))


def test_the_readme_has_commands_and_every_page_is_in_the_index() -> None:
    assert len(commands((ROOT / "README.md").read_text())) >= 5
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name})" not in index
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    assert [line for line in prose if len(line) > 120 and not line.startswith("|")] == []
