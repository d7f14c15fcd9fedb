"""Papers are found where they are, and the generated pages say what the code has."""

import json
import pathlib
import re
import sys

import commands
import pytest
import recipes

import jaxgen
from jaxgen import index, pages, results

SHARED = pathlib.Path(__file__).parents[2] / "shared"
TEXT = '''"""A paper, arXiv:1111.00001. Another, arXiv:1111.00002.

Survey N02, A03, Eq. 1-2, Box 9.
"""

def f(x):
  """The bound. arXiv:1111.00003, Eq. 3 and 5, Alg. 1, line 2; survey Eq. 7-8, 11,
  Box 2. Then Eq. 4.
  """

class Net:
  def __call__(self, x):
    # Sec. 3.1, survey
    # Box 3
    return x
'''


def run(monkeypatch, capsys, *words):
  monkeypatch.setattr(sys, "argv", ["jaxgen.index", *words])
  index.main()
  return capsys.readouterr().out


def test_tags_are_parsed():
  found = [(t.line, t.function, t.source, t.label) for t in index.parse_tags("a.py", TEXT)]
  third, own = "arXiv:1111.00003", "arXiv:1111.00001"
  assert found == [
    (7, "f", third, "Eq. 3"),
    (7, "f", third, "Eq. 5"),
    (7, "f", "survey", "Eq. 7"),
    (7, "f", "survey", "Eq. 8"),
    (7, "f", "survey", "Eq. 11"),
    (8, "f", "survey", "Box 2"),
    (8, "f", own, "Eq. 4"),
    (14, "Net.__call__", "survey", "Box 3"),
  ]
  assert index.labels("Eq. 3-5, 7, Sec. 2.6.4, Box 1") == (
    "Eq. 3", "Eq. 4", "Eq. 5", "Eq. 7", "Box 1"
  )  # fmt: skip


def test_the_table_is_whole():
  """107 systems, 136 equations, 12 boxes, each of which has at most one system."""
  survey = index.survey()
  assert [len(survey[k]) for k in ("systems", "equations", "boxes")] == [107, 136, 12]
  assert list(survey["equations"]) == [str(i) for i in range(1, 137)]
  known = {f"Eq. {i}" for i in survey["equations"]} | {f"Box {i}" for i in survey["boxes"]}
  owned = [label for s in index.systems().values() for label in s.survey]
  assert set(owned) <= known and len(owned) == len(set(owned))


def test_the_table_is_that_of_the_survey():
  if not (SHARED / "systems.md").exists():
    pytest.skip("the list of systems that the table was made from is not at hand")
  text = (SHARED / "systems.md").read_text()
  rows = re.findall(r"^\| ([A-Z]\d\d) \| (.*?) \| (.*?) \|", text, re.M)
  theirs = {id: (name.lower(), set(index.labels(where))) for id, name, where in rows}
  ours = {s.id: (s.name.lower(), set(s.survey)) for s in index.systems().values()}
  assert ours == theirs


def test_every_system_has_its_papers():
  for s in index.systems().values():
    assert s.papers, s.id
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+|https?://\S+", s.paper), s.paper
  for entry in index.bibliography():
    assert {"title", "author", "year"} <= entry.keys(), entry["key"]
    assert entry["key"].startswith(re.sub(r"[^a-z]", "", entry["author"].split(",")[0].lower())[:4])
    assert entry["year"] in entry["key"]
  keys = [entry["key"] for entry in index.bibliography()]
  assert len(set(keys)) == len(keys)


def generates(path):
  """Networks that others use, of representation/, are no systems of the survey.

  Nor are papers beside one of its systems, which say so.
  """
  beside = "Beside survey " in path.read_text().split('"""')[1]
  return path.parent.name != "representation" and not beside


def test_every_model_says_which_system_it_is():
  files = filter(generates, sorted((index.ROOT / "jaxgen/models").glob("*/[a-z]*.py")))
  assert {str(f.relative_to(index.ROOT)) for f in files} <= {s.module for s in index.here()}


