"""Files made to hurt: how they are made, and what must be true when a worker meets them (tests/bench/hostile.py)."""
