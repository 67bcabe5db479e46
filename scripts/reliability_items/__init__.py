"""The items of `scripts/reliability.py`, and the page that shows what they found."""
