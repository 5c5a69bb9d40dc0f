"""What a process tells of itself while it runs: figures for Prometheus, and lines of a log that belong together."""
