"""Pure functions from arrays to numbers; each metric states its unit, direction and empty rule."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
