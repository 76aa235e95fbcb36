"""``luna-monai cache`` as a user runs it."""

import errno
import re
import zipfile

import pytest

from luna_monai.apps.cache import LunaCacheApp, LunaPrecacheApp
from luna_monai.apps.cli import run_app
from luna_monai.data.cache_files import cached_files


@pytest.fixture
def filled(make_dataset, tmp_path):
    """Return a dataset, and a cache folder with all of it."""
    folder, cache_dir = make_dataset(), tmp_path / "cache"
    options = ["--dataset-dir", folder, "--cache-dir", cache_dir]
    assert run_app(LunaPrecacheApp, [*options, "--num-workers", 0]) == 0
    return folder, cache_dir, options


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_status(filled, capsys):
    folder, _, options = filled
    assert run_app(LunaCacheApp, ["status", *options]) == 0
    text = capsys.readouterr().out
    assert "3 files in use, 5.32 MB" in text
    assert "not used by this configuration: 0 files" in text
    raw = folder / "subset1" / "1.2.3.1.raw"
    raw.write_bytes(raw.read_bytes())
    next((folder / "subset2").glob("*.mhd")).unlink()
    assert run_app(LunaCacheApp, ["status", *options]) == 0
    text = capsys.readouterr().out
    assert "1 files in use" in text
    assert "missing: 1 of 2 series" in text
    assert "the CT or its candidates have changed" in text


def test_verify_finds_a_flipped_byte(filled, capsys):
    _, cache_dir, options = filled
    assert run_app(LunaCacheApp, ["verify", *options]) == 0
    damaged = cached_files(cache_dir)[0]
    flip(damaged)
    assert run_app(LunaCacheApp, ["verify", *options]) == 1
    assert f"{damaged.name}: the checksum of" in capsys.readouterr().out
    assert damaged.exists()
    assert run_app(LunaCacheApp, ["verify", *options, "--yes"]) == 0
    assert not damaged.exists()
    assert run_app(LunaPrecacheApp, [*options, "--num-workers", 0]) == 0
    assert run_app(LunaCacheApp, ["verify", *options]) == 0


def test_verify_removes_no_file_that_cannot_be_read(filled, monkeypatch, capsys):
    _, cache_dir, options = filled
    read, files = zipfile.ZipFile, cached_files(cache_dir)

    def forbidden(path, *args, **kwargs):
        if path == files[0]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path, *args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipFile", forbidden)
    flip(files[1])
    assert run_app(LunaCacheApp, ["verify", *options, "--yes"]) == 0
    assert "cannot be read" in capsys.readouterr().out
    assert cached_files(cache_dir) == [path for path in files if path != files[1]]


def test_gc_removes_what_no_configuration_needs(filled, tmp_path, capsys):
    _, cache_dir, options = filled
    overlay = tmp_path / "other.yaml"
    overlay.write_text("train#deterministic_transforms#2#a_max: 400\n")
    assert run_app(LunaPrecacheApp, [*options, "--config", overlay, "--num-workers", 0]) == 0
    everything = set(cached_files(cache_dir))
    assert len(everything) == 6
    # Both configurations are in use when the overlay is given.
    assert run_app(LunaCacheApp, ["gc", *options, "--config", overlay, "--yes"]) == 0
    assert set(cached_files(cache_dir)) == everything
    # An override changes this configuration, not those in configs/.
    override = "train#deterministic_transforms#2#a_max=400"
    assert run_app(LunaCacheApp, ["gc", *options, override, "--yes"]) == 0
    assert set(cached_files(cache_dir)) == everything
    capsys.readouterr()
    assert run_app(LunaCacheApp, ["gc", *options]) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r": \w+\.a_max 400 -> 1000\n", text)) == 3
    assert "unused: 3 files" in text
    assert set(cached_files(cache_dir)) == everything
    other = cache_dir / f"9.9.{'0' * 16}.{'1' * 16}.pt"
    other.write_text("of another dataset")
    (cache_dir / "notes.txt").write_text("not ours")
    assert run_app(LunaCacheApp, ["gc", *options, "--yes"]) == 0
    assert len(cached_files(cache_dir)) == 4
    other.unlink()
    assert (cache_dir / "notes.txt").exists()
    assert run_app(LunaCacheApp, ["status", *options]) == 0
    assert "3 files in use" in capsys.readouterr().out


def test_gc_lists_the_folder_once_and_reads_each_header_once(filled, count_reads):
    _, _, options = filled
    assert run_app(LunaCacheApp, ["gc", *options]) == 0
    assert sorted(count_reads) == ["1.2.3.0.mhd", "1.2.3.1.mhd", "1.2.3.2.mhd", "luna"]


@pytest.mark.parametrize("action", ["status", "verify", "gc"])
def test_no_such_folder_is_one_line(make_dataset, tmp_path, capsys, action):
    for cache_dir, message in ((tmp_path / "none", "no such folder"), ("null", "cache_dir None: no such folder")):
        assert (
            run_app(LunaCacheApp, [action, "--dataset-dir", make_dataset(name=message), "--cache-dir", cache_dir]) == 1
        )
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()