@pytest.mark.parametrize("system", index.here(), ids=lambda s: s.id)
def test_a_system_that_is_here_is_whole(system):
  """It has a config and evidence, and every equation and box that the survey gives it is tagged."""
  assert index.unclaimed(system) == []
  assert (index.ROOT / system.config).is_file() and index.evidence(system)
  header = (index.ROOT / system.module).read_text().split('"""')[1]
  assert set(system.survey) <= set(index.labels(header)) and system.paper in header


def test_an_equation_left_out_is_noticed():
  wgan_gp = index.systems()["G06"]
  assert index.unclaimed(wgan_gp._replace(survey=("Box 4", "Eq. 129"))) == ["Eq. 129"]


def test_every_number_has_a_paper():
  """A bare `Eq. 4` is one of the paper that the file's docstring names first."""
  assert [tag for tag in index.tags() if not tag.source] == []


def test_evidence_is_of_systems_that_are_here():
  marks = [
    mark
    for path in sorted((index.ROOT / "tests").rglob("*.py"))
    for mark in index.parse_evidence(path.name, path.read_text())
  ]
  assert {id for id, *_ in marks} == {s.id for s in index.here()}
  assert {letter for *_, letters in marks for letter in letters} <= set(index.EVIDENCE)


@pytest.mark.parametrize(
  "query, file, words",
  [
    ("G06", "jaxgen/models/gan/wgan_gp.py", "WGAN-GP"),
    ("G06", "jaxgen/objectives/adversarial.py", "survey Box 4"),
    ("wgan", "jaxgen/models/gan/wgan_gp.py", "WGAN-GP"),
    ("real nvp", "configs/flow/realnvp.py", "RealNVP"),
    ("1312.6114", "jaxgen/models/vae/vae.py", "VAE"),
    ("survey Eq. 55", "jaxgen/nn/bijectors.py", "survey Eq. 55"),
    ("eq 55", "jaxgen/nn/bijectors.py", "survey Eq. 55"),
    ("survey Box 6", "jaxgen/models/flow/realnvp.py", "survey Box 6"),
    ("arXiv:1704.00028, Eq. 3", "jaxgen/objectives/adversarial.py", "arXiv:1704.00028, Eq. 3"),
  ],
)
def test_queries_answer_with_file_and_line(query, file, words, monkeypatch, capsys):
  lines = run(monkeypatch, capsys, query).splitlines()
  places = [re.fullmatch(r"(\S+):(\d+): .+", line) for line in lines]
  assert all(places) and file in {place[1] for place in places}, lines
  near = ""
  for place in places:
    text = (index.ROOT / place[1]).read_text().splitlines()
    near += "\n".join(text[int(place[2]) - 1 :][:3]) + "\n" if place[1] == file else ""
  assert words in near


@pytest.mark.parametrize(
  "query, words",
  [
    ("survey Eq. 129", "F06 Spectral detection and regularisation: not here yet"),
    ("StyleGAN2", "G13 StyleGAN2 (+ADA): not here yet"),
    ("G66", "'G66': no system, equation or box of that name; near: G"),
    ("survey Eq. 500", "no system, equation or box"),
  ],
)
def test_what_is_not_here_is_said(query, words, monkeypatch, capsys):
  with pytest.raises(SystemExit, match=re.escape(words)):
    run(monkeypatch, capsys, query)


def test_json_lists_what_is_here(monkeypatch, capsys):
  listed = json.loads(run(monkeypatch, capsys, "--json"))
  fields = "id system paper survey module config tests evidence".split()
  assert listed and all(list(entry) == fields for entry in listed)
  for entry in listed:
    for file in (entry["module"], entry["config"], *entry["tests"]):
      assert (index.ROOT / file).is_file()
  wgan_gp = next(entry for entry in listed if entry["id"] == "G06")
  assert wgan_gp["survey"] == ["Box 4"] and wgan_gp["paper"] == "arXiv:1704.00028"
  assert wgan_gp["module"] == "jaxgen/models/gan/wgan_gp.py" and "M" in wgan_gp["evidence"]


