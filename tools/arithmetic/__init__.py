"""The arithmetic of the LoRA paper, done by the plan's own functions."""
