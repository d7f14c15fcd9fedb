"""Codes: which is nearest, what moves them, on any number of devices; Gumbel-softmax draws."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgen import noise
from jaxgen.core import axis
from jaxgen.objectives import quantization

KEY = jax.random.key
normal = lambda seed, *shape: jax.random.normal(KEY(seed), shape)


def one_hot_means(z, index, k):
  """Mean of the vectors of each code, and how many there are, in float64."""
  z, index = np.float64(z).reshape(-1, z.shape[-1]), np.asarray(index).ravel()
  return np.stack([z[index == i].mean(0) for i in range(k)]), np.bincount(index, minlength=k)


def test_the_nearest_code_is_that_of_the_smallest_distance():
  z, codebook = 5.0 + normal(0, 3, 7, 5), 5.0 + normal(1, 20, 5)
  found = jax.jit(quantization.nearest)(z, codebook)
  gaps = np.float64(z)[:, :, None] - np.float64(codebook)
  assert found.dtype == jnp.int32 and found.shape == (3, 7)
  np.testing.assert_array_equal(found, (gaps**2).sum(-1).argmin(-1))
  np.testing.assert_array_equal(quantization.nearest(codebook, codebook), np.arange(20))
  # Codes and vectors of 16 bits are compared in 32.
  half = jnp.bfloat16([[1.0], [1.0078125]])
  np.testing.assert_array_equal(quantization.nearest(half, half), [0, 1])


@pytest.mark.evidence("V11", "M")
def test_the_straight_through_gradient_is_the_identity():
  """Survey Box 2, stage 1, step 3: to z the identity, to z_q none; forwards z_q to the bit."""
  z, z_q = normal(0, 4, 3), 1e3 * normal(1, 4, 3)
  out, pull = jax.vjp(quantization.straight_through, z, z_q)
  np.testing.assert_array_equal(out, z_q)
  to_z, to_z_q = pull(normal(2, 4, 3))
  np.testing.assert_array_equal(to_z, normal(2, 4, 3))
  np.testing.assert_array_equal(to_z_q, jnp.zeros((4, 3)))


@pytest.mark.evidence("V11", "G")
def test_moving_averages_are_those_of_vq_vae_2_pytorch():
  given, close = golden.load("vq_ema_update")
  statistics = {
    "codebook": jnp.asarray(given["in.before_embed"].T),
    "count": jnp.asarray(given["in.before_cluster_size"]),
    "total": jnp.asarray(given["in.before_embed_avg"].T),
  }
  z = given["in.x"]
  index = quantization.nearest(z, statistics["codebook"])
  z_q = statistics["codebook"][index]
  close(index, "indices")
  close(z_q, "quantized")
  close(quantization.commitment(z, z_q).mean(), "diff")
  new = jax.jit(quantization.ema_update)(statistics, z, index, decay=0.99)
  close(new["count"], "after_cluster_size")
  close(new["total"].T, "after_embed_avg")
  close(new["codebook"].T, "after_embed")


@pytest.mark.evidence("V11", "G")
def test_terms_of_the_loss_are_those_of_taming():
  """Its `legacy` loss weighs the dictionary by beta, Eq. 3 the commitment: the terms are the same.

  Each term's gradient goes to one side alone, so both are seen apart.
  """
  given, close = golden.load("vq_loss_taming_legacy1")
  z, codebook = jnp.asarray(given["in.z"].transpose(0, 2, 3, 1)), jnp.asarray(given["w.embedding"])
  index = quantization.nearest(z, codebook)

  def legacy(z, codebook):
    z_q = codebook[index]
    return jnp.mean(quantization.commitment(z, z_q) + 0.25 * quantization.dictionary(z, z_q))

  eq_3 = lambda z, codebook: quantization.gradient_loss(z, codebook[index], beta=0.25).mean()
  both = jax.jit(lambda *x: (jax.value_and_grad(legacy, (0, 1))(*x), jax.grad(eq_3, (0, 1))(*x)))
  (loss, (to_z, to_codebook)), (eq_3_to_z, eq_3_to_codebook) = both(z, codebook)
  close(index, "indices")
  close(codebook[index].transpose(0, 3, 1, 2), "z_q")
  close(loss, "loss")
  close(to_z.transpose(0, 3, 1, 2), "grad_z")
  close(to_codebook, "grad_embedding")
  np.testing.assert_allclose(eq_3_to_z, 0.25 * to_z, rtol=1e-6)
  np.testing.assert_allclose(eq_3_to_codebook, 4.0 * to_codebook, rtol=1e-6)


@pytest.mark.evidence("V11", "M")
def test_gradients_rest_where_codes_are_means():
  """Of code k by Eq. 3: 2 n_k (e_k - mean_k) / (N D), with n_k of N vectors; 0 at Eq. 5."""
  z, codebook = normal(0, 6, 50, 2), normal(1, 4, 2)
  index = jax.jit(quantization.nearest)(z, codebook)
  means, n = one_hot_means(z, index, 4)
  assert n.min() > 3
  loss = lambda codebook: quantization.gradient_loss(z, codebook[index]).mean()
  gradient = jax.jit(jax.grad(loss))
  expected = 2.0 * n[:, None] * (np.float64(codebook) - means) / (300 * 2)
  np.testing.assert_allclose(gradient(codebook), expected, atol=1e-6)
  np.testing.assert_allclose(gradient(jnp.float32(means)), 0.0, atol=1e-7)


@pytest.mark.evidence("V11", "M")
def test_codes_become_the_means_of_their_clusters():
  """Eq. 6-8 over many steps of one batch: k-means, and counts in closed form."""
  centres = jnp.array([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
  which = jnp.arange(90) % 3 % 2  # 60 vectors of the first centre, 30 of the second, none else
  z = (centres[which] + 0.3 * normal(0, 90, 2)).reshape(9, 10, 2)
  start = quantization.start(centres + 0.5)

  @jax.jit
  def run(statistics):
    step = lambda s, _: (quantization.ema_update(s, z, which.reshape(9, 10), decay=0.9), None)
    return jax.lax.scan(step, statistics, None, length=100)[0]

  found = run(start)
  n, g = np.array([60.0, 30.0, 0.0]), 0.9**100
  np.testing.assert_allclose(found["count"], g + (1.0 - g) * n, rtol=1e-4)
  for k in (0, 1):
    mean = np.float64(z.reshape(-1, 2))[np.asarray(which) == k].mean(0)
    # Smoothing divides by a count that is 1e-5 too large, of 30 at least.
    np.testing.assert_allclose(found["codebook"][k], mean, atol=1e-4)
  # A code that no vector has stays where it is for as long as its count is far above eps.
  few = jax.jit(quantization.ema_update)(start, z, which.reshape(9, 10))
  np.testing.assert_allclose(few["codebook"][2], start["codebook"][2], rtol=1e-4)


def test_dead_codes_restart_at_vectors():
  z = normal(0, 8, 4, 3)
  before = quantization.start(jnp.zeros((5, 3)))
  rows = np.asarray(z).reshape(-1, 3)
  before["count"] = jnp.array([2.0, 0.3, 0.5, 0.1, 9.0])
  revive = jax.jit(quantization.revive)
  new, n = revive(before, z, noise.rows(KEY(1), 8), threshold=0.5)
  assert n == 2.0
  np.testing.assert_array_equal(new["count"], [2.0, 1.0, 0.5, 1.0, 9.0])
  np.testing.assert_array_equal(new["codebook"], new["total"])
  for k, dead in enumerate([False, True, False, True, False]):
    assert (rows == np.asarray(new["codebook"][k])).all(-1).any() == dead
  assert (new["codebook"][1] != new["codebook"][3]).any()
  other, _ = revive(before, z, noise.rows(KEY(2), 8), threshold=0.5)
  assert (other["codebook"][1] != new["codebook"][1]).any()
  same, n = revive(before, z, noise.rows(KEY(3), 8), threshold=0.0)
  assert n == 0.0
  jax.tree.map(np.testing.assert_array_equal, same, before)


@pytest.mark.evidence("V11", "M")
def test_a_codebook_is_that_of_the_global_batch():
  """Five steps, dead codes among them, on one device, two and four."""
  z = normal(0, 5, 8, 6, 3)
  start = quantization.start(3.0 * normal(1, 16, 3))

  def run(z, devices):
    def step(statistics, inputs):
      i, z = inputs
      index = quantization.nearest(z, statistics["codebook"])
      first = axis.first_row(len(z))
      keys = noise.rows(jax.random.fold_in(KEY(2), i), len(z), first)
      p = quantization.frequencies(index, 16)
      statistics = quantization.ema_update(statistics, z, index, decay=0.5)
      statistics, n = quantization.revive(statistics, z, keys, threshold=0.2)
      return statistics, (n, quantization.perplexity(p), quantization.usage(p))

    fn = lambda z: jax.lax.scan(step, start, (jnp.arange(5), z))
    if devices > 1:
      mesh = Mesh(np.asarray(jax.devices()[:devices]), (axis.NAME,))
      specs = dict(in_specs=(P(None, axis.NAME),), out_specs=P(), check_vma=False)
      fn = jax.shard_map(fn, mesh=mesh, **specs)
    return jax.device_get(jax.jit(fn)(z))

  one, (revived, perplexity, used) = run(z, 1)
  assert revived[2:].sum() > 3 and (revived < 16).all()
  assert (perplexity <= 16 * used).all() and used[-1] > used[0]
  for devices in (2, 4):
    many = run(z, devices)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, many, (one, (revived, perplexity, used)))


def test_perplexities():
  """K where all codes are used alike, 1 where one is, 2^1.5 of a half and two quarters."""
  index = jnp.array([[0, 0, 1, 3]])
  p = quantization.frequencies(index, 5)
  np.testing.assert_array_equal(p, [0.5, 0.25, 0.0, 0.25, 0.0])
  np.testing.assert_allclose(quantization.perplexity(p), 2.0**1.5, rtol=1e-6)
  np.testing.assert_allclose(quantization.usage(p), 0.6, rtol=1e-6)
  np.testing.assert_allclose(quantization.perplexity(jnp.full(7, 1 / 7)), 7.0, rtol=1e-6)
  assert quantization.perplexity(jnp.array([0.0, 1.0, 0.0])) == 1.0


def test_gumbel_softmax_draws_from_the_softmax():
  """arXiv:1611.01144: hard draws are one-hot with softmax's frequencies and the soft gradient."""
  n, logits = 40_000, jnp.log(jnp.array([0.6, 0.3, 0.1, 1e-8]))
  many = jnp.broadcast_to(logits, (n, 4))
  keys = lambda: noise.rows(KEY(0), n)
  draw = functools.partial(quantization.gumbel_softmax, temperature=0.7)
  hard = jax.jit(functools.partial(draw, hard=True))(keys(), many)
  soft = jax.jit(draw)(keys(), many)
  np.testing.assert_array_equal(
    jnp.sort(hard, -1), jnp.broadcast_to(jnp.array([0, 0, 0, 1]), (n, 4))
  )
  np.testing.assert_allclose(soft.sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(hard.argmax(-1), soft.argmax(-1))
  p = jnp.exp(logits)
  # Four standard deviations of a frequency.
  assert (jnp.abs(hard.mean(0) - p) <= 4.0 * jnp.sqrt(p * (1.0 - p) / n) + 1e-12).all()

  weight = normal(1, 5, 4)
  value = lambda x, hard: jnp.sum(weight * draw(noise.rows(KEY(2), 5), x, hard=hard))
  slopes = jax.jit(lambda x: [jax.grad(value)(x, hard) for hard in (False, True)])
  soft_slope, hard_slope = slopes(normal(3, 5, 4))
  np.testing.assert_array_equal(soft_slope, hard_slope)
  assert jnp.abs(hard_slope).max() > 0.01


def test_gumbel_softmax_of_given_noise():
  """softmax((logits + g) / temperature), near one-hot where the temperature is near 0."""
  logits, g = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
  draw = jax.jit(functools.partial(quantization.gumbel_softmax, None, gumbel=g))
  out, cold = draw(logits, temperature=2.0), draw(logits, temperature=1e-3)
  e = np.exp((np.float64(logits) + np.float64(g)) / 2.0)
  np.testing.assert_allclose(out, e / e.sum(-1, keepdims=True), rtol=1e-5)
  np.testing.assert_allclose(cold.max(-1), 1.0, atol=1e-5)
  np.testing.assert_array_equal(cold.argmax(-1), (logits + g).argmax(-1))
