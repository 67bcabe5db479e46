"""The rows of `scripts/benchmark.py`, how they are timed, and the page that shows them."""
