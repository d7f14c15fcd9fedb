"""beta-VAE and its capacity-annealed form: closed forms where everything is linear and Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import noise
from jaxgen.data import pipeline, sources
from jaxgen.models.vae import annealed_vae, beta_vae
from jaxgen.objectives import elbo, likelihood

KEY = jax.random.key
SMALL = dict(image_shape=(4, 4, 1), z_dim=3, widths=(8,), dense=(16,))
LAMBDA, VAR = 4.0, 0.25  # of the data x ~ N(0, LAMBDA), and of the decoder N(w z, VAR)


def linear_terms(p):
  """log p(x | z) and KL of q = N(a x, e^log_var), with w z as the decoder's mean.

  Both are of degree two, so that four points with the moments of x and of eps give expectations.
  """
  x = LAMBDA**0.5 * jnp.array([1.0, 1.0, -1.0, -1.0])
  eps = jnp.array([1.0, -1.0, 1.0, -1.0])
  mean, log_var = p["a"] * x, jnp.full(4, p["log_var"])
  z = elbo.reparameterize(None, mean, log_var, eps=eps)
  kl = elbo.normal_kl(mean, log_var, 0.0, 0.0)
  return likelihood.gaussian(x, p["w"] * z, np.float32(np.log(VAR))), kl


def minimum(loss, steps=3000):
  """The parameters where `loss` is least, by Adam with a rate that falls to 0."""
  tx = optax.adam(optax.cosine_decay_schedule(0.02, steps))
  p = {"a": jnp.float32(0.3), "log_var": jnp.float32(0.0), "w": jnp.float32(0.5)}

  def step(carry, _):
    p, state = carry
    updates, state = tx.update(jax.grad(loss)(p), state, p)
    return (optax.apply_updates(p, updates), state), None

  return jax.lax.scan(step, (p, tx.init(p)), None, length=steps)[0][0]


@pytest.mark.evidence("V04", "M")
def test_a_linear_beta_vae_finds_its_closed_form():
  """w^2 = LAMBDA - beta VAR, KL = log(LAMBDA / (beta VAR)) / 2, and 0 where that is negative.

  The last is the collapse of survey Eq. 15: from beta = LAMBDA / VAR = 16 on, z says nothing of x.
  """
  betas = jnp.array([0.5, 1.0, 4.0, 20.0])

  @jax.jit
  @jax.vmap
  def fitted(beta):
    p = minimum(lambda p: elbo.beta(*linear_terms(p), beta=beta).mean())
    return p["w"] ** 2, linear_terms(p)[1].mean()

  square, kl = fitted(betas)
  np.testing.assert_allclose(square, np.maximum(LAMBDA - betas * VAR, 0.0), atol=5e-3)
  exact = 0.5 * np.maximum(np.log(LAMBDA / (betas * VAR)), 0.0)
  np.testing.assert_allclose(kl, exact, atol=2e-3)
  assert exact[2] > 0.6 and exact[3] == 0.0


@pytest.mark.evidence("V05", "M")
@pytest.mark.parametrize("capacity", [0.0, 0.5, 2.0])
def test_a_linear_annealed_vae_is_best_on_the_rate_distortion_curve(capacity):
  """At KL = C and a squared error of LAMBDA e^(-2 C): no less is possible with that many nats.

  So wherever gamma is above what a nat saves, at most LAMBDA / VAR = 16.
  """
  loss = lambda p: elbo.capacity(*linear_terms(p), gamma=20.0, capacity=capacity).mean()
  w = (LAMBDA * (1.0 - np.exp(-2.0 * capacity))) ** 0.5
  best = jax.tree.map(jnp.float32, {"a": w / LAMBDA, "log_var": -2.0 * capacity, "w": w})
  reconstruction, kl = linear_terms(best)
  np.testing.assert_allclose(kl, capacity, atol=1e-6)
  error = -2.0 * VAR * (reconstruction.mean() + 0.5 * np.log(2.0 * np.pi * VAR))
  np.testing.assert_allclose(error, LAMBDA * np.exp(-2.0 * capacity), rtol=1e-5)

  scale = 10.0 ** jax.random.uniform(KEY(0), (20_000,), minval=-3.0, maxval=0.5)
  around = lambda i, p: p + scale * jax.random.normal(KEY(i), (20_000,))
  near = {k: around(i, best[k]) for i, k in enumerate(best, 1)}
  more = jax.jit(jax.vmap(loss))(near) - loss(best)
  assert -1e-4 < more.min() < 0.02 and (more > 1e-3).mean() > 0.5


def made_and_batch(build, **args):
  made = build(**{**SMALL, **args})
  return made, jax.jit(made.init)(KEY(0)), {
    "image": jax.random.uniform(KEY(1), (32, 4, 4, 1), minval=-1.0)
  }  # fmt: skip


@pytest.mark.evidence("V04", "M")
@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_beta_one_is_the_bound_and_the_loss_is_linear_in_beta(decoder):
  made, vars, batch = made_and_batch(beta_vae.build, decoder=decoder)
  loss = made.phases["vae"].loss

  @jax.jit
  def measured():
    keys = lambda: noise.rows(KEY(2), 32)
    of = lambda p, beta: loss(vars._replace(params=p), batch, keys(), beta=beta)[0]
    terms, log_prob = made.fns["bound"](vars, batch, keys()), made.fns["log_prob"]
    losses = jax.vmap(jax.value_and_grad(of), (None, 0))(vars.params, betas)
    return terms, losses, log_prob(vars, batch, keys())

  betas = jnp.array([0.0, 1.0, 4.0])
  terms, (losses, gradients), log_prob = measured()
  assert terms["reconstruction"].shape == (32,) and terms["kl"].shape == (32, 3)
  np.testing.assert_allclose(losses[0], -terms["reconstruction"].mean(), rtol=1e-5)
  np.testing.assert_allclose(losses[1], -log_prob.mean(), rtol=1e-5)
  np.testing.assert_allclose(losses[2] - losses[1], 3.0 * terms["kl"].sum(1).mean(), rtol=1e-4)
  for zero, one, four in jax.tree.leaves(gradients):
    np.testing.assert_allclose(four, zero + 4.0 * (one - zero), rtol=1e-3, atol=1e-4)


def test_more_draws_bring_the_bound_nearer_and_the_posterior_is_its():
  made, vars, batch = made_and_batch(beta_vae.build, decoder="gaussian")
  batch = {"image": jnp.repeat(batch["image"], 8, axis=0)}

  @functools.partial(jax.jit, static_argnums=0)
  def log_prob(samples):
    return made.fns["log_prob"](vars, batch, noise.rows(KEY(2), 256), samples=samples).mean()

  one, many = log_prob(0), log_prob(64)
  assert one + 0.02 < many
  keys = noise.rows(KEY(3), 256)
  mean, log_var = jax.jit(made.fns["posterior"])(vars, batch, noise.split(keys)[0])
  kl = jax.jit(made.fns["bound"])(vars, batch, noise.rows(KEY(3), 256))["kl"]
  np.testing.assert_allclose(
    kl, 0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0), rtol=1e-3, atol=1e-6
  )


def test_schedules_start_at_zero_and_end_at_the_paper_s_number():
  step = lambda made, name, i: float(made.phases["vae"].hparams[name](jnp.int32(i)))
  constant = beta_vae.build(**SMALL, beta=4.0)
  warm = beta_vae.build(**SMALL, beta=4.0, kl_warmup=100)
  assert [step(constant, "beta", i) for i in (0, 500)] == [4.0, 4.0]
  assert [step(warm, "beta", i) for i in (0, 50, 100, 500)] == [0.0, 2.0, 4.0, 4.0]
  paper = annealed_vae.build()  # arXiv:1804.03599, App. A: 0 to 25 nats over 100,000 steps
  levels = [step(paper, "capacity", i) for i in (0, 50_000, 100_000, 300_000)]
  np.testing.assert_allclose(levels, [0.0, 12.5, 25.0, 25.0])


@pytest.mark.evidence("V05", "M")
def test_the_capacity_is_held_by_the_mean_kl():
  """Of C below, at and above the mean KL of 32 images that differ in it."""
  made, vars, batch = made_and_batch(annealed_vae.build, gamma=10.0)
  batch = {"image": batch["image"] * jnp.linspace(0.0, 1.0, 32).reshape(-1, 1, 1, 1)}
  keys = lambda: noise.rows(KEY(2), 32)
  terms = jax.jit(made.fns["bound"])(vars, batch, keys())
  kl, reconstruction = terms["kl"].sum(1), terms["reconstruction"].mean()
  assert kl.std() > 0.01
  loss = lambda c: made.phases["vae"].loss(vars, batch, keys(), capacity=c)[0]
  below, at, above = jax.jit(jax.vmap(loss))(jnp.array([0.0, kl.mean(), 100.0]))
  np.testing.assert_allclose(below, 10.0 * kl.mean() - reconstruction, rtol=1e-5)
  np.testing.assert_allclose(above, 10.0 * (100.0 - kl.mean()) - reconstruction, rtol=1e-5)
  np.testing.assert_allclose(at, -reconstruction, rtol=1e-5)


def fitted_kl(build, name, values):
  """Mean KL in nats after 300 steps of an MLP on 100 digits, one run for each value of `name`."""
  made = build(image_shape=(8, 8, 1), z_dim=4, widths=(), dense=(32,))
  examples = pipeline.load(sources.open_source("digits", "train"), np.arange(100))
  batch, loss, tx = {"image": examples["image"]}, made.phases["vae"].loss, optax.adam(5e-3)

  @jax.jit
  @jax.vmap
  def run(value):
    def step(carry, i):
      params, state = carry
      keys = noise.rows(jax.random.fold_in(KEY(1), i), 100)
      of = lambda p: loss(vars._replace(params=p), batch, keys, **{name: value})
      grads, aux = jax.grad(of, has_aux=True)(params)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), aux.metrics["kl"]

    vars = made.init(KEY(0))
    return jax.lax.scan(step, (vars.params, tx.init(vars.params)), jnp.arange(300))[1][-20:].mean()

  return run(jnp.array(values))


@pytest.mark.evidence("V04", "C")
def test_kl_falls_as_beta_grows_until_nothing_is_left():
  low, one, high, last = fitted_kl(beta_vae.build, "beta", (0.25, 1.0, 4.0, 100.0))
  assert low > one + 0.5 > high + 1.0 and last < 0.05


@pytest.mark.evidence("V05", "C")
def test_kl_is_held_at_the_capacity():
  """Within the noise of Adam, which steps across |KL - C| for ever."""
  capacities = (0.5, 2.0, 4.0)
  np.testing.assert_allclose(
    fitted_kl(annealed_vae.build, "capacity", capacities), capacities, atol=0.3
  )


@pytest.mark.evidence("V05", "P")
def test_sizes():
  """arXiv:1804.03599, App. A.1: by hand, four convolutions, two dense layers, ten latents."""
  params = jax.eval_shape(annealed_vae.build().init, KEY(0)).params
  sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
  convs = (16 * 1 * 32 + 32) + 3 * (16 * 32 * 32 + 32)
  encoder = convs + (512 * 256 + 256) + (256 * 256 + 256) + 2 * (256 * 10 + 10)
  mirrored = 3 * (16 * 32 * 32 + 32) + (16 * 32 * 1 + 1)
  decoder = (10 * 256 + 256) + (256 * 256 + 256) + (256 * 512 + 512) + mirrored
  assert sizes == {"encoder": encoder, "decoder": decoder}


@pytest.mark.parametrize(
  "build, args, words",
  [
    (beta_vae.build, {"image_shape": (28, 28, 1)}, "height and width multiples of 16 for 4 widths"),
    (beta_vae.build, {"beta": -1.0}, "beta=-1.0: expected a finite number, 0 or more"),
    (beta_vae.build, {"kl_warmup": 0.5}, "kl_warmup=0.5: expected a whole number"),
    (beta_vae.build, {"decoder": "poisson"}, "decoder='poisson': expected one of bernoulli"),
    (beta_vae.build, {"widths": (32, 0)}, "widths="),
    (annealed_vae.build, {"gamma": float("nan")}, "gamma=nan: expected a finite number"),
    (annealed_vae.build, {"capacity": "25"}, "capacity='25': expected a finite number"),
    (annealed_vae.build, {"capacity_steps": 0}, "capacity_steps=0: expected a whole number"),
  ],
)
def test_bad_numbers_are_refused(build, args, words):
  with pytest.raises(ValueError, match=words):
    build(**args)
