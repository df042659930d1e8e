"""Where a bundle runs: this process, worker processes, Ray; a shard of the cases."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
