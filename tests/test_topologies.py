"""Runs of every kind of state that stop on some devices and hosts and go on on others."""

import json
import re
import shutil

import numpy as np
import processes
import pytest
import recipes
import test_step as kinds

pytestmark = pytest.mark.xdist_group("topologies")  # they share what these processes did
BODY = """
import ml_collections
import test_step as kinds
from jaxgen.core import checkpoint, loop
parallel._SMALLEST_SPLIT = 1
recipe = open({folder!r} + "/config.json").read()
def run(workdir, steps, mode="jit"):
  config = ml_collections.ConfigDict(json.loads(recipe))
  config.train.update(steps=steps, checkpoint_every=10, log_every=1, parallel=mode)
  state = loop.run(config, f"{folder}/{{workdir}}/{{kind}}", method=kinds.KINDS[kind])
  digest = checkpoint.sha256(jax.tree.map(parallel.whole, parallel.to_global(state, mode)))
  print("state", workdir, kind, steps, digest, flush=True)
for kind in kinds.KINDS:
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory):
  """(folder, (workdir, kind, steps) -> sha256 of the state)."""
  folder = tmp_path_factory.mktemp("topologies")
  (folder / "config.json").write_text(recipes.vectors(folder).to_json())
  found = {}

  def on(hosts, devices, *runs):
    calls = "".join(f"  run({', '.join(map(repr, r))})\n" for r in runs)
    body = "import json\n" + BODY.format(folder=str(folder)) + calls
    for text in processes.run(body, hosts, devices):
      for workdir, kind, steps, digest in re.findall(r"state (\S+) (\S+) (\d+) (\S+)", text):
        assert found.setdefault((workdir, kind, int(steps)), digest) == digest  # on all hosts

  copy = lambda old, new: shutil.copytree(folder / old, folder / new)
  on(1, 1, ("1x1", 3), ("1x1_whole", 6))
  on(2, 2, ("2x2", 3), ("2x2_whole", 6))
  copy("1x1", "1x1_to_1x8")
  copy("2x2", "2x2_to_1x8")
  copy("2x2", "2x2_to_2x1")
  on(1, 8, ("1x8", 3), ("1x8_whole", 6), *goes_on("1x1_to_1x8", "fsdp"), *goes_on("2x2_to_1x8"))
  copy("1x8", "1x8_to_1x1")
  on(1, 1, ("1x1", 6), *goes_on("1x8_to_1x1", "shard_map"))
  on(1, 8, ("1x8", 6))
  on(2, 1, *goes_on("2x2_to_2x1", "pmap"), ("2x1", 20))
  on(1, 2, ("1x2", 20))
  return folder, found


def goes_on(workdir, mode="jit"):
  """As it was restored, and one step later."""
  return (workdir, 3, mode), (workdir, 4, mode)


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("topology", ["1x1", "1x8"])
def test_a_resumed_run_is_the_uninterrupted_one(topology, kind, states):
  """Acceptance test 3: to the bit, in another process, on 1 and 8 devices."""
  _, found = states
  assert found[topology, kind, 6] == found[f"{topology}_whole", kind, 6] != found[topology, kind, 3]


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("change", ["1x1_to_1x8", "1x8_to_1x1", "2x2_to_1x8", "2x2_to_2x1"])
def test_a_run_goes_on_elsewhere(change, kind, states):
  """Acceptance test 6: the same arrays, also in another mode, and the next losses within 1e-5."""
  folder, found = states
  stopped = change.partition("_")[0]
  assert found[change, kind, 3] == found[stopped, kind, 3]
  ours, expected = losses(folder / change / kind), losses(folder / f"{stopped}_whole" / kind)
  assert ours.keys() == expected.keys()
  np.testing.assert_allclose([*ours.values()], [*expected.values()], rtol=1e-5)


def losses(workdir):
  """Of step 4."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return next({k: v for k, v in x.items() if k.endswith("/loss")} for x in lines if x["step"] == 4)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_two_hosts_with_a_device_each_are_one_with_two(kind, states):
  """Acceptance test 7: to the bit after 20 steps."""
  _, found = states
  assert found["2x1", kind, 20] == found["1x2", kind, 20]
