"""The process of the attackers: ``python -m tests.bench.attackers NAME AIM`` runs one attack.

``AIM`` is a JSON object with the fields of ``Aim``. The process prints "ready" when it is prepared, begins at a line on
its standard input, and prints what came of it. What can be run is in ``ATTACKS``: whatever ``slow``, ``floods`` and
``crowds`` have.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys

from tests.bench import crowds, floods, slow
from tests.bench.swarm import ATTACKS, Aim, Did

__all__ = ["ATTACKS", "crowds", "floods", "slow"]


async def _main(name: str, aim: Aim) -> Did:
    async def begin() -> None:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

    return await ATTACKS[name](aim, begin)


def main(name: str, aim: str) -> None:
    """Runs one attack in this process, which gives way to others."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.nice(5)
    fields = json.loads(aim)
    fields["sources"] = tuple(fields["sources"])
    print(json.dumps(asyncio.run(_main(name, Aim(**fields)))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
