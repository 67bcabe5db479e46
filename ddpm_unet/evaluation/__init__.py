"""Scores of predictions against the truth, and plots."""
