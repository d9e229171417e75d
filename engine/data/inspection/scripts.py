"""Which scripts a text is written in, by the names that Unicode gives its letters."""

import unicodedata
from functools import cache

NO_LETTERS, OTHER = "no letters", "other"
NAMES = {"CJK": "Han"}  # where Unicode's characters have another name than their script
SCRIPTS = (
    *("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Syriac", "Thaana", "Devanagari"),
    *("Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao"),
    *("Tibetan", "Myanmar", "Khmer", "Mongolian", "Ethiopic", "Cherokee", "Han", "Hiragana", "Katakana", "Hangul"),
    "Bopomofo",
)
WIDTHS = ("FULLWIDTH", "HALFWIDTH")  # that stand before the script


def scripts_of(text: str) -> set[str]:
    """All scripts of a text's letters; "no letters" where it has none."""
    if text.isascii():
        return {"Latin"} if any(map(str.isalpha, text)) else {NO_LETTERS}
    return {script for character in set(text) if (script := script_of(character))} or {NO_LETTERS}


@cache
def script_of(character: str) -> str:
    """That of a letter; "" of anything else."""
    if not character.isalpha():
        return ""
    first, *others = unicodedata.name(character, OTHER).split()
    word = others[0] if first in WIDTHS and others else first
    script = NAMES.get(word, word.capitalize())
    return script if script in SCRIPTS else OTHER
