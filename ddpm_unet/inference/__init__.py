"""Prediction for images of any size, and the files it is written to."""
