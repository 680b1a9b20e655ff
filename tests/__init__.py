"""The test suite: trial, from the root of the tree."""
