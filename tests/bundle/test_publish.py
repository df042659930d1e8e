"""The zoo's README from a card: everything stays, in the template's order."""

import re

import pytest
import yaml

from medvol.bundle import list_bundles
from medvol.bundle.publish import ZOO_LIMIT_BYTES, publishing_files, zoo_readme
from medvol.core.shipped import configs_dir

METADATA = {
    "name": "Title", "authors": "A. Author", "description": "Described.", "data_source": "Source",
    "intended_use": "Research.", "references": ["[1] Paper."],
    "medvol": {"name": "x", "family": "segmentation", "modality": "CT", "body_part": "abdomen",
               "weights_sha256": None},
    "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "background",
                                                                 "1": "left_kidney"}}}},
}  # fmt: skip


def section(text: str, name: str) -> str:
    return text.partition(f"## **{name}**\n")[2].partition("\n## **")[0].strip()


def test_sections_of_a_card_find_their_place():
    card = ("# My card\n\nIntro.\n\n## Limits\n\nFew.\n\n## Accuracy\n\n0.9\n\n## Oddities\n\n"
            "Odd.\n\n## Data\n\nMany.\n")  # fmt: skip
    text = zoo_readme(card, METADATA)
    assert text.startswith("# My card\n")
    assert section(text, "Model Description") == "Intro.\n\n#### **Oddities**\n\nOdd."
    assert section(text, "Data") == "Many."
    assert section(text, "Performance") == "#### **Accuracy**\n\n0.9"
    assert section(text, "Limitations") == "#### **Limits**\n\nFew."
    assert "segmentation, CT, abdomen, left kidney" in text


def test_what_a_card_lacks_is_taken_from_the_metadata_or_said_to_be_missing():
    text = zoo_readme("# Bare\n", METADATA)
    assert section(text, "Model Description") == "Described."
    assert section(text, "Data") == "Source"
    assert section(text, "Performance").startswith("NOT PROVIDED")
    assert section(text, "Limitations") == "Research."


def test_a_comment_in_a_code_block_is_no_heading():
    card = "# T\n\nA.\n\n```bash\n## not a heading\nrun\n```\n\nB.\n"
    assert section(zoo_readme(card, METADATA), "Model Description").endswith("B.")


def test_no_line_of_any_shipped_card_is_lost():
    bundles = list_bundles()
    assert len(bundles) >= 10
    for bundle in bundles:
        card = (configs_dir() / "bundles" / f"{bundle.name}.md").read_text("utf-8")
        readme = (bundle.path / "docs" / "README.md").read_text("utf-8").splitlines()
        lines = [line for line in card.splitlines() if line and not line.startswith("#")]
        assert not [line for line in lines if line not in readme]


@pytest.mark.parametrize(
    ("size", "url", "listed"),
    [
        (ZOO_LIMIT_BYTES, "", []),
        (ZOO_LIMIT_BYTES + 1, "", [""]),
        (1000, "https://example.org/model.pt", ["https://example.org/model.pt"]),
    ],
)
def test_large_files_lists_what_the_zoo_has_to_download(tmp_path, size, url, listed):
    weights = tmp_path / "model.pt"
    with weights.open("wb") as file:
        file.truncate(size)
    facts = {**METADATA["medvol"], "weights_sha256": "ab" * 32}
    metadata = {**METADATA, "medvol": facts, **({"weights_url": url} if url else {})}
    files = publishing_files("# T\n", metadata, weights)
    entries = yaml.safe_load(files["large_files.yml"])["large_files"]
    assert [entry["url"] for entry in entries] == listed
    assert all(entry["hash_val"] == "ab" * 32 for entry in entries)


def test_every_shipped_card_shows_its_pictures():
    for bundle in list_bundles():
        docs = bundle.path / "docs"
        linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (docs / "README.md").read_text("utf-8"))
        assert {"label_page.png", "report.png"} <= set(linked)
        assert all((docs / name).read_bytes()[:4] == b"\x89PNG" for name in linked), bundle.name
