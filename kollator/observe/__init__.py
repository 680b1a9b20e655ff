"""What an operator sees of a front: ``logs`` (text or JSON) and ``metrics`` (Prometheus, OpenMetrics)."""
