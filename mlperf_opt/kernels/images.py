"""Images: the way between numpy's (C, H, W) and the channels-last layout of the kernels, and pooling.

Channels-last: pixel (h, w) at ``h * line_step + w * C * size``, its C values side by side. A halo of zeros (of the code that
stands for 0, for uint8) around an image is the padding of the convolution that reads it; who writes an image leaves it.
"""

from __future__ import annotations

import numpy as np

from mlperf_opt.kernels.elementwise import quantize_row
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.instruction import field, operand
from mlperf_opt.kernels.jit import operation
from mlperf_opt.kernels.opcodes import DONE
from mlperf_opt.kernels.simd import (
    add,
    bytes_of,
    divide,
    floats,
    larger_bytes,
    largest_or_nan,
    load_bytes,
    load_float,
    load_floats,
    load_int32,
    store_float,
    store_some_bytes,
    store_some_floats,
)

# fields, behind the opcode
X, OUT, X_STEP, OUT_STEP, CHANNELS, LINES, PIXELS, X_LINE_STEP, OUT_LINE_STEP = range(1, 10)
SCALE, ZERO, PER_ROW, IMAGE_BYTES = 10, 11, 12, 13  # quantize_image
SIZE, STRIDE, BYTES = 10, 11, 12  # pooling
_NONE = np.float32(0)


@operation()
def pack_image(instruction, memories, rows):
    """(C, H, W) -> channels-last."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    channels, lines, pixels = field(instruction, CHANNELS), field(instruction, LINES), field(instruction, PIXELS)
    for _ in range(rows):
        for channel in range(channels):
            for line in range(lines):
                source = x + 4 * pixels * (channel * lines + line)
                target = out + line * field(instruction, OUT_LINE_STEP) + 4 * channel
                for pixel in range(pixels):
                    store_float(target + 4 * channels * pixel, load_float(source + 4 * pixel))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def unpack_image(instruction, memories, rows):
    """Channels-last -> (C, H, W)."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    channels, lines, pixels = field(instruction, CHANNELS), field(instruction, LINES), field(instruction, PIXELS)
    for _ in range(rows):
        for channel in range(channels):
            for line in range(lines):
                source = x + line * field(instruction, X_LINE_STEP) + 4 * channel
                target = out + 4 * pixels * (channel * lines + line)
                for pixel in range(pixels):
                    store_float(target + 4 * pixel, load_float(source + 4 * channels * pixel))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def quantize_image(instruction, memories, rows):
    """float32 -> uint8, line by line. Where each image has its own zero point, its halo is written too."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    scale, zero = operand(instruction, SCALE, memories), operand(instruction, ZERO, memories)
    per_row = field(instruction, PER_ROW)
    count = field(instruction, CHANNELS) * field(instruction, PIXELS)
    for row in range(rows):
        factor, nought = load_float(scale + 4 * per_row * row), load_int32(zero + 4 * per_row * row)
        if per_row:
            for i in range(0, field(instruction, IMAGE_BYTES), LANES):
                start = (
                    operand(instruction, OUT, memories)
                    - field(instruction, BYTES_BEFORE)
                    + row * field(instruction, OUT_STEP)
                )
                store_some_bytes(start + i, field(instruction, IMAGE_BYTES) - i, bytes_of(nought))
        for line in range(field(instruction, LINES)):
            quantize_row(
                x + line * field(instruction, X_LINE_STEP),
                out + line * field(instruction, OUT_LINE_STEP),
                count,
                factor,
                nought,
            )
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


BYTES_BEFORE = 14  # from the start of an image to its first pixel inside the halo


@operation()
def max_pool(instruction, memories, rows):
    """The largest of each window, of float32 or of codes."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    channels, size, stride = field(instruction, CHANNELS), field(instruction, SIZE), field(instruction, STRIDE)
    x_line, width = field(instruction, X_LINE_STEP), field(instruction, BYTES)
    pixel_step = channels * width
    for _ in range(rows):
        for line in range(field(instruction, LINES)):
            for pixel in range(field(instruction, PIXELS)):
                window = x + line * stride * x_line + pixel * stride * pixel_step
                target = out + line * field(instruction, OUT_LINE_STEP) + pixel * pixel_step
                for c in range(0, channels, LANES):
                    if width == 1:
                        best = load_bytes(window + c)
                        for i in range(size):
                            for j in range(size):
                                best = larger_bytes(best, load_bytes(window + i * x_line + j * pixel_step + c))
                        store_some_bytes(target + c, channels - c, best)
                    else:
                        top = load_floats(window + 4 * c)
                        for i in range(size):
                            for j in range(size):
                                top = largest_or_nan(top, load_floats(window + i * x_line + j * pixel_step + 4 * c))
                        store_some_floats(target + 4 * c, channels - c, top)
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def average_pool(instruction, memories, rows):
    """The mean of each window."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    channels, size, stride = field(instruction, CHANNELS), field(instruction, SIZE), field(instruction, STRIDE)
    x_line, pixel_step = field(instruction, X_LINE_STEP), 4 * channels
    for _ in range(rows):
        for line in range(field(instruction, LINES)):
            for pixel in range(field(instruction, PIXELS)):
                window = x + line * stride * x_line + pixel * stride * pixel_step
                target = out + line * field(instruction, OUT_LINE_STEP) + pixel * pixel_step
                for c in range(0, channels, LANES):
                    total = floats(_NONE)
                    for i in range(size):
                        for j in range(size):
                            total = add(total, load_floats(window + i * x_line + j * pixel_step + 4 * c))
                    mean = divide(total, floats(np.float32(size * size)))
                    store_some_floats(target + 4 * c, channels - c, mean)
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE
