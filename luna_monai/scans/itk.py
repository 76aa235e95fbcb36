"""SimpleITK readers with one-line error messages."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import SimpleITK as sitk

from luna_monai.errors import LunaError


@contextmanager
def itk_reader(path: Path, image_io: str, advice: str) -> Iterator[sitk.ImageFileReader]:
    """Provide a SimpleITK reader. Its errors become one line; its warnings, which do not name the file, are not shown.

    Args:
        path: the file to read.
        image_io: ITK's name of the format.
        advice: what is wrong and what to do if ITK cannot read the file.

    Yields:
        The reader.

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
