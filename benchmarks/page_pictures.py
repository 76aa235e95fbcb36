"""Takes the pictures of docs/images/ with headless Chromium, from the output of the notebook.

jupyter execute notebooks/run_everything.ipynb
luna-monai predict notebooks/data-unversioned/notebook/scan --report notebooks/data-unversioned/notebook/page.html
luna-monai report notebooks/data-unversioned/notebook/balanced
python benchmarks/page_pictures.py notebooks/data-unversioned/notebook
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import luna_monai as lm

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
#: For each picture: the page, its first section, width and height in pixels, and whether the mode is dark.
PICTURES = {
    "prediction.png": ("page.html", "", 1280, 1500, False),
    "prediction-phone.png": ("page.html", "s1f1", 390, 1200, False),
    "report.png": ("balanced/report.html", "", 1280, 1500, False),
    "report-atlas-dark.png": ("balanced/report.html", "false-positives", 1280, 900, True),
    "report-phone.png": ("balanced/report.html", "", 390, 1200, False),
}


def shoot(chromium: str, address: str, width: int, height: int, picture: Path, *options: str) -> None:
    """Take a picture of a page in a window; the minimum width of Chromium's windows is 500 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        window = [f"--window-size={max(width, 500)},{height}", f"--screenshot={folder}/shot.png"]
        command = [chromium, *FLAGS, *window, *options, f"--user-data-dir={folder}/profile", address]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
        save(Image.open(f"{folder}/shot.png").crop((0, 0, width, height)), picture)


def save(image: Image.Image, picture: Path) -> None:
    """Save a picture with 256 colors."""
    image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(picture, optimize=True)
    print(picture)


def take(chromium: str, page: Path, anchor: str, width: int, height: int, dark: bool, picture: Path) -> None:
    """Take a picture of an HTML report, in a frame of any width."""
    with tempfile.TemporaryDirectory() as folder:
        frame, shown = Path(folder) / "frame.html", Path(folder) / "page.html"
        html = page.read_text(encoding="utf-8")
        if anchor:  # a URL fragment does not scroll in a frame
            html += f"<script>document.getElementById('{anchor}').scrollIntoView({{behavior: 'instant'}})</script>"
        shown.write_text(html, encoding="utf-8")
        style = f"display:block;border:0;width:{width}px;height:{height}px"
        frame.write_text(f"<body style='margin:0'><iframe src='{shown.as_uri()}' style='{style}'></iframe>")
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        shoot(chromium, frame.as_uri(), width, height, picture, scheme, "--virtual-time-budget=5000")


def take_tensorboard(chromium: str, runs: Path, picture: Path) -> None:
    """Start TensorBoard, and take a picture of the scalars of the book and the area under the ROC curve."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(60):
            time.sleep(1)
            try:
                with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=10) as answer:
                    if len(answer.read()) > 2:
                        break
            except OSError:
                continue
        page = f"{address}?darkMode=false#scalars&_smoothingWeight=0&tagFilter=loss%7Ccorrect%2Fpos%7Croc"
        shoot(chromium, page, 1200, 1000, picture, "--virtual-time-budget=30000")
        process.terminate()


def draw_crops(dataset_dir: Path, picture: Path) -> None:
    """Draw six nodules, from large to small, and six other candidates: 24 mm in three planes through the center."""
    dataset = lm.LunaDataset(dataset_dir)
    table = dataset.candidates
    nodules, others = (
        np.flatnonzero((table["class"] == label) & (table["diameter_mm"] >= low)) for label, low in ((1, 3), (0, 0))
    )
    chosen = [rows[int(len(rows) * (part + 0.5) / 6)] for rows in (nodules, others) for part in range(6)]
    figure, axes = plt.subplots(3, 12, figsize=(9.6, 2.8), layout="constrained")
    for column, row in enumerate(chosen):
        block, _, series_uid, _ = dataset[row]
        z, y, x = lm.read_scan(next(dataset_dir.glob(f"subset*/{series_uid}.mhd"))).geometry.spacing[::-1]
        size = np.array(block.shape[1:]) * [z, y, x] / 2  # mm, from the center
        planes = ((block[0, 16], 1, 2), (block[0, :, 24].flip(0), 0, 2), (block[0, :, :, 24].flip(0), 0, 1))
        for axis, (image, down, right) in zip(axes[:, column], planes, strict=True):
            extent = (-size[right], size[right], size[down], -size[down])
            axis.imshow(image, cmap="gray", vmin=-1000, vmax=400, extent=extent)
            axis.set(xlim=(-12, 12), ylim=(12, -12))
        nodule = f"nodule\n{table['diameter_mm'].iloc[row]:.0f} mm"
        axes[0, column].set_title(nodule if column < 6 else "no\nnodule", fontsize=7)
    for axis, name in zip(axes[:, 0], ("axial", "coronal", "sagittal"), strict=True):
        axis.set_ylabel(name, fontsize=7)
    plt.setp(axes, xticks=[], yticks=[])
    figure.canvas.draw()
    save(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())), picture)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, help="folder with luna/, balanced/ and page.html, see above")
    parser.add_argument("--only", default="", help="prefix of the names of the pictures to take")
    parser.add_argument("--chromium", default="chromium", help="command of the browser")
    parser.add_argument("--output-dir", type=Path, default=IMAGES, help="folder of the pictures")
    arguments = parser.parse_args()
    folder, chromium = arguments.notebook, arguments.chromium
    makers = {
        "crops.png": lambda picture: draw_crops(folder / "luna", picture),
        "tensorboard.png": lambda picture: take_tensorboard(chromium, folder / "balanced" / "runs", picture),
    }
    for name, (page, *look) in PICTURES.items():
        makers[name] = partial(take, chromium, (folder / page).resolve(), *look)
    for name, make in makers.items():
        if name.startswith(arguments.only):
            make(arguments.output_dir / name)


if __name__ == "__main__":
    main()
