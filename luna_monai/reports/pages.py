"""Rendering of HTML pages with Jinja2, and the format of values on them."""

from typing import Any

import jinja2
import pandas as pd

from luna_monai import __version__


def show(value: Any) -> str:
    """Format a value: integers with thousands separators, floats with four significant digits, text unchanged."""
    if value is None or pd.isna(value):
        return "n/a"
    spec = "," if pd.api.types.is_integer(value) else ".4g" if pd.api.types.is_float(value) else ""
    return format(value, f"#{spec}" if spec == ".4g" and 0 < value < 1 else spec)  # 0.99998 is not written as 1


def render_page(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: name of the file in ``templates/``.
        values: variables of the template. A missing variable is an error.

    Returns:
        A self-contained HTML document.
    """
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("luna_monai.reports"), autoescape=True, **options)
    environment.filters["show"] = show
    return environment.get_template(template).render(version=__version__, **values)
