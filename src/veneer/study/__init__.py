"""Studies: trainings that differ in one setting, measured on the same held-out pictures."""
