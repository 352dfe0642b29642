"""Which of several processes this one is. Imports no torch."""

import os
import socket
from dataclasses import dataclass

KEY_VARIABLE = "OMNI_THINKER_RANKS_KEY"
"""Environment variable with the key by which processes that rank 0 started know it."""


@dataclass(frozen=True, slots=True)
class Place:
    """`rank` of `world` processes, the `local`th on its machine; their store listens at `host`:`port`."""

    rank: int
    world: int
    local: int
    host: str
    port: int

    @property
    def one_machine(self) -> bool:
        return os.environ.get("LOCAL_WORLD_SIZE", str(self.world)) == str(self.world)

    @property
    def own_address(self) -> str:
        """Where processes on other machines find this one; of this machine alone where there are no others."""
        return "127.0.0.1" if self.one_machine else socket.gethostname()


def given_place() -> Place | None:
    """The place that torchrun, or rank 0, gave this process in its environment; None where it is alone."""
    environment = os.environ
    if int(environment.get("WORLD_SIZE", "1")) < 2 or "RANK" not in environment or "MASTER_PORT" not in environment:
        return None
    rank = int(environment["RANK"])
    return Place(
        rank=rank,
        world=int(environment["WORLD_SIZE"]),
        local=int(environment.get("LOCAL_RANK", rank)),
        host=environment.get("MASTER_ADDR", "127.0.0.1"),
        port=int(environment["MASTER_PORT"]),
    )
