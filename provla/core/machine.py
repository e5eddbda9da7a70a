"""What a result was made on and with, and what must be pinned for it to come out again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from provla.core.awake import watch
from provla.core.files import ROOT
from provla.core.ranks import launched

PACKAGES = (
    *("provla", "torch", "transformers", "diffusers", "accelerate", "peft", "bitsandbytes", "lerobot"),
    *("metaworld", "ogbench", "gym-aloha", "mujoco", "numpy"),
)
# Variables of the environment by which MKL, oneDNN and CUDA round otherwise.
ROUNDING = (
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"),
    *("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE"),
)
_deterministic: Any = torch.utils.deterministic
_products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
_attention: Any = torch.backends.cuda


def _choose(deterministic: bool, lenient: bool) -> None:
    # As torch.use_deterministic_algorithms, which imports torch's compiler first: 1.6 s of every start.
    torch.set_deterministic_debug_mode(("warn" if lenient else "error") if deterministic else "default")


@contextmanager
def reproducible(threads: int, device: torch.device, deterministic: bool) -> Iterator[None]:
    """Inside, equal computations give equal bits on one machine, in any process and whatever it was started with.

    On the CPU: torch computes with `threads` threads, because sums over several are rounded by their number, takes its
    deterministic algorithms, and multiplies in float32 with the library that `_multiplies_faster` chooses. On a GPU it
    takes them where `deterministic` asks for it: they cost time there. An operation that has none is refused where
    `deterministic` is set, and named in a warning where it is not.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    products, flash = _products.fp32_precision, _attention.flash_sdp_enabled()
    lenient, filled = torch.is_deterministic_algorithms_warn_only_enabled(), _deterministic.fill_uninitialized_memory
    torch.set_num_threads(threads)
    _products.fp32_precision = "bf16" if _multiplies_faster() else "ieee"
    if device.type == "cpu":
        _attention.enable_flash_sdp(not _multiplies_faster())  # its many small products are slow with oneDNN
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    _choose(deterministic or device.type == "cpu", lenient=not deterministic)
    _deterministic.fill_uninitialized_memory = (
        False  # a guard for debugging: nothing here reads what it has not written
    )
    watch()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        _products.fp32_precision = products
        _attention.enable_flash_sdp(flash)
        _choose(before[1], lenient)
        _deterministic.fill_uninitialized_memory = filled


@cache
def _multiplies_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices here, not MKL, which uses half of what an AMD with AVX-512 can do.
    torch's switch for it is called bf16, but oneDNN rounds to it only where a CPU has AMX: looked at here.
    """
    if platform.machine() != "x86_64" or "Intel" in _cpu() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    before, exact = _products.fp32_precision, True
    generator = torch.Generator().manual_seed(0)
    try:
        _products.fp32_precision = "bf16"
        for rows, width in ((1, 256), (16, 64), (256, 768)):
            a, b = (torch.randn(n, width, generator=generator) for n in (rows, 128))
            true = a.double() @ b.double().T
            exact &= bool((a @ b.T - true).abs().max() < 1e-5 * true.abs().max())  # bfloat16: 4e-3
    finally:
        _products.fp32_precision = before
    return exact


def machine(device: torch.device) -> dict[str, Any]:
    """What can round a sum otherwise: the CPU's model, its instruction set as torch uses it, threads, what of
    `ROUNDING` is set; the GPU and CUDA.
    """
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "products": "oneDNN" if _multiplies_faster() else "torch",
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
    }
    found |= {name: value for name in ROUNDING if (value := os.environ.get(name))}
    if (ranks := launched().size) > 1:
        found["ranks"] = ranks
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    try:
        named = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        named = None
    return named[1].strip() if named else platform.processor() or "unknown"


def environment(device: torch.device) -> dict[str, Any]:
    """Where a result was made: memory it took, versions, machine, commit, and a hash of what is not committed."""
    memory = {"peak_memory_mb": peak_memory()}
    if device.type == "cuda":
        memory["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    made = {
        "versions": dict(_versions()),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "machine": machine(device),
    }
    return {**memory, **made, **code()}


@cache
def _versions() -> dict[str, str]:
    """Of what this process may have imported: looked up once."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


@cache
def code() -> dict[str, str | None]:
    """The `commit` that this process runs, looked at once: what is edited after the first look is not what was
    imported, and git is two processes.
    """
    return commit()


def commit() -> dict[str, str | None]:
    """commit, `-dirty` where something is not committed; uncommitted: a hash of that. None where provla was installed
    from a wheel, whatever repository its environment lies in.
    """
    if not (ROOT / "pyproject.toml").is_file():
        return {"commit": None, "uncommitted": None}
    commit = _git("describe", "--always", "--dirty", "--abbrev=12").strip()
    changed = _git("diff", "HEAD", "--", "provla", "hydra_plugins", "conf") if commit.endswith("-dirty") else ""
    return {
        "commit": commit or None,
        "uncommitted": hashlib.sha256(changed.encode()).hexdigest()[:12] if changed else None,
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def peak_memory() -> float:
    """The largest resident size so far [MB]: since `forget_peak_memory` where the system can tell, else of the
    process.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return (int(found[1]) if found else used) / 1024


def forget_peak_memory(device: torch.device) -> None:
    """Starts the peak anew, on the run's GPU too, so that a sweep's job does not report that of the job before it in
    the same process.
    """
    with contextlib.suppress(OSError):  # Linux alone can
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def find_device(name: str) -> torch.device:
    """auto: a GPU where there is one, each rank its own; it becomes the process's present one, which accelerate takes.
    `ValueError` for a device that is not there.
    """
    if launched().size > 1:
        name = _own_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("provla does not run there")
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name!r} is not available: {str(error).splitlines()[0]}; valid: auto, cpu, cuda, cuda:<n>"
        ) from error
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _own_device(name: str) -> str:
    """The device of a rank."""
    ranks, count = launched(), torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not count):
        return "cpu"
    if name not in ("auto", "cuda"):
        raise ValueError(f"device={name}: each of the {ranks.size} ranks has its own; give device=auto, cuda or cpu")
    if ranks.local >= count:
        raise ValueError(
            f"rank {ranks.rank} is process {ranks.local + 1} of its machine, which has {count} GPUs; start a process "
            f"per GPU (--nproc-per-node={count}, or --num_processes), or give device=cpu"
        )
    return f"cuda:{ranks.local}"
