"""What makes and measures the project's own material; the package needs none of it."""
