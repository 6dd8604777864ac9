"""A new user's mistakes: each is made for real, and its answer is short, right, and in docs/mistakes.md.

`EFFDET_WRITE_PAGE=1 python -m pytest tests/test_mistakes.py` writes the page anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from effdet_tf.config import Config
from tests.mistakes import places
from tests.mistakes.mistake import Mistake, answer, run
from tests.mistakes.rows import CHAPTERS, MISTAKES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mistakes.md"
HEAD = """\
# Mistakes, and what they are answered with

Written by `EFFDET_WRITE_PAGE=1 python -m pytest tests/test_mistakes.py`, which makes every one of these
mistakes and holds the answers to this page: edit `tests/mistakes/rows.py`, not this file. Exit codes: 0 done
(a warning, a note, or nothing to tell), 1 failed, 2 wrong usage, 3 some files failed.
"""
LINES = 2  # of an answer: what is wrong, and how many files that was


@pytest.fixture(scope="module")
def good(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good things in a folder; nobody changes them."""
    root = tmp_path_factory.mktemp("good") / "work"
    root.mkdir()
    settings = ["score_threshold=0.001", "report_score=0.002"]
    config = tiny_config.override([f"postprocess.{setting}" for setting in settings])
    places.build(root, config.replace(data__max_instances=2000))
    return root


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str]]:
    """Exit codes and answers of the mistakes that were made."""
    return {}


@pytest.fixture
def make(good, answers, tmp_path, monkeypatch, capsys):
    """`make(mistake)` makes it, once, and gives exit code and answer."""

    def made(mistake: Mistake) -> tuple[int, str]:
        if mistake.what not in answers:
            folder = tmp_path / mistake.key
            shutil.copytree(good, folder)
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                if mistake.prepare is not None:
                    mistake.prepare(folder, patch)
                capsys.readouterr()
                code = run(mistake.command)
            printed = capsys.readouterr()
            assert str(tmp_path) not in printed.err, "the page must not name folders of this machine"
            answers[mistake.what] = code, answer(printed.out, printed.err, mistake.words)
            shutil.rmtree(folder)
        return answers[mistake.what]

    return made


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.key)
def test_a_mistake_is_answered(mistake: Mistake, make) -> None:
    code, text = make(mistake)
    assert code == mistake.code, text
    for word in mistake.words:
        assert word in text
    assert "Traceback" not in text and 0 < len(text.splitlines()) <= LINES, text


def test_the_mistakes_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len(MISTAKES) >= 30
    assert len({mistake.key for mistake in MISTAKES}) == len(MISTAKES)


def test_the_page_is_up_to_date(make) -> None:
    parts = [HEAD]
    for title, rows in CHAPTERS.items():
        parts += [f"\n## {title}\n", "| mistake | command | exit | answer |", "|---|---|---|---|"]
        for mistake in rows:
            code, text = make(mistake)
            shown = "<br>".join(f"`{_cell(line)}`" for line in text.splitlines())
            parts.append(f"| {mistake.what} | `{_cell(mistake.command)}` | {code} | {shown} |")
    page = "\n".join(parts) + "\n"
    if os.environ.get("EFFDET_WRITE_PAGE"):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page


def _cell(text: str) -> str:
    """Text as code in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("`", "'")
