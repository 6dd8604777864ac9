from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from effdet_tf.errors import UserError
from effdet_tf.napari_plugin.pages import pages_of


def layer(data, rgb=False, multiscale=False):
    return SimpleNamespace(name="a", data=data, rgb=rgb, multiscale=multiscale)


def test_an_image_is_read_as_it_is():
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    pages = pages_of(layer(pixels))
    assert (len(pages), pages.lead, pages.size) == (1, (), (3, 4))
    assert pages.read(0).dtype == np.uint16 and (pages.read(0) == pixels).all()


def test_colours_are_no_pages_and_alpha_is_dropped():
    pixels = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    pages = pages_of(layer(pixels, rgb=True))
    assert (len(pages), pages.size) == (1, (3, 4))
    assert (pages.read(0) == pixels[..., :3]).all()


def test_a_stack_is_read_page_by_page():
    class Lazy:
        shape = (7, 3, 4)
        asked: list[int] = []

        def __getitem__(self, number):
            self.asked.append(number)
            return np.full((3, 4), number, np.uint8)

    pages = pages_of(layer(Lazy()))
    assert (len(pages), pages.lead, pages.size) == (7, (7,), (3, 4))
    assert (pages.read(5) == 5).all() and Lazy.asked == [5]


def test_the_full_resolution_of_a_pyramid_is_taken():
    pages = pages_of(layer([np.zeros((8, 8)), np.zeros((4, 4))], multiscale=True))
    assert pages.size == (8, 8)


@pytest.mark.parametrize("rgb", [False, True])
def test_pages_along_several_axes_are_counted_through(rgb):
    lead = (2, 3, 4)
    values = np.arange(24, dtype=np.uint8).reshape(lead)
    data = np.broadcast_to(values.reshape(*lead, 1, 1, *[1] * rgb), (*lead, 5, 6, *[3] * rgb))
    pages = pages_of(layer(data, rgb))
    assert (len(pages), pages.lead, pages.size) == (24, lead, (5, 6))
    assert [int(pages.read(k).max()) for k in range(24)] == list(range(24))
    broken = data.astype(np.float32)
    broken[1, 0, 2] = np.inf
    with pytest.raises(UserError, match="^a, page 1, 0, 2: .*not finite"):
        pages_of(layer(broken, rgb)).read(14)


@pytest.mark.parametrize(("shape", "rgb"), [((5,), False), ((5, 3), True), ((0, 5, 5), False)])
def test_what_is_no_image_is_one_clear_line(shape, rgb):
    with pytest.raises(UserError, match=r"^a: has the shape .*, an image has at least two axes"):
        pages_of(layer(np.zeros(shape), rgb))


def test_a_value_that_is_not_finite_is_told_with_its_page():
    data = np.zeros((2, 4, 4))
    data[1, 0, 0] = np.nan
    assert pages_of(layer(data)).read(0).shape == (4, 4)
    with pytest.raises(UserError, match="^a, page 1: .*not finite"):
        pages_of(layer(data)).read(1)
