"""Text <-> token ids: by characters, and by byte pairs.

What a tokenizer knows is plain data, a small dict, and travels in the model file: whoever has the file can read what the
model writes. Only encoding with byte pairs needs the package `tokenizers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import DataError
from mlperf_opt.extras import require_installed

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Native

Array = NDArray[Any]
Kind = Literal["char", "bpe"]
BYTES = 256
MOST_TOKENS = 65_536  # ids fit two bytes
_LONGEST = 1024  # bytes of a token: a file could otherwise double them with each merge
# Bytes of a word, without its space: the time to learn grows with their square, and a text without blanks (DNA, base64)
# would be one word. What is longer goes on as another word; prose with blanks has none.
_LONGEST_WORD = 1024


class Tokenizer(Protocol):
    """Attributes: ``size``, the number of tokens, whose ids are 0..size - 1."""

    @property
    def size(self) -> int: ...

    def to_data(self) -> dict[str, Any]:
        """Return what `from_data` takes: JSON-ready, the same for equal tokenizers."""
        ...

    def encode(self, text: str) -> Array:
        """Return the ids of a text, int64 (n,). Raises `DataError`, naming it, for a symbol that has no token."""
        ...

    def decode(self, ids: Iterable[int]) -> bytes:
        """Return the UTF-8 bytes that the ids stand for: a character may be spread over several tokens."""
        ...


@dataclass(frozen=True)
class CharTokenizer:
    """One token for each character that it knows.

    Attributes:
        symbols: the characters, ascending; the id is the place.
    """

    symbols: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.symbols) <= MOST_TOKENS or list(self.symbols) != sorted(set(self.symbols)):
            raise DataError(f"a tokenizer needs 1 to {MOST_TOKENS} characters, ascending, each once")

    @property
    def size(self) -> int:
        return len(self.symbols)

    def to_data(self) -> dict[str, Any]:
        return {"kind": "char", "symbols": self.symbols}

    def encode(self, text: str) -> Array:
        points = _points(text)
        ids = np.searchsorted(self._points, points)
        unknown = np.flatnonzero(self._points[np.minimum(ids, self.size - 1)] != points)
        if unknown.size:
            raise DataError(
                f"{text[unknown[0]]!r} at character {unknown[0]} is none of the {self.size} that the model knows"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        return "".join(self.symbols[i] for i in ids).encode("utf-8", "surrogatepass")

    @cached_property
    def _points(self) -> Array:
        return _points(self.symbols)


def _points(text: str) -> Array:
    """The code points of a text, int64."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


@dataclass(frozen=True)
class BpeTokenizer:
    """Byte pair encoding over bytes (Sennrich et al., arXiv:1508.07909; over bytes: Radford et al., GPT-2, 2019).

    Tokens 0..255 are the bytes, so that any text and any bytes can be written; each other token joins two before it.

    Attributes:
        merges: what is joined, in the order in which it was learned: (id, id). The same bytes may be joined in two ways.
    """

    merges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        assert self.tokens  # a property that raises where an id isn't known yet

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """The bytes of each token."""
        found = {bytes([b]): b for b in range(BYTES)}
        known = list(found)
        for place, (left, right) in enumerate(self.merges):
            if not (0 <= left < len(known) and 0 <= right < len(known)):
                raise DataError(f"merge {place} of a tokenizer joins {left} and {right}: expected ids below {len(known)}")
            joined = known[left] + known[right]
            if len(joined) > _LONGEST or len(known) > MOST_TOKENS:
                raise DataError(
                    f"merge {place} of a tokenizer: expected at most {MOST_TOKENS} tokens of {_LONGEST} bytes each"
                )
            if joined not in found:
                found[joined] = len(known)
                known.append(joined)
        return tuple(known)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def to_data(self) -> dict[str, Any]:
        return {"kind": "bpe", "merges": [list(pair) for pair in self.merges]}

    def encode(self, text: str) -> Array:
        # a command line hands over bytes that are no UTF-8 as single surrogates
        return self.encode_bytes(text.encode("utf-8", "surrogateescape"))

    def encode_bytes(self, data: bytes) -> Array:
        """Return the ids of any bytes, int64 (n,)."""
        return np.array(self._native.encode(_shown(data)).ids, np.int64)

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)

    @cached_property
    def _native(self) -> Native:
        native = _package()
        shown = [_shown(token) for token in self.tokens]
        pairs = [(shown[left], shown[right]) for left, right in self.merges]
        return _with_words(native.Tokenizer(native.models.BPE({token: i for i, token in enumerate(shown)}, pairs)))


