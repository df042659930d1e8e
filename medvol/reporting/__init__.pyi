from .card import Card as Card
from .card import write_card as write_card
from .changes import draw_changes as draw_changes
from .predictions import write_prediction_report as write_prediction_report
from .report import Report as Report
from .report import write_report as write_report
