"""EDM: Table 1 against golden vectors and closed forms, augmentation, likelihood."""

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
from jaxgen.nn import augment
from jaxgen.objectives import likelihood, preconditioning, score

DATA = GaussianData(mean=0.0, std=0.5)
PATH = paths.EDM()
ROWS = {name: cls() for name, cls in preconditioning.KNOWN.items()}
CONFIG = "configs/diffusion/edm.py"
every_row = pytest.mark.parametrize("name", ROWS)


def keys(n, seed=1):
  return noise.rows(jax.random.key(seed), n)


@pytest.mark.parametrize("vector, name", [("edm_precond_edm", "EDM"), ("edm_precond_vp", "VP")])
@pytest.mark.evidence("D12", "G")
def test_golden_preconditioning(vector, name):
  x, close = golden.load(vector)
  sigma, images = jnp.asarray(x["in.sigma"]), jnp.asarray(x["in.x"])
  for key, value in ROWS[name].scales(sigma)._asdict().items():
    close(value, key)
  for key, fill in (("F_zero", jnp.zeros_like), ("F_one", jnp.ones_like)):
    close(preconditioning.denoiser(ROWS[name], lambda x, t, f=fill: f(x))(images, sigma), key)


@pytest.mark.parametrize("vector, name", [("edm_loss_edm", "EDM"), ("edm_loss_vp", "VP")])
@pytest.mark.evidence("D12", "G")
def test_golden_losses(vector, name):
  """The vectors have a loss a pixel, ours is their mean: a mask leaves one pixel of the error."""
  given, close = golden.load(vector)
  x, u, eps = (jnp.asarray(given[f"in.{k}"]) for k in ("images", "rnd", "noise"))
  m = jnp.linspace(-1.0, 1.0, 48).reshape(1, 3, 4, 4)

  def toy(x, sigma):
    s = paths.expand(sigma, x)
    return m + 0.25 / (0.25 + s**2) * (x - m) + 0.05 * jnp.tanh(x) * s / (1.0 + s)

  @jax.jit
  @jax.vmap
  def of_pixel(mask):
    fn = lambda y, sigma: jnp.where(mask[None], toy(y, sigma), x)
    return 48 * score.edm(fn, x, keys(6), row=ROWS[name], u=u[:, 0, 0, 0], eps=eps)

  close(of_pixel(jnp.eye(48).reshape(48, 3, 4, 4) > 0.5).T.reshape(6, 3, 4, 4), "loss")


@every_row
@pytest.mark.evidence("D12", "M")
def test_a_network_that_knows_the_row_gives_the_exact_denoiser(name):
  """It reads x and sigma from its inputs alone: what it is told is enough, and D undoes it.

  D is about 0.25 / sigma^2 of x for much noise, which the rows other than EDM's take from x in
  float32: 1 % of that.
  """
  row = ROWS[name]
  told = {
    "EDM": lambda c: jnp.exp(4.0 * c),
    "VP": lambda c: paths.VP().sigma(c / 999.0) / paths.VP().alpha(c / 999.0),
    "VE": lambda c: 2.0 * jnp.exp(c),
    "iDDPM": lambda c: jnp.float32(row._u)[999 - c.astype(jnp.int32)],
  }[name]
  u = {"EDM": jnp.linspace(-3.0, 4.0, 4), "iDDPM": jnp.array([10, 100, 500, 990])}
  sigma = row.sigma(u.get(name, jnp.linspace(0.0, 1.0, 4)))
  x = sigma[:, None] * jax.random.normal(jax.random.key(0), (4, 5)) + 0.3
  exact = DATA.field(PATH).predict(x, sigma).x

  def net(y, c_noise):
    s = told(c_noise)
    c = row.scales(s)
    x = y / c.c_in[:, None]
    return (DATA.field(PATH).predict(x, s).x - c.c_skip[:, None] * x) / c.c_out[:, None]

  ours = preconditioning.denoiser(row, net)(x, sigma)
  size = jnp.abs(x).max(1, keepdims=True) * jnp.minimum(1.0, 0.25 / sigma**2)[:, None]
  assert (jnp.abs(ours - exact) < 0.01 * size).all()
  assert (jnp.abs(exact).max(1, keepdims=True) > 0.5 * size).all()  # 0 would not do


@every_row
@pytest.mark.evidence("D12", "M")
def test_every_level_weighs_the_same_and_little_noise_changes_nothing(name):
  """lambda c_out^2 = 1, App. B.6; D -> x as sigma -> 0."""
  row, sigma = ROWS[name], jnp.array([1e-5, 0.002, 0.5, 80.0])
  scales = row.scales(sigma)
  np.testing.assert_allclose(row.weight(sigma) * scales.c_out**2, 1.0, rtol=1e-4)
  x = jnp.linspace(-1.0, 1.0, 4)[:, None]
  ours = preconditioning.denoiser(row, lambda y, t: jnp.full_like(y, 3.0))(x, sigma)
  np.testing.assert_allclose(ours[0], x[0], atol=1e-4)


