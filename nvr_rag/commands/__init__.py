"""The commands of nvr-rag itself, one small file a group; see nvr_rag.cli."""
