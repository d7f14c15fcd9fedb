"""make soak: what takes too long for `make test`, on two cores about half an hour."""

import collections
import json
import random
import signal
import time

import faults
import pytest

from jaxgen.core import parallel

HEARTBEAT = parallel._PATIENCE["heartbeat_timeout_seconds"]


def test_a_hundred_kills(tmp_path):
  """Acceptance test 1, a hundred times."""
  rng, run = random.Random(3), tmp_path / "run"
  again = [faults.kill_and_look(run, rng) for _ in range(100)]
  end = faults.reached(run) + 3
  assert faults.complete(run, steps=end)[1] == faults.complete(tmp_path / "whole", steps=end)[1]
  print(f"100 kills, {end} steps, of which {sum(again)} were taken twice")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_host_that_is_gone_ends_the_others(number, victim, tmp_path):
  """Acceptance test 12: non-zero within the heartbeat and 10 s."""
  started = faults.start(tmp_path, hosts=2, seconds=0.1)
  faults.wait_for_step(started, tmp_path, 3)
  faults.send(started[victim], number)
  since = time.time()
  assert started[1 - victim].wait(timeout=faults.PATIENCE) != 0
  seconds = time.time() - since
  faults.send(started[victim], signal.SIGKILL)
  faults.finish(started)
  assert seconds < HEARTBEAT + 10
  print(f"the other host ended {seconds:.0f} s later")


def test_input_that_stalls_on_one_host_ends_all(tmp_path):
  """Acceptance test 13: within the limit of the input and the heartbeat, the stacks in its log."""
  started = faults.start(tmp_path, hosts=2, fault="stall", at=8, host=1, timeout=5, seconds=0.1)
  status, outputs = faults.finish(started)
  assert 0 not in status and "Timeout (0:00:05)!" in outputs[1] and "in take" in outputs[1]
  assert time.time() - float(faults.said("stall at (.*)", outputs[1])) < 5 + HEARTBEAT + 10


def test_a_full_disk_on_the_second_host_ends_all(tmp_path):
  """Acceptance test 14, where host 0, which writes the manifest, can still write."""
  status, outputs = faults.finish(
    faults.start(tmp_path, hosts=2, fault="full", at=14, host=1, seconds=0.1)
  )
  assert 0 not in status and "File too large" in outputs[1]
  kept = faults.saved(tmp_path)
  assert kept and faults.complete(tmp_path, hosts=2, steps=kept + 4)[0] == kept


STEPS, EVERY, FAULTS = 2000, 50, 20


def test_twenty_random_faults(tmp_path):
  """Acceptance test 25: 2,000 steps; ends as the run without faults, nothing is left, no leak."""
  rng, run, since = random.Random(4), tmp_path / "run", time.time()
  whole = tmp_path / "whole"
  started = faults.start(whole, steps=STEPS, every=EVERY, seconds=0.01)
  sizes = []
  for step in (STEPS // 5, STEPS - EVERY):
    faults.wait_for_step(started, whole, step)
    sizes.append(faults.memory(started[0]))
  status, (text,) = faults.finish(started)
  assert status == [0], text[-3000:]
  expected = faults.said("state (.*)", text)

  count, again = collections.Counter(), 0
  moments = sorted(rng.sample(range(3 * EVERY, STEPS - EVERY), FAULTS))
  kinds = [k for k in ("kill", "term", "full", "flip") for _ in range(FAULTS // 4)]
  rng.shuffle(kinds)
  for kind, moment in zip(kinds, moments, strict=True):
    again += faults.strike(kind, run, moment, rng, steps=STEPS, every=EVERY, seconds=0.01)
    count[kind] += 1
  first, state = faults.complete(run, steps=STEPS, every=EVERY)
  assert state == expected
  assert faults.steps(run) == [STEPS - EVERY, STEPS] and not [*run.glob("**/*tmp*")]
  assert again <= FAULTS * (EVERY + 1)
  growth = sizes[1] / sizes[0] - 1
  assert growth < 0.05, sizes
  print(json.dumps({
    "steps": STEPS, "checkpoint_every": EVERY, "faults": dict(count), "steps_taken_twice": again,
    "rss_growth": round(growth, 4), "minutes": round((time.time() - since) / 60, 1),
  }))  # fmt: skip
