"""text: any UTF-8 file as a stream of tokens, which a language model learns to go on with.

The file is read part by part and never held whole. Its tokens are kept in the user's cache, two bytes each, under a hash of
the file and the tokenizer's settings, and are mapped from there.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from mlperf_opt.data.dataset import Array, Dataset, Split, Stream
from mlperf_opt.data.idx import ENVIRONMENT
from mlperf_opt.data.tokenizer import BpeTokenizer, CharTokenizer, Kind, Tokenizer, from_data, learn_characters, learn_pairs
from mlperf_opt.errors import DataError
from mlperf_opt.resources import user_cache

FILE = "tinyshakespeare.txt"
_PART = 1 << 20  # bytes read at once
_HELD_OUT = 20  # the last twentieth of the bytes is the test split, the one before it the calibration split
_MOST_HELD_OUT = 1 << 20  # bytes: of a large text a twentieth would take hours to measure
_PROMPT = 16  # tokens, unless the settings say
_TOKENS, _ABOUT = ".tokens", ".json"
_VERSION = 2  # raise when the same file and settings give other tokens
_TOKEN = np.dtype("<u2")


@dataclass(frozen=True)
class _Piece:
    """A range of bytes of a file, cut between two characters."""

    path: Path
    start: int
    end: int

    def data(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            while (left := self.end - file.tell()) > 0:
                part = file.read(min(_PART, left))
                if not part:
                    raise DataError(f"{self.path} became shorter while it was read")
                yield part

    def text(self) -> Iterator[str]:
        """Yield the characters; line ends are as they are. Raises `DataError` for bytes that are no UTF-8."""
        decoder, read, decoded = codecs.getincrementaldecoder("utf-8")(), self.start, self.start
        try:
            for part in self.data():
                yield decoder.decode(part)
                read += len(part)
                # the decoder keeps the bytes of a character that has begun, and counts the place of an error from them on
                decoded = read - len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is no UTF-8 text: {error.reason} near byte {decoded + error.start}") from None


def load_text(
    root: str | None,
    *,
    path: str | None,
    tokenizer: Kind,
    vocabulary: int,
    window: int | None,
    prompt: int | None,
    answer: int,
) -> Dataset:
    """Read a text. Of its bytes the last 5 % are the test split and the 5 % before them the calibration split.

    Args:
        root: folder of data sets, in which `FILE` lies; None takes the environment variable MLPERF_OPT_DATA.
        path: the file; None for that of ``root``.
        tokenizer: char, a token for each character that occurs in the file, held-out splits included, or bpe, byte pairs
            learned from the training split alone.
        vocabulary: tokens of bpe.
        window: tokens of a sample: the model's context.
        prompt, answer: see `Dataset`; a prompt of None has `_PROMPT` tokens. Where the window has less room that prompt is
            shorter, and so is any answer.

    Returns:
        tokens: train a `Stream`; calibration and test windows (N, window) int64 side by side, in which each token of the
        split is the target once. Behind the end of a split the targets are -1.

    Raises:
        ConfigError: bpe without the package `tokenizers`.
        DataError: no file, none of UTF-8 text, too short a one, or one that shrinks while it is read.
    """
    file = _find(root, path)
    if window is None:
        raise DataError("data=text needs a model that reads tokens: data.window is its context")
    if prompt is None:
        prompt = min(_PROMPT, window - 1)
    if prompt >= window:
        raise DataError(
            f"data.prompt={prompt}: expected less than data.window={window}, the tokens that the model reads at once"
        )
    try:
        pieces = _split(file)
        digest = hashlib.sha256()
        # read as text, which refuses what is none: byte pairs would be learned from any bytes
        for part in (part for piece in pieces for part in piece.text()):
            digest.update(part.encode())
        known, tokens = _tokens(file, pieces, digest.hexdigest(), tokenizer, vocabulary)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    train, calibration, test = tokens
    _check_length(file, window, len(train), min(len(calibration), len(test)))
    return Dataset(
        "text",
        "language",
        Stream(train, window),
        _windows(train, calibration, window),
        _windows(calibration, test, window),
        prompt=prompt,
        answer=min(answer, window - prompt + 1),
        tokenizer=known,
    )


def _find(root: str | None, path: str | None) -> Path:
    if path is not None:
        file, advice = Path(path), "give data.path=FILE, any UTF-8 text"
    elif place := root or os.environ.get(ENVIRONMENT):
        file, advice = Path(place) / FILE, "put it there, or give data.path=FILE, any UTF-8 text"
    else:
        raise DataError(f"data=text needs a text: set data.path=FILE, or data.root or {ENVIRONMENT} to a folder with {FILE}")
    if not file.is_file():
        raise DataError(f"{file} is {'no file' if file.exists() else 'missing'}: {advice}")
    return file


def _split(file: Path) -> tuple[_Piece, _Piece, _Piece]:
    """Cut by position, between characters."""
    size = file.stat().st_size
    if not size:
        raise DataError(f"{file} is empty; expected a text")
    held_out = min(size // _HELD_OUT, _MOST_HELD_OUT)
    cuts = [0, size - 2 * held_out, size - held_out, size]
    with file.open("rb") as stream:
        for place in (1, 2):
            stream.seek(cuts[place])
            behind = stream.read(4)
            # the bytes 10xxxxxx go on with a character that has begun
            cuts[place] += next((i for i, byte in enumerate(behind) if byte & 0xC0 != 0x80), 0)
    train, calibration, test = (_Piece(file, start, end) for start, end in pairwise(cuts))
    return train, calibration, test


def _check_length(file: Path, window: int, train: int, held_out: int) -> None:
    """Raise `DataError` unless there are a window to train on, with the token behind it, and two of each held-out split."""
    largest = min(train, held_out) - 1
    if window > largest:
        smaller = f", or set data.window to at most {largest}" if largest >= 2 else ""
        raise DataError(
            f"{file} has {train:,} tokens to train on and {held_out:,} in a split held out, too few for data.window={window}"
            f": give a longer text{smaller}"
        )


def _windows(before: Array, tokens: Array, window: int) -> Split:
    """Return windows side by side in which each of ``tokens`` is the target once, the first after the last of ``before``."""
    count = -(-len(tokens) // window)
    inputs, targets = np.zeros(count * window, np.int64), np.full(count * window, -1, np.int64)
    inputs[0], inputs[1 : len(tokens)] = before[-1], tokens[:-1]
    targets[: len(tokens)] = tokens
    return Split(inputs.reshape(count, window), targets.reshape(count, window))


def _tokens(
    file: Path, pieces: tuple[_Piece, ...], file_sha256: str, kind: Kind, vocabulary: int
) -> tuple[Tokenizer, list[Array]]:
    """Return the tokenizer and the tokens of each piece, from the cache where they are."""
    size = vocabulary if kind == "bpe" else 0
    key = hashlib.sha256(f"{_VERSION} {file_sha256} {kind} {size}".encode()).hexdigest()[:32]
    folder = user_cache()
    place = folder / "tokens" / key if folder else None
    if place is not None and (found := _read_cache(place)) is not None:
        return found
    known: CharTokenizer | BpeTokenizer
    if kind == "char":
        known = learn_characters(part for piece in pieces for part in piece.text())
    else:
        known = learn_pairs(pieces[0].data(), vocabulary)
    with _unfinished(place) as scratch:
        named = Path(scratch.name) if isinstance(scratch.name, str) else None  # a temporary file has no name
        try:
            counts = [sum(_write(part, scratch) for part in _encode(known, piece)) for piece in pieces]
            scratch.flush()
            tokens = _mapped(scratch, counts)
            if place is not None and named is not None:
                about = json.dumps({"tokenizer": known.to_data(), "counts": counts})
                place.with_suffix(_ABOUT).write_text(about, encoding="utf-8")
                named.replace(place.with_suffix(_TOKENS))
        except BaseException:
            if named is not None:
                named.unlink(missing_ok=True)
            raise
    return known, tokens


def _unfinished(place: Path | None) -> IO[bytes]:
    """Open the file that becomes the cache, or a temporary one where there is no folder that can be written."""
    if place is not None:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            return place.with_suffix(f"{_TOKENS}.{os.getpid()}").open("w+b")
    return tempfile.TemporaryFile()


def _encode(tokenizer: CharTokenizer | BpeTokenizer, piece: _Piece) -> Iterator[Array]:
    if isinstance(tokenizer, BpeTokenizer):
        yield from map(tokenizer.encode_bytes, piece.data())
    else:
        yield from map(tokenizer.encode, piece.text())


def _write(ids: Array, file: IO[bytes]) -> int:
    file.write(ids.astype(_TOKEN).data)
    return len(ids)


def _mapped(file: IO[bytes] | Path, counts: list[int]) -> list[Array]:
    """Return the tokens of each piece. Raises `ValueError` unless the file holds so many."""
    stored = np.memmap(file, _TOKEN, mode="r")
    if stored.size != sum(counts):
        raise ValueError(f"{stored.size} tokens; expected {sum(counts)}")
    return np.split(stored.view(np.ndarray), np.cumsum(counts)[:-1])


def _read_cache(place: Path) -> tuple[Tokenizer, list[Array]] | None:
    """Return what an earlier run kept; None where nothing is, or something else."""
    with suppress(OSError, ValueError, LookupError, TypeError, DataError):
        data = json.loads(place.with_suffix(_ABOUT).read_text(encoding="utf-8"))
        return from_data(data["tokenizer"]), _mapped(place.with_suffix(_TOKENS), data["counts"])
    return None
