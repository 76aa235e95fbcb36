"""Heat maps in colour, to be laid over pictures of a scan."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from PIL import Image

#: Colours from little to much; the dark end, which a CT's lung would swallow, is left out.
COLOUR_MAP = "inferno"
_DARKEST, _BRIGHTEST = 0.35, 0.95
#: How much of the scan the strongest heat hides.
_MOST_OPAQUE = 0.7


def colours(values: np.ndarray) -> np.ndarray:
    """Give heat its colours.

    Args:
        values: an array of at least one axis, from 0 to 1.

    Returns:
        The same shape and an axis of four: red, green, blue and opacity, uint8. 0 is clear.
    """
    values = np.clip(values, 0, 1)
    rgba = matplotlib.colormaps[COLOUR_MAP](_DARKEST + (_BRIGHTEST - _DARKEST) * values, bytes=True)
    rgba[..., 3] = np.rint(255 * _MOST_OPAQUE * np.sqrt(values))
    return rgba


def to_png(values: np.ndarray) -> bytes:
    """Make a picture of heat, transparent where there is none.

    Args:
        values: (height, width), from 0 to 1.

    Returns:
        A PNG file.
    """
    buffer = io.BytesIO()
    Image.fromarray(colours(values)).save(buffer, format="png")
    return buffer.getvalue()


def legend_png(width: int = 120, height: int = 10) -> bytes:
    """Make a strip of all colours, little on the left, on the grey of a lung.

    Args:
        width: in pixels.
        height: in pixels.

    Returns:
        A PNG file.
    """
    return to_png(np.tile(np.linspace(0, 1, width), (height, 1)))
