"""The agent of bench_shm.py: looks at one number of each page of an array, which is what it takes for all of it to have arrived."""

from typing import Any

import numpy as np

from agentkit import BaseAgent, rpc

#: Numbers of 8 bytes in a page.
PAGE = 512


class Looker(BaseAgent):
    @rpc(timeout="60s")
    async def look(self, array: np.ndarray[Any, Any]) -> float:
        return float(array[::PAGE].sum())


if __name__ == "__main__":
    Looker.main()
