"""De-identification by DICOM PS3.15, and the audit of what it leaves."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
