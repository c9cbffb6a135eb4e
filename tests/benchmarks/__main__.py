"""Benchmark: runs all or some, or compares two commits.

python -m tests.benchmarks [NAME ...]
python -m tests.benchmarks compare BASE [HEAD]
"""

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.report import compare

NAMES = (
    *("http", "grpc", "endpoints", "workers", "modules", "kinds", "history", "executions", "bytes"),
    *("growth", "start", "starts", "stalls", "cluster", "cluster_link"),
)

match sys.argv[1:]:
    case ["compare", base]:
        print("\n".join(compare(base, "HEAD")))
    case ["compare", base, head]:
        print("\n".join(compare(base, head)))
    case names:
        if unknown := {*names} - {*NAMES}:
            raise SystemExit(f"error: unknown: {', '.join(unknown)}; known: compare BASE [HEAD], {', '.join(NAMES)}")
        for name in names or NAMES:
            subprocess.run([sys.executable, str(Path(__file__).with_name(f"bench_{name}.py"))], check=True)
