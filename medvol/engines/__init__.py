"""What a config names around MONAI's trainer and evaluator: input checks, data order, handlers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
