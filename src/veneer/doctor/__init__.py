"""What ails a run: rules that read evidence and say what is wrong, by which numbers, and what to change."""
