from .audit import Residual as Residual
from .audit import audit_dataset as audit_dataset
from .deid import DeidReport as DeidReport
from .deid import deidentify_folder as deidentify_folder
from .profile import PrivacyProfile as PrivacyProfile
from .profile import load_profile as load_profile
from .pseudonym import Pseudonyms as Pseudonyms
from .pseudonym import load_key as load_key
