import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid.errors import DataError
from vla.text import SPECIAL_TOKENS, byte_tokenizer, encode_texts, tokenizer_from_json, tokenizer_to_json

TOKENIZER = byte_tokenizer()


@given(st.text(max_size=20))
def test_every_text_has_tokens_and_only_bytes_and_specials(text):
    ids, mask = encode_texts(TOKENIZER, [text], 128)
    assert ids.shape == mask.shape == (1, 128)
    assert ids[0, 0] == SPECIAL_TOKENS.index("<bos>")
    assert (ids[~mask] == 0).all()
    assert ids.max() < TOKENIZER.get_vocab_size() == 256 + len(SPECIAL_TOKENS)


def test_one_token_a_byte_and_back():
    ids, mask = encode_texts(TOKENIZER, ["  Push the BÜTTON "], 32)
    assert mask.sum() == 1 + len("push the bütton".encode())
    assert TOKENIZER.decode(ids[0][mask[0]].tolist()) == "push the bütton"


def test_long_texts_are_cut_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        _, mask = encode_texts(TOKENIZER, ["abcdefgh", "ab"], 4)
    assert mask.sum(1).tolist() == [4, 3]
    assert "9 is cut to 4" in caplog.text.replace("tokens ", "")
    assert len(caplog.records) == 1


def test_json_round_trip_is_exact_and_repeatable():
    text = tokenizer_to_json(TOKENIZER)
    assert text == tokenizer_to_json(byte_tokenizer())
    again = tokenizer_from_json(text, "here")
    assert tokenizer_to_json(again) == text
    assert (encode_texts(again, ["abc"], 8)[0] == encode_texts(TOKENIZER, ["abc"], 8)[0]).all()


def test_a_file_that_is_no_tokenizer_is_refused():
    with pytest.raises(DataError, match=r"x\.json is not a tokenizer"):
        tokenizer_from_json("{}", "x.json")
