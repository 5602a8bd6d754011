"""What a user sees of memory: the peak of a whole process that purifies a test set."""

import subprocess
import sys
from pathlib import Path

import pytest

PURIFY = """
import dataclasses, torch, dipdefense
from pathlib import Path
config = dataclasses.replace(dipdefense.defence_for((3, 32, 32), decision="last").fit, iterations=1)
dipdefense.Purifier(config)(torch.rand(10_000, 3, 32, 32))
fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(2**10 * int(fields["VmHWM"].split()[0]))  # KiB, called kB
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_ten_thousand_small_images_stay_under_two_gigabytes():
    """More iterations take no more memory: nothing of one is left in the next."""
    done = subprocess.run([sys.executable, "-c", PURIFY], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2e9
