"""NVAE: its sizes, its Normals, its flows, and what keeps it stable."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.core import method
from jaxgen.models.vae import nvae
from jaxgen.nn import nvae as net
from jaxgen.nn import pixels
from jaxgen.objectives import elbo, likelihood

KEY = jax.random.key
COLOUR = {"decoder": "logistic_mixture", "blocks": 1, "cells": 2}
SMALL = {
  "image_shape": (6, 6, 3), "groups": (1, 1), "z_channels": 2, "width": 4, "group_cells": 1,
  "mixtures": 2, "bits": 5, **COLOUR, "cells": 1,
}  # fmt: skip
MARGINS = ((0, 0), (1, 1), (1, 1), (0, 0))  # from 6 x 6 to 8 x 8
COINS = {
  "image_shape": (2, 5, 1), "groups": (1, 1), "z_channels": 2, "width": 4, "blocks": 1, "cells": 1,
  "group_cells": 1,
}  # fmt: skip
ROWS = 4000


@pytest.mark.evidence("V13", "P")
@pytest.mark.parametrize(
  "args, size",
  [
    ({}, 33_363_134),
    (
      {"image_shape": (64, 64, 3), "groups": (5, 10, 20), "width": 64, "flows": 1, **COLOUR},
      153_281_364,
    ),
    (
      {"image_shape": (32, 32, 3), "groups": (28,), "width": 192, "flows": 1, **COLOUR},
      268_509_444,
    ),
    (
      {"image_shape": (256, 256, 3), "groups": (4, 4, 4, 8, 16), "width": 30, "bits": 5, "flows": 2}
      | COLOUR,
      330_798_664,
    ),
  ],
)
def test_sizes(args, size):
  """Those of the official code with the commands of its README."""
  vars = jax.eval_shape(method.build("vae.nvae", args).init, KEY(0))
  assert sum(x.size for x in jax.tree.leaves(vars.params)) == size


@pytest.mark.evidence("V13", "G")
def test_normals_are_those_of_the_official_code():
  given, close = golden.load("nvae_normal")
  mu_p, ls_p, mu_q, ls_q, eps = (given[f"in.{k}"] for k in ("mu_p", "ls_p", "mu_q", "ls_q", "eps"))
  p, q = net.normal(mu_p, ls_p), net.normal(mu_q, ls_q)
  close(net.soft_clamp(mu_p), "soft_clamp5")
  close(elbo.reparameterize(None, *q, eps=eps)[0], "sample")
  close(likelihood.gaussian(eps, *q), "log_q")
  close(elbo.normal_kl(*q, *p), "kl_qp")


@pytest.mark.evidence("V13", "M")
@pytest.mark.parametrize("causal", ["forward", "backward"])
def test_a_flow_is_autoregressive_and_keeps_volume(causal):
  """Every value depends on all before it, in raster order, and on no other; the diagonal is 1."""
  cell, z = net.FlowCell(causal), jax.random.normal(KEY(1), (1, 2, 2, 2))
  vars = jax.jit(cell.init)(KEY(0), z)
  jacobian = jax.jit(jax.jacobian(functools.partial(cell.apply, vars)))(z).reshape(4, 2, 4, 2)
  if causal == "backward":
    jacobian = jacobian[::-1, :, ::-1]
  jacobian = jacobian.reshape(8, 8)
  np.testing.assert_array_equal(np.triu(jacobian), np.eye(8))
  assert np.all(jacobian[np.tril_indices(8, -1)] != 0.0)
  assert np.linalg.slogdet(jacobian)[1] == 0.0


def test_depthwise_kernels_give_the_same_either_way():
  x, w = jax.random.normal(KEY(0), (2, 4, 3, 6)), jax.random.normal(KEY(1), (5, 5, 1, 6))
  both = jax.jit(lambda: (net.depthwise_conv(x, w), net.depthwise_by_taps(x, w)))()
  np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-5)


def test_interpolation_keeps_corners():
  x = jnp.array([[0.0, 3.0], [6.0, 9.0]])[None, :, :, None]
  ours = net.bilinear(x)[0, :, :, 0]
  expected = np.arange(4.0)[None] + 2.0 * np.arange(4.0)[:, None]
  np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_convolution_has_the_norms_that_it_learns():
  """The start is that of the kernel, plus 1e-2; scaling the kernel changes nothing."""
  conv, x = net.Conv(5, 3), jax.random.normal(KEY(1), (2, 4, 4, 3))
  vars = conv.init(KEY(0), x)
  p = vars["params"]
  norms = jnp.linalg.norm(p["kernel"].reshape(-1, 5), axis=0)
  np.testing.assert_allclose(jnp.exp(p["log_norm"]), norms + 1e-2, rtol=1e-5)
  doubled = {"params": {**p, "kernel": 2.0 * p["kernel"]}}
  _, made = conv.apply(doubled, x, mutable=["weights"])
  np.testing.assert_allclose(
    jnp.linalg.norm(made["weights"]["matrix"], axis=1), norms + 1e-2, rtol=1e-4
  )


@pytest.mark.evidence("V13", "M")
def test_power_iterations_find_the_largest_singular_values():
  """And the gradient of sigma is u v^T."""
  trees = {"b": jax.random.normal(KEY(0), (3, 5, 7)), "a": jax.random.normal(KEY(1), (2, 6, 4))}
  u = jax.tree.map(lambda w: jax.random.normal(KEY(2), w.shape[:2]), trees)
  total = lambda w: sum(s.sum() for s in nvae.singular_values(w, u, iterations=200)[0].values())
  sigma, _ = jax.jit(functools.partial(nvae.singular_values, iterations=200))(trees, u)
  grads = jax.jit(jax.grad(total))(trees)
  for k, w in trees.items():
    left, s, right = np.linalg.svd(w, full_matrices=False)
    np.testing.assert_allclose(sigma[k], s[:, 0], rtol=1e-5)
    outer = left[:, :, :1] * right[:, :1]
    np.testing.assert_allclose(grads[k], outer, atol=1e-3)  # vectors: the root of the values' error


@pytest.mark.evidence("V13", "M")
def test_balance_charges_more_for_what_is_used_more():
  kl = jnp.array([[1.0, 4.0, 2.0], [3.0, 4.0, 2.0]])  # means 2, 4, 2
  even = nvae.balance(kl, (3,))
  np.testing.assert_allclose(even, np.array([2.01, 4.01, 2.01]) * 3.0 / 8.03, rtol=1e-6)
  # One group of one pixel, two of four pixels in all: 1 and 4 / 2 pixels a group.
  scaled = nvae.balance(kl, (1, 2))
  weights = np.array([2.01, 4.01 / 2.0, 2.01 / 2.0])
  np.testing.assert_allclose(scaled, weights / weights.mean(), rtol=1e-6)
  assert jnp.abs(jax.grad(lambda kl: nvae.balance(kl, (3,))[0])(kl)).max() == 0.0


@pytest.mark.evidence("V13", "M")
def test_the_loss_is_the_bound_and_the_penalties():
  """Balanced while the KL comes in; at beta = 1, the terms that it logs."""
  made, network = nvae.build(**SMALL, penalty_start=1.0), net.NVAE(20, (1, 1), 2, 4, 1, 1, 1, 0)
  vars = filled(made)
  image = jnp.round(jax.random.uniform(KEY(1), (8, 6, 6, 3)) * 255.0) / 127.5 - 1.0

  @jax.jit
  def run(beta):
    keys = lambda: noise.rows(KEY(2), 8)
    _, k_z = noise.split(keys())
    draw = lambda i, *q: elbo.reparameterize(noise.fold_in(k_z, i), *q)
    x = jnp.pad(pixels.logistic_mixture(3, 2, 32).data(None, image), MARGINS, constant_values=-1.0)
    options = {"train": True, "mutable": ["batch_stats", "weights"]}
    kl = network.apply(variables(vars), draw, (8, 8, 8), x, **options)[0].kl
    return made.phases["vae"].loss(vars, {"image": image}, keys(), beta=beta), kl

  ((none, aux), kl), ((half, _), _), ((whole, _), _) = map(run, (0.0, 0.5, 1.0))
  m, weights = aux.metrics, nvae.balance(kl, (1, 1))
  penalties = m["singular_values"] + m["norm_scales"]
  np.testing.assert_allclose(m["kl"], kl.sum(1).mean(), rtol=1e-5)
  np.testing.assert_allclose(none, m["reconstruction"] + penalties, rtol=1e-5)
  balanced = 0.5 * (weights * kl.mean(0)).sum()
  assert abs(balanced - 0.5 * m["kl"]) > 1e-3
  np.testing.assert_allclose(half - m["reconstruction"] - 0.1 * penalties, balanced, rtol=1e-3)
  np.testing.assert_allclose(whole, m["kl"] + m["reconstruction"] + 1e-2 * penalties, rtol=1e-5)
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), aux.extra, vars.extra)
  assert min(jax.tree.leaves(moved["net"]["batch_stats"])) > 0.0


def filled(made):
  """Vars that do something; the start does less, and is not compiled."""
  rng, (params, extra) = np.random.default_rng(0), jax.eval_shape(made.init, KEY(0))

  def fill(path, x):
    start = -0.5 if path[-1].key == "log_norm" else 0.0
    return jnp.float32(rng.normal(start, 0.15, x.shape))

  params = jax.tree_util.tree_map_with_path(fill, params)
  return method.Vars(params, jax.tree.map(lambda x: jnp.ones(x.shape), extra))


def variables(vars):
  return {"params": vars.params["net"], "batch_stats": vars.extra["net"]["batch_stats"]}


def coins(flows):
  """(the Method, Vars, a batch of one black and white image over and over, through).

  through: (vars, keys) -> the network's output for that image in its frame, and log p(x | z) [B].
  """
  made, network = nvae.build(**COINS, flows=flows), net.NVAE(1, (1, 1), 2, 4, 1, 1, 1, flows)
  image = np.array([1, 1, -1, 1, -1, -1, 1, -1, -1, -1], np.float32).reshape(1, 2, 5, 1)
  x = jnp.broadcast_to(image, (ROWS, 2, 5, 1))
  framed = jnp.pad(x, ((0, 0), (1, 1), (1, 2), (0, 0)), constant_values=-1.0)

  def through(vars, keys):
    _, k_z = noise.split(keys)
    draw = lambda i, *q: elbo.reparameterize(noise.fold_in(k_z, i), *q)
    out = network.apply(variables(vars), draw, (ROWS, 4, 8), framed)
    return out, likelihood.bernoulli(x > 0.0, out.head[:, 1:3, 1:6]).sum((1, 2, 3))

  return made, filled(made), {"image": x}, through


def evidence(log_weights):
  """The log of the mean weight and its standard error."""
  w = np.exp(log_weights - log_weights.max())
  return np.log(w.mean()) + log_weights.max(), w.std() / w.mean() / len(w) ** 0.5


@pytest.mark.evidence("V13", "M")
def test_with_flows_prior_and_posterior_agree_on_log_p_of_x():
  """p(x) is E_p p(x | z), and E_q p(x | z) p(z) / q(z | x), whatever q.

  The bound is that of the network, in its frame; what is encoded decodes to what the bound saw.
  """
  made, vars, batch, through = coins(1)
  nets = vars.params["net"]
  near = lambda w: w | {"log_norm": w["log_norm"] - 1.5, "bias": 0.2 * w["bias"]}
  close = {k: near(nets[k]) for k in ("posterior_0", "posterior_1")}  # so that weights vary little
  vars = vars._replace(params={"net": nets | close})

  @jax.jit
  def run():
    rows = lambda i: noise.rows(KEY(i), ROWS)
    bound, log_prob, encode = (
      made.fns[name](vars, batch, rows(2)) for name in ("bound", "log_prob", "encode")
    )
    decoded, sampled = made.fns["decode"](vars, encode), made.fns["sample"](vars, rows(3))
    return through(vars, rows(2)), bound, log_prob, encode, decoded["image"], sampled["image"]

  def log_p(image):  # of what is black where x is
    p, x = 0.5 + 0.5 * image, 0.5 + 0.5 * batch["image"]
    return np.log(x * p + (1.0 - x) * (1.0 - p)).sum((1, 2, 3))

  (out, nats), bound, log_prob, z, decoded, sampled = run()
  (ours, error), (prior, error_p) = evidence(nats + out.log_ratio), evidence(log_p(sampled))
  assert abs(ours - prior) < 5.0 * np.hypot(error, error_p) < 0.1
  assert out.kl.sum(1).mean() > 0.1 and sampled.std(0).max() > 0.01
  np.testing.assert_allclose(-out.log_ratio, out.kl.sum(1), rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(bound["reconstruction"], nats, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(bound["kl"], out.kl, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(log_prob, nats - out.kl.sum(1), rtol=1e-4, atol=1e-4)
  assert z.shape == (ROWS, 2 * (2 + 8))
  np.testing.assert_allclose(log_p(decoded), nats, rtol=1e-3, atol=1e-3)


@pytest.mark.evidence("V13", "M")
def test_without_flows_the_kl_is_the_mean_of_what_is_drawn():
  """A posterior is given relative to its prior, Sec. 3.2: one that adds nothing is the prior.

  More draws bring a higher bound; samples without temperature are all one.
  """
  made, vars, batch, through = coins(0)

  @jax.jit
  def run(vars):
    rows = lambda: noise.rows(KEY(2), ROWS)
    many = made.fns["log_prob"](vars, batch, rows(), samples=8)
    return *through(vars, rows()), many, made.fns["sample"](vars, rows(), temperature=0.0)["image"]

  out, nats, many, cold = run(vars)
  kl = out.kl.sum(1)
  assert out.kl.min() > 0.0 and (out.kl.mean(0) > 0.02).all()
  assert abs((kl + out.log_ratio).mean()) < 5.0 * out.log_ratio.std() / ROWS**0.5 < 0.5 * kl.mean()
  assert many.mean() > (nats - kl).mean() + 0.01
  assert cold.shape == (ROWS, 2, 5, 1) and cold.std(0).max() < 1e-6
  nets = vars.params["net"]
  silent = nets | {"posterior_1": jax.tree.map(jnp.zeros_like, nets["posterior_1"])}
  np.testing.assert_array_equal(run(vars._replace(params={"net": silent}))[0].kl[:, 1], 0.0)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"groups": ()}, "groups=(): expected"),
    ({"groups": (0, 1)}, "groups=(0, 1): expected"),
    ({"decoder": "normal"}, "decoder='normal': expected one of bernoulli, logistic_mixture"),
    ({"bits": 9}, "bits=9: expected a whole number, 1 to 8"),
    ({"flows": -1}, "flows=-1: expected a whole number, 0 or more"),
    ({"kl_warmup": -1}, "kl_warmup=-1: expected a whole number, 0 or more"),
    ({"penalty": 0.0}, "penalty=0.0: expected a finite number above 0"),
    ({"image_shape": (8, 8, 2), "decoder": "logistic_mixture"}, "image_shape[2]=2: expected 1 or"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError) as error:
    nvae.build(**args)
  assert words in str(error.value)
