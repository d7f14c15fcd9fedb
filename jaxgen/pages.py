"""Writes MODELS.md, EQUATIONS.md and RESULTS.md: from tags, the survey's table and results/.

python -m jaxgen.pages
"""

import re

from jaxgen import index, results

_FAMILIES = {
  "V": "Variational autoencoders",
  "G": "Generative adversarial networks",
  "N": "Normalizing flows",
  "A": "Autoregressive and transformer models",
  "D": "Diffusion models",
  "R": "Flow matching and rectified flow",
  "T": "Video",
  "F": "Detection and watermarking",
}
_MODELS = """\
# Systems

{n_here} of the {n_all} systems of the survey ([arXiv:2603.07455](https://arxiv.org/abs/2603.07455))
are here, each with its model, its config and the tests that verify it.
`python -m jaxgen.index G06` prints the lines of one, `--cite G06` its BibTeX.
"""
_EQUATIONS = """\
# Equations

Those of the survey ([arXiv:2603.07455](https://arxiv.org/abs/2603.07455)), then those of the
papers, and the functions that compute them; `python -m jaxgen.index "survey Eq. 55"` prints the
lines.
"""
_RESULTS = """\
# Results

What `results/*.json` has. Ours is the mean over the seeds and, from two on, +- their standard
deviation, never the best of several; a row that was not run has its commands below.
"""


def pages():
  """Name of each page, a file at the root -> its text."""
  texts = {"MODELS.md": models(), "EQUATIONS.md": equations(), "RESULTS.md": measured()}
  return {k: f"<!-- python -m jaxgen.pages -->\n{text}" for k, text in texts.items()}


def models():
  """Text of MODELS.md."""
  found, known = index.here(), index.systems()
  parts = [_MODELS.format(n_here=len(found), n_all=len(known))]
  for letter, family in _FAMILIES.items():
    rows = [_model(s) for s in found if s.id[0] == letter]
    if rows:
      titles = ("id", "system", "paper", "survey", "model", "config", "evidence")
      parts.append(f"## {family}\n\n{_table(titles, rows)}")
  meanings = "\n".join(f"- **{k}**: {v}" for k, v in index.EVIDENCE.items())
  parts.append(f"## Evidence\n\n{meanings}\n")
  tests = [
    (s.id, letters, f"`{name}`", f"`{file}`") for s in found for file, _, name, letters in s.tests
  ]
  parts.append(_table(("system", "evidence", "test", "file"), tests))
  return "\n".join(parts)


def _model(s):
  papers = ", ".join(_link(index.source_of(entry)) for entry in s.papers)
  claims = index.survey()["systems"][s.id]["survey"]
  letters = ", ".join(index.evidence(s))
  return s.id, s.name, papers, claims, f"`{s.module}`", f"`{s.config}`", letters


def equations():
  """Text of EQUATIONS.md."""
  owners = {label: s.id for s in index.systems().values() for label in s.survey}
  numbered = [
    (f"{kind} {number}", what)
    for kind, table in (("Eq.", "equations"), ("Box", "boxes"))
    for number, what in index.survey()[table].items()
  ]
  rows = [(label, what, owners.get(label, ""), _where("survey", label)) for label, what in numbered]
  parts = [_EQUATIONS, _table(("survey", "what", "system", "where"), rows)]
  titles = {index.source_of(entry): entry["title"] for entry in index.bibliography()}
  for paper in sorted({tag.source for tag in index.tags()} - {"survey"}):
    found = {tag.label for tag in index.tags() if tag.source == paper}
    rows = [(label, _where(paper, label)) for label in sorted(found, key=_order)]
    title = re.sub(r"[{}]", "", titles.get(paper, ""))
    parts.append(f"{_link(paper)} {title}".rstrip() + f"\n\n{_table(('number', 'where'), rows)}")
  return "\n".join(parts)


def _order(label):
  kind, number = label.split()
  return kind != "Eq.", int(number)


def _where(source, label):
  found = [tag for tag in index.tags() if (tag.source, tag.label) == (source, label)]
  places = dict.fromkeys((tag.file, tag.function) for tag in found)
  return ", ".join(f"`{file}`" + (f" `{name}`" if name else "") for file, name in places)


