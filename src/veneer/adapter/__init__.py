"""LoRA adapters in memory: their mathematics, in live networks, merged, stacked."""
