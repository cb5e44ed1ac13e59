"""One view from image bytes to normalised floats, compiled: the arithmetic of `views.py`, fused.

The eager operations pass over a whole batch many times; here a view stays in the core's cache from
crop to normalisation. Each view is worked on alone, by the same machine code whatever its batch.
Every step says which eager function it equals (to 1e-5; `tests/unit/data/test_fused_views.py`).

Python's own numbers are double here, so constants are float32 by name. Loops run over slices from
0 on: that is what the compiler turns into vector instructions. Nothing here holds the GIL.

Shapes: N views, M of them asked for, C channels (1 or 3), H W input, O output (square), P = O * O,
T taps, L lengths of a crop.
"""

import math
from functools import partial

import numpy as np
from numba import njit

TENSORFLOW, BILINEAR_ANTIALIAS, BICUBIC_ANTIALIAS = range(3)  # kernels of resize.py
BRIGHTNESS, CONTRAST, SATURATION, HUE, CLIP, NOTHING = range(6)  # what a jitter does, in its order

_F = np.float32
_ZERO, _HALF, _ONE, _TWO, _THREE, _FOUR, _SIX = (_F(x) for x in (0, 0.5, 1, 2, 3, 4, 6))
_TINY = _F(1e-12)
_GREY_R, _GREY_G, _GREY_B = _F(0.2989), _F(0.5870), _F(0.1140)
_PER_BYTE = _F(1 / 255)
_SMALLEST_TAP = _F(1e-8)  # of a blur; what is left out sums to less than 1e-6

# Sums may run in lanes; no value is NaN, and the sign of a zero means nothing.
_FAST_MATH = {"nnan", "nsz", "reassoc", "contract"}


def _compiled(function):
    """The function as machine code, which is kept beside this file or in the user's cache."""
    compile_ = partial(njit, nogil=True, error_model="numpy", fastmath=_FAST_MATH)
    try:
        return compile_(cache=True)(function)
    except RuntimeError:  # neither can be written to: each process compiles for itself
        return compile_()(function)


