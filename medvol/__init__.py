"""medvol: volumetric segmentation and classification as MONAI bundles.

Importing this package loads neither torch nor MONAI; each package loads what it needs when used.
"""

from medvol.core.errors import MedvolError

__all__ = ["MedvolError", "__version__"]
__version__ = "0.1.0"
