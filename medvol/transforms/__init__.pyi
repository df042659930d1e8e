from .intensity import RandIntensityd as RandIntensityd
from .policy import AugmentationPolicy as AugmentationPolicy
from .policy import policy_violations as policy_violations
from .spacing import Spacingd as Spacingd
from .spatial import RandSpatiald as RandSpatiald
from .spatial import measured_folding as measured_folding
from .validator import AugmentationScore as AugmentationScore
from .validator import AugmentationValidator as AugmentationValidator