@_compiled
def draw_views(
    images,
    image_strides,
    image_M,
    view_M,
    boxes_N4,
    flips_N,
    operations_N4,
    factors_N4,
    grey_N,
    sigma_N,
    kernel,
    table_row_N2,
    pixel_LOT,
    weight_LOT,
    torchvision_colour,
    adds_brightness,
    blur_radius,
    reflects,
    mean_C,
    scale_C,
    n_taps,
    views_NCOO,
):
    """Some views of a plan, written into their places.

    Args:
        images: uint8, flat: the bytes of all images of one size.
        image_strides: bytes from one image, channel, row and column to the next.
        image_M: for each view to make, the image it is of.
        view_M: its row in what follows.
        boxes_N4: int64 (y, x, height, width).
        flips_N: bool.
        operations_N4: int64, in the order they run; see the constants above.
        factors_N4: float32, of those operations.
        grey_N: bool.
        sigma_N: float32; 0 for no blur.
        kernel: of the resize; see the constants above. For TENSORFLOW, its taps are
        table_row_N2: in these rows of the next two, for height and width of each box:
        pixel_LOT: int64, and
        weight_LOT: float32, both as `resize.tensorflow_taps` gives them.
        torchvision_colour: contrast and saturation about grey, not official.
        adds_brightness: SimCLR's first code; else it multiplies.
        blur_radius: taps on each side, at most.
        reflects: at the border of a blur; else black.
        mean_C: subtracted at the end.
        scale_C: multiplied with at the very end.
        n_taps: most taps of a resize that a box of this batch needs.
        views_NCOO: float32, contiguous.
    """
    n_channels, size = views_NCOO.shape[1], views_NCOO.shape[2]
    widest = 1
    for view in view_M:
        widest = max(widest, boxes_N4[view, 3])
    taps_y, taps_x = np.empty((size, n_taps), _F), np.empty((size, n_taps), _F)
    first_y, first_x = np.empty(size, np.int64), np.empty(size, np.int64)
    row = np.empty(widest * n_channels, _F)
    gauss = np.empty(blur_radius + 1, _F)
    padded_row = np.empty(size + 2 * blur_radius, _F)
    padded_plane = np.empty((size + 2 * blur_radius, size), _F)
    for m in range(len(view_M)):
        view = view_M[m]
        height, width = boxes_N4[view, 2], boxes_N4[view, 3]
        flip = flips_N[view]
        if kernel == TENSORFLOW:
            line_y, line_x = table_row_N2[view]
            used_y = _take_taps(
                pixel_LOT[line_y], weight_LOT[line_y], height, False, first_y, taps_y
            )
            used_x = _take_taps(pixel_LOT[line_x], weight_LOT[line_x], width, flip, first_x, taps_x)
        else:
            bicubic = kernel == BICUBIC_ANTIALIAS
            used_y = _fill_antialias_taps(height, bicubic, False, first_y, taps_y)
            used_x = _fill_antialias_taps(width, bicubic, flip, first_x, taps_x)
        for i in range(size):
            for t in range(used_y):
                taps_y[i, t] *= _PER_BYTE
        out_COO = views_NCOO[view]
        start = (
            image_M[m] * image_strides[0]
            + boxes_N4[view, 0] * image_strides[2]
            + boxes_N4[view, 1] * image_strides[3]
        )
        _resize(
            images[start:], image_strides, width, row,
            first_y, taps_y, used_y, first_x, taps_x, used_x, out_COO,
        )  # fmt: skip
        out_CP = out_COO.reshape(n_channels, size * size)
        clipped = False
        for step in range(4):
            operation, factor = operations_N4[view, step], factors_N4[view, step]
            if operation == BRIGHTNESS:
                _brightness(out_CP, factor, adds_brightness)
            elif operation == CONTRAST:
                _contrast(out_COO, factor, torchvision_colour)
            elif operation == SATURATION:
                _saturation(out_CP, factor, torchvision_colour)
            elif operation == HUE:
                _hue(out_CP, factor)
            elif operation == CLIP:
                _clip(out_CP)
            clipped = clipped or operation != NOTHING
        if grey_N[view]:
            _to_grey(out_CP)
        if not clipped:
            _clip(out_CP)
        if sigma_N[view] > _ZERO:
            radius = _fill_gauss(sigma_N[view], gauss)
            for c in range(n_channels):
                _blur(
                    out_COO[c], gauss, radius, reflects, padded_row, padded_plane,
                    mean_C[c], scale_C[c],
                )  # fmt: skip
        else:
            for c in range(n_channels):
                _normalise(out_CP[c], mean_C[c], scale_C[c])


@_compiled
def _take_taps(pixel_OT, weight_OT, length, flip, first_O, taps_OT):
    """Taps of `resize.tensorflow_taps`, from any four pixels to four side by side.

    Says where each output pixel starts to read, and its weights; returns the taps in use. Their
    steps are not computed here: a multiply-add, which the compiler is free to use, would round
    them to other entries of TensorFlow's table.
    """
    size, used = len(first_O), min(4, length)
    for o in range(size):
        first = max(0, min(pixel_OT[o, 0], length - used))
        place = size - 1 - o if flip else o
        first_O[place] = first
        for t in range(used):
            taps_OT[place, t] = _ZERO
        for t in range(4):
            taps_OT[place, pixel_OT[o, t] - first] += weight_OT[o, t]
    return used


@_compiled
def _fill_antialias_taps(length, bicubic, flip, first_O, taps_OT):
    """As `_take_taps`, for one axis of `resize._antialias_weights` and a crop that starts at 0."""
    size = len(first_O)
    scale = length / size
    stretch = _F(max(scale, 1.0))
    reach = max(scale, 1.0) * (2 if bicubic else 1)
    used = min(math.ceil(2 * reach), length)
    for o in range(size):
        centre = (o + 0.5) * scale - 0.5
        whole = math.floor(centre)
        fraction = _F(centre - whole)
        first = max(0, min(math.floor(centre - reach) + 1, length - used))
        place = size - 1 - o if flip else o
        first_O[place] = first
        total = _ZERO
        for t in range(used):
            distance = abs(_F(first + t - whole) - fraction) / stretch
            weight = _cubic(distance) if bicubic else max(_ONE - distance, _ZERO)
            taps_OT[place, t] = weight
            total += weight
        for t in range(used):
            taps_OT[place, t] /= total
    return used


