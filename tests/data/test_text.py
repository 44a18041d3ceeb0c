"""A text as a stream of tokens: split by position, every token a target once, kept in a cache that may fail."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.data import Loader, Stream, load_data, text
from mlperf_opt.errors import DataError

SETTINGS = {"path": None, "tokenizer": "char", "vocabulary": 300, "window": 8, "prompt": 3, "answer": 5}
VERSE = "Löwen brüllen “laut” — 😀 und gähnen.\r\nSie schlafen.\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLPERF_OPT_DATA", raising=False)


def _file(tmp_path, content=VERSE * 60):
    path = tmp_path / "verse.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _load(tmp_path, content=VERSE * 60, **changed):
    return text.load_text(None, **SETTINGS | {"path": _file(tmp_path, content)} | changed)


def _targets(split):
    return split.targets[split.targets >= 0]


def _decoded(data, ids):
    return data.tokenizer.decode(ids.tolist()).decode()


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("cut", range(5))
def test_the_splits_are_the_text_in_its_order(tokenizer, cut, tmp_path):
    """Wherever the cuts fall, within a character of several bytes too."""
    content = VERSE * 60 + "é" * cut
    data = _load(tmp_path, content, tokenizer=tokenizer)
    parts = [_decoded(data, ids) for ids in (data.train.tokens, _targets(data.calibration), _targets(data.test))]
    assert "".join(parts) == content
    size = len(content.encode())
    for part, share in zip(parts, (0.9, 0.05, 0.05), strict=True):
        assert abs(len(part.encode()) - share * size) <= 8
    assert data.task == "language" and data.tokenizer.size == (len(set(content)) if tokenizer == "char" else 300)


def test_each_token_is_the_target_once_behind_the_one_before_it(tmp_path):
    data = _load(tmp_path)
    for before, split in ((data.train.tokens, data.calibration), (_targets(data.calibration), data.test)):
        assert split.inputs.shape[1] == 8 and split.inputs.dtype == split.targets.dtype == np.int64
        flat = split.inputs.reshape(-1)
        counted = split.targets.reshape(-1) >= 0
        assert flat[0] == before[-1]
        np.testing.assert_array_equal(flat[1:][counted[1:]], _targets(split)[:-1])
        assert (~counted).sum() < 8 and counted[: int(counted.sum())].all()


def test_byte_pairs_are_learned_from_the_training_split_alone(tmp_path):
    first = _load(tmp_path, "abab " * 3000 + "x" * 900, tokenizer="bpe", vocabulary=258)
    second = _load(tmp_path, "abab " * 3000 + "y" * 900, tokenizer="bpe", vocabulary=258)
    assert first.tokenizer == second.tokenizer and first.sha256 != second.sha256


@given(st.integers(1, 7), st.integers(0, 40), st.integers(1, 30), st.integers(0, 1000))
def test_windows_lie_side_by_side_until_all_was_seen(window, more, count, seed):
    stream = Stream(np.arange(window + 1 + more, dtype=np.uint16), window)
    starts = stream.draw(count, np.random.default_rng(seed))
    assert len(starts) == count and starts.min() >= 0 and starts.max() + window < len(stream.tokens)
    assert len({int(start) % window for start in starts}) == 1
    first_pass = starts[: len(stream) - 1]
    assert len(set(first_pass.tolist())) == len(first_pass)
    inputs, targets = stream.take(starts)
    np.testing.assert_array_equal(inputs, starts[:, None] + np.arange(window))
    np.testing.assert_array_equal(targets, inputs + 1)
    assert inputs.dtype == targets.dtype == np.int64


def test_windows_start_anywhere():
    stream = Stream(np.zeros(41, np.uint16), 8)
    starts = {int(s) for epoch in range(60) for x in [stream.draw(5, np.random.default_rng((0, epoch)))] for s in x}
    assert starts == set(range(33))


def test_a_loader_of_a_stream_depends_on_seed_and_epoch_alone():
    stream = Stream(np.arange(500, dtype=np.uint16), 10)

    def batches(seed, epoch, steps=0):
        return [inputs.tolist() for inputs, _ in Loader(stream, 4, seed, steps=steps).epoch(epoch)]

    assert batches(1, 2) == batches(1, 2) and batches(1, 2) != batches(1, 3) and batches(1, 2) != batches(2, 2)
    assert len(batches(0, 0)) == len(Loader(stream, 4, 0)) == 13, "49 windows of 10 with a token behind each"
    assert [len(batch) for batch in batches(0, 0, steps=40)] == [4] * 40


def test_a_text_is_tokenized_once(tmp_path, monkeypatch):
    first = _load(tmp_path)
    monkeypatch.setattr(text, "learn_characters", lambda *_: pytest.fail("the cache holds it"))
    again = _load(tmp_path)
    assert again.sha256 == first.sha256 and again.tokenizer == first.tokenizer
    assert not again.train.tokens.flags.owndata, "mapped from the cache"
    assert sorted(path.suffix for path in (tmp_path / "cache" / "mlperf_opt" / "tokens").iterdir()) == [".json", ".tokens"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"tokenizer": {"kind": "char", "symbols": "ab"}, "counts": [1, 2]}'])
@pytest.mark.parametrize("suffix", [".json", ".tokens"])
def test_a_damaged_cache_is_made_again(suffix, damage, tmp_path):
    expected = _load(tmp_path).sha256
    (path,) = (tmp_path / "cache").rglob(f"*{suffix}")
    path.write_bytes(damage)
    assert _load(tmp_path).sha256 == expected == _load(tmp_path).sha256
    assert path.stat().st_size > len(damage) or suffix == ".json"


def test_without_a_cache_it_works_all_the_same(tmp_path, monkeypatch):
    expected = _load(tmp_path).sha256
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _load(tmp_path).sha256 == expected
    monkeypatch.setattr(text, "user_cache", lambda: None)
    assert _load(tmp_path).sha256 == expected


def test_an_interrupted_reading_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "_mapped", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _load(tmp_path)
    assert list((tmp_path / "cache" / "mlperf_opt" / "tokens").iterdir()) == []


def test_another_text_under_the_same_name_is_noticed(tmp_path):
    first = _load(tmp_path).sha256
    assert _load(tmp_path, VERSE * 60 + "x").sha256 != first
    assert load_data("text", **SETTINGS | {"path": _file(tmp_path)}).sha256 == first


def test_a_path_wins_over_the_folder_and_the_folder_over_nothing(tmp_path, monkeypatch):
    (tmp_path / text.FILE).write_text("abc " * 500)
    assert text.load_text(str(tmp_path), **SETTINGS).tokenizer.symbols == " abc"
    monkeypatch.setenv("MLPERF_OPT_DATA", str(tmp_path))
    assert text.load_text(None, **SETTINGS).tokenizer.symbols == " abc"
    assert _load(tmp_path, "xyz " * 500).tokenizer.symbols == " xyz"


@pytest.mark.parametrize(
    "content, changed, message",
    [
        (b"", {}, "is empty; expected a text"),
        (b"abc\xff" * 400, {}, "is no UTF-8 text: invalid start byte near byte 3"),
        (b"abc " * 400 + b"\xe2\x82", {}, "is no UTF-8 text: unexpected end of data near byte 160"),
        (b"abc\xff" * 400, {"tokenizer": "bpe"}, "is no UTF-8 text: invalid start byte near byte 3"),
        (b"abc " * 400 + b"\xe9", {"tokenizer": "bpe"}, "is no UTF-8 text: unexpected end of data near byte 1600"),
        (b"a\xe9" * 9, {"tokenizer": "bpe", "vocabulary": 5000}, "is no UTF-8 text: invalid continuation byte near byte 1"),
        (b"", {"window": 2, "prompt": None}, "is empty; expected a text"),
        (VERSE * 60, {"window": None}, "needs a model that reads tokens"),
        (VERSE * 60, {"prompt": 8}, "data.prompt=8: expected less than data.window=8"),
    ],
)
def test_what_is_no_text_is_refused(content, changed, message, tmp_path):
    with pytest.raises(DataError, match="^[^\n]+$") as error:
        _load(tmp_path, content, **changed)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "content, changed, message",
    [
        ("abc " * 20, {}, "{} has 72 tokens to train on and 4 {}=8: give a longer text, or set data.window to at most 3"),
        ("abc " * 15, {}, "{} has 54 tokens to train on and 3 {}=8: give a longer text, or set data.window to at most 2"),
        ("abc " * 10, {}, "{} has 36 tokens to train on and 2 {}=8: give a longer text"),
        ("x" * 30, {"window": 256}, "{} has 28 tokens to train on and 1 {}=256: give a longer text"),
        ("x", {"window": 256}, "{} has 1 tokens to train on and 0 {}=256: give a longer text"),
        (
            "abc\n" * 99,
            {"tokenizer": "bpe", "vocabulary": 5000},
            "data.vocabulary=5000: the text gives only 258 tokens of byte pairs; "
            "set data.vocabulary and model.vocabulary to at most 258, or give a longer text",
        ),
        (
            "a\n" * 9,
            {"tokenizer": "bpe", "vocabulary": 257},
            "data.vocabulary=257: the text gives only 256 tokens of byte pairs; give a longer text",
        ),
    ],
)
def test_too_short_a_text_says_which_settings_it_fits(content, changed, message, tmp_path):
    with pytest.raises(DataError) as error:
        _load(tmp_path, content, **changed)
    assert str(error.value) == message.format(tmp_path / "verse.txt", "in a split held out, too few for data.window")


def test_the_largest_window_that_is_named_fits(tmp_path):
    data = _load(tmp_path, "abc " * 20, window=3, prompt=None)
    assert data.calibration.inputs.shape == data.test.inputs.shape == (2, 3) and data.prompt == 2


@pytest.mark.parametrize("part", range(1, 8))
@pytest.mark.parametrize("content, place", [(b"ab\xe2\x82x" + b"cd " * 400, 2), (b"abc " * 400 + b"\xe2\x82", 1600)])
def test_the_place_of_what_is_no_text_is_that_in_the_file(content, place, part, tmp_path, monkeypatch):
    """Wherever a part ends, within the broken character too."""
    monkeypatch.setattr(text, "_PART", part)
    with pytest.raises(DataError, match=rf"near byte {place}$"):
        _load(tmp_path, content)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    piece = text._Piece(Path(_file(tmp_path, "abcdef")), 0, 10)
    with pytest.raises(DataError, match=r"verse\.txt became shorter while it was read"):
        list(piece.data())


def test_a_missing_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="is missing: give data.path=FILE, any UTF-8 text"):
        text.load_text(None, **SETTINGS | {"path": str(tmp_path / "nowhere.txt")})
    with pytest.raises(DataError, match=r"tinyshakespeare.txt is missing: put it there, or give data\.path"):
        text.load_text(str(tmp_path), **SETTINGS)
    with pytest.raises(DataError, match=r"set data\.path=FILE, or data\.root or MLPERF_OPT_DATA"):
        text.load_text(None, **SETTINGS)
    for place in (str(tmp_path), "/dev/null"):
        with pytest.raises(DataError, match=f"{place} is no file: give data.path=FILE"):
            text.load_text(None, **SETTINGS | {"path": place})


def test_the_answer_has_the_room_that_the_window_leaves(tmp_path):
    data = _load(tmp_path, prompt=6, answer=64)
    assert (data.prompt, data.answer) == (6, 3), "the last token is never fed back"
    assert _load(tmp_path, prompt=2, answer=4).answer == 4


def test_parts_of_a_long_text_join(tmp_path, monkeypatch):
    expected = _load(tmp_path)
    monkeypatch.setattr(text, "_PART", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert _load(tmp_path).sha256 == expected.sha256


def test_of_a_large_text_so_much_is_held_out_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_MOST_HELD_OUT", 40)
    data = _load(tmp_path, "abcd" * 5000)
    assert [len(_targets(split)) for split in (data.calibration, data.test)] == [40, 40]
    assert len(data.train.tokens) == 20_000 - 80


@pytest.mark.integration
def test_a_megabyte_of_shakespeare(shakespeare):
    """1,024 tokens in under ten seconds, and the whole corpus comes back."""
    started = time.perf_counter()
    data = text.load_text(None, **SETTINGS | {"path": str(shakespeare), "tokenizer": "bpe", "vocabulary": 1024})
    assert time.perf_counter() - started < 10
    ids = np.concatenate([data.train.tokens, _targets(data.calibration), _targets(data.test)])
    assert data.tokenizer.decode(ids.tolist()) == shakespeare.read_bytes() and ids.max() < 1024
