"""Settings and module definitions: read from the command line, environment variables and YAML, with every mistake."""
