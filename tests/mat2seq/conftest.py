"""Objects that the tests of Mat2Seq share."""

import pytest

from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Mat2SeqTokenizer:
    return Mat2SeqTokenizer()
