"""The ladder: its merge, what its groups depend on, and the exact evidence of a small one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.models.vae import ladder_vae
from jaxgen.objectives import likelihood

KEY = jax.random.key
N = 4000
both = pytest.mark.parametrize("inference", ladder_vae.INFERENCE)


@functools.cache
def small(inference):
  """(the Method, Vars, its net, its variables): two groups of one number, four pixels."""
  made = ladder_vae.build(image_shape=(2, 2, 1), z_dims=(1, 1), widths=(6, 4), inference=inference)
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.5 * jax.random.normal(KEY(x.size), x.shape)
  vars = vars._replace(params=jax.tree.map(noisy, vars.params))
  net = ladder_vae.Hierarchy((1, 1), (6, 4), 4, inference)
  return made, vars, net, {"params": vars.params["net"], **vars.extra["net"]}


def images(n):
  """One black and white image, its own binarisation, n times."""
  x = jnp.array([1.0, -1.0, -1.0, 1.0]).reshape(1, 2, 2, 1)
  return {"image": jnp.broadcast_to(x, (n, 2, 2, 1))}


@pytest.mark.evidence("V12", "M")
def test_a_merge_is_the_product_of_two_gaussians():
  """log N(z; merged) - log N(z; a) - log N(z; b) is one number; arXiv:1602.02282, Sec. 2.1."""
  a, b = (jnp.array([[0.3, -4.0]]), jnp.array([[1.0, -9.0]])), (jnp.ones((1, 2)), jnp.zeros((1, 2)))
  z = jnp.linspace(-2.0, 2.0, 9)[:, None] * jnp.ones((1, 2))
  log = lambda q: likelihood.gaussian(z, *(jnp.broadcast_to(x, z.shape) for x in q))
  rest = log(ladder_vae.merge(a, b)) - log(a) - log(b)
  np.testing.assert_allclose(rest, jnp.broadcast_to(rest[:1], rest.shape), rtol=1e-3)
  mean, log_var = ladder_vae.merge(a, b)
  precision = np.exp(-np.asarray(a[1])) + 1.0
  np.testing.assert_allclose(log_var, -np.log(precision), rtol=1e-5)
  np.testing.assert_allclose(mean, (a[0] * np.exp(-a[1]) + b[0]) / precision, rtol=1e-5)


@pytest.mark.evidence("V12", "M")
@both
def test_bounds_are_below_the_exact_evidence_and_weights_are_it_on_average(inference):
  """p(x) by quadrature over both groups, from the prior that generation draws from."""
  made, vars, net, variables = small(inference)
  z, w = np.polynomial.hermite_e.hermegauss(80)
  grid = np.float32(np.linspace(-12.0, 12.0, 1201))
  above, below = (jnp.asarray(g.ravel())[:, None] for g in np.meshgrid(np.float32(z), grid))
  given, log_p = {1: above, 0: below}, {}

  @jax.jit
  def joint():
    def draw(i, mean, log_var):
      log_p[i] = likelihood.gaussian(given[i], mean, log_var)[:, 0]
      return given[i]

    logits = net.apply(variables, draw, None, len(above))[0]
    x = 0.5 + 0.5 * images(1)["image"].reshape(1, 4)
    return likelihood.bernoulli(x, logits).sum(1) + log_p[0]

  weights = np.log(np.tile(w / np.sqrt(2.0 * np.pi), len(grid)) * 0.02)
  exact = jax.nn.logsumexp(joint() + weights)
  log_prob = jax.jit(made.fns["log_prob"], static_argnames="samples")
  bounds = log_prob(vars, images(N), noise.rows(KEY(1), N))
  error = 4.0 * bounds.std() / N**0.5
  assert bounds.mean() + error < exact
  many = log_prob(vars, images(N), noise.rows(KEY(1), N), samples=10)
  assert bounds.mean() + 0.01 < many.mean() < exact + 4.0 * many.std() / N**0.5
  p = jnp.exp(many - exact)  # ten weights' mean, over p(x)
  np.testing.assert_allclose(p.mean(), 1.0, atol=max(5.0 * p.std() / N**0.5, 0.005))


@both
def test_the_kl_of_a_group_is_the_mean_of_its_log_ratio(inference):
  made, vars, net, variables = small(inference)

  @jax.jit
  def run(keys):
    draw = lambda i, m, v: m + jnp.exp(0.5 * v) * noise.normal(noise.fold_in(keys, i), m.shape[1:])
    x = 0.5 + 0.5 * images(N)["image"].reshape(N, 4)
    return net.apply(variables, draw, x)[2:]

  kl, ratio = run(noise.rows(KEY(2), N))
  assert kl.shape == (N, 2) and (kl.mean(0) > 0.01).all()
  assert (jnp.abs((kl + ratio).mean(0)) <= 5.0 * (kl + ratio).std(0) / N**0.5 + 1e-6).all()
  assert (kl.min() >= 0.0) == (inference == "ladder")  # the other's is an estimate from one z
  bound = jax.jit(made.fns["bound"])(vars, images(N), noise.rows(KEY(2), N))
  log_prob = jax.jit(made.fns["log_prob"])(vars, images(N), noise.rows(KEY(2), N))
  exact = bound["reconstruction"] - bound["kl"].sum(1)
  np.testing.assert_allclose(log_prob, exact, rtol=1e-5, atol=1e-5)


def test_each_group_is_given_the_one_above_it():
  """Jacobians of the means of p(z_i | z_<i) and of q(z_i | z_<i, x); survey Eq. 29-30."""
  net = ladder_vae.Hierarchy((3, 2, 1), (8, 8, 8), 4, "ladder")
  x = jnp.array([[1.0, 0.0, 0.0, 1.0]])
  variables = jax.jit(lambda: net.init(KEY(0), lambda i, mean, v: mean, x))()
  zs = [jnp.full((1, d), 0.3) for d in (3, 2, 1)]

  def means(zs, x):
    found = {}

    def draw(i, mean, log_var):
      found[i] = mean
      return zs[i]

    net.apply(variables, draw, x)
    return [found[i] for i in range(3)]

  depends = lambda j: bool((jnp.abs(j) > 1e-6).any())
  below = jax.jit(jax.jacobian(means))
  for seen in (None, x):
    by_z = below(zs, seen)
    assert [[depends(by_z[i][j]) for j in range(3)] for i in range(3)] == [
      [False, True, False], [False, False, True], [False, False, False],
    ]  # fmt: skip
  assert all(depends(j) for j in jax.jit(jax.jacobian(means, argnums=1))(zs, x))


def test_beta_rises_and_weighs_the_kl_alone():
  made, vars, _, _ = small("ladder")
  phase = made.phases["net"]
  assert [float(phase.hparams["beta"](i)) for i in (0, 23_500, 47_000, 90_000)] == [0, 0.5, 1, 1]
  loss = jax.jit(lambda beta: phase.loss(vars, images(50), noise.rows(KEY(3), 50), beta=beta))
  (none, aux), (half, _), (one, _) = loss(0.0), loss(0.5), loss(1.0)
  np.testing.assert_allclose(none, aux.metrics["reconstruction"], rtol=1e-6)
  np.testing.assert_allclose([half - none, one - none], aux.metrics["kl"] * jnp.array([0.5, 1.0]),
                             rtol=1e-4)  # fmt: skip
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), aux.extra["net"], vars.extra["net"])
  assert all(jax.tree.leaves(moved))  # batch statistics
  assert ladder_vae.build(kl_warmup=0).phases["net"].hparams == {}


def test_what_is_encoded_decodes_to_what_the_bound_saw():
  made, vars, _, _ = small("ladder")

  @jax.jit
  def run(vars):
    keys = lambda: noise.rows(KEY(4), 50)
    z = made.fns["encode"](vars, images(50), keys())
    return z, made.fns["decode"](vars, z)["image"], made.fns["bound"](vars, images(50), keys())

  z, image, bound = run(vars)
  assert z.shape == (50, 2)
  p, x = 0.5 + 0.5 * image, 0.5 + 0.5 * images(50)["image"]
  nats = jnp.log(x * p + (1.0 - x) * (1.0 - p)).sum((1, 2, 3))
  np.testing.assert_allclose(bound["reconstruction"], nats, rtol=1e-4)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"inference": "sideways"}, "inference='sideways': expected one of ladder, bottom_up"),
    ({"z_dims": ()}, "z_dims=(): expected one group or more"),
    ({"z_dims": (4, 0)}, "z_dims=(4, 0): expected a tuple or list of whole numbers"),
    ({"widths": (4, 2)}, "widths=(4, 2): expected 5, one for each group"),
    ({"kl_warmup": -1}, "kl_warmup=-1: expected a whole number, 0 or more"),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    ladder_vae.build(**args)
