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
    local_device_ids: str = option(
        "",
        "Accelerators of this host that this process uses, by number, such as 0,1; empty: all "
        "that it finds. Processes of one host divide its accelerators by it.",
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

    @property
    def own_devices(self) -> list[int] | None:
        """The numbers of --local_device_ids; None: all devices."""
        if not self.local_device_ids:
            return None
        return [int(part) for part in self.local_device_ids.split(",")]

    def validate(self) -> None:
        super().validate()
        numbers = self.local_device_ids.split(",") if self.local_device_ids else []
        if not all(part.strip().isdecimal() for part in numbers) or (
            len({int(part) for part in numbers}) < len(numbers)
        ):
            raise UserError(
                f"--local_device_ids={self.local_device_ids} must be different numbers from 0 on, "
                "separated by commas, such as 0,1."
            )
        if numbers and self.num_processes == 1:
            raise UserError(
                f"--local_device_ids={self.local_device_ids} divides a host among several "
                "processes; with --num_processes=1 set --devices or CUDA_VISIBLE_DEVICES."
            )
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
