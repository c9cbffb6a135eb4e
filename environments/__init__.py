"""Where code runs: processes, their environments on disk, and the limits that the machine can enforce."""
