"""Benchmark: all of them, one after the other: `python -m tests.benchmarks`."""

import subprocess
import sys
from pathlib import Path

NAMES = ("http", "grpc", "workers", "kinds", "history", "executions", "start")

for name in NAMES:
    subprocess.run([sys.executable, str(Path(__file__).with_name(f"bench_{name}.py"))], check=True)
