"""A decoder with a cache, written out as the papers tell it: float64, one token after the other, lists of keys and values.

With a window the oldest entry behind the sinks is dropped, and keys are turned by where they stand in the list, anew for
every token (Xiao et al., arXiv:2309.17453, 3.2).
"""

import cmath
import math

import numpy as np


def _norm(x, gamma, beta):
    return (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * gamma + beta


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _turned(x, place):
    """One head, its pairs as complex numbers."""
    points = [complex(x[i], x[i + 1]) * cmath.exp(1j * place / 10000 ** (i / len(x))) for i in range(0, len(x), 2)]
    return np.array([part for point in points for part in (point.real, point.imag)])


def decode(graph, tokens, heads, *, sinks=0, window=None, keep_key=None, keep_value=None):
    """Return the logits (T, V) of one row.

    Args:
        graph: a `MinimalTransformer` without a cache.
        tokens: ids.
        heads: of the queries.
        sinks, window: of the cache; None keeps all.
        keep_key, keep_value: (layer, head, vector as computed) -> vector as kept; keys after their turn, which then stays.
    """
    w = {name: weight.values.astype(np.float64) for name, weight in graph.weights.items()}
    ops = {node.op for node in graph.nodes}
    layers = sum(node.op == "attention" for node in graph.nodes)
    width = w["embed.table"].shape[1] // heads
    caches = [[[] for _ in range(heads)] for _ in range(layers)]  # layer, head of keys -> (key, value)
    logits = []

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    for place, token in enumerate(tokens):
        x = w["embed.table"][token]
        x = x + w["positions.table"][place] if "learned_positions" in ops else x
        for layer in range(layers):
            at = f"layer{layer + 1}"
            y = _norm(x, w[f"{at}.norm1.gamma"], w[f"{at}.norm1.beta"])
            q, k, v = (linear(f"{at}.{part}", y).reshape(-1, width) for part in ("query", "key", "value"))
            seen = []
            for head, (key, value) in enumerate(zip(k, v, strict=True)):
                cache = caches[layer][head]
                if keep_key is not None:
                    key = keep_key(layer, head, _turned(key, place) if "rotary" in ops else key)  # noqa: PLW2901
                    value = keep_value(layer, head, value)  # noqa: PLW2901
                cache.append((key, value))
                if window is not None and len(cache) > sinks + window:
                    del cache[sinks]
            for head, query in enumerate(q):
                cache = caches[layer][head * len(k) // heads]
                keys = [key for key, _ in cache]
                if "rotary" in ops and keep_key is None:
                    query, keys = _turned(query, len(cache) - 1), [_turned(key, i) for i, key in enumerate(keys)]  # noqa: PLW2901
                elif "rotary" in ops:
                    query = _turned(query, place)  # noqa: PLW2901
                scores = [query @ key / math.sqrt(width) for key in keys]
                shares = [math.exp(score - max(scores)) for score in scores]
                seen.append(sum(share * value for share, (_, value) in zip(shares, cache, strict=True)) / sum(shares))
            x = x + linear(f"{at}.project", np.concatenate(seen))
            y = _norm(x, w[f"{at}.norm2.gamma"], w[f"{at}.norm2.beta"])
            x = x + linear(f"{at}.down", _gelu(linear(f"{at}.up", y)))
        logits.append(linear("logits", _norm(x, w["norm.gamma"], w["norm.beta"])))
    return np.stack(logits)
