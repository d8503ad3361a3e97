"""The settings of a job, and reading them from YAML."""
