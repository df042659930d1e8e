from .download import DownloadSource as DownloadSource
from .download import download as download
from .install import fetch as fetch
from .registry import PUBLIC as PUBLIC
from .registry import PublicDataset as PublicDataset
from .registry import find_public as find_public
