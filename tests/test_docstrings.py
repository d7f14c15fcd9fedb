"""Docstrings say shapes, units, errors and source: read from the text of the package.

A subject is what others use: public functions, classes and their methods, and the functions that a
model's `build` puts in `Method.fns`. What the docstring around it says (of its class, of `build`)
counts for it too, and what its module's says where a rule allows that.
"""

import ast
import re
from typing import NamedTuple

import pytest

from jaxgen.core import method
from jaxgen.index import ROOT

FILES = [p for p in sorted((ROOT / "jaxgen").rglob("*.py")) if p.stat().st_size]
# Where each rule holds. `nn/__init__` and `samplers/__init__` are tables of names.
# Of metrics, the measures: not the files that read weights and data for them.
MEASURES = r"metrics/(?!_|evaluation|extractors|latents|reference)"
SHAPES = re.compile(rf"jaxgen/((objectives|samplers|nn|models/\w+)/|{MEASURES}|(paths|noise)\.py)")
TIMES = re.compile(r"jaxgen/((objectives|samplers|metrics)/|nn/(?!bijectors)|paths\.py)")
SOURCE = re.compile(rf"jaxgen/((objectives|samplers|nn|models/\w+)/(?!__)|{MEASURES}|paths\.py)")
IMAGES = re.compile(r"jaxgen/(data/|core/report|objectives/likelihood|models/)")
DENSITIES = re.compile(r"log_prob|(^|_)(kl|nll|bits|bound|term|prior|entropy|elbo)(_|$)")

# Parameters that are no arrays [B, ...], whatever function they are of.
PLAIN = set(
  "cls where args image_shape n_classes dim height width channels rate draw train layers"
  " path field cond uncond w name shape key n i p low high".split()
)
VOCABULARY = {"vars", "batch", "keys"}  # of Method.fns: said once, in core/method.py
NO_ARRAYS = {"jaxgen/nn/__init__.py module", "jaxgen/nn/unet.py group_count"}

SHAPE = (
  r"\[[^\[\]()]*\b(?:\d?[A-Z]|n)\b[^\[\]()]*\]|\b[Ee]lementwise\b|\bscalars?\b"
  r"|\blike (?:x|x_t|eps|mean)\b|\bof `\w+`"
)
CLOCK = r"noise to data|data to noise|either way|1, …, T|0 to 1000|in steps|t_noise"
RANGE = r"\[-1, 1\]|\(-1, 1\)|uint8|8-bit"
PAPER = r"arXiv:\d{4}\.\d{4,5}|doi:10\.|survey (Eq|Box)"


class Subject(NamedTuple):
  name: str  # "Field.velocity"
  node: ast.AST
  doc: str
  around: str  # docstring of the class or of build, which holds it
  is_fn: bool = False  # of Method.fns


def plain(text):
  """A docstring as one line, in which only sentences end in full stops."""
  text = " ".join(text.replace("...", "…").split())
  return re.sub(r"\b(Eq|Sec|App|Alg|Fig)\. ", r"\1 ", text)


def public(node):
  return isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"


def subjects(tree):
  for node in filter(public, tree.body):
    doc = ast.get_docstring(node) or ""
    yield Subject(node.name, node, doc, "")
    for child in node.body:
      is_fn = node.name == "build" and getattr(child, "name", "") in method.FNS
      is_method = isinstance(node, ast.ClassDef) and isinstance(child, ast.FunctionDef)
      if is_fn or (is_method and (public(child) or child.name == "__call__")):
        name = f"{node.name}.{child.name}"
        yield Subject(name, child, ast.get_docstring(child) or "", doc, is_fn)


def raised(node, tree, seen=()):
  """Names of the exceptions of a function and of the functions of its file that it calls."""
  functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
  found = set()
  for x in ast.walk(node):
    if isinstance(x, ast.Raise) and x.exc:
      name = ast.unparse(getattr(x.exc, "func", x.exc))
      found |= {name} if name.isidentifier() else set()
    called = ast.unparse(x.func) if isinstance(x, ast.Call) else ""
    if re.match(r"(method(_lib)?\.|config(_lib)?\.)?check(_|$)", called):
      found.add("ValueError")
    if called in functions and called not in seen:
      found |= raised(functions[called], tree, (*seen, called))
  return found


