"""generate: how its text comes to whoever reads it."""

import io

from rich.console import Console

from mlperf_opt.commands import generate
from mlperf_opt.data.tokenizer import BpeTokenizer, CharTokenizer
from mlperf_opt.overrides import normalize, parse


def test_characters_are_shown_when_all_their_bytes_are_there():
    """Byte by byte: half a character is held back, what is none is replaced, a control character is escaped."""
    reader = generate._Reader(BpeTokenizer(()), "", "")
    shown = []
    for byte in "é😀".encode() + b"\xff" + b"\x1b[":
        reader.read(byte)
        shown.append(generate._visible(reader.take()))
    assert shown == ["", "é", "", "", "", "😀", "\ufffd", "\\x1b", "["]
    reader.read(0xC3)
    reader.finish()
    assert reader.take() == "\ufffd"


def test_what_may_begin_the_stop_text_is_held_back():
    reader = generate._Reader(CharTokenizer(" abcdn"), "abc", "and")
    shown = []
    for token in (1, 1, 5, 2, 1, 5, 4, 3):  # a a n b a n d c
        reader.read(token)
        shown.append(reader.take())
    assert shown == ["abc", "a", "", "anb", "", "", "", ""]
    assert reader.done and reader.count == 7
    reader.finish()
    assert reader.take() == ""


class _Flushed(io.StringIO):
    """Remembers what was there at every flush: what whoever waits has seen."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def flush(self):
        self.seen.append(self.getvalue())


def test_text_comes_as_it_is_generated():
    """The prompt at once, then a piece for each token."""
    file = _Flushed()
    generate.run(
        normalize(parse(["model=transformer", "length=8", "temperature=0", "prompt=ABCDEFGH|"])), Console(file=file)
    )
    seen = list(dict.fromkeys(filter(None, file.seen)))
    assert seen[:10] == [*("ABCDEFGH|" + "HGFEDCBA"[:n] for n in range(9)), "ABCDEFGH|HGFEDCBA\n\n"]


def test_what_is_not_shown_on_a_terminal_is_written_as_it_is(tmp_path):
    """A terminal gets escapes for what would move its cursor, a file the text, but for what its encoding can't hold."""
    prompt = "a\r\n\tb\x1b[31m\udcff\u20ac"
    for encoding, terminal, expected in (
        ("utf-8", False, b"a\r\n\tb\x1b[31m\\udcff\xe2\x82\xac"),
        ("latin-1", False, b"a\r\n\tb\x1b[31m\\udcff\\u20ac"),
        ("utf-8", True, b"a\\r\n\tb\\x1b[31m\\udcff\xe2\x82\xac"),
        ("ascii", True, b"a\\r\n\tb\\x1b[31m\\udcff\\u20ac"),
    ):
        with (tmp_path / "shown").open("w", encoding=encoding, newline="") as file:
            reader = generate._Reader(CharTokenizer(" ,abc"), prompt, "")
            generate._show([reader], Console(file=file, force_terminal=terminal))
        assert (tmp_path / "shown").read_bytes() == expected
