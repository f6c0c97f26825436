"""A training step made ready for all devices: mesh, optimizer, the state's places, and the compiled update."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxgpt.data.batches import Batch
from jaxgpt.devices import compute_dtype, platform
from jaxgpt.errors import RunError, out_of_memory
from jaxgpt.mesh import OwnRows, check_heads, check_rows, host_shard, place, put_batch
from jaxgpt.model.atlas import Parameter, parameters
from jaxgpt.model.attention_kernels import report
from jaxgpt.model.config import GPTConfig
from jaxgpt.objectives.base import Objective
from jaxgpt.progress import Compiled, bar
from jaxgpt.runs.checkpoint import Checkpoints
from jaxgpt.train.budget import table
from jaxgpt.train.config import RunConfig
from jaxgpt.train.loop import make_evaluate
from jaxgpt.train.optimizer import adamw
from jaxgpt.train.state import LeafPath, TrainState, abstract_state, join, split
from jaxgpt.train.step import make_step


class Trainer:
    """A step and all that belongs to it; nothing is compiled before it is used.

    Attributes:
        mesh: the devices.
        optimizer: what moves the parameters.
        step: (state, batch) → (state, metrics), compiled at its first call; it takes over the state's memory.
        abstract: the state's shapes, dtypes and shardings.
    """

    def __init__(
        self,
        flags: RunConfig,
        mesh: Mesh,
        *,
        config: GPTConfig,
        objective: Objective,
        parameters: Sequence[Parameter],
        trained: Callable[[LeafPath], bool] = lambda path: True,
        optimizer: optax.GradientTransformation | None = None,
        updates: int = 1,
        carried: Any = (),
    ) -> None:
        """Lay everything out.

        Args:
            flags: the run's.
            mesh: where it runs.
            config: the model's.
            objective: what is minimised.
            parameters: all that the objective reads.
            trained: for which paths a parameter is trained.
            optimizer: None for AdamW as the flags say.
            updates: in an iteration, of which the flags count.
            carried: see `TrainState`.

        Raises:
            UsageError: the batch, or the model's heads, can't be divided among the devices.
        """
        check_rows(mesh, flags.batch_size)
        check_heads(mesh, config)
        self.mesh, self.config, self._flags = mesh, config, flags
        self.optimizer = adamw(flags.times(updates), config) if optimizer is None else optimizer
        self.abstract = abstract_state(mesh, parameters, self.optimizer, trained, carried)
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        rows = OwnRows(mesh, parameters, compute_dtype(flags.dtype))
        step = make_step(
            objective,
            self.optimizer,
            seed=flags.seed,
            accumulate=flags.gradient_accumulation_steps,
            skip_spikes=flags.skip_spikes,
            rows=rows,
        )
        self.step = Compiled("the training step", jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, None)))
        self._trained, self._carried, self._sums = trained, carried, make_evaluate(rows.sums(objective))

    @cached_property
    def shard(self) -> dict[str, int]:
        """Which rows of each batch this process feeds; see `jaxgpt.mesh.host_shard`."""
        return host_shard(self.mesh)

    def put(self, batch: Any) -> Any:
        """Place this process's rows of a batch on its devices."""
        return put_batch(self.mesh, batch)

    def feed(self, batch: Callable[..., Any], step: int) -> Any:
        """Make this process's rows of a step's batch, and place them on its devices."""
        return put_batch(self.mesh, batch(step, **self.shard))

    def begin(self, batch: Callable[..., Any], step: int) -> None:
        """Begin to compile the step for batches like a step's, beside all that comes before the first update.

        Only on a CPU: compilers for GPUs choose by what they measure on the device.
        """
        if platform() == "cpu":
            self.step.begin(self.abstract, self.feed(batch, step))

    def budget(self, batch: Any, *, counted: bool) -> str:
        """Return the table of parameters, memory and arithmetic; compiles the step to learn its memory.

        Args:
            batch: any one.
            counted: see `jaxgpt.train.budget.table`.
        """
        batch = self.put(batch)
        compiled = self.step.jitted.lower(self.abstract, batch).compile()
        length = batch.tokens.shape[-1]
        return table(self.config, length=length, rows=batch.tokens.size // length, compiled=compiled, counted=counted)

    def attention(self, batch: Any) -> str:
        """Return a line that says which attention trains on batches like this one, and why."""
        packed = isinstance(batch, Batch) and batch.segment_ids is not None
        line = report(self.config, compute_dtype(self._flags.dtype), batch.tokens.shape[-1], packed=packed)
        if self._flags.dropout is None and self.config.attn_pdrop == 0 < self.config.resid_pdrop:
            line += "; attn_pdrop is 0, as of every pretrained model unless --dropout is given"
        return f"attention: {line}"

    def start(self, init_params: Callable[[Any], Any]) -> TrainState:
        """Return the state at step 0.

        Args:
            init_params: shardings of all parameters → their values, whose memory the state takes over.
        """

        def begin(params: Any) -> TrainState:
            return replace(TrainState.create(params, self.optimizer, carried=self._carried), params=None, frozen=None)

        with clear_errors():
            params, frozen = self._placed(init_params)
            rest = jax.jit(begin, out_shardings=replace(self.shardings, params=None, frozen=None))(params)
            return replace(rest, params=params, frozen=frozen)

    def resume(self, init_params: Callable[[Any], Any], checkpoints: Checkpoints, step: int) -> TrainState:
        """Return the state of a verified checkpoint; what is not trained comes from `init_params` again."""
        with clear_errors():
            like = self.abstract
            if like.frozen:
                like = replace(like, frozen=self._placed(init_params)[1])
            return checkpoints.restore(like, step, verified=True)

    def own_rows(self, config: GPTConfig) -> OwnRows:
        """Return what places another model than the one that is trained, and lets devices read rows of their own."""
        return OwnRows(self.mesh, parameters(config), compute_dtype(self._flags.dtype))

    def evaluate(self, params: Any, batches: Iterable[Any]) -> dict[str, float]:
        """Return means over batches of the objective's loss and metrics, by their names."""
        shown = bar("evaluation", batches, total=self._flags.eval_iters, unit="batches")
        return self._sums(params, (self.put(batch) for batch in shown))

    def _placed(self, init_params: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Return the parameters that are trained and the others, each where it belongs."""
        shardings = self.shardings.params, self.shardings.frozen
        return place(split(init_params(join(*shardings)), self._trained), shardings)


@contextlib.contextmanager
def clear_errors(last_good: Callable[[], str] = lambda: "nothing was written yet") -> Iterator[None]:
    """Turn what a machine can do to a run into an error that says what is left of it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{error.filename or 'a file'}: {error.strerror or error}; {last_good()}") from error
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if (reason := out_of_memory(error)) is not None:
            advice = "try a smaller --batch_size with more --gradient_accumulation_steps, or --remat"
            raise RunError(f"{reason}; {advice}; {last_good()}") from error
        if jax.process_count() > 1:
            reason = str(error).splitlines()[0]
            raise RunError(f"another process of this run, or the network, failed: {reason}; {last_good()}") from error
        raise
