"""How this node and the others know each other, and what they tell each other."""
