r"""Progressive distillation: each student takes half the DDIM steps of its teacher.

python -m experiments.distill --config=configs/diffusion/progressive_distillation.py:mnist16_student
    --teacher=runs/teacher --from_steps=64 --to_steps=1 --workdir=runs/pd
The students are the runs runs/pd/32, runs/pd/16, ...; those that are done are not trained again.
"""

import json

from absl import flags
from ml_collections import config_flags

from experiments import launch
from jaxgen.core import checkpoint, config, loop, method

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the runs.", required=True)
TEACHER = flags.DEFINE_string("teacher", None, "Run of the first teacher.", required=True)
FROM = flags.DEFINE_integer("from_steps", None, "Steps of the first teacher.", required=True)
TO = flags.DEFINE_integer("to_steps", 1, "Steps of the last student.", lower_bound=1)
flags.mark_flag_as_required("config")
SHARED = ("image_shape", "n_classes", "net", "net_args")


def main():
  student, teacher, steps = CONFIG.value, TEACHER.value, FROM.value
  ratio = steps // TO.value
  fits = ratio > 1 and steps == ratio * TO.value and ratio & (ratio - 1) == 0
  method.check("--from_steps", steps, fits, f"--to_steps={TO.value} times 2, 4, 8, ...")
  while steps > TO.value:
    steps //= 2
    run = config.read_snapshot(checkpoint.open_workdir(teacher))
    theirs, ours = (json.loads(c.args.to_json()) for c in (run, student))
    fits = run.model == student.model and all(theirs[k] == ours[k] for k in SHARED)
    method.check("--teacher", teacher, fits, f"a run of {student.model} with the same network")
    net = f"{teacher}:{'net_ema' if run.args.get('ema') else 'net'}"
    student.args.steps, teacher = steps, f"{WORKDIR.value}/{steps}"
    with student.unlocked():
      student.init_from = {"net": net, "teacher/net": net}
    state = loop.run(student, teacher, allow_fallback=launch.FALLBACK.value)
    if int(state.step) < student.train.steps:
      return  # stopped: the same command goes on


if __name__ == "__main__":
  launch.run(main)