@_compiled
def _cubic(distance):
    """`resize._cubic` with a = -0.5."""
    if distance < _ONE:
        return (_F(1.5) * distance - _F(2.5)) * distance * distance + _ONE
    if distance < _TWO:
        return ((_F(2.5) - _HALF * distance) * distance - _FOUR) * distance + _TWO
    return _ZERO


@_compiled
def _resize(image, strides, width, row, first_y, taps_y, used_y, first_x, taps_x, used_x, out_COO):
    """`resize.resized_crop`: down the columns of one output row, then along it."""
    n_channels, size = out_COO.shape[0], out_COO.shape[1]
    channel_stride, row_stride, column_stride = strides[1], strides[2], strides[3]
    interleaved = column_stride == n_channels
    n_planes = 1 if interleaved else n_channels
    n_values = width * n_channels if interleaved else width
    step_x = n_channels if interleaved else 1
    step_c = 1 if interleaved else width
    for y in range(size):
        for plane in range(n_planes):
            start = plane * channel_stride + first_y[y] * row_stride
            target = row[plane * n_values : (plane + 1) * n_values]
            _weigh_rows(image[start:], row_stride, taps_y[y], used_y, target)
        for c in range(n_channels):
            _weigh_columns(row[c * step_c :], step_x, first_x, taps_x, used_x, out_COO[c, y])


@_compiled
def _weigh_rows(image, row_stride, taps, used, target):
    """Sum of so many rows of bytes, each times its tap."""
    n = len(target)
    row_0 = image[:n]
    t = 1
    if used >= 4:
        row_1 = image[row_stride : row_stride + n]
        row_2 = image[2 * row_stride : 2 * row_stride + n]
        row_3 = image[3 * row_stride : 3 * row_stride + n]
        tap_0, tap_1, tap_2, tap_3 = taps[0], taps[1], taps[2], taps[3]
        for i in range(n):
            target[i] = (
                _F(row_0[i]) * tap_0
                + _F(row_1[i]) * tap_1
                + _F(row_2[i]) * tap_2
                + _F(row_3[i]) * tap_3
            )
        t = 4
    elif used >= 2:
        row_1 = image[row_stride : row_stride + n]
        tap_0, tap_1 = taps[0], taps[1]
        for i in range(n):
            target[i] = _F(row_0[i]) * tap_0 + _F(row_1[i]) * tap_1
        t = 2
    else:
        tap_0 = taps[0]
        for i in range(n):
            target[i] = _F(row_0[i]) * tap_0
    while t < used:
        row_t = image[t * row_stride : t * row_stride + n]
        tap_t = taps[t]
        for i in range(n):
            target[i] += _F(row_t[i]) * tap_t
        t += 1


@_compiled
def _weigh_columns(row, step, first_O, taps_OT, used, out_O):
    """Each output pixel the sum of its taps along the row; `step` values from pixel to pixel."""
    if used == 4:
        for o in range(len(out_O)):
            i = first_O[o] * step
            out_O[o] = (
                row[i] * taps_OT[o, 0]
                + row[i + step] * taps_OT[o, 1]
                + row[i + 2 * step] * taps_OT[o, 2]
                + row[i + 3 * step] * taps_OT[o, 3]
            )
    elif used == 2:
        for o in range(len(out_O)):
            i = first_O[o] * step
            out_O[o] = row[i] * taps_OT[o, 0] + row[i + step] * taps_OT[o, 1]
    else:
        for o in range(len(out_O)):
            i = first_O[o] * step
            total = _ZERO
            for t in range(used):
                total += row[i + t * step] * taps_OT[o, t]
            out_O[o] = total


@_compiled
def _to_unit(value):
    value = value if value > _ZERO else _ZERO
    return value if value < _ONE else _ONE


