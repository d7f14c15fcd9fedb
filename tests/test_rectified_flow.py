"""Rectified flow: couplings, reflow as a pipeline, distillation, transport of data to data."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import recipes
from test_launchers import launch

from jaxgen import noise, paths
from jaxgen.core import checkpoint, inference, loop, method
from jaxgen.data import pipeline, sources
from jaxgen.metrics import transport
from jaxgen.models.flow_matching import rectified_flow
from jaxgen.objectives import velocity
from jaxgen.samplers import ode

KEY = jax.random.key
keys = lambda n=64: jax.random.split(KEY(0), n)
CONFIG = "flow_matching/rectified_flow.py"
PLANE = dict(image_shape=(1, 1, 2), net="ResidualMLP", net_args=dict(width=16, depth=1))
SAMPLER = {"name": "euler", "steps": 2}


def moved(vars):
  """The same networks with weights that are not 0."""
  noisy = lambda x: x + 0.3 * jax.random.normal(KEY(x.size), x.shape)
  return vars._replace(params=jax.tree.map(noisy, vars.params))


@pytest.mark.evidence("R02", "M", "C")
def test_reflow_straightens_a_flow_between_gaussians_until_one_step_is_exact():
  """The first flow, in closed form, is curved; the marginal velocity of its own pairs is not."""
  data, path = oracles.GaussianData(mean=0.7, std=0.3), paths.Linear()
  first = data.field(path).velocity
  x0, ts = noise.normal(keys(), (3,)), jnp.linspace(0.0, 1.0, 201)
  x1, bent = transport.simulate(first, x0, ts)
  np.testing.assert_allclose(x1, 0.7 + 0.3 * x0, atol=1e-4)  # where the flow map leads

  def second(x, t):  # x_t = (1 - t) x0 + t (0.7 + 0.3 x0) tells x0
    t = paths.expand(t, x)
    return 0.7 - 0.7 * (x - 0.7 * t) / (1.0 - 0.7 * t)

  pairs = velocity.rectified_flow(second, x0, x1, keys())
  _, straight = transport.simulate(second, x0, ts)
  assert bent.mean() > 0.05 and jnp.abs(straight).max() < 1e-5 and pairs.max() < 1e-6
  one = lambda fn: jnp.abs(ode.euler(fn, x0, jnp.array([0.0, 1.0])) - x1).max()
  assert one(first) > 0.1 and one(second) < 1e-3


def seen(monkeypatch, batch, **args):
  """(x0, x1, t) of the objective in one loss of a model of points."""
  found = {}

  def spy(fn, x0, x1, keys, *, t, distance):
    found.update(x0=x0, x1=x1, t=t)
    return jnp.zeros(len(x0))

  monkeypatch.setattr(velocity, "rectified_flow", spy)
  made = rectified_flow.build(**{**PLANE, "sampler": SAMPLER, **args})
  made.phases["net"].loss(made.init(KEY(0)), batch, keys())
  return found["x0"], found["x1"], found["t"]


def test_starts_are_noise_shuffled_data_or_the_pairs_of_a_flow(monkeypatch):
  image, start = jax.random.normal(KEY(1), (2, 64, 1, 1, 2))
  batch = {"image": image, "start": start}
  x0, x1, t = seen(monkeypatch, {"image": image})
  assert abs(x0.mean()) < 0.3 and 0.7 < x0.std() < 1.3 and (x1 == image).all()
  assert t.min() < 0.1 and t.max() > 0.9
  x0, x1, _ = seen(monkeypatch, batch, start="data")
  rows = lambda x: sorted(map(tuple, np.asarray(x).reshape(64, 2)))
  assert rows(x0) == rows(start) and (x0 != start).any() and (x1 == image).all()
  for of in ("noise", "data"):
    x0, x1, _ = seen(monkeypatch, batch, start=of, coupling="given")
    assert (x0 == start).all() and (x1 == image).all()


@pytest.mark.evidence("R02", "M")
def test_distillation_trains_at_the_times_of_its_steps_and_samples_with_them(monkeypatch):
  batch = {"image": jax.random.normal(KEY(1), (64, 1, 1, 2))}
  sampler = {"name": "euler", "steps": 4}
  t = seen(monkeypatch, batch, steps=4, sampler=sampler)[2]
  assert set(np.asarray(t)) == {0.0, 0.25, 0.5, 0.75}
  made = rectified_flow.build(**PLANE, steps=1, sampler={"name": "euler", "steps": 1})
  vars = moved(made.init(KEY(0)))
  x0 = noise.normal(noise.split(keys())[0], (1, 1, 2))
  v = made.fns["field"](vars).velocity(x0, jnp.zeros(64))
  x1 = made.fns["sample"](vars, keys())["image"]
  np.testing.assert_allclose(x1, x0 + v, rtol=1e-5, atol=1e-5)
  assert "log_prob" not in made.fns


def test_a_flow_from_data_starts_where_its_cond_says():
  made = rectified_flow.build(**PLANE, start="data", sampler=SAMPLER)
  vars = moved(made.init(KEY(0)))
  start = jax.random.normal(KEY(1), (64, 1, 1, 2))
  x = made.fns["sample"](vars, keys(), {"start": start}, name="euler", steps=1)["image"]
  v = made.fns["field"](vars, {"start": start}).velocity(start, jnp.zeros(64))
  np.testing.assert_allclose(x, start + v, rtol=1e-5, atol=1e-5)
  assert made.given == ("start",) and "log_prob" not in made.fns
  with pytest.raises(
    ValueError, match=re.escape("start=None: expected a float array [B, 1, 1, 2]")
  ):
    made.fns["sample"](vars, keys())
  with pytest.raises(
    ValueError, match=re.escape("start=None: expected a float array [B, 1, 1, 2]")
  ):
    made.phases["net"].loss(vars, {"image": start}, keys())
  with pytest.raises(ValueError, match=re.escape("start=(64, 1, 2): expected a float array")):
    made.phases["net"].loss(vars, {"image": start, "start": start[:, 0]}, keys())


@pytest.mark.evidence("R04", "M")
def test_times_and_distance_of_the_improved_reflow_reach_the_loss(monkeypatch):
  batch = {"image": jax.random.normal(KEY(1), (64, 1, 1, 2))}
  t = seen(monkeypatch, batch, times="u_shaped", times_args={"a": 40.0})[2]
  assert (jnp.abs(t - 0.5) > 0.25).all()  # a U this deep has nothing in the middle
  monkeypatch.undo()
  args = dict(distance="pseudo_huber", distance_args={"c": 1e-6})
  made, plain = (rectified_flow.build(**PLANE, sampler=SAMPLER, **a) for a in (args, {}))
  vars = made.init(KEY(0))  # whose velocity is 0
  huber, squared = (float(m.phases["net"].loss(vars, batch, keys())[0]) for m in (made, plain))
  x0 = noise.normal(noise.split(keys(), 4)[0], (1, 1, 2))
  error = (batch["image"] - x0).reshape(64, 2)
  np.testing.assert_allclose(huber, jnp.linalg.norm(error, axis=1).mean() / 2, rtol=1e-4)
  np.testing.assert_allclose(squared, (error**2).mean(), rtol=1e-5)


def test_lpips_is_not_a_number_until_it_has_weights():
  args = dict(PLANE, image_shape=(16, 16, 3), sampler=SAMPLER)
  made = rectified_flow.build(**args, distance="lpips_huber")
  vars = jax.jit(made.init)(KEY(0))
  assert all(jnp.isnan(x).all() for x in jax.tree.leaves(vars.params["lpips"]))
  assert method.trained(made) == {"net", "net_ema"} and made.serves == ("net",)
  batch = {"image": jnp.zeros((2, 16, 16, 3))}
  loss, _ = jax.eval_shape(lambda v: made.phases["net"].loss(v, batch, keys(2)), vars)
  assert loss.shape == ()


@pytest.mark.parametrize(
  "args, words",
  [
    ({"start": "image"}, "start='image': expected noise or data"),
    ({"coupling": "pairs"}, "coupling='pairs': expected independent or given"),
    ({"steps": -1}, "steps=-1: expected a whole number, 0 or more"),
    ({"times": "beta"}, "times='beta': expected one of cosmap, logit_normal"),
    ({"times_args": {"a": 4.0}}, "times_args.a=4.0: uniform takes no such keyword"),
    ({"distance": "l1"}, "distance='l1': expected one of squared, pseudo_huber, lpips_huber"),
    ({"distance": "pseudo_huber", "distance_args": {"c": 0.0}}, "c=0.0: expected a finite number"),
    ({"distance": "lpips_huber", "distance_args": {"c": 0.0}}, "c=0.0: expected a finite number"),
    ({"sampler": {"name": "langevin", "steps": 2}}, "sampler='langevin': expected another on"),
    ({"steps": 4}, "expected Euler with 4 steps, which it is trained for"),
    (
      {"distance": "lpips_huber", "times": "cosmap"},
      "times='cosmap': expected uniform or u_shaped",
    ),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    rectified_flow.build(**{**PLANE, "sampler": SAMPLER, **args})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A folder with config files, and a trained flow from eight Gaussians to the moons."""
  folder = tmp_path_factory.mktemp("reflow")
  small = "c.args.net_args.update(width=16, depth=1)\nc.train.steps = 2\nc.args.sampler.steps = 3\n"
  for name in ("moons", "moons_reflow"):
    (folder / f"{name}.py").write_text(
      "import recipes\nfrom jaxgen.core import config\n"
      f"c = config.read(f\"{{recipes.ROOT / 'configs'}}/{CONFIG}:{name}\")\n{small}"
      "get_config = lambda: c\n"
    )
  result = launch("train", f"--config={folder / 'moons.py'}", f"--workdir={folder / 'first'}")
  assert result.returncode == 0, result.stderr[-2000:]
  return folder


