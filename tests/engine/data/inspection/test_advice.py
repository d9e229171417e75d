"""What is advised about texts that are cut, and about words that the vocabulary lacks."""

import pytest

from engine.data.inspection.advice import of_words

TEXTS = {
    **{"texts": 50, "longer_than_max_seq_length": 5, "unknown_pieces": 0.0},
    **{"questions": 0, "questions_without_known_answer": 0},
}
CUT = "A training cuts 5 texts (10.0%) off after 18 WordPieces"


@pytest.mark.parametrize(
    ("longest", "most", "positions", "remedy"),
    [
        (60, 90, 512, ": --max_seq_length 60 keeps 99% of all whole, for more memory and time"),
        (60, 60, 512, ": --max_seq_length 60 keeps all of them whole, for more memory and time"),
        (32, 60, 32, ": --max_seq_length 32 keeps 99% of all whole, for more memory and time"),
        (60, 60, 32, ": --max_seq_length 32 cuts less, and --bert has no more positions, for more memory and time"),
        (60, 60, 20, ""),
    ],
)
def test_no_more_is_advised_than_bert_has_positions_for(longest, most, positions, remedy):
    texts = TEXTS | {"lengths": {"99%": longest, "largest": most}}
    assert list(of_words(texts, 20, positions)) == [f"{CUT}{remedy}."]


def test_unknown_words_are_told_as_those_of_other_texts_and_not_of_another_language_alone():
    (told,) = of_words(TEXTS | {"longer_than_max_seq_length": 0, "unknown_pieces": 0.04}, 20, 512)
    assert told.startswith(
        "The vocabulary lacks 4.0% of the WordPieces, which all become [UNK]: it was made for other texts."
    )
    assert "if they are of another language, that may be bert-base-multilingual-cased" in told
