"""Run by shiv before the program: adds the libraries for this interpreter to the path, or explains that there are none.

shiv defines `site_packages` and `archive`. This file runs under Python 3.6 or later.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES

root = site_packages.absolute()
mine = EXTENSION_SUFFIXES[0].split(".")[1]  # such as cpython-311-x86_64-linux-gnu
if not (root / mine).is_dir():
    held = ", ".join(sorted(path.name for path in root.glob("cpython-*")))
    sys.exit(
        f"error: this file is for {held}, and {sys.executable} is {mine}; "
        f"run it by another Python, such as `python3.12 {archive}`"
    )
sys.path.insert(sys.path.index(str(root)) if str(root) in sys.path else 0, str(root / mine))