@pytest.mark.evidence("D12", "M")
def test_inputs_and_targets_have_unit_variance():
  """App. B.6, for data of standard deviation sigma_data, at every sigma; c_out is the least."""
  row, n = preconditioning.EDM(sigma_data=0.7), 200_000
  x, eps = jax.random.normal(jax.random.key(2), (2, n, 1)) * jnp.array([0.7, 1.0])[:, None, None]
  for sigma in (0.01, 0.7, 30.0):
    c = row.scales(jnp.float32(sigma))
    target = (x - c.c_skip * (x + sigma * eps)) / c.c_out
    np.testing.assert_allclose(jnp.std(c.c_in * (x + sigma * eps)), 1.0, atol=0.01)
    np.testing.assert_allclose(jnp.std(target), 1.0, atol=0.01)
    for other in (0.9, 1.1):
      rest = x - other * c.c_skip * (x + sigma * eps)
      assert c.c_skip < 0.01 or jnp.std(rest) > c.c_out * 1.0001


@pytest.mark.evidence("D12", "M")
def test_iddpm_levels_are_its_cosine_schedule():
  """u_(M - t) = sigma_t / alpha_t of its chain with betas up to 1 - C_1; told t - 1."""
  row, path = preconditioning.IDDPM(), paths.Discrete(tuple(paths.cosine_betas(1000)))
  t = np.array([1, 2, 10, 500, 990, 1000])
  chain = np.sqrt(np.expm1(-2.0 * path._log_alphas[t]))
  np.testing.assert_allclose(row._u[1000 - t], chain, rtol=1e-6)
  assert row._u[1000] == 0.0 and 80.0 < row._u[8] < 82.0  # sigma_max of Table 1, j_0 = 8
  sigma = row.sigma(1000 - jnp.asarray(t))
  np.testing.assert_array_equal(row.scales(sigma).c_noise, t - 1)
  np.testing.assert_array_equal(row.scales(1.001 * sigma).c_noise, t - 1)  # the nearest
  assert set(np.asarray(row.draw(keys(20_000)))) == set(range(1000))


def test_levels_are_those_of_table_1():
  u = ROWS["EDM"].draw(keys(20_000))
  log_sigma = jnp.log(ROWS["EDM"].sigma(u))
  np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=0.03)
  ends = jnp.array([0.0, 1.0])
  np.testing.assert_allclose(ROWS["VE"].sigma(ends), [0.02, 100.0], rtol=1e-4)
  low, high = np.sqrt(np.expm1(0.5 * 19.9e-10 + 1e-6)), np.sqrt(np.expm1(10.05))
  np.testing.assert_allclose(ROWS["VP"].sigma(ends), [high, low], rtol=1e-4)


@every_row
@pytest.mark.evidence("D12", "M")
def test_the_exact_denoiser_is_the_minimum(name):
  """The slope along a perturbation of the network vanishes there, and not beside it.

  x, eps and u are evenly spread, so that few rows do.
  """
  row, even = ROWS[name], qmc.Sobol(3, rng=0).random_base2(13).astype(np.float32)
  x, eps, u = 0.5 * norm.ppf(even[:, :1]), norm.ppf(even[:, 1:2]), even[:, 2]
  u = {"EDM": norm.ppf(u), "iDDPM": (1000 * u).astype(int)}.get(name, u)

  @jax.jit
  def slope(size):
    def loss(size):
      def fn(y, sigma):
        c = row.scales(sigma)
        wave = jnp.sin(3.0 * c.c_in[:, None] * y) * c.c_out[:, None]
        return DATA.field(paths.EDM(1e-4, 1e5)).predict(y, sigma).x + size * wave

      return score.edm(fn, x, keys(len(x)), row=row, u=u, eps=eps).mean()

    return jax.grad(loss)(size)

  assert abs(slope(0.0)) < 0.01 < abs(slope(0.1))


ZERO = augment.Draw(*(jnp.zeros(1),) * 8)


def warped(image, **draw):
  """image [H, W, C] under one Draw."""
  d = ZERO._replace(**{k: jnp.array([v]) for k, v in draw.items()})
  return jax.jit(augment.warp)(image[None], *augment.affine(d, *image.shape[:2]))[0]


