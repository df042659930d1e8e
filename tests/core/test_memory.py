import subprocess
import sys

CODE = """
import sys
import psutil
sys.modules["resource"] = None  # as on Windows
psutil.Process.memory_info = lambda self: type("Windows", (), {"peak_wset": 7})()
from medvol.core.memory import peak_ram_bytes
import medvol.planning.probe
print(peak_ram_bytes())
"""


def test_the_peak_is_given_where_there_is_no_module_resource():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
