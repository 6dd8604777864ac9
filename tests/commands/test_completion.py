"""The completion scripts: shells take them, and bash completes verbs, options and files with its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from effdet_tf import cli
from effdet_tf.commands.completion import SHELLS

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    """A folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SHELLS:
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert cli.main(["completion", shell]) == 0
    return folder


def complete(script: Path, line: str, folder: Path) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    program = f"""
        source {script}
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        COMP_CWORD={len(words) - 1}
        COMP_LINE='{line}'
        COMP_POINT={len(line)}
        _shtab_effdet_tf effdet_tf '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([BASH, "-c", program], capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_its_script(shell, scripts):
    text = (scripts / shell).read_text()
    assert "predict" in text and "effdet_tf" in text
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its script was looked at, not run")
    done = subprocess.run([shell, "-n", str(scripts / shell)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("effdet_tf pre", ["predict"]),
        ("effdet_tf p", ["pack", "plate", "predict", "pseudo"]),
        ("effdet_tf convert la", ["labelmaps", "labelme"]),
        ("effdet_tf predict --over", ["--overwrite"]),
        ("effdet_tf predict ima", ["images"]),
        ("effdet_tf predict images --out fo", ["found"]),
        ("effdet_tf predict images --run ru", ["run"]),
        ("effdet_tf convert coco ima", ["images"]),
        ("effdet_tf convert livecell a b --split train2", ["train25percent", "train2percent"]),
        ("effdet_tf completion z", ["zsh"]),
    ],
)
def test_bash_completes(line, offered, scripts, tmp_path):
    for name in ("images", "found", "run"):
        (tmp_path / name).mkdir()
    assert sorted(set(complete(scripts / "bash", line, tmp_path))) == offered
