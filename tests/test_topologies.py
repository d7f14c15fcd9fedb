"""Runs of every kind of state that stop on some devices and hosts and go on on others."""

import functools
import json
import re
import shutil

import numpy as np
import processes
import recipes
import test_step as kinds

BODY = """
import json
import ml_collections
import test_step as kinds
from jaxgen.core import checkpoint, loop
parallel._SMALLEST_SPLIT = 1
recipe = open({folder!r} + "/config.json").read()
resume = loop._resume
def run(workdir, steps, mode="jit"):
  def tell(state):
    digest = checkpoint.sha256(jax.tree.map(parallel.whole, parallel.to_global(state, mode)))
    print("state", workdir, kind, int(state.step), digest, flush=True)
    return state
  loop._resume = lambda *a: tell(resume(*a))
  config = ml_collections.ConfigDict(json.loads(recipe))
  config.train.update(steps=steps, checkpoint_every=10, log_every=1, parallel=mode)
  tell(loop.run(config, f"{folder}/{{workdir}}/{{kind}}", method=kinds.KINDS[kind]))
for kind in kinds.KINDS:
"""


def states(folder, hosts, devices, *runs):
  """(workdir, kind, step) -> sha256 of the state of `run`, as restored and at the end."""
  if not (folder / "config.json").exists():
    (folder / "config.json").write_text(recipes.vectors(folder).to_json())
  calls = "".join(f"  run({', '.join(map(repr, r))})\n" for r in runs)
  found = {}
  for text in processes.run(BODY.format(folder=str(folder)) + calls, hosts, devices):
    for workdir, kind, steps, digest in re.findall(r"state (\S+) (\S+) (\d+) (\S+)", text):
      assert found.setdefault((workdir, kind, int(steps)), digest) == digest  # on all hosts
  return found


def losses(workdir):
  """Of step 4."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return next({k: v for k, v in x.items() if k.endswith("/loss")} for x in lines if x["step"] == 4)


def test_runs_stop_and_go_on_here_and_elsewhere(tmp_path):
  """Acceptance test 3: to the bit, in another process, on 1 and 8 devices.

  Acceptance test 6: on others the same arrays, also in another mode, the next losses within 1e-5.
  """
  on = functools.partial(states, tmp_path)
  copy = lambda old, new: shutil.copytree(tmp_path / old, tmp_path / new)
  found = on(1, 1, ("1x1", 3), ("1x1_whole", 6)) | on(
    2, 2, ("2x2", 3, "pmap"), ("2x2_whole", 6, "pmap")
  )
  copy("1x1", "1x1_to_1x8")
  copy("2x2", "2x2_to_1x8")
  copy("2x2", "2x2_to_2x1")
  there = ("1x1_to_1x8", 4, "fsdp"), ("2x2_to_1x8", 4)
  found |= on(1, 8, ("1x8", 3), ("1x8_whole", 6), *there)
  copy("1x8", "1x8_to_1x1")
  copy("1x8", "1x8_to_2x1")
  found |= on(1, 1, ("1x1", 6), ("1x8_to_1x1", 4, "shard_map"))
  found |= on(1, 8, ("1x8", 6)) | on(2, 1, ("2x2_to_2x1", 4, "pmap"), ("1x8_to_2x1", 4))
  for kind in kinds.KINDS:
    for topology in ("1x1", "1x8"):
      resumed, whole = found[topology, kind, 6], found[f"{topology}_whole", kind, 6]
      assert resumed == whole != found[topology, kind, 3], (topology, kind)
    for change in ("1x1_to_1x8", "1x8_to_1x1", "1x8_to_2x1", "2x2_to_1x8", "2x2_to_2x1"):
      stopped = change.partition("_")[0]
      assert found[change, kind, 3] == found[stopped, kind, 3], (change, kind)
      ours, whole = losses(tmp_path / change / kind), losses(tmp_path / f"{stopped}_whole" / kind)
      assert ours.keys() == whole.keys()
      np.testing.assert_allclose([*ours.values()], [*whole.values()], rtol=1e-5, err_msg=change)


def test_two_hosts_with_a_device_each_are_one_with_two(tmp_path):
  """Acceptance test 7: to the bit after 20 steps."""
  one, two = states(tmp_path, 1, 2, ("1x2", 20)), states(tmp_path, 2, 1, ("2x1", 20))
  for kind in kinds.KINDS:
    assert one["1x2", kind, 20] == two["2x1", kind, 20], kind
