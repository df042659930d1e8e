from .convolution import onednn_convolutions as onednn_convolutions
from .mirrors import Mirrors as Mirrors
from .sliding import SlidingWindowInferer as SlidingWindowInferer
from .windows import WindowGrid as WindowGrid
from .windows import importance_map as importance_map
