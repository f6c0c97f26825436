"""The loop: each batch once and in order, and after a stop the same bits as without it."""

import sys
from subprocess import PIPE

import jax
import numpy as np

from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.runs.manifest import Progress
from jaxgpt.train.loop import run
from tests import processes


def test_steps_and_batches_come_in_order_and_once(tiny):
    asked = []

    def batches(step):
        asked.append(step)
        return tiny.batches(step)

    seen = [(done, int(state.step)) for done, state, _ in run(tiny.step, tiny.begin(), batches, until=4)]
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert asked == [0, 1, 2, 3]


def test_a_state_at_the_end_is_not_moved(tiny):
    *_, (_, state, _) = run(tiny.step, tiny.begin(), tiny.batches, until=2)
    assert list(run(tiny.step, state, tiny.batches, until=2)) == []
    assert not state.params["wte"]["embedding"].is_deleted()


def test_the_next_batch_is_made_before_the_state_is_yielded(tiny):
    """So that it is made while the device works, and not after the caller has waited for a metric."""
    asked = []
    states = run(tiny.step, tiny.begin(), lambda step: asked.append(step) or tiny.batches(step), until=3)
    next(states)
    assert asked == [0, 1]


def test_resumed_is_uninterrupted_bit_for_bit(tiny, tmp_path):
    """With dropout, Adam's moments, and warmup under way."""
    whole = list(run(tiny.step, tiny.begin(), tiny.batches, until=6))

    checkpoints = Checkpoints(tmp_path)
    *_, (_, state, _) = run(tiny.step, tiny.begin(), tiny.batches, until=3)
    checkpoints.save(state, Progress(3))
    checkpoints.wait()
    rest = list(run(tiny.step, checkpoints.restore(tiny.abstract, 3), tiny.batches, until=6))

    assert [float(m.loss) for *_, m in rest] == [float(m.loss) for *_, m in whole[3:]]
    for one, other in zip(jax.tree.leaves(rest[-1][1:]), jax.tree.leaves(whole[-1][1:]), strict=True):
        np.testing.assert_array_equal(one, other)


HELD = """
import resource
from typing import NamedTuple
import jax
import jax.numpy as jnp
from jaxgpt.devices import start_devices
from jaxgpt.progress import Compiled
from jaxgpt.train.loop import run
class State(NamedTuple):
    step: jax.Array
    x: jax.Array
def step(state, batch):
    return State(state.step + 1, jnp.tanh(jnp.sin(jnp.outer(state.x, state.x)) @ state.x)), batch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start_devices("cpu")
jitted = jax.jit(step, donate_argnums=0)
state, batch = State(jnp.int32(0), jnp.ones(4096)), jnp.ones(4)
temporary = jitted.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
for done, state, _ in run(Compiled("a step", jitted), state, lambda _: batch, until=60):
    if done == 2:
        before = peak()
print((peak() - before) / temporary)
"""


def test_on_a_cpu_a_step_takes_its_temporary_memory_where_the_last_one_had_it():
    """While the last one's is not free yet, it would be taken beside it, and stay."""
    done = processes.run([sys.executable, "-c", HELD], check=True, stdout=PIPE, stderr=PIPE, text=True)
    assert float(done.stdout) < 0.5
