"""Two hosts with two devices each do what one does: steps, checkpoints, evaluation, pictures."""

import json

import jax
import ml_collections
import numpy as np
import processes
import recipes
import test_step as kinds

from jaxgen.core import loop, parallel

FLOW = "flow_matching/flow_matching.py"
PRELUDE = """
import json
import ml_collections
import numpy as np
import test_step as kinds
from jaxgen.core import loop
parallel._SMALLEST_SPLIT = 1
FOLDER = {folder!r}
def run(workdir, name="config", **train):
  config = ml_collections.ConfigDict(json.load(open(f"{{FOLDER}}/{{name}}.json")))
  config.train.update(train)
  return loop.run(config, f"{{FOLDER}}/{{workdir}}")
def keep(name, tree):
  leaves = [np.asarray(parallel.whole(x)) for x in jax.tree.leaves(tree)]
  if HOST == 0:
    np.savez(f"{{FOLDER}}/{{name}}", *leaves)
"""
KINDS = """
for kind, method in kinds.KINDS.items():
  for mode in parallel.MODES:
    keep(f"{kind}_{mode}", kinds.steps(method, mode, HOST, HOSTS))
"""
MODEL = """
for mode in ("jit", "pmap"):
  state = run(mode, "shown", parallel=mode)
  keep(mode, (state.params, state.opt))
run("fsdp", parallel="fsdp", steps=2)
"""


def on_two_hosts(body, folder):
  processes.run(PRELUDE.format(folder=str(folder)) + body)


def write_config(folder, config, name="config"):
  (folder / f"{name}.json").write_text(config.to_json())
  return config


def kept(folder, name):
  with np.load(folder / f"{name}.npz") as arrays:
    return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


def assert_close(leaves, expected, rtol, atol, where):
  for a, b in zip(leaves, jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=where)


def test_two_hosts_take_the_steps_of_one_device(tmp_path):
  """Acceptance test 8: in every mode, for every kind of state."""
  on_two_hosts(KINDS, tmp_path)
  for kind in kinds.KINDS:
    for mode in parallel.MODES:
      kinds.assert_is_one_device(kind, kept(tmp_path, f"{kind}_{mode}"))


def last_evaluation(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return next(x for x in map(json.loads, reversed(lines)) if "eval/nats" in x)


def test_a_model_on_two_hosts(tmp_path):
  """Order of the data, Adam, evaluation, pictures, and half a run in fsdp that one host ends."""
  config = write_config(tmp_path, recipes.small(FLOW))
  shown = ml_collections.ConfigDict(config.to_dict())
  shown.train.update(eval_every=4, sample_every=4)
  write_config(tmp_path, shown, "shown")
  on_two_hosts(MODEL, tmp_path)
  state = loop.run(shown, tmp_path / "one")
  # Adam divides rounding noise by itself; after four steps of 1e-3 it is still below 1e-5.
  close = lambda leaves, where: assert_close(
    leaves, (state.params, state.opt), rtol=1e-4, atol=1e-5, where=where
  )
  a = last_evaluation(tmp_path / "one")
  for mode in ("jit", "pmap"):
    close(kept(tmp_path, mode), mode)
    b = last_evaluation(tmp_path / mode)
    np.testing.assert_allclose(b["eval/nats"], a["eval/nats"], rtol=1e-4)
    assert a["eval/n"] == b["eval/n"] == 20
    assert (tmp_path / mode / "samples/samples_00000004.png").exists()
  resumed = loop.run(config, tmp_path / "fsdp")
  close(jax.tree.leaves((resumed.params, resumed.opt)), "fsdp")
