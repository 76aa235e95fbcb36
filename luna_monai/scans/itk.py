"""SimpleITK's readers, whose errors and remarks become one line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from luna_monai.errors import LunaError


@contextmanager
def itk_reader(path: Path, image_io: str, advice: str) -> Iterator[sitk.ImageFileReader]:
    """Give a reader whose errors become one line, and whose warnings, which name no file, are not shown.

    Args:
        path: the file that is read.
        image_io: ITK's name of the format.
        advice: what to do when ITK cannot read it.

    Raises:
        LunaError: when ITK cannot read the file.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(image_io)
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield reader
    except (RuntimeError, ValueError) as error:
        reason = textwrap.shorten(str(error).rsplit("ERROR:", 1)[-1], 160, placeholder=" …")
        raise LunaError(f"{path}: cannot be read; {advice} ({reason})") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
