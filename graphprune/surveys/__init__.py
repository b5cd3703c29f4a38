"""Looking at many cuts without making one: curves, fronts, and tables of latency."""
