"""Plots of a report, as drawings of shapes: training loss, scores over the steps, intervals."""
