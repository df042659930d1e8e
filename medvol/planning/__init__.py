"""Self-configuration: a data set's fingerprint becomes a bundle that fills a budget."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
