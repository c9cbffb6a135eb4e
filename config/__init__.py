"""Settings and module definitions, from the command line, the environment and YAML."""
