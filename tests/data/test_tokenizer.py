"""Tokenizers: what is encoded is decoded, ids follow from the definition, and plain data makes the same tokenizer again."""

import re
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.data import tokenizer_from_data
from mlperf_opt.data.tokenizer import BpeTokenizer, CharTokenizer, learn_characters, learn_pairs
from mlperf_opt.errors import ConfigError, DataError

TEXT = "the cat sat on the mat, the other cat thought that the hat was the best: thé “chat”, 12 chats 345\n\n" * 8
PAIRS = learn_pairs([TEXT.encode()], 300)


@given(st.text(alphabet="ab é😀\n", max_size=60))
def test_characters_come_back(text):
    tokenizer = CharTokenizer("\n abé😀")
    ids = tokenizer.encode(text)
    assert ids.tolist() == ["\n abé😀".index(c) for c in text] and ids.dtype == np.int64
    assert tokenizer.decode(ids) == text.encode()


@pytest.mark.parametrize("text, place", [("abc", 2), ("é", 0), ("aa\x00", 2), ("a😀", 1)])
def test_a_character_without_a_token_is_named(text, place):
    with pytest.raises(DataError, match=re.escape(f"{text[place]!r} at character {place} is none of the 2 that")):
        CharTokenizer("ab").encode(text)


def test_characters_are_learned_in_order_from_all_parts():
    assert learn_characters(["cab", "", "bd\n"]).symbols == "\nabcd"
    with pytest.raises(DataError, match="1 to 65536 characters"):
        learn_characters([])


@given(st.binary(max_size=200))
def test_any_bytes_come_back(data):
    ids = PAIRS.encode_bytes(data)
    assert PAIRS.decode(ids) == data
    assert all(0 <= i < 300 for i in ids)


@given(st.text(max_size=80))
def test_any_text_comes_back(text):
    assert PAIRS.decode(PAIRS.encode(text)).decode() == text


def test_ten_thousand_random_byte_strings_come_back():
    rng = np.random.default_rng(0)
    strings = [rng.bytes(int(rng.integers(0, 40))) for _ in range(10_000)]
    assert [s for s in strings if PAIRS.decode(PAIRS.encode_bytes(s)) != s] == []


WORDS = rb" ?[A-Za-z\x80-\xff]{1,1024}| ?[0-9]{1,1024}| ?[^A-Za-z\x80-\xff0-9\s]{1,1024}|\s{1,1024}"


def _pairs(word):
    return list(pairwise(word))


def _merge(word, pair, joined):
    """Join each occurrence of a pair, from the left."""
    found, i = [], 0
    while i < len(word):
        both = word[i : i + 2] == list(pair)
        found.append(joined if both else word[i])
        i += 2 if both else 1
    return found


def _by_the_book(tokenizer, data):
    """Encode as Sennrich et al. do: in each word the pair learned first is joined, again and again."""
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(tokenizer.merges)))}
    found = []
    for match in re.finditer(WORDS, data):
        word = list(match[0])
        while known := [pair for pair in _pairs(word) if pair in ranks]:
            pair = min(known, key=ranks.get)
            word = _merge(word, pair, ids[tokenizer.tokens[pair[0]] + tokenizer.tokens[pair[1]]])
        found += word
    return found


@given(
    st.lists(st.sampled_from(["the ", "chat", " thought", "12", "é", "“", ", ", "\n\n", "  ", "xq", "\t a"]), max_size=12)
)
def test_encoding_joins_pairs_in_the_order_they_were_learned(parts):
    data = "".join(parts).encode()
    assert PAIRS.encode_bytes(data).tolist() == _by_the_book(PAIRS, data)


@pytest.mark.parametrize("start", [b"ba", b" ba", b"17", b"+-", b"\t\n", "é".encode()])
def test_a_word_without_an_end_is_cut(start):
    """The first byte stands alone, so that an odd number of the others is left in front of the cut: no pair goes over it."""
    last = start[-1]
    doubled = BpeTokenizer(((last, last), (256, 256)))
    data = start + bytes([last]) * 3000
    ids = doubled.encode_bytes(data).tolist()
    assert ids == _by_the_book(doubled, data) and doubled.decode(ids) == data
    assert len(ids) > len(start) + 750, "more than without a cut"


