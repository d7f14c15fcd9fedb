r"""Where a paper is in the code: its system, equations and boxes, found by the tags at their lines.

python -m jaxgen.index G06             # or: wgan, "survey Eq. 55", "arXiv:1704.00028, Eq. 3"
python -m jaxgen.index --cite G06      # BibTeX
python -m jaxgen.index --json          # the systems that are here, for programs

`survey Eq. 55-56` or `arXiv:1605.08803, Eq. 4; survey Box 6` beside a formula is a tag; a bare
`Eq. 4` is one of the first paper of the file's docstring. A docstring with `Survey N02` says which
system the file is, `@pytest.mark.evidence("N02", "P")` at a test what it shows of that system.
"""

import argparse
import ast
import difflib
import functools
import itertools
import json
import pathlib
import re
import sys
import tomllib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
EVIDENCE = {
  "G": "the numbers of an independent public implementation",
  "P": "the number of parameters of the official configuration",
  "W": "weights of a public implementation, trained or random, load and give its outputs",
  "M": "a mathematical identity",
  "C": "an experiment, at a size that fits a small machine",
}
_NUMBER = r"\d+(?:-\d+)?"
_TOKEN = re.compile(
  rf"(?P<source>[Ss]urvey\b|arXiv:\d{{4}}\.\d{{4,5}})|\b(?P<kind>Eq|Box|Alg|Sec|App|Table|Fig)\.? "
  rf"(?P<numbers>\d+(?:\.\d+)+|{_NUMBER}(?:(?:, | and ){_NUMBER})*|[A-Z]\b)"
)
# Between two tokens of one tag. "; ", ". " and other words begin a bare number.
_JOINT = re.compile(r"(,|\s|#|and|line \d+|[A-Z]\d\d\b)*")


class Tag(NamedTuple):
  """A line that computes something numbered."""

  file: str
  line: int
  function: str  # "Flow.__call__"; empty outside of all
  source: str  # "survey" or "arXiv:1605.08803"
  label: str  # "Eq. 55"


class System(NamedTuple):
  """A row of the survey. `module` is empty where it is not here yet."""

  id: str
  name: str
  survey: tuple[str, ...]  # labels
  papers: tuple[dict[str, str], ...]  # entries of papers.bib, the defining one first
  module: str
  config: str
  tests: tuple[tuple[str, int, str, str], ...]  # file, line, function, letters of EVIDENCE

  @property
  def paper(self):
    """Of the defining paper: "arXiv:1704.00028", or a DOI or an address."""
    return source_of(self.papers[0])


def labels(text):
  """The equations and boxes in a text: "Eq. 3-5, 7, Box 1" -> Eq. 3, 4, 5, 7 and Box 1."""
  found = []
  for match in _TOKEN.finditer(text):
    kind = {"Eq": "Eq.", "Box": "Box"}.get(match["kind"])
    for part in re.findall(_NUMBER, match["numbers"]) if kind else ():
      first, _, last = part.partition("-")
      found += [f"{kind} {i}" for i in range(int(first), int(last or first) + 1)]
  return tuple(found)


def parse_tags(file, text):
  """The Tags of a Python file, in order. A bare number in a file without a paper has source ""."""
  tree = ast.parse(text)
  own = re.search(r"arXiv:\d{4}\.\d{4,5}|doi:10\.[\w./()-]*\w", ast.get_docstring(tree) or "")
  functions = _functions(tree)
  found, source, end = [], "", 0
  for match in _TOKEN.finditer(text):
    joined, end = _JOINT.fullmatch(text, end, match.start()), match.end()
    if match["source"]:
      source = match["source"]
      continue
    source = source if joined else (own[0] if own else "")
    if source != "Survey":  # "Survey N02, Eq. 55-56" says what the file is about
      line = text.count("\n", 0, match.start()) + 1
      function = next((name for a, b, name in functions if a <= line <= b), "")
      found += [Tag(file, line, function, source, label) for label in labels(match[0])]
  return found


