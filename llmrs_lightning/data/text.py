"""One text per user and per item: cleaned columns in a template."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from datasets import Dataset

from llmrs_lightning.data.schema import ITEM, USER
from llmrs_lightning.errors import ConfigError, DataError, listing, suggestion

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after all also am an and any are as at be because been before being both but by can could did do does
        doing down during each few for from further had has have having he her here hers him his how i if in into is it
        its just me more most my no nor not of off on once only or other our out over own same she should so some such
        than that the their them then there these they this those through to too under until up very was we were what
        when where which while who whom why will with would you your yours""",
    )
)
UNKNOWN = "unknown"

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b\ufeff]")
_BATCH = 1000

# Stands for an empty field while a template is filled in; cleaned values cannot hold it.
_EMPTY = "\x00"
_TIDY = (
    # brackets or quotes around nothing
    (re.compile(r"""[(\[{<"']\s*\x00[\s\x00,;:|/-]*[)\]}>"']"""), _EMPTY),
    # a full stop, then an empty field and its own separator
    (re.compile(r"(?<=[.!?])(?:\s*\x00\s*[.,;:|])+"), ""),
    # an empty field at the start of the text or of a bracket, with the separators after it
    (re.compile(r"(?:^|(?<=[(\[{]))\s*\x00[\s\x00.,;:|/-]*"), ""),
    # an empty field at the end or before a separator, with the separators before it
    (re.compile(r"\s*[,;:|/-]*\s*\x00(?=\s*(?:$|[\x00.,;:|/)\]}-]))"), ""),
    (re.compile(r"\x00"), ""),
)


def clean(text: str, lowercase: bool = False, stop_words: AbstractSet[str] | None = None) -> str:
    """Bring a text to Unicode's NFKC form, drop control characters, and make each run of white space one space.

    HTML is left alone: what is markup and what is text is for the data's owner to say. So are the joiners that emoji,
    Persian and Indic scripts are written with, and the marks of right-to-left text. The zero-width space goes.

    Args:
        text: Any string.
        lowercase: Whether to lower the case; an uncased tokeniser does so by itself.
        stop_words: Lower-case words to leave out, with the punctuation at them. A text of stop words only, such as
            the title "It", is kept.
    """
    text = unicodedata.normalize("NFKC", _CONTROL.sub("", text))
    if lowercase:
        text = unicodedata.normalize("NFKC", text.lower())
    words = text.split()
    if stop_words:
        words = [word for word in words if word.strip(string.punctuation).lower() not in stop_words] or words
    return " ".join(words)


@dataclass
class TextTemplate:
    """A text with columns in braces, such as "{title} ({year}). {genres}".

    Values are cleaned, lists are joined with commas, whole floats lose their ".0", and missing values are empty.
    Brackets and separators that an empty field leaves behind are removed; a row whose fields are all empty has an empty
    text, whatever else the template says.

    Args:
        template: The text; double braces stand for literal ones.
        lowercase: Whether to lower the case of the values and of the template's own words.
        remove_stop_words: Whether to drop English stop words from the values; the template's own words stay.
        allow_empty: Whether to replace empty texts by the word "unknown" rather than refuse them.
    """

    template: str
    lowercase: bool = False
    remove_stop_words: bool = False
    allow_empty: bool = False

    def __post_init__(self) -> None:
        """Parse the template.

        Raises:
            ConfigError: If the braces do not match, or hold more than a column name.
        """
        try:
            parsed = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise self._mistake(str(error)) from None
        self._pieces: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in parsed:
            if name is not None and (not name.strip() or spec or conversion):
                mark = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                raise self._mistake("{" + name + mark + "}")
            self._pieces.append((literal, None if name is None else name.strip()))

    @property
    def fields(self) -> list[str]:
        """Name the columns that the template uses, each once, in order."""
        return list(dict.fromkeys(name for _, name in self._pieces if name))

    def without(self, field: str) -> TextTemplate:
        """Return the same template with `field` empty everywhere, and texts allowed to be."""
        other = replace(self, allow_empty=True)
        other._pieces = [(text, "" if name == field else name) for text, name in self._pieces]
        return other

    def check(self, names: list[str], where: str = "") -> None:
        """Check that the columns `names` are all that the template needs.

        Raises:
            ConfigError: If one is missing; `where` says whose template it is.
        """
        for name in self.fields:
            if name not in names:
                raise ConfigError(
                    f"the template uses a column that is not there: {name!r}",
                    where=f"{where}template {self.template!r}",
                    allowed=listing(names, 40),
                    fix=suggestion(name, names),
                )

    def render(self, dataset: Dataset, ids: Sequence[object] | None = None) -> list[str]:
        """Fill the template in for each row.

        Args:
            dataset: The users or items.
            ids: Names of the rows for error messages; by default the id column if there is one, else row numbers.

        Raises:
            ConfigError: If a field is no column of the data set.
            DataError: If texts are empty and `allow_empty` is off.
        """
        self.check(dataset.column_names)
        if not self.fields:
            texts = [self._fill({}, 0)] * len(dataset)
        else:
            texts = []
            for batch in dataset.select_columns(self.fields).with_format(None).iter(batch_size=_BATCH):
                texts += [self._fill(batch, row) for row in range(len(batch[self.fields[0]]))]
        empty = [row for row, text in enumerate(texts) if not text]
        if empty and not self.allow_empty:
            raise self._empty(dataset, empty, ids)
        return [text or UNKNOWN for text in texts]

    def _fill(self, batch: dict[str, list[object]], row: int) -> str:
        stop_words = STOP_WORDS if self.remove_stop_words else None
        filled = [(text, name if not name else spelt(batch[name][row], stop_words)) for text, name in self._pieces]
        values = [value for _, value in filled if value is not None]
        if values and not any(values):
            return ""
        text = "".join(literal + ("" if value is None else value or _EMPTY) for literal, value in filled)
        if _EMPTY in text:
            for pattern, replacement in _TIDY:
                text = pattern.sub(replacement, text)
        return clean(text, self.lowercase)

    def _mistake(self, found: str) -> ConfigError:
        return ConfigError(
            "a template holds plain text and column names in braces",
            where=f"template {self.template!r}",
            found=found,
            allowed="such as '{title} ({year}). {genres}'; {{ and }} for literal braces",
        )

    def _empty(self, dataset: Dataset, rows: list[int], ids: Sequence[object] | None) -> DataError:
        if ids is not None:
            shown = [ids[row] for row in rows[:5]]
        else:
            key = next((name for name in (USER, ITEM) if name in dataset.column_names), None)
            shown = [dataset[row][key] if key else f"row {row + 1}" for row in rows[:5]]
        more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
        return DataError(
            "texts are empty",
            where=f"template {self.template!r}",
            found=f"{len(rows):,} of {len(dataset):,} rows ({listing(shown)}{more})",
            fix=f"add a column to the template, fill these rows in, or set allow_empty to use the word {UNKNOWN!r}",
        )


def spelt(value: object, stop_words: AbstractSet[str] | None = None) -> str:
    """Spell a value as templates do: missing ones empty, lists with commas, whole floats without their ".0"."""
    if value is None or value != value:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(one for part in value if (one := spelt(part, stop_words)))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return clean(str(value), stop_words=stop_words)
