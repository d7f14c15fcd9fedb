"""M2: its bounds against exact evidence, its objective over a whole data set, its classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgen import noise
from jaxgen.data import sources
from jaxgen.models.vae import m2
from jaxgen.objectives import elbo, likelihood

KEY = jax.random.key
SHAPE, Y = (1, 3, 1), 4
ARGS = {"image_shape": SHAPE, "n_classes": Y, "z_dim": 2, "width": 8}
ALL = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(8, *SHAPE)
IMAGES = jnp.float32(ALL)  # all there are: black and white pixels are their own binarisation


@jax.jit
def randomized():
  """The Vars of a method far from its start, but with log variances that are still moderate."""
  vars = m2.build(**ARGS).init(KEY(0))
  noisy = lambda x, std: x + std * jax.random.normal(KEY(x.size), x.shape)
  std = {"classifier": 0.7, "encoder": 0.05, "decoder": 0.7}
  move = lambda name, net: jax.tree.map(lambda x: noisy(x, std[name]), net)
  return vars._replace(params={name: move(name, net) for name, net in vars.params.items()})


@jax.jit
def exact():
  """Vars whose image does not depend on z, so that q(z | x, y) = p(z) and q(y | x) are exact.

  p(y | x) is a softmax linear in the pixels, and softplus(a) - softplus(-a) = a.
  """
  params = randomized().params
  decoder, encoder = params["decoder"], jax.tree.map(jnp.zeros_like, params["encoder"])
  decoder["z"]["kernel"] = jnp.zeros_like(decoder["z"]["kernel"])
  logits = coins(decoder)
  pairs = jnp.zeros((3, 8)).at[jnp.arange(3), 2 * jnp.arange(3)].set(1.0)
  pairs = pairs.at[jnp.arange(3), 2 * jnp.arange(3) + 1].set(-1.0)
  out = jnp.zeros((8, Y)).at[jnp.array([0, 2, 4])].set(logits.T)
  out = out.at[jnp.array([1, 3, 5])].set(-logits.T)
  classifier = {
    "hidden": {"kernel": pairs, "bias": jnp.zeros(8)},
    "logits": {"kernel": out, "bias": jax.nn.log_sigmoid(-logits).sum(1)},
  }
  nets = {"classifier": classifier, "encoder": encoder, "decoder": decoder}
  return m2.Vars(nets)


def coins(decoder):
  """Logits [Y, D] of the pixels of each class at z = 0."""
  net = m2.Decoder(8, 3)
  return net.apply({"params": decoder}, jnp.zeros((Y, 2)), jnp.eye(Y))


def joint(logits, images=IMAGES):
  """log p(x, y) [B, Y] of independent coins."""
  x = 0.5 + 0.5 * images.reshape(-1, 1, 3)
  return likelihood.bernoulli(x, logits[None]).sum(-1) - np.log(Y)


@jax.jit
def evidence(vars, points=30):
  """log p(x, y) [8, Y] of all images by quadrature over z."""
  z, w = np.polynomial.hermite_e.hermegauss(points)
  grid = jnp.float32(np.stack(np.meshgrid(z, z), -1).reshape(-1, 2))
  weight = jnp.float32(np.log(np.outer(w, w).ravel() / (2.0 * np.pi)))
  net = m2.Decoder(8, 3)

  def of(y):
    y = jnp.broadcast_to(y, (len(grid), Y))
    logits = net.apply({"params": vars.params["decoder"]}, grid, y)
    return jax.nn.logsumexp(joint(logits) + weight[None], axis=1)

  return jax.vmap(of, out_axes=1)(jnp.eye(Y))


@pytest.mark.evidence("V08", "M")
def test_the_bounds_are_the_evidence_at_the_true_posteriors():
  """Eq. 6-7 with equality, for every image and any noise; then the classifier has no gradient."""
  made = m2.build(**ARGS)
  vars, log_prob, keys = exact(), made.fns["log_prob"], lambda: noise.rows(KEY(1), 8)
  truth = joint(coins(vars.params["decoder"]))

  @jax.jit
  def run(vars):
    def total(classifier):
      params = {**vars.params, "classifier": classifier}
      return log_prob(vars._replace(params=params), {"image": IMAGES}, keys()).sum()

    grads = jax.grad(total)(vars.params["classifier"])
    parts = made.fns["bound"](vars, {"image": IMAGES}, keys())
    logits = made.fns["detect"](vars, {"image": IMAGES})["logits"]
    return log_prob(vars, {"image": IMAGES}, keys()), parts, grads, jax.nn.softmax(logits)

  bound, parts, grads, q = run(vars)
  np.testing.assert_allclose(bound, jax.nn.logsumexp(truth, 1), rtol=1e-5)
  np.testing.assert_allclose(jnp.exp(bound).sum(), 1.0, rtol=1e-5)
  np.testing.assert_allclose(parts["reconstruction"] - parts["kl"].sum(1), bound, rtol=1e-5)
  np.testing.assert_allclose(parts["kl"][:, 1], 0.0, atol=1e-6)
  assert parts["kl"][:, 0].max() > 0.1
  assert all(jnp.abs(g).max() < 1e-5 for g in jax.tree.leaves(grads))
  np.testing.assert_allclose(q, jax.nn.softmax(truth), rtol=1e-4)


@pytest.mark.evidence("V08", "M")
def test_the_loss_is_the_objective_over_the_data():
  """Eq. 9 as sums over 8 images without a label and 4 with one, each of these twice in a batch."""
  made = m2.build(**ARGS, n_labelled=4, n_unlabelled=8, alpha=0.3)
  vars = exact()
  truth, label = joint(coins(vars.params["decoder"])), jnp.array([0, 1, 3, 3] * 2)
  labelled = jnp.concatenate([IMAGES[2:6]] * 2)
  batch = {"image": IMAGES, "labelled": labelled, "label": label}
  loss, aux = jax.jit(made.phases["m2"].loss)(vars, batch, noise.rows(KEY(1), 8))
  rows = jnp.arange(2, 6), label[:4]
  of_y = jax.nn.log_softmax(truth)[rows]
  objective = -jax.nn.logsumexp(truth, 1).sum() - truth[rows].sum() - 0.3 * 12 * of_y.mean()
  np.testing.assert_allclose(8 * loss, objective, rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["labelled"], -truth[rows].mean(), rtol=1e-5)
  right = truth.argmax(1)[2:6] == label[:4]
  np.testing.assert_allclose(aux.metrics["accuracy"], right.mean())


@pytest.mark.evidence("V08", "M")
def test_bounds_stay_below_the_evidence_and_draws_close_the_gap():
  """Random networks; p(x) and p(x, y) by quadrature over z."""
  made, n = m2.build(**ARGS), 1000
  vars = randomized()
  truth = evidence(vars)
  image, label = jnp.repeat(IMAGES, n, axis=0), jnp.arange(8 * n) % Y
  batch, keys = {"image": image, "labelled": image, "label": label}, noise.rows(KEY(1), 8 * n)
  bound = jax.jit(made.fns["log_prob"])(vars, {"image": image}, keys).reshape(8, n)
  gap = jax.nn.logsumexp(truth, 1) - bound.mean(1)
  assert (gap > 4.0 * bound.std(1) / n**0.5).all()
  _, aux = jax.jit(made.phases["m2"].loss)(vars, batch, noise.rows(KEY(3), 8 * n))
  np.testing.assert_allclose(aux.metrics["unlabelled"], -bound.mean(), rtol=0.01)
  assert 0.02 < truth.mean() + aux.metrics["labelled"] < 4.0
  # Of a q(z | x, y) wider than p(z), so that no weight is rare and large.
  encoder = jax.tree.map(jnp.zeros_like, vars.params["encoder"])
  encoder["mean"]["bias"], encoder["log_var"]["bias"] = jnp.array([0.3, -0.3]), jnp.full(2, 0.3)
  vars = vars._replace(params={**vars.params, "encoder": encoder})
  many = jax.jit(lambda k: made.fns["log_prob"](vars, {"image": IMAGES}, k, samples=4000))
  np.testing.assert_allclose(many(noise.rows(KEY(2), 8)), jax.nn.logsumexp(truth, 1), atol=0.05)


@pytest.mark.evidence("V08", "M")
def test_the_sum_over_classes_is_the_mean_over_draws_of_them():
  """Eq. 7 by enumeration against y ~ q(y | x), each scored by the labelled bound of Eq. 6."""
  made, n = m2.build(**ARGS), 10_000
  vars, loss = randomized(), jax.jit(made.phases["m2"].loss)
  image = jnp.broadcast_to(IMAGES[3:4], (n, *SHAPE))
  logits = jax.jit(made.fns["detect"])(vars, {"image": IMAGES[3:4]})["logits"][0]
  label = jax.random.categorical(KEY(3), logits, shape=(n,))
  _, aux = loss(vars, {"image": image, "labelled": image, "label": label}, noise.rows(KEY(1), n))
  m = aux.metrics
  assert (jnp.bincount(label, length=Y) > 100).sum() > 1
  # -log q(y | x) is the entropy's draw: U = E L + E log q. Each of the means varies by about 0.01.
  np.testing.assert_allclose(m["unlabelled"], m["labelled"] - m["classification"], atol=0.05)


@pytest.mark.evidence("V08", "M")
def test_the_marginal_bound_of_a_mixture_of_linear_gaussians():
  """x | y, z ~ N(W z + b_y, s^2): the bound of Eq. 7 is log p(x) at the true posteriors only."""
  rng = np.random.default_rng(0)
  w, b, s = jnp.float32(rng.normal(size=(3, 2))), jnp.float32(rng.normal(size=(Y, 3))), 0.6
  x = jnp.float32(rng.normal(size=(50, 3)))
  cov, precision = w @ w.T + s**2 * jnp.eye(3), w.T @ w / s**2 + jnp.eye(2)
  density = jnp.float32(stats.multivariate_normal(cov=cov).logpdf(x[:, None] - b[None]))
  log_p = jax.nn.logsumexp(density - jnp.log(Y), axis=1)
  rotate = jnp.linalg.eigh(precision)[1]  # z in the axes of its posterior, where q is diagonal
  w, precision = w @ rotate, rotate.T @ precision @ rotate
  residual = x[:, None] - b[None]
  mean = jnp.einsum("byd,dz->byz", residual, w @ jnp.linalg.inv(precision)) / s**2
  log_var = jnp.broadcast_to(-jnp.log(jnp.diag(precision)), mean.shape)

  def bound(shift, log_q, draws=400):
    def of(keys):
      flat = lambda v: v.reshape(50 * Y, -1)
      gauss = lambda z: likelihood.gaussian(flat(residual), z @ w.T, 2 * jnp.log(s)).sum(1)
      parts = elbo.gaussian_bound(gauss, flat(mean + shift), flat(log_var), keys)
      bounds = (parts[0] - parts[1]).reshape(50, Y) - jnp.log(Y)
      return elbo.marginal_bound(bounds, log_q)

    return jax.lax.map(
      lambda i: of(noise.fold_in(noise.rows(KEY(5), 50 * Y), i)), jnp.arange(draws)
    )

  bound = jax.jit(bound)
  truth = jax.nn.log_softmax(density)
  found = bound(0.0, truth)
  error = 5.0 * found.std(0) / len(found) ** 0.5
  assert (jnp.abs(found.mean(0) - log_p) < error).all() and error.max() < 0.5
  for shift, log_q in ((0.5, truth), (0.0, jnp.full((50, Y), -jnp.log(Y)))):
    lower = bound(shift, log_q).mean(0)
    assert (lower < log_p + error).all() and (log_p - lower).mean() > 0.1


def test_a_classifier_learns_from_images_without_labels():
  """Steps along the gradient of Eq. 7 alone bring q(y | x) nearer to the exact p(y | x)."""
  made = m2.build(**ARGS)
  vars, log_prob = exact(), made.fns["log_prob"]
  truth = jax.nn.log_softmax(joint(coins(vars.params["decoder"])))
  shaken = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(KEY(p.size), p.shape),
                        vars.params["classifier"])  # fmt: skip
  of = lambda classifier: vars._replace(params={**vars.params, "classifier": classifier})
  q = lambda c: jax.nn.log_softmax(made.fns["detect"](of(c), {"image": IMAGES})["logits"])
  kl = lambda c: jnp.sum(jnp.exp(q(c)) * (q(c) - truth)) / 8
  bound = lambda c: log_prob(of(c), {"image": IMAGES}, noise.rows(KEY(1), 8)).mean()
  step = lambda c, _: (jax.tree.map(lambda p, g: p + 0.1 * g, c, jax.grad(bound)(c)), None)
  learn = jax.jit(lambda c: (kl(c), kl(jax.lax.scan(step, c, length=200)[0])))
  before, after = learn(shaken)
  assert before > 0.01 and after < 0.2 * before


def test_style_and_class_are_apart():
  """A draw of the class follows q(y | x); `sample` decodes what it is given."""
  made, n = m2.build(**ARGS), 2000
  vars = randomized()
  image = jnp.broadcast_to(IMAGES[5:6], (n, *SHAPE))
  latents = jax.jit(made.fns["encode"])(vars, {"image": image}, noise.rows(KEY(1), n))
  y = latents[:, 2:]
  assert latents.shape == (n, 2 + Y) and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()
  q = jax.nn.softmax(jax.jit(made.fns["detect"])(vars, {"image": IMAGES[5:6]})["logits"][0])
  np.testing.assert_allclose(y.mean(0), q, atol=0.05)
  label = jnp.arange(n) % Y
  image = jax.jit(made.fns["sample"])(vars, noise.rows(KEY(2), n), {"label": label})["image"]
  every = jax.jit(made.fns["sample"])(vars, noise.rows(KEY(2), n))["image"]
  assert image.shape == (n, *SHAPE)
  assert jnp.abs(image[label == 0].mean(0) - image[label == 1].mean(0)).max() > 0.1
  np.testing.assert_allclose(every.mean(0), image.mean(0), atol=0.1)
  style = jax.random.normal(KEY(3), (1, 2))
  swapped = jnp.concatenate([jnp.broadcast_to(style, (Y, 2)), jnp.eye(Y)], axis=1)
  decoded = jax.jit(made.fns["decode"])(vars, swapped)["image"]
  logits = m2.Decoder(8, 3).apply(
    {"params": vars.params["decoder"]}, swapped[:, :2], swapped[:, 2:]
  )
  np.testing.assert_allclose(decoded.reshape(Y, 3), jnp.tanh(logits / 2.0), rtol=1e-4, atol=1e-5)
  assert decoded.std(0).max() > 0.05


def test_twenty_labels_teach_digits():
  """Two of each digit, 1598 images without a label, 200 steps: far from a chance of 0.1."""
  made = m2.build(image_shape=(8, 8, 1), n_labelled=20, n_unlabelled=1598, z_dim=5, width=32,
                  tx={"lr": 3e-3})  # fmt: skip
  train, test = (sources.open_source("digits", split) for split in ("train", "test"))
  pixels = lambda s: jnp.float32(np.stack([s[i]["image"] for i in range(len(s))])) / 127.5 - 1.0
  images, unseen = pixels(train), pixels(test)
  few = np.concatenate([np.flatnonzero(train.labels == y)[:2] for y in range(10)])
  labels = jnp.int32(train.labels[few])
  phase = made.phases["m2"]

  def step(state, i):
    params, opt = state
    keys = noise.rows(KEY(7), 50, 50 * i)
    k_u, k_l, keys = noise.split(keys, 3)
    shown, known = noise.randint(k_u, 0, len(images)), noise.randint(k_l, 0, 20)
    batch = {"image": images[shown], "labelled": images[few][known], "label": labels[known]}
    loss = lambda p: phase.loss(m2.Vars(p), batch, keys)[0]
    value, grads = jax.value_and_grad(loss)(params)
    updates, opt = phase.tx.update(grads, opt, params)
    return (jax.tree.map(jnp.add, params, updates), opt), value

  params = jax.jit(made.init)(KEY(0)).params
  run = jax.jit(lambda p: jax.lax.scan(step, (p, phase.tx.init(p)), jnp.arange(200)))
  (params, _), losses = run(params)
  logits = jax.jit(made.fns["detect"])(m2.Vars(params), {"image": unseen})["logits"]
  accuracy = (logits.argmax(-1) == jnp.int32(test.labels)).mean()
  assert losses[-20:].mean() < losses[:20].mean() - 5.0
  assert accuracy > 0.5, accuracy


@pytest.mark.parametrize(
  "args, words",
  [
    ({"n_classes": 1}, "n_classes=1: expected a whole number, 2 or more"),
    ({"n_labelled": 0}, "n_labelled=0: expected a whole number"),
    ({"n_unlabelled": 0.5}, "n_unlabelled=0.5: expected a whole number"),
    ({"alpha": -1.0}, "alpha=-1.0: expected a finite number, 0 or more"),
    ({"z_dim": 0}, "z_dim=0"),
    ({"width": 0}, "width=0"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    m2.build(**args)


def test_a_batch_without_labelled_images_is_refused():
  made = m2.build(**ARGS)
  vars = jax.eval_shape(made.init, KEY(0))
  batch = {"image": IMAGES, "label": jnp.zeros(8, jnp.int32)}
  with pytest.raises(ValueError, match="labelled=None: expected a float array"):
    made.phases["m2"].loss(vars, batch, noise.rows(KEY(0), 8))


@pytest.mark.evidence("V08", "P")
def test_size():
  """Sec. 4: one hidden layer of 500 and z of 50, counted by hand; y enters without a bias."""
  params = jax.eval_shape(m2.build().init, KEY(0)).params
  sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
  assert sizes == {
    "classifier": 785 * 500 + 501 * 10,
    "encoder": (785 + 10) * 500 + 2 * 501 * 50,
    "decoder": (51 + 10) * 500 + 501 * 784,
  }
