"""The templates of pages."""

from __future__ import annotations

from typing import Any

import jinja2

from luna_monai import __version__


def render_page(template: str, **values: Any) -> str:
    """Fill in a page.

    Args:
        template: name of the file in ``templates/``.
        values: what it shows; a name that is missing is an error.

    Returns:
        An HTML document without any reference to something outside it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luna_monai.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)
