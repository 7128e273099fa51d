"""The command line: one file a verb, which reads its options; ``terminal`` prints what comes of it."""
