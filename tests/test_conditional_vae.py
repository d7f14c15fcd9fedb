"""CVAE: what its bound is a bound on, what its prior is worth, and what it leaves as it was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.models.vae import conditional_vae, vae
from jaxgen.objectives import elbo, likelihood

KEY = jax.random.key
SHAPE = (2, 2, 1)
SMALL = dict(image_shape=SHAPE, z_dim=2, width=8)


@functools.cache
def small(**args):
  """A small CVAE away from its start: (method, vars)."""
  made = conditional_vae.build(**{**SMALL, **args})
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.3 * jax.random.normal(KEY(x.size), x.shape)
  return made, vars._replace(params=jax.tree.map(noisy, vars.params))


def batch(n, given=2):
  """Binary images; `start` has the first `given` of four pixels, of its own images for 4."""
  image = 2.0 * jax.random.bernoulli(KEY(1), 0.5, (n, 4)) - 1.0
  own = 2.0 * jax.random.bernoulli(KEY(2), 0.5, (n, 4)) - 1.0
  start = own if given == 4 else jnp.where(jnp.arange(4)[None] < given, image, 0.0)
  return {"image": image.reshape(-1, *SHAPE), "start": start.reshape(-1, *SHAPE)}


@pytest.mark.evidence("V07", "M")
def test_the_bound_of_a_linear_gaussian_model_is_below_its_evidence():
  """y = a x + b z + noise, z ~ N(c x, s^2): Eq. 22 from the terms of `elbo`, tight at q = p(z|x,y).

  log p(y | x) = log N(a x + b c x, b^2 s^2 + r^2).
  """
  a, b, c, s, r = 0.5, 1.5, -0.7, 0.8, 0.6
  x, y = jax.random.normal(KEY(1), (2, 20_000))
  exact = likelihood.gaussian(y, (a + b * c) * x, jnp.log(b**2 * s**2 + r**2))
  precision = 1 / s**2 + b**2 / r**2
  true = (c * x / s**2 + b * (y - a * x) / r**2) / precision

  @jax.jit
  def gap(mean, log_var):
    """log p(y | x) less the bound, over draws of z, and its standard error."""
    z = elbo.reparameterize(noise.rows(KEY(3), len(x)), mean, log_var)
    kl = elbo.normal_kl(mean, log_var, c * x, jnp.full_like(x, 2 * np.log(s)))
    gaps = exact - likelihood.gaussian(y, a * x + b * z, jnp.full_like(x, 2 * np.log(r))) + kl
    return gaps.mean(), gaps.std() / len(x) ** 0.5

  log_var = jnp.full_like(x, -np.log(precision))
  tight, error = gap(true, log_var)
  assert abs(tight) < 4 * error
  for q in ((true + 0.3, log_var), (true, log_var + 0.7), (c * x, 0.0 * x)):
    kl = elbo.normal_kl(*q, true, log_var).mean()
    loose, error = gap(*q)
    assert abs(loose - kl) < 4 * error and kl > 0.02  # the gap is KL(q || p(z | x, y))


@pytest.mark.evidence("V07", "M")
@pytest.mark.parametrize("target, given", [("missing", 2), ("all", 4)])
def test_importance_weights_sum_to_one_over_all_that_may_be_missing(target, given):
  """Their mean is an unbiased P(y | x): over all y, of one x, these sum to 1; bounds are below."""
  made, vars = small(target=target)
  calm = {k: jax.tree.map(lambda x: 0.3 * x, vars.params[k]) for k in ("recognition", "prior")}
  vars = vars._replace(params={**vars.params, **calm})  # near each other: no weight is huge
  n, free = 25, 2 if target == "missing" else 4
  bits = (jnp.arange(2**free)[:, None] >> jnp.arange(free)[None]) & 1
  x = jnp.array([1.0, -1.0] + [0.0] * 2 if target == "missing" else [1.0, -1.0, -1.0, 1.0])
  y = jnp.concatenate([jnp.tile(x[None, : 4 - free], (2**free, 1)), 2.0 * bits - 1.0], axis=1)
  rows = {"image": jnp.tile(y, (n, 1)), "start": jnp.tile(x[None], (n * 2**free, 1))}
  rows = {k: v.reshape(-1, *SHAPE) for k, v in rows.items()}

  def log_prob(samples):
    keys = noise.rows(KEY(3), len(rows["image"]))
    return made.fns["log_prob"](vars, rows, keys, samples=samples).reshape(n, -1)

  many, bound = (jax.jit(log_prob, static_argnums=0)(k) for k in (100, 0))
  sums = jnp.exp(many).sum(axis=1)
  error = sums.std() / n**0.5
  assert error < 0.03 and abs(sums.mean() - 1.0) < 4.0 * error
  assert bound.mean() + 0.01 < many.mean() < -free * np.log(2.0) + 0.01


@pytest.mark.evidence("V07", "M")
@pytest.mark.parametrize("decoder", vae.DECODERS)
def test_the_kl_is_that_to_the_learned_prior(decoder):
  """Against the mean of log q - log prior over z ~ q, the prior computed by hand."""
  made, vars = small(decoder=decoder)
  data, keys = batch(64), lambda: noise.rows(KEY(4), 64)
  mean_q, log_var_q = made.fns["posterior"](vars, data, noise.split(keys())[0])
  x = data["start"].reshape(64, 4)
  found = conditional_vae.MLP(8, 4, vae.DECODERS[decoder].outputs).apply(
    {"params": vars.params["baseline"]}, x
  )
  guess = vae.DECODERS[decoder].mean(found)
  prior = conditional_vae.MLP(8, 2, 2).apply({"params": vars.params["prior"]}, x, guess)
  wide = lambda *p: [jnp.broadcast_to(v[None], (4000, 64, 2)) for v in p]
  q, prior = wide(mean_q, log_var_q), wide(*prior)
  z = q[0] + jnp.exp(0.5 * q[1]) * jax.random.normal(KEY(5), (4000, 64, 2))
  ratio = jnp.sum(likelihood.gaussian(z, *q) - likelihood.gaussian(z, *prior), axis=2)
  terms = made.fns["bound"](vars, data, keys())
  assert terms["kl"].shape == (64, 1)
  error = 5.0 * ratio.std(0) / 4000**0.5
  assert (jnp.abs(ratio.mean(0) - terms["kl"][:, 0]) < error + 1e-4).all()
  np.testing.assert_allclose(
    made.fns["log_prob"](vars, data, keys()),
    terms["reconstruction"] - terms["kl"][:, 0],
    rtol=1e-5,
  )


@pytest.mark.evidence("V07", "M")
@pytest.mark.parametrize("target", conditional_vae.TARGETS)
def test_samples_keep_what_is_given(target):
  """To the bit, where it is not predicted; the rest differs between draws, and not at the mean."""
  made, vars = small(target=target)
  one = batch(1)["start"]
  start = jnp.repeat(one, 200, axis=0)

  @jax.jit
  def draws():
    draw = functools.partial(made.fns["sample"], vars, cond={"start": start})
    image, center = draw(noise.rows(KEY(1), 200)), draw(noise.rows(KEY(2), 200), mean=True)
    return image["image"], center["image"]

  image, center = draws()
  assert image.shape == (200, *SHAPE) and jnp.abs(image).max() <= 1.0
  kept = (start != 0.0) & (target == "missing")
  np.testing.assert_array_equal(image[kept], start[kept])
  assert image.std(0)[~kept[0]].min() > 1e-3
  assert jnp.ptp(center, axis=0).max() == 0.0


def test_the_loss_is_minus_the_bound_and_more_draws_are_a_mean():
  """alpha = 1, L = 1: -log_prob; L = 64 has its mean; alpha mixes the two losses."""
  n = 400
  data = {k: jnp.tile(v, (n // 8, 1, 1, 1)) for k, v in batch(8).items()}
  made, vars = small()

  @jax.jit
  def losses():
    keys = lambda: noise.rows(KEY(2), n)
    loss = lambda **args: small(**args)[0].phases["cvae"].loss(vars, data, keys())
    bound = made.fns["log_prob"](vars, data, noise.rows(KEY(3), n))
    return loss(), loss(samples=64), loss(alpha=0.25), loss(alpha=0.0), bound

  (one, aux), (many, _), (mixed, _), (gsnn, _), bound = losses()
  np.testing.assert_allclose(one, aux.metrics["reconstruction"] + aux.metrics["kl"], rtol=1e-6)
  error = bound.std() / n**0.5
  assert abs(one + bound.mean()) < 6.0 * error and abs(one - many) < 5.0 * error
  np.testing.assert_allclose(mixed, 0.25 * one + 0.75 * gsnn, rtol=1e-5)
  assert abs(gsnn - aux.metrics["reconstruction"]) > 0.01  # another z


def test_what_is_not_predicted_is_not_scored():
  """Other pixels under what is given leave every loss as it is; other missing ones do not."""
  made, vars = small()
  data = batch(16)
  seen = data["start"] != 0.0
  flip = lambda where: {**data, "image": jnp.where(where, -data["image"], data["image"])}

  @jax.jit
  def losses(batch):
    return [p.loss(vars, batch, noise.rows(KEY(2), 16))[0] for p in made.phases.values()]

  for here, same, other in zip(*map(losses, (data, flip(seen), flip(~seen))), strict=True):
    assert here == same != other


@pytest.mark.parametrize(
  "args, words",
  [
    ({"target": "half"}, "target='half': expected one of missing, all"),
    ({"decoder": "poisson"}, "decoder='poisson': expected one of bernoulli, gaussian"),
    ({"samples": 0}, "samples=0: expected a whole number, 1 or more"),
    ({"alpha": 1.5}, "alpha=1.5: expected at least 0 and at most 1"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    conditional_vae.build(**args)


def test_a_batch_or_cond_without_start_is_refused():
  made, vars = small()
  with pytest.raises(ValueError, match="start=None: expected a float array"):
    made.phases["cvae"].loss(vars, {"image": batch(2)["image"]}, noise.rows(KEY(0), 2))
  with pytest.raises(ValueError, match="start=None: expected a float array"):
    made.fns["sample"](vars, noise.rows(KEY(0), 2))
