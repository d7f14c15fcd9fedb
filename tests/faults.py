"""Starts survivor.py, ends it in all kinds of ways, and looks at what it leaves."""

import json
import os
import re
import signal
import sys
import time

import processes
import survivor

PATIENCE = 120  # seconds, for what should take a few


def start(folder, hosts=1, **flags):
  """The processes of a run; flags as in survivor.py."""
  words = [sys.executable, f"{processes.ROOT}/tests/survivor.py", f"--folder={folder}"]
  words += [f"--{name}={value}" for name, value in flags.items()]
  path = f"{processes.ROOT}{os.pathsep}{processes.ROOT}/tests"
  address = [f"--coordinator_address=127.0.0.1:{processes.free_port()}", f"--num_processes={hosts}"]
  each = [[*address, f"--process_id={i}"] if hosts > 1 else [] for i in range(hosts)]
  return [processes.start(words + e, processes.environment(PYTHONPATH=path)) for e in each]


def finish(started):
  """(exit statuses, outputs) of the processes of a run."""
  return processes.finish(started, PATIENCE)


def complete(folder, hosts=1, **flags):
  """Runs to the end; returns (step it started after, sha256 of its state), alike on all hosts."""
  status, outputs = finish(start(folder, hosts, **flags))
  assert status == [0] * hosts, "\n----\n".join(text[-3000:] for text in outputs)
  told = {(said("starts after step (.*)", text), said("state (.*)", text)) for text in outputs}
  assert len(told) == 1, told
  first, state = told.pop()
  return int(first), state


def said(pattern, text):
  """What a process printed, the group of `pattern`."""
  return re.search(pattern, text).group(1)


def reached(folder):
  """The last step whose metrics are on disk, 0 before the first."""
  path = folder / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return max((json.loads(line)["step"] for line in lines if line.endswith("}\n")), default=0)


def steps(folder):
  """Names of what is in checkpoints/ as numbers; fails where something else is there."""
  found = folder / "checkpoints"
  return sorted(int(p.name) for p in found.iterdir()) if found.exists() else []


def finished(folder):
  """The checkpoints with their final name; beside them may be what a save that was cut has left."""
  return [p for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]


def saved(folder):
  """Step of the newest complete checkpoint, whose content must be that step's; 0 for none."""
  newest = max((int(p.name) for p in finished(folder)), default=0)
  if newest:
    assert int(survivor.load(folder).extra["w"]["count"]) == newest
  return newest


def log(folder):
  """The file of metrics, another one in every life of a run; None before the first."""
  path = folder / "metrics.jsonl"
  return path.stat().st_ino if path.exists() else None


def wait_for_step(started, folder, step, old_log=None):
  """Returns once the metrics of `step` are on disk, not in the log of an earlier life."""
  deadline = time.time() + PATIENCE
  while log(folder) == old_log or reached(folder) < step:
    if time.time() > deadline or any(p.poll() is not None for p in started):
      raise AssertionError("\n----\n".join(t[-3000:] for t in processes.finish(started, 0)[1]))
    time.sleep(0.01)


def send(process, number):
  os.killpg(process.pid, number)


def kill_and_look(folder, rng, hosts=1, every=2):
  """One life of a run that is killed at a random moment; what it leaves must be whole.

  Returns how many steps the next life has to take again.
  """
  before, old_log = saved(folder), log(folder)
  started = start(folder, hosts, every=every, seconds=0.3)
  wait_for_step(started, folder, before + 1, old_log)
  time.sleep(rng.uniform(0.0, 1.0))
  for process in rng.sample(started, hosts):
    send(process, signal.SIGKILL)
    time.sleep(rng.uniform(0.0, 0.3) if hosts > 1 else 0.0)
  _, outputs = finish(started)
  assert {int(said("starts after step (.*)", text)) for text in outputs} == {before}, outputs
  after, last = saved(folder), reached(folder)
  assert before <= after <= last <= after + every + 1, (before, after, last)
  return last - after


def strike(kind, folder, moment, rng, **flags):
  """One life of a run that ends about step `moment`: by "kill", "term", "full" disk, or "flip".

  A flipped bit must be refused before the next life is allowed to fall back. Returns how many
  steps that one has to take again.
  """
  before, old_log = saved(folder), log(folder)
  more = {"fault": "full", "at": max(moment - before, 1)} if kind == "full" else {}
  started = start(folder, **flags, **more)
  if kind != "full":
    wait_for_step(started, folder, moment, old_log)
    send(started[0], signal.SIGTERM if kind == "term" else signal.SIGKILL)
  status, (text,) = finish(started)
  assert (status == [0]) == (kind == "term"), text[-3000:]
  assert int(said("starts after step (.*)", text)) == before
  if kind == "flip":
    path = flipped(folder, rng)
    status, (text,) = finish(start(folder, **flags))
    assert status == [1] and path in text, text[-3000:]
    status, (text,) = finish(start(folder, **flags, allow_fallback=True, fault="raise", at=1))
    assert status == [1] and "a bad shard" in text, text[-3000:]
  return reached(folder) - saved(folder)


def flip(path, at):
  """Flips a bit of a file; again, and it is as before."""
  data = bytearray(path.read_bytes())
  data[at // 8] ^= 1 << at % 8
  path.write_bytes(data)


def flipped(folder, rng):
  """Flips a bit in one of the files of the newest checkpoint; returns its path."""
  newest = folder / "checkpoints" / str(max(int(p.name) for p in finished(folder)))
  path = newest / rng.choice([*json.loads((newest / "manifest.json").read_text())["files"]])
  flip(path, rng.randrange(8 * path.stat().st_size))
  return str(path)


def memory(process):
  """Resident memory, in bytes."""
  with open(f"/proc/{process.pid}/status") as f:
    return 1024 * int(said(r"VmRSS:\s+(\d+) kB", f.read()))