def smooth(side):
  """[side, side, 1]: waves without symmetry."""
  i = jnp.arange(side) * 2.0 * jnp.pi / side
  return (jnp.sin(i)[:, None] + 0.5 * jnp.cos(2.0 * i + 0.7)[None, :])[..., None]


def test_without_augmentation_images_are_themselves_and_labels_0():
  x = jax.random.uniform(jax.random.key(4), (6, 8, 12, 2), minval=-1.0)
  images, labels = jax.jit(lambda k, x: augment.augment(k, x, 0.0))(keys(6), x)
  np.testing.assert_allclose(images, x, atol=2e-6)
  assert labels.shape == (6, 9) and not labels.any()


def test_warps_against_arrays():
  """Turns and whole pixels. The centre of sym6 is 0.05 pixels off, which half a turn doubles."""
  image = smooth(16)
  for k in (1, 2):
    turned = warped(image, angle=k * np.pi / 2)
    np.testing.assert_allclose(turned, jnp.rot90(image, k), atol=0.07)
  moved = warped(image, x=3 / 16 / 0.125, y=-2 / 16 / 0.125)
  np.testing.assert_allclose(moved[:-2, 3:], image[2:, :-3], atol=1e-5)
  np.testing.assert_allclose(moved[:-2, :3], image[2:, 3:0:-1], atol=1e-5)  # mirrored border


def test_a_ramp_is_warped_as_the_map_says():
  """Inside, a linear image stays linear: it shows the place A c + b, seen from sym6's centre."""
  H, W = 24, 32
  x, y = jnp.meshgrid(jnp.arange(W) - (W - 1) / 2, jnp.arange(H) - (H - 1) / 2)
  ramp = jnp.stack([x, y], axis=-1)
  mixed = dict(scale=0.8, angle=0.2, aniso=-0.7, aniso_angle=0.9, x=0.1, y=-0.15)
  inside = (slice(8, -8), slice(8, -8))
  off = (5.0 - np.arange(12) @ augment.SYM6 / augment.SYM6.sum()) / 2.0
  for draw in (mixed, {"scale": 5.0}, {"aniso": 2.0}):
    A, b = augment.affine(ZERO._replace(**{k: jnp.array([v]) for k, v in draw.items()}), H, W)
    expected = jnp.einsum("ij,hwj->hwi", A[0], ramp - off) + b[None] + off
    np.testing.assert_allclose(warped(ramp, **draw)[inside], expected[inside], atol=1e-4)
  np.testing.assert_allclose(A[0], np.diag([2**-0.4, 2**0.4]), atol=1e-6)  # stretched in x


def test_labels_tell_what_was_done():
  n = 20_000
  labels = jax.jit(lambda k: augment.labels(augment.draw(k, 0.3)))(keys(n))
  on = (labels != 0.0).mean(0)
  np.testing.assert_allclose(on, [0.5, 0.15, 0.3, 0.3, 0.3, 0.3, 0.15, 0.3, 0.3], atol=0.015)
  assert ((labels[:, 7] != 0) == (labels[:, 8] != 0)).all()
  normal = lambda v: np.testing.assert_allclose(jnp.std(v[v != 0]), 1.0, atol=0.03)
  normal(labels[:, 2]), normal(labels[:, 7]), normal(labels[:, 8])
  normal(jnp.linalg.norm(labels[:, 5:7], axis=1) * jnp.sign(labels[:, 5]))
  np.testing.assert_allclose((labels[:, 3] + 1) ** 2 + labels[:, 4] ** 2, 1.0, atol=1e-5)
  A, b = augment.affine(ZERO._replace(scale=jnp.ones(1), x=jnp.ones(1)), 8, 16)
  np.testing.assert_allclose(A[0], np.eye(2) / 2**0.2, atol=1e-6)
  np.testing.assert_allclose(b[0], [-0.125 * 16 / 2**0.2, 0.0], atol=1e-6)


def test_an_image_is_augmented_alone_as_in_its_batch():
  x = jax.random.uniform(jax.random.key(5), (32, 8, 8, 1), minval=-1.0)
  run = jax.jit(lambda k, x: augment.augment(k, x, 0.1))
  images, labels = run(keys(32), x)
  one, label = run(noise.rows(jax.random.key(1), 1, first=5), x[5:6])
  np.testing.assert_allclose(one[0], images[5], atol=1e-5)
  np.testing.assert_array_equal(label[0], labels[5])
  flips = (labels[:, 0] == 1.0) & ~(labels[:, 1:] != 0.0).any(1)
  assert flips.any()
  np.testing.assert_allclose(images[flips], x[flips][:, :, ::-1], atol=2e-6)


