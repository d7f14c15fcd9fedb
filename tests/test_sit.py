"""SiT: paths, conversions and SDEs on golden vectors and Gaussian data; its network and losses."""

import functools
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import noise, paths, samplers
from jaxgen.convert import dit as convert
from jaxgen.core.method import Vars
from jaxgen.models.flow_matching import sit
from jaxgen.nn import dit
from jaxgen.objectives import velocity
from jaxgen.samplers import ode, sde

DATA = GaussianData()
PATHS = [
  paths.Linear(),
  paths.Linear(0.1),
  paths.Trigonometric(),
  paths.VP(),
  paths.SubVP(),
  paths.VE(),
  paths.EDM(),
  paths.Cosine(),
  paths.Discrete(),
]
name = lambda value: type(value).__name__
keys = lambda n: noise.rows(jax.random.key(0), n)
SMALL = dict(width=24, depth=1, heads=3)
build = functools.partial(sit.build, image_shape=(4, 4, 3), n_classes=5, size="S", net_args=SMALL)
X = np.random.default_rng(1).standard_normal((3, 4, 4, 3)).astype(np.float32)
LABEL = np.array([0, 3, 4], np.int32)


# Paths and conversions


@pytest.mark.evidence("R06", "G")
def test_golden_interpolants():
  """Theirs run from noise to data, so VP's times and velocities are the other way round."""
  v, close = golden.load("sit_interpolants")
  x, eps, theirs = (jnp.asarray(v[f"in.{k}"]) for k in ("x1", "x0", "t"))
  for vector, path, t, sign in [
    ("linear", paths.Linear(), theirs, 1.0),
    ("gvp", paths.Trigonometric(), theirs, 1.0),
    ("vp", paths.VP(), 1.0 - theirs, -1.0),
  ]:
    x_t, u = paths.interpolate(path, x, eps, t), paths.velocity(path, x, eps, t)
    close(x_t, f"{vector}_xt")
    close(sign * u, f"{vector}_ut")
    field = paths.velocity_field(path, lambda *_, u=u: u)
    close(field.score(x_t, t), f"{vector}_score_from_velocity")
    alpha, d_alpha, _, _ = paths.coefficients(path, t)
    close(sign * d_alpha / alpha, f"{vector}_alpha_ratio")


@pytest.mark.evidence("R06", "M")
def test_the_trigonometric_path_is_exact_at_its_ends_in_float32():
  path, t = paths.Trigonometric(), jnp.array([0.0, 1e-6, 0.5, 1.0 - 2**-20, 1.0])
  angle = 0.5 * np.pi * np.asarray(t, np.float64)
  np.testing.assert_allclose(path.alpha(t), np.sin(angle), rtol=1e-6)
  np.testing.assert_allclose(path.sigma(t)[:4], np.cos(angle)[:4], rtol=1e-6)
  assert path.alpha(t)[0] == 0.0 and path.sigma(t)[-1] == 0.0
  np.testing.assert_allclose(path.time(paths.log_snr(path, t)), t, rtol=1e-6)  # infinite at ends


MAKERS = {
  "velocity": (paths.velocity_field, lambda field, p, x_t, t: field.velocity(x_t, t)),
  "eps": (paths.eps_field, lambda field, p, x_t, t: p.eps),
  "x": (paths.x_field, lambda field, p, x_t, t: p.x),
  "v": (
    paths.v_field,
    lambda field, p, x_t, t: (
      paths.expand(field.path.alpha(t), x_t) * p.eps - paths.expand(field.path.sigma(t), x_t) * p.x
    ),
  ),
  "score": (paths.score_field, lambda field, p, x_t, t: field.score(x_t, t)),
}
MIDDLE = {paths.Discrete: 0.4, paths.EDM: 0.02}  # of the time from noise to data


