"""The devices that a process computes on, and the settings that must be made before JAX touches them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from jaxgpt.errors import RunError, UsageError

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

_targets: ContextVar[Sequence[Any]] = ContextVar("targets", default=())


def start_devices(device: str = "auto", *, distributed: bool = False, debug_nans: bool = False) -> None:
    """Choose the backend and, in a run of several processes, join the others.

    Args:
        device: "auto", "cpu", "cuda" or "tpu".
        distributed: whether this is one of several processes; where it is not a TPU pod or a cluster that JAX
            knows, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who.
        debug_nans: stop at the operation that makes a NaN.

    Raises:
        UsageError: there is no such device here.
        RunError: the other processes did not come.
    """
    reuse_memory()
    import jax

    # See `reuse_memory`; but what other processes do to a program is JAX's own error only where it runs in a thread.
    jax.config.update("jax_cpu_enable_async_dispatch", distributed)
    if device != "auto":
        jax.config.update("jax_platforms", device if device == "cpu" else f"{device},cpu")  # see `in_host_memory`
    jax.config.update("jax_threefry_partitionable", True)  # or what is dropped would depend on the devices
    if debug_nans:
        jax.config.update("jax_debug_nans", True)
    if distributed and not jax.distributed.is_initialized():
        numbers = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        if "cpu" in (device, os.environ.get("JAX_PLATFORMS")):
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        given: dict[str, Any] = {name: _number(key) for name, key in numbers.items() if key in os.environ}
        try:
            jax.distributed.initialize(os.environ.get("JAX_COORDINATOR_ADDRESS"), **given)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"--distributed: {str(error).splitlines()[0]}") from None
        if jax.process_index() > 0:  # the first process speaks for all; each has its own errors
            sys.stdout = open(os.devnull, "w", encoding="utf-8")
    try:
        backend = jax.default_backend() if device == "auto" else jax.devices(device)[0].platform
    except (RuntimeError, AssertionError) as error:  # the latter without JAX's plugin for the device
        reason = next(iter(str(error).splitlines()), "JAX finds none here")
        raise UsageError(f"--device {device}: {reason}; --device auto takes what there is") from None
    if backend != "cpu":
        # Not on CPU, where cached programs have been seen to fail.
        cache = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "jaxgpt", "compiled")
        jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", cache))


def target_devices() -> Sequence[Any]:
    """Return the devices that programs are made for: all of this run's, or inside `compiling_for` others."""
    import jax

    return _targets.get() or jax.devices()


def platform() -> str:
    """Return what programs are made for: "cpu", "gpu" or "tpu"."""
    return target_devices()[0].platform


@contextlib.contextmanager
def compiling_for(devices: Sequence[Any]) -> Iterator[None]:
    """Make programs for devices that aren't here: what depends on their platform, kind or number is chosen for them."""
    before = _targets.set(devices)
    try:
        yield
    finally:
        _targets.reset(before)


def in_host_memory(*, shared: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Let what is made in the block lie in the host's memory: whole models, on their way to devices that share them."""
    import jax

    if not shared:
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return contextlib.nullcontext()


def refuse_beyond_memory(needed: int, what: str) -> None:
    """Raise a UsageError if all devices together have not the memory, in bytes, that something takes at least."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        if not hasattr(os, "sysconf"):  # Windows does not say
            return
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()
    elif (limit := (device.memory_stats() or {}).get("bytes_limit")) is not None:
        have = limit * jax.device_count()
    else:
        return
    if needed > have:
        raise UsageError(f"{what} take {needed / 2**30:,.0f} GiB; the devices have {have / 2**30:,.0f} GiB together")


def free_memory() -> int | None:
    """Return the bytes of the host's memory that nobody uses; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError):  # Windows; macOS
        return None


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not text.isdecimal():
        raise UsageError(f"{variable} is {text!r}; it must be a whole number")
    return int(text)


def reuse_memory() -> None:
    """Have the process keep the memory that it frees, where its allocator is glibc's.

    XLA on CPU allocates its temporary memory anew at every execution; given back in between, it costs a page fault for
    each 4 KiB: over 100,000 in a training step of a small model, a fifth of its time. So `start_devices` has programs
    run one after the other, in the caller's thread: one that began while another ended would take its memory beside it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)):
            mallopt(option, value)


def return_memory() -> None:
    """Give back what the process has freed and kept, where its allocator is glibc's.

    What runs next pays for the pages that it needs: a quarter of a second for a small model's step.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def compute_dtype(dtype: str) -> str:
    """Resolve "auto": bfloat16 on GPU and TPU, float32 on a CPU, where bfloat16 is slower."""
    return ("float32" if platform() == "cpu" else "bfloat16") if dtype == "auto" else dtype


def describe_devices() -> str:
    """Return how many devices there are, and of what kind."""
    return f"{len(target_devices())} x {target_devices()[0].device_kind}"


def is_first() -> bool:
    """Return whether this process speaks for all of a run's."""
    import jax

    return jax.process_index() == 0
