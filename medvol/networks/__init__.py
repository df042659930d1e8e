"""Networks that MONAI lacks, and weights that are safe, complete and shown to fit."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
