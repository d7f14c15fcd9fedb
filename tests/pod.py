"""make pod: the launch commands of TPU_SETUP.md, as two processes with two CPU devices each.

They train a small flow on handwritten digits in place of CIFAR-10; one process is killed, one is
told to stop, and what comes out is compared with one process on one device.
"""

import json
import os
import pathlib
import re
import signal
import socket
import sys
import tempfile
import time

import commands
import numpy as np
import processes

PAGE = commands.modules("\n".join(commands.blocks("TPU_SETUP.md", "sh")))
STEPS, LOG_EVERY, CHECKPOINT_EVERY = 400, 10, 50
SMALL = f"""
  --config.args.net_args.width=32 --config.args.net_args.depth=1 --config.data.batch_size=32
  --config.train.steps={STEPS} --config.train.log_every={LOG_EVERY}
  --config.train.checkpoint_every={CHECKPOINT_EVERY}
  --config.train.sample_every=0 --config.train.eval_every=0
""".split()
STARTED = []


def small(command, workdir, port, host):
  """A command of the page for this machine: another folder, data that is here, a few steps."""
  replace = {
    r"(--workdir=).*": rf"\g<1>{workdir}",
    r"(--config=.*):cifar10": r"\1:digits",
    r"(--coordinator_address=).*": rf"\g<1>127.0.0.1:{port}",
    r"(--process_id=).*": rf"\g<1>{host}",
  }
  words = [sys.executable, *command]
  for old, new in replace.items():
    words = [re.sub(f"^{old}$", new, word) for word in words]
  return words + (SMALL if "experiments.train" in command else [])


def slurm(host, port):
  """What srun sets, for JAX's default port: 61440 + job % 4096."""
  job = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost"}
  return {**job, "SLURM_NTASKS": "2", "SLURM_PROCID": str(host), "SLURM_LOCALID": str(host)}


def slurm_port():
  for port in range(61440 + os.getpid() % 2048, 65536):
    with socket.socket() as s:
      if s.connect_ex(("127.0.0.1", port)):
        return port


def on_two_hosts(command, workdir):
  """The two processes; without an address in the command, SLURM's variables say who is who."""
  by_slurm = "--multihost" in command
  port = slurm_port() if by_slurm else processes.free_port()
  devices = f"{processes.FLAGS} --xla_force_host_platform_device_count=2"
  for host in range(2):
    more = slurm(host, port) if by_slurm else {}
    environment = processes.environment(XLA_FLAGS=devices, **more)
    STARTED.append(processes.start(small(command, workdir, port, host), environment))
  return STARTED[-2:]


def on_one_host(command, workdir):
  hosts = ("--multihost", "--coordinator_address", "--num_processes", "--process_id")
  alone = [word for word in command if not word.startswith(hosts)]
  alone = [word for word in alone if not word.startswith("--config.train.parallel")]
  STARTED.append(processes.start(small(alone, workdir, 0, 0)))
  return STARTED[-1:]


def saved(workdir):
  steps = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
  return max(map(int, steps), default=0)


def interrupt(started, workdir, sent):
  """Sends `sent` to the second process once a checkpoint is there."""
  deadline = time.time() + 120
  while not saved(workdir):
    if time.time() > deadline or any(p.poll() is not None for p in started):
      raise AssertionError("\n----\n".join(processes.finish(started, 0)[1]))
    time.sleep(0.05)
  os.killpg(started[1].pid, sent)


def finish(started, expected, timeout=180):
  """Outputs of processes that end as expected(status) says."""
  status, outputs = processes.finish(started, timeout)
  texts = "\n----\n".join(text[-3000:] for text in outputs)
  assert all(expected(s) for s in status) and "too long" not in texts, f"{status}\n{texts}"
  return outputs


def losses(workdir):
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {x["step"]: x["net/loss"] for x in lines}


def same(found, expected, cut=0):
  """Compares losses by step, except the mean over an interval that a stop at step `cut` has cut."""
  steps = [step for step in expected if not step - LOG_EVERY < cut < step]
  values = [[run[step] for step in steps] for run in (found, expected)]
  np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)


def done(stage, since):
  print(f"{time.time() - since:6.1f} s  {stage}", flush=True)


def main(folder):
  at = time.time()
  named = lambda module, flag: next(c for c in PAGE if f"experiments.{module}" in c and flag in c)
  address = next(c for c in PAGE if any(w.startswith("--coordinator_address") for w in c))
  ended, one = (lambda status: status == 0), folder / "one"

  since = time.time()
  finish(on_one_host(address, one), ended)
  expected = losses(one)
  done(f"one process trains {STEPS} steps", since)

  since, pmap = time.time(), folder / "pmap"
  started = on_two_hosts(address, pmap)
  interrupt(started, pmap, signal.SIGKILL)
  killed = time.time()
  finish(started, lambda status: status != 0)
  kept = saved(pmap)
  assert CHECKPOINT_EVERY <= kept < STEPS, kept
  wait = time.time() - killed
  done(f"by address, pmap: one worker is killed, the other ends {wait:.0f} s later", since)

  since = time.time()
  finish(on_two_hosts(address, pmap), ended)
  same(losses(pmap), expected)
  done(f"the same command: from step {kept} to the end, losses are those of one process", since)

  since, jit = time.time(), folder / "jit"
  train = named("train", "--multihost")
  started = on_two_hosts(train, jit)
  interrupt(started, jit, signal.SIGTERM)
  outputs = finish(started, ended)
  kept = saved(jit)
  assert kept < STEPS and f"stopped after step {kept}, which is saved" in outputs[0], outputs[0]
  done(f"under SLURM, jit: SIGTERM to one worker, both save step {kept} and exit 0", since)

  since = time.time()
  finish(on_two_hosts(train, jit), ended)
  same(losses(jit), expected, cut=kept)
  done("the same command: to the end, losses are those of one process", since)

  since = time.time()
  finish(on_two_hosts(named("sample", "--multihost"), jit), ended)
  sample = np.load(jit / "sample.npz")["image"]
  assert sample.shape[1:] == (8, 8, 1) and sample.std() > 0
  done(f"sample on both: {len(sample)} images", since)

  since = time.time()
  evaluate = named("evaluate", "--multihost")
  finish(on_two_hosts(evaluate, jit), ended)
  finish(on_one_host(evaluate, jit), ended)
  lines = (jit / "evaluation.jsonl").read_text().splitlines()
  a, b = (json.loads(line)["measures"]["bits/dim"] for line in lines)
  assert a == b
  done(f"evaluate on both and on one: {a['value']:.4f} bits/dim of {a['n']} images", since)
  done("in all", at)


if __name__ == "__main__":
  try:
    with tempfile.TemporaryDirectory() as folder:
      main(pathlib.Path(folder))
  finally:
    processes.finish([p for p in STARTED if p.poll() is None], 0)
