"""What a run is told to do: the schema, and the YAML that fills it."""