@pytest.mark.parametrize("path", PATHS, ids=name)
@pytest.mark.evidence("R06", "M")
def test_conversions_of_every_prediction_into_every_other_are_round_trips(path):
  """Along every ordered pair, there and back: in float64 to 1e-10 of the largest number."""
  chain = ["velocity", "eps", "x", "v", "score", "velocity"]

  @jax.jit
  def run(x_t, out, t):
    def said(kind, value, other):
      field = MAKERS[kind][0](path, lambda *_: value)
      return MAKERS[other][1](field, field.predict(x_t, t), x_t, t)

    value = out
    for a, b in itertools.pairwise(chain):
      value = said(a, value, b)
    there = {(a, b): said(a, out, b) for a, b in itertools.permutations(MAKERS, 2)}
    return value, {(a, b): (said(b, y, a), jnp.abs(y).max()) for (a, b), y in there.items()}

  with jax.enable_x64(True):
    x_t, out = jax.random.normal(jax.random.key(0), (2, 4, 2), jnp.float64)
    t = jnp.full(4, MIDDLE.get(type(path), 0.4) * max(path.t_noise, path.t_data))
    whole, pairs = run(x_t, out, t)
  np.testing.assert_allclose(whole, out, rtol=1e-10, atol=1e-10)
  for pair, (back, largest) in pairs.items():
    np.testing.assert_allclose(back, out, atol=1e-10 * (1.0 + largest), err_msg=str(pair))


# SDEs


WHERE = {  # path, times: first where the signal is there, last where the data nearly is
  "Linear": (paths.Linear(), jnp.linspace(1e-3, 1.0, 251), 0.004),
  "Trigonometric": (paths.Trigonometric(), jnp.linspace(1e-3, 1.0, 251), 0.004),
  "VP": (paths.VP(), jnp.linspace(1.0, 1e-3, 251), 0.004),
  "EDM": (paths.EDM(0.01, 10.0), jnp.geomspace(10.0, 0.01, 251), 0.0),
}


@pytest.mark.parametrize("on", WHERE)
@pytest.mark.evidence("R06", "M")
def test_marginals_do_not_depend_on_the_noise(on):
  """Means and deviations of the data for every diffusion, two amounts, solver and last step."""
  path, ts, last_size = WHERE[on]
  start = DATA.at(path, ts[0], jax.random.normal(jax.random.key(1), (4, 5000)))
  cases = [(d, 1.0) for d in sde.DIFFUSIONS] + [("sigma", 3.0), ("constant", 0.0)]

  @jax.jit
  def run(ts):
    def of(solve, i, **options):
      # All cases at once, with the same noise.
      fn = lambda path, t, _: jnp.stack([sde.DIFFUSIONS[d](path, t, s) for d, s in cases])[i]
      x = solve(DATA.field(path), start, keys(4), ts, diffusion=fn, last_size=last_size, **options)
      return x.mean(), x.std()

    all_cases = lambda *args, **options: jax.vmap(lambda i: jnp.stack(of(*args, i, **options)))(
      jnp.arange(len(cases))
    )
    return [all_cases(sde.flow_sde), all_cases(sde.flow_sde_heun)] + [
      jnp.stack(of(sde.flow_sde, 2, last=last))[None] for last in ("tweedie", "euler")
    ]

  found = np.concatenate(run(ts))
  # 0.004 is the error of 20,000 numbers; the rest is that of 250 first-order steps
  np.testing.assert_allclose(found, [[DATA.mean, DATA.std]] * len(found), atol=0.02)


