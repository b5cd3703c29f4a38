"""Analysis passes: facts about the graph, read by others and never changed."""
