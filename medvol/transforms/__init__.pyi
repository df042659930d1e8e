from .spacing import Spacingd as Spacingd
from .spatial import RandSpatiald as RandSpatiald
from .spatial import measured_folding as measured_folding
