"""Find problems of a training run: rules that read evidence, and name causes, numbers and settings to change."""
