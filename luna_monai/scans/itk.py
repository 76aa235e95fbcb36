"""SimpleITK's readers, whose errors and remarks become one line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from luna_monai.errors import LunaError


@contextmanager
def itk_errors(path: Path, advice: str = "") -> Iterator[None]:
    """Turn ITK's errors into one line, and keep its warnings, which name no file, off the user's terminal.

    Args:
        path: the file that is read.
        advice: what to do; a general hint when empty.

    Raises:
        LunaError: when ITK cannot read the file.
    """
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).rsplit("ERROR:", 1)[-1], 160, placeholder=" …")
        advice = advice or "it is damaged, or not of the format that its name says"
        raise LunaError(f"{path}: cannot be read; {advice} ({reason})") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
