"""The command `doctor`: whether this machine, and the cluster, can run the modules of a file, and the remedies."""

from runner.cli.doctor.findings import Finding, State, document_of, print_findings, works
from runner.cli.doctor.machine import examine

__all__ = ["Finding", "State", "document_of", "examine", "print_findings", "works"]
