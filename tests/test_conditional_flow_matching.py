"""OT-CFM and SB-CFM: the target and its variance, pairs that keep their labels, starts of data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import nn, noise
from jaxgen.core.method import Vars
from jaxgen.data import toys
from jaxgen.models.flow_matching import conditional_flow_matching as cfm
from jaxgen.objectives import interpolant, velocity

KEY = jax.random.key
NET = {"width": 16, "depth": 1}
PLANE = {"image_shape": (1, 1, 2), "net": "ResidualMLP", "net_args": NET}
RNG = np.random.RandomState(0)
POINTS = {
  "start": toys.gaussians8(RNG, 64).reshape(64, 1, 1, 2).astype(np.float32),
  "image": toys.moons(RNG, 64).reshape(64, 1, 1, 2).astype(np.float32),
}


def keys(seed=0, n=64):
  return noise.rows(KEY(seed), n)


def fresh(coupling, **args):
  """(loss, vars) of a model from eight Gaussians to moons whose network says 0."""
  made = cfm.build(**PLANE, start="data", coupling=coupling, **args)
  return made.phases["net"].loss, jax.jit(made.init)(KEY(1))


@pytest.mark.evidence("R06", "M")
def test_the_loss_of_a_network_that_says_0_is_the_transport_cost():
  """Which falls from independent over entropic to optimal pairs."""
  costs = []
  for coupling in ("independent", "entropic", "optimal"):
    loss, vars = fresh(coupling, sigma=0.4)
    value, aux = jax.jit(loss)(vars, POINTS, keys())
    np.testing.assert_allclose(value, aux.metrics["transport"], rtol=1e-6)
    costs.append(float(value))
  assert costs[0] > 1.2 * costs[1] and costs[1] > 1.2 * costs[2]


@pytest.mark.evidence("R06", "M")
def test_optimal_pairs_give_steadier_gradients():
  """arXiv:2302.00482, Sec. 3.2.3: at the same weights, over 32 batches of the same points."""

  def variance(coupling):
    loss, vars = fresh(coupling)
    leaves, tree = jax.tree.flatten(vars.params)
    rows = [0.2 * jax.random.normal(KEY(i), x.shape) for i, x in enumerate(leaves)]
    params = jax.tree.unflatten(tree, [x + r for x, r in zip(leaves, rows, strict=True)])
    grad = jax.grad(lambda params, keys: loss(Vars(params), POINTS, keys)[0])
    many = jax.random.split(KEY(2), (32, 64))
    grads = jax.jit(lambda many: jax.lax.map(lambda k: grad(params, k), many))(many)
    return sum(jnp.var(g, axis=0).sum() for g in jax.tree.leaves(grads))

  assert variance("optimal") < 0.8 * variance("independent")


@pytest.mark.evidence("R06", "M")
def test_independent_pairs_are_flow_matching():
  made = cfm.build(**PLANE, coupling="independent")
  vars = made.init(KEY(1))
  x = jnp.asarray(POINTS["image"])
  value, _ = jax.jit(made.phases["net"].loss)(vars, {"image": x}, keys())
  k_start, _, k_loss, _, _ = noise.split(keys(), 5)
  k_t, _ = noise.split(k_loss)
  t, eps = noise.uniform(k_t), noise.normal(k_start, (1, 1, 2))
  zero = lambda x_t, t: jnp.zeros_like(x_t)
  theirs = velocity.flow_matching(zero, x, keys(1), t=t, eps=eps).mean()
  np.testing.assert_allclose(value, theirs, rtol=1e-6)


@pytest.mark.evidence("R06", "M")
def test_bridges_follow_the_velocity_of_the_paper():
  """u_t = (1 - 2t) / (2t (1 - t)) (x_t - mu_t) + x1 - x0. arXiv:2302.00482, Eq. 21."""
  x0, x1 = POINTS["start"], POINTS["image"]
  t, z = noise.uniform(keys(), (), 0.01, 0.99), noise.normal(keys(1), (1, 1, 2))
  x_t, u_t = interpolant.interpolate(x0, x1, z, t, gamma=cfm.BRIDGES["brownian"](0.2))
  s = np.asarray(t)[:, None, None, None]
  mu_t = (1.0 - s) * x0 + s * x1
  np.testing.assert_allclose(x_t - mu_t, 0.2 * np.sqrt(s * (1.0 - s)) * z, atol=1e-6)
  wanted = (1.0 - 2.0 * s) / (2.0 * s * (1.0 - s)) * (x_t - mu_t) + x1 - x0
  np.testing.assert_allclose(u_t, wanted, atol=1e-4)  # float32, divided by 0.02


@pytest.mark.parametrize("coupling", ["optimal", "entropic"])
def test_labels_stay_with_their_images(monkeypatch, coupling):
  """A network that knows images by their labels, and so the end of each line, is nearly exact."""
  images = jnp.linspace(-1.0, 1.0, 8)[:, None, None, None]

  def image_net(*args, **net_args):
    exact = lambda vars, x_t, t, label, draw: (
      (images[label] - x_t) / (1.0 - t / 1000.0)[:, None, None, None]
    )
    return None, exact

  monkeypatch.setattr(nn, "image_net", image_net)
  args = {"image_shape": (1, 1, 1), "n_classes": 8, "label_dropout": 0.0}
  made = cfm.build(**args, coupling=coupling, bridge="brownian", sigma=0.1)
  label = jnp.arange(64) % 8
  loss = jax.jit(lambda image, label: made.phases["net"].loss(
    Vars({}), {"image": image, "label": label}, keys()
  )[0])  # fmt: skip
  assert loss(images[label], label) < 0.5  # the bridge's noise
  assert loss(images[label], jnp.roll(label, 1)) > 10.0


def test_flows_of_data_are_given_their_starts():
  made = cfm.build(**PLANE, start="data")
  vars = made.init(KEY(1))
  assert made.given == ("start",) and "log_prob" not in made.fns
  cond = {"start": jnp.asarray(POINTS["start"])}
  image = made.fns["sample"](vars, keys(), cond)["image"]
  np.testing.assert_allclose(image, cond["start"], atol=1e-6)  # a network that says 0 moves nothing
  with pytest.raises(ValueError, match="start=None: expected a float array"):
    made.fns["sample"](vars, keys())
  with pytest.raises(ValueError, match="start=None: expected a float array"):
    made.phases["net"].loss(vars, {"image": POINTS["image"]}, keys())


@pytest.mark.evidence("R06", "P")
def test_size():
  """That of the UNet of the authors' examples/images/cifar10/train_cifar10.py."""
  params = jax.eval_shape(cfm.build().init, KEY(0)).params["net"]
  assert sum(x.size for x in jax.tree.leaves(params)) == 35_746_307


@pytest.mark.parametrize(
  "args, words",
  [
    ({"coupling": "ot"}, "coupling='ot': expected independent, optimal or entropic"),
    ({"coupling": "entropic"}, "sigma=0.0: expected a finite number above 0"),
    ({"sigma": -1.0}, "sigma=-1.0: expected a finite number, 0 or more"),
    ({"bridge": "straight"}, "bridge='straight': expected one of constant, brownian"),
    ({"start": "image"}, "start='image': expected noise or data"),
  ],
)
def test_refusals(args, words):
  with pytest.raises(ValueError, match=words):
    cfm.build(**PLANE, **args)
