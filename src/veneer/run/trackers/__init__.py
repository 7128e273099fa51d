"""Trackers of a run's curves and sample sheets: one file each, whose package is loaded with the tracker."""
