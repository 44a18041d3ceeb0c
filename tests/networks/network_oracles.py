"""The networks written out again in float64, one sample and one place at a time, as their papers describe them."""

import cmath
import math

import numpy as np


def real(graph):
    """Weight name -> its values in float64."""
    return {name: weight.values.astype(np.float64) for name, weight in graph.weights.items()}


def mlp(graph, image):
    """One image (C, H, W) -> logits of a network with layers fc1, fc2, ..."""
    weights, x = real(graph), image.astype(np.float64).reshape(-1)
    layers = len(weights) // 2
    for layer in range(1, layers + 1):
        x = weights[f"fc{layer}.weight"] @ x + weights[f"fc{layer}.bias"]
        if layer < layers:
            x = np.maximum(x, 0)
    return x


def _convolved(image, filters, bias, padding):
    """(C, H, W) and filters (M, C, k, k) -> (M, H', W'), pixel by pixel."""
    size = filters.shape[-1]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    height, width = (side - size + 1 for side in padded.shape[1:])
    out = np.empty((len(filters), height, width))
    for m in range(len(filters)):
        for i in range(height):
            for j in range(width):
                out[m, i, j] = (padded[:, i : i + size, j : j + size] * filters[m]).sum() + bias[m]
    return out


def _pooled(image):
    """The largest of each 2 x 2 pixels; a last odd row or column is left out."""
    channels, height, width = image.shape
    out = np.empty((channels, height // 2, width // 2))
    for i in range(height // 2):
        for j in range(width // 2):
            out[:, i, j] = image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return out


def cnn(graph, image, blocks, padding):
    """One image (C, H, W) -> logits: blocks of convolution, relu and pooling, then linear layers with relu between."""
    weights, x = real(graph), image.astype(np.float64)
    for block in range(1, blocks + 1):
        x = _convolved(x, weights[f"conv{block}.weight"], weights[f"conv{block}.bias"], padding)
        x = _pooled(np.maximum(x, 0))
    linear = {name: array for name, array in weights.items() if name.startswith("fc")}
    x = x.reshape(-1)
    for layer in range(1, len(linear) // 2 + 1):
        x = linear[f"fc{layer}.weight"] @ (np.maximum(x, 0) if layer > 1 else x) + linear[f"fc{layer}.bias"]
    return x


def _normed(x, gamma, beta):
    return (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * gamma + beta


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sinusoid(place, width):
    return [(math.sin, math.cos)[i % 2](place / 10000 ** ((i - i % 2) / width)) for i in range(width)]


def _turned(x, place, size):
    """Pairs of numbers as complex numbers, each turned by its own frequency (Su et al., arXiv:2104.09864, equation 15)."""
    out = []
    for i in range(0, len(x), 2):
        point = complex(x[i], x[i + 1]) * cmath.exp(1j * place * 10000 ** (-(i % size) / size))
        out += [point.real, point.imag]
    return np.array(out)


def transformer(graph, tokens, layers, heads, positions):
    """One sequence of token ids -> logits (T, V): each place looks back with plain loops."""
    w = real(graph)
    width = w["embed.table"].shape[1]
    size = width // heads

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def norm(name, x):
        return _normed(x, w[f"{name}.gamma"], w[f"{name}.beta"])

    xs = [w["embed.table"][token] for token in tokens]
    if positions != "rotary":
        places = [w["positions.table"][t] if positions == "learned" else _sinusoid(t, width) for t in range(len(tokens))]
        xs = [x + place for x, place in zip(xs, places, strict=True)]
    for layer in range(1, layers + 1):
        at = f"layer{layer}"
        ys = [norm(f"{at}.norm1", x) for x in xs]
        queries, keys, values = ([linear(f"{at}.{part}", y) for y in ys] for part in ("query", "key", "value"))
        if positions == "rotary":
            queries, keys = ([_turned(x, t, size) for t, x in enumerate(part)] for part in (queries, keys))
        shared = width // len(keys[0])  # heads of queries for each head of keys
        for t in range(len(xs)):
            seen = np.empty(width)
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                of_keys = slice(head // shared * size, (head // shared + 1) * size)
                scores = [queries[t][part] @ keys[s][of_keys] / math.sqrt(size) for s in range(t + 1)]
                shares = [math.exp(score - max(scores)) for score in scores]
                seen[part] = sum(share * values[s][of_keys] for s, share in enumerate(shares)) / sum(shares)
            xs[t] = xs[t] + linear(f"{at}.project", seen)
        xs = [x + linear(f"{at}.down", _gelu(linear(f"{at}.up", norm(f"{at}.norm2", x)))) for x in xs]
    table = w.get("logits.weight", w["embed.table"])  # tied: the embedding's own
    return np.stack([table @ norm("norm", x) + w["logits.bias"] for x in xs])
