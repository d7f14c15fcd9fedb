"""IWAE: its bound of one and of two layers, against quadrature; the schedule of its rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.core import method
from jaxgen.models.vae import iwae

KEY = jax.random.key
SHAPE = (1, 2, 1)
LAYERS = {"z_dims": (2, 1), "widths": (4, 4)}
IMAGES = jnp.array([[-1.0, -1.0], [1.0, -1.0]]).reshape(2, *SHAPE)  # their own binarisation


def started(made):
  """Vars whose decoder is far from its start; q stays wide, so that no weight is of heavy tails."""
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.5 * jax.random.normal(KEY(x.size), x.shape)
  decoder = jax.tree.map(noisy, vars.params["decoder"])
  return vars._replace(params={**vars.params, "decoder": decoder})


def hidden(p, x, head):
  for i in range(2):
    x = np.tanh(x @ p[f"hidden_{i}"]["kernel"] + p[f"hidden_{i}"]["bias"])
  return x @ p[head]["kernel"] + p[head]["bias"]


def evidence(params, points=40):
  """log P(x) [2] of the images under two layers, by quadrature over z_2 [1] and z_1 [2]."""
  t, w = np.polynomial.hermite_e.hermegauss(points)
  w = w / w.sum()
  decoder = jax.tree.map(np.float64, params["decoder"])
  z2 = t[:, None]
  mean, log_var = (hidden(decoder["z_1"], z2, head) for head in ("mean", "log_var"))
  eps = np.stack(np.meshgrid(t, t), -1).reshape(-1, 2)
  z1 = mean[:, None] + np.exp(0.5 * log_var)[:, None] * eps  # [points, points^2, 2]
  return np.log([w @ (x @ np.outer(w, w).ravel()) for x in likelihoods(decoder, z1)])


def likelihoods(decoder, z1):
  """P(x | z_1) of either image. z1: [..., 2]."""
  p = 1.0 / (1.0 + np.exp(-hidden(decoder["z_0"], z1, "logits")))
  return [(1.0 - p[..., 0]) * (1.0 - p[..., 1]), p[..., 0] * (1.0 - p[..., 1])]


@pytest.mark.evidence("V09", "M")
def test_two_layers_bound_their_evidence_and_reach_it():
  """E[w] = P(x) for any q; the bound of one draw is lower, that of many is not."""
  made = iwae.build(image_shape=SHAPE, **LAYERS)
  vars, n = started(made), 4000
  exact, batch = evidence(vars.params), {"image": jnp.repeat(IMAGES, n, axis=0)}

  @jax.jit
  def run(seed):
    keys = lambda k: noise.rows(jax.random.key(seed + k), 2 * n)
    bounds = lambda k: made.fns["log_prob"](vars, batch, keys(k), samples=k)
    return [bounds(k).reshape(2, n) for k in (0, 1, 64)]

  elbo, one, many = jax.device_get(run(0))
  error = lambda x: 5.0 * x.std(1) / n**0.5
  assert (exact - elbo.mean(1) > error(elbo)).all()
  assert (np.abs(elbo.mean(1) - one.mean(1)) < np.hypot(error(elbo), error(one))).all()
  assert (many.mean(1) - one.mean(1) > np.hypot(error(one), error(many))).all()
  weight = np.exp(one - exact[:, None])
  assert (np.abs(weight.mean(1) - 1.0) < error(weight)).all()
  assert (many.mean(1) < exact + error(many)).all()
  slack = weight.var(1) / 128  # to first order, what 64 draws are short of
  assert (np.abs(many.mean(1) - exact) < error(many) + 2.0 * slack).all()


@pytest.mark.evidence("V09", "M")
@pytest.mark.parametrize("gradient", iwae.GRADIENTS)
def test_the_loss_is_the_importance_bound(gradient):
  """Of any estimator; with the same noise, which is drawn at once here and one by one there."""
  n = 2000
  batch = {"image": jnp.repeat(IMAGES, n, axis=0)}
  made = iwae.build(image_shape=SHAPE, samples=8, gradient=gradient, **LAYERS)
  vars = started(made)

  @jax.jit
  def run(seed):
    keys = lambda: noise.rows(jax.random.key(seed), 2 * n)
    loss, aux = made.phases["vae"].loss(vars, batch, keys())
    return loss, aux.metrics["bound"], made.fns["log_prob"](vars, batch, keys(), samples=8)

  loss, bound, log_prob = jax.device_get(run(1))
  np.testing.assert_allclose(-loss, bound)
  np.testing.assert_allclose(bound, log_prob.mean(), rtol=1e-5)


def test_one_layer_has_a_posterior_and_its_kl():
  made = iwae.build(image_shape=SHAPE, z_dims=(3,), widths=(4,))
  vars, batch = started(made), {"image": IMAGES}
  mean, log_var = jax.jit(made.fns["posterior"])(vars, batch, noise.rows(KEY(1), 2))
  terms = jax.jit(made.fns["bound"])(vars, batch, noise.rows(KEY(2), 2))
  kl = 0.5 * (mean**2 + jnp.exp(log_var) - log_var - 1.0).sum(1)
  np.testing.assert_allclose(terms["kl"], kl[:, None], rtol=1e-5)
  assert mean.shape == (2, 3) and terms["reconstruction"].shape == (2,)
  assert "posterior" not in iwae.build(image_shape=SHAPE, **LAYERS).fns


def test_what_is_sampled_are_means_of_the_prior():
  """P(x | z_1) of samples has the evidence for its mean; decoding goes down a chain of means."""
  made = iwae.build(image_shape=SHAPE, **LAYERS)
  vars = started(made)
  x = jax.jit(made.fns["sample"])(vars, noise.rows(KEY(1), 20_000))["image"].reshape(-1, 2)
  p = 0.5 + 0.5 * x
  dark, one = jnp.prod(1.0 - p, 1), p[:, 0] * (1.0 - p[:, 1])  # of the two images, given z
  for values, exact in zip((dark, one), np.exp(evidence(vars.params)), strict=True):
    assert abs(values.mean() - exact) < 5.0 * values.std() / len(values) ** 0.5
  z = np.array([[0.3], [-2.0]])
  decoder = jax.tree.map(np.float64, vars.params["decoder"])
  logits = hidden(decoder["z_0"], hidden(decoder["z_1"], z, "mean"), "logits")
  decoded = jax.jit(made.fns["decode"])(vars, jnp.float32(z))["image"].reshape(2, 2)
  np.testing.assert_allclose(decoded, np.tanh(0.5 * logits), rtol=1e-5, atol=1e-6)


def test_the_rate_falls_as_the_paper_says():
  """10^(-i/7) of 3^i passes, 3280 in all: of 9.84 million updates of MNIST in twenties."""
  rate = jax.jit(iwae.stages(3000))
  passes = np.cumsum([0] + [3**i for i in range(8)])
  assert passes[-1] == 3280
  for i in range(8):
    for update in (passes[i] * 3000, passes[i + 1] * 3000 - 1):
      np.testing.assert_allclose(rate(update), 10.0 ** (-i / 7), rtol=1e-6)


@pytest.mark.parametrize("z_dims, widths", [((50,), (200,)), ((100, 50), (200, 100))])
def test_sizes(z_dims, widths):
  """Two hidden layers between any two layers, Sec. 5, either way; a mean and a log variance."""
  args = {"z_dims": z_dims, "widths": widths}
  params = jax.eval_shape(method.build("vae.iwae", args).init, KEY(0)).params
  count = {name: sum(x.size for x in jax.tree.leaves(net)) for name, net in params.items()}
  net = lambda n, width, out: n * width + width + width * width + width + width * out + out
  sizes = (784, *z_dims)
  up = [net(a, w, 2 * b) for a, w, b in zip(sizes, widths, z_dims, strict=False)]
  outs = (784, *(2 * z for z in z_dims))
  down = [net(b, w, a) for a, w, b in zip(outs, widths, z_dims, strict=False)]
  assert count == {"encoder": sum(up), "decoder": sum(down)}
  assert count["encoder"] == {1: 217_300, 2: 267_700}[len(z_dims)]


@pytest.mark.parametrize(
  "args, words",
  [
    ({"z_dims": ()}, r"widths=\(200,\): expected one for each of z_dims=\(\)"),
    ({"z_dims": (100, 50)}, "widths=.*: expected one for each of z_dims"),
    ({"z_dims": (0,)}, r"z_dims=\(0,\): expected a tuple"),
    ({"samples": 0}, "samples=0: expected a whole number, 1 or more"),
    ({"gradient": "reinforce"}, "gradient='reinforce': expected one of iwae, stl, dreg"),
    ({"pass_updates": 0}, "pass_updates=0: expected a whole number"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    iwae.build(**args)
