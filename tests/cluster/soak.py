"""Cluster: a soak. Random faults under load in rounds, until the time is over or a condition is broken.

python -m tests.cluster.soak [MINUTES [SEED]]
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.fleet import Fleet, Load, fleet
from tests.cluster.servers import running

_SECONDS = 20.0
"""The longest time that a fault lasts: longer than a redelivery, and than the presence of a runner."""

Fault = Callable[[Fleet, random.Random], None]


def kill_runners(runners: Fleet, chance: random.Random) -> None:
    for runner in chance.sample(runners.runners, chance.choice([1, 1, 2, 3])):
        runner.kill()


def stop_runner(runners: Fleet, chance: random.Random) -> None:
    chance.choice(runners.runners).signal(signal.SIGSTOP)


def cut_off_runners(runners: Fleet, chance: random.Random) -> None:
    for runner in chance.sample(runners.runners, chance.choice([1, 1, 2, 3])):
        runners.cut_off(runner)


def kill_servers(runners: Fleet, chance: random.Random) -> None:
    for server in chance.sample(runners.servers.all, chance.choice([1, 1, 2, 3])):
        server.kill()


def stop_servers(runners: Fleet, chance: random.Random) -> None:
    for server in chance.sample(runners.servers.all, chance.choice([1, 1, 2, 3])):
        server.stop()


def restart_server(runners: Fleet, chance: random.Random) -> None:
    chance.choice(runners.servers.all).restart()


def damage_server(runners: Fleet, chance: random.Random) -> None:
    """Flip bytes in what one server has stored; until it was emptied, in no other."""
    damaged = [server for server in runners.servers.all if server.damaged]
    server = damaged[0] if damaged else chance.choice(runners.servers.all)
    server.damaged = True
    server.kill()
    blocks = [path for path in server.folder.rglob("*.blk") if path.stat().st_size]
    for path in chance.sample(blocks, min(3, len(blocks))):
        data = bytearray(path.read_bytes())
        for _ in range(10):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    server.start()


FAULTS: tuple[Fault, ...] = (
    kill_runners,
    stop_runner,
    cut_off_runners,
    kill_servers,
    stop_servers,
    restart_server,
    damage_server,
)


def soak(minutes: float, seed: int) -> None:
    """Run rounds; each ends with a whole cluster and a check of everything accepted in it."""
    chance, end = random.Random(seed), time.monotonic() + 60 * minutes
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "servers", 3) as servers,
        fleet(servers, Path(folder) / "fleet") as runners,
    ):
        number = 0
        while time.monotonic() < end:
            number += 1
            faults = [chance.choice(FAULTS) for _ in range(chance.choice([1, 1, 2, 3]))]
            began = time.monotonic()
            with Load(runners, pause=chance.choice([0.01, 0.05, 0.2])):
                for fault in faults:
                    time.sleep(chance.uniform(0.2, 2))
                    fault(runners, chance)
                time.sleep(chance.uniform(0, _SECONDS))
                runners.heal()
                time.sleep(1)
            healed = time.monotonic()
            ends = dict(runners.check())
            runners.servers.mend()
            names = ", ".join(fault.__name__ for fault in faults)
            print(
                f"{number}: {names}: {len(runners.accepted)} accepted, {ends};"
                f" {healed - began:.0f} s, whole after {time.monotonic() - healed:.1f} s",
                flush=True,
            )
            runners.accepted.clear()
            runners.cancelled.clear()


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:3]]
    soak(given[0] if given else 60, int(given[1]) if len(given) > 1 else 1)
