"""What a user may name, and where its results go."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core.errors import ConfigError, InputError
from medvol.core.files import output_path
from medvol.runners import find_cases
from medvol.runners.cases import input_digest, shard_of


def test_a_folder_above_is_found_from_below(tmp_path, make_image, monkeypatch):
    make_image(tmp_path / "data" / "a.nii.gz", 0, (4, 4, 4))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (case,) = find_cases(["../data"], "out")
    assert (case.name, case.path) == ("a", str(tmp_path / "data" / "a.nii.gz"))


def test_what_was_named_inside_the_folder_of_results_is_kept(tmp_path, make_image):
    make_image(tmp_path / "data" / "site" / "a.nii.gz", 0, (4, 4, 4))
    make_image(tmp_path / "b.nii.gz", 0, (4, 4, 4))
    named = [tmp_path / "data" / "site", tmp_path / "b.nii.gz"]
    assert [c.name for c in find_cases(named, tmp_path / "data")] == ["b", "a"]


def test_results_behind_a_link_are_not_inputs(tmp_path, make_image):
    make_image(tmp_path / "real" / "a.nii.gz", 0, (4, 4, 4))
    make_image(tmp_path / "real" / "out" / "a" / "seg.nii.gz", 0, (4, 4, 4))
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert [c.name for c in find_cases([tmp_path / "link"], tmp_path / "real" / "out")] == ["a"]


@pytest.mark.parametrize("out", [".", "p1/.."])
def test_results_never_go_where_an_input_lies(tmp_path, make_image, out, monkeypatch):
    make_image(tmp_path / "p1" / "p1.nii.gz", 0, (4, 4, 4))
    monkeypatch.chdir(tmp_path)
    for named in (".", "p1", "p1/p1.nii.gz"):
        with pytest.raises(InputError, match="-o"):
            find_cases([named], out)


@pytest.mark.parametrize("letter", ["u", "\N{CJK UNIFIED IDEOGRAPH-8133}"])
def test_long_names_get_folders_of_their_own(tmp_path, make_image, letter):
    far = letter * 120 if letter.isascii() else letter * 70
    for place in ("1", "2"):
        make_image(tmp_path / far / f"{far}{place}" / "image.nii.gz", 0, (4, 4, 4))
    cases = find_cases([tmp_path])
    folders = {output_path(tmp_path, case.name) for case in cases}
    assert len(cases) == len(folders) == 2
    assert all(len(os.fsencode(folder.name)) < 200 for folder in folders)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr"])
def test_a_header_stands_for_its_voxels_too(tmp_path, suffix):
    import SimpleITK as sitk

    digests = set()
    for value in (0, 1):
        image = sitk.GetImageFromArray(np.full((4, 4, 4), value, np.uint8))
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        digests.add(input_digest(str(tmp_path / f"a{suffix}")))
    assert len(digests) == 2


@given(st.lists(st.integers(), max_size=40), st.integers(1, 50))
def test_the_shards_of_any_number_partition_the_cases(cases, count):
    shards = [shard_of(cases, f"{index}/{count}") for index in range(1, count + 1)]
    assert sorted(case for shard in shards for case in shard) == sorted(cases)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shard_of(cases, "") == cases


@pytest.mark.parametrize("wrong", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "1 / 2"])
def test_a_shard_that_does_not_exist_is_rejected(wrong):
    with pytest.raises(ConfigError, match="i/n"):
        shard_of([1, 2], wrong)
