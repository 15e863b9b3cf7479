# ruff: noqa: RUF001

import unicodedata

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from llmrs_lightning.data.text import STOP_WORDS, TextTemplate, clean
from llmrs_lightning.errors import ConfigError, DataError

FILMS = Dataset.from_dict(
    {
        "item_id": ["1", "2", "3"],
        "title": ["Toy  Story", "It", None],
        "year": [1995.0, None, float("nan")],
        "genres": [["Animation", "Comedy"], ["Horror", None], []],
    }
)


def one(template, **values):
    return TextTemplate(template, allow_empty=True).render(Dataset.from_dict({k: [v] for k, v in values.items()}))[0]


@given(st.text(), st.booleans(), st.booleans())
def test_cleaning_twice_changes_nothing(text, lowercase, stop):
    once = clean(text, lowercase, STOP_WORDS if stop else None)
    assert clean(once, lowercase, STOP_WORDS if stop else None) == once
    assert unicodedata.is_normalized("NFKC", once)
    assert once == " ".join(once.split())
    assert not any(unicodedata.category(letter) == "Cc" for letter in once)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("ﬁne\u00a0print\r\n\tnow", "fine print now"),
        ("a\x00b\ufeff", "ab"),
        ("<b>bold</b> &amp; so", "<b>bold</b> &amp; so"),
        ("  ", ""),
    ],
)
def test_cleaning(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "👨\u200d👩\u200d👧\u200d👦 ❤\ufe0f 👍🏽 1\ufe0f⃣ 🇩🇪",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "می\u200cخواهم",
        "क्\u200dष",
        "שָׁלוֹם עולם, مرحبا بالعالم!",
        "\u202eabc\u202c \u2067שלום\u2069",
    ],
)
def test_joiners_marks_and_directions_survive(text):
    assert clean(text) == text
    assert one("{x}", x=text) == text


def test_combining_characters_are_composed_and_widths_and_presentation_forms_levelled():
    assert clean("e\u0301 ａｂｃ ﻻ") == "é abc لا"
    assert clean("a\u200bb\u0085c") == "ab c"


def test_stop_words_go_but_a_text_of_them_stays():
    assert clean("The best of the rest, and more", stop_words=STOP_WORDS) == "best rest,"
    assert clean("It", stop_words=STOP_WORDS) == "It"
    assert clean("THE Cat", lowercase=True, stop_words=STOP_WORDS) == "cat"


def test_template_joins_lists_and_spells_whole_floats():
    texts = TextTemplate("{title} ({year}). {genres}").render(FILMS.select([0, 1]))
    assert texts == ["Toy Story (1995). Animation, Comedy", "It. Horror"]


@pytest.mark.parametrize(
    ("template", "x", "y", "text"),
    [
        ("{x} ({y})", "a", None, "a"),
        ("{x} ({y})", None, "b", "(b)"),
        ("{x} ({y}). z", "a", None, "a. z"),
        ("{x}, {y}", "a", None, "a"),
        ("{x} | {y} | z", "a", None, "a | z"),
        ("{x} - {y}", "a", None, "a"),
        ("{x}. {y}", None, "b", "b"),
        ("{x}. {y}. z", "a", None, "a. z"),
        ("{x}, {y} z", "a", None, "a, z"),
        ("({x}, {y})", "a", None, "(a)"),
        ("({x}, {y})", None, "b", "(b)"),
        ('"{x}" {y}', None, "b", "b"),
        ("{x} {y}", "a ()", "b", "a () b"),
        ("likes {x}, {y}", None, "", "unknown"),
        ("{{{x}}}", "a", None, "{a}"),
    ],
)
def test_empty_fields_leave_no_punctuation(template, x, y, text):
    assert one(template, x=x, y=y) == text


def test_values_are_spelt_plainly():
    assert one("{a} {b} {c} {d}", a=2.5, b=3, c=True, d=-0.0) == "2.5 3 True 0"


def test_case_and_stop_words():
    template = TextTemplate("The Film {title}", lowercase=True, remove_stop_words=True)
    assert template.render(Dataset.from_dict({"title": ["The Lord of the Rings"]})) == ["the film lord rings"]


def test_a_template_without_columns_is_a_constant():
    assert TextTemplate("a film").render(FILMS) == ["a film"] * 3


def test_rows_keep_their_order_across_batches():
    numbers = Dataset.from_dict({"n": list(range(2500))})
    assert TextTemplate("{n}").render(numbers) == [str(n) for n in range(2500)]


def test_unknown_columns_are_named():
    with pytest.raises(ConfigError, match="did you mean 'title'") as caught:
        TextTemplate("{titel}").render(FILMS)
    assert "genres" in str(caught.value)


@pytest.mark.parametrize("template", ["{", "}", "{}", "{0!r}", "{title:>9}", "{ }"])
def test_malformed_templates_are_refused(template):
    with pytest.raises(ConfigError, match="braces"):
        TextTemplate(template)


def test_empty_texts_are_refused_or_replaced():
    with pytest.raises(DataError, match=r"1 of 3 rows \(3\)[\s\S]*allow_empty"):
        TextTemplate("Film: {title}").render(FILMS)
    with pytest.raises(DataError, match=r"\(third\)"):
        TextTemplate("{title}").render(FILMS, ids=["first", "second", "third"])
    assert TextTemplate("{title}", allow_empty=True).render(FILMS)[2] == "unknown"
