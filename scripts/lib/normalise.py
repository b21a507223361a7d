"""Text made comparable: what counts as the same answer.

The steps are those of SQuAD's official evaluation (lower case, no punctuation, no articles, single spaces), with two
more that Open-EQA's short answers need: Unicode forms are unified and number words become digits ("two" = "2").
"""

from __future__ import annotations

import functools
import re
import unicodedata

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
NUMBER_WORDS = {word: str(value) for value, word in enumerate(NUMBERS)}
WORD = re.compile(r"[^\W_]+")


def plain(text: str) -> str:
    """Unified Unicode (NFKC), folded case, single spaces. Punctuation stays: for chrF and BLEU."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """Words of any script in folded case, apostrophes and punctuation dropped: "It's" -> ["its"]."""
    return WORD.findall(plain(text).replace("'", "").replace("\u2019", ""))


@functools.lru_cache(maxsize=65536)
def normalised_words(text: str) -> tuple[str, ...]:
    """`words` without articles, number words as digits; the words as they are where nothing else is left ("A")."""
    found = [NUMBER_WORDS.get(word, word) for word in words(text)]
    return tuple(word for word in found if word not in ARTICLES) or tuple(found)


def normalised(text: str) -> str:
    """The form in which two answers are compared for equality."""
    return " ".join(normalised_words(text))


def yes_or_no(text: str) -> str | None:
    """ "yes" or "no" where the text starts with that word, else None."""
    found = normalised_words(text)
    return found[0] if found and found[0] in ("yes", "no") else None
