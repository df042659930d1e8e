from .restore import with_weights as with_weights
from .weights import KeyReport as KeyReport
from .weights import apply_weights as apply_weights
from .weights import check_state as check_state
from .weights import load_weights as load_weights
