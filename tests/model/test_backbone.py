from __future__ import annotations

import keras
import pytest

from effdet_tf.errors import UserError
from effdet_tf.model.backbone import SCALES, build_backbone, round_filters


@pytest.mark.parametrize(
    ("filters", "width", "expected"),
    [
        (32, 1.0, 32),
        (32, 1.1, 32),  # 35.2: to 32, 9 % down
        (24, 1.1, 24),  # 26.4
        (112, 1.1, 120),  # 123.2
        (40, 1.4, 56),
        (24, 1.4, 32),  # 33.6
        (320, 1.1, 352),
        (16, 0.3, 8),  # never below 8
        (16, 1.25, 24),  # 20 is half-way between 16 and 24
        (10, 1.15, 16),  # 11.5: 8 would be 30 % down
    ],
)
def test_channels_are_rounded_to_eights(filters, width, expected):
    assert round_filters(filters, width) == expected


def features(name, levels, **options):
    image = keras.Input((64, 64, 1))
    return {k: tuple(v.shape[1:]) for k, v in build_backbone(image, name, levels, **options).items()}


def test_levels_have_their_strides_and_channels():
    assert features("efficientnet-lite0", (3, 4, 5)) == {
        1: (32, 32, 16),
        2: (16, 16, 24),
        3: (8, 8, 40),
        4: (4, 4, 112),
        5: (2, 2, 320),
    }


def test_a_stem_without_stride_halves_every_stride():
    found = features("efficientnet-lite0", (2, 3), stem_stride=1)
    assert found == {0: (64, 64, 16), 1: (32, 32, 24), 2: (16, 16, 40), 3: (8, 8, 112)}


def test_nothing_behind_the_last_wanted_level_is_built():
    assert max(features("efficientnet-lite0", (2, 3))) == 3
    image = keras.Input((64, 64, 1))
    cut = keras.Model(image, build_backbone(image, "efficientnet-lite0", (2, 3))[3])
    assert cut.count_params() < 100_000


@pytest.mark.parametrize(
    "options", [{"levels": (6,)}, {"levels": (3, 7)}, {"levels": (5,), "stem_stride": 1}]
)
def test_a_level_out_of_reach_is_refused(options):
    with pytest.raises(UserError, match=r"efficientnet-lite0 with stem stride \d has no level [567]"):
        features("efficientnet-lite0", **options)


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'resnet50'.*efficientnet-b0.*efficientnet-lite4"):
        features("resnet50", (3,))
    assert len(SCALES) == 13
