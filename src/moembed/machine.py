"""This machine: what a figure depends on beside the code, and which backends it can run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import warnings
from collections.abc import Collection
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moembed.files import write_json
from moembed.threads import available_cores
from moembed.types import UserError

if TYPE_CHECKING:
    import torch

AUTO = "auto"  # a backend that nobody named
RUN_FILE = "run.json"  # of a run folder: when, with what, on what and from where it was made
ROOT = Path(__file__).parents[2]  # of a checkout
LIBRARIES = (
    "torch", "transformers", "sentence-transformers", "onnxruntime", "fastembed", "llama-cpp-python",
)  # fmt: skip
INSTRUCTIONS = {"amx": "amx_bf16", "avx512_bf16": "avx512_bf16", "avx512_vnni": "avx512_vnni"}
# by what decides how fast matrices are multiplied, the fastest first
CPU_KINDS = {"amx": "amx_bf16", "avx512": "avx512_bf16", "avx512-fp32": "avx512f", "avx2": "avx2"}
# what changes the speed of PyTorch's products and threads from outside
ENVIRONMENT = ("ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_", "MKL_", "ATEN_CPU_", "MALLOC_", "LD_PRELOAD")


def machine() -> dict[str, Any]:
    """All that the figures depend on."""
    import torch

    cpu = _cpu_info()
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "isa": [name for name, flag in INSTRUCTIONS.items() if flag in flags],
        "kind": cpu_kind(flags, platform.machine()),
        "onednn": _onednn(),
        "environment": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(ENVIRONMENT)
        },
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "precision": best_dtype(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def made() -> dict[str, Any]:
    """Today, the versions and the machine, for a page or file that is made now."""
    from datetime import date

    from moembed import __version__

    about = machine()
    versions = {name: found for name, found in about["versions"].items() if found}
    hardware = {key: about[key] for key in ("cpu", "cores", "gpu", "precision", "system") if about[key]}
    return {"date": date.today().isoformat(), "moembed": __version__, **versions, **hardware}


def write_made(run: Path, **paths: str) -> None:
    """``run.json`` of a run folder: what ``made`` says, and from which paths the run was made."""
    write_json(run / RUN_FILE, made() | {"paths": {"run": str(run.resolve()), **paths}})


def cpu_kind(flags: Collection[str], architecture: str) -> str:
    """``amx``, ``avx512`` (with products in bf16), ``avx512-fp32`` (without), ``avx2``, ``arm``, or another
    architecture's name: figures of two kinds are never compared."""
    for kind, flag in CPU_KINDS.items():
        if flag in flags:
            return kind
    architecture = architecture.lower()
    return "arm" if architecture.startswith(("arm", "aarch64")) else architecture


def _onednn() -> str | None:
    """The version of the library that multiplies matrices on a CPU; None if PyTorch has none."""
    import torch

    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return found[1] if found else None


def memory_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu_info() -> dict[str, str]:
    """Facts on the first CPU; none where the system does not list them."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().partition("\n\n")[0].splitlines() if file.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def version(library: str) -> str | None:
    """Of an installed library; None if it is not."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout, marked if it was changed since; None outside a checkout."""
    if not (ROOT / "pyproject.toml").is_file():
        return None
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def has_amx() -> bool:
    """Whether this CPU multiplies whole tiles of bf16 numbers, several times as fast as rows of them."""
    import torch

    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def has_bfloat16() -> bool:
    """Whether this CPU has bf16 dot products (AMX or AVX512-BF16); emulated bf16 is slower than fp32."""
    import torch

    return has_amx() or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def choose_precision(name: str, device: str) -> torch.dtype:
    """``auto``: bf16 where the hardware multiplies it natively, else fp32."""
    import torch

    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def best_dtype() -> str:
    """What serves fastest here without emulation: bfloat16 where the hardware multiplies it, else float32."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return str(choose_precision("auto", device)).removeprefix("torch.")


def requested_backend(setting: str, wanted: str, known: Collection[str]) -> str | None:
    """The backend that the caller or else the environment names; None where both leave it open.

    Raises:
        UserError: there is no such backend.
    """
    variable = f"MOEMBED_{setting.upper()}"
    source, name = (setting, wanted) if wanted != AUTO else (variable, os.environ.get(variable) or AUTO)
    if name == AUTO:
        return None
    if name not in known:
        raise UserError(f"{source} {name!r} is not known (known: {AUTO}, {', '.join(known)})")
    return name


def supported_backend(setting: str, name: str, unsupported_reason: str | None, instead: str) -> str:
    """``name``, or where it cannot run a warning that says why, and ``instead``."""
    if unsupported_reason is None:
        return name
    warnings.warn(f"{setting} {name!r} {unsupported_reason}; {instead!r} runs instead", stacklevel=2)
    return instead
