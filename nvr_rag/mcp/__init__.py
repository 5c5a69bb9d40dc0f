"""Search, fetch and feedback as tools for agents, over the Model Context Protocol."""
