"""Benchmark: all of them, one after the other: `python -m tests.benchmarks`."""

import subprocess
import sys
from pathlib import Path

for name in ("bench_http.py", "bench_grpc.py", "bench_workers.py", "bench_kinds.py", "bench_history.py"):
    subprocess.run([sys.executable, str(Path(__file__).with_name(name))], check=True)
