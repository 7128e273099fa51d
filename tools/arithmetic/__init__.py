"""Do the arithmetic of the LoRA paper with the plan's own functions."""
