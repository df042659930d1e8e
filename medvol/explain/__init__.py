"""Where a network looked: activation maps in 2D and 3D, and tests of whether to believe them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
