import pytest

from engine.data.inspection.scripts import scripts_of


@pytest.mark.parametrize(
    ("text", "scripts"),
    [
        ("A dog, twice.", {"Latin"}),
        ("Ein schöner Hund", {"Latin"}),
        ("Собака", {"Cyrillic"}),
        ("собака with a ball", {"Cyrillic", "Latin"}),
        ("一只狗", {"Han"}),
        ("犬が走る", {"Han", "Hiragana"}),
        ("ﾊﾝｶｸ \uff21", {"Katakana", "Latin"}),  # half and full width
        ("مرحبا", {"Arabic"}),
        ("नमस्ते", {"Devanagari"}),
        ("\U0001d400 µ", {"other"}),  # letters that belong to no script of a language
        ("12 … 13 🐶", {"no letters"}),
        ("12", {"no letters"}),
        ("", {"no letters"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scripts_are_those_of_the_letters(text, scripts):
    assert scripts_of(text) == scripts