@_compiled
def _clip(out_CP):
    for c in range(len(out_CP)):
        plane = out_CP[c]
        for i in range(len(plane)):
            plane[i] = _to_unit(plane[i])


@_compiled
def _normalise(plane, mean, scale):
    for i in range(len(plane)):
        plane[i] = (plane[i] - mean) * scale


@_compiled
def _brightness(out_CP, factor, adds):
    """`colour.adjust_brightness_`."""
    times, plus = (_ONE, factor) if adds else (factor, _ZERO)
    for c in range(len(out_CP)):
        plane = out_CP[c]
        for i in range(len(plane)):
            plane[i] = _to_unit(plane[i] * times + plus)


@_compiled
def _contrast(out_COO, factor, torchvision_colour):
    """`colour.adjust_contrast_`."""
    n_channels, size = out_COO.shape[0], out_COO.shape[1]
    if torchvision_colour and n_channels == 3:
        mean = (
            _GREY_R * _mean(out_COO[0]) + _GREY_G * _mean(out_COO[1]) + _GREY_B * _mean(out_COO[2])
        )
        for c in range(n_channels):
            _stretch(out_COO[c].reshape(size * size), mean, factor)
    else:
        for c in range(n_channels):
            _stretch(out_COO[c].reshape(size * size), _mean(out_COO[c]), factor)


@_compiled
def _mean(plane_OO):
    total = 0.0  # double over rows: the mean of a large plane keeps its digits
    for y in range(len(plane_OO)):
        row = plane_OO[y]
        row_total = _ZERO
        for x in range(len(row)):
            row_total += row[x]
        total += row_total
    return _F(total / plane_OO.size)


@_compiled
def _stretch(plane, mean, factor):
    for i in range(len(plane)):
        plane[i] = _to_unit((plane[i] - mean) * factor + mean)


@_compiled
def _saturation(out_CP, factor, torchvision_colour):
    """`colour.adjust_saturation_`."""
    reds, greens, blues = out_CP[0], out_CP[1], out_CP[2]
    if torchvision_colour:
        for i in range(len(reds)):
            red, green, blue = reds[i], greens[i], blues[i]
            grey = red * _GREY_R + green * _GREY_G + blue * _GREY_B
            reds[i] = _to_unit((red - grey) * factor + grey)
            greens[i] = _to_unit((green - grey) * factor + grey)
            blues[i] = _to_unit((blue - grey) * factor + grey)
        return
    for i in range(len(reds)):
        red, green, blue = reds[i], greens[i], blues[i]
        value = max(max(red, green), blue)
        chroma = max(value - min(min(red, green), blue), _TINY)
        ratio = min(max(value, _ZERO) / chroma, factor)
        reds[i] = _to_unit((red - value) * ratio + value)
        greens[i] = _to_unit((green - value) * ratio + value)
        blues[i] = _to_unit((blue - value) * ratio + value)


@_compiled
def _hue(out_CP, turns):
    """`colour.adjust_hue_`."""
    reds, greens, blues = out_CP[0], out_CP[1], out_CP[2]
    sixths_more = _SIX * turns
    for i in range(len(reds)):
        red, green, blue = reds[i], greens[i], blues[i]
        value = max(max(red, green), blue)
        chroma = value - min(min(red, green), blue)
        is_red, is_green = value == red, value == green
        over = green - blue if is_red else (blue - red if is_green else red - green)
        base = _ZERO if is_red else (_TWO if is_green else _FOUR)
        sixths = base + over / max(chroma, _TINY) + sixths_more
        sixths -= _SIX * np.floor(sixths / _SIX)
        reds[i] = _to_unit(value - chroma * _to_unit(_TWO - abs(sixths - _THREE)))
        greens[i] = _to_unit(value - chroma * _to_unit(abs(sixths - _TWO) - _ONE))
        blues[i] = _to_unit(value - chroma * _to_unit(abs(sixths - _FOUR) - _ONE))


