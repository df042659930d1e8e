"""The MONAI Label app: bundles served to Slicer and OHIF from an environment of their own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
