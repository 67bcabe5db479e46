"""The rows of `scripts/benchmarks`, how they are timed, and the page that shows them."""
