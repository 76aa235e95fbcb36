"""``luna-monai precache`` as a user runs it."""

import pytest

from luna_monai.apps import LunaPrecacheApp
from luna_monai.apps.cli import run_app
from luna_monai.data.cache_files import cached_files


def test_subsets_shards_and_the_rest(make_dataset, tmp_path, capsys):
    cache_dir = tmp_path / "cache"
    options = ["--dataset-dir", make_dataset(scans=5), "--cache-dir", cache_dir, "--num-workers", 0]
    assert run_app(LunaPrecacheApp, [*options, "--dry-run"]) == 0
    assert "5 series to add: 60 candidates" in capsys.readouterr().out
    assert not cached_files(cache_dir)
    assert run_app(LunaPrecacheApp, [*options, "--subsets", "0-1,3"]) == 0
    assert {path.name[6] for path in cached_files(cache_dir)} == {"0", "1", "3"}
    for shard in ("1/2", "2/2"):
        assert run_app(LunaPrecacheApp, [*options, "--shard", shard]) == 0
    assert len(cached_files(cache_dir)) == 5
    capsys.readouterr()
    assert run_app(LunaPrecacheApp, options) == 0
    assert "holds 5 of 5 series" in capsys.readouterr().out


def test_the_folder_is_listed_once_and_a_header_read_once(make_dataset, tmp_path, count_reads):
    folder = make_dataset(scans=3)
    assert run_app(LunaPrecacheApp, ["--dataset-dir", folder, "--cache-dir", tmp_path / "cache"]) == 0
    assert sorted(count_reads) == ["1.2.3.0.mhd", "1.2.3.1.mhd", "1.2.3.2.mhd", "luna"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "0/2"], "argument --shard: invalid shard value: '0/2'; see 'luna-monai precache --help'"),
        (["--shard", "3"], "argument --shard: invalid shard value: '3'"),
        (["--shard", "a/b"], "argument --shard: invalid shard value: 'a/b'"),
        (["--shard", "8/3"], "argument --shard: invalid shard value: '8/3'"),
        (["--subsets", "1;2"], "argument --subsets: invalid numbers value: '1;2'"),
        (["--subsets", "9"], "subsets 9: no scans with candidates in them"),
        (["--subsets", "5-2"], "argument --subsets: invalid numbers value: '5-2'"),
        (["--subsets", "0-1000000000"], "argument --subsets: invalid numbers value: '0-1000000000'"),
        (["--num-workers", "-1"], "precache_workers: -1 is less than the minimum of 0"),
        (["--cache-dir", "null", "--dry-run"], "cache_dir is null"),
    ],
)
def test_mistakes_are_one_line(make_dataset, tmp_path, capsys, arguments, message):
    options = ["--dataset-dir", make_dataset(), "--cache-dir", tmp_path / "cache", *arguments]
    assert run_app(LunaPrecacheApp, options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
