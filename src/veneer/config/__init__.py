"""The configuration of a run: the schema, and the YAML that fills it."""