@pytest.mark.evidence("R02", "M")
def test_reflow_draws_the_ends_of_trajectories_once_and_starts_as_the_teacher(runs):
  config, teacher = runs / "moons_reflow.py", runs / "first"
  command = ["reflow", f"--config={config}", f"--teacher={teacher}", "--n=50"]
  result = launch(*command, f"--workdir={runs / 'second'}", "--config.train.steps=0")
  assert result.returncode == 0, result.stderr[-2000:]
  made, vars = checkpoint.load(teacher)
  second = checkpoint.load(runs / "second")[1]
  same = jax.tree.map(
    lambda a, b: bool((a == b).all()), second.params["net"], vars.params["net_ema"]
  )
  assert all(jax.tree.leaves(same))
  for split, n in [("train", 50), ("test", 5)]:
    with np.load(runs / f"second/pairs/{split}.npz") as f:
      found = dict(f)
    data = sources.open_source("pair:toy:gaussians8->toy:moons", split)
    start = pipeline.load(data, np.arange(n))["start"]
    np.testing.assert_array_equal(found["start"], start)
    field = made.fns["field"](method.averaged(made, vars))
    x = ode.heun(field.velocity, start, jnp.linspace(0.0, 1.0, 4))
    np.testing.assert_allclose(found["image"], x, rtol=1e-5, atol=1e-5)
  before = (runs / "second/pairs/train.npz").stat().st_mtime_ns
  result = launch(*command, f"--workdir={runs / 'second'}", "--config.train.steps=0")
  assert result.returncode == 0, result.stderr[-2000:]
  assert (runs / "second/pairs/train.npz").stat().st_mtime_ns == before


