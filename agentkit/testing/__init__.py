"""For authors' tests: a real agent on free ports, in the test's own process.

async def test_it_counts() -> None:
    async with running(Summarizer, config={"max_words": 5}) as agent:
        assert await agent.call("count", {"text": "one two"}) == 2
"""

from agentkit.settings import HibernateSettings
from agentkit.state.memory import MemoryStore
from agentkit.testing.running import Running, running

__all__ = ["HibernateSettings", "MemoryStore", "Running", "running"]
