"""The recipes of docs/scaling.md: its very lines, with launchers that begin two processes here as the real ones do."""

import json
import os
import re
import shlex
import socket
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from benchmarks.soak import ENVIRONMENT, ROOT
from jaxgpt.command_line import parse
from jaxgpt.stages.pretrain import PretrainConfig
from tests import processes

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
RECIPES = PAGE.partition("\n## Starting on several devices\n")[2].partition("\n## ")[0]
SCRIPTS = re.findall(r"```sh\n(.*?)```", RECIPES, re.S)
TINY = """
dataset = "text.txt"
n_layer = 1
n_head = 2
n_embd = 16
block_size = 16
batch_size = 4
max_iters = 2
warmup_iters = 1
eval_iters = 1
sample_tokens = 0
tensorboard = false
"""
# What the two set for each process; what they are told to begin stands behind their own options.
LAUNCHERS = {
    "srun": "SLURM_JOB_ID={job} SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 SLURM_PROCID=$n SLURM_LOCALID=$n",
    "mpirun": "OMPI_MCA_orte_hnp_uri='{family}.0;tcp://127.0.0.1,10.0.0.1:{port}' OMPI_COMM_WORLD_SIZE=2 "
    "OMPI_COMM_WORLD_RANK=$n OMPI_COMM_WORLD_LOCAL_RANK=$n",
}
LAUNCH = """#!/bin/bash
until [ "$1" = python -o "$1" = sh ]; do shift; done
for n in 0 1; do {variables} "$@" & done
wait %1 && wait %2
"""


def free_port() -> int:
    """Return one that JAX may choose by a job's number."""
    for port in range(61440 + os.getpid() % 4000, 65536):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("no port is free")


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder as the recipes have it, and launchers."""
    (tmp_path / "gpt2.toml").write_text(TINY + f'cache_dir = "{tmp_path / "cache"}"\n')
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "bin").mkdir()
    files = {"python": f'#!/bin/sh\nexec {sys.executable} "$@"\n'}
    port = free_port()
    job = port - 61440  # the port is the last 12 bits of the job's number, from 61440 on
    for name, variables in LAUNCHERS.items():
        files[name] = LAUNCH.format(variables=variables.format(job=job, family=job * 4096, port=port))
    for name, text in files.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "port").write_text(str(port))
    return tmp_path


def run(cluster: Path, script: str) -> str:
    env = {**os.environ, **ENVIRONMENT, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{cluster / 'bin'}:{env['PATH']}"
    done = processes.run(["bash", "-c", script], cwd=cluster, env=env, stdout=PIPE, stderr=PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (cluster / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    return done.stdout


def recipe(word: str) -> str:
    [script] = [script for script in SCRIPTS if word in script]
    return script


@pytest.mark.slow
def test_the_lines_for_slurm_make_one_run_of_what_srun_begins(cluster):
    assert "parameters on 2 x cpu" in run(cluster, recipe("srun"))


@pytest.mark.slow
def test_so_do_those_for_open_mpi_also_of_versions_that_jax_does_not_know(cluster):
    launcher = cluster / "bin" / "mpirun"
    launcher.write_text(re.sub("OMPI_MCA_orte_hnp_uri='[^']*'", "", launcher.read_text()))
    script = recipe("mpirun").replace("node1:61000", f"127.0.0.1:{(cluster / 'port').read_text()}")
    assert "parameters on 2 x cpu" in run(cluster, script)


@pytest.mark.slow
def test_open_mpi_before_5_needs_no_variables_of_jaxs(cluster):
    [command] = re.findall(r"python train\.py.*out", recipe("mpirun"))
    assert "parameters on 2 x cpu" in run(cluster, f"mpirun -np 2 {command}")


def test_all_commands_are_ones_that_train_py_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt2.toml").write_text(TINY)
    lines = re.findall(r"train\.py ([^\n\"'`]*)", "\n".join(SCRIPTS))
    lines += [" ".join(words.split(", ")) for words in re.findall(r"command: \[python, train\.py, (.*)\]", RECIPES)]
    assert len(lines) == 6
    for line in lines:
        parse(PretrainConfig, shlex.split(line), prog="train.py", description="")
