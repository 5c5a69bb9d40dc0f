"""The commands of the feedback loop on the command line `nvr-rag`."""
