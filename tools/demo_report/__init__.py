"""The run whose report the documents show, and the time that measuring it takes."""
