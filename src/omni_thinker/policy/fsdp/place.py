"""Which of several processes this one is. Imports no torch."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from omni_thinker.errors import UserError

KEY_VARIABLE = "OMNI_THINKER_RANKS_KEY"
"""Environment variable with the key by which processes that rank 0 started know it."""
PARENT_VARIABLE = "OMNI_THINKER_RANKS_PARENT"
"""Environment variable with the process id of a rank 0 that starts others."""
_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""What torchrun sets beside the variables that many launchers set."""


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
    """The place that torchrun, or rank 0, gave this process in its environment; None where it is alone.

    Raises UserError for variables that say something else, or that neither of them has set: who waits for ranks that
    nobody has started waits for minutes."""
    environment = os.environ
    world = _number(environment, "WORLD_SIZE", 1)
    if world < 2 or "RANK" not in environment or "MASTER_PORT" not in environment:
        return None
    rank = _number(environment, "RANK", 0)
    if rank >= world:
        raise UserError(f"is {rank}, but WORLD_SIZE is {world}; start ranks with torchrun", key="RANK")
    if _TORCHRUN not in environment and KEY_VARIABLE not in environment:
        raise UserError(
            f"is {world} in the environment, but torchrun didn't set it; start with torchrun, or unset it and set "
            "engine.fsdp.ranks",
            key="WORLD_SIZE",
        )
    return Place(
        rank=rank,
        world=world,
        local=_number(environment, "LOCAL_RANK", rank),
        host=environment.get("MASTER_ADDR", "127.0.0.1"),
        port=_number(environment, "MASTER_PORT", 0),
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, "").strip() or str(default)
    if not (value.isascii() and value.isdecimal()):
        raise UserError(f"is {value!r} in the environment, not a number; unset it", key=name)
    return int(value)
