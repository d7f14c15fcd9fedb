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
from jaxgen.objectives import elbo, likelihood

KEY = jax.random.key
COLOUR = {"decoder": "logistic_mixture", "blocks": 1, "cells": 2}
SMALL = {
  "image_shape": (6, 6, 3), "groups": (1, 1), "z_channels": 2, "width": 4, "group_cells": 1,
  "mixtures": 2, "bits": 5, **COLOUR, "cells": 1, "flows": 1,
}  # fmt: skip


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
def test_the_kl_of_a_residual_posterior_has_the_form_of_the_paper():
  """arXiv:2007.03898, Eq. 2: of q = N(mu + d_mu, sigma d_sigma) and p = N(mu, sigma)."""
  mu, log_sigma, d_mu, log_d = np.random.default_rng(0).normal(size=(4, 100)).astype(np.float32)
  sigma, d = np.exp(log_sigma), np.exp(log_d)
  expected = 0.5 * (d_mu**2 / sigma**2 + d**2 - np.log(d**2) - 1.0)
  ours = elbo.normal_kl(mu + d_mu, 2.0 * (log_sigma + log_d), mu, 2.0 * log_sigma)
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


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
  both = jax.jit(lambda: (net.depthwise(x, w), net.depthwise_by_taps(x, w)))()
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


@functools.cache
def small():
  made = nvae.build(**SMALL)
  vars = jax.jit(made.init)(KEY(0))
  batch = {"image": jnp.round(jax.random.uniform(KEY(1), (8, 6, 6, 3)) * 255.0) / 127.5 - 1.0}
  return made, vars, batch


@pytest.mark.evidence("V13", "M")
def test_the_loss_is_the_bound_and_the_penalties():
  """Balanced while the KL comes in; at beta = 1, the terms that it logs."""
  made, vars, batch = small()
  loss = jax.jit(
    lambda beta: made.phases["vae"].loss(vars, batch, noise.rows(KEY(2), 8), beta=beta)
  )
  whole, aux = loss(1.0)
  m = aux.metrics
  penalties = 1e-2 * (m["singular_values"] + m["norm_scales"])
  np.testing.assert_allclose(whole, m["kl"] + m["reconstruction"] + penalties, rtol=1e-5)
  half, _ = loss(0.5)
  plain = 0.5 * m["kl"] + m["reconstruction"] + penalties
  assert abs(half - plain) > 1e-3  # the two groups differ, and so do their weights
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), aux.extra, vars.extra)
  assert min(jax.tree.leaves(moved["net"]["batch_stats"])) > 0.0


@pytest.mark.evidence("V13", "M")
def test_bounds_latents_and_samples_agree():
  made, vars, batch = small()

  @jax.jit
  def run():
    rows = lambda i: noise.rows(KEY(i), 8)
    terms = made.fns["bound"](vars, batch, rows(3))
    z = made.fns["encode"](vars, batch, rows(3))
    cold = [made.fns["sample"](vars, rows(i), temperature=0.0)["image"] for i in (4,)]
    return {
      "terms": terms, "plain": made.fns["log_prob"](vars, batch, rows(3)),
      "one": made.fns["log_prob"](vars, batch, rows(3), samples=1), "z": z,
      "image": made.fns["decode"](vars, z)["image"], "cold": cold[0],
    }  # fmt: skip

  out = run()
  terms = out["terms"]
  assert terms["kl"].shape == (8, 2) and out["z"].shape == (8, 2 * 4 * (1 + 4))
  np.testing.assert_allclose(out["plain"], terms["reconstruction"] - terms["kl"].sum(1), rtol=1e-6)
  assert np.abs(out["one"] - out["plain"]).max() < 0.2 * np.abs(out["plain"]).mean()
  assert out["image"].shape == out["cold"].shape == (8, 6, 6, 3)
  assert np.abs(out["image"]).max() <= 1.0


def test_five_bits_are_the_highest_of_eight():
  p = nvae.logistic_mixture(3, 2, 5)
  levels = jnp.arange(256.0)
  expected = (np.arange(256) // 8) / 31.0 * 2.0 - 1.0
  np.testing.assert_allclose(p.data(None, levels / 127.5 - 1.0), expected, atol=1e-6)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"groups": ()}, "groups=(): expected"),
    ({"groups": (0, 1)}, "groups=(0, 1): expected"),
    ({"decoder": "normal"}, "decoder='normal': expected one of bernoulli, logistic_mixture"),
    ({"bits": 9}, "bits=9: expected a whole number, 1 to 8"),
    ({"flows": -1}, "flows=-1"),
    ({"penalty": 0.0}, "penalty=0.0: expected a finite number above 0"),
    ({"image_shape": (8, 8, 2), "decoder": "logistic_mixture"}, "image_shape[2]=2: expected 1 or"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError) as error:
    nvae.build(**args)
  assert words in str(error.value)
