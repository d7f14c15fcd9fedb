"""Every notebook runs, and shows what it says when it is opened."""

import jax
import nbformat
import processes
import pytest
import run_notebooks

every_notebook = pytest.mark.parametrize("path", run_notebooks.NOTEBOOKS, ids=lambda p: p.stem)
code = lambda notebook: [cell for cell in notebook.cells if cell.cell_type == "code"]


@every_notebook
def test_it_runs(path, monkeypatch):
  """At smoke size, as a newcomer would: a kernel of its own, no key used twice, ranks spelled."""
  monkeypatch.setenv("XLA_FLAGS", processes.FLAGS)  # one device
  monkeypatch.setenv("JAX_NUMPY_RANK_PROMOTION", "raise")
  monkeypatch.setenv("JAX_DEBUG_KEY_REUSE", "1")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
  notebook = nbformat.read(path, 4)
  run_notebooks.shrink(notebook)
  run_notebooks.execute(notebook)
  outputs = [output for cell in code(notebook) for output in cell.outputs]
  assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]


@every_notebook
def test_it_is_committed_with_what_it_shows(path):
  notebook = nbformat.read(path, 4)
  cells = code(notebook)
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  outputs = [output for cell in cells for output in cell.outputs]
  assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
  assert any("image/png" in output.get("data", {}) for output in outputs)
  assert path.stat().st_size < 1_000_000
  clean = nbformat.from_dict(notebook)
  run_notebooks.strip(clean)
  assert clean == nbformat.read(path, 4)
  assert not any(cell.source.startswith(("%", "!")) for cell in cells)


def test_there_is_one_for_every_kind_of_objective():
  kinds = {"elbo", "adversarial", "change_of_variables", "score", "velocity"}
  assert kinds <= {path.stem for path in run_notebooks.NOTEBOOKS}
  for path in run_notebooks.NOTEBOOKS:
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    assert "jaxgen/objectives/" in text and "survey Eq." in text
    assert f"jaxgen/objectives/{path.stem}.py" in text or path.stem not in kinds
