"""Two hosts with two devices each train, evaluate, save and resume as one device does."""

import json

import numpy as np
import processes
import pytest

# One train job of both models, from wherever its workdir has them; writes what it ends with.
JOB = """
import numpy as np
import runs
from jaxgen.core import loop
for model in {models!r}:
  config = runs.small(model + ".py")
  config.train.update(parallel={mode!r}, steps={steps}, eval_every={shown}, sample_every={shown})
  state = loop.run(config, {workdir!r} + "/" + model.split("/")[1])
  if HOST == 0 and {mode!r} != "fsdp":
    whole = [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves((state.params, state.opt))]
    np.savez({workdir!r} + "/" + model.split("/")[1], *whole)
"""
DDPM, FLOW = "diffusion/ddpm", "flow_matching/flow_matching"


def train(workdir, mode, steps, hosts, devices, models=(DDPM, FLOW), shown=0):
  workdir.mkdir(exist_ok=True)
  job = JOB.format(mode=mode, steps=steps, workdir=str(workdir), models=models, shown=shown)
  processes.run(job, hosts, devices)


def last_evaluation(workdir, model):
  lines = (workdir / model / "metrics.jsonl").read_text().splitlines()
  return next(x for x in map(json.loads, reversed(lines)) if "eval/nats" in x)


def assert_same_state(workdir, expected, models=(DDPM, FLOW)):
  for model in (m.split("/")[1] for m in models):
    a, b = np.load(expected / f"{model}.npz"), np.load(workdir / f"{model}.npz")
    for name in a.files:
      # Adam divides rounding noise by itself; after four steps of 1e-3 it is still below 1e-5.
      np.testing.assert_allclose(b[name], a[name], rtol=1e-4, atol=1e-5, err_msg=model)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """The whole run on one device."""
  workdir = tmp_path_factory.mktemp("one")
  train(workdir, "jit", 4, hosts=1, devices=1, shown=4)
  return workdir


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_two_hosts_do_what_one_does(mode, one, tmp_path):
  """Noise, order of the data, gradients, averages, evaluation; and they draw."""
  train(tmp_path, mode, 4, hosts=2, devices=2, shown=4)
  assert_same_state(tmp_path, one)
  for model in ("ddpm", "flow_matching"):
    a, b = last_evaluation(one, model), last_evaluation(tmp_path, model)
    np.testing.assert_allclose(b["eval/nats"], a["eval/nats"], rtol=1e-4)
    assert a["eval/n"] == b["eval/n"] == 20
    assert (tmp_path / model / "samples/samples_00000004.png").exists()


@pytest.mark.parametrize("mode, model", [("pmap", DDPM), ("fsdp", FLOW)])
def test_one_host_goes_on_from_two(mode, model, one, tmp_path):
  train(tmp_path, mode, 2, hosts=2, devices=2, models=(model,))
  train(tmp_path, "jit", 4, hosts=1, devices=1, models=(model,))
  assert_same_state(tmp_path, one, (model,))
