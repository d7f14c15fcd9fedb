"""The commands that pages show: found in their fenced blocks, and checked against the code."""

import re
import shlex

from jaxgen.core import config as config_lib
from jaxgen.index import ROOT


def blocks(page, language):
  """The texts of a Markdown file's fenced blocks of a language."""
  return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def lines(text):
  """Of a shell script: continued lines joined, comments and empty ones left out."""
  return [x for x in text.replace("\\\n", " ").splitlines() if x.split("#")[0].strip()]


def modules(text):
  """[words after "python"] of every line that runs a module of ours, however it starts."""
  parts = [re.split(r"python -m (?=experiments|jaxgen|benchmarks)", x) for x in lines(text)]
  return [shlex.split(f"-m {part}", comments=True) for _, *rest in parts for part in rest]


def check(words):
  """Fails unless the module, its flags, the config, its variant and its fields exist."""
  assert words[0] == "-m", words
  module = ROOT / words[1].replace(".", "/")
  file = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
  assert file.exists(), file
  defined = r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?(\w+)"'
  launch = (ROOT / "experiments/launch.py").read_text() if "experiments" in words[1] else ""
  known = set(re.findall(defined, file.read_text() + launch))
  flags = dict(w.removeprefix("--").partition("=")[::2] for w in words[2:] if w.startswith("--"))
  if "config" in flags:
    known |= {f"config.{name}" for name in config_lib.flat(config_lib.read(flags["config"]))}
    known.add("config.init_from")  # a table, empty or not, is one flag
  assert flags.keys() <= known, f"{words}: {', '.join(flags.keys() - known)} does not exist"
