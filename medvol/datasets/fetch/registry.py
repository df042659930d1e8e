"""The public data sets that ``medvol data fetch`` knows: one row each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from medvol.core.errors import ConfigError

_MSD = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
_MEDMNIST = "https://zenodo.org/records/10519652/files"


@dataclass(frozen=True)
class PublicDataset:
    """One public data set.

    Attributes:
        name: What the user types; also the folder's name.
        url: Where the archive lies.
        md5: Hexadecimal digest of the archive, as its publisher states it.
        task: What it is for, in a few words.
        licence: As stated by its publisher.
        classes: Class names by index, for MedMNIST's .npz files.
        spacing_mm: Voxel edge of MedMNIST volumes, whose files do not state it; 0 for 2D images.
    """

    name: str
    url: str
    md5: str
    task: str
    licence: str
    classes: tuple[str, ...] = field(default=())
    spacing_mm: float = 0.0

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return self.url.split("?", 1)[0].rsplit("/", 1)[1]


# URLs and digests as in monai.apps.DecathlonDataset.
_MSD_ROWS = (
    ("Task01_BrainTumour", "240a19d752f0d9e9101544901065d872", "brain tumour, 4-channel MR"),
    ("Task02_Heart", "06ee59366e1e5124267b774dbd654057", "left atrium, MR"),
    ("Task03_Liver", "a90ec6c4aa7f6a3d087205e23d4e6397", "liver and tumour, CT"),
    ("Task04_Hippocampus", "9d24dba78a72977dbd1d2e110310f31b", "hippocampus, MR"),
    ("Task05_Prostate", "35138f08b1efaef89d7424d2bcc928db", "prostate zones, 2-channel MR"),
    ("Task06_Lung", "8afd997733c7fc0432f71255ba4e52dc", "lung tumour, CT"),
    ("Task07_Pancreas", "4f7080cfca169fa8066d17ce6eb061e4", "pancreas and tumour, CT"),
    ("Task08_HepaticVessel", "641d79e80ec66453921d997fbf12a29c", "liver vessels and tumour, CT"),
    ("Task09_Spleen", "410d4a301da4e5b2f6f86ec3ddba524e", "spleen, CT"),
    ("Task10_Colon", "bad7a188931dc2f6acf72b08eb6202d0", "colon cancer, CT"),
)
# Digests, classes and physical sizes as in medmnist 3.0.2 (info.py). Sets whose voxel size is
# not stated are left out: their volumes could only be given an assumed spacing.
_MEDMNIST_ROWS = (
    (
        "nodulemnist3d",
        "8755a7e9e05a4d9ce80a24c3e7a256f3",
        "malignancy of lung nodules, CT patches",
        ("benign", "malignant"),
        1.0,
    ),
    (
        "adrenalmnist3d",
        "bbd3c5a5576322bc4cdfea780653b1ce",
        "adrenal gland shape, masks from CT",
        ("normal", "hyperplasia"),
        64 / 28,
    ),
    (
        "fracturemnist3d",
        "6aa7b0143a6b42da40027a9dda61302f",
        "rib fracture type, CT patches",
        ("buckle", "nondisplaced", "displaced"),
        64 / 28,
    ),
    (
        "pneumoniamnist",
        "28209eda62fecd6e6a2d98b1501bb15f",
        "paediatric pneumonia, X-ray",
        ("normal", "pneumonia"),
        0.0,
    ),
)


def _msd_name(task: str) -> str:
    words = {"BrainTumour": "brain_tumour", "HepaticVessel": "hepatic_vessel"}
    bare = task.split("_", 1)[1]
    return f"msd_{words.get(bare, bare.lower())}"


PUBLIC: dict[str, PublicDataset] = {
    row.name: row
    for row in (
        *(
            PublicDataset(_msd_name(task), f"{_MSD}/{task}.tar", md5, about, "CC-BY-SA 4.0")
            for task, md5, about in _MSD_ROWS
        ),
        *(
            PublicDataset(
                name,
                f"{_MEDMNIST}/{name}.npz?download=1",
                md5,
                about,
                "CC BY 4.0",
                classes,
                spacing,
            )
            for name, md5, about, classes, spacing in _MEDMNIST_ROWS
        ),
    )
}


def find_public(name: str) -> PublicDataset:
    """Look a public data set up.

    Raises:
        ConfigError: If there is no such row; names the closest.

    >>> find_public("msd_spleen").archive
    'Task09_Spleen.tar'
    """
    key = name.strip().lower().replace("-", "_")
    if key in PUBLIC:
        return PUBLIC[key]
    near = difflib.get_close_matches(key, PUBLIC, n=3, cutoff=0.4) or sorted(PUBLIC)
    raise ConfigError(
        f"data set {name!r} is unknown; did you mean {', '.join(near)}? (medvol data fetch --list)"
    )
