"""What a run will take, known before it starts."""
