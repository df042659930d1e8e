"""What the model zoo requires beside the configs: README by its template, licence, large files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Main sections of the zoo's README template, and the words that open a card's section of it.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "Model Description": (),
    "Data": ("data", "preprocessing"),
    "Performance": ("accuracy", "performance", "results", "how it was measured"),
    "System Configuration": ("train", "system"),
    "Limitations": ("limit", "intended use", "weights, data and limits"),
}
_LICENCES = {
    "CC-BY-SA 4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-NC 4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "CC0 1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
}
_MINE = """Its configs, code and weights are licensed under the Apache License, Version 2.0; see
the file LICENSE. Licences of the data: data_license.txt."""


#: The zoo takes single files up to this size into a pull request; larger ones must be published
#: elsewhere and listed in ``large_files.yml``.
ZOO_LIMIT_BYTES = 25_000_000


#: Screenshots that a shipped card shows, by ``python -m tools.screenshots``, and what is on them.
SCREENSHOTS = {
    "label_page.png": "The start page of `medvol label`, here with hippocampus_mri_segmentation",
    "report.png": "The first screen of `medvol report`, here of phantoms moved by a few voxels",
}


def publishing_files(
    card: str,
    metadata: Mapping[str, Any],
    weights: Path | None = None,
    has_screenshots: bool = False,
) -> dict[str, str]:
    """Path inside the bundle -> text.

    Args:
        card: The model card, Markdown with one title and sections of its own.
        metadata: The content of ``metadata.json``; ``weights_url`` in it states where the weights
            are published.
        weights: The file that ``weights_sha256`` in it is of.
        has_screenshots: Show ``SCREENSHOTS``, which lie beside the card then.
    """
    files = {
        "docs/README.md": zoo_readme(card, metadata, has_screenshots),
        "docs/data_license.txt": _data_licence(metadata),
    }
    if digest := metadata["medvol"]["weights_sha256"]:
        size = weights.stat().st_size if weights and weights.is_file() else 0
        files["large_files.yml"] = _large_files(digest, size, metadata.get("weights_url", ""))
    return files


def zoo_readme(card: str, metadata: Mapping[str, Any], has_screenshots: bool = False) -> str:
    """The card in the order and with the headings of the zoo's README template.

    Nothing of the card is left out: a section without a place in the template becomes a part of
    the description, one that the card lacks repeats the metadata.

    Source:
        github.com/Project-MONAI/model-zoo, docs/readme_template.md.
    """
    title, parts = metadata["name"], list(_split(card))
    if parts and parts[0][0] == "" and parts[0][1].startswith("# "):
        title, _, intro = parts[0][1][2:].partition("\n")
        parts[0] = ("", intro.strip())
    placed: dict[str, list[str]] = {section: [] for section in _SECTIONS}
    for heading, body in parts:
        section = _place(heading)
        alone = not heading or heading == section
        placed[section].append(body if alone else f"#### **{heading}**\n\n{body}")
    texts = {section: "\n\n".join(filter(None, found)) for section, found in placed.items()}
    lines = [f"# {title}", "### **Authors**", metadata["authors"], "### **Tags**", _tags(metadata)]
    for section, text in texts.items():
        lines += [f"## **{section}**", text or _missing(section, metadata)]
    if has_screenshots:
        shown = (f"{text}:\n\n![{text}]({name})" for name, text in SCREENSHOTS.items())
        lines += ["## **What a user sees**", *shown]
    if references := metadata.get("references"):
        lines += ["## **References**", "\n".join(f"- {entry}" for entry in references)]
    return "\n\n".join([*lines, "## **License**", _MINE]) + "\n"


def _split(card: str) -> Iterator[tuple[str, str]]:
    """(heading, body) of every section of level 2; what comes before the first has no heading."""
    heading, body, is_code = "", [], False
    for line in card.strip().splitlines():
        is_code ^= line.startswith("```")
        if line.startswith("## ") and not is_code:
            yield heading, "\n".join(body).strip()
            heading, body = line[3:].strip(), []
        else:
            body.append(line)
    yield heading, "\n".join(body).strip()


def _place(heading: str) -> str:
    lowered = heading.lower()
    if "limit" in lowered:
        return "Limitations"
    return next(
        (section for section, words in _SECTIONS.items() if lowered.startswith(words)),
        "Model Description",
    ) if heading else "Model Description"  # fmt: skip


def _missing(section: str, metadata: Mapping[str, Any]) -> str:
    if section == "Model Description":
        return str(metadata["description"])
    if section == "Data":
        return str(metadata["data_source"])
    if section == "System Configuration":
        name = metadata["medvol"]["name"]
        return (f"Runs on a CPU or a CUDA device; `medvol predict {name} IMAGE -o OUT --dry-run` "
                "estimates what an image would cost on yours.")  # fmt: skip
    if section == "Limitations":
        return str(metadata["intended_use"])
    return "NOT PROVIDED" + ("." if metadata["medvol"]["weights_sha256"] else
                             ": this version ships no weights.")  # fmt: skip


def _tags(metadata: Mapping[str, Any]) -> str:
    facts = metadata["medvol"]
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values()
    labels = [name.replace("_", " ") for name in channels if name != "background"]
    return ", ".join([facts["family"], facts["modality"], facts["body_part"], *labels])


def _data_licence(metadata: Mapping[str, Any]) -> str:
    source = str(metadata["data_source"])
    if source.endswith("generated"):
        return f"{source}: drawn by code of this project, under the licence of the bundle.\n"
    links = [f"{name}: {url}" for name, url in _LICENCES.items() if name in source]
    lines = [
        f"Data that {metadata['medvol']['name']} was developed with:",
        f"  {source}",
        *(f"  {link}" for link in links),
        "No image of it is part of this bundle. Whoever trains or evaluates with it accepts the",
        "terms of its publisher, including attribution:",
        *(f"  {entry}" for entry in metadata.get("references", ["see the data source"])),
    ]
    return "\n".join(lines) + "\n"


def _large_files(digest: str, size: int, url: str) -> str:
    """What has to be downloaded: nothing, while the weights are small and nowhere else.

    Source:
        github.com/Project-MONAI/model-zoo, CONTRIBUTING.md, "Model storage" and "large files".
    """
    if not url and size <= ZOO_LIMIT_BYTES:
        return (
            f"# models/model.pt has {size / 1e6:.1f} MB, below the model zoo's limit of 25 MB a "
            "file:\n# it travels inside the bundle, and nothing is downloaded. Its sha256 is in\n"
            "# configs/metadata.json.\n"
            "large_files: []\n"
        )
    return (
        "large_files:\n"
        '  - path: "models/model.pt"\n'
        f'    url: "{url}"\n'
        f'    hash_val: "{digest}"\n'
        '    hash_type: "sha256"\n'
    )
