"""Benchmarks: ``python -m benchmarks SUITE``; see ``benchmarks.metrics`` for how a number is made."""
