"""How numbers are written, the same in the table, the page and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def figure(value: float | None) -> str:
    """Three significant digits without an exponent: rFID spans orders of magnitude. A dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def interval(measure: Mapping[str, Any], name: str) -> str:
    """The 95 % interval of the figure `name` of a measurement; a dash where there is none."""
    ends = (measure.get("intervals") or {}).get(name)
    return f"{figure(ends[0])}–{figure(ends[1])}" if ends else "–"


def estimate(paired: Mapping[str, float] | None) -> str:
    """A paired estimate with its interval, such as "0.330 (0.280–0.391)"; empty where there is none."""
    return f"{figure(paired['value'])} ({figure(paired['low'])}–{figure(paired['high'])})" if paired else ""


def decimals(value: float | None, digits: int) -> str:
    """A figure whose scale is known, with so many decimals. A dash for what was not measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def macs(value: float) -> str:
    """MACs with the SI prefix that leaves one to three digits before the point."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{figure(value / size)} {prefix}MACs"
    return f"{value:.0f} MACs"


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


def power(text: str) -> str:
    """7.659e+26 as 7.66 × 10²⁶."""
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text
    return f"{float(mantissa):.2f} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
