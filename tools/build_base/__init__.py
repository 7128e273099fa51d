"""How the bundled base and the demo pictures are made."""
