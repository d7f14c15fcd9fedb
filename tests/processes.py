"""Runs code or commands in several JAX processes on this machine, each with its own CPU devices."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from importlib import metadata

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Code that runs once is compiled two to four times faster than it could run.
FLAGS = "--xla_backend_optimization_level=0"
# Read without jax, which takes JAX_PLATFORMS as it is when it is imported.
if metadata.version("jax").startswith("0.10."):  # XLA ends where it does not know a flag
  FLAGS += " --xla_cpu_use_fusion_emitters=false"
DROPPED = ("SLURM_", "OMPI_", "TPU_", "CLOUD_TPU", "JAX_COORD", "PYTEST_")
PRELUDE = """
import os, sys, traceback
HOST, HOSTS, PORT, DEVICES = (int(a) for a in sys.argv[1:5])
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import jax
jax.config.update("jax_num_cpu_devices", DEVICES)
if HOSTS > 1:
  jax.distributed.initialize(f"127.0.0.1:{{PORT}}", HOSTS, HOST, initialization_timeout=60,
                             heartbeat_timeout_seconds=60, shutdown_timeout_seconds=60)
from jaxgen.core import parallel
parallel.start()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
def body():
{body}
try:
  body()
except BaseException:  # not into the barrier of a normal exit, where the others would wait
  traceback.print_exc()
  sys.stderr.flush()
  os._exit(1)
"""


def environment(**more):
  """This process's, without what other launchers of several processes have set."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
  return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "XLA_FLAGS": FLAGS, **more}


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def start(command, env=None):
  """A process in the repository, head of its own group, whose output `finish` returns."""
  kept = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
  return subprocess.Popen(command, cwd=ROOT, env=env or environment(), text=True, **kept)


def finish(started, timeout):
  """(exit status, output) of each process; all are killed where they take longer, in seconds."""
  outputs, deadline = [], time.time() + timeout
  for process in started:
    try:
      outputs.append(process.communicate(timeout=max(1.0, deadline - time.time()))[0])
    except subprocess.TimeoutExpired:
      for other in started:
        if other.poll() is None:
          os.killpg(other.pid, signal.SIGKILL)
      outputs.append(process.communicate()[0] + "\ntook too long")
  return [p.returncode for p in started], outputs


def launch(commands, timeout=300):
  """`finish` of commands(port), [(command, environment)]; once more where the port was taken."""
  for _ in range(2):
    status, outputs = finish([start(*c) for c in commands(free_port())], timeout)
    if not any("Address already in use" in text for text in outputs):
      break
  return status, outputs


def run(body, hosts=2, devices=2, timeout=300):
  """Output of each host; raises AssertionError with all of them where one fails or takes too long.

  body: code with HOST, HOSTS and DEVICES, run on each host after JAX has found the others.
  """
  code = PRELUDE.format(root=ROOT, body=textwrap.indent(textwrap.dedent(body), "  "))
  arguments = lambda host, port: map(str, (host, hosts, port, devices))
  command = lambda host, port: [sys.executable, "-c", code, *arguments(host, port)]
  status, outputs = launch(
    lambda port: [(command(host, port), environment()) for host in range(hosts)], timeout
  )
  assert status == [0] * hosts, "\n----\n".join(text[-3000:] for text in outputs)
  return outputs