def test_reflow_refuses_what_has_no_trajectories_or_other_pairs(runs):
  config, teacher = runs / "moons_reflow.py", runs / "first"
  for words, given in {
    "a name of": ["--n=50", '--options={"name": "ancestral", "steps": 5}'],
    "expected one with args.coupling=given": ["--n=50", "--config.args.coupling=independent"],
    "'noise': expected start=data": ["--n=50", "--config.args.start=noise"],
  }.items():
    result = launch("reflow", f"--config={config}", f"--teacher={teacher}", *given,
                    f"--workdir={runs / 'bad'}")  # fmt: skip
    assert result.returncode != 0 and words in result.stderr, result.stderr[-2000:]


def test_a_flow_from_data_is_sampled_and_measured_from_the_starts_of_its_data(runs):
  result = launch("sample", f"--workdir={runs / 'first'}", "--n=3")
  assert result.returncode == 0, result.stderr[-2000:]
  config = recipes.config_lib.read_snapshot(checkpoint.open_workdir(runs / "first"))
  made, vars = checkpoint.load(runs / "first")
  conditions = inference.conditions(config, made, 3)
  cond = conditions.cond(pipeline.load(conditions, np.arange(3)))
  assert cond.keys() == {"start"}
  measures = ["--samples=20", "--measures=transport_cost,wasserstein"]
  result = launch("evaluate", f"--workdir={runs / 'first'}", *measures)
  found = json.loads(result.stdout)["measures"]
  reference = found["W2"]["reference"]
  assert (reference["data"], reference["n"]) == ("pair:toy:gaussians8->toy:moons train", 20)
  assert 0.0 < found["transport cost"]["value"] < 10.0
  n, grid = loop.grid_cond(config, made)
  assert n == 64 and (grid["start"][:3] == cond["start"]).all()
  with np.load(runs / "first/sample.npz") as f:
    np.testing.assert_array_equal(f["start"], cond["start"])