def _functions(tree):
  """[(first line, last line, qualified name)], the innermost ones first."""
  found = []

  def visit(node, prefix):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
        found.append((child.lineno, child.end_lineno, f"{prefix}{child.name}"))
        visit(child, f"{prefix}{child.name}.")
      else:
        visit(child, prefix)

  visit(tree, "")
  return sorted(found, key=lambda f: f[1] - f[0])


@functools.cache
def survey():
  """survey.toml as a dict."""
  return tomllib.loads((ROOT / "jaxgen/survey.toml").read_text())


@functools.cache
def bibliography():
  """papers.bib as [{"type", "key", "title", ..., "keywords"}]."""
  entries = []
  for line in (ROOT / "jaxgen/papers.bib").read_text().splitlines():
    if line.startswith("@"):
      kind, key = line[1:-1].split("{")
      entries.append({"type": kind, "key": key})
    elif line.startswith("  "):
      name, value = line.split(" = ", 1)
      entries[-1][name.strip()] = value.removesuffix(",")[1:-1]
  return entries


def source_of(entry):
  """Where an entry of the bibliography is: "arXiv:1704.00028", "doi:..." or an address."""
  if "eprint" in entry:
    return f"arXiv:{entry['eprint']}"
  return f"doi:{entry['doi']}" if "doi" in entry else entry["url"]


@functools.cache
def _sources(folder):
  """[(path relative to the root, text)] of the Python files below a folder."""
  paths = sorted((ROOT / folder).rglob("*.py"))
  return [(str(path.relative_to(ROOT)), path.read_text()) for path in paths]


@functools.cache
def tags():
  """Every Tag of the package."""
  examples = ("jaxgen/index.py", "jaxgen/pages.py")  # of tags
  files = [item for item in _sources("jaxgen") if item[0] not in examples]
  return [tag for item in files for tag in parse_tags(*item)]


@functools.cache
def systems():
  """Every System of the survey, by id."""
  modules, tests = {}, {}
  for file, text in _sources("jaxgen"):
    header = re.search(r"^Survey ([A-Z]\d\d(?:, [A-Z]\d\d)*)", _docstring(text), re.M)
    modules.update(dict.fromkeys(header[1].split(", "), file) if header else {})
  for file, text in _sources("tests"):
    for id, *found in parse_evidence(file, text):
      tests.setdefault(id, []).append(tuple(found))
  made = {}
  for id, row in survey()["systems"].items():
    papers = [e for e in bibliography() if id in e["keywords"].split(", ")]
    module = modules.get(id, "")
    config = _config(id, module) if module else ""
    given = labels(row["survey"])
    made[id] = System(
      id, row["name"], given, tuple(papers), module, config, tuple(tests.get(id, ()))
    )
  return made


def _docstring(text):
  return ast.get_docstring(ast.parse(text)) or ""


def _config(id, module):
  """The config of the same name; of a system that is a function, the one whose docstring has it."""
  same = module.replace("jaxgen/models/", "configs/", 1)
  if same != module and (ROOT / same).exists():
    return same
  return next((f for f, text in _sources("configs") if re.search(rf"\b{id}\b", text)), "")


def parse_evidence(file, text):
  """[(id, file, line, function, letters)] of the evidence marks of a test file."""
  found = []
  for node in ast.walk(ast.parse(text)):
    for mark in getattr(node, "decorator_list", ()):
      if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.evidence":
        id, *letters = (arg.value for arg in mark.args)
        found.append((id, file, node.lineno, node.name, "".join(letters)))
  return found


def evidence(system):
  """Its letters of EVIDENCE, in that order."""
  found = {letter for *_, letters in system.tests for letter in letters}
  return [letter for letter in EVIDENCE if letter in found]


def here():
  """The systems that work, in the order of the survey."""
  return [s for s in systems().values() if s.module]


