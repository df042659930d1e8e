from .cases import CaseInput as CaseInput
from .cases import find_cases as find_cases
from .local import run_local as run_local
from .predict import predict_case as predict_case
from .record import PredictOptions as PredictOptions
from .record import Record as Record
from .session import Session as Session
