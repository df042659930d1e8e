"""medvol: volumetric segmentation and classification as MONAI bundles.

Importing this package loads neither torch nor MONAI; each package loads what it needs when used.

>>> import medvol
>>> found = medvol.predict("brain_mri_segmentation", "head.nii.gz")  # doctest: +SKIP
>>> found.to_pandas()  # doctest: +SKIP
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
