"""``python -m medvol`` is ``medvol``."""

from medvol.cli.main import run

run()
