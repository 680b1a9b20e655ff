"""The servers that the benchmark runs beside the front: small relays, and the adapters of known signaling servers."""
