"""Presets: parts of a config with the reason in their first lines; ``veneer.config.load`` reads them."""
