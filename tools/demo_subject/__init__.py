"""Teaching the bundled base one character, with and without prior preservation, measured."""
