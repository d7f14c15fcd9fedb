"""Score SDE: the loss against Gaussian data, likelihoods of a network that knows the score."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from oracles import GaussianData
from scipy.stats import norm, qmc

from jaxgen import nn, noise, paths
from jaxgen.core import config as config_lib
from jaxgen.core import method
from jaxgen.core.method import Vars
from jaxgen.objectives import likelihood, score

DATA = GaussianData(mean=0.1, std=0.4)
PATHS = {"VP": paths.VP(), "SubVP": paths.SubVP(), "VE": paths.VE(0.02, 100.0)}
CONFIG = "configs/diffusion/score_sde.py"
every_path = pytest.mark.parametrize("name", PATHS)


def data(n, seed=0):
  return DATA.mean + DATA.std * jax.random.normal(jax.random.key(seed), (n, 1))


def keys(n, seed=1):
  return noise.rows(jax.random.key(seed), n)


def even(n_log2=13):
  """x and eps [n, 1], normal, and u [n], uniform: evenly spread, so that few rows do."""
  u = qmc.Sobol(3, rng=0).random_base2(n_log2).astype(np.float32)
  return DATA.mean + DATA.std * norm.ppf(u[:, :1]), norm.ppf(u[:, 1:2]), u[:, 2]


@every_path
@pytest.mark.evidence("D05", "M")
def test_the_true_score_is_the_minimum(name):
  """The slope along a perturbation of the network vanishes there, and not beside it.

  t from 0.1: g^2 / sigma^2 goes as 1 / t, and its rare large values would make the mean noisy.
  """
  path, (x, eps, u) = PATHS[name], even()
  exact = DATA.field(path).predict

  @jax.jit
  def slopes(size):
    def mean(size, weight):
      fn = lambda x, t: exact(x, t).eps + size * jnp.sin(3.0 * x / path.prior_std)
      given = dict(path=path, weight=weight, t=0.1 + 0.9 * u, eps=eps)
      return score.denoising(fn, x, keys(len(x)), **given).mean()

    return jnp.array([jax.grad(mean)(size, w) for w in (score.variance, score.likelihood)])

  there, beside = abs(slopes(0.0)), abs(slopes(0.1))
  assert (there < 0.1 * beside).all() and (beside > 0.02).all()


@every_path
@pytest.mark.evidence("D05", "M")
def test_the_best_affine_network_is_the_score_of_gaussian_data(name):
  """At one time the loss is a parabola in a and b of eps = a x_t + b: one Newton step ends it."""
  path, (x, eps, _) = PATHS[name], even()
  t = jnp.full(len(x), 0.4)

  @jax.jit
  def fit():
    def loss(ab):
      fn = lambda x, t: ab[0] * x + ab[1]
      return score.denoising(fn, x, keys(len(x)), path=path, t=t, eps=eps).mean()

    zero = jnp.zeros(2)
    return -jnp.linalg.solve(jax.hessian(loss)(zero), jax.grad(loss)(zero))

  a, b = fit()
  x = jnp.array([[-1.0], [0.5]])
  exact = DATA.field(path).score(x, t[:2])
  ours = -(a * x + b) / path.sigma(t[0])
  np.testing.assert_allclose(ours, exact, atol=0.02 * jnp.abs(exact).max())


def test_times_and_weights():
  """Uniform times from t_min to 1; lambda = g^2 is beta(t), or of VE 2 log(50 / 0.01) sigma^2."""
  seen = []
  score.denoising(lambda x, t: seen.append(t) or x, data(4096), keys(4096), t_min=0.2)
  quantiles = jnp.quantile(seen[0], jnp.array([0.0, 0.25, 0.5, 0.75, 1.0]))
  np.testing.assert_allclose(quantiles, [0.2, 0.4, 0.6, 0.8, 1.0], atol=0.02)
  t = jnp.array([1e-5, 0.1, 1.0])
  np.testing.assert_allclose(score.likelihood(paths.VP(), t), 0.1 + 19.9 * t, rtol=1e-4)
  ve = paths.VE()
  exact = 2.0 * np.log(5000.0) * ve.sigma(t) ** 2
  np.testing.assert_allclose(score.likelihood(ve, t), exact, rtol=1e-4)
  x = data(8)
  one = lambda **kw: score.denoising(lambda x, t: x, x, keys(8), path=ve, t=jnp.full(8, 0.3), **kw)
  ratio = one(weight=score.likelihood) / one()
  np.testing.assert_allclose(ratio, 2.0 * np.log(5000.0), rtol=1e-4)


@pytest.mark.parametrize(
  "vector, path", [("score_sde_vp", paths.VP()), ("score_sde_ve", paths.VE())]
)
@pytest.mark.evidence("D05", "G")
def test_golden_perturbation_kernel_and_probability_flow(vector, path):
  x, close = golden.load(vector)
  x, t = jnp.asarray(x["in.x"]), jnp.asarray(x["in.t"])
  close(paths.interpolate(path, x, jnp.zeros_like(x), t), "mean")
  close(path.sigma(t), "std")
  score_fn = lambda x, t: -0.7 * jnp.tanh(x) * (1.0 + paths.expand(t, x))
  close(paths.score_field(path, score_fn).velocity(x, t), "rev_drift_pf1")


def analytic(path):
  """A network, as `nn.image_net` gives it, that knows the score of DATA on `path`."""
  field = DATA.field(path)

  def apply(vars, x, t, label=None, draw=None):
    if isinstance(path, paths.VE):  # score = network / sigma, told log(sigma / 2)
      return -field.predict(x, path.time(-2.0 * (t + jnp.log(2.0)))).eps
    return field.predict(x, t / 999.0).eps

  return lambda key: Vars({"net": {}}), apply


@every_path
@pytest.mark.evidence("D05", "M")
def test_likelihood_of_a_network_that_knows_the_score(name, monkeypatch):
  """Of the dequantised image its exact density; on average below that of its 256 values.

  The data is taken to have the noise at t = 1e-5. 0.004 bits: float32, and 50 steps.
  """
  path, shape = PATHS[name], (2, 2, 1)
  monkeypatch.setattr(nn, "image_net", lambda *args, **kwargs: analytic(path))
  values = {"sigma_min": 0.02, "sigma_max": 100.0} if name == "VE" else {}
  sampler = {"name": "heun", "steps": 2}
  made = method.build(
    "diffusion.score_sde",
    dict(image_shape=shape, path=name, path_args=values, sampler=sampler, net_args={}),
  )
  n = 512
  image = jnp.clip(DATA.mean + DATA.std * jax.random.normal(jax.random.key(3), (n, *shape)), -1, 1)
  image = jnp.round((image + 1.0) * 127.5) / 127.5 - 1.0
  rows = keys(n, 4)
  ours = jax.jit(made.fns["log_prob"])(made.init(None), {"image": image}, rows)
  x = likelihood.dequantize(noise.split(keys(n, 4))[0], image)
  std = np.sqrt(DATA.std**2 + path.sigma(jnp.float32(1e-5)) ** 2)
  exact = norm.logpdf(x, DATA.mean, std) + np.log(likelihood.BIN)
  bits = np.log(2.0) * 4
  np.testing.assert_allclose(ours / bits, exact.sum((1, 2, 3)) / bits, atol=0.004)
  edges = [norm.cdf(image + s * likelihood.BIN / 2, DATA.mean, std) for s in (1, -1)]
  log_p = np.log(edges[0] - edges[1]).sum((1, 2, 3))
  assert abs(float((ours - log_p).mean())) / bits < 0.01


@pytest.mark.parametrize(
  "variant, size",
  [("cifar10_vp", 61_804_419), ("cifar10_subvp", 61_804_419), ("cifar10_ve", 62_758_787)],
)
@pytest.mark.evidence("D05", "P")
def test_sizes(variant, size):
  """Trainable parameters of the official code; VE's 128 frequencies are fixed, beside them."""
  config = config_lib.read(f"{recipes.ROOT / CONFIG}:{variant}")
  vars = jax.eval_shape(method.build(config.model, config.args).init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(vars.params)) == size
  assert sum(x.size for x in jax.tree.leaves(vars.extra)) == (128 if "ve" in variant else 0)


def test_the_loss_of_a_new_network_is_that_of_one_that_says_0():
  """E eps^2 = 1."""
  config = recipes.small("diffusion/score_sde.py")
  made = method.build(config.model, config.args)
  image = jax.random.uniform(jax.random.key(6), (256, 8, 8, 1), minval=-1.0)
  batch = {"image": image, "label": jnp.zeros(256, jnp.int32)}
  loss = lambda key: made.phases["net"].loss(made.init(key), batch, keys(256))[0]
  np.testing.assert_allclose(jax.jit(loss)(jax.random.key(0)), 1.0, atol=0.05)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"path": "Cosine"}, "path='Cosine': expected one of VP, SubVP, VE"),
    ({"path": "VE"}, "path_args.beta_min=0.1: VE takes no such keyword"),
    ({"path_args": {"beta_max": 0.0}}, "beta_max=0.0: expected a finite number above 0"),
    ({"ode_steps": 0}, "ode_steps=0: expected a whole number, 1 or more"),
  ],
)
def test_bad_settings_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    method.build("diffusion.score_sde", args)
