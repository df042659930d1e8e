"""Has what comes in, or what comes out, moved away from what the bundle was validated on?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
