"""A small network with and without a cache, and what is right behind a row of tokens."""

from functools import cache

import numpy as np
import pytest

from mlperf_opt.data import load_data
from mlperf_opt.graph import Weight
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.runtimes import RUNTIMES

VOCABULARY, CONTEXT = 9, 8
each_runtime = pytest.mark.parametrize("runtime", list(RUNTIMES))
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@cache
def executables(runtime, positions="learned"):
    """(without a cache, with one): a small network whose logits differ much from place to place."""
    rng = np.random.default_rng(8)
    plain = MinimalTransformer(VOCABULARY, CONTEXT, 2, 8, 2, 12, positions).build("net", rng)
    noise = {name: rng.standard_normal(w.values.shape).astype(np.float32) * 0.4 for name, w in plain.weights.items()}
    plain = plain.with_weights({name: Weight(w.values + noise[name]) for name, w in plain.weights.items()})
    cached = KvCache()(plain, PassContext(load_data("reverse"), 0, RUNTIMES["numpy"])).graph
    return RUNTIMES[runtime].prepare(plain), RUNTIMES[runtime].prepare(cached)


def after(row, runtime="numpy", positions="learned"):
    """The logits behind a row of tokens, computed from scratch."""
    return executables(runtime, positions)[0](np.array([row]))[0, -1]
