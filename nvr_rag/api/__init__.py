"""The HTTP API: requests in, JSON out. Everything it does is done by the packages beside it."""
