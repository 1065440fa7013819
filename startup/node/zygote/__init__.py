"""The fork server beside the node, both ends of the conversation with it, and what a child does before it is an agent."""
