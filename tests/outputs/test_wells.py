"""Well, site and time in file names."""

from __future__ import annotations

import pytest

from effdet_tf.outputs.wells import Acquisition, parse_name


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("A172_Phase_A7_1_00d00h00m_1.tif", Acquisition("A7", 1, 0)),
        ("plate 3/SHSY5Y_Phase_C10_2_03d12h30m_4.tif", Acquisition("C10", 2, (3 * 24 + 12) * 60 + 30)),
        ("VID289_P24_12_01d01h01m.tif", Acquisition("P24", 12, 25 * 60 + 1)),
        ("exp_B02_3.tif", Acquisition("B2", 3, None)),
        ("B2_3", Acquisition("B2", 3, None)),
        ("X_A1_1_00d04h00m.ome.tif", Acquisition("A1", 1, 240)),
        ("exp_B2_3_1970y01m02d_00h05m.png", Acquisition("B2", 3, 24 * 60 + 5)),
        ("exp_B2_3_2021y02m31d_10h00m.png", Acquisition()),
        ("A25_1.tif", Acquisition()),  # no plate has 25 columns
        ("Q1_1.tif", Acquisition()),
        ("0140b3c8f445.png", Acquisition()),
        ("cell_type_A1.tif", Acquisition()),
        ("", Acquisition()),
    ],
)
def test_names(name, place):
    assert parse_name(name) == place
