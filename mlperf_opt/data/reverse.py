"""reverse: complete ``ABCDEFGH|`` with ``HGFEDCBA``. 27 symbols: A-Z are 0..25, the separator is 26.

To write the next letter a model must look at one particular earlier place, which differs at each step: content, order and
causality all matter.
"""

from __future__ import annotations

import numpy as np

from mlperf_opt.data.dataset import Dataset, Split
from mlperf_opt.data.tokenizer import CharTokenizer

SEPARATOR = 26
SYMBOLS = CharTokenizer("ABCDEFGHIJKLMNOPQRSTUVWXYZ|")
LETTERS = 8
IGNORE = -1
_TRAIN, _CALIBRATION, _TEST = 20_000, 500, 1_000


def make_reverse(seed: int = 0) -> Dataset:
    """Return the data set; all words differ, so no test word was trained on.

    The rows are word, separator, and the reversed word but its last letter: (N, 16) int64. A target is the next token from
    the separator on, -1 before it.
    """
    rng = np.random.default_rng(seed)
    wanted = _TRAIN + _CALIBRATION + _TEST
    words = np.unique(rng.integers(0, SEPARATOR, (wanted + wanted // 50, LETTERS)), axis=0)
    words = rng.permutation(words)[:wanted]
    separator = np.full((wanted, 1), SEPARATOR)
    tokens = np.concatenate([words, separator, words[:, ::-1]], axis=1)  # (N, 17)
    targets = tokens[:, 1:].copy()
    targets[:, :LETTERS] = IGNORE
    parts = (slice(0, _TRAIN), slice(_TRAIN, _TRAIN + _CALIBRATION), slice(_TRAIN + _CALIBRATION, wanted))
    train, calibration, test = (Split(tokens[part, :-1], targets[part]) for part in parts)
    return Dataset("reverse", "completion", train, calibration, test, prompt=LETTERS + 1, answer=LETTERS, tokenizer=SYMBOLS)