def test_the_pair_that_occurs_most_is_learned_first():
    counts = Counter(pair for word in re.findall(WORDS, TEXT.encode()) for pair in _pairs(list(word)))
    (first, most), (_, second) = counts.most_common(2)
    assert most > second and PAIRS.merges[0] == first
    assert PAIRS.tokens[:256] == tuple(bytes([b]) for b in range(256)) and PAIRS.tokens[256] == bytes(first)


def test_frequent_words_become_one_token():
    assert len(PAIRS.encode(" the")) == 1 and len(PAIRS.encode("zq")) == 2


def test_a_text_with_too_few_pairs_is_refused():
    with pytest.raises(DataError, match="^data.vocabulary=1024: the text gives only 258 tokens of byte pairs"):
        learn_pairs([b"abc"], 1024)


def test_bytes_of_a_command_line_that_are_no_text_come_back():
    given_by_a_shell = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
    assert PAIRS.decode(PAIRS.encode(given_by_a_shell)) == b"caf\xe9 \xff"


def test_the_same_bytes_joined_in_two_ways_are_one_token():
    tokenizer = BpeTokenizer(((97, 98), (98, 99), (256, 99), (97, 257)))
    assert tokenizer.tokens[256:] == (b"ab", b"bc", b"abc") and tokenizer.size == 259
    assert tokenizer.decode(tokenizer.encode_bytes(b"abcab")) == b"abcab"


@pytest.mark.parametrize("tokenizer", [CharTokenizer("\nab"), PAIRS, BpeTokenizer(())], ids=["char", "bpe", "bytes"])
def test_plain_data_makes_the_same_tokenizer_again(tokenizer):
    data = tokenizer.to_data()
    assert tokenizer_from_data(data) == tokenizer and tokenizer_from_data(data).to_data() == data


@pytest.mark.parametrize(
    "data, text",
    [
        ({}, "of the kind char"),
        ({"kind": "word"}, "of the kind char"),
        ({"kind": "char", "symbols": ""}, "ascending, each once"),
        ({"kind": "char", "symbols": "ba"}, "ascending, each once"),
        ({"kind": "char", "symbols": "aa"}, "ascending, each once"),
        ({"kind": "char", "symbols": ["a"]}, "of the kind char"),
        ({"kind": "char", "symbols": "a", "more": 1}, "of the kind char"),
        ({"kind": "bpe", "merges": [[1]]}, "of the kind char"),
        ({"kind": "bpe", "merges": [[1, True]]}, "of the kind char"),
        ({"kind": "bpe", "merges": [[1, 2.0]]}, "of the kind char"),
        ({"kind": "bpe", "merges": [[1, 256]]}, "merge 0 of a tokenizer joins 1 and 256: expected ids below 256"),
        ({"kind": "bpe", "merges": [[i, i] for i in (97, *range(256, 400))]}, "merge 10 of a tokenizer: expected at most"),
        ({"kind": "bpe", "merges": [[-1, 5]]}, "merge 0 of a tokenizer joins -1 and 5"),
    ],
)
def test_data_that_describes_no_tokenizer_is_refused(data, text):
    with pytest.raises(DataError, match=re.escape(text)):
        tokenizer_from_data(data)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert BpeTokenizer(((97, 98),)).decode([256, 99]) == b"abc", "decoding needs no package"
    with pytest.raises(ConfigError, match=r"data.tokenizer=bpe needs tokenizers: pip install 'mlperf-opt\[text\]'"):
        BpeTokenizer(((97, 98),)).encode("abc")
    with pytest.raises(ConfigError, match=r"pip install 'mlperf-opt\[text\]'"):
        learn_pairs([b"abab"], 257)
