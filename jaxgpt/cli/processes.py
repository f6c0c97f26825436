"""Commands in several processes that share a model, as `--distributed` says."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxgpt.flags import flags_where


@contextlib.contextmanager
def started(options: Any, **more: Any) -> Iterator[None]:
    """Start the devices, and let all processes that share a model do the same, and end together.

    Args:
        options: the command's flags, with `device` and `distributed`.
        more: what else all must have been given alike, by its name.
    """
    # Only now what waits for JAX.
    from jaxgpt.devices import start_devices

    if not options.distributed:
        start_devices(options.device)
        yield
        return
    from jaxgpt.hosts import one_for_all, refuse_disagreement

    with one_for_all():
        start_devices(options.device, distributed=True)
        own = flags_where(options, "per_host", True)
        same = {name: value for name, value in dataclasses.asdict(options).items() if name not in own}
        refuse_disagreement({**same, **more})
        yield
