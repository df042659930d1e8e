"""The writers as a MONAI writer: ``SaveImaged(writer="medvol.io.MedvolWriter")``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_writer import NibabelWriter
from monai.data.utils import to_affine_nd
from monai.utils.type_conversion import convert_data_type

from medvol.core.errors import OutputError
from medvol.io import formats
from medvol.io.checks import shown
from medvol.io.save import write_itk, write_nifti, write_png16

#: What this process wrote, and from which input: the second input of the same name is rejected.
_WRITTEN: dict[str, str] = {}


class MedvolWriter(NibabelWriter):
    """Writes .nii, .nii.gz, .nrrd, .mha or 16-bit .png by the suffix of the file name.

    Files appear whole or not at all, are read back and compared first, and a label map is stored
    as integers whatever type it is computed in. Two inputs of one name cannot overwrite each
    other's result within a process.

    Args:
        output_dtype: Type of values that are not whole; integer types round.
    """

    def __init__(self, output_dtype: Any = np.float32, **kwargs: Any) -> None:
        super().__init__(output_dtype=output_dtype, **kwargs)
        self._source = ""

    def set_metadata(
        self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any
    ) -> None:
        """Take the affine and, if ``resample``, bring the data to ``original_affine``."""
        self._source = str((meta_dict or {}).get("filename_or_obj", ""))
        if resample:
            super().set_metadata(meta_dict, resample=resample, **options)
        else:  # MONAI 1.5 resamples a 2D image all the same, to a size of None
            self.affine = self.get_meta_info(meta_dict)[1]

    def write(
        self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any
    ) -> None:
        """Write the array that was set.

        Raises:
            OutputError: If it cannot be written whole, or another input's result is in the way.
        """
        path = Path(filename)
        self._claim(path)
        array = convert_data_type(self.data_obj, np.ndarray)[0]
        affine = np.eye(4) if self.affine is None else convert_data_type(self.affine, np.ndarray)[0]
        affine = to_affine_nd(r=3, affine=np.asarray(affine, dtype=np.float64))
        suffix = path.suffix.lower()
        if suffix == ".png":
            write_png16(path, array)
        elif suffix in formats.ITK_FILES:
            write_itk(path, np.atleast_3d(array), affine, dtype=self.output_dtype)
        else:
            write_nifti(path, array, affine, dtype=self.output_dtype)
        _WRITTEN[os.path.realpath(path)] = self._source

    def _claim(self, path: Path) -> None:
        before = _WRITTEN.get(os.path.realpath(path))
        if before and self._source and before != self._source and path.exists():
            raise OutputError(f"{shown(path)}: already holds the result of {shown(before)}; "
                              f"{shown(self._source)} would overwrite it")  # fmt: skip
