"""Figures of a training set's report as text."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from feast_dynamo_ext.timestamps import moment_of

if TYPE_CHECKING:
    from markupsafe import Markup

NONE = "\N{EN DASH}"

_SIGNIFICANT = 4
_YEAR_S, _DAY_S, _HOUR_S, _MINUTE_S = 365 * 86_400, 86_400, 3_600, 60


def figure(value: Any) -> str:
    """A number to four digits, 1,234 or 0.01234; a dash for none."""
    if value is None:
        return NONE
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if not value:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -_SIGNIFICANT <= size < 9:  # noqa: PLR2004 - beyond a billion digits are not read
        return f"{value:.3g}"
    text = f"{value:,.{max(0, _SIGNIFICANT - 1 - size)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float | None) -> str:
    """A share: 12.3 %; a dash for none."""
    if share is None:
        return NONE
    hundredths = 100 * share
    if 0 < hundredths < 0.05:  # noqa: PLR2004 - what would be shown as 0.0
        return "< 0.1 %"
    return f"{hundredths:.3g} %" if hundredths < 99.95 or share == 1 else "> 99.9 %"  # noqa: PLR2004 - as 0.0


def code(words: str) -> Markup:
    """Words, escaped, with what stands in backticks as code."""
    from markupsafe import Markup, escape

    parts = re.split(r"`([^`]*)`", words)
    texts = [
        f"<code>{escape(part)}</code>" if at % 2 else escape(part) for at, part in enumerate(parts)
    ]
    return Markup("".join(texts))  # noqa: S704 - each part is escaped


def age(seconds: float | None) -> str:
    """A length of time: 3 h, 2.5 d."""
    if seconds is None:
        return NONE
    size = abs(seconds)
    for unit, name in ((_YEAR_S, "y"), (_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if size >= unit:
            return f"{figure(round(seconds / unit, 1))} {name}"
    return f"{figure(seconds)} s"


def value_text(value: Any, kind: str) -> str:
    """A value of a column; times are moments."""
    if value is None:
        return NONE
    if kind != "time":
        return figure(value)
    moment = moment_of(int(value))
    return f"{moment:%Y-%m-%d}" if not int(value) % 86_400_000_000 else f"{moment:%Y-%m-%d %H:%M}"
