"""Where a run's curves and sample sheets go: one file a tracker, which imports its package when it is made."""
