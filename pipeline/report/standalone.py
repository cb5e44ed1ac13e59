"""A figure of the report as a picture of its own, for pages that show no inlined SVG."""

import base64
import re
from functools import cache

from pipeline.report.page import STYLE

PADDING = 14  # pixels of white around a figure
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def picture(figure: str, alt: str) -> str:
    """The figure in Markdown, its data in the link: on white, in the report's light colours.

    A page with a light and a dark theme shows it as a white card in both.
    """
    found = _VIEW_BOX.search(figure)
    if found is None:
        return ""
    width, height = float(found[1]) + 2 * PADDING, float(found[2]) + 2 * PADDING
    placed = f'<svg x="{PADDING}" y="{PADDING}" width="{found[1]}" height="{found[2]}" '
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}">'
        f'<style>{light_style()}</style><rect width="100%" height="100%" fill="#fff"/>'
        f"{figure.replace('<svg ', placed, 1)}</svg>"
    )
    return f"![{alt}]({data_url(whole.encode(), 'image/svg+xml')})"


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@cache
def light_style() -> str:
    """What the page's style says of figures, with the light theme's colours."""
    text = STYLE.read_text(encoding="utf-8")
    colours = text.split("}", 1)[0].split("{", 1)[1].replace("color-scheme: light dark;", "")
    rules = "".join(line for line in text.splitlines() if line.startswith("svg "))
    fonts = 'font: 14px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'
    return f":root {{{colours}}} svg {{{fonts}}} {rules}"
