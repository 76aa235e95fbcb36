"""What the examination of a dataset can find, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING, INFORMATION = "error", "warning", "information"
#: What each code means, and what to do about it.
CODES = {
    "overview": ("what is there", ""),
    "no-scans": ("no CT was found", "unpack LUNA16's subset*.zip here, so that subset0/UID.mhd exists"),
    "incomplete": ("not all of LUNA16 is there", "nothing, if a part is what you want; otherwise unpack the rest"),
    "misplaced-scan": ("a CT where training does not look", "move it to subset0 … subset9 of the dataset folder"),
    "stray-file": ("a hidden file, as some systems leave behind when they copy", "delete it"),
    "same-series-twice": ("a series in two subsets would be in training and validation", "delete one of the copies"),
    "bad-scan": ("a CT that cannot be read", "copy or unpack it again"),
    "orphan-voxels": ("a voxel file that no header names", "copy its .mhd again, or delete it"),
    "shared-voxels": ("two headers name one voxel file", "copy both scans again"),
    "odd-spacing": ("voxels of an unusual size", "compare with the original scan; the network is made for LUNA16's"),
    "small-scan": ("a CT smaller than the block cut around a candidate", "take the scan out of the dataset"),
    "bad-table": ("a table that cannot be read", "correct the line, or copy the table from LUNA16 again"),
    "no-excluded": ("without excluded findings CPM is lower than LUNA16's", "copy annotations_excluded.csv here"),
    "bad-class": ("a class other than 0 and 1", "correct the row"),
    "bad-diameter": ("a nodule whose diameter is not positive", "correct the row"),
    "duplicate-rows": ("rows that are the same", "delete all but one of the rows"),
    "contradictory-rows": ("rows of one place that contradict each other", "delete all but the right one"),
    "no-ct": ("rows of series without a CT; training omits them", "nothing, if that is intended; else add the scans"),
    "unlisted-scan": ("a CT that seriesuids.csv does not name", "check whether it belongs to this dataset"),
    "missing-scan": ("series of seriesuids.csv without a CT", "add the scans, or take them from seriesuids.csv"),
    "no-candidates": ("a CT without candidates is never used", "check that the table belongs to these scans"),
    "outside-volume": ("a position outside its CT", "correct the table, or for candidates set outside_volume=drop"),
    "nodule-without-candidate": (
        "a nodule without a candidate of class 1 within its radius cannot be learned or detected",
        "nothing, if the detector missed it (as some in LUNA16); otherwise check the candidate table",
    ),
    "candidate-without-nodule": (
        "a candidate of class 1 that lies in no nodule of annotations.csv",
        "check that both tables are of the same version of LUNA16",
    ),
    "bad-voxels": ("voxels that cannot be read", "copy or unpack the scan again"),
    "wrong-rescale": ("voxels that are not in HU", "convert the scan again, with its rescale slope and intercept"),
    "fractional-voxels": ("voxels that are not integers", "convert the scan to int16 HU, as the cache holds them"),
    "padding": ("padding outside the field of view", "nothing: training clips it to -1000"),
    "empty-slices": ("slices that hold a single value, as after an interrupted copy", "copy or unpack the scan again"),
    "same-voxels": ("the same voxels under several names", "keep one: copies may be in training and validation"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    Args:
        severity: ``"error"`` (training would fail or learn something wrong), ``"warning"`` (look at it) or
            ``"information"``.
        code: one of ``CODES``.
        subject: the file (relative to the dataset folder), or the table and its series or row.
        message: what was found there.
    """

    severity: str
    code: str
    subject: str
    message: str

    @property
    def title(self) -> str:
        """What the code means."""
        return CODES[self.code][0]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return CODES[self.code][1]
