"""Is there a way to the label that does not lead through the anatomy?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
