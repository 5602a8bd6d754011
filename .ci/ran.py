"""Every test of a list ran: python .ci/ran.py JUNIT LIST MARKER, the list from `pytest --collect-only`."""

import sys
from pathlib import Path
from xml.etree import ElementTree

junit, listed, marker = sys.argv[1:]
# "tests/test_x.py::test_y[z]" here is classname "tests.test_x", name "test_y[z]" in the report.
wanted = set()
for line in Path(listed).read_text().splitlines():
    path, found, rest = line.partition(".py::")
    if found:
        wanted.add(f"{path.replace('/', '.')}.{rest.replace('::', '.')}")

ran = set()
for case in ElementTree.parse(junit).iter("testcase"):
    name = f"{case.get('classname')}.{case.get('name').replace('::', '.')}"
    skip = case.find("skipped")
    if skip is None:
        ran.add(name)
    else:
        print(f"skipped: {name}: {skip.get('message')}")
print(f"{len(wanted & ran)} of {len(wanted)} tests marked {marker} ran")
sys.exit("these did not run:\n" + "\n".join(sorted(wanted - ran)) if wanted - ran else 0)
