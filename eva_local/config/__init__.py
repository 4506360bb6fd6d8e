"""models.toml, the environment and the command line to specs."""
