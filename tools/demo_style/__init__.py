"""What the example's adapter does to the demo style, measured."""
