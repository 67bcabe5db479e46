"""Training: one loop over accelerate for every job."""
