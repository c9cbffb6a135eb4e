"""Who decides: registry, history and one executor supervisor for each kind of environment."""
