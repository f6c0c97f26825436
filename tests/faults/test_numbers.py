"""Losses that are not finite, and their sudden rise."""

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.errors import UsageError
from jaxgpt.hf.convert import load_pretrained, save_pretrained
from jaxgpt.runs.weights import load_params

# Gives the updates of some steps a loss that is not finite; the run's own code decides what comes of it.
POISON = """
import jax.numpy as jnp
from jaxgpt.train import trainer
make = trainer.make_step
def poisoned(objective, *args, **kwargs):
    step = make(objective, *args, **kwargs)
    def update(state, batch):
        bad = ({first} <= state.step) & (state.step < {last})
        return step(state, batch.replace(weights=jnp.where(bad, {value}, 1.0) * batch.weights))
    return update
trainer.make_step = poisoned
"""


@pytest.fixture(scope="session")
def poisoned(workshop):
    """Output of a run whose steps 7 to 9 are NaN, and of one whose steps from 7 on are."""
    once = workshop.train("once", before=POISON.format(first=6, last=9, value="jnp.nan"))
    always = workshop.train("always", "--max_skips=4", before=POISON.format(first=6, last=99, value="jnp.inf"))
    return once, always


def test_an_update_that_is_not_finite_is_skipped_and_counted(workshop, poisoned):
    code, output, errors = poisoned[0]
    assert code == 0, errors
    assert "step 9/20 | loss nan" in output and "| skipped 3" in output
    rows = {row["step"]: row for row in workshop.rows("once") if row["split"] == "train"}
    assert [rows[step]["skipped"] for step in (6, 7, 8, 9, 20)] == [0, 1, 2, 3, 3]
    assert rows[7]["loss"] is None and rows[7]["grad_norm"] is None, "JSON has no NaN"
    assert rows[20]["loss"] < rows[6]["loss"], "and training goes on"


def test_repeated_ones_end_the_run_and_name_the_last_good_checkpoint(workshop, poisoned):
    code, _, errors = poisoned[1]
    last = workshop.steps("always")[-1]
    assert code == 1 and errors.count("\n") == 1
    assert errors.startswith("error: 4 updates in a row had to be skipped, up to step 10, because the loss or its")
    assert f"the last good checkpoint is {workshop.folder / 'always' / 'checkpoints' / str(last)};" in errors
    assert last < 10, "the state of the step that ends the run is not saved"
    _, params = load_params(workshop.folder / "always", "last")
    assert bool(jnp.isfinite(params["wte"]["embedding"]).all())


def test_weights_that_an_update_has_ruined_are_not_saved_over_good_ones(workshop):
    """Loss and gradient are finite; it is the decay that is not."""
    code, _, errors = workshop.train("decayed", "--weight_decay=1e38", "--save_interval=1", "--keep=1")
    assert code == 1 and errors.startswith("error: the state after step ") and errors.count("\n") == 1
    assert "is not finite, and not saved: params/" in errors and "--weight_decay" in errors
    last = workshop.steps("decayed")[-1]
    assert f"the last good checkpoint is {workshop.folder / 'decayed' / 'checkpoints' / str(last)};" in errors
    _, params = load_params(workshop.folder / "decayed", "last")
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_weights_that_are_not_finite_are_refused_when_they_are_read(workshop, whole, tmp_path, value):
    config, params = load_params(workshop.folder / whole)
    save_pretrained(tmp_path, config, {**params, "wte": {"embedding": params["wte"]["embedding"].at[1, 2].set(value)}})
    with pytest.raises(UsageError, match="values that are not finite in float32: wte.weight"):
        load_pretrained(tmp_path)


def test_debug_nans_stops_where_a_nan_is_made(workshop):
    before = POISON.format(first=2, last=3, value="jnp.nan")
    code, _, errors = workshop.train("debug", "--debug_nans", before=before)
    assert code == 1 and "FloatingPointError" in errors and "nan" in errors.lower()
