"""Model weights: read from any format into a sharded layout, and exported."""