def analytic(row):
  """A network, as `nn.image_net` gives it, whose D is the exact denoiser of DATA."""

  def apply(vars, y, c_noise, label=None, draw=None):
    sigma = jnp.exp(4.0 * c_noise)
    c = [paths.expand(v, y) for v in row.scales(sigma)]
    x = y / c[2]
    return (DATA.field(PATH).predict(x, sigma).x - c[0] * x) / c[1]

  return lambda key: Vars({"net": {}}), apply


@pytest.mark.evidence("D12", "M")
def test_likelihood_of_a_network_that_knows_the_denoiser(monkeypatch):
  """Of the dequantised image its exact density; on average below that of its 256 values.

  The data is taken to have the noise of sigma_min. 0.005 bits: float32, and 50 steps.
  """
  shape, n = (2, 2, 1), 512
  monkeypatch.setattr(nn, "image_net", lambda *args, **kwargs: analytic(ROWS["EDM"]))
  sampler = {"name": "heun", "steps": 2}
  args = dict(image_shape=shape, sampler=sampler, net_args={}, augment=0.0)
  made = method.build("diffusion.edm", args)
  image = jnp.clip(0.5 * jax.random.normal(jax.random.key(3), (n, *shape)), -1, 1)
  image = jnp.round((image + 1.0) * 127.5) / 127.5 - 1.0
  ours = jax.jit(made.fns["log_prob"])(made.init(None), {"image": image}, keys(n, 4))
  x = likelihood.dequantize(noise.split(keys(n, 4))[0], image)
  exact = norm.logpdf(x, 0.0, np.hypot(0.5, 0.002)) + np.log(likelihood.BIN)
  bits = np.log(2.0) * 4
  np.testing.assert_allclose(ours / bits, exact.sum((1, 2, 3)) / bits, atol=0.005)


@pytest.mark.parametrize(
  "variant, size",
  [
    ("cifar10", 55_733_891),
    ("cifar10_conditional", 55_735_299),
    ("ffhq64", 61_805_571),
    ("imagenet64", 295_899_267),
  ],
)
@pytest.mark.evidence("D12", "P")
def test_sizes(variant, size):
  config = config_lib.read(f"{recipes.ROOT / CONFIG}:{variant}")
  params = jax.eval_shape(method.build(config.model, config.args).init, jax.random.key(0)).params
  assert sum(x.size for x in jax.tree.leaves(params)) == size


def test_the_loss_of_a_new_network_is_that_of_one_that_says_0():
  """Targets have unit variance."""
  config = recipes.small("diffusion/edm.py")
  made = method.build(config.model, config.args)
  image = 0.5 * jax.random.normal(jax.random.key(6), (256, 8, 8, 1))
  batch = {"image": image, "label": jnp.zeros(256, jnp.int32)}
  loss = lambda key: made.phases["net"].loss(made.init(key), batch, keys(256))[0]
  np.testing.assert_allclose(jax.jit(loss)(jax.random.key(0)), 1.0, atol=0.05)


def test_training_tells_the_network_of_the_augmentation(monkeypatch):
  told = []

  def apply(vars, x, t, label=None, draw=None, augment=None):
    told.append((x, augment))
    return x

  monkeypatch.setattr(nn, "image_net", lambda *args, **kwargs: (None, apply))
  args = {"sampler": {"name": "heun", "steps": 2}}
  batch = {"image": jnp.ones((8, 32, 32, 3))}
  for p in (1.0, 0.0):
    loss = method.build("diffusion.edm", {**args, "augment": p}).phases["net"].loss
    assert jnp.isfinite(loss(Vars({}), batch, keys(8))[0])
  (_, labels), (_, none) = told
  assert labels.shape == (8, 9) and (labels[:, 2] != 0.0).all() and none is None
  made = method.build("diffusion.edm", {**args, "augment": 1.0})
  x = made.fns["field"](Vars({})).predict(batch["image"], jnp.ones(8)).x
  assert jnp.isfinite(x).all() and told[-1][1] is None  # none at sampling


@pytest.mark.parametrize(
  "args, words",
  [
    ({"preconditioning": "DDPM"}, "preconditioning='DDPM': expected one of EDM, VP, VE, iDDPM"),
    ({"preconditioning": "VP"}, "preconditioning_args.sigma_data=0.5: VP takes no such keyword"),
    ({"preconditioning_args": {"sigma_data": 0}}, "sigma_data=0: expected a finite number above 0"),
    ({"net_args": {}}, "augment=0.12: expected 0, unless net_args.augment is 9"),
    ({"augment": 1.5}, "augment=1.5: expected at least 0 and at most 1"),
    ({"sigma_min": 90.0}, "sigma_max=80.0: expected a number above 90.0"),
  ],
)
def test_bad_settings_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    method.build("diffusion.edm", args)