@pytest.mark.parametrize("path", [paths.Linear(), paths.VP(), paths.EDM()], ids=name)
def test_without_noise_it_is_eulers_method(path):
  ts, x = paths.times(path, 12), jax.random.normal(jax.random.key(1), (4, 3))
  field = DATA.field(path)
  known = ode.euler(field.velocity, x, ts)
  run = jax.jit(lambda: sde.flow_sde(field, x, keys(4), ts, diffusion="constant", scale=0.0))
  np.testing.assert_allclose(run(), known, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", [paths.VP(), paths.EDM(0.01, 10.0)], ids=name)
def test_with_the_noise_of_the_forward_process_it_is_its_reverse_sde(path):
  """sbdm is w = g^2 of arXiv:2011.13456: the same steps as `euler_maruyama`'s."""
  ts, (x, *z) = paths.times(path, 6), jax.random.normal(jax.random.key(1), (7, 4, 3))
  run = lambda solve, **options: solve(DATA.field(path), x, None, ts, z=jnp.stack(z), **options)
  ours = run(sde.flow_sde, diffusion="sbdm")
  np.testing.assert_allclose(ours, run(sde.euler_maruyama), rtol=2e-4, atol=1e-4)


FORMS = {  # of SiT's code, of its time and sigma on the straight path
  "constant": lambda t: 0.7 + 0.0 * t,
  "sbdm": lambda t: 0.7 * ((1.0 - t) ** 2 / t + 1.0 - t),
  "sigma": lambda t: 0.7 * (1.0 - t),
  "linear": lambda t: 0.7 * (1.0 - t),
  "decreasing": lambda t: 0.25 * (0.7 * np.cos(np.pi * t) + 1.0) ** 2,
  "increasing-decreasing": lambda t: 0.7 * np.sin(np.pi * t) ** 2,
}


def papers_code(w, v, score, x, z, ts, heun):
  """{last step: x} by a loop in numpy: steps on ts, and one of 0.04 without noise."""
  drift, y = lambda x, t: v(x, t) + w(t) * score(x, t), x
  for t, s, n in zip(ts[:-1], ts[1:], z[:-1], strict=True):
    dw = np.sqrt(2.0 * w(t) * (s - t)) * n
    if heun:
      k_1 = drift(y + dw, t)
      k_2 = drift(y + dw + (s - t) * k_1, s)
      y = y + dw + 0.5 * (s - t) * (k_1 + k_2)
    else:
      y = y + (s - t) * drift(y, t) + dw
  t = ts[-1]
  return {
    "mean": y + 0.04 * drift(y, t),
    "euler": y + 0.04 * v(y, t),
    "tweedie": y / t + (1.0 - t) ** 2 / t * score(y, t),
  }


@pytest.mark.parametrize("solve", [sde.flow_sde, sde.flow_sde_heun], ids=["euler", "heun"])
def test_steps_are_those_of_the_papers_code(solve):
  """Every diffusion and last step; `last_size` puts the last but one of the times at 0.96."""
  steps, v = 9, lambda x, t: np.tanh(x) - t
  score = lambda x, t: (t * v(x, t) - x) / (1.0 - t)
  x, *z = np.random.default_rng(0).standard_normal((steps + 1, 4, 3))
  field = paths.velocity_field(paths.Linear(), lambda x, t: jnp.tanh(x) - paths.expand(t, x))

  @jax.jit
  def run():
    options = dict(scale=0.7, last_size=0.04, z=jnp.stack(z))
    ts = jnp.linspace(0.05, 1.0, steps + 1)
    of = lambda d, last: solve(field, x, None, ts, diffusion=d, last=last, **options)
    return {d: {last: of(d, last) for last in sde.LAST} for d in FORMS}

  with jax.enable_x64(True):
    found = run()
  heun = solve is sde.flow_sde_heun
  for diffusion, w in FORMS.items():
    known = papers_code(w, v, score, x, z, np.linspace(0.05, 0.96, steps), heun)
    for last, value in known.items():
      words = f"{diffusion}, {last}"
      np.testing.assert_allclose(found[diffusion][last], value, rtol=1e-9, atol=1e-9, err_msg=words)


@pytest.mark.parametrize(
  "path, options, words",
  [
    (paths.Linear(), dict(diffusion="sbdm"), "diffusion='sbdm': expected another"),
    (paths.Linear(), dict(diffusion="sbdm", last_size=0.04), "diffusion='sbdm': expected another"),
    (paths.VP(), dict(diffusion="sigm"), "diffusion='sigm': expected one of constant, sbdm, sigma"),
    (paths.VP(), dict(diffusion=1.0), "sampler.diffusion=1.0: expected a name"),
    (paths.VP(), dict(last="none"), "last='none': expected one of mean, tweedie, euler"),
    (paths.VP(), dict(scale=-1.0), "sampler.scale=-1.0: expected a finite number, 0 or more"),
    (paths.VP(), dict(scale="big"), "sampler.scale='big': expected a finite number, 0 or more"),
    (paths.VP(), dict(last_size=1.0), "last_size=1.0: expected 0, or less than all"),
    (paths.VP(), dict(last_size=0.04, steps=1), "last_size=0.04: expected 0, or less than all"),
    (paths.VP(), dict(lst="mean"), "did you mean 'last'"),
  ],
)
def test_bad_options_are_refused(path, options, words):
  with pytest.raises(ValueError, match=words):
    samplers.check(path, dict(name="flow_sde", steps=9) | options)


def test_a_diffusion_may_be_a_function():
  ts, x = jnp.linspace(0.0, 1.0, 5), jnp.ones((2, 1))
  run = lambda fn: sde.flow_sde(DATA.field(paths.Linear()), x, keys(2), ts, diffusion=fn)
  np.testing.assert_allclose(run(lambda path, t, scale: scale * (1.0 - t)), run("linear"))


# The model


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def random_vars(**args):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(build(**args).init, jax.random.key(0)).params["net"]
  draw = lambda s: 0.2 * rng.standard_normal(s.shape).astype(np.float32)
  return Vars({"net": jax.tree.map(draw, shapes)})


@functools.cache
def net():
  module = dit.DiT(**SMALL, out_channels=6, n_classes=5)
  return jax.jit(lambda vars, *args: module.apply({"params": vars.params["net"]}, *args)[..., :3])


@pytest.mark.evidence("R06", "P")
def test_sizes():
  numbers = {
    ("XL", 2): 674_834_720,
    ("XL", 8): 675_664_640,
    ("L", 2): 457_840_672,
    ("L", 8): 458_578_432,
    ("B", 2): 130_315_808,
    ("B", 8): 130_869_248,
    ("S", 2): 32_865_056,
    ("S", 8): 33_142_016,
  }
  for (size_name, patch_size), expected in numbers.items():
    made = sit.build(size=size_name, patch_size=patch_size)
    assert size(jax.eval_shape(made.init, jax.random.key(0)).params) == expected, size_name


def made(path, prediction, **args):
  eps = 0.0 if path != "VP" and prediction == "velocity" else 1e-3
  return build(path=path, prediction=prediction, train_eps=eps, sample_eps=eps, **args)


@pytest.mark.parametrize("path, prediction", itertools.product(sit.PATHS, sit.FIELDS))
def test_fields_are_what_the_network_says_of_the_time_from_noise_to_data(path, prediction):
  vars, t = random_vars(), jnp.array([0.2, 0.5, 0.9])
  said = net()(vars, X, t if path != "VP" else 1.0 - t, LABEL)
  field = made(path, prediction).fns["field"](vars, {"label": LABEL})
  ours, reverse = jax.jit(lambda: (field.predict(X, t), field.velocity(X, t)))()
  at = paths.expand(field.path.sigma(t), X)
  found = {
    "velocity": -reverse if path == "VP" else reverse,
    "noise": ours.eps,
    "score": -ours.eps / at,
  }
  np.testing.assert_allclose(found[prediction], said, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
  "path, prediction", [("Linear", "noise"), ("VP", "velocity"), ("Trigonometric", "score")]
)
def test_samples_are_finite_by_sde_and_ode(path, prediction):
  """At both ends of every path, and from every prediction."""
  method = made(path, prediction)
  draw = lambda **o: method.fns["sample"](random_vars(), keys(2), {"label": LABEL[:2]}, **o)
  ode_too = [dict(name="euler", steps=3)] if prediction != "velocity" else []
  run = jax.jit(lambda: [draw(**options)["image"] for options in (dict(steps=3), *ode_too)])
  assert all(np.isfinite(x).all() and np.ptp(x) > 0.0 for x in run())


@pytest.mark.parametrize("path", sit.PATHS)
@pytest.mark.evidence("R06", "M")
def test_losses_of_noise_and_score_with_their_weights(path):
  """Weighted by velocity both are the loss of the velocity that they imply."""
  vars, batch = random_vars(), {"image": X, "label": LABEL}
  loss = lambda prediction, weight: (
    made(path, prediction, weight=weight, label_dropout=0.0)
    .phases["net"]
    .loss(vars, batch, keys(3))[0]
  )

  def known(prediction):
    """The same draws through `paths`."""
    inside = sit.Inside(sit.PATHS[path], 1e-3, both=path != "VP")
    k_loss, _ = noise.split(keys(3))
    k_t, k_eps = noise.split(k_loss)
    t = noise.uniform(k_t, (), *sorted((inside.t_noise, inside.t_data)))
    eps = noise.normal(noise.split(k_eps)[1], X.shape[1:])
    x_t, clock = paths.interpolate(inside, X, eps, t), 1.0 - t if path == "VP" else t
    said = net()(vars, x_t, clock, LABEL)
    field = sit.FIELDS[prediction](inside, lambda *_: said)
    error = field.predict(x_t, t).eps - eps
    alpha, d_alpha, sigma, d_sigma = (paths.expand(c, X) for c in paths.coefficients(inside, t))
    var = abs(d_alpha / alpha * sigma**2 - sigma * d_sigma)
    move = field.velocity(x_t, t) - paths.velocity(inside, X, eps, t)
    return jnp.mean(error**2), jnp.mean(move**2), jnp.mean(var / sigma**2 * error**2)

  @jax.jit
  def run():
    pairs = []
    for prediction in ("noise", "score"):
      ours = [loss(prediction, w) for w in ("none", "velocity", "likelihood")]
      pairs.append((ours, known(prediction)))
    return pairs

  for ours, theirs in run():
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)  # velocities are differences in float32


