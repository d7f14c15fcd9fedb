"""Executes the notebooks: `make notebooks` stores what they show, the tests run them small."""

import re

import nbclient
import nbformat

from jaxgen.index import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(notebook):
  """Runs it from the root of the project, in a new kernel; an error in a cell is raised."""
  run = nbclient.NotebookClient(
    notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
  )
  run.execute()


def shrink(notebook, steps=3):
  """The same notebook with a small value for STEPS, all that its cell of parameters sets."""
  (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
  cell.source, found = re.subn(r"\ASTEPS = \d+\Z", f"STEPS = {steps}", cell.source)
  assert found, f"{cell.source!r}: expected STEPS = a number"


def strip(notebook):
  """Leaves out what differs from one machine or run to another."""
  notebook.metadata = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
  }
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)


def main():
  for path in NOTEBOOKS:
    print(path.name, flush=True)
    notebook = nbformat.read(path, 4)
    execute(notebook)
    strip(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
  main()