def from_data(data: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that `Tokenizer.to_data` described. Raises `DataError` where it is none."""
    match data:
        case {"kind": "char", "symbols": str(symbols), **rest} if not rest:
            return CharTokenizer(symbols)
        case {"kind": "bpe", "merges": list(merges), **rest} if not rest and all(map(_is_pair, merges)):
            return BpeTokenizer(tuple((left, right) for left, right in merges))
    raise DataError("a tokenizer must be of the kind char, with its symbols, or bpe, with its merges")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def learn_characters(text: Iterable[str]) -> CharTokenizer:
    """Return the tokenizer of all characters that occur. Raises `DataError` for an empty text."""
    symbols: set[str] = set()
    for part in text:
        symbols.update(part)
    return CharTokenizer("".join(sorted(symbols)))


def learn_pairs(data: Iterable[bytes], vocabulary: int) -> BpeTokenizer:
    """Return the tokenizer of ``vocabulary`` tokens that joins, again and again, the pair that occurs most.

    Pairs are joined within words: a run of letters, digits or other signs, each with the space before it, or of blanks; of a
    run up to 1,024 bytes.

    Raises:
        ConfigError: the package `tokenizers` is not installed.
        DataError: the text has fewer pairs than that.
    """
    native = _package()
    trained = _with_words(native.Tokenizer(native.models.BPE()))
    trainer = native.trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        initial_alphabet=list(_shown(bytes(range(BYTES)))),
        max_token_length=_LONGEST,
    )
    trained.train_from_iterator(map(_shown, data), trainer)
    found = BpeTokenizer(tuple(_merges(trained)))
    if found.size != vocabulary:
        fewer = f"set data.vocabulary and model.vocabulary to at most {found.size}, or " if found.merges else ""
        raise DataError(
            f"data.vocabulary={vocabulary}: the text gives only {found.size} tokens of byte pairs; {fewer}give a longer text"
        )
    return found


def _merges(trained: Native) -> Iterator[tuple[int, int]]:
    import json

    model = json.loads(trained.to_str())["model"]
    ids: dict[str, int] = {_shown(bytes([b])): b for b in range(BYTES)}
    for left, right in model["merges"]:
        ids.setdefault(left + right, len(ids))
        yield ids[left], ids[right]


# The package works on text. Each byte is shown to it as a character of its own, from U+0100 on: none of these is a blank or
# a control character, which it might treat in a way of their own.
_SHIFT = 0x100


def _shown(data: bytes) -> str:
    return (np.frombuffer(data, np.uint8).astype("<u4") + _SHIFT).tobytes().decode("utf-32-le")


def _class(members: bytes) -> str:
    return "".join(f"\\x{{{_SHIFT + b:X}}}" for b in members)


def _bytes(pattern: str) -> bytes:
    return bytes(b for b in range(BYTES) if re.fullmatch(pattern.encode("latin-1"), bytes([b])))


def _with_words(native: Native) -> Native:
    package = _package()
    letters, digits, blanks = _class(_bytes("[A-Za-z\x80-\xff]")), _class(_bytes("[0-9]")), _class(_bytes(r"\s"))
    space = _class(b" ")
    run = f"{{1,{_LONGEST_WORD}}}"
    words = [f"[{space}]?[{kind}]{run}" for kind in (letters, digits, f"^{letters}{digits}{blanks}")]
    pattern = package.Regex("|".join([*words, f"[{blanks}]{run}"]))
    native.pre_tokenizer = package.pre_tokenizers.Split(pattern, behavior="isolated")
    return native


def _package() -> Any:
    """The package `tokenizers`. Raises `ConfigError` where it isn't installed."""
    require_installed("data.tokenizer=bpe", "tokenizers")
    import tokenizers
    import tokenizers.models
    import tokenizers.pre_tokenizers
    import tokenizers.trainers

    return tokenizers