@_compiled
def _to_grey(out_CP):
    """`colour.to_grayscale_`."""
    reds, greens, blues = out_CP[0], out_CP[1], out_CP[2]
    for i in range(len(reds)):
        grey = reds[i] * _GREY_R + greens[i] * _GREY_G + blues[i] * _GREY_B
        reds[i] = grey
        greens[i] = grey
        blues[i] = grey


@_compiled
def _fill_gauss(sigma, gauss):
    """Half of `blur._blur_weights`' kernel, middle first; returns the radius worth the work."""
    radius = len(gauss) - 1
    total = _ZERO
    for t in range(radius + 1):
        gauss[t] = _F(math.exp(-_F(t * t) / (_TWO * sigma * sigma)))
        total += gauss[t] if t == 0 else _TWO * gauss[t]
    worth = 0
    for t in range(radius + 1):
        gauss[t] /= total
        if gauss[t] >= _SMALLEST_TAP:
            worth = t
    return worth


@_compiled
def _blur(plane_OO, gauss, radius, reflects, padded_row, padded_plane, mean, scale):
    """`blur.gaussian_blur` of one channel, clipped and normalised."""
    size = len(plane_OO)
    for y in range(size):
        row = plane_OO[y]
        middle = padded_row[radius : radius + size]
        for x in range(size):
            middle[x] = row[x]
        for t in range(1, radius + 1):
            padded_row[radius - t] = row[t] if reflects else _ZERO
            padded_row[radius + size - 1 + t] = row[size - 1 - t] if reflects else _ZERO
        _weigh_pairs_of_row(padded_row, gauss, radius, padded_plane[radius + y])
    for t in range(1, radius + 1):
        above, below = padded_plane[radius - t], padded_plane[radius + size - 1 + t]
        if reflects:
            from_above, from_below = padded_plane[radius + t], padded_plane[radius + size - 1 - t]
            for x in range(size):
                above[x] = from_above[x]
                below[x] = from_below[x]
        else:
            for x in range(size):
                above[x] = _ZERO
                below[x] = _ZERO
    for y in range(size):
        out = plane_OO[y]
        _weigh_pairs_of_rows(padded_plane, y, gauss, radius, out)
        for x in range(size):
            out[x] = (_to_unit(out[x]) - mean) * scale


@_compiled
def _weigh_pairs_of_row(padded, gauss, radius, out):
    n = len(out)
    middle = padded[radius : radius + n]
    tap = gauss[0]
    for x in range(n):
        out[x] = middle[x] * tap
    t = 1
    while t + 1 <= radius:
        left_1, right_1 = padded[radius - t : radius - t + n], padded[radius + t : radius + t + n]
        left_2 = padded[radius - t - 1 : radius - t - 1 + n]
        right_2 = padded[radius + t + 1 : radius + t + 1 + n]
        tap_1, tap_2 = gauss[t], gauss[t + 1]
        for x in range(n):
            out[x] += (left_1[x] + right_1[x]) * tap_1 + (left_2[x] + right_2[x]) * tap_2
        t += 2
    if t <= radius:
        left_1, right_1 = padded[radius - t : radius - t + n], padded[radius + t : radius + t + n]
        tap_1 = gauss[t]
        for x in range(n):
            out[x] += (left_1[x] + right_1[x]) * tap_1


@_compiled
def _weigh_pairs_of_rows(padded_plane, y, gauss, radius, out):
    n = len(out)
    middle = padded_plane[y + radius]
    tap = gauss[0]
    for x in range(n):
        out[x] = middle[x] * tap
    t = 1
    while t + 1 <= radius:
        up_1, down_1 = padded_plane[y + radius - t], padded_plane[y + radius + t]
        up_2, down_2 = padded_plane[y + radius - t - 1], padded_plane[y + radius + t + 1]
        tap_1, tap_2 = gauss[t], gauss[t + 1]
        for x in range(n):
            out[x] += (up_1[x] + down_1[x]) * tap_1 + (up_2[x] + down_2[x]) * tap_2
        t += 2
    if t <= radius:
        up_1, down_1 = padded_plane[y + radius - t], padded_plane[y + radius + t]
        tap_1 = gauss[t]
        for x in range(n):
            out[x] += (up_1[x] + down_1[x]) * tap_1
