"""An agent that does nothing: what BaseAgent costs above the floor."""

from agentkit import BaseAgent


class Bare(BaseAgent):
    pass
