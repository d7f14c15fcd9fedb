r"""How a launcher starts, on one host or as one of several.

On a TPU pod and under SLURM --multihost is enough. Elsewhere every host is told where process 0 is:
--coordinator_address=10.0.0.2:1234 --num_processes=2 --process_id=0
"""

import json
import os
import sys
import time
import traceback

from absl import app, flags

from jaxgen.core import config, method, parallel

MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several hosts; TPU pods, SLURM tell.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
COUNT = flags.DEFINE_integer("num_processes", None, "How many hosts take part.")
ID = flags.DEFINE_integer("process_id", None, "Which of them this is, 0 ... num_processes - 1.")
FALLBACK = flags.DEFINE_bool("allow_fallback", False, "Pass over damaged checkpoints for older.")


def hosts(multihost, address, count, id):
  """What `parallel.start` takes. Raises ValueError for flags that do not go together."""
  given = {"coordinator_address": address, "num_processes": count, "process_id": id}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return {} if multihost else None
  if missing:
    raise ValueError(f"--{missing[0]} is missing: expected all of --{', --'.join(given)}, or none")
  host, _, port = address.rpartition(":")
  good = host and port.isdecimal() and 0 < int(port) < 2**16
  method.check("--coordinator_address", address, good, "HOST:PORT, as in 10.0.0.2:1234")
  method.check("--num_processes", count, count >= 1, "1 or more")
  method.check("--process_id", id, 0 <= id < count, f"0 to num_processes - 1 = {count - 1}")
  return given


def options(text, sample):
  """The table of keywords of `sample` in a JSON text; ValueError where it is not that."""
  try:
    given = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(f"--options={text!r}: expected JSON: {e}") from e
  passed = ("vars", "keys", "cond", "method", "rows")
  method.check_keywords("--options", given, sample, "this model's sample", passed)
  return given


def run(main):
  """Parses flags, finds devices and other hosts, and calls main() on each."""

  def start(_):
    found = hosts(MULTIHOST.value, ADDRESS.value, COUNT.value, ID.value)
    try:
      parallel.start(found)
      own = [*flags.FLAGS.get_key_flags_for_module(sys.argv[0]), flags.FLAGS["allow_fallback"]]
      config.check_hosts({f"--{f.name}": str(f.value) for f in own if f.name != "config"})
      main()
    except BaseException:
      if found is None:
        raise
      traceback.print_exc()  # a normal exit waits for the other hosts, and these for this one
      sys.stdout.flush()
      sys.stderr.flush()
      if found.get("process_id") == 0:
        time.sleep(2.0)  # others that stop too would abort without their coordinator
      os._exit(1)

  app.run(start)
