"""The ops written out naively, with Python loops and float64: what the real ones are held to."""

import math

import numpy as np


def linear(x, weight, bias):
    """y[..., m] = sum_k x[..., k] weight[m, k] + bias[m]."""
    y = np.zeros((*x.shape[:-1], len(weight)))
    for place in np.ndindex(y.shape):
        *row, m = place
        total = sum(float(x[(*row, k)]) * float(weight[m, k]) for k in range(weight.shape[1]))
        y[place] = total + (0.0 if bias is None else float(bias[m]))
    return y


def conv2d(x, weight, bias, stride, padding):
    """Cross-correlation; a place outside the image counts as zero. Integer arrays give exact integers."""
    n, _, height, width = x.shape
    m, channels, kh, kw = weight.shape
    h_out, w_out = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    y = np.zeros((n, m, h_out, w_out), object)
    for b, f, i, j in np.ndindex(y.shape):
        total = 0 if bias is None else bias[f].item()
        for c, di, dj in np.ndindex(channels, kh, kw):
            row, column = i * stride + di - padding, j * stride + dj - padding
            if 0 <= row < height and 0 <= column < width:
                total += x[b, c, row, column].item() * weight[f, c, di, dj].item()
        y[b, f, i, j] = total
    return y


def pool2d(x, size, stride, reduce):
    """``reduce`` (a function of a list) over each whole window."""
    n, c, height, width = x.shape
    y = np.zeros((n, c, (height - size) // stride + 1, (width - size) // stride + 1))
    for b, k, i, j in np.ndindex(y.shape):
        y[b, k, i, j] = reduce(
            [float(x[b, k, i * stride + di, j * stride + dj]) for di in range(size) for dj in range(size)]
        )
    return y


def softmax(row):
    """Softmax of a list of floats, in exact-enough float64 with math.fsum."""
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / math.fsum(powers) for power in powers]


def attention_row(q, keys, values, heads):
    """One query (D,) over the keys and values (S, D) that it may see -> (D,); a head of keys may serve several queries."""
    d = len(q) // heads
    shared = len(q) // keys.shape[1]
    out = np.zeros(len(q))
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        of_keys = slice(head // shared * d, (head // shared + 1) * d)
        scores = [
            sum(float(a) * float(b) for a, b in zip(q[part], key[of_keys], strict=True)) / math.sqrt(d) for key in keys
        ]
        for share, value in zip(softmax(scores), values, strict=True):
            out[part] += share * value[of_keys]
    return out


def rotary(x, places, width):
    """One vector (D,) a place: each pair of a head turned by its angle, with sines and cosines written out."""
    out = np.array(x, np.float64)
    for n, t in np.ndindex(x.shape[:2]):
        for start in range(0, x.shape[2], width):
            for i in range(width // 2):
                angle = int(places[n][t]) / 10000 ** (2 * i / width)
                a, b = float(x[n, t, start + 2 * i]), float(x[n, t, start + 2 * i + 1])
                out[n, t, start + 2 * i] = a * math.cos(angle) - b * math.sin(angle)
                out[n, t, start + 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(q, k, v, heads, causal):
    """Whole attention (N, T, D); causal: place t sees places 0..t."""
    out = np.zeros(q.shape)
    for n, t in np.ndindex(q.shape[:2]):
        seen = slice(0, t + 1 if causal else q.shape[1])
        out[n, t] = attention_row(q[n, t], k[n, seen], v[n, seen], heads)
    return out
