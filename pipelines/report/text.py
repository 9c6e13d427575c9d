"""Numbers, durations and sizes as the report writes them."""

from __future__ import annotations

import math

from pipelines.statistics import Interval

_DASH = "–"


def compact(value: float) -> str:
    """Returns a number in few characters: `1.2e-4`, `3.14`, `12,345`, `3.2M`."""
    if not math.isfinite(value):
        return _DASH
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:.3g}B"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1e-3 or value == 0:
        return f"{value:.3g}"
    return scientific(value)


def scientific(value: float) -> str:
    """Returns a number with an exponent and two digits at most: `0.0015` -> `1.5e-3`; zero stays `0`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if value else "0"


def count(value: float) -> str:
    """Returns a whole number with separators."""
    return f"{value:,.0f}"


def tokens(value: int) -> str:
    """Returns a length in tokens as column heads have it: `512`, `4K` for 4,096, `10,000`."""
    return f"{value // 1024}K" if value % 1024 == 0 else count(value)


def short(value: float) -> str:
    """Returns a whole number in three digits: `52592` -> `52.6K`."""
    return f"{value / 1000:.3g}K" if 10_000 <= value < 1_000_000 else compact(value)


def percent(value: float | None, digits: int = 0) -> str:
    """Returns a fraction in percent; a dash for None."""
    return _DASH if value is None else f"{value * 100:.{digits}f}%"


def between(interval: Interval, digits: int = 0) -> str:
    """Returns an interval of fractions in percent: `23% to 27%`."""
    return f"{percent(interval.low, digits)} to {percent(interval.high, digits)}"


def ends(interval: Interval) -> str:
    """Returns an interval of fractions in percent, without saying so: `23–27`."""
    return f"{interval.low * 100:.0f}–{interval.high * 100:.0f}"


def points(value: float) -> str:
    """Returns a difference of fractions in percentage points, signed: `+4 points`."""
    rounded = round(value * 100)
    sign = "+" if rounded > 0 else "−" if rounded < 0 else "±"
    return f"{sign}{abs(rounded)} point{'' if abs(rounded) == 1 else 's'}"


def change(ratio: float) -> str:
    """Returns a relative change in percent, signed."""
    return f"{'+' if ratio > 0 else '−'}{abs(ratio) * 100:.1f}%"


def duration(seconds: float) -> str:
    """Returns a duration: `8.3 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def words(name: str) -> str:
    """Returns an identifier as words: `variable_tracking` -> `variable tracking`."""
    return name.replace("_", " ").replace("/", ", ")
