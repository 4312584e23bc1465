"""A request held against AWS's own service model, all of it, before anything is sent.

botocore checks that required members are there and roughly of their types. Enums, patterns,
lengths and ranges are in the same model, and stay unchecked until the service refuses the first of
them, minutes later in a pipeline. `request_problems` walks a request over the model's shapes and
names everything that is wrong with it at once, each with its path.

Patterns are written for Java. `java_pattern` translates them; one that it cannot translate is
logged by name, and its values are held against all else.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import botocore

from feast_dynamo_ext import aws as aws_access
from feast_dynamo_ext.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

logger = logging.getLogger(__name__)

MOST_SHOWN_CHARS = 60
MOST_NAMES = 12
BITS = {"integer": 32, "long": 64}
GREATEST = {"float": 3.4028235677973366e38, "double": sys.float_info.max}
ISO_8601 = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?"
    r"|\d{8}T\d{6}Z|-?\d+(\.\d+)?"  # or compact, or seconds since 1970
)
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
SECRET_HOLDERS = frozenset({"Environment", "HyperParameters"})
"""Members whose values may be secrets, which no message shows."""


@dataclass(frozen=True)
class RequestProblem:
    """One thing that is wrong with a request.

    Attributes:
        path: where, for example `InputDataConfig[0].DataSource.S3DataSource.S3Uri`.
        kind: `unknown`, `missing`, `null`, `type`, `enum`, `pattern`, `length`, `range` or
            `union`.
        message: what is wrong there, without the path.
    """

    path: str
    kind: str
    message: str

    def __str__(self) -> str:
        """The problem as a line of text."""
        return f"`{self.path}` {self.message}"


def check_request(
    operation: str,
    request: Mapping[str, Any],
    *,
    service: str = "sagemaker",
    subject: str = "",
    optional: Collection[str] = (),
    is_reference: Callable[[Any], bool] | None = None,
) -> None:
    """Refuse a request that AWS's service model does not allow; see `request_problems`.

    Args:
        operation: for example `CreateTrainingJob`.
        request: what boto3's method of the operation takes as keyword arguments.
        service: boto3's name of the service, for example `scheduler`.
        subject: whose request it is, for the message, for example "training job `churn`".
        optional: members of the request that may be missing although the model requires them, as
            those of a pipeline's step that SageMaker fills in.
        is_reference: whether a value stands for one that is known later, as in a pipeline
            `{"Get": "Parameters.Role"}`; its place is not looked into.

    Raises:
        RequestError: naming everything that is wrong with it.
        ConfigError: no such service or operation.
    """
    found = request_problems(
        operation, request, service=service, optional=optional, is_reference=is_reference
    )
    if found:
        count = f"{len(found)} faults" if len(found) > 1 else "a fault"
        of_whom = f" of {subject}" if subject else ""
        raise RequestError(
            f"The {operation} request{of_whom} has {count}, and nothing was sent: "
            + "; ".join(map(str, found))
            + ".",
            [str(problem) for problem in found],
        )


def request_problems(
    operation: str,
    request: Mapping[str, Any],
    *,
    service: str = "sagemaker",
    optional: Collection[str] = (),
    is_reference: Callable[[Any], bool] | None = None,
) -> tuple[RequestProblem, ...]:
    """Everything in a request that AWS's service model does not allow, in the request's order.

    At most one problem for a value: a text that is too short is not held against its pattern.

    Args: as `check_request`.

    Raises:
        ConfigError: no such service or operation.
    """
    model = aws_access.service_model(service)
    if operation not in model.operation_names:
        from feast_dynamo_ext.config import did_you_mean

        hint = did_you_mean(operation, model.operation_names, "It has")
        raise ConfigError(f"AWS's {service} has no operation `{operation}`. {hint}")
    found = model.operation_model(operation)
    if found.input_shape is None:
        names = [*request]
        return tuple(RequestProblem(str(name), "unknown", "is not known") for name in names)
    # botocore fills in tokens that make a request idempotent.
    may_miss = {*optional, *(member for member in found.idempotent_members)}
    return tuple(_Walk(is_reference or _never).structure("", found.input_shape, request, may_miss))


def _never(_value: Any) -> bool:
    return False


class _Walk:
    """A walk along one request; `is_reference` finds the values that are known later."""

    def __init__(self, is_reference: Callable[[Any], bool]) -> None:
        self._is_reference = is_reference
        self._by_type: dict[str, Callable[[str, Any, Any], Iterator[RequestProblem]]] = {
            "structure": self.structure,
            "list": self._list,
            "map": self._map,
            "string": _string,
            "integer": _whole_number,
            "long": _whole_number,
            "float": _number,
            "double": _number,
            "boolean": _boolean,
            "timestamp": _timestamp,
            "blob": _blob,
        }

    def _value(self, path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
        if self._is_reference(value):
            return
        if value is None:
            yield RequestProblem(path, "null", "is None: leave it out")
            return
        yield from self._by_type[shape.type_name](path, shape, value)

    def structure(
        self, path: str, shape: Any, value: Any, may_miss: Collection[str] = ()
    ) -> Iterator[RequestProblem]:
        if getattr(shape, "is_document_type", False):
            return
        if not isinstance(value, Mapping):
            yield _of_type(path, value, "a mapping")
            return
        members = shape.members
        for name, item in value.items():
            inner = f"{path}.{name}" if path else str(name)
            if name in members:
                yield from self._value(inner, members[name], item)
            else:
                yield RequestProblem(inner, "unknown", f"is not known. {_hint(name, members)}")
        for name in shape.required_members:
            if name not in value and name not in may_miss:
                inner = f"{path}.{name}" if path else name
                yield RequestProblem(inner, "missing", "is missing")
        known = value.keys() & members.keys()
        # One that is misspelt is named as such, and is all that there is to say.
        if shape.is_tagged_union and len(known) != 1 and (known or not value):
            yield RequestProblem(
                path, "union", f"has {len(known)} members; it takes one of {_names(members)}"
            )

    def _list(self, path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
        if not isinstance(value, (list, tuple)):
            yield _of_type(path, value, "a list")
            return
        yield from _within(path, shape, len(value), "items")
        for index, item in enumerate(value):
            yield from self._value(f"{path}[{index}]", shape.member, item)

    def _map(self, path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
        if not isinstance(value, Mapping):
            yield _of_type(path, value, "a mapping")
            return
        yield from _within(path, shape, len(value), "entries")
        for key, item in value.items():
            inner = f"{path}[{_cut(key)!r}]"
            for problem in _string(inner, shape.key, key):
                yield RequestProblem(inner, problem.kind, f"as a key {problem.message}")
            yield from self._value(inner, shape.value, item)


def _string(path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
    if not isinstance(value, str):
        yield _of_type(path, value, "a text")
        return
    if HALF_A_CHARACTER.search(value):
        yield RequestProblem(path, "type", "has half of a surrogate pair, which is no character")
        return
    too_long_or_short = list(_within(path, shape, len(value), "characters"))
    pattern = shape.metadata.get("pattern")
    if too_long_or_short:
        yield from too_long_or_short
    elif shape.enum and value not in shape.enum:
        hint = _hint(value, shape.enum)
        yield RequestProblem(path, "enum", f"is {_shown(path, shape, value)}. {hint}")
    elif pattern and not _matches(shape.name, pattern, value):
        shown = _shown(path, shape, value)
        yield RequestProblem(path, "pattern", f"is {shown}, which does not match `{pattern}`")


def _whole_number(path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
    if not isinstance(value, int) or isinstance(value, bool):
        yield _of_type(path, value, "a whole number")
        return
    bits = BITS[shape.type_name]
    if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        yield RequestProblem(path, "range", f"is {value}, which {bits} bits do not hold")
        return
    yield from _between(path, shape, value)


def _number(path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        yield _of_type(path, value, "a number")
    elif isinstance(value, float) and not math.isfinite(value):
        yield RequestProblem(path, "range", f"is {value}, which JSON does not hold")
    elif abs(value) > GREATEST[shape.type_name]:
        bits = 32 if shape.type_name == "float" else 64
        yield RequestProblem(path, "range", f"is {_cut(value)}, which {bits} bits do not hold")
    else:
        yield from _between(path, shape, value)


def _boolean(path: str, _shape: Any, value: Any) -> Iterator[RequestProblem]:
    if not isinstance(value, bool):
        yield _of_type(path, value, "True or False")


def _timestamp(path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
    if isinstance(value, datetime):
        return
    # What the text of a date leaves out, botocore takes from today.
    is_text = isinstance(value, str) and not ISO_8601.fullmatch(value)
    if isinstance(value, (bool, bytes)) or is_text or not aws_access.is_timestamp(value):
        shown = _shown(path, shape, value)
        yield RequestProblem(path, "type", f"is {shown}; it takes a datetime, or ISO 8601 text")


def _blob(path: str, shape: Any, value: Any) -> Iterator[RequestProblem]:
    if hasattr(value, "read") and not isinstance(value, io.TextIOBase):
        return
    if not isinstance(value, (bytes, bytearray, str)):
        yield _of_type(path, value, "bytes or a file")
        return
    size = len(value.encode() if isinstance(value, str) else value)
    yield from _within(path, shape, size, "bytes")


def _within(path: str, shape: Any, size: int, unit: str) -> Iterator[RequestProblem]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and size < least:
        yield RequestProblem(path, "length", f"has {size} {unit}; the least is {least}")
    elif most is not None and size > most:
        yield RequestProblem(path, "length", f"has {size} {unit}; the most are {most}")


def _between(path: str, shape: Any, value: float) -> Iterator[RequestProblem]:
    least, most = shape.metadata.get("min"), shape.metadata.get("max")
    if least is not None and value < least:
        yield RequestProblem(path, "range", f"is {value}; the least is {least}")
    elif most is not None and value > most:
        yield RequestProblem(path, "range", f"is {value}; the most is {most}")


def _of_type(path: str, value: Any, expected: str) -> RequestProblem:
    return RequestProblem(path, "type", f"is of type {type(value).__name__}; it takes {expected}")


def _shown(path: str, shape: Any, value: Any) -> str:
    is_secret = shape.metadata.get("sensitive") or SECRET_HOLDERS & set(re.split(r"[.\[]", path))
    return "a value that is not shown" if is_secret else f"`{_cut(value)}`"


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MOST_SHOWN_CHARS else f"{text[:MOST_SHOWN_CHARS]}..."


def _hint(name: Any, known: Collection[str]) -> str:
    """The known name that is nearest, else those that exist where they are few."""
    from difflib import get_close_matches

    # Of an instance type without its `ml.`, another size is nearer than the type itself.
    ending = [one for one in known if one.endswith(f".{name}")]
    close = ending or get_close_matches(str(name), known, n=1)
    if close:
        return f"Did you mean `{close[0]}`?"
    if len(known) <= MOST_NAMES:
        return f"Known: {_names(known)}"
    return f"botocore {botocore.__version__} knows {len(known)} others; is there a newer one?"


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


# Patterns with an exponential number of ways through one text, and what they are equal to.
EQUALS = {
    r".*(?:[ \r\n\t].*)*.*": "[^\x85\u2028\u2029]*",
    r".*(?:[ \r\n\t].*)*": "[^\x85\u2028\u2029]*",
    r"^[ \t]*[\x20-\x7E]+([ \t]+[\x20-\x7E]+)*[ \t]*$": r"[\t -~]*[ -~][\t -~]*",
    r"^[ \t]*[^\x00-\x1F:\x7F]+([ \t]+[^\x00-\x1F:\x7F]+)*[ \t]*$": (
        r"[^\x00-\x08\n-\x1F:\x7F]*[^\x00-\x1F:\x7F][^\x00-\x08\n-\x1F:\x7F]*"
    ),
    r"^[a-z0-9*](?:[._\-/a-z0-9*]?[a-z0-9*]+)*$": r"[a-z0-9*]+(?:[._\-/][a-z0-9*]+)*",
    r"[a-z0-9]([-a-z0-9]*[a-z0-9]){0,39}?": r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?",
    # So many groups as there are between three letters and 1,016 parts.
    r"https://([.\-_a-zA-Z0-9]+/?){3,1016}": (
        r"https://(?=(?:/?[.\-_a-zA-Z0-9]){3})[.\-_a-zA-Z0-9]+(?:/[.\-_a-zA-Z0-9]+){0,1015}/?"
    ),
}
ASCII_END = 0x80
LINE_ENDS = "\\n\\r\\x85\\u2028\\u2029"
END = f"(?:(?=[{LINE_ENDS}]?\\Z))"
OUTSIDE_OF_SETS = {".": f"[^{LINE_ENDS}]", "$": END, "^": r"(?:\A)"}
POSIX = {
    "Lower": "a-z",
    "Upper": "A-Z",
    "ASCII": "\\x00-\\x7f",
    "Alpha": "a-zA-Z",
    "Digit": "0-9",
    "Alnum": "a-zA-Z0-9",
    "Punct": "!-/:-@\\[-`{-~",
    "Graph": "!-~",
    "Print": " -~",
    "Blank": " \\t",
    "Cntrl": "\\x00-\\x1f\\x7f",
    "XDigit": "0-9a-fA-F",
    "Space": " \\t\\n\\x0b\\f\\r",
}
SPACES = " \\t\\xa0\\u1680\\u180e\\u2000-\\u200a\\u202f\\u205f\\u3000"  # Java's \h
CATEGORY = re.compile("(?:Is)?([CLMNPSZ])([a-z]?)")
TOKEN = re.compile(
    r"""
    \\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})  # one character
    | \\x\{(?P<code>[0-9a-fA-F]+)\}
    | \\(?P<property>[pP])(?:\{(?P<name>\w+)\}|(?P<letter>[A-Z]))
    | \\Q(?P<quoted>.*?)(?:\\E|$)
    | \(\?<(?P<group>[a-zA-Z]\w*)>
    | \\k<(?P<backward>[a-zA-Z]\w*)>
    | \\(?P<escaped>.)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def _matches(shape: str, pattern: str, text: str) -> bool:
    # All of Unicode takes a quarter of a second to look through, and a tag is mostly ASCII.
    compiled = java_pattern(pattern, is_ascii=text.isascii())
    if compiled is None:
        logger.warning("AWS's pattern %r of %s is not one that can be checked", pattern, shape)
        return True
    return compiled.fullmatch(text) is not None


@functools.lru_cache(maxsize=1024)
def java_pattern(pattern: str, *, is_ascii: bool = False) -> re.Pattern[str] | None:
    r"""A pattern of Java's as one of Python's, to match whole texts; None where there is none.

    Java's `.` and `$` know more line ends than Python's, `\d`, `\w`, `\s` and `\b` fewer letters;
    `\p{...}`, `\x{...}` and pairs of surrogates are Java's alone. Sets within sets have no
    counterpart, nor have possessive quantifiers and atomic groups before Python 3.11.

    Args:
        pattern: as `java.util.regex` takes it.
        is_ascii: that it is matched with texts of ASCII alone, which makes it smaller.
    """
    try:
        translated = EQUALS.get(pattern) or "".join(_translated(pattern, is_ascii))
        return re.compile(translated, re.ASCII)
    except (re.error, _UntranslatableError, OverflowError, RecursionError):
        return None


class _UntranslatableError(Exception):
    """A construct of Java's patterns that Python has no counterpart of."""


def _translated(pattern: str, is_ascii: bool) -> Iterator[str]:
    in_set = at_start = after_class = False
    for token in TOKEN.finditer(pattern):
        text = token["other"]
        if text is None:
            yield _construct(token, in_set, is_ascii)
            at_start = False
            after_class = bool(token["property"] or (token["escaped"] or " ") in "wdsWDSh")
            continue
        elif in_set:
            if text == "[" or pattern.startswith("&&", token.start()):
                raise _UntranslatableError
            closes = text == "]" and not at_start
            # Python warns of what may one day be its own operators in sets, and takes the hyphen
            # after a class of characters for a range.
            is_literal = not closes and (text in "]&|~" or (text == "-" and after_class))
            yield f"\\{text}" if is_literal else text
            at_start = at_start and text == "^" and pattern[token.start() - 1] == "["
            in_set = not closes
        else:
            in_set = at_start = text == "["
            yield OUTSIDE_OF_SETS.get(text, text)
        after_class = False


def _construct(token: re.Match[str], in_set: bool, is_ascii: bool) -> str:
    if token["low"]:
        high, low = int(token["high"], 16), int(token["low"], 16)
        return f"\\U{0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF):08x}"
    if token["property"]:
        inner = _property(token["name"] or token["letter"], token["property"] == "P", is_ascii)
        return inner if in_set else f"[{inner}]"
    if token["escaped"]:
        return _escaped(token["escaped"], in_set)
    if token["code"]:
        return f"\\U{int(token['code'], 16):08x}"
    if token["group"] or token["backward"]:
        return f"(?P<{token['group']}>" if token["group"] else f"(?P={token['backward']})"
    return re.escape(token["quoted"])


def _escaped(letter: str, in_set: bool) -> str:
    if letter == "h":
        return SPACES if in_set else f"[{SPACES}]"
    if letter == "z":
        return r"\Z"
    if letter == "Z":
        return END
    if letter == "e":
        return r"\x1b"
    if letter == "R" and not in_set:
        return f"(?:\\r\\n|[{LINE_ENDS}\\x0b\\f])"
    return f"\\{letter}"


def _property(name: str, negated: bool, is_ascii: bool) -> str:
    """The inside of a set of the characters that have a property."""
    end = ASCII_END if is_ascii else sys.maxunicode + 1
    if name in POSIX:
        within = re.compile(f"[{POSIX[name]}]")
        ranges = [(match.start(), match.end()) for match in re.finditer("1+", _marks(within))]
    elif category := CATEGORY.fullmatch(name):
        # Two letters a character, of which the first alone is a capital.
        runs = re.finditer(f"(?:{category[1]}{category[2] or '[a-z]'})+", _categories(end))
        ranges = [(run.start() // 2, run.end() // 2) for run in runs]
    else:
        raise _UntranslatableError
    if negated:
        edges = [0, *(edge for one in ranges for edge in one), end]
        ranges = [(low, high) for low, high in list(pairwise(edges))[::2] if low < high]
    if not ranges:  # of ASCII; a set may not be empty, and its texts do not have this one
        return f"\\U{sys.maxunicode:08x}"
    return "".join(f"\\U{low:08x}-\\U{high - 1:08x}" for low, high in ranges)


def _marks(within: re.Pattern[str]) -> str:
    return "".join("1" if within.match(chr(code)) else "0" for code in range(ASCII_END))


@functools.lru_cache(maxsize=2)
def _categories(end: int) -> str:
    """The category of each character, two letters each."""
    return "".join([unicodedata.category(chr(code)) for code in range(end)])