def test_the_loss_of_the_velocity_is_flow_matching():
  vars, batch = random_vars(), {"image": X, "label": LABEL}

  @jax.jit
  def run():
    ours = made("Linear", "velocity", label_dropout=0.0).phases["net"].loss
    fn = lambda x_t, t: net()(vars, x_t, t, LABEL)
    k_loss, _ = noise.split(keys(3))
    return ours(vars, batch, keys(3))[0], velocity.flow_matching(fn, X, k_loss).mean()

  np.testing.assert_allclose(*run(), rtol=1e-5)


@pytest.mark.evidence("R06", "W")
def test_weights_of_the_authors_names_convert():
  """SiT's state dict is DiT's: the golden network, of whose outputs SiT keeps the first half."""
  v, close = golden.load("dit_tiny_forward")
  tensors = {k[2:]: value for k, value in v.items() if k.startswith("w.")}
  args, variables = convert.from_torch(tensors, heads=3)
  vars = Vars({"net": variables["params"]})
  method = build(image_shape=(8, 8, 4), guided_channels=3, net_args={**SMALL, "depth": 2})
  x, label = v["in.x"].transpose(0, 2, 3, 1), v["in.y"].astype(np.int32)
  label, t = np.minimum(label, 4), jnp.linspace(0.1, 0.8, len(x))
  said = lambda label: dit.DiT(**args).apply(variables, x, t, label)[..., :4]
  field = lambda w: method.fns["field"](vars, {"label": label}, w=w).velocity(x, t)
  plain, guided, c, u = jax.jit(
    lambda: (field(0.0), field(0.5), said(label), said(np.full_like(label, 5)))
  )()
  np.testing.assert_allclose(plain, c, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(guided[..., :3], (1.5 * c - 0.5 * u)[..., :3], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(guided[..., 3:], c[..., 3:], rtol=1e-4, atol=1e-5)
  assert np.abs(c - u).max() > 0.01 and set(args) == {
    "patch_size", "width", "depth", "heads", "mlp_ratio", "out_channels", "n_classes"
  }  # fmt: skip


@pytest.mark.parametrize(
  "args, words",
  [
    (dict(path="GVP"), "path='GVP': expected one of Linear, VP, Trigonometric"),
    (dict(prediction="eps"), "prediction='eps': expected one of velocity, noise, score"),
    (dict(weight="velocity"), "weight='velocity': expected none, of a velocity"),
    (dict(train_eps=1e-3), "train_eps=0.001: expected 0"),
    (dict(path="VP"), "train_eps=0.0: expected above 0 and below 0.5"),
    (dict(prediction="noise", train_eps=1e-3), "sample_eps=0.0: expected above 0 and below 0.5"),
    (dict(size="M"), "size='M': expected one of S, B, L, XL"),
    (dict(patch_size=3), "height=4: expected a multiple of patch_size=3"),
    (dict(guided_channels=4), "guided_channels=4: expected a whole number, 1 to 3"),
    (dict(sampler=dict(name="flow_sde", steps=9, diffusion="sbdm")), "diffusion='sbdm': expected"),
  ],
)
def test_bad_arguments_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    build(**args)
