"""How a step is computed: precision, memory."""
