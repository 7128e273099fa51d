"""Sources of pictures: one file for each kind of source, behind one protocol."""