def parameters(node):
  """[(name, whether it has a default other than None)] of a function."""
  a = node.args
  positional = [*a.posonlyargs, *a.args]
  defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
  is_none = lambda d: isinstance(d, ast.Constant) and d.value is None
  found = [
    (p.arg, d is not None and not is_none(d)) for p, d in zip(positional, defaults, strict=True)
  ]
  found += [(p.arg, not is_none(d)) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
  return found + [(p.arg, True) for p in (a.vararg, a.kwarg) if p]


def faults(file, text):
  """[(function, what its docstring lacks)] of a file of the package."""
  tree = ast.parse(text)
  module = ast.get_docstring(tree) or ""
  found = [] if module or file.endswith("__init__.py") else [("module", "a docstring")]
  if SOURCE.match(file) and not re.search(PAPER, text):
    found.append(("module", "a source anywhere in the file"))
  for s in subjects(tree):
    found += [(s.name, what) for what in _form(s, module)]
    found += [(s.name, what) for what in _errors(s, tree)]
    found += [(s.name, what) for what in _units(s, file, module)]
    if isinstance(s.node, ast.FunctionDef) and SHAPES.match(file):
      found += [(s.name, what) for what in _shapes(s, file, module)]
    if SOURCE.match(file) and not re.search(PAPER, s.doc + s.around + module):
      found.append((s.name, "a source: arXiv:, doi: or survey Eq., its own or its module's"))
  return found


def _form(s, module):
  # A method may be explained by its class, a command by its module.
  said = s.around or (module if s.name == "main" else "")
  named = s.node.name in ("main", "__call__") or re.search(rf"\b{s.node.name}\b", said + module)
  if not s.doc and not (said and named):
    yield "a docstring"
  elif s.doc and not re.search(r"[.:]$", s.doc.splitlines()[0]):
    yield "a first line that ends its sentence"


def _errors(s, tree):
  for error in sorted(raised(s.node, tree)) if isinstance(s.node, ast.FunctionDef) else ():
    if error not in s.doc + s.around:
      yield f"the {error} that it raises"


def _units(s, file, module):
  doc, said = plain(s.doc), plain(f"{s.doc} {s.around}")
  first = re.sub(r"(?i)grad log p\w*\(", "", s.doc.partition("\n")[0])
  density = re.search(r"\blog[ _-][pP]\(|\blog P\b|log density|log-prob|\bKL\(", first)
  if DENSITIES.search(s.node.name) or density:
    if not re.search(r"\b(nats|bits)\b|\"nats\"", doc):
      yield "nats or bits"
  if TIMES.match(file) and isinstance(s.node, ast.FunctionDef):
    times = {"t", "ts"} & {name for name, _ in parameters(s.node)}
    if times and not re.search(CLOCK, plain(f"{said} {module}")):
      yield "what its times run over"
  if IMAGES.match(file):
    shown = s.name in ("build.sample", "build.decode") or re.search(r"\b(images?|pixels?)\b", s.doc)
    if shown and not re.search(RANGE, said if s.is_fn else f"{said} {plain(module)}"):
      yield "the range of its images, [-1, 1] or uint8"


def _shapes(s, file, module):
  doc, around, module = plain(s.doc), plain(s.around), plain(module)
  used = {x.id for x in ast.walk(s.node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}
  given = [p for p in parameters(s.node) if p[0] in used - {"self"}]
  exempt = s.name == "build" or f"{file} {s.name}" in NO_ARRAYS
  if given and not exempt and not re.search(SHAPE, doc if s.is_fn else f"{doc} {around}"):
    yield "the shape of its result"
  for name, is_number in given:
    if s.is_fn and name in VOCABULARY:
      continue
    word = rf"(?<![\w.]){name}\b"
    shaped = rf"{word}(?:(?!\. |;).)*?(?:{SHAPE}|->)"
    if not any(re.search(word, text) for text in (doc, around, module)):
      yield f"a word on {name}"
    elif exempt or is_number or name in PLAIN or "lementwise" in doc + around:
      continue
    elif not any(re.search(shaped, text) for text in (doc, around, module)):
      yield f"the shape of {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "jaxgen")))
def test_docstrings_are_whole(path):
  file = path.relative_to(ROOT).as_posix()
  lacking = [f"{file}: {name} lacks {what}" for name, what in faults(file, path.read_text())]
  assert not lacking, "\n".join(lacking)


def test_exceptions_are_used():
  """A name that no function has any more is no exception."""
  functions = [
    (f"{path.relative_to(ROOT).as_posix()} {s.name}", name)
    for path in FILES
    for s in subjects(ast.parse(path.read_text()))
    if isinstance(s.node, ast.FunctionDef)
    for name, _ in parameters(s.node)
  ]
  assert NO_ARRAYS <= {function for function, _ in functions}
  assert PLAIN | VOCABULARY <= {name for _, name in functions}


GOOD = '''
"""Losses. arXiv:1111.00001."""

def kl(mean, log_var, keys, *, t=None, scale=1.0):
  """KL(q || p), per example [B], in nats.

  mean, log_var: [B, D]. keys: [B]. t: [B] in 1, ..., T. scale: of it. Raises ValueError.
  """
  return _check(mean, log_var, keys, t, scale)

def _check(*args):
  raise ValueError("no")
'''
BUILD = '''
"""A paper. arXiv:1111.00001."""

def build(*, width=8):
  """The Method. width: of layers. Raises ValueError."""
  check_count("width", width)

  def sample(vars, keys, cond={}):
    """{"image": [n, H, W, C]}, in [-1, 1]."""
    return draw(keys)

  def decode(vars, z):
    """{"image": [B, H, W, C]} in (-1, 1). z: [B, D]."""
    return {"image": z}
'''
LOSS, MODEL = "jaxgen/objectives/a.py", "jaxgen/models/vae/a.py"


def test_a_whole_docstring_has_no_faults():
  assert faults(LOSS, GOOD) == [] and faults(MODEL, BUILD) == []


CASES = [
  (LOSS, GOOD, '"""Losses. arXiv:1111.00001."""', "", "module", "a docstring"),
  (LOSS, GOOD, " arXiv:1111.00001", "", "module", "a source anywhere"),
  (LOSS, GOOD, " arXiv:1111.00001", "", "kl", "a source"),
  (LOSS, GOOD, "in nats.\n", "in nats\n", "kl", "a first line"),
  (LOSS, GOOD, ", in nats", "", "kl", "nats or bits"),
  (LOSS, GOOD.replace("def kl", "def divergence"), ", in nats", "", "divergence", "nats"),
  (LOSS, GOOD, "mean, log_var: [B, D].", "mean: [B, D].", "kl", "a word on log_var"),
  (LOSS, GOOD, "keys: [B].", "keys: some.", "kl", "the shape of keys"),
  (LOSS, GOOD, "t: [B] in", "t: in", "kl", "the shape of t"),
  (LOSS, GOOD, "scale: of it.", "", "kl", "a word on scale"),
  (LOSS, GOOD, "in 1, ..., T", "", "kl", "what its times run over"),
  (LOSS, GOOD, " Raises ValueError.", "", "kl", "the ValueError"),
  (LOSS, GOOD.replace("[B]", "").replace("[B, D]", ""), "", "", "kl", "the shape of its result"),
  (MODEL, BUILD, '"""The Method. width: of layers. Raises ValueError."""', "", "build", "a doc"),
  (MODEL, BUILD, " Raises ValueError.", "", "build", "the ValueError"),
  (MODEL, BUILD, "width: of layers. ", "", "build", "a word on width"),
  (MODEL, BUILD, ", in [-1, 1]", "", "build.sample", "the range of its images"),
  (MODEL, BUILD, " in (-1, 1)", "", "build.decode", "the range of its images"),
  (MODEL, BUILD, "[n, H, W, C]", "images", "build.sample", "the shape of its result"),
  (MODEL, BUILD, " z: [B, D].", "", "build.decode", "a word on z"),
  (MODEL, BUILD, " arXiv:1111.00001", "", "build", "a source"),
]


@pytest.mark.parametrize(
  "file, text, old, new, function, words", CASES, ids=[f"{c[4]} lacks {c[5]}" for c in CASES]
)
def test_each_fault_is_found(file, text, old, new, function, words):
  assert old in text
  found = faults(file, text.replace(old, new, 1))
  assert any(name == function and what.startswith(words) for name, what in found), found


def test_methods_are_explained_by_their_class():
  text = '''
"""Paths."""

class Path:
  """alpha = t."""

  def alpha(self, t):
    return t
'''
  assert faults("jaxgen/core/a.py", text) == []
  unsaid = text.replace("alpha = t", "A line")
  assert faults("jaxgen/core/a.py", unsaid) == [("Path.alpha", "a docstring")]
