"""Takes the pictures of docs/images/ from a page of a prediction and a report of a run, with headless Chromium.

luna-monai predict ../shared/data/luna16_mini/subset1 --report /tmp/page.html --explain /tmp/heat.nii.gz
luna-monai report RUN --output /tmp/report.html
python benchmarks/page_pictures.py /tmp/page.html /tmp/report.html
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
#: Name of the picture: which page, from which section on, width and height in pixels, dark or not.
PICTURES = {
    "prediction.png": ("prediction", "", 1280, 1500, False),
    "prediction-phone.png": ("prediction", "s1f1", 390, 1200, False),
    "report.png": ("report", "", 1280, 1500, False),
    "report-atlas-dark.png": ("report", "false-positives", 1280, 900, True),
    "report-phone.png": ("report", "", 390, 1200, False),
}


def take(chromium: str, page: Path, anchor: str, width: int, height: int, dark: bool, picture: Path) -> None:
    """Take one picture; windows of Chromium are 500 pixels wide at least, so the page is put into a frame."""
    with tempfile.TemporaryDirectory() as folder:
        frame, shown = Path(folder) / "frame.html", Path(folder) / "page.html"
        html = page.read_text(encoding="utf-8")
        if width < 500:  # with attribution maps
            html = html.replace('id="heat-shown"', 'id="heat-shown" checked')
        if anchor:  # a fragment of the address does not scroll in a frame
            html += f"<script>document.getElementById('{anchor}').scrollIntoView({{behavior: 'instant'}})</script>"
        shown.write_text(html, encoding="utf-8")
        style = f"display:block;border:0;width:{width}px;height:{height}px"
        frame.write_text(f"<body style='margin:0'><iframe src='{shown.as_uri()}' style='{style}'></iframe>")
        window = [f"--window-size={max(width, 500)},{height}", f"--screenshot={folder}/shot.png"]
        scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder}/profile"]
        options = [*FLAGS, *window, *scheme, "--virtual-time-budget=5000"]
        subprocess.run([chromium, *options, frame.as_uri()], check=True, capture_output=True, timeout=120)
        shot = Image.open(f"{folder}/shot.png").crop((0, 0, width, height))
        shot.convert("P", palette=Image.Palette.ADAPTIVE).save(picture, optimize=True)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prediction", type=Path, help="page of a prediction")
    parser.add_argument("report", type=Path, help="page of a run")
    parser.add_argument("--chromium", default="chromium", help="the browser")
    parser.add_argument("--output-dir", type=Path, default=IMAGES, help="folder of the pictures")
    arguments = parser.parse_args()
    for name, (page, *look) in PICTURES.items():
        take(arguments.chromium, getattr(arguments, page).resolve(), *look, arguments.output_dir / name)
        print(arguments.output_dir / name)


if __name__ == "__main__":
    main()
