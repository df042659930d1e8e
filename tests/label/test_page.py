"""The server's own page: complete, ordered, escaped, and without outside resources."""

import re

from medvol.label.page import start_page

INFO = {
    "name": "medvol <test>",
    "models": {"b_seg": {"type": "segmentation", "labels": {"<i>x": 1}, "version": "0.1.0"},
               "a_cls": {"type": "classification", "labels": {"no": 0}, "version": "0.2.0"}},
    "trainers": {"b_seg": {}}, "strategies": {"first": {}, "uncertainty": {}},
    "datastore": {"total": 4, "completed": 1},
}  # fmt: skip
SCORES = {
    "sure": {"entropy": 0.1, "mutual_information": 0.0},
    "unsure": {"entropy": 0.9, "mutual_information": 0.2},
    "bad": {"rejected": "bad.nii.gz: holds NaN"},
    "done": {"entropy": 1.0, "mutual_information": 0.0},
}


def test_images_are_listed_most_uncertain_first_without_the_labelled():
    page = start_page(INFO, SCORES, ["done"], "http://127.0.0.1:8000")
    places = [page.index(f"<td>{name}</td>") for name in ("unsure", "sure", "bad")]
    assert places == sorted(places)
    assert "<td>done</td>" not in page
    assert "0.9000" in page
    assert "holds NaN" in page


def test_names_are_escaped():
    page = start_page(INFO, SCORES, [], "http://x/<script>")
    assert "<i>x" not in page
    assert "<script>" not in page
    assert "<test>" not in page


def test_nothing_is_loaded_from_elsewhere():
    page = start_page(INFO, SCORES, [], "http://127.0.0.1:8000")
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page)


def test_progress_and_strategy_are_given():
    page = start_page(INFO, {}, [], "http://127.0.0.1:8000")
    assert "1 of 4 images" in page
    assert "<code>uncertainty</code>" in page
    assert "Nothing is scored yet" in page
