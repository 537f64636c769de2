"""File-name patterns such as ``{patient}/T2/image_{id}.nii.gz``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from datamodules.errors import InputError

FIELDS = ("id", "patient", "sequence", "visit", "source")
_TOKEN = re.compile(r"\{(?P<name>[a-z]+)(?::(?P<regex>[^{}]+))?\}|(?P<star>\*)|(?P<stray>[{}])")


class Pattern:
    """A pattern for relative paths: text, fields in braces, and ``*`` for anything within a name.

    A field stands for a part of one path component, never for a slash. ``{id:[0-9]+}`` restricts
    what a field may be by a regular expression. A field that occurs twice stands for the same text.

    Args:
        text: The pattern.
        option: What errors call it (``--image``).

    Raises:
        InputError: An unknown field, a stray brace, a broken expression, or no field at all.

    Attributes:
        fields: The fields, in order of their first occurrence.
        depth: How many path components a match has.
        literal_length: How many characters stand outside fields: a measure of strictness.
    """

    def __init__(self, text: str, option: str) -> None:
        self.text = unicodedata.normalize("NFC", text.removeprefix("./"))
        self.option = option
        self.depth = self.text.count("/") + 1
        faults = []
        fields: list[str] = []
        greedy = lazy = ""
        at = 0
        for token in _TOKEN.finditer(self.text):
            literal = re.escape(self.text[at : token.start()])
            greedy, lazy, at = greedy + literal, lazy + literal, token.end()
            name, regex = token["name"], token["regex"]
            if token["star"]:
                greedy, lazy = greedy + "[^/]*", lazy + "[^/]*?"
            elif token["stray"] or name not in FIELDS:
                known = ", ".join(f"{{{field}}}" for field in FIELDS)
                faults.append(f"{option} {text!r}: {token[0]!r} is no field; the fields are {known}")
            elif name in fields:
                greedy, lazy = f"{greedy}(?P={name})", f"{lazy}(?P={name})"
            else:
                fields.append(name)
                greedy += f"(?P<{name}>{regex or '[^/]+'})"
                lazy += f"(?P<{name}>{regex or '[^/]+?'})"
        if not fields and not faults:
            faults.append(f"{option} {text!r}: holds no field; write for example 'image_{{id}}.nii.gz'")
        if faults:
            raise InputError(*faults)
        rest = re.escape(self.text[at:])
        try:
            self._greedy, self._lazy = re.compile(greedy + rest), re.compile(lazy + rest)
        except re.error as error:
            raise InputError(f"{option} {text!r}: not a regular expression ({error}); correct it") from error
        self.fields = tuple(fields)
        self.literal_length = len(_TOKEN.sub("", self.text))

    def match(self, path: str) -> dict[str, str] | None:
        """The fields' values in a relative path, Unicode composed; None where it does not match.

        Raises:
            InputError: The path can be read in two ways.
        """
        text = unicodedata.normalize("NFC", path)
        first, second = self._greedy.fullmatch(text), self._lazy.fullmatch(text)
        if first is None or second is None:
            return None
        if first.groupdict() != second.groupdict():
            raise InputError(
                f"{path}: matches {self.option} {self.text!r} in two ways, {_said(first.groupdict())} or "
                f"{_said(second.groupdict())}; restrict a field, such as {{id:[0-9]+}}"
            )
        return first.groupdict()

    def filled(self, values: Mapping[str, str]) -> str:
        """The pattern with these fields replaced by their values; other fields stay as they are."""
        return _TOKEN.sub(lambda token: values.get(token["name"] or "", token[0]), self.text)


def patient_pattern(text: str, option: str) -> Pattern:
    """A pattern that finds the patient, and perhaps the visit, in a case's name.

    Raises:
        InputError: It is no pattern, or holds other fields.
    """
    pattern = Pattern(text, option)
    if "patient" not in pattern.fields or set(pattern.fields) - {"patient", "visit"}:
        raise InputError(f"{option} {text!r}: must hold {{patient}}, and of the others {{visit}} at most")
    return pattern


def _said(values: dict[str, str]) -> str:
    return " ".join(f"{name}={value!r}" for name, value in values.items())
