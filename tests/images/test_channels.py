"""Which channel of a file is taken: by number, by name, or by what the file says of its light."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from effdet_tf import cli
from effdet_tf.errors import UserError
from effdet_tf.images.read import Stack

PIXELS = np.zeros((2, 3, 40, 60), np.uint8)  # TCYX


def _ome(path: Path, **channel) -> Path:
    tifffile.imwrite(
        path, PIXELS, ome=True, photometric="minisblack", metadata={"axes": "TCYX", "Channel": channel}
    )
    return path


def _imagej(path: Path, names: list[str]) -> Path:
    labels = [f"c:{k + 1}/3 t:{t + 1}/2 - {name}" for t in range(2) for k, name in enumerate(names)]
    tifffile.imwrite(path, PIXELS, imagej=True, metadata={"axes": "TCYX", "Labels": labels})
    return path


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["DAPI", "GFP", "Phase"], 2),
        (["mCherry", "TL DIC", "Brightfield"], 1),
        (["Ph1", "488 nm", "DAPI"], 0),
        (["Hoechst 33342", "Cy5", "camera B"], 2),  # not said to be fluorescence
        (["EGFP", "Texas Red", "DAPI"], 0),  # nothing else is there
        (["a", "b", "c"], 0),
    ],
)
@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_the_one_without_a_label_is_taken(tmp_path: Path, kind: str, names: list[str], taken: int) -> None:
    path = tmp_path / "s.ome.tif"
    with Stack(_ome(path, Name=names) if kind == "ome" else _imagej(path, names)) as stack:
        assert [channel.name for channel in stack.channels] == names
        pages, left = stack.chosen(None)
        assert pages == [taken, taken + 3]
        assert left.startswith(f"channel {taken + 1} ({names[taken]}) is taken, ") and "--channel" in left
        others = [f"{k + 1} ({name})" for k, name in enumerate(names) if k != taken]
        assert ", ".join(others) + " left out" in left


def test_ome_says_it_by_the_light(tmp_path: Path) -> None:
    path = _ome(
        tmp_path / "s.ome.tif",
        Name=["one", "two", "three"],
        ContrastMethod=["Fluorescence", "Fluorescence", "Phase"],
    )
    with Stack(path) as stack:
        assert [channel.label_free for channel in stack.channels] == [False, False, True]
        assert stack.chosen(None)[0] == [2, 5]


def test_what_cannot_be_understood_of_channels_costs_no_image(tmp_path: Path, monkeypatch) -> None:
    path = _imagej(tmp_path / "s.tif", ["DAPI", "GFP", "Phase"])

    def broken(file, axes):
        raise struct.error("unpack requires a buffer of 4 bytes")

    for name in ("_ome", "_imagej", "_lsm", "_micromanager"):
        monkeypatch.setattr(f"effdet_tf.images.channels.{name}", broken)
    with Stack(path) as stack:
        assert stack.chosen(None)[0] == [0, 3] and stack.read(5).shape == (40, 60, 1)


def test_by_number_by_name_and_all(tmp_path: Path) -> None:
    with Stack(_ome(tmp_path / "s.ome.tif", Name=["DAPI", "GFP", "Phase"])) as stack:
        assert stack.chosen("2")[0] == stack.chosen(2)[0] == stack.chosen("gfp")[0] == [1, 4]
        assert stack.chosen("all") == (list(range(6)), "")
        for wrong in ("4", 0, "-1", "red"):
            with pytest.raises(
                UserError, match=r"has no channel .*; it has 1 \(DAPI\), 2 \(GFP\), 3 \(Phase\)"
            ):
                stack.chosen(wrong)
    tifffile.imwrite(tmp_path / "t.tif", PIXELS[:, 0], imagej=True, metadata={"axes": "TYX"})
    with Stack(tmp_path / "t.tif") as stack:
        assert stack.chosen(None) == stack.chosen(1) == ([0, 1], "")
        with pytest.raises(UserError, match="has one channel"):
            stack.chosen("GFP")


def test_the_command_says_what_is_left_out_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        _ome(tmp_path / "in" / f"{name}.ome.tif", Name=["DAPI", "GFP", "Phase"])
    cv2.imwrite(str(tmp_path / "in" / "plain.png"), PIXELS[0, 0])
    words = ["predict", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--formats", "table"]
    assert cli.main(words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(told) == 1 and "a.ome.tif: channel 3 (Phase) is taken, 1 (DAPI), 2 (GFP) left out" in told[0]
    assert cli.main([*words, "--overwrite", "--channel", "gfp"]) == 3
    assert "plain.png: has one channel, not gfp" in capsys.readouterr().err
