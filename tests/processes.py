"""Runs code in several JAX processes on this machine, each with its own CPU devices."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FLAGS = "--xla_backend_optimization_level=0"
DROPPED = ("SLURM_", "OMPI_", "TPU_", "CLOUD_TPU", "JAX_COORD", "PYTEST_")
PRELUDE = """
import os, sys, traceback
HOST, HOSTS, PORT, DEVICES = (int(a) for a in sys.argv[1:5])
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import jax
jax.config.update("jax_num_cpu_devices", DEVICES)
if HOSTS > 1:
  jax.distributed.initialize(f"127.0.0.1:{{PORT}}", HOSTS, HOST, initialization_timeout=60,
                             heartbeat_timeout_seconds=20, shutdown_timeout_seconds=20)
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


def environment():
  """This process's, without what other launchers of several processes have set."""
  kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
  return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "XLA_FLAGS": FLAGS}


def run(body, hosts=2, devices=2, timeout=180):
  """Output of each host; raises AssertionError with all of them where one fails or takes too long.

  body: code with HOST, HOSTS and DEVICES, run on each host after JAX has found the others.
  """
  code = PRELUDE.format(root=ROOT, body=textwrap.indent(textwrap.dedent(body), "  "))
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  start = lambda host: subprocess.Popen(
    [sys.executable, "-c", code, *map(str, (host, hosts, port, devices))],
    env=environment(),
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )
  started, outputs, deadline = [start(host) for host in range(hosts)], [], time.time() + timeout
  for process in started:
    try:
      outputs.append(process.communicate(timeout=max(1.0, deadline - time.time()))[0])
    except subprocess.TimeoutExpired:
      for other in started:
        if other.poll() is None:
          os.killpg(other.pid, signal.SIGKILL)
      outputs.append(process.communicate()[0] + "\ntook too long")
  texts = "\n----\n".join(text[-3000:] for text in outputs)
  assert [p.returncode for p in started] == [0] * hosts, texts
  return outputs
