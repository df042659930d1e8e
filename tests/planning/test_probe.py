import json

from monai.bundle import ConfigParser

from medvol.planning.probe import cases_from


def test_names_of_cases_are_never_run_nor_changed(tmp_path):
    cases = {"train": [{"case": "$1 + 1", "image": "/data/scan#1.nii.gz", "label": "@cases"}]}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"cases": cases}))
    parser = ConfigParser({"cases": cases_from(str(request))})
    assert parser.get_parsed_content("cases") == cases