def unclaimed(system):
  """Its equations and boxes that no line claims."""
  claimed = {tag.label for tag in tags() if tag.source == "survey"}
  return [label for label in system.survey if label not in claimed]


def as_json():
  """What --json prints: a dict for each system that is here."""
  return [
    {
      "id": s.id,
      "system": s.name,
      "paper": s.paper,
      "survey": list(s.survey),
      "module": s.module,
      "config": s.config,
      "tests": sorted({file for file, *_ in s.tests}),
      "evidence": evidence(s),
    }
    for s in here()
  ]


def named(query):
  """The systems that an id, a part of a name or title, or an arXiv number means."""
  if query.upper() in systems():
    return [systems()[query.upper()]]
  plain = lambda text: re.sub(r"[^a-z0-9]", "", text.lower())
  words = plain(query.removeprefix("arXiv:"))
  texts = lambda s: [s.name, s.module, *(f"{e['title']} {source_of(e)}" for e in s.papers)]
  return [s for s in systems().values() if words and any(words in plain(t) for t in texts(s))]


def find(query):
  """Lines "file:line: what" for a system, an equation or a box; none where it is not here."""
  match = re.fullmatch(r"(survey|arXiv:[\d.]+|),? *((Eq|Box)\.? .*)", query, re.IGNORECASE)
  if not match:
    return [line for s in named(query) if s.module for line in _places(s)]
  source, wanted = match[1].lower(), labels(match[2].title())
  found = [t for t in tags() if t.label in wanted and source in ("", t.source.lower())]
  return _lines(sorted(found, key=lambda t: t.source != "survey"))


def _places(system):
  yield f"{system.module}:1: {system.id} {system.name}, {system.paper}"
  yield f"{system.config}:1: config"
  yield from _lines(t for t in tags() if t.source == "survey" and t.label in system.survey)
  for file, line, function, letters in system.tests:
    yield f"{file}:{line}: {function}, evidence {letters}"


def _lines(found):
  """One for the tags of a line and a source: "file:line: function, survey Eq. 55, Eq. 56"."""
  lines = []
  for (file, line, function, source), group in itertools.groupby(found, key=lambda t: t[:4]):
    names = ", ".join(tag.label for tag in group)
    lines.append(f"{file}:{line}: {function or 'module'}, {source} {names}")
  return lines


def cite(system):
  """The BibTeX of its papers, the defining one first."""
  entries = []
  for paper in system.papers:
    fields = {k: v for k, v in paper.items() if k not in ("type", "key", "keywords")}
    body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    entries.append(f"@{paper['type']}{{{paper['key']},\n{body}}}\n")
  return "\n".join(entries)


def main():
  parser = argparse.ArgumentParser(prog="jaxgen.index", description=__doc__.splitlines()[0])
  parser.add_argument("query", nargs="?", help='G06, wgan, "survey Eq. 55", "survey Box 6"')
  parser.add_argument("--cite", metavar="SYSTEM", help="BibTeX of its papers")
  parser.add_argument("--json", action="store_true", help="the systems that are here")
  args = parser.parse_args()
  if args.json:
    print(json.dumps(as_json(), indent=1))
  elif args.cite:
    found = named(args.cite)
    print("\n".join(cite(s) for s in found) if found else _unknown(args.cite))
  elif args.query:
    found = find(args.query)
    print("\n".join(found) if found else _unknown(args.query))
  else:
    parser.print_help()


def _unknown(query):
  wanted = set(labels(query.title()))
  known = [s for s in systems().values() if wanted & set(s.survey)] or named(query)
  if known:
    names = ", ".join(f"{s.id} {s.name}" for s in known)
    sys.exit(f"{query!r}, {names}: not here yet; MODELS.md lists what is")
  names = [name for s in systems().values() for name in (s.id, s.name)]
  near = difflib.get_close_matches(query, names, 3, cutoff=0.3)
  sys.exit(f"{query!r}: no system, equation or box of that name; near: {', '.join(near) or 'none'}")


if __name__ == "__main__":
  main()
