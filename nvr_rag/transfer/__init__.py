"""Documents, judgments and feedback on their way between installations, and from Qdrant collections of others."""
