"""A mutation fuzzer over everything that comes from outside. ``python -m tests.fuzz --help``.

A target (``tests.fuzz.targets``) is one door of the product with what stands behind it, a corpus of good input and an
oracle. What it is told follows from a seed alone, so a case that fails is found again by its seed.
"""
