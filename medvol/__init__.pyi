from .api import bundles as bundles
from .api import evaluate as evaluate
from .api import predict as predict
from .api import read_image as read_image
from .core.errors import MedvolError as MedvolError

__version__: str
