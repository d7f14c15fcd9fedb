"""Progressive distillation and consistency models: closed forms, golden vectors, models."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import nn, noise, paths
from jaxgen.core import method, step
from jaxgen.objectives import distillation
from jaxgen.samplers import consistency, ddim

DATA, COSINE, EDM = GaussianData(), paths.Cosine(), paths.EDM()
KEY = jax.random.key
rows = lambda n, seed=0: noise.rows(KEY(seed), n)
toy = paths.v_field(COSINE, lambda x, t: jnp.tanh(2.0 * x) + paths.expand(t, x))


def quadrature(repeats):
  """Nodes of DATA and of normal noise [9 repeats, 1], and their weights, whose sum is 1.

  Exact for polynomials of degree 5: here a loss is one of degree 2 in both.
  """
  z, w = np.polynomial.hermite_e.hermegauss(3)
  x, eps = np.meshgrid(DATA.mean + DATA.std * z, z)
  column = lambda a: jnp.asarray(np.tile(a.ravel(), repeats)[:, None], jnp.float32)
  w = np.tile(np.outer(w, w).ravel() / (2.0 * np.pi * repeats), repeats)
  return column(x), column(eps), jnp.asarray(w, jnp.float32)


# Progressive distillation.
def draws(steps, n=32):
  """(x_t [n, 3], t, middle and end of a student's step [n])."""
  i = 1.0 + jnp.arange(n) % steps
  x_t = jnp.asarray(np.random.default_rng(1).standard_normal((n, 3)))
  return x_t, i / steps, (i - 0.5) / steps, (i - 1) / steps


def by_hand(teacher, x_t, t, middle, s):
  """(x of arXiv:2202.00512, Alg. 2, x_s of two DDIM steps, of one with that x)."""
  at = lambda u: (COSINE.alpha(u)[:, None], COSINE.sigma(u)[:, None])
  (a_t, s_t), (a_m, s_m), (a_s, s_s) = at(t), at(middle), at(s)
  p = teacher.predict(x_t, t)
  p = teacher.predict(a_m * p.x + s_m * p.eps, middle)
  x_s = a_s * p.x + s_s * p.eps
  x = distillation.two_steps(teacher, x_t, t, middle, s)
  one = a_s * x + s_s * (x_t - a_t * x) / s_t
  return (x_s - s_s / s_t * x_t) / (a_s - s_s / s_t * a_t), x_s, one


@pytest.mark.evidence("D06", "M")
@pytest.mark.parametrize("steps", [1, 4, 512])
@pytest.mark.parametrize("teacher", [toy, DATA.field(COSINE)], ids=["toy", "exact"])
def test_a_step_to_the_target_is_two_steps_of_the_teacher(teacher, steps):
  target = jax.jit(functools.partial(distillation.two_steps, teacher))
  with jax.enable_x64(True):
    exact = target(*draws(steps))
    x, x_s, one = jax.jit(functools.partial(by_hand, teacher))(*draws(steps))
    np.testing.assert_allclose(one, x_s, atol=1e-9)
    np.testing.assert_allclose(exact, x, rtol=1e-6)
  # The difference that Alg. 2 divides by is 0.003 at 512 steps; ours keeps float32's digits.
  np.testing.assert_allclose(target(*draws(steps)), exact, rtol=1e-5, atol=1e-5)


def test_ddim_takes_the_students_steps_where_the_teacher_takes_its_own():
  """Through the sampler: 3 steps of the map that the target defines, 6 of the teacher."""
  h = 1.0 / 6
  student = paths.x_field(
    COSINE, lambda x, t: distillation.two_steps(toy, x, t, t - h, jnp.maximum(t - 2 * h, 0.0))
  )
  x = jax.random.normal(KEY(1), (8, 3))
  run = lambda field, n: jax.jit(ddim.ddim, static_argnums=0)(
    field, x, rows(8), paths.times(COSINE, n)
  )
  np.testing.assert_allclose(run(student, 3), run(toy, 6), rtol=1e-4, atol=1e-5)


def test_the_loss_is_zero_at_the_target_and_weighs_as_the_paper():
  n, steps = 8, 4
  x, i = jax.random.normal(KEY(0), (n, 3)), 1 + jnp.arange(n) % steps
  h = 0.5 / steps
  off = lambda d: paths.x_field(
    COSINE, lambda x_t, t: d + distillation.two_steps(toy, x_t, t, t - h, jnp.maximum(t - 2 * h, 0))
  )
  run = lambda d, **kw: jax.jit(
    lambda: distillation.progressive(off(d), toy, x, rows(n), steps=steps, i=i, **kw)
  )()
  np.testing.assert_allclose(run(0.0), 0.0, atol=1e-8)
  snr = np.exp(np.float64(paths.log_snr(COSINE, i / steps)))
  np.testing.assert_allclose(run(0.1), 0.01 * np.maximum(snr, 1.0), rtol=1e-3)
  plus_one = run(0.1, weighting=distillation.snr_plus_one)
  np.testing.assert_allclose(plus_one, 0.01 * (snr + 1.0), rtol=1e-3)


def test_a_student_step_is_drawn_uniformly_and_the_teacher_gets_no_gradient():
  seen = []
  spy = paths.x_field(COSINE, lambda x_t, t: seen.append(t) or x_t)
  x = jnp.ones((4000, 1))
  loss = lambda a: distillation.progressive(
    spy, paths.x_field(COSINE, lambda x_t, t: a * x_t), x, rows(4000), steps=4
  ).mean()
  assert jax.grad(loss)(0.5) == 0.0
  t, counts = np.unique(np.asarray(seen[0]), return_counts=True)
  np.testing.assert_array_equal(t, [0.25, 0.5, 0.75, 1.0])
  np.testing.assert_allclose(counts, 1000, atol=100)


def test_v_prediction_weighs_as_the_paper():
  t, n = jnp.array([0.05, 0.3, 0.7, 1.0]), 4
  x, eps = jax.random.normal(KEY(0), (2, n, 3))
  a, s = (f(t)[:, None] for f in (COSINE.alpha, COSINE.sigma))
  run = lambda d, w: distillation.v_prediction(
    lambda *_: a * eps - s * x + d, x, rows(n), weighting=w, t=t, eps=eps
  )
  for w in (distillation.truncated_snr, distillation.snr_plus_one):
    np.testing.assert_allclose(run(0.0, w), 0.0, atol=1e-9)
  largest = np.maximum(a, s)[:, 0] ** 2
  np.testing.assert_allclose(run(0.1, distillation.truncated_snr), 0.01 * largest, rtol=1e-4)
  np.testing.assert_allclose(run(0.1, distillation.snr_plus_one), 0.01, rtol=1e-4)


@pytest.mark.evidence("D06", "M")
def test_v_prediction_is_least_at_the_marginal_v():
  x, eps, w = quadrature(5)
  t = jnp.repeat(jnp.array([0.05, 0.3, 0.5, 0.7, 0.95]), 9)

  @jax.jit
  @jax.grad
  def gradient(c):  # of an affine change of the exact v
    def v_fn(x_t, t):
      p = DATA.field(COSINE).predict(x_t, t)
      t = paths.expand(t, x_t)
      return (1.0 + c[0]) * (COSINE.alpha(t) * p.eps - COSINE.sigma(t) * p.x) + c[1] + c[2] * x_t

    return distillation.v_prediction(v_fn, x, rows(len(x)), t=t, eps=eps) @ w

  np.testing.assert_allclose(gradient(jnp.zeros(3)), 0.0, atol=1e-6)
  assert all(gradient(0.5 * c)[i] > 0.1 for i, c in enumerate(jnp.eye(3)))


# Consistency models. F, the network of the golden vectors, is told 250 log sigma.
def denoiser(scale, wave):
  """The EDM denoiser of F = scale x + wave(t)."""

  def predict(x_t, sigma):
    c_skip, c_out = distillation.scalings(sigma, sigma_min=0.0)
    c_in, F = jax.lax.rsqrt(sigma**2 + 0.25), wave(250.0 * jnp.log(sigma))
    c_skip, c_out, c_in, F = (paths.expand(c, x_t) for c in (c_skip, c_out, c_in, F))
    return c_skip * x_t + c_out * (scale * c_in * x_t + F)

  return predict


STUDENT = distillation.consistency_fn(denoiser(0.3, lambda t: 0.1 * jnp.sin(t)))
TARGET = distillation.consistency_fn(denoiser(0.25, lambda t: 0.12 * jnp.sin(t)))
TEACHER = paths.x_field(EDM, denoiser(0.2, lambda t: 0.05 * jnp.cos(t)))


@pytest.mark.evidence("D08", "G")
def test_golden_scalings():
  x, close = golden.load("cm_scalings")
  sigma = x["in.sigma"]
  c_in = (sigma**2 + 0.25) ** -0.5
  close(np.stack([*distillation.scalings(sigma, sigma_min=0.0), c_in]), "scalings")
  close(np.stack([*distillation.scalings(sigma), c_in]), "boundary")


@pytest.mark.evidence("D08", "G")
@pytest.mark.parametrize("name", ["cd", "ct"])
def test_golden_losses(name):
  """Levels are counted from the noise there, from the data here."""
  x, close = golden.load(f"cm_consistency_loss_{name}")
  teacher = {"teacher": TEACHER} if name == "cd" else {}
  loss = {
    "cd": distillation.consistency_distillation,
    "ct": distillation.consistency_training,
  }[name]
  run = functools.partial(loss, STUDENT, TARGET, scales=18, keys=rows(5), **teacher)
  n = jnp.asarray(17 - x["in.indices"], jnp.int32)
  close(jax.jit(run)(x=x["in.x_start"], n=n, eps=x["in.noise"]), "loss")


@pytest.mark.evidence("D08", "G")
def test_golden_schedules():
  x, close = golden.load("cm_ema_and_scales_ct_cifar_paper")
  scales = distillation.progressive_scales(x["in.step"].astype(np.int32), steps=800_000)
  close(scales, "scales")
  close(distillation.target_decay(scales, of_intervals=True), "ema")
  np.testing.assert_allclose(distillation.target_decay(2), 0.9, rtol=1e-6)  # mu_0, of the paper
  x, close = golden.load("cm_ema_and_scales_fixed_prog")
  close(distillation.progressive_scales(x["in.step"].astype(np.int32), steps=1000), "scales")


def test_levels_run_from_sigma_min_to_sigma_max():
  t = distillation.noise_level(jnp.arange(1, 19), 18)
  ramp = np.linspace(0.002 ** (1 / 7), 80.0 ** (1 / 7), 18) ** 7
  np.testing.assert_allclose(t, ramp, rtol=2e-5)
  assert t[-1] == 80.0


def exact(x_t, t):
  """The start of the trajectory through x_t."""
  t = paths.expand(t, x_t)
  xi = (x_t - DATA.at(EDM, t, 0.0)) / (DATA.at(EDM, t, 1.0) - DATA.at(EDM, t, 0.0))
  return DATA.at(EDM, jnp.full_like(t, EDM.sigma_min), xi)


@pytest.mark.evidence("D08", "M")
def test_distillation_is_least_at_the_exact_f_to_the_order_of_heun():
  """A step of the teacher is wrong by its third power."""

  @functools.partial(jax.jit, static_argnums=0)
  def loss(scales):
    n = jnp.arange(1, scales)
    x, eps = jnp.linspace(-1.0, 2.0, len(n))[:, None], jnp.full((len(n), 1), 0.7)
    return distillation.consistency_distillation(
      exact, exact, DATA.field(EDM), x, rows(len(n)), scales=scales, n=n, eps=eps
    ).mean()

  assert loss(256) < 1e-10
  with jax.enable_x64(True):
    np.testing.assert_allclose(np.log2(loss(128) / loss(256)), 6.0, atol=0.3)


@pytest.mark.evidence("D08", "M")
def test_training_has_the_gradient_of_distillation_as_levels_grow():
  """With the exact score, arXiv:2303.01469, Theorem 2; both gradients shrink as the step does."""

  def f(c, x_t, t):
    slope = jax.lax.rsqrt(1.0 + paths.expand(t, x_t) ** 2)
    return slope * (1.0 + c[0]) * x_t + (1.0 - slope) * c[1]

  @functools.partial(jax.jit, static_argnums=0)
  def gradients(scales):
    x, eps, w = quadrature(scales - 1)
    target, n = functools.partial(f, jnp.full(2, 0.3)), jnp.repeat(jnp.arange(1, scales), 9)
    given = dict(x=x, scales=scales, n=n, eps=eps)
    loss = lambda objective, **kw: (
      lambda c: objective(functools.partial(f, c), target, keys=rows(len(x)), **given, **kw) @ w
    )
    cd = loss(distillation.consistency_distillation, teacher=DATA.field(EDM))
    ct = loss(distillation.consistency_training)
    return [jax.grad(g)(jnp.full(2, 0.3)) for g in (cd, ct)]

  far = []
  for scales in (8, 128):
    cd, ct = gradients(scales)
    far.append(float(jnp.linalg.norm(ct - cd) / jnp.linalg.norm(cd)))
  assert far[0] > 0.2 and far[1] < 0.05, far


def test_the_target_gets_no_gradient_and_metrics_are_functions():
  x = jax.random.normal(KEY(0), (6, 3))
  f = lambda a: lambda x_t, t: a * x_t
  run = lambda a, b, metric: distillation.consistency_training(
    f(a), f(b), x, rows(6), scales=18, metric=metric
  ).mean()
  grads = jax.grad(run, argnums=(0, 1))(0.5, 0.4, distillation.l2)
  assert grads[0] != 0.0 and grads[1] == 0.0
  a, b = jnp.array([[1.0, -2.0]]), jnp.array([[0.0, 2.0]])
  np.testing.assert_allclose(distillation.l1(a, b), [2.5])
  np.testing.assert_allclose(distillation.l2(a, b), [8.5])
  np.testing.assert_array_equal(run(0.5, 0.4, lambda a, b: jnp.full(len(a), 3.0)), 3.0)


def test_neighbouring_levels_are_drawn_uniformly():
  seen = {"f": [], "target": []}
  spy = lambda name: lambda x_t, t: seen[name].append(np.asarray(t)) or x_t
  n, levels = 4000, np.asarray(distillation.noise_level(jnp.arange(1, 6), 5))
  distillation.consistency_training(spy("f"), spy("target"), jnp.ones((n, 1)), rows(n), scales=5)
  t, s = (np.abs(np.log(seen[k][0][:, None] / levels)).argmin(1) for k in ("f", "target"))
  np.testing.assert_array_equal(t, s + 1)
  np.testing.assert_allclose(np.bincount(s, minlength=5), [1000] * 4 + [0], atol=100)


@pytest.mark.evidence("D08", "M")
@pytest.mark.parametrize("levels", [(), (10.0, 1.0)])
def test_multistep_sampling_has_the_moments_of_the_data(levels):
  ts = jnp.array([80.0, *levels, 0.002])
  x = 80.0 * jax.random.normal(KEY(0), (20, 1000))
  x = jax.jit(consistency.consistency, static_argnums=0)(paths.x_field(EDM, exact), x, rows(20), ts)
  np.testing.assert_allclose([x.mean(), x.std()], [DATA.mean, DATA.std], atol=0.02)


def test_multistep_sampling_is_alg_1():
  x, z, ts = jnp.ones((2, 3)), jax.random.normal(KEY(0), (2, 2, 3)), jnp.array([80.0, 1.5, 0.5])
  f = lambda x, t: jnp.tanh(x) * paths.expand(t, x)
  by_hand = f(f(x, 80.0) + (1.5**2 - 0.5**2) ** 0.5 * z[0], 1.5)
  field = paths.x_field(EDM, f)
  run = functools.partial(consistency.consistency, field)
  np.testing.assert_allclose(run(x, rows(2), ts, z=z), by_hand, rtol=1e-6)
  text = str(jax.make_jaxpr(run)(x, rows(2), ts))
  assert text.count("scan[") == 1 and "length=2" in text
  np.testing.assert_allclose(run(x, rows(2), ts)[1], run(x[1:], rows(2)[1:], ts)[0], rtol=1e-6)
  with pytest.raises(ValueError, match="t=100.0: expected 0 to 80.0"):
    run(x, rows(2), jnp.array([100.0, 0.5]))


# The models.
MLP = dict(net="ResidualMLP", net_args=dict(width=16, depth=1))
IMAGES = dict(image_shape=(8, 8, 1), n_classes=3)
PD = functools.partial(method.build, "diffusion.progressive_distillation")


def consistency_model(model="diffusion.progressive_distillation", **args):
  inner = dict(model=model, args=MLP)
  return method.build("diffusion.consistency", {**IMAGES, "denoiser": inner, **args})


def shaken(made, scale=0.3):
  """Vars of `made` whose outputs are not the 0 of a fresh network."""
  vars = jax.jit(lambda key: step.init_state(made, key).vars)(KEY(0))
  noisy = lambda x: x + scale * jax.random.normal(KEY(x.size), x.shape)
  return vars._replace(params={k: jax.tree.map(noisy, v) for k, v in vars.params.items()})


def batch(n=8):
  image = jnp.clip(jax.random.normal(KEY(5), (1, n, 8, 8, 1)), -1.0, 1.0)
  return {"image": image, "label": jnp.arange(n, dtype=jnp.int32)[None] % 3}


def train(made, steps):
  """[state before, after each step]."""
  states = [jax.jit(lambda key: step.init_state(made, key))(KEY(0))]
  run = jax.jit(lambda s: step.train_step(made, s, batch(64), KEY(1))[0])
  for _ in range(steps):
    states.append(run(states[-1]))
  return states


def same(a, b):
  return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_student_starts_as_its_teacher_leaves_it_alone_and_learns():
  wide = dict(net="ResidualMLP", net_args=dict(width=128, depth=1))
  made = PD({**IMAGES, **wide, "steps": 4, "tx": dict(lr=3e-3), "ema": 0.0})
  states = train(made, 60)
  first, last = states[0].params, states[-1].params
  assert same(first["net"], first["teacher"]["net"]) and same(first["teacher"], last["teacher"])
  many = jax.tree.map(lambda x: x[0], batch(512))
  loss = jax.jit(lambda vars: made.phases["net"].loss(vars, many, rows(512))[0])
  before, after = loss(states[0].vars), loss(states[-1].vars)
  assert after < 0.5 * before, (after, before)
  assert "log_prob" not in made.fns and "log_prob" in PD({**IMAGES, **MLP}).fns
  sample = lambda vars, keys: made.fns["sample"](vars, keys)["image"]
  text = str(jax.make_jaxpr(sample)(states[0].vars, rows(2)))
  assert text.count("scan[") == 1 and "length=4" in text


@pytest.mark.parametrize(
  "model", ["diffusion.progressive_distillation", "diffusion.ddpm", "flow_matching.flow_matching"]
)
def test_any_denoiser_gives_a_consistency_function(model):
  made = consistency_model(model)
  field = made.fns["field"](shaken(made))
  x = jax.random.normal(KEY(1), (4, 8, 8, 1))
  f = jax.jit(lambda x, t: field.predict(x, t).x)
  np.testing.assert_allclose(f(x, jnp.full(4, 0.002)), x, atol=1e-6)
  assert jnp.abs(f(x, jnp.full(4, 1.0)) - x).max() > 0.1


@pytest.mark.evidence("D08", "M")
def test_the_model_on_an_edm_network_is_the_papers():
  """f = c_skip x + c_out F(c_in x, c_noise). arXiv:2303.01469, Eq. 5."""
  inner = dict(model="diffusion.edm", args={**MLP, "augment": 0.0})
  made = consistency_model(denoiser=inner)
  vars = shaken(made)
  _, F = nn.image_net("ResidualMLP", (8, 8, 1), 3, **MLP["net_args"])

  @jax.jit
  def both(x, sigma, label):
    f = made.fns["field"](vars, {"label": label}).predict(x, sigma).x
    c_skip, c_out = (paths.expand(c, x) for c in distillation.scalings(sigma))
    c_in = paths.expand((sigma**2 + 0.25) ** -0.5, x)
    raw = F(method.inner(vars, "net"), c_in * x, 0.25 * jnp.log(sigma), label)
    return f, c_skip * x + c_out * raw

  sigma, label = jnp.array([0.002, 0.003, 0.01, 0.1, 0.5, 1.0, 5.0, 20.0, 80.0]), jnp.arange(9) % 3
  x = jax.random.normal(KEY(1), (9, 8, 8, 1)) * sigma[:, None, None, None]
  f, papers = both(x, sigma, label)
  np.testing.assert_allclose(f, papers, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(f[0], x[0], rtol=1e-6)


def test_samples_are_clipped_and_take_the_levels_of_the_config():
  made = consistency_model(levels=(10.0, 1.0))
  sample = lambda vars, keys, **kw: made.fns["sample"](vars, keys, **kw)["image"]
  vars = shaken(made, 1.0)
  assert jnp.abs(jax.jit(sample)(vars, rows(4))).max() == 1.0
  for levels, n in (((), 1), ((0.5,), 2)):
    text = str(jax.make_jaxpr(functools.partial(sample, levels=levels))(vars, rows(4)))
    assert f"length={n}" in text


@pytest.mark.evidence("D08", "M")
def test_the_target_follows_its_schedule_and_the_teacher_stays_put():
  numbers = dict(s_0=2, s_1=10, mu_0=0.8, steps=4)
  made = consistency_model(
    schedule={"profile": "progressive", **numbers}, tx=dict(lr=1e-2), ema=0.99
  )
  states = train(made, 3)
  for k, (old, new) in enumerate(zip(states[:-1], states[1:], strict=True)):
    scales = np.ceil(np.sqrt(k / 4 * (11**2 - 4) + 4) - 1) + 1
    for name, mu in (("net_ema", 0.8 ** (2 / scales)), ("sample_ema", 0.99)):
      mean = lambda a, b, mu=mu: mu * a + (1.0 - mu) * b
      wanted = jax.tree.map(mean, old.params[name], new.params["net"])
      for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(new.params[name]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert same(old.params["teacher"], new.params["teacher"])
  sampling = method.averaged(made, states[-1].vars).params["net"]
  assert same(sampling, states[-1].params["sample_ema"])


def test_without_a_teacher_there_is_none():
  made = consistency_model(distill=False)
  assert set(jax.eval_shape(made.init, KEY(0)).params) == {"net"}
  before, after = train(made, 1)
  assert not same(before.params["net"], after.params["net"])


def test_the_teacher_decides_and_is_guided():
  vars, one = shaken(consistency_model()), jax.tree.map(lambda x: x[0], batch())

  def loss(teacher, w):
    made = consistency_model(guidance_weight=w)
    params = {**vars.params, "teacher": teacher}
    run = jax.jit(lambda vars: made.phases["net"].loss(vars, one, rows(8), scales=9)[0])
    return float(run(vars._replace(params=params)))

  teacher = vars.params["teacher"]
  other = jax.tree.map(lambda x: 1.5 * x, teacher)
  given = loss(teacher, 0.0)
  assert abs(loss(other, 0.0) / given - 1.0) > 1e-3 and abs(loss(teacher, 2.0) / given - 1.0) > 1e-3


@pytest.mark.parametrize(
  "args, words",
  [
    (dict(denoiser=dict(model="gan.wgan_gp", args={})), "one with a field"),
    (dict(denoiser=dict(model="diffusion.ddpm")), "expected a model and its args"),
    (dict(levels=(90.0,)), "levels[0]=90.0: expected between 0.002 and 80.0"),
    (dict(levels=(1.0, 2.0)), "levels[1]=2.0: expected between 0.002 and 1.0"),
    (dict(levels=1.0), "levels=1.0: expected a tuple"),
    (dict(metric="lpips"), "metric='lpips': expected one of l1, l2"),
    (dict(schedule=dict(profile="fix")), "schedule.profile='fix': expected one of fixed"),
    (dict(schedule=dict(profile="fixed", scales=1)), "schedule.scales=1: expected a whole number"),
    (dict(schedule=dict(profile="fixed", mu=1.0)), "schedule.mu=1.0: expected at least 0"),
    (dict(schedule=dict(profile="progressive", s_1=1)), "schedule.s_1=1: expected a whole number"),
    (dict(schedule=dict(profile="progressive", mu_0=0.0)), "schedule.mu_0=0.0: expected between"),
    (dict(schedule=dict(profile="progressive", mu=0.5)), "schedule.mu=0.5: profile 'progressive'"),
    (dict(sigma_max=0.001), "sigma_max=0.001: expected a number above 0.002"),
    (dict(rho=0.0), "rho=0.0"),
    (dict(sigma_data=-1.0), "sigma_data=-1.0"),
    (dict(distill="no"), "distill='no': expected True or False"),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    consistency_model(**args)


@pytest.mark.parametrize(
  "args, words",
  [
    (dict(steps=-1), "steps=-1: expected a whole number, 0 or more"),
    (dict(steps=2.0), "steps=2.0: expected a whole number"),
    (dict(ode_steps=0), "ode_steps=0"),
    (dict(sampler=dict(name="dimd", steps=3)), "sampler='dimd'"),
  ],
)
def test_bad_students_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    PD({**IMAGES, **MLP, **args})
