"""How sure a prediction is, what that promise rests on, and which cases a person must see."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
