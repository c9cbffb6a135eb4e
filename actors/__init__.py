"""The actors of the runner: registry, history, one executor for each kind of environment, and the executions."""
