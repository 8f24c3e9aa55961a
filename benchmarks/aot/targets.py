"""Accelerators to compile for on a machine that has none, with figures of their data sheets.

XLA's compilers for TPUs are in the package libtpu (extra `aot-tpu`); those for NVIDIA GPUs in
jax-cuda13-plugin and jax-cuda13-pjrt, which also need the program ptxas (extra `aot-cuda`).
Install each in a separate environment: unless JAX_PLATFORMS is set, JAX assumes that an installed
plugin has a device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import shutil

import jax
from jax._src.lib import xla_client
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Published:
    """Figures of one chip from its maker's data sheet.

    Attributes:
      memory: bytes of device memory; bandwidth: bytes/s of it.
      peaks: operations/s of matrix products whose operands are of a dtype, as JAX multiplies
        them by default: float32 as TF32 on GPUs, and in one bfloat16 pass on TPUs.
      source: where the figures are published.
    """

    memory: float
    bandwidth: float
    peaks: dict[str, float]
    source: str


PUBLISHED = {
    "h200": Published(
        141e9,
        4.8e12,
        {"bfloat16": 989e12, "float32": 494e12},
        "NVIDIA H200 data sheet: SXM, dense, 141 GB, 4.8 TB/s, BF16 989 and TF32 494 TFLOP/s",
    ),
    "v5e": Published(
        16e9,
        819e9,
        {"bfloat16": 197e12, "float32": 197e12},
        "Google Cloud TPU v5e: 16 GB, 819 GB/s, BF16 197 TFLOP/s a chip",
    ),
    "v5p": Published(
        95e9,
        2765e9,
        {"bfloat16": 459e12, "float32": 459e12},
        "Google Cloud TPU v5p: 95 GB, 2,765 GB/s, BF16 459 TFLOP/s a chip",
    ),
}

# The description of the chip that XLA's compiler for GPUs needs.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""

_TOPOLOGY = re.compile(r"^(v5e|v5p):(\d+x\d+(?:x\d+)?)$")


def chip(target: str) -> str:
    """The key of PUBLISHED of h200, v5e:AxB or v5p:AxBxC.

    Raises:
      ValueError: the target is none of these.
    """
    if target == "h200":
        return target
    if found := _TOPOLOGY.match(target):
        return found[1]
    raise ValueError(f"--target={target} is no target; there are h200, v5e:2x2 and v5p:2x2x1.")


def has_compiler(name: str) -> bool:
    """Whether the compiler of a key of PUBLISHED is installed."""
    if name != "h200":
        return importlib.util.find_spec("libtpu") is not None
    has_ptxas = shutil.which("ptxas") is not None or bool(_ptxas_folders())
    return importlib.util.find_spec("jax_cuda13_plugin") is not None and has_ptxas


def obstacle(target: str) -> str:
    """One sentence on why nothing can be compiled for `target` here; "" where it can."""
    name = chip(target)
    extra = "aot-cuda" if name == "h200" else "aot-tpu"
    if has_compiler(name):
        return ""
    return f"{target} is skipped: pip install 'pinsage-jax[{extra}]' has its compiler."


def prepare() -> None:
    """Settings of the process that compilers read once; called before JAX has a backend."""
    # Programs of the host itself, such as initial parameters, run on its CPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    # Candidate kernels cannot be measured without a device.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *_ptxas_folders()])
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    # libtpu would ask a cloud machine's metadata server what it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # No chip is taken, so several processes may compile at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")


def devices(target: str, count: int) -> list[jax.Device]:
    """The first `count` devices of a target, to compile for; `prepare` was called before.

    Raises:
      ValueError: the target has fewer devices.
    """
    if chip(target) == "h200":
        _initialize_cuda()
        description = topologies.get_topology_desc(
            platform="cuda", topology_name=target, target_config=_H200, topology=f"1x1x{count}"
        )
    else:
        description = topologies.get_topology_desc(platform="tpu", topology_name=target)
    found = list(description.devices)
    if len(found) < count:
        raise ValueError(f"--target={target} has {len(found)} devices, fewer than {count}.")
    return found[:count]


@functools.cache
def _initialize_cuda() -> None:
    jax.devices()  # Loads the libraries of all plugins.
    # It complains that there is no device; the compiler works without.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        xla_client.initialize_pjrt_plugin("cuda")


def _ptxas_folders() -> list[str]:
    """Folders of ptxas in the packages of CUDA, beside those of the PATH."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    found = [path for place in places or () for path in pathlib.Path(place).glob("cu*/bin/ptxas")]
    return [str(path.parent) for path in found]
