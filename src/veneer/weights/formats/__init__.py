"""The formats that adapter files come in: one file each, entered in the registry."""
