import math

import numpy as np
import pytest
from PIL import Image

from engine.data.images.transforms import (
    aspect_ratio_bins,
    aspect_ratio_group,
    canvas_size,
    centre,
    padding,
    placement,
    resize_and_pad,
    resized_size,
    stack_images,
)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((640, 480), (512, 384)),
        ((480, 640), (384, 512)),
        ((384, 384), (384, 384)),
        ((100, 100), (384, 384)),
        ((1280, 640), (640, 320)),
        ((640, 1280), (320, 640)),
        ((1920, 1080), (640, 360)),
        ((1000, 500), (640, 320)),
        ((1001, 1000), (384, 384)),
        ((1000, 400), (640, 256)),
    ],
    ids=lambda size: f"{size[0]}x{size[1]}",
)
def test_short_side_becomes_the_minimum_unless_the_long_side_would_pass_the_maximum(size, resized):
    assert resized_size(size, 384, 640) == resized


def test_transposed_image_gets_the_transposed_size():
    for width in range(50, 800, 37):
        for height in range(50, 800, 41):
            assert resized_size((height, width), 384, 640) == resized_size((width, height), 384, 640)[::-1]


def test_long_side_passes_the_maximum_by_rounding_only():
    longest = 0
    for width in range(641, 1500, 7):
        for height in range(100, width, 11):
            long, short = resized_size((width, height), 384, 640)
            # Rounding moves the short side by half a pixel at most, the long side by that times the ratio.
            assert long <= 640 + 0.5 * width / height
            assert short <= 384
            longest = max(longest, long)
    assert longest > 640  # so the case that padding has to crop does occur


@pytest.mark.parametrize(("landscape", "canvas"), [(True, (640, 384)), (False, (384, 640))])
def test_canvas_lies_as_the_image_does(landscape, canvas):
    assert canvas_size(landscape, 384, 640) == canvas


@pytest.mark.parametrize(
    ("size", "borders"),
    [
        ((10, 6), (0, 0, 0, 0)),
        ((8, 4), (1, 1, 1, 1)),
        ((7, 5), (2, 1, 1, 0)),
        ((13, 6), (-1, 0, -2, 0)),
    ],
    ids=["fits", "even", "odd_goes_left_and_top", "too_wide_is_cropped"],
)
def test_borders_centre_and_fill_the_canvas(size, borders):
    left, top, right, bottom = padding(size, (10, 6))
    assert (left, top, right, bottom) == borders
    assert (left + size[0] + right, top + size[1] + bottom) == (10, 6)


def white(width, height):
    return Image.new("RGB", (width, height), "white")


@pytest.mark.parametrize(
    ("size", "shape", "box"),
    [
        ((20, 12), (3, 12, 20), (0, 0, 20, 12)),
        ((16, 12), (3, 12, 20), (2, 0, 18, 12)),
        ((12, 16), (3, 20, 12), (0, 2, 12, 18)),
        ((12, 12), (3, 20, 12), (0, 4, 12, 16)),
        ((40, 8), (3, 12, 20), (0, 4, 20, 8)),
    ],
    ids=["fills", "landscape", "portrait", "square_is_a_portrait", "very_wide"],
)
def test_image_is_centred_on_black(size, shape, box):
    pixels = resize_and_pad(white(*size), 12, 20)
    left, top, right, bottom = box
    expected = np.zeros(shape, dtype=np.uint8)
    expected[:, top:bottom, left:right] = 255
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, expected)


def test_image_of_the_canvas_size_keeps_its_pixels_channels_first():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    assert np.array_equal(resize_and_pad(Image.fromarray(pixels), 12, 20), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(mode):
    assert resize_and_pad(white(20, 12).convert(mode), 12, 20).min() == 255


def test_nearly_square_landscape_is_a_portrait_only_under_the_parity_option():
    image = white(1001, 1000)
    assert resize_and_pad(image, 12, 20).shape == (3, 12, 20)
    assert resize_and_pad(image, 12, 20, orient_after_resize=True).shape == (3, 20, 12)


def test_too_long_a_side_is_cropped_in_the_middle():
    size = resized_size((1407, 107), 384, 640)
    assert size[0] > 640
    assert resize_and_pad(white(1407, 107), 384, 640).shape == (3, 384, 640)


@pytest.mark.parametrize("orient_after_resize", [False, True])
@pytest.mark.parametrize("size", [(1001, 1000), (640, 480), (480, 640), (1407, 107), (30, 30)], ids=str)
def test_image_resized_before_is_placed_as_the_original_and_not_resized_again(size, orient_after_resize):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    resized = image.resize(resized_size(size, 12, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(
        resize_and_pad(resized, 12, 20, orient_after_resize=orient_after_resize, original=size),
        resize_and_pad(image, 12, 20, orient_after_resize=orient_after_resize),
    )


def test_image_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(ValueError, match="2000 x 1 pixels are too narrow for 12 x 20"):
        placement((2000, 1), 12, 20)


@pytest.mark.parametrize("size", [(5, 3), (4, 2), (9, 2), (2, 7), (9, 7), (8, 8)], ids=str)
def test_centring_is_what_pasting_does(size):
    pixels = np.random.default_rng(0).integers(1, 256, (size[1], size[0], 3), dtype=np.uint8)
    left, top, _, _ = padding(size, (5, 3))
    pasted = Image.new("RGB", (5, 3))
    pasted.paste(Image.fromarray(pixels), (left, top))
    centred = centre(pixels, (5, 3))
    assert np.array_equal(centred, np.asarray(pasted).transpose(2, 0, 1))
    assert centred.flags.c_contiguous


def test_stack_crops_and_fills_to_the_first_image():
    first, other = np.full((3, 2, 4), 1, dtype=np.uint8), np.full((3, 4, 2), 2, dtype=np.uint8)
    batch = stack_images([first, other])
    assert batch.dtype == np.uint8
    assert np.array_equal(batch[0], first)
    assert np.array_equal(batch[1], np.broadcast_to([2, 2, 0, 0], (3, 2, 4)))


@pytest.mark.parametrize("factor", [0, 1, 5])
def test_factor_makes_two_more_groups_than_twice_itself(factor):
    bins = aspect_ratio_bins(factor)
    assert bins == sorted(bins)
    assert {aspect_ratio_group(ratio, bins) for ratio in np.geomspace(0.1, 10, 999)} == set(range(2 * factor + 2))


def test_edges_are_powers_of_two_from_a_half_to_two():
    bins = aspect_ratio_bins(5)
    assert bins[0] == 0.5
    assert bins[5] == 1.0
    assert bins[10] == 2.0
    # linspace, power and log2 round once each, to numbers of at most 1; a difference adds two of those up.
    assert np.allclose(np.diff(np.log2(bins)), 0.2, rtol=0, atol=6 * np.finfo(float).eps)


@pytest.mark.parametrize("factor", [0, 1, 5])
def test_square_is_grouped_with_portraits(factor):
    bins = aspect_ratio_bins(factor)
    assert aspect_ratio_group(1.0, bins) == aspect_ratio_group(1.0001, bins)
    assert aspect_ratio_group(math.nextafter(1.0, 0.0), bins) == aspect_ratio_group(1.0, bins) - 1
