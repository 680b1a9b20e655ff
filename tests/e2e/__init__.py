"""The running product against the contract: real front processes, seen only from outside.

Nothing in the contract tests imports the product. The wire is spoken with the third-party library
``websockets`` and the standard library's HTTP client, so that a mistake shared by the product's two ends
cannot hide here.
"""