def measured():
  """Text of RESULTS.md."""
  rows = results.read(index.ROOT / "results")
  rows = dict(sorted(rows.items(), key=lambda item: not item[1]["runs"]))
  titles = ("run", "system", "data, training images", "measure", "paper", "ours", "over", "steps",
            "cost", "commit")  # fmt: skip
  lines = [_result(key, row, name) for key, row in rows.items() for name in row["measures"] or [""]]
  details = [_details(*item) for item in rows.items()]
  tables = results.read(index.ROOT / "results/comparisons", results.check_comparison)
  compared = [_comparison(*item) for item in tables.items()]
  return "\n".join([_RESULTS, _table(titles, lines), *compared, *details, _soak()])


def _comparison(key, table):
  measured = [row for row in table["rows"] if row["values"]]
  labels = list(measured[0]["values"]) if measured else []
  cells = lambda row: [f"{row['values'][k]:.4g}" if row["values"] else "" for k in labels]
  rows = [(row["name"], row["run"], f"{row['evaluations']}", *cells(row)) for row in table["rows"]]
  over = {"how": f"{table['n']:,} samples"}
  of = [f"- {label}: {_how({**over, **facts})}." for label, facts in table["facts"].items()]
  runs = [
    f"- {name}: {run['hardware']}, {run['minutes']:.2g} min, commit {run['commit']}."
    for name, run in table["runs"].items()
  ]
  told = [f"## {key}", "", f"{table['title']}. {table['note']}", ""]
  told += [_table(("sampler", "run", "evaluations", *labels), rows), *of, *runs, "", "```sh"]
  told += [*table["repeat"], "```", ""]
  told += [f"![Samples, a row each]({table['picture']})", ""] if table["picture"] else []
  return "\n".join(told)


def _soak():
  soak = results.read_soak(index.ROOT / "results")
  how = f"{soak['hardware']}, {soak['minutes']:.2g} min, commit {soak['commit']}"
  table = _table(("what", "what came out"), [*soak["rows"].items()])
  return f"## Runs that survive\n\n`make soak`, {how}.\n\n{table}"


def _result(key, row, name):
  measure, runs = row["measures"].get(name), row["runs"]
  ours, n, paper = "the picture" if runs else "not run", "", ""
  if measure:
    ours, n = results.ours(row, name), f"{measure['n']:,}"
    paper = f"{measure['paper']}, {measure['source']}" if measure["paper"] else ""
  hardware = "; ".join(dict.fromkeys(run["hardware"] for run in runs))
  minutes = [run["minutes"] for run in runs]
  cost = f"{hardware}, {sum(minutes) / len(minutes):.2g} min" if runs else ""
  commits = ", ".join(dict.fromkeys(run["commit"] for run in runs))
  system, data = index.systems()[row["system"]].name, f"{row['data']}, {row['images']:,}"
  return f"[{key}](#{key})", system, data, name, paper, ours, n, f"{row['steps']:,}", cost, commits


def _details(key, row):
  measures = [f"- {name}: {_how(measure)}." for name, measure in row["measures"].items()]
  lines = [f"## {key}", "", f"`{row['config']}`", *([row["note"]] if row["note"] else []), ""]
  lines += [*measures, *[""] * bool(measures), "```sh", *row["repeat"], "```", ""]
  lines += [f"![Samples of {key}]({row['picture']})", ""] if row["picture"] else []
  return "\n".join(lines)


def _how(measure):
  parts, network, real = [measure["how"]], measure["extractor"], measure["reference"]
  if network:
    parts.append(f"{network['name']} {network['sha256'][:8]}")
  if real:
    n = f"{real['n']:,} images" if real["n"] else "images"
    parts.append(f"against {n} of {real['data']} (statistics {real['hash'][:8]})")
  return "; ".join(parts)


def _table(titles, rows):
  return "".join(f"| {' | '.join(row)} |\n" for row in [titles, ["---"] * len(titles), *rows])


def _link(source):
  kind, _, number = source.partition(":")
  base = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
  return f"[{source}]({base}{number})" if base else f"<{source}>"


if __name__ == "__main__":
  for file, text in pages().items():
    (index.ROOT / file).write_text(text)
