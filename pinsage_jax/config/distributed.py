"""Settings of a run that several processes, usually one a host, share."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, constant, option
from pinsage_jax.core.errors import UserError

_EXAMPLE = "such as --coordinator=10.0.0.1:4321"


@dataclasses.dataclass(frozen=True)
class DistributedConfig(Checked):
    """Several processes, usually one a host, that train as one run."""

    coordinator: str = option(
        "",
        "HOST:PORT at which process 0 meets the others, an address of its host.",
        environment="JAX_COORDINATOR_ADDRESS",
    )
    num_processes: int = option(
        1,
        "Processes of the run, each with its own devices; they share the workdir.",
        low=1,
        environment="JAX_NUM_PROCESSES",
    )
    process_id: int = option(
        0,
        "Number of this process, from 0; process 0 writes everything.",
        low=0,
        environment="JAX_PROCESS_ID",
    )
    join_seconds: int = constant(300, "How long processes wait for each other at the start.", low=1)
    lost_seconds: int = option(
        60, "A process that is silent for so long counts as dead, and the others end.", low=2
    )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def validate(self) -> None:
        super().validate()
        if self.process_id >= self.num_processes:
            raise UserError(
                f"--process_id={self.process_id} must be below "
                f"--num_processes={self.num_processes}; they count from 0."
            )
        if self.num_processes == 1:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise UserError(
                f"--num_processes={self.num_processes} needs --coordinator=HOST:PORT "
                f"({_EXAMPLE}), not '{self.coordinator}'."
            )