def test_citations(monkeypatch, capsys):
  text = run(monkeypatch, capsys, "--cite", "G06")
  assert text.startswith("@inproceedings{gulrajani2017improved,\n  title = {")
  assert "eprint = {1704.00028}" in text and text.count("{") == text.count("}")
  assert "keywords" not in text
  for s in index.systems().values():  # also those that are still to come
    assert index.cite(s).count("@") == len(s.papers)


@pytest.mark.parametrize("name", ["MODELS.md", "EQUATIONS.md", "RESULTS.md"])
def test_generated_pages_are_current(name):
  made = pages.pages()[name]
  assert (index.ROOT / name).read_text() == made, f"{name} is stale: python -m jaxgen.pages"


ROWS = results.read(index.ROOT / "results")


@pytest.mark.parametrize("key", ROWS)
def test_a_result_can_be_repeated(key):
  row = ROWS[key]
  assert row["system"] in {s.id for s in index.here()}
  file = row["config"].partition(":")[0]
  beside = row["system"] in (index.ROOT / file).read_text().split('"""')[1]  # its docstring
  assert file == index.systems()[row["system"]].config or beside
  words = commands.modules("\n".join(row["repeat"]))
  assert words[0][1] in ("experiments.train", "experiments.reflow")
  assert words[0][2] == f"--config={row['config']}"
  assert all(f"--workdir=runs/{key}" in w for w in words)
  for w in words:
    commands.check(w)
  assert row["picture"] is None or (index.ROOT / row["picture"]).is_file()


def test_every_paper_has_its_row():
  """That of the first variant of each system's config, run or not."""
  first = lambda path: re.search(r'VARIANTS = \(\s*"(\w+)"', path.read_text())[1]
  paths = filter(generates, recipes.CONFIGS)
  wanted = {f"{path.relative_to(index.ROOT)}:{first(path)}" for path in paths}
  assert wanted <= {row["config"] for row in ROWS.values()}


def test_mean_and_spread_not_the_best():
  run = lambda seed, value: {"seed": seed, "values": {"FID": value}}
  row = lambda *values: {"runs": [run(i, v) for i, v in enumerate(values)]}
  assert results.ours(row(), "FID") == "not run"
  assert results.ours(row(3.171), "FID") == "3.171 (1 seed)"
  assert results.ours(row(1.0, 2.0, 3.0), "FID") == "2 +- 1 (3 seeds)"


def changed(**fields):
  row = json.loads(json.dumps(ROWS["vae_mnist16"]))
  for path, value in fields.items():
    *parents, last = path.split("__")
    at = row
    for parent in parents:
      at = at[int(parent)] if isinstance(at, list) else at[parent]
    at[last] = value
  return row


@pytest.mark.parametrize(
  "row, words",
  [
    ([], "expected an object with the fields system"),
    (changed(best=3), "expected an object with the fields"),
    (changed(images=0), "images=0: expected how many training images"),
    (changed(repeat=[]), r"repeat=\[\]: expected the commands"),
    (changed(system="GAN"), "system='GAN': expected an id"),
    (changed(runs__0__minutes=-1), r"runs\[0\]: minutes=-1"),
    (changed(runs__1__seed=0), r"seeds \[0, 0, 2\]: expected each once"),
    (changed(runs__0__commit="main"), "commit='main'"),
    (changed(runs__0__values={"FID": 1.0}), "expected finite numbers for "),
    (changed(runs__0__values={"nats": float("nan")}), "expected finite numbers"),
    (changed(measures={"nats": {}}), "expected an object with the fields paper"),
  ],
)
def test_bad_results_are_refused(row, words):
  results.check("vae.json", changed())
  with pytest.raises(ValueError, match=f"^vae.json: .*{words}"):
    results.check("vae.json", row)


def test_the_project_can_be_cited():
  text = (index.ROOT / "CITATION.cff").read_text()
  assert f"version: {jaxgen.__version__}\n" in text and "cff-version: 1.2.0" in text
