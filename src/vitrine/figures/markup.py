"""Text and figures into HTML, so that nothing a stranger named can be anything but text."""

from __future__ import annotations

import html
import re

from vitrine.results import Figure

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]")


def escaped(text: object) -> str:
    """`text` for an element or a quoted attribute; control characters and what is no Unicode become U+FFFD."""
    sound = str(text).encode("utf-8", "replace").decode()
    return html.escape(CONTROL.sub("\N{REPLACEMENT CHARACTER}", sound), quote=True)


def name(text: str, longest: int = 40) -> str:
    """A name of the user's, on its own in whatever direction it is written; one too long ends in an ellipsis."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    hint = f' title="{escaped(text)}"' if short != text else ""
    return f"<bdi{hint}>{escaped(short)}</bdi>"


def percent(value: float, digits: int = 1) -> str:
    """`98.3 %` with a space that does not break."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def span(figure: Figure) -> str:
    """The interval of a share: `96.4 to 99.2 %`."""
    return f"{100 * figure.low:.1f} to {percent(figure.high)}"


def number(value: float) -> str:
    """A number short enough for an axis or a cell: four figures, and powers of ten below a thousandth."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        mantissa, _, power = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    return f"{value:.4g}"
