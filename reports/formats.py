"""How numbers are written on a page: points, signed points, bytes, operations, seconds, shares."""

from __future__ import annotations

from reports.stats import Interval

MISSING = "–"
_MINUS = "\N{MINUS SIGN}"


def points(share: float | None) -> str:
    """A score in [0, 1] as points of 100 with one decimal: 0.7134 -> '71.3'."""
    return MISSING if share is None else f"{100 * share:.1f}"


def signed_points(share: float | None) -> str:
    """A difference of scores as signed points: -0.0312 -> '−3.1'; what rounds to 0 is '0.0'."""
    if share is None:
        return MISSING
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def between(interval: Interval | None, signed: bool = False) -> str:
    """The interval alone: '[66.2, 75.8]' or '[+64.8, +74.1]'."""
    if interval is None:
        return ""
    write = signed_points if signed else points
    return f"[{write(interval.low)}, {write(interval.high)}]"


def size(count: float | None) -> str:
    """Bytes with a binary unit and three digits: 1536 -> '1.50 KiB'."""
    if count is None:
        return MISSING
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def operations(count: float | None) -> str:
    """Floating-point operations with a decimal unit and three digits: 2.5e9 -> '2.50 GFLOP'."""
    if count is None:
        return MISSING
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def seconds(value: float | None) -> str:
    """Seconds with three digits, as ms below one second: 0.0123 -> '12.3 ms'."""
    if value is None:
        return MISSING
    return f"{_three(1000 * value)} ms" if value < 0.9995 else f"{_three(value)} s"


def seconds_between(lower: float | None, upper: float | None) -> str:
    """Two times with the unit once, that of the longer: (0.012, 0.031) -> '12.0–31.0 ms'."""
    if lower is None or upper is None:
        return MISSING
    if upper < 0.9995:
        return f"{_three(1000 * lower)}–{_three(1000 * upper)} ms"
    return f"{_three(lower)}–{_three(upper)} s"


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal: 0.26 -> '26.0 %'."""
    return MISSING if share is None else f"{100 * share:.1f} %"


def signed_percent(share: float | None) -> str:
    """A signed share: 2.083 -> '+208.3 %'; below one per cent with two decimals: '−0.04 %'."""
    if share is None:
        return MISSING
    digits = 2 if abs(share) < 0.00995 else 1
    text = f"{100 * share:+.{digits}f}"
    return "0.0 %" if float(text) == 0 else f"{text.replace('-', _MINUS)} %"


def p_value(value: float | None) -> str:
    """A p-value with two digits: 0.031 -> '= 0.031'; below a thousandth '< 0.001'."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def figure(value: float | str | None) -> str:
    """A figure of a benchmark's own table with two decimals: 71.3 -> '71.30'; words as they are."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:.2f}"


def number(value: float | None, decimals: int) -> str:
    """A number with so many decimals: (1234.5, 2) -> '1,234.50'."""
    return MISSING if value is None else f"{value:,.{decimals}f}".replace("-", _MINUS)


def signed_number(value: float | None, decimals: int) -> str:
    """A signed number with so many decimals: (-0.034, 2) -> '−0.03'; 0 after rounding: no sign."""
    if value is None:
        return MISSING
    text = f"{value:+,.{decimals}f}"
    return text[1:] if float(text.replace(",", "")) == 0 else text.replace("-", _MINUS)


def whole(count: float | None) -> str:
    """A count, or the mean of counts, rounded, with thousands separated: 12345.4 -> '12,345'."""
    return MISSING if count is None else f"{count:,.0f}"


def clipped(text: str, most: int, keep: str = "head") -> str:
    """`text` cut to `most` characters, at its end (keep='head') or its start (keep='tail')."""
    if len(text) <= most:
        return text
    left_out = f"{len(text) - most:,} more characters"
    if keep == "tail":
        return f"[… {left_out}] {text[-most:]}"
    return f"{text[:most]} [… {left_out}]"


def _scaled(count: float, step: int, units: tuple[str, ...]) -> str:
    value, unit = float(count), 0
    while value >= 0.9995 * step and unit < len(units) - 1:
        value, unit = value / step, unit + 1
    if unit == 0:
        return f"{value:,.0f} {units[0]}"
    return f"{_three(value)} {units[unit]}"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
