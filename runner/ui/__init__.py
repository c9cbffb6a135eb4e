"""The dashboard: pages that the runner renders, at `/ui/`."""
